"""Caffe files written by hand for the tests: a network's text in each of Caffe's three syntaxes, and its weights.

Nothing here knows perwatt: the text is put together from dictionaries, the binary form byte by byte (protocol buffers:
a tag is number * 8 + kind; kind 0 is a varint, 1 are eight bytes, 2 a length and as many bytes, 5 are four bytes).
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


class Name(str):
    """A word that stands in a text without quotes."""


# Today's types in the words of the old syntax and of the oldest.
OLD = {
    "Concat": "CONCAT", "Convolution": "CONVOLUTION", "Data": "DATA", "Dropout": "DROPOUT", "Eltwise": "ELTWISE",
    "InnerProduct": "INNER_PRODUCT", "LRN": "LRN", "Pooling": "POOLING", "ReLU": "RELU", "Softmax": "SOFTMAX",
    "SoftmaxWithLoss": "SOFTMAX_LOSS", "Accuracy": "ACCURACY", "Flatten": "FLATTEN", "Sigmoid": "SIGMOID",
    "TanH": "TANH", "Split": "SPLIT", "Power": "POWER", "Slice": "SLICE", "Deconvolution": "DECONVOLUTION",
    "AbsVal": "ABSVAL", "BNLL": "BNLL", "Exp": "EXP",
}  # fmt: skip
OLD_NUMBERS = {"CONVOLUTION": 4, "INNER_PRODUCT": 14, "DECONVOLUTION": 39, "RELU": 18}
OLDEST = {
    "Concat": "concat", "Convolution": "conv", "Dropout": "dropout", "InnerProduct": "innerproduct", "LRN": "lrn",
    "Pooling": "pool", "ReLU": "relu", "Softmax": "softmax", "Flatten": "flatten", "Sigmoid": "sigmoid",
    "TanH": "tanh", "Split": "split", "Padding": "padding",
}  # fmt: skip
OLDEST_FIELDS = {"kernel_size": "kernelsize", "bias_term": "biasterm"}


@dataclass
class Net:
    """A network being written down, with its weights drawn as it grows; `shapes` says what each blob has become."""

    name: str = "net"
    seed: int = 0
    inputs: dict[str, tuple[int, ...]] = field(default_factory=dict)
    layers: list[dict[str, Any]] = field(default_factory=list)
    blobs: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)

    def add(
        self, kind: str, name: str, bottom: str | Sequence[str] = (), top: str | Sequence[str] | None = None,
        blobs: Sequence[np.ndarray] = (), extra: dict[str, Any] | None = None, **parameters: Any,
    ) -> str:  # fmt: skip
        """Add a layer; keyword arguments ending in _param are its messages. Returns its first top."""
        bottoms = [bottom] if isinstance(bottom, str) else list(bottom)
        tops = [name] if top is None else [top] if isinstance(top, str) else list(top)
        self.layers.append(
            {"name": name, "type": kind, "bottom": bottoms, "top": tops, "extra": extra or {}, "parameters": parameters}
        )
        if len(blobs):
            self.blobs[name] = [np.asarray(blob, np.float32) for blob in blobs]
        return tops[0] if tops else ""

    def conv(self, name: str, bottom: str, channels: int, outputs: int, kernel: int, **more: Any) -> str:
        """Add a square convolution with weights that keep activations near 1."""
        group = more.get("group", 1)
        bias = more.get("bias_term", True)
        shape = (outputs, channels // group, kernel, kernel)
        weights = self.random.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        blobs = [weights, *([self.random.standard_normal(outputs) * 0.2] if bias else [])]
        return self.add(
            "Convolution", name, bottom, blobs=blobs,
            convolution_param={"num_output": outputs, "kernel_size": kernel, **more},
        )  # fmt: skip

    def linear(self, name: str, bottom: str, inputs: int, outputs: int, gain: float = 2.0) -> str:
        """Add an InnerProduct."""
        weights = self.random.standard_normal((outputs, inputs)) * np.sqrt(gain / inputs)
        blobs = [weights, self.random.standard_normal(outputs) * 0.2]
        return self.add("InnerProduct", name, bottom, blobs=blobs, inner_product_param={"num_output": outputs})

    def pool(self, name: str, bottom: str, method: str = "MAX", **more: Any) -> str:
        """Add a pooling."""
        return self.add("Pooling", name, bottom, pooling_param={"pool": Name(method), **more})

    def relu(self, name: str, blob: str) -> str:
        """Add a ReLU in place."""
        return self.add("ReLU", name, blob, blob)

    def text(self, syntax: str = "today", *, dims: bool = False) -> str:
        """Return the prototxt in the syntax `today`, `old` or `oldest`; `dims` declares inputs with input_dim."""
        lines = [f'name: "{self.name}"']
        for name, shape in self.inputs.items():
            lines.append(f'input: "{name}"')
            if dims or syntax == "oldest":
                lines += [f"input_dim: {size}" for size in shape]
            else:
                lines.append(written("input_shape", {"dim": list(shape)}))
        writer: Callable[[dict[str, Any]], str] = {"today": _today, "old": _old, "oldest": _oldest}[syntax]
        return "\n".join([*lines, *(writer(layer) for layer in self.layers)]) + "\n"

    def weights(self, syntax: str = "today", *, shapes: str = "today", numbers: str = "float") -> bytes:
        """Return the caffemodel: `shapes` today or old (four numbers), `numbers` float, double, plain or half."""
        parts = [text_field(1, self.name)]
        for layer in self.layers:
            name = layer["name"]
            blobs = [blob_bytes(array, shapes, numbers) for array in self.blobs.get(name, [])]
            if syntax == "today":
                entry = text_field(1, name) + text_field(2, layer["type"]) + b"".join(bytes_field(7, b) for b in blobs)
                parts.append(bytes_field(100, entry))
            elif syntax == "old":
                number = OLD_NUMBERS.get(OLD.get(layer["type"], ""), 0)
                entry = text_field(4, name) + varint_field(5, number) + b"".join(bytes_field(6, b) for b in blobs)
                parts.append(bytes_field(2, entry))
            else:
                inner = text_field(1, name) + text_field(2, OLDEST[layer["type"]])
                inner += b"".join(bytes_field(50, b) for b in blobs)
                parts.append(bytes_field(2, bytes_field(1, inner)))
        return b"".join(parts)

    def save(self, folder: Path, syntax: str = "today", **how: str) -> tuple[Path, Path]:
        """Write both files into a folder; returns their paths."""
        prototxt, caffemodel = folder / f"{self.name}.prototxt", folder / f"{self.name}.caffemodel"
        prototxt.write_text(self.text(syntax))
        caffemodel.write_bytes(self.weights(syntax, **how))
        return prototxt, caffemodel


def written(name: str, value: Any) -> str:
    """Return one field of the text form."""
    if isinstance(value, dict):
        return f"{name} {{ {' '.join(written(key, entry) for key, entry in value.items())} }}"
    if isinstance(value, list | tuple):
        return " ".join(written(name, entry) for entry in value)
    if isinstance(value, bool):
        return f"{name}: {'true' if value else 'false'}"
    if isinstance(value, str) and not isinstance(value, Name):
        return f'{name}: "{value}"'
    return f"{name}: {value}"


def _fields(layer: dict[str, Any]) -> list[str]:
    return [written("bottom", layer["bottom"]), written("top", layer["top"])]


def _today(layer: dict[str, Any]) -> str:
    parts = [written("name", layer["name"]), written("type", layer["type"]), *_fields(layer)]
    parts += [written(key, value) for key, value in {**layer["extra"], **layer["parameters"]}.items()]
    return "layer { " + " ".join(part for part in parts if part) + " }"


def _old(layer: dict[str, Any]) -> str:
    return _today({**layer, "type": Name(OLD[layer["type"]])}).replace("layer {", "layers {", 1)


def _oldest(layer: dict[str, Any]) -> str:
    inner: dict[str, Any] = {"name": layer["name"], "type": OLDEST[layer["type"]]}
    for message in layer["parameters"].values():
        inner |= {OLDEST_FIELDS.get(key, key): value for key, value in message.items()}
    return "layers { " + " ".join([written("layer", inner), *_fields(layer)]) + " }"


def varint(number: int) -> bytes:
    """Return a number in groups of seven bits, the lowest first."""
    number &= 2**64 - 1
    made = bytearray()
    while number > 127:
        made.append(number & 127 | 128)
        number >>= 7
    return bytes([*made, number])


def varint_field(number: int, value: int) -> bytes:
    """Return a field of kind 0."""
    return varint(number * 8) + varint(value)


def bytes_field(number: int, value: bytes) -> bytes:
    """Return a field of kind 2."""
    return varint(number * 8 + 2) + varint(len(value)) + value


def text_field(number: int, value: str) -> bytes:
    """Return a field of kind 2 that holds text."""
    return bytes_field(number, value.encode())


def blob_bytes(array: np.ndarray, shapes: str = "today", numbers: str = "float") -> bytes:
    """Return a BlobProto."""
    flat = array.reshape(-1)
    if shapes == "today":
        made = bytes_field(7, bytes_field(1, b"".join(varint(size) for size in array.shape)))
    else:
        four = (1,) * (4 - array.ndim) + array.shape
        made = b"".join(varint_field(number, size) for number, size in enumerate(four, start=1))
    if numbers == "double":
        return made + bytes_field(8, flat.astype("<f8").tobytes())
    if numbers == "plain":  # each number with a tag of its own
        return made + b"".join(varint(5 * 8 + 5) + struct.pack("<f", number) for number in flat)
    if numbers == "half":  # NVIDIA's fork
        return made + varint_field(10, 2) + bytes_field(12, flat.astype("<f2").tobytes())
    if numbers == "parts":  # packed, in two parts
        middle = len(flat) // 2
        return made + b"".join(bytes_field(5, part.astype("<f4").tobytes()) for part in (flat[:middle], flat[middle:]))
    return made + bytes_field(5, flat.astype("<f4").tobytes())
