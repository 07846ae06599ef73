"""Folders: DIR/CLASS/pictures, or the same below DIR/train, DIR/validation and DIR/test."""

from pathlib import Path

import numpy as np

from perwatt.data.dataset import DataSet, Split, data_set
from perwatt.errors import DataError

SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".gif", ".bmp", ".ppm", ".pgm", ".avif"))
# What other programs call the splits.
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "test": "test",
    "testing": "test",
}


def read_folders(root: Path) -> DataSet:
    """Return the data set of a folder; its classes are those of `train`, in the order of their names.

    A class folder without pictures is a class without pictures; `examination` shows it and training refuses it. Raises
    DataError when there is no class folder, no picture, or a class that `train` does not have.
    """
    below = _folders(root)
    parts = {SPLIT_NAMES[folder.name.lower()]: folder for folder in below if folder.name.lower() in SPLIT_NAMES}
    if "train" not in parts:
        parts = {"train": root}
    classes = tuple(folder.name for folder in _folders(parts["train"]))
    if not classes:
        loose = sum(path.suffix.lower() in SUFFIXES for path in root.iterdir())
        found = f"{loose} pictures without class folders" if loose else "no folder of pictures"
        raise DataError(f"{root}: expected a folder per class with its pictures inside, found {found}; sort them so")
    splits = {name: _split(folder, classes) for name, folder in parts.items()}
    return data_set(root.resolve().name, "folders", str(root), classes, splits)


def _split(folder: Path, classes: tuple[str, ...]) -> Split:
    pictures: list[Path] = []
    labels: list[int] = []
    places = {name: place for place, name in enumerate(classes)}
    for each in _folders(folder):
        if each.name not in places:
            raise DataError(
                f"{each}: expected a class that train has ({_some(classes)}), got {each.name!r}; "
                "add it to train or remove it"
            )
        found = sorted(
            path
            for path in each.rglob("*")
            if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
        )
        pictures += found
        labels += [places[each.name]] * len(found)
    return Split(tuple(pictures), np.array(labels, dtype=np.int64))


def _folders(root: Path) -> list[Path]:
    try:
        return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise DataError(
            f"{root}: expected a folder that can be read, got {error.strerror}; check its rights"
        ) from error


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
