"""LeNet for 28x28 digits, in Caffe's form: 20 and 50 filters, max pooling and one Relu.

LeCun et al.: Gradient-Based Learning Applied to Document Recognition, Proceedings of the IEEE 86(11), 1998.
"""

from perwatt.graph.graph import Graph
from perwatt.networks.layers import LOGITS_SPREAD, Layers
from perwatt.networks.weights import SEED


def lenet(batch: int = 1, seed: int = SEED, *, classes: int = 10, size: int = 28) -> Graph:
    """Return LeNet for `data` [batch, 1, 28, 28] in grey: 431,080 parameters, ten classes."""
    net = Layers("lenet", seed)
    x = net.input(batch, 1, size, scale=1 / 256)
    x = net.conv("conv1", x, 20, 5)
    x = net.max_pool("pool1", x, 2, stride=2)
    x = net.conv("conv2", x, 50, 5)
    x = net.max_pool("pool2", x, 2, stride=2)
    x = net.flatten("flat2", x)
    x = net.linear("ip1", x, 500)
    x = net.relu("relu1", x)
    x = net.linear("logits", x, classes, spread=LOGITS_SPREAD)  # ip2
    return net.finish(x)
