"""IDX: the form of MNIST and its family, plain or gzipped; images and labels in two files for each split.

A file is two zero bytes, the element type, the number of dimensions, each dimension as a big-endian 32-bit number, and
the elements (LeCun's page on MNIST).
"""

import gzip
import re
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from perwatt.data.dataset import DataSet, Split, Stored, data_set
from perwatt.data.lists import read_labels
from perwatt.errors import DataError

_NAME = re.compile(r"^(train|t10k|test|val|validation)[-_.](images|labels)[-_.]idx\d[-_.]ubyte(\.gz)?$")
_SPLITS = {"train": "train", "t10k": "test", "test": "test", "val": "validation", "validation": "validation"}
_UNSIGNED_BYTE = 8
# A header of a few bytes must not ask for more memory than any data set of this form needs.
MOST_BYTES = 4 << 30


def find_idx(folder: Path) -> dict[tuple[str, str], Path]:
    """Return a folder's IDX files by (split, images or labels), the plain file where a gzipped one lies beside it."""
    found: dict[tuple[str, str], Path] = {}
    for path in sorted(folder.iterdir(), reverse=True):  # x.gz before x: the plain one comes last and stays
        match = _NAME.match(path.name)
        if match and path.is_file():
            found[_SPLITS[match[1]], match[2]] = path
    return found


def read_idx(folder: Path, classes: tuple[str, ...] | None = None) -> DataSet:
    """Return the data set of a folder of IDX files; class names are given, or in labels.txt, or numbers.

    Raises DataError when a file is damaged or cut short, or when images and labels do not match in number.
    """
    files = find_idx(folder)
    splits = {}
    for name in dict.fromkeys(split for split, _ in files):
        if (name, "images") not in files or (name, "labels") not in files:
            raise DataError(f"{folder}: {name}: expected a file of images and one of labels, one is missing")
        pixels = read_array(files[name, "images"])
        labels = read_array(files[name, "labels"])
        if pixels.ndim not in (3, 4) or (pixels.ndim == 4 and pixels.shape[3] != 3) or labels.ndim != 1:
            raise DataError(f"{folder}: {name}: expected images and labels, got shapes {pixels.shape}, {labels.shape}")
        if len(pixels) != len(labels):
            raise DataError(
                f"{folder}: {name}: expected a label for each picture, got {len(pixels)} pictures and "
                f"{len(labels)} labels; take both files from one release"
            )
        splits[name] = Split(Stored(pixels, files[name, "images"].name), labels.astype(np.int64))
    if "train" not in splits:
        raise DataError(f"{folder}: expected train-images-idx3-ubyte and its labels, found only {', '.join(splits)}")
    if classes is None:
        classes = read_labels(folder)
    if classes is None:
        classes = tuple(str(number) for number in range(int(splits["train"].labels.max(initial=0)) + 1))
    return data_set(folder.resolve().name, "idx", str(folder), classes, splits)


def read_array(path: Path) -> np.ndarray:
    """Return the uint8 array of one IDX file. Raises DataError when it is damaged, cut short or too large."""
    try:
        with path.open("rb") as file:
            return _read(cast("BinaryIO", gzip.GzipFile(fileobj=file)) if path.suffix == ".gz" else file, path)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path}: expected an IDX file, got one that cannot be read: {error}; fetch it again"
        ) from error


def _read(file: BinaryIO, path: Path) -> np.ndarray:
    head = file.read(4)
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] != _UNSIGNED_BYTE or not 1 <= head[3] <= 4:
        raise DataError(f"{path}: expected an IDX file of bytes, it begins with {head.hex(' ')}; fetch it again")
    sizes = file.read(4 * head[3])
    if len(sizes) < 4 * head[3]:
        raise DataError(f"{path}: expected an IDX file, got one cut short in its header; fetch it again")
    shape = struct.unpack(f">{head[3]}I", sizes)
    wanted = 1
    for size in shape:
        wanted *= size
    if wanted > MOST_BYTES:
        raise DataError(f"{path}: expected at most {MOST_BYTES >> 30} GiB, its header asks for {wanted >> 30} GiB")
    content = file.read(wanted + 1)
    if len(content) != wanted:
        state = "more" if len(content) > wanted else f"only {len(content)}"
        raise DataError(f"{path}: expected {wanted} bytes behind the header, got {state}; fetch it again")
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)
