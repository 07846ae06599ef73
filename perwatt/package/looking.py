"""What `perwatt inspect` and `perwatt run` tell: facts about a package, and its answers to photographs."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from perwatt.errors import InputError
from perwatt.graph import read as read_network
from perwatt.graph import total_cost
from perwatt.package.golden import Replay, replay
from perwatt.package.opened import open
from perwatt.package.package import PRECISIONS, Package, Precision
from perwatt.package.package_file import read, to_bytes
from perwatt.package.preprocessing import Preprocessing, decode, image_format, image_header, preprocess

# A softmax in FP32 adds up to 1 within its rounding: some 1000 values, each within 2^-24 of itself, and the sum's own.
SUM_ERROR = 1e-3


@dataclass(frozen=True)
class Class:
    """One class of an answer."""

    index: int
    label: str
    value: float


@dataclass(frozen=True)
class Answer:
    """The highest classes for one photograph, or the reason why there are none.

    `probabilities` says whether the output's values are that; else they are whatever the network gives.
    """

    photo: str
    top: tuple[Class, ...]
    probabilities: bool
    error: str | None = None


@dataclass(frozen=True)
class Example:
    """A golden example: its file inside, its size, and the class that is expected highest."""

    file: str
    width: int
    height: int
    index: int
    label: str
    value: float


@dataclass(frozen=True)
class Facts:
    """What a package holds, for people and programs."""

    name: str
    version: str
    bytes: int
    sha256: str
    parameters: int
    multiply_adds: int | None
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    preprocessing: str
    labels: tuple[str, ...] | None
    licence: str | None
    source: str | None
    golden: tuple[Example, ...]
    tolerances: Mapping[Precision, float]
    evidence: Mapping[str, Any]


def facts_of(package: Package) -> Facts:
    """Return what a package holds. Raises NetworkError when its ONNX file cannot be read."""
    content = to_bytes(package)
    graph = read_network(package.model, 1)
    examples = []
    for place, image in enumerate(package.golden.images if package.golden else ()):
        header = image_header(image)
        best = _top(package, package.golden.outputs[place], 1)[0] if package.golden else Class(0, "", 0.0)
        file = f"golden/{place:03}.{image_format(image)}"
        examples.append(Example(file, header.width, header.height, best.index, best.label, best.value))
    return Facts(
        name=package.name,
        version=package.version,
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        parameters=sum(array.size for array in graph.constants.values() if array.dtype.kind == "f"),
        multiply_adds=total_cost(graph).multiply_adds,
        input_shape=graph.values[graph.inputs[0]].shape[1:],
        output_shape=graph.values[graph.outputs[0]].shape[1:],
        preprocessing=described(package.preprocessing),
        labels=package.labels,
        licence=package.licence,
        source=package.source,
        golden=tuple(examples),
        tolerances=dict(package.golden.tolerances) if package.golden else {},
        evidence=dict(package.evidence),
    )


def described(how: Preprocessing) -> str:
    """Return a preprocessing in words."""
    height, width = how.size
    whole = {
        "short-side": f"short side to {how.resize_to}, centre",
        "squash": f"squashed to {how.resize_to}, centre",
        "crop": f"centre box of {100 * min(how.size) / how.resize_to:.3g} %, resized to",
    }[how.resize]
    mean = ", ".join(f"{each:.6g}" for each in how.mean)
    scale = ", ".join(f"{each:.6g}" for each in how.scale)
    return f"{whole} {height}×{width} ({how.interpolation}); {how.channel_order}; (pixel − [{mean}]) × [{scale}]"


def load(path: Path) -> Package:
    """Return the package of a file. Raises InputError, with the way to make one, when there is none."""
    if not path.is_file():
        raise InputError(
            f"{path}: expected a package file, there is none; make one: perwatt package NETWORK -o {path.stem}.perwatt"
        )
    return read(path)


def answers(
    package: Package, run: Callable[[np.ndarray], np.ndarray], photos: Sequence[Path], top: int
) -> tuple[Answer, ...]:
    """Return an answer for each photograph; one that cannot be used says why and costs the others nothing."""
    told = []
    for photo in photos:
        try:
            output = run(preprocess(decode(photo), package.preprocessing)[np.newaxis])
        except InputError as error:
            told.append(Answer(str(photo), (), False, str(error)))
            continue
        values = np.asarray(output, dtype=np.float64).reshape(-1)
        told.append(Answer(str(photo), _top(package, values, top), _are_probabilities(values)))
    return tuple(told)


def _top(package: Package, values: np.ndarray, count: int) -> tuple[Class, ...]:
    order = np.argsort(-values, kind="stable")[:count]
    names = package.labels
    return tuple(
        Class(int(place), names[place] if names and place < len(names) else f"class {place}", float(values[place]))
        for place in order
    )


def _are_probabilities(values: np.ndarray) -> bool:
    return bool(values.size > 1 and values.min() >= 0 and abs(values.sum() - 1) < SUM_ERROR)


def opened(package: Package, precision: str, threads: int | None) -> Callable[[np.ndarray], np.ndarray]:
    """Return the network ready for one photograph at a time, its golden examples replayed if it has any.

    Raises InputError for another precision, GoldenMismatch, NetworkError.
    """
    return open(package, 1, _precision(precision), threads, tune="estimate", unproven=True)


def replayed(package: Package, precision: str, threads: int | None) -> Replay:
    """Return how the golden examples come out on this machine, agreeing or not. Raises as `opened` does."""
    model = open(
        replace(package, golden=None), 1, _precision(precision), threads, tune="estimate", unproven=True
    )  # fmt: skip
    return replay(package, model, _precision(precision))


def _precision(given: str) -> Precision:
    for precision in PRECISIONS:
        if precision == given.strip():
            return precision
    raise InputError(f"precision: expected one of {', '.join(PRECISIONS)}, got {given!r}; choose one of them")


def facts_json(facts: Facts, package: Package, found: Replay | None = None) -> dict[str, Any]:
    """Return the facts as plain JSON, the preprocessing field by field."""
    plain = {name: value for name, value in vars(facts).items() if name not in ("golden", "preprocessing")}
    plain["preprocessing"] = vars(package.preprocessing)
    plain["golden"] = [vars(example) for example in facts.golden]
    plain["replay"] = None if found is None else vars(found)
    made: dict[str, Any] = json.loads(json.dumps(plain))
    return made


def answers_json(package: Package, told: Sequence[Answer]) -> dict[str, Any]:
    """Return the answers as plain JSON."""
    return {
        "package": package.name,
        "version": package.version,
        "answers": [{**vars(answer), "top": [vars(each) for each in answer.top]} for answer in told],
    }
