"""Frames: the messages between the lab and a worker. JSON for what is said, raw bytes for arrays; nothing is executed.

A frame is the length of its JSON part (8 bytes, little-endian), the JSON part, and then each array's bytes in the order
of the JSON part's `arrays` list of [shape, dtype] pairs.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from typing import IO, Any

import numpy as np

_LENGTH = struct.Struct("<Q")
_LONGEST_TEXT_BYTES = 1 << 28


def write_frame(stream: IO[bytes], message: Mapping[str, Any], arrays: Sequence[np.ndarray] = ()) -> None:
    """Write one message and its arrays; raises OSError (BrokenPipeError) when the other side is gone."""
    solid = [np.ascontiguousarray(array) for array in arrays]
    text = json.dumps({**message, "arrays": [[array.shape, array.dtype.str] for array in solid]}).encode()
    stream.write(_LENGTH.pack(len(text)) + text)
    for array in solid:
        stream.write(array.tobytes())
    stream.flush()


def read_frame(stream: IO[bytes]) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Read one message and its arrays.

    Raises EOFError when the other side is gone, also in the middle of a frame; ValueError for bytes that are no frame.
    """
    (length,) = _LENGTH.unpack(_exactly(stream, _LENGTH.size))
    if length > _LONGEST_TEXT_BYTES:
        raise ValueError(f"a frame's text may be {_LONGEST_TEXT_BYTES} bytes long, this one claims {length}")
    message: dict[str, Any] = json.loads(_exactly(stream, length))
    arrays = []
    for shape, name in message.pop("arrays"):
        dtype = np.dtype(name)
        data = _exactly(stream, int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
        arrays.append(np.frombuffer(data, dtype).reshape(shape))
    return message, arrays


def _exactly(stream: IO[bytes], count: int) -> bytes:
    data = stream.read(count)
    if len(data) != count:
        raise EOFError("the other side closed the pipe")
    return data
