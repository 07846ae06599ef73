"""What the server and a model process say to each other, and the memory they share.

Messages are fixed headers over a socket, with JSON behind those of the start and of errors; tensors never pass through
the socket. They lie in a shared memory file without a name (it is gone with the last process), laid out the same way
on both sides: `buffers` times [the input of the largest batch, each output of the largest batch].
"""

import json
import mmap
import os
import socket
import struct
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from perwatt.serve.service import TensorFacts

START, RUN, REPEAT = 1, 2, 3  # to the model process
PROGRESS, READY, FAILED, DONE, ERROR = 11, 12, 13, 14, 15  # from it
# kind, bytes of JSON behind it, buffer, images, batch size, spare, sequence number, seconds
HEADER = struct.Struct("<IIIIIIQd")
ALIGNMENT_BYTES = 4096  # whole pages: no two buffers share one
_LONGEST_TEXT_BYTES = 1 << 24


@dataclass(frozen=True)
class Message:
    """One message; what its kind does not need is 0. `text` is JSON."""

    kind: int
    buffer: int = 0
    images: int = 0
    size: int = 0
    sequence: int = 0
    seconds: float = 0.0
    text: bytes = b""

    def pack(self) -> bytes:
        """Return the message as bytes."""
        return (
            HEADER.pack(self.kind, len(self.text), self.buffer, self.images, self.size, 0, self.sequence, self.seconds)
            + self.text
        )

    @property
    def content(self) -> Any:
        """The JSON behind the header."""
        return json.loads(self.text)


def unpack(data: bytearray) -> list[Message]:
    """Take the whole messages off the front of the data received so far; raises ValueError for what is none."""
    messages = []
    while len(data) >= HEADER.size:
        kind, length, buffer, images, size, _, sequence, seconds = HEADER.unpack_from(data)
        if length > _LONGEST_TEXT_BYTES:
            raise ValueError(f"a message's text may be {_LONGEST_TEXT_BYTES} bytes long, this one claims {length}")
        if len(data) < HEADER.size + length:
            break
        text = bytes(data[HEADER.size : HEADER.size + length])
        del data[: HEADER.size + length]
        messages.append(Message(kind, buffer, images, size, sequence, seconds, text))
    return messages


def receive(connection: socket.socket) -> Message | None:
    """Wait for one message on a blocking socket; None when the other side is gone."""
    data = bytearray()
    needed = HEADER.size
    while len(data) < needed:
        piece = connection.recv(needed - len(data))
        if not piece:
            return None
        data += piece
        if len(data) == HEADER.size:
            needed += HEADER.unpack(data)[1]
    return unpack(data)[0]


@dataclass(frozen=True)
class Layout:
    """Where the tensors lie in the shared memory. `images` is the largest batch."""

    buffers: int
    images: int
    input: TensorFacts
    outputs: tuple[TensorFacts, ...]

    @property
    def tensors(self) -> tuple[TensorFacts, ...]:
        """What one buffer holds, in order."""
        return (self.input, *self.outputs)

    def tensor_bytes(self, facts: TensorFacts) -> int:
        """Return the bytes of a tensor of the largest batch, up to whole pages."""
        return -(-self.images * prod(facts.shape) * facts.dtype.itemsize // ALIGNMENT_BYTES) * ALIGNMENT_BYTES

    @property
    def size_bytes(self) -> int:
        """The size of the whole memory."""
        return max(ALIGNMENT_BYTES, self.buffers * sum(map(self.tensor_bytes, self.tensors)))

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        return {
            "buffers": self.buffers,
            "images": self.images,
            "tensors": [[facts.name, facts.dtype.str, list(facts.shape)] for facts in self.tensors],
        }


def layout_from_json(content: dict[str, Any]) -> Layout:
    """Return the Layout that `to_json` wrote."""
    tensors = [TensorFacts(name, np.dtype(dtype), tuple(shape)) for name, dtype, shape in content["tensors"]]
    return Layout(content["buffers"], content["images"], tensors[0], tuple(tensors[1:]))


@dataclass(frozen=True)
class Buffer:
    """One batch's place: `images` [largest batch, ...] and each output [largest batch, ...], views of shared memory."""

    images: np.ndarray
    outputs: tuple[np.ndarray, ...]


def new_memory() -> int:
    """Return the descriptor of an empty shared memory file without a name; it counts as the caller's memory."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("perwatt")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def attach(descriptor: int, layout: Layout) -> tuple[Buffer, ...]:
    """Map the memory and return its buffers; it stays mapped as long as one of them lives.

    Raises ValueError when the memory is smaller than the layout.
    """
    if os.fstat(descriptor).st_size < layout.size_bytes:
        raise ValueError(f"expected {layout.size_bytes} bytes of shared memory, got {os.fstat(descriptor).st_size}")
    flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)  # page faults now, not in the first batches
    memory = mmap.mmap(descriptor, layout.size_bytes, flags=flags)
    offset, buffers = 0, []
    for _ in range(layout.buffers):
        arrays: list[np.ndarray] = []
        for facts in layout.tensors:
            count = layout.images * prod(facts.shape)
            flat = np.frombuffer(memory, facts.dtype, count, offset)
            arrays.append(flat.reshape(layout.images, *facts.shape))
            offset += layout.tensor_bytes(facts)
        buffers.append(Buffer(arrays[0], tuple(arrays[1:])))
    return tuple(buffers)


def facts_of(arrays: Sequence[tuple[str, np.dtype[Any], tuple[int, ...]]]) -> tuple[TensorFacts, ...]:
    """Return the facts of tensors given with their batch dimension."""
    return tuple(TensorFacts(name, np.dtype(dtype), tuple(shape[1:])) for name, dtype, shape in arrays)
