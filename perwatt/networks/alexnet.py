"""AlexNet and its sibling CaffeNet, as Berkeley's Caffe published them (bvlc_alexnet, bvlc_reference_caffenet).

Krizhevsky, Sutskever, Hinton: ImageNet Classification with Deep Convolutional Neural Networks, NIPS 2012. Caffe's
files differ from the paper in the normalisation's constant (k = 1, not 2) and in the input (227, which the sizes need).
"""

from perwatt.graph.graph import Graph
from perwatt.networks.imagenet import CLASSES
from perwatt.networks.layers import LOGITS_SPREAD, Layers
from perwatt.networks.weights import SEED

# Activations before a normalisation are made large, as the trained ones are: at 1 the divisor would be 1.0001 and an
# engine that leaves the normalisation out would pass every comparison.
BEFORE_LRN = 20.0


def alexnet(batch: int = 1, seed: int = SEED, *, classes: int = CLASSES, size: int = 227) -> Graph:
    """Return AlexNet for `data` [batch, 3, 227, 227]: 60,965,224 parameters, two groups, LRN before pooling."""
    net = Layers("alexnet", seed)
    x = net.input(batch, 3, size)
    x = net.conv("conv1", x, 96, 11, stride=4, spread=BEFORE_LRN)
    x = net.relu("relu1", x)
    x = net.lrn("norm1", x)
    x = net.max_pool("pool1", x, 3, stride=2)
    x = net.conv("conv2", x, 256, 5, pad=2, group=2, spread=BEFORE_LRN)
    x = net.relu("relu2", x)
    x = net.lrn("norm2", x)
    x = net.max_pool("pool2", x, 3, stride=2)
    return _from_conv3(net, x, classes)


def caffenet(batch: int = 1, seed: int = SEED, *, classes: int = CLASSES, size: int = 227) -> Graph:
    """Return CaffeNet for `data` [batch, 3, 227, 227]: AlexNet with pooling before LRN.

    Jia et al.: Caffe: Convolutional Architecture for Fast Feature Embedding, 2014, arXiv:1408.5093.
    """
    net = Layers("caffenet", seed)
    x = net.input(batch, 3, size)
    x = net.conv("conv1", x, 96, 11, stride=4, spread=BEFORE_LRN)
    x = net.relu("relu1", x)
    x = net.max_pool("pool1", x, 3, stride=2)
    x = net.lrn("norm1", x)
    x = net.conv("conv2", x, 256, 5, pad=2, group=2, spread=BEFORE_LRN)
    x = net.relu("relu2", x)
    x = net.max_pool("pool2", x, 3, stride=2)
    x = net.lrn("norm2", x)
    return _from_conv3(net, x, classes)


def _from_conv3(net: Layers, x: str, classes: int) -> Graph:
    x = net.conv("conv3", x, 384, 3, pad=1)
    x = net.relu("relu3", x)
    x = net.conv("conv4", x, 384, 3, pad=1, group=2)
    x = net.relu("relu4", x)
    x = net.conv("conv5", x, 256, 3, pad=1, group=2)
    x = net.relu("relu5", x)
    x = net.max_pool("pool5", x, 3, stride=2)
    x = net.flatten("flat5", x)
    x = net.linear("fc6", x, 4096)
    x = net.relu("relu6", x)
    x = net.dropout("drop6", x)
    x = net.linear("fc7", x, 4096)
    x = net.relu("relu7", x)
    x = net.dropout("drop7", x)
    x = net.linear("logits", x, classes, spread=LOGITS_SPREAD)  # fc8
    return net.finish(x)
