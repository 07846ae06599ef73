"""GoogLeNet (Inception v1), as Berkeley's Caffe published it (bvlc_googlenet); the two training classifiers on demand.

Szegedy et al.: Going Deeper with Convolutions, CVPR 2015, arXiv:1409.4842, table 1.
"""

from perwatt.graph.graph import Graph
from perwatt.networks.imagenet import CLASSES
from perwatt.networks.layers import LOGITS_SPREAD, Layers
from perwatt.networks.weights import SEED

# module: 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool projection (channels)
INCEPTION = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
# As in AlexNet: large enough for the normalisation to matter.
BEFORE_LRN = 20.0


def googlenet(
    batch: int = 1, seed: int = SEED, *, classes: int = CLASSES, size: int = 224, auxiliary: bool = False
) -> Graph:
    """Return GoogLeNet for `data` [batch, 3, 224, 224]: 57 convolutions, 6,998,552 parameters.

    `auxiliary` adds the two classifiers that training hears besides, as the outputs loss1/prob and loss2/prob.
    """
    net = Layers("googlenet", seed)
    x = net.input(batch, 3, size)
    x = _conv(net, "conv1/7x7_s2", x, 64, 7, stride=2, pad=3, spread=BEFORE_LRN)
    x = net.max_pool("pool1/3x3_s2", x, 3, stride=2)
    x = net.lrn("pool1/norm1", x)
    x = _conv(net, "conv2/3x3_reduce", x, 64, 1)
    x = _conv(net, "conv2/3x3", x, 192, 3, pad=1, spread=BEFORE_LRN)
    x = net.lrn("conv2/norm2", x)
    x = net.max_pool("pool2/3x3_s2", x, 3, stride=2)
    x = _inception(net, "3a", x)
    x = _inception(net, "3b", x)
    x = net.max_pool("pool3/3x3_s2", x, 3, stride=2)
    x = first = _inception(net, "4a", x)
    x = _inception(net, "4b", x)
    x = _inception(net, "4c", x)
    x = second = _inception(net, "4d", x)
    x = _inception(net, "4e", x)
    x = net.max_pool("pool4/3x3_s2", x, 3, stride=2)
    x = _inception(net, "5a", x)
    x = _inception(net, "5b", x)
    x = net.average_pool("pool5/7x7_s1", x, net.size(x))  # 7 for photographs of 224
    x = net.dropout("pool5/drop", x)
    x = net.flatten("pool5/flat", x)
    x = net.linear("logits", x, classes, spread=LOGITS_SPREAD)  # loss3/classifier
    if not auxiliary:
        return net.finish(x)
    heads = {"loss1": first, "loss2": second}
    return net.finish(x, {f"{name}/prob": _classifier(net, name, data, classes) for name, data in heads.items()})


def _classifier(net: Layers, name: str, x: str, classes: int) -> str:
    """Add one auxiliary classifier: section 5 of the paper."""
    x = net.average_pool(f"{name}/ave_pool", x, min(5, net.size(x)), stride=3)
    x = _conv(net, f"{name}/conv", x, 128, 1)
    x = net.flatten(f"{name}/flat", x)
    x = net.relu(f"{name}/relu_fc", net.linear(f"{name}/fc", x, 1024))
    x = net.dropout(f"{name}/drop", x)
    return net.linear(f"{name}/classifier", x, classes, spread=LOGITS_SPREAD)


def _inception(net: Layers, module: str, x: str) -> str:
    """Add one module: 1x1, 3x3 and 5x5 convolutions and a pooling side by side, joined along the channels."""
    one, three_reduce, three, five_reduce, five, projection = INCEPTION[module]
    at = f"inception_{module}"
    a = _conv(net, f"{at}/1x1", x, one, 1)
    b = _conv(net, f"{at}/3x3_reduce", x, three_reduce, 1)
    b = _conv(net, f"{at}/3x3", b, three, 3, pad=1)
    c = _conv(net, f"{at}/5x5_reduce", x, five_reduce, 1)
    c = _conv(net, f"{at}/5x5", c, five, 5, pad=2)
    d = net.max_pool(f"{at}/pool", x, 3, stride=1, pad=1)
    d = _conv(net, f"{at}/pool_proj", d, projection, 1)
    return net.concat(f"{at}/output", (a, b, c, d))


def _conv(
    net: Layers, name: str, x: str, channels: int, kernel: int, stride: int = 1, pad: int = 0, spread: float = 1.0
) -> str:
    x = net.conv(name, x, channels, kernel, stride=stride, pad=pad, spread=spread)
    return net.relu(f"{name}/relu", x)
