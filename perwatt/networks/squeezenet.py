"""SqueezeNet 1.1: the authors' second release, with 2.4 times fewer multiply-adds than the paper's table.

Iandola et al.: SqueezeNet: AlexNet-level accuracy with 50x fewer parameters and <0.5MB model size, 2016,
arXiv:1602.07360; release 1.1 moves the pooling forward and starts with 64 filters of 3x3.
"""

from perwatt.graph.graph import Graph
from perwatt.networks.imagenet import CLASSES
from perwatt.networks.layers import LOGITS_SPREAD, Layers
from perwatt.networks.weights import SEED


def squeezenet(batch: int = 1, seed: int = SEED, *, classes: int = CLASSES, size: int = 227) -> Graph:
    """Return SqueezeNet 1.1 for `data` [batch, 3, 227, 227]: 26 convolutions, 1,235,496 parameters."""
    net = Layers("squeezenet1.1", seed)
    x = net.input(batch, 3, size)
    x = net.conv("conv1", x, 64, 3, stride=2)
    x = net.relu("conv1/relu", x)
    x = net.max_pool("pool1", x, 3, stride=2)
    x = _fire(net, "fire2", x, 16, 64)
    x = _fire(net, "fire3", x, 16, 64)
    x = net.max_pool("pool3", x, 3, stride=2)
    x = _fire(net, "fire4", x, 32, 128)
    x = _fire(net, "fire5", x, 32, 128)
    x = net.max_pool("pool5", x, 3, stride=2)
    x = _fire(net, "fire6", x, 48, 192)
    x = _fire(net, "fire7", x, 48, 192)
    x = _fire(net, "fire8", x, 64, 256)
    x = _fire(net, "fire9", x, 64, 256)
    x = net.dropout("drop9", x)
    # The average over the map comes after the classifier and a Relu, which both narrow the logits.
    x = net.conv("conv10", x, classes, 1, spread=5.0 * LOGITS_SPREAD)
    x = net.relu("conv10/relu", x)
    x = net.average_pool("pool10", x)
    return net.finish(net.flatten("logits", x))


def _fire(net: Layers, name: str, x: str, squeeze: int, expand: int) -> str:
    """Add one fire module: a narrow 1x1 layer, then 1x1 and 3x3 layers side by side."""
    x = net.conv(f"{name}/squeeze1x1", x, squeeze, 1)
    x = net.relu(f"{name}/squeeze1x1/relu", x)
    a = net.conv(f"{name}/expand1x1", x, expand, 1)
    a = net.relu(f"{name}/expand1x1/relu", a)
    b = net.conv(f"{name}/expand3x3", x, expand, 3, pad=1)
    b = net.relu(f"{name}/expand3x3/relu", b)
    return net.concat(f"{name}/concat", (a, b))
