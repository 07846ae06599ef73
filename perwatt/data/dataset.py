"""DataSet: labelled pictures in splits (train, validation, test), wherever they are kept."""

import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from types import MappingProxyType

import numpy as np
from PIL import Image

from perwatt.errors import DataError
from perwatt.package.preprocessing import Photo, Shrink, decode

# The order in which splits are shown; no source has others.
SPLITS = ("train", "validation", "test")
# The share of a class that is kept from training where the source has no validation split.
HELD_OUT = 0.1


@dataclass(frozen=True)
class Stored:
    """Pictures in one array, as IDX and CSV files hold them: uint8 [count, height, width] or with 3 colours last."""

    pixels: np.ndarray
    name: str


@dataclass(frozen=True)
class Split:
    """Labelled pictures in an order that is always the same.

    `pictures` are paths of image files, or an array. `labels` are places in the DataSet's `classes`, int64 [count].
    """

    pictures: tuple[Path, ...] | Stored
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """Return what a person calls a picture: its path, or the array's name with the place in it."""
        return f"{self.pictures.name}[{index}]" if isinstance(self.pictures, Stored) else str(self.pictures[index])

    def photo(self, index: int, shrink: Shrink | None = None) -> Photo:
        """Return a picture, decoded, upright, as 8-bit RGB; with `shrink` a JPEG file perhaps smaller (see `decode`).

        Raises InputError when it is broken.
        """
        if isinstance(self.pictures, Stored):
            # Grey to RGB and back is exact: preprocessing sees the very pixels.
            return Image.fromarray(self.pictures.pixels[index]).convert("RGB")
        return decode(self.pictures[index], shrink=shrink)

    def encoded(self, index: int) -> bytes:
        """Return a picture as the bytes of an image file: those of its file, or a PNG. Raises DataError."""
        if isinstance(self.pictures, Stored):
            buffer = BytesIO()
            Image.fromarray(self.pictures.pixels[index]).save(buffer, format="PNG")
            return buffer.getvalue()
        try:
            return self.pictures[index].read_bytes()
        except OSError as error:
            raise DataError(
                f"{self.pictures[index]}: expected a picture that can be read, got {error.strerror}"
            ) from error

    def subset(self, indices: np.ndarray) -> "Split":
        """Return the split of these places, in this order."""
        if isinstance(self.pictures, Stored):
            stored = replace(self.pictures, pixels=self.pictures.pixels[indices])
            return Split(stored, self.labels[indices])
        return Split(tuple(self.pictures[int(index)] for index in indices), self.labels[indices])


@dataclass(frozen=True)
class DataSet:
    """A labelled data set: its classes by name and its splits, of which `train` may be the only one.

    `form` says how it was kept (folders, list, csv, idx, array), `source` where.
    """

    name: str
    form: str
    source: str
    classes: tuple[str, ...]
    splits: Mapping[str, Split]

    def split(self, name: str) -> Split:
        """Return a split by name. Raises DataError when the data set has none of that name."""
        found = self.splits.get(name)
        if found is None:
            raise DataError(f"{self.source}: expected a split {name!r}, there are {', '.join(self.splits)}; name one")
        return found


def data_set(name: str, form: str, source: str, classes: tuple[str, ...], splits: Mapping[str, Split]) -> DataSet:
    """Return a checked DataSet with its splits in order. Raises DataError when something does not fit."""
    if not classes or not any(len(split) for split in splits.values()):
        raise DataError(f"{source}: expected labelled pictures, found none; see perwatt data --help for the forms")
    for key, split in splits.items():
        if len(split) and not 0 <= split.labels.min() <= split.labels.max() < len(classes):
            raise DataError(
                f"{source}: {key}: expected labels from 0 to {len(classes) - 1} for {len(classes)} classes, "
                f"got {split.labels.min()} to {split.labels.max()}; mend the labels or the list of classes"
            )
    ordered = {key: splits[key] for key in SPLITS if key in splits}
    return DataSet(name, form, source, classes, MappingProxyType(ordered))


def held_out(data: DataSet, seed: int, share: float = HELD_OUT) -> DataSet:
    """Return the data set with a `validation` split: its own, or `share` of each class of `train`, at least 1 picture.

    The choice depends on the seed and the labels only. Raises DataError when a class has one picture: none would be
    left to learn from.
    """
    if "validation" in data.splits:
        return data
    train = data.split("train")
    kept = np.ones(len(train), dtype=bool)
    for label, name in enumerate(data.classes):
        members = np.flatnonzero(train.labels == label)
        if len(members) == 1:
            raise DataError(
                f"{data.source}: expected at least 2 pictures of a class, got 1 of {name!r}, "
                f"{train.name(int(members[0]))}; add pictures or remove the class"
            )
        shuffled = np.random.default_rng((seed, label)).permutation(members)
        kept[shuffled[: max(1, round(share * len(members)))]] = False
    splits = {
        **data.splits,
        "train": train.subset(np.flatnonzero(kept)),
        "validation": train.subset(np.flatnonzero(~kept)),
    }
    return data_set(data.name, data.form, data.source, data.classes, splits)


def fingerprint(data: DataSet) -> dict[str, str]:
    """Return what tells whether a split is still the same: a digest of labels and of pixels, or of paths and sizes.

    Files are told by their place and size, not read: a digest of a million photographs would take minutes. Where every
    picture was decoded anyway, `look.pixel_fingerprint` sees more.
    """
    digests = {}
    for key, split in data.splits.items():
        digest = hashlib.sha256("\n".join(data.classes).encode())
        digest.update(np.ascontiguousarray(split.labels, dtype="<i8").tobytes())
        if isinstance(split.pictures, Stored):
            digest.update(zlib.crc32(split.pictures.pixels.tobytes()).to_bytes(4, "little"))
        else:
            for path in split.pictures:
                size = path.stat().st_size if path.exists() else -1
                digest.update(f"{'/'.join(path.parts[-3:])}\0{size}\n".encode())
        digests[key] = digest.hexdigest()[:16]
    return digests
