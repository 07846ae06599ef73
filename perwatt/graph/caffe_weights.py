"""The weights' file (caffemodel) and mean images (binaryproto): arrays in float32 by the layers' names.

A blob's shape stands in `shape`, in old files in four numbers; its numbers in float, double, or NVIDIA's raw form. In
old files a vector is 1x1x1xN and a matrix 1x1xNxK: ones in front say nothing there.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from perwatt.errors import NetworkError
from perwatt.graph.caffe_format import binary_message
from perwatt.graph.caffe_text import MOST_LAYERS, read_bounded

MOST_BYTES = 2**31 - 1  # protobuf's own limit
MOST_MEAN_BYTES = 256 * 2**20
MOST_BLOBS = 64  # of one layer
MOST_AXES = 32  # Caffe's own limit
RAW_TYPES = {0: "<f8", 1: "<f4", 2: "<f2"}


@dataclass(frozen=True)
class Blob:
    """One array of weights in float32 and how it was stored; `old` says that the shape is four numbers of old files."""

    array: np.ndarray
    stored: str
    old: bool

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Return whether this is an array of that shape, up to ones in front."""
        return _without_ones(self.array.shape) == _without_ones(shape)


def read_weights(path: Path) -> Mapping[str, tuple[Blob, ...]]:
    """Return the blobs of each layer of a caffemodel that has any.

    Raises NetworkError when the file is missing, none of this format, cut short, or its numbers and shapes differ.
    """
    data = read_bounded(path, MOST_BYTES, "Caffe's weights (caffemodel)")
    _check_kind(data, path)
    network = _parsed("BinaryNet", data, f"{path}")
    del data  # the message has its own copy, and the file may be half a gigabyte
    if not network.layer and not network.layers:
        raise NetworkError(f"{path}: expected Caffe's weights (caffemodel), got a file without layers; {_CUT}")
    if len(network.layer) + len(network.layers) > MOST_LAYERS:
        raise NetworkError(f"{path}: expected at most {MOST_LAYERS} layers, got more; is it another file?")
    found: dict[str, tuple[Blob, ...]] = {}
    for entries, kind in ((network.layers, "BinaryOldLayer"), (network.layer, "BinaryLayer")):
        for entry in entries:
            layer = _parsed(kind, entry, f"{path}: a layer")
            if kind == "BinaryOldLayer" and layer.HasField("layer"):
                layer = _parsed("BinaryOldestLayer", layer.layer, f"{path}: a layer")
            name = layer.name.decode("utf-8", "replace")
            if len(layer.blobs) > MOST_BLOBS:
                raise NetworkError(f"{path}: expected at most {MOST_BLOBS} blobs, got {len(layer.blobs)} in {name!r}")
            if layer.blobs:
                found[name] = tuple(
                    _blob(blob, f"{path}: layer {name!r}, blob {at}") for at, blob in enumerate(layer.blobs)
                )
    return found


def read_mean(path: Path) -> np.ndarray:
    """Return a mean file, binaryproto or npy, as float32 [channels, height, width] or, npy only, [channels].

    Raises NetworkError when it is neither.
    """
    data = read_bounded(path, MOST_MEAN_BYTES, "a mean image (binaryproto or npy)")
    if data.startswith(b"\x93NUMPY"):
        array = _numpy_file(path)
        if array.ndim not in (1, 3):
            raise NetworkError(f"{path}: expected a mean of shape (C,) or (C, H, W), got {array.shape}")
        return array
    array = _blob(data, str(path)).array
    shape = _without_ones(array.shape) if array.ndim > 3 else array.shape
    if len(shape) < 3 and array.ndim > 3:
        shape = array.shape[-3:]
    if len(shape) != 3:
        raise NetworkError(f"{path}: expected one mean image [channels, height, width], got shape {array.shape}")
    return array.reshape(shape)


_CUT = "it may be cut short; download it again"


def _numpy_file(path: Path) -> np.ndarray:
    try:
        array = np.load(path, allow_pickle=False)
        if array.dtype.kind not in "fiu":
            raise ValueError(f"element type {array.dtype}")
        return np.asarray(array, np.float32)
    except (ValueError, OSError, EOFError, TypeError) as error:
        raise NetworkError(f"{path}: expected a NumPy file of numbers, got {' '.join(str(error).split())}") from error


def _check_kind(data: bytes, path: Path) -> None:
    if data.startswith(b"\x89HDF"):
        raise NetworkError(f"{path}: expected a caffemodel, got HDF5; load it in Caffe and save it as a caffemodel")
    if data.startswith(b"version https://git-lfs"):
        raise NetworkError(
            f"{path}: expected a caffemodel, got a Git LFS pointer; fetch the file itself (git lfs pull)"
        )
    start = data[:4096]
    if b"{" in start and not start.translate(None, bytes((9, 10, 13, *range(32, 127)))):
        raise NetworkError(f"{path}: expected Caffe's weights (caffemodel), got a text; give the caffemodel second")
    if start.lstrip()[:5].lower() in (b"<html", b"<!doc"):
        raise NetworkError(f"{path}: expected Caffe's weights (caffemodel), got a web page; download the file itself")


def _parsed(kind: str, data: bytes, where: str) -> Any:
    message = binary_message(kind)
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise NetworkError(
            f"{where}: expected Caffe's binary form, got {len(data)} bytes that are not; {_CUT}"
        ) from error
    return message


def _blob(data: bytes, where: str) -> Blob:
    message = _parsed("BinaryBlob", data, where)
    old = not message.HasField("shape")
    shape = tuple(message.shape.dim) if not old else (message.num, message.channels, message.height, message.width)
    if old and not any(message.HasField(name) for name in ("num", "channels", "height", "width")):
        raise NetworkError(f"{where}: expected a shape, got none; {_CUT}")
    if len(shape) > MOST_AXES or min(shape, default=1) < 1:
        raise NetworkError(f"{where}: expected sizes from 1 up on at most {MOST_AXES} axes, got {shape}; {_CUT}")
    flat, stored = _numbers(message, data, where)
    if flat.size != math.prod(shape):
        raise NetworkError(
            f"{where}: expected the {math.prod(shape)} numbers of shape {shape}, got {flat.size}; {_CUT}"
        )
    array = flat.reshape(shape)
    array.flags.writeable = False
    return Blob(array, stored, old)


def _numbers(message: Any, data: bytes, where: str) -> tuple[np.ndarray, str]:
    """Return the numbers and the type in which they were stored; a blob that has several uses Caffe's order."""
    if message.double_data:
        return _unpacked(message.double_data, "<f8", where), "double"
    if message.data:
        return _unpacked(message.data, "<f4", where), "float"
    if message.raw_data:
        kind = RAW_TYPES.get(message.raw_data_type)
        if kind is None:
            raise NetworkError(f"{where}: expected raw numbers of type 0, 1 or 2, got type {message.raw_data_type}")
        return _unpacked([message.raw_data], kind, where), {"<f8": "double", "<f4": "float", "<f2": "half"}[kind]
    plain = _parsed("BinaryPlainBlob", data, where)
    stored = "double" if plain.double_data else "float"
    return np.array(plain.double_data or plain.data, np.float32), stored


def _unpacked(parts: Any, kind: str, where: str) -> np.ndarray:
    size = np.dtype(kind).itemsize
    if any(len(part) % size for part in parts):
        raise NetworkError(f"{where}: expected numbers of {size} bytes, got {sum(map(len, parts))} bytes; {_CUT}")
    arrays = [np.frombuffer(part, kind) for part in parts]
    whole = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    with np.errstate(over="ignore"):  # a double beyond float32 becomes infinite, which `compile` warns of
        return whole.astype(np.float32, copy=False)


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    start = next((axis for axis, size in enumerate(shape) if size != 1), len(shape))
    return shape[start:]
