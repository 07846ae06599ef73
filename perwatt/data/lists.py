"""Text lists: lines 'path label' in train.txt, val.txt, test.txt, with classes in labels.txt; CSV files likewise.

A CSV file has a header with a column of labels (label, class, target) and one of paths (path, file, filename, image),
or numbers only: the label and then the pixels of a square picture, as MNIST is passed around.
"""

import csv
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from perwatt.data.dataset import DataSet, Split, Stored, data_set
from perwatt.data.folders import SPLIT_NAMES
from perwatt.errors import DataError

_LABEL_FILES = ("labels.txt", "classes.txt", "synset_words.txt")
_LABEL_COLUMNS = frozenset(("label", "class", "target", "labels", "category"))
_PATH_COLUMNS = frozenset(("path", "file", "filename", "image", "file_name", "filepath"))
_LIST = re.compile(rf"^({'|'.join(SPLIT_NAMES)})\.(txt|lst|csv)$", re.IGNORECASE)


@dataclass(frozen=True)
class _Rows:
    """A list as it was read: where each row stood, its label as text, and its picture's path or the array of all."""

    places: tuple[str, ...]
    labels: tuple[str, ...]
    pictures: tuple[Path, ...] | Stored


def find_lists(folder: Path) -> dict[str, Path]:
    """Return the lists of a folder by split; empty without a train list."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        match = _LIST.match(path.name)
        if match and path.is_file():
            split = SPLIT_NAMES[match[1].lower()]
            if split in found:
                raise DataError(f"{folder}: expected one list for {split}, found {found[split].name} and {path.name}")
            found[split] = path
    return found if "train" in found else {}


def read_lists(source: Path) -> DataSet:
    """Return the data set of one list (a train split), or of the lists in a folder. Raises DataError with the line."""
    lists = find_lists(source) if source.is_dir() else {"train": source}
    folder = source if source.is_dir() else source.parent
    rows = {split: _rows(path) for split, path in lists.items()}
    classes = _classes(folder, rows["train"].labels)
    splits = {split: _split(each, classes) for split, each in rows.items()}
    forms = {path.suffix.lower() for path in lists.values()}
    return data_set(source.resolve().stem, "csv" if forms == {".csv"} else "list", str(source), classes, splits)


def read_labels(folder: Path) -> tuple[str, ...] | None:
    """Return the class names of labels.txt (or its like), one a line, or None without such a file."""
    for name in _LABEL_FILES:
        path = folder / name
        if path.is_file():
            return tuple(line.strip() for line in _text(path).splitlines() if line.strip())
    return None


def _rows(path: Path) -> _Rows:
    made = _csv(path) if path.suffix.lower() == ".csv" else _plain(path)
    if not made.labels:
        raise DataError(f"{path}: expected lines with a path and a label, got an empty file")
    return made


def _plain(path: Path) -> _Rows:
    places, labels, pictures = [], [], []
    for number, line in enumerate(_text(path).splitlines(), 1):
        if not line.strip():
            continue
        parts = line.split("\t") if "\t" in line else line.rsplit(maxsplit=1)
        if len(parts) != 2 or not all(part.strip() for part in parts):
            raise DataError(f"{path}: line {number}: expected 'path label', got {line.strip()[:80]!r}")
        places.append(f"{path}: line {number}")
        pictures.append(path.parent / parts[0].strip())
        labels.append(parts[1].strip())
    return _Rows(tuple(places), tuple(labels), tuple(pictures))


def _csv(path: Path) -> _Rows:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            head = next(csv.reader(file), [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: expected a CSV file, got one that cannot be read: {error}") from error
    titles = [cell.strip().lower() for cell in head]
    if len(titles) < 2:
        raise DataError(f"{path}: expected a label and pixels or a path in each row, got {len(titles)} columns")
    header = not all(_is_number(cell) for cell in titles)
    label_at = next((place for place, title in enumerate(titles) if title in _LABEL_COLUMNS), None)
    path_at = next((place for place, title in enumerate(titles) if title in _PATH_COLUMNS), None)
    if header and label_at is None:
        raise DataError(f"{path}: expected a column called label, got {', '.join(titles[:6])}; name the columns")
    if path_at is None:
        return _csv_pixels(path, header, label_at or 0, len(titles))
    places, labels, pictures = [], [], []
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        next(reader)
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(titles):
                raise DataError(f"{path}: line {reader.line_num}: expected {len(titles)} cells, got {len(cells)}")
            places.append(f"{path}: line {reader.line_num}")
            pictures.append(path.parent / cells[path_at].strip())
            labels.append(cells[label_at or 0].strip())
    return _Rows(tuple(places), tuple(labels), tuple(pictures))


def _csv_pixels(path: Path, header: bool, label_at: int, columns: int) -> _Rows:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # an empty table is told below
            table = np.loadtxt(
                path, delimiter=",", skiprows=int(header), dtype=np.float32, ndmin=2, encoding="utf-8-sig"
            )
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: expected numbers, a label and its pixels in a row: {error}") from error
    if not table.size:
        raise DataError(f"{path}: expected rows of a label and pixels below the header, got none; add some")
    labels, pixels = table[:, label_at], np.delete(table, label_at, axis=1)
    side = round((columns - 1) ** 0.5)
    if side * side != columns - 1:
        raise DataError(
            f"{path}: expected a label and the pixels of a square picture, got {columns - 1} pixels in a row; "
            "name a column path for files"
        )
    whole = np.rint(pixels)
    if not np.array_equal(whole, pixels) or whole.min() < 0 or whole.max() > 255:
        raise DataError(
            f"{path}: expected whole pixels from 0 to 255, got {pixels.min()} to {pixels.max()}; scale them"
        )
    stored = Stored(whole.astype(np.uint8).reshape(-1, side, side), path.name)
    places = tuple(f"{path}: row {number}" for number in range(1, len(labels) + 1))
    return _Rows(places, tuple(f"{label:g}" for label in labels), stored)


def _classes(folder: Path, labels: Sequence[str]) -> tuple[str, ...]:
    """Return the class names: of labels.txt, or the numbers up to the largest, or the names that occur."""
    named = read_labels(folder)
    if named is not None:
        return named
    if all(label.isdecimal() for label in labels):
        return tuple(str(number) for number in range(max(int(label) for label in labels) + 1))
    return tuple(sorted(set(labels)))


def _split(rows: _Rows, classes: tuple[str, ...]) -> Split:
    known = {name: place for place, name in enumerate(classes)}
    labels = []
    for place, label in zip(rows.places, rows.labels, strict=True):
        found = known.get(label, int(label) if label.isdecimal() else -1)
        if not 0 <= found < len(classes):
            raise DataError(
                f"{place}: expected a label from 0 to {len(classes) - 1} or a class name, got {label!r}; "
                "mend the line or the list of classes"
            )
        labels.append(found)
    return Split(rows.pictures, np.array(labels, dtype=np.int64))


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected a text file in UTF-8, got one that cannot be read: {error}") from error
