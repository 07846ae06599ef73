"""The datatypes of the Open Inference Protocol as NumPy's, and tensors to and from JSON and bytes."""

import struct
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from perwatt.errors import Refused

# Tensors travel in little-endian order; these are NumPy's own types on every machine perwatt runs on.
DATATYPES: dict[str, np.dtype[np.generic]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
NAMES = {dtype: name for name, dtype in DATATYPES.items()}
BYTES = "BYTES"
# More dimensions than this is no tensor of an image network, and NumPy itself ends at 64.
MOST_DIMENSIONS = 8
_LENGTH = struct.Struct("<I")


def malformed(message: str) -> Refused:
    """Return the refusal of a message that breaks the protocol."""
    return Refused(message, reason="malformed", status=400)


def unfitting(message: str) -> Refused:
    """Return the refusal of a message in order that asks what this network cannot do."""
    return Refused(message, reason="unfitting", status=422)


def datatype(dtype: np.dtype[np.generic]) -> str:
    """Return the protocol's name of a NumPy type."""
    return NAMES[np.dtype(dtype).newbyteorder("<")]


def from_bytes(name: str, raw: memoryview, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> np.ndarray:
    """Return a tensor over raw bytes, without a copy. Raises Refused when their number is another."""
    expected = prod(shape) * dtype.itemsize
    if raw.nbytes != expected:
        raise malformed(f"tensor {name!r}: expected {expected} bytes for shape {list(shape)}, got {raw.nbytes}")
    return np.frombuffer(raw, dtype).reshape(shape)


def from_json(name: str, data: object, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> np.ndarray:
    """Return a tensor from JSON numbers, flat or nested in row-major order. Raises Refused when they do not fit."""
    if not isinstance(data, list):
        raise malformed(f"tensor {name!r}: expected data as a list, got {type(data).__name__}")
    try:
        array = np.asarray(data)
    except (ValueError, OverflowError, RecursionError) as error:
        raise malformed(f"tensor {name!r}: expected data flat or nested like its shape, got an uneven list") from error
    if array.size != prod(shape) or (array.ndim != 1 and array.shape != shape):
        raise malformed(f"tensor {name!r}: expected {prod(shape)} numbers, flat or {list(shape)}, got {array.shape}")
    kinds = {"b": "b", "f": "fiu"}.get(dtype.kind, "iu")
    if dtype.kind == "u" and array.dtype.kind == "f" and _are_whole(data):
        array = np.asarray(data, object)  # NumPy makes float64 of whole numbers on both sides of 2^63
    elif array.dtype.kind not in kinds and array.size:
        raise malformed(f"tensor {name!r}: expected numbers that fit {NAMES[dtype]}, got {array.dtype} values")
    if dtype.kind in "iu" and array.size:
        limits = np.iinfo(dtype.str)
        if int(array.min()) < limits.min or int(array.max()) > limits.max:
            raise malformed(f"tensor {name!r}: expected numbers that fit {NAMES[dtype]}, got others")
    with np.errstate(over="ignore"):  # a number beyond FP32 becomes infinite, as its binary form would be
        return array.astype(dtype).reshape(shape)


def _are_whole(data: list[object]) -> bool:
    return all(type(number) is int for number in np.asarray(data, object).flat)


def elements(name: str, raw: memoryview, number: int) -> tuple[memoryview, ...]:
    """Return the elements of a BYTES tensor: each has its length in front, 4 bytes. Raises Refused."""
    found: list[memoryview] = []
    at = 0
    for _ in range(number):
        if at + 4 > raw.nbytes:
            raise malformed(f"tensor {name!r}: expected {number} elements, each with its length before it, got too few")
        (length,) = _LENGTH.unpack_from(raw, at)
        at += 4 + length
        if at > raw.nbytes:
            raise malformed(f"tensor {name!r}: expected {length} bytes of element {len(found)}, got fewer")
        found.append(raw[at - length : at])
    if at != raw.nbytes:
        raise malformed(f"tensor {name!r}: expected {number} elements in {at} bytes, got {raw.nbytes} bytes")
    return tuple(found)


def joined(texts: Sequence[bytes]) -> bytes:
    """Return the elements of a BYTES tensor as one string of bytes."""
    return b"".join(part for text in texts for part in (_LENGTH.pack(len(text)), text))


def checked_shape(name: str, shape: Any) -> tuple[int, ...]:
    """Return a shape from JSON. Raises Refused when it is none."""
    right = isinstance(shape, list) and 0 < len(shape) <= MOST_DIMENSIONS
    if not right or not all(type(size) is int and 0 <= size < 1 << 31 for size in shape):
        raise malformed(f"tensor {name!r}: expected a shape of 1 to {MOST_DIMENSIONS} sizes, got {str(shape)[:80]}")
    return tuple(shape)
