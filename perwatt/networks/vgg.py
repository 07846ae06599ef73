"""VGG-16: configuration D of the paper.

Simonyan, Zisserman: Very Deep Convolutional Networks for Large-Scale Image Recognition, ICLR 2015, arXiv:1409.1556,
table 1.
"""

from perwatt.graph.graph import Graph
from perwatt.networks.imagenet import CLASSES
from perwatt.networks.layers import LOGITS_SPREAD, Layers
from perwatt.networks.weights import SEED

# block: number of 3x3 convolutions, channels; each block ends in a 2x2 max pooling
BLOCKS = {1: (2, 64), 2: (2, 128), 3: (3, 256), 4: (3, 512), 5: (3, 512)}


def vgg16(batch: int = 1, seed: int = SEED, *, classes: int = CLASSES, size: int = 224) -> Graph:
    """Return VGG-16 for `data` [batch, 3, 224, 224]: 13 convolutions, 138,357,544 parameters."""
    net = Layers("vgg16", seed)
    x = net.input(batch, 3, size)
    for block, (layers, channels) in BLOCKS.items():
        for layer in range(1, layers + 1):
            x = net.conv(f"conv{block}_{layer}", x, channels, 3, pad=1)
            x = net.relu(f"relu{block}_{layer}", x)
        x = net.max_pool(f"pool{block}", x, 2, stride=2, ceil=False)
    x = net.flatten("flat5", x)
    x = net.linear("fc6", x, 4096)
    x = net.relu("relu6", x)
    x = net.dropout("drop6", x)
    x = net.linear("fc7", x, 4096)
    x = net.relu("relu7", x)
    x = net.dropout("drop7", x)
    x = net.linear("logits", x, classes, spread=LOGITS_SPREAD)  # fc8
    return net.finish(x)
