"""Network: what there is to know about a built-in network before building it; NETWORKS: all of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from types import MappingProxyType
from typing import Literal

from perwatt.errors import InputError
from perwatt.graph.graph import Graph
from perwatt.networks.alexnet import alexnet, caffenet
from perwatt.networks.efficientnet_lite0 import efficientnet_lite0
from perwatt.networks.googlenet import googlenet
from perwatt.networks.lenet import lenet
from perwatt.networks.resnet import resnet50
from perwatt.networks.squeezenet import squeezenet
from perwatt.networks.vgg import vgg16
from perwatt.networks.weights import SEED

DRAWN = "drawn from a seed by perwatt; free of any licence"


@dataclass(frozen=True)
class Network:
    """A built-in network, and how its input is made from a photograph.

    `build(batch=1, seed=SEED)` returns its Graph, whose input is `data` [batch, channels, height, width] and whose
    output is `prob` [batch, classes], the softmax of the tensor `logits`, as in the published files. `input_size` is
    (height, width). The input is (pixel - mean) * scale for pixels 0..255, per channel in `channel_order`, of the
    photograph resized so that its short side is `resize_to` and cut to the centre. `labels` says whether the classes
    mean anything: only trained weights make an answer worth naming (`perwatt.networks.labels`). `least_size` is the
    smallest height and width that `build` can be asked for, and `auxiliary` says whether it can add the classifiers
    that training hears besides.
    """

    name: str
    build: Callable[..., Graph]
    input_size: tuple[int, int]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    channel_order: Literal["rgb", "bgr", "grey"]
    resize_to: int
    interpolation: Literal["bilinear", "bicubic"]
    paper: str
    least_size: int
    weights_licence: str = DRAWN
    labels: bool = False
    auxiliary: bool = False


def _caffe(
    name: str,
    build: Callable[..., Graph],
    sizes: tuple[int, int],
    mean: tuple[float, float, float],
    paper: str,
    auxiliary: bool = False,
) -> Network:
    """Return a network as Caffe feeds it: blue first, the mean pixel taken away, 256 pixels cut down to its size.

    `sizes` are its size and the least one.
    """
    size, least = sizes
    scale = (1.0, 1.0, 1.0)
    return Network(name, build, (size, size), mean, scale, "bgr", 256, "bilinear", paper, least, auxiliary=auxiliary)


# The mean pixels of the training set as the published files give them, blue, green, red.
_MEAN_IMAGE = (104.00698793, 116.66876762, 122.67891434)
_MEAN_PIXEL = (104.0, 117.0, 123.0)
_MEAN_VGG = (103.939, 116.779, 123.68)

_ALL = (
    _caffe("alexnet", alexnet, (227, 55), _MEAN_IMAGE, "Krizhevsky et al., NIPS 2012"),
    _caffe("caffenet", caffenet, (227, 55), _MEAN_IMAGE, "Jia et al., 2014, arXiv:1408.5093"),
    _caffe("googlenet", googlenet, (224, 47), _MEAN_PIXEL, "Szegedy et al., CVPR 2015, arXiv:1409.4842", True),
    _caffe("squeezenet1.1", squeezenet, (227, 25), _MEAN_PIXEL, "Iandola et al., 2016, arXiv:1602.07360"),
    _caffe("vgg16", vgg16, (224, 32), _MEAN_VGG, "Simonyan, Zisserman, ICLR 2015, arXiv:1409.1556"),
    Network(
        name="resnet50",
        build=resnet50,
        input_size=(224, 224),
        mean=(123.675, 116.28, 103.53),
        scale=(1 / 58.395, 1 / 57.12, 1 / 57.375),
        channel_order="rgb",
        resize_to=256,
        interpolation="bilinear",
        paper="He et al., CVPR 2016, arXiv:1512.03385",
        least_size=32,
    ),
    Network(
        name="lenet",
        build=lenet,
        input_size=(28, 28),
        mean=(0.0,),
        scale=(1 / 256,),
        channel_order="grey",
        resize_to=28,
        interpolation="bilinear",
        paper="LeCun et al., Proceedings of the IEEE 86(11), 1998",
        least_size=15,
    ),
    Network(
        name="efficientnet-lite0",
        build=efficientnet_lite0,
        input_size=(224, 224),
        mean=(127.0, 127.0, 127.0),
        scale=(1 / 128, 1 / 128, 1 / 128),
        channel_order="rgb",
        resize_to=256,
        interpolation="bicubic",
        paper="Tan, Le, ICML 2019, arXiv:1905.11946",
        least_size=32,
        weights_licence="Apache-2.0",
        labels=True,
    ),
)

NETWORKS: Mapping[str, Network] = MappingProxyType({network.name: network for network in _ALL})


def build(
    name: str,
    batch: int = 1,
    seed: int = SEED,
    *,
    classes: int | None = None,
    size: int | None = None,
    auxiliary: bool = False,
) -> Graph:
    """Return the Graph of a built-in network by its name in NETWORKS.

    `classes` and `size` (height and width of the input) are the network's own unless given. `auxiliary` adds what
    training hears besides as further outputs, where the network has that. Raises InputError when there is no such
    network, or the batch, the classes or the size are too small, NetworkError when its trained weights are not
    installed.
    """
    network = NETWORKS.get(name)
    if network is None:
        near = get_close_matches(name, NETWORKS, n=1)
        hint = f"did you mean {near[0]}?" if near else "choose one of these, or give the path of an ONNX file"
        raise InputError(f"network {name!r}: expected one of {', '.join(NETWORKS)}; {hint}")
    wanted: dict[str, int | bool] = {}
    if classes is not None:
        if classes < 2:
            raise InputError(f"classes: expected at least 2, got {classes}; nothing is told apart with fewer")
        wanted["classes"] = classes
    if size is not None:
        if size < network.least_size:
            raise InputError(
                f"size: expected at least {network.least_size} for {name}, whose last maps would else be empty, "
                f"got {size}; enlarge it or choose another network"
            )
        wanted["size"] = size
    if auxiliary and network.auxiliary:
        wanted["auxiliary"] = True
    return network.build(batch=batch, seed=seed, **wanted)


def sized(network: Network, size: int) -> Network:
    """Return a network's description for another input: the short side of a photograph grows or shrinks with it."""
    resize_to = max(size, round(network.resize_to * size / min(network.input_size)))
    return replace(network, input_size=(size, size), resize_to=resize_to)
