"""From a folder, a file or a name to a DataSet: the one place that knows which form is which."""

import re
from difflib import get_close_matches
from pathlib import Path

from perwatt.data.dataset import DataSet
from perwatt.data.folders import read_folders
from perwatt.data.idx import find_idx, read_idx
from perwatt.data.lists import find_lists, read_lists
from perwatt.data.named import NAMED
from perwatt.errors import DataError

FORMS = (
    "folders of pictures per class (DIR/CLASS/*.jpg or DIR/train/CLASS/*.jpg), text lists (DIR/train.txt, DIR/val.txt, "
    "lines 'path label'), CSV (path and label, or label and pixels), IDX files (MNIST's form, also .gz)"
)
_FILE = re.compile(r"\.(txt|lst|csv)$", re.IGNORECASE)


def open_data(source: str | Path) -> DataSet:
    """Return the labelled data set of a folder, a list, a CSV file, or one of NAMED.

    Nothing is decoded; broken pictures are found by `integrity`. Raises DataError when it is none of these, when its
    labels do not match its classes or when a file is damaged.
    """
    path = Path(source)
    if not path.exists():
        name = str(source)
        if name in NAMED:
            return NAMED[name]()
        near = get_close_matches(name, NAMED, n=1)
        hint = f"did you mean {near[0]}?" if near else "check the path"
        raise DataError(f"data {name!r}: expected a folder, a file or one of {', '.join(NAMED)}; {hint}")
    if path.is_file():
        if _FILE.search(path.name):
            return read_lists(path)
        raise DataError(f"{path}: expected a text list or a CSV file, or the folder of a data set: {FORMS}")
    if find_idx(path):
        return read_idx(path)
    if find_lists(path):
        return read_lists(path)
    return read_folders(path)
