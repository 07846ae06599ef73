"""ResNet-50, batch normalisation kept as nodes as in a training export.

He et al.: Deep Residual Learning for Image Recognition, CVPR 2016, arXiv:1512.03385, table 1. The stride of a stage
sits on its first 3x3 convolution, as in every widely used release (and in the onnx package), not on the 1x1 before it
as in the paper: same parameters, 4.1 instead of 3.8 G multiply-adds.
"""

from perwatt.graph.graph import Graph
from perwatt.networks.imagenet import CLASSES
from perwatt.networks.layers import LOGITS_SPREAD, Layers
from perwatt.networks.weights import SEED

# stage: blocks, channels of the 3x3 convolutions (a block puts out four times as many), stride of the first block
STAGES = {2: (3, 64, 1), 3: (4, 128, 2), 4: (6, 256, 2), 5: (3, 512, 2)}
# What a block adds to the tensor that goes round it is kept smaller than that tensor, as in a trained network; sums of
# equals would double the variance at every block.
BRANCH_SPREAD = 0.5


def resnet50(batch: int = 1, seed: int = SEED, *, classes: int = CLASSES, size: int = 224) -> Graph:
    """Return ResNet-50 for `data` [batch, 3, 224, 224]: 53 convolutions, 25,557,032 parameters (25,610,152 values).

    The difference are the running means and variances, which are not trained.
    """
    net = Layers("resnet50", seed)
    # Pixels come divided by about 57, so their spread is about 1.
    x = net.input(batch, 3, size, scale=1 / 57)
    x = _conv_bn(net, "conv1", x, 64, 7, stride=2, pad=3)
    x = net.relu("conv1/relu", x)
    x = net.max_pool("pool1", x, 3, stride=2, pad=1, ceil=False)
    for stage, (blocks, channels, stride) in STAGES.items():
        for block in range(blocks):
            x = _bottleneck(net, f"conv{stage}_{block + 1}", x, channels, stride if block == 0 else 1)
    x = net.average_pool("pool5", x)
    x = net.flatten("flat5", x)
    x = net.linear("logits", x, classes, spread=LOGITS_SPREAD)  # fc1000
    return net.finish(x)


def _bottleneck(net: Layers, name: str, x: str, channels: int, stride: int) -> str:
    """Add one block: 1x1 down, 3x3, 1x1 up, plus the input itself, or a projection of it where the shape changes."""
    y = _conv_bn(net, f"{name}/a", x, channels, 1)
    y = net.relu(f"{name}/a/relu", y)
    y = _conv_bn(net, f"{name}/b", y, channels, 3, stride=stride, pad=1)
    y = net.relu(f"{name}/b/relu", y)
    y = _conv_bn(net, f"{name}/c", y, 4 * channels, 1, spread=BRANCH_SPREAD)
    if net.channels(x) != 4 * channels:
        x = _conv_bn(net, f"{name}/shortcut", x, 4 * channels, 1, stride=stride)
    return net.relu(f"{name}/relu", net.add(f"{name}/sum", y, x))


def _conv_bn(
    net: Layers, name: str, x: str, channels: int, kernel: int, stride: int = 1, pad: int = 0, spread: float = 1.0
) -> str:
    x = net.conv(name, x, channels, kernel, stride=stride, pad=pad, bias=False)
    return net.batch_normalization(f"{name}/bn", x, spread=spread)
