"""A package of a few kilobytes: a network of five classes for pictures of 12 x 10, and photographs for it."""

from io import BytesIO

import numpy as np
from PIL import Image

from perwatt.graph import Builder, write
from perwatt.package import Golden, Package, Preprocessing, pack

HOW = Preprocessing((12, 10), 14, "bilinear", "bgr", (104.0, 117.0, 123.0), (0.02, 0.02, 0.02))
LABELS = ("cat", "dog", "Bär", "hot dog, red hot", "zebra")


def small_network(seed: int = 0, softmax: bool = True) -> bytes:
    """Return an ONNX file: convolution, Relu, pooling, a fully connected layer, Softmax."""
    random = np.random.default_rng(seed)
    b = Builder("small")
    x = b.input("data", (1, 3, 12, 10))
    weights = b.constant("w", random.standard_normal((8, 3, 3, 3)).astype(np.float32) * 0.3)
    bias = b.constant("b", random.standard_normal(8).astype(np.float32) * 0.1)
    window = {"strides": (1, 1), "dilations": (1, 1), "kernel_shape": (3, 3)}
    x = b.add("Conv", (x, weights, bias), pads=(1, 1, 1, 1), group=1, **window)
    x = b.add("Relu", (x,))
    x = b.add("MaxPool", (x,), kernel_shape=(2, 2), strides=(2, 2), pads=(0, 0, 0, 0), dilations=(1, 1), ceil_mode=0)
    x = b.add("Flatten", (x,), axis=1)
    dense = b.constant("d", random.standard_normal((8 * 6 * 5, 5)).astype(np.float32) * 0.1)
    offset = b.constant("o", random.standard_normal(5).astype(np.float32) * 0.1)
    x = b.add("Gemm", (x, dense, offset), alpha=1.0, beta=1.0, transA=0, transB=0)
    if softmax:
        x = b.add("Softmax", (x,), axis=1)
    return write(b.finish((x,)), batch="batch")


def photograph(seed: int, width: int = 31, height: int = 27, form: str = "PNG") -> bytes:
    """Return an encoded picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    stored = BytesIO()
    Image.fromarray(pixels).save(stored, form)
    return stored.getvalue()


def small_package(**changes: object) -> Package:
    """Return the package; keyword arguments replace those of pack."""
    whole: dict[str, object] = {
        "labels": LABELS,
        "licence": "CC0-1.0",
        "origin": "drawn by a test",
        "photos": [photograph(1), photograph(2, form="JPEG"), photograph(3, 40, 20)],
        "evidence": {"training": {"top1": 0.93, "recipe": {"epochs": 3}, "note": None}},
    }
    return pack(small_network(), "small", HOW, **{**whole, **changes})  # type: ignore[arg-type]


def made_up(golden: Golden | None = None) -> Package:
    """Return a package whose model is no network: for what never looks into it."""
    return Package("made-up", "2", b"no network", HOW, labels=LABELS, golden=golden)
