"""Mixed precision as plain JSON: which step may use what, which tensors stay FP32, and the evidence that it holds.

What `perwatt tune --precision auto` finds is kept beside the tuning results, by the network's weights, so that
compile(precision="auto") and every later batch size find it; a package carries the same in evidence["precision"].
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np

from perwatt import settings
from perwatt.errors import InputError
from perwatt.graph import Graph
from perwatt.plan import Allowance, Element, Precision

FORMAT = 1


def digest(graph: Graph) -> str:
    """Return what stands for a network whatever its batch size: a hash of its weights and their shapes."""
    parts = []
    for array in graph.constants.values():
        if array.dtype.kind == "f" and array.size > 1:
            content = hashlib.blake2b(repr(array.shape).encode(), digest_size=16)
            content.update(np.ascontiguousarray(array).data)
            parts.append(content.hexdigest())
    return hashlib.sha256("".join(sorted(parts)).encode()).hexdigest()[:24]


def path(graph: Graph) -> Path:
    """Return where the precision of a network is kept."""
    return settings.cache_folder() / "precision" / f"{digest(graph)}.json"


def to_json(precision: Precision) -> dict[str, Any]:
    """Return the part of the evidence that compile reads."""
    return {
        "format": FORMAT,
        "storage": precision.storage,
        "kept_fp32": sorted(precision.kept),
        "allowed": {
            name: {"weights": list(each.weights), "arithmetic": list(each.arithmetic)}
            for name, each in sorted(precision.steps.items())
        },
    }


def from_json(given: Mapping[str, Any]) -> Precision:
    """Return the Precision of such an object; steps it does not name stay FP32.

    Raises InputError when it is no such object.
    """
    try:
        if given["format"] != FORMAT:
            raise InputError(f"precision: expected format {FORMAT}, got {given['format']!r}; tune again")
        steps = {
            str(name): Allowance(_elements(each["weights"]), _elements(each["arithmetic"]))
            for name, each in given["allowed"].items()
        }
        (storage,) = _elements([given["storage"]])
        return Precision(steps=steps, storage=storage, kept=frozenset(str(name) for name in given["kept_fp32"]))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(
            f"precision: expected an object of perwatt tune --precision auto, got one without {error}; tune again"
        ) from error


def _elements(names: Any) -> tuple[Element, ...]:
    found = tuple(element for name in names for element in get_args(Element) if element == name)
    if len(found) != len(names):
        raise ValueError(f"{', '.join(get_args(Element))} in {names!r}")
    return found


def keep(graph: Graph, evidence: Mapping[str, Any]) -> Path:
    """Write the evidence of a network's precision; a folder that cannot be written is not an error."""
    target = path(graph)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=target.parent, suffix=".part", delete=False) as file:
            json.dump(evidence, file, indent=1)
        os.replace(file.name, target)
    except OSError:
        pass
    return target


def load(graph: Graph) -> dict[str, Any] | None:
    """Return the evidence kept for a network, or None."""
    try:
        found = json.loads(path(graph).read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def wanted(graph: Graph, given: str | Mapping[str, Any] | Precision) -> Precision:
    """Return the Precision that compile was asked for: one element for all steps, "auto", an object, or itself.

    Raises InputError for another word, and for "auto" where nothing was measured for the network yet.
    """
    if isinstance(given, Precision):
        return given
    if isinstance(given, Mapping):
        return from_json(given)
    if given == "auto":
        evidence = load(graph)
        if evidence is None:
            raise InputError(
                f"precision: auto is measured on images and {graph.name} has not been yet; run perwatt tune NETWORK "
                "--precision auto --data DIR, or pass data="
            )
        return from_json(evidence)
    for element in get_args(Element):
        if given == element:
            allowed = Allowance() if element == "fp32" else Allowance((element,), (element,))
            return Precision(allowed, storage=element)
    raise InputError(f"precision: expected one of {', '.join(get_args(Element))}, auto, got {given!r}")
