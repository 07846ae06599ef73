"""Reads the tensors of a PyTorch weight file in the format of before PyTorch 1.6, without PyTorch.

The file is five pickles (a magic number, a version, the machine's types, the dictionary of tensors, the storages' keys)
and then each storage: its length as an eight-byte integer, and its elements. Unpickling may call only the three things
that such a dictionary needs; anything else a pickle could run is refused.
"""

import pickle
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO

import numpy as np

from perwatt.errors import NetworkError

MAGIC = 0x1950A86A20F9469CFC6C
VERSION = 1001
TYPES: dict[str, np.dtype] = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}

# What unpickling and the steps after it raise on bytes that are something else.
DAMAGE = (
    *(pickle.UnpicklingError, EOFError, ValueError, TypeError),
    *(KeyError, IndexError, AttributeError, OverflowError, ImportError),
)


@dataclass(frozen=True)
class _Tensor:
    """A view into a storage whose elements come later in the file; offset, shape and strides count elements."""

    key: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def of(self, storages: dict[str, np.ndarray]) -> np.ndarray:
        storage = storages[self.key]
        last = self.offset + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        if min((self.offset, *self.strides)) < 0 or min(self.shape, default=1) < 1 or last >= len(storage):
            raise ValueError(f"a tensor of shape {self.shape} reaches outside its storage of {len(storage)} elements")
        steps = tuple(stride * storage.itemsize for stride in self.strides)
        view = np.lib.stride_tricks.as_strided(storage[self.offset :], self.shape, steps, writeable=False)
        return np.array(view, order="C")


def tensors(content: bytes, name: str) -> dict[str, np.ndarray]:
    """Return the tensors of the file's bytes by their names; `name` stands in messages.

    Raises NetworkError when the bytes are no such file, are cut short, or would run anything else.
    """
    try:
        return _read(BytesIO(content))
    except DAMAGE as error:
        raise NetworkError(
            f"{name}: expected PyTorch weights in the format of before version 1.6, got a file that cannot be read "
            f"({error}); install the package that carries it again"
        ) from error


def _read(file: BytesIO) -> dict[str, np.ndarray]:
    if (magic := _Unpickler(file).load()) != MAGIC or (version := _Unpickler(file).load()) != VERSION:
        raise ValueError(f"its first numbers are not {MAGIC} and {VERSION} but {magic if magic != MAGIC else version}")
    machine = _Unpickler(file).load()
    if not machine["little_endian"]:
        raise ValueError("it was written on a big-endian machine")
    reader = _Unpickler(file)
    found = reader.load()
    storages = {}
    for key in _Unpickler(file).load():
        dtype = reader.types[str(key)]
        length = int.from_bytes(file.read(8), "little")
        storages[key] = np.frombuffer(file.read(length * dtype.itemsize), dtype)
        if len(storages[key]) != length:
            raise ValueError("it is cut short")
    return {name: tensor.of(storages) for name, tensor in found.items()}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BytesIO) -> None:
        super().__init__(file)
        self.types: dict[str, np.dtype] = {}

    def find_class(self, module: str, name: str) -> Callable[..., object] | str:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuilt
        if module == "torch" and name in TYPES:
            return name
        raise pickle.UnpicklingError(f"it wants to call {module}.{name}")

    def persistent_load(self, pid: tuple[str, str, str, str, int, None]) -> str:
        kind, type_name, key, _device, _length, view = pid
        if kind != "storage" or view is not None:
            raise pickle.UnpicklingError(f"it holds a {kind} that is not a plain storage")
        self.types[key] = TYPES[type_name]
        return key


def _rebuilt(key: str, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_ignored: object) -> _Tensor:
    return _Tensor(key, offset, shape, strides)
