"""Data sets by name: the ones that an installed package carries."""

import gzip
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np

from perwatt.data.dataset import DataSet, Split, Stored, data_set
from perwatt.data.idx import read_idx
from perwatt.errors import DataError

FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")
FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_DIGITS = "datasets/data/digits.csv.gz"
# Of each class, the place of every fifth picture is a test picture.
_TEST_EVERY = 5


def digits() -> DataSet:
    """Return scikit-learn's digits: 1797 of 8x8 grey pixels, of which every fifth of each class is a test picture.

    Train and test share writers, so that its accuracy says little about a stranger's hand. Its values 0..16 are spread
    over 0..255. Raises DataError when scikit-learn is not installed.
    """
    found = importlib.util.find_spec("sklearn")
    if found is None or found.origin is None:
        raise DataError(
            "data 'digits': expected scikit-learn, which carries them, it is missing; pip install scikit-learn"
        )
    path = Path(found.origin).parent / _DIGITS
    try:
        with gzip.open(path, "rt") as file:
            table = np.loadtxt(file, delimiter=",", dtype=np.int64)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path}: expected scikit-learn's digits, got {error}; install scikit-learn again") from error
    pixels = np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    labels = table[:, -1]
    whole = Split(Stored(pixels, "digits"), labels)
    test = np.zeros(len(labels), dtype=bool)
    for label in range(10):
        test[np.flatnonzero(labels == label)[::_TEST_EVERY]] = True
    splits = {"train": whole.subset(np.flatnonzero(~test)), "test": whole.subset(np.flatnonzero(test))}
    return data_set("digits", "array", "digits of scikit-learn", tuple("0123456789"), splits)


def fashion_mnist() -> DataSet:
    """Return Fashion-MNIST (Xiao et al., 2017, arXiv:1708.07747) as Debian installs it. Raises DataError without it."""
    if not FASHION_FOLDER.is_dir():
        raise DataError(
            f"data 'fashion-mnist': expected {FASHION_FOLDER}, it is missing; apt-get install dataset-fashion-mnist"
        )
    return read_idx(FASHION_FOLDER, FASHION_CLASSES)


NAMED: Mapping[str, Callable[[], DataSet]] = MappingProxyType({"digits": digits, "fashion-mnist": fashion_mnist})
