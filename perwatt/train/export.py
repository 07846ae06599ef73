"""From a training form to a package that has been seen to answer as it does, or to none.

The file is written from the Graph that the training form runs, then read back and compiled as in production, at several
batch sizes, and its answers for real validation images are held against those of the training form computed in
float64. What rounding in FP32 explains is known from the network itself (package/reference.py); anything beyond it is a
defect of the export, the engine or the preprocessing, and nothing is published.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from perwatt import __version__
from perwatt.data import Split
from perwatt.errors import ExportMismatch, InputError
from perwatt.graph import Graph, total_cost, write
from perwatt.package import Package, Preprocessing, pack, preprocess
from perwatt.package import open as open_package
from perwatt.package import write as write_package
from perwatt.package.golden import relative_errors
from perwatt.package.package import JSON
from perwatt.train.module import TrainingForm, deployed

# Ones that are no powers of two, and one large enough for the kernels that only large batches choose.
BATCHES = (1, 2, 3, 8)
FEWEST_IMAGES, MOST_IMAGES = 8, 64
# Multiply-adds to spend on the training form in float64: about two seconds on two cores.
BUDGET = 25_000_000_000
# Golden examples are replayed at every start: fewer of large networks.
FEWEST_GOLDEN, MOST_GOLDEN = 4, 8
GOLDEN_BUDGET = 8_000_000_000
LARGE_PHOTOGRAPH_BYTES = 4 << 20
# Rounding counts from here: below, two answers are the same number.
SMALLEST_ERROR = 2.0**-24

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Checked:
    """What one batch size gave: over all images the largest |difference| of an output, the largest relative error (to
    the largest |output| of the image), and the share of images with the same highest class.
    """

    batch: int
    largest_difference: float
    largest_relative_error: float
    top1_agreement: float


def publish(
    module: TrainingForm,
    graph: Graph,
    data: Split,
    preprocessing: Preprocessing,
    labels: Sequence[str],
    path: Path | None,
    *,
    name: str,
    version: str = "1",
    licence: str | None = None,
    origin: str | None = None,
    training: Mapping[str, JSON] | None = None,
    batches: Sequence[int] = BATCHES,
    threads: int | None = None,
    tell: Tell | None = None,
) -> Package:
    """Return the verified package of a trained network, written to `path` unless that is None.

    `graph` is the network to deploy, `data` validation images that were not trained on, `training` what becomes the
    package's evidence of that name. Raises ExportMismatch or GoldenMismatch, and writes nothing, when the deployed
    network does not answer as the training form does; InputError when there are no images or labels do not fit.
    """
    say = tell or (lambda text: None)
    target = deployed(module, graph)
    values = math.prod(target.values[target.outputs[0]].shape[1:])
    if len(labels) != values:
        raise InputError(f"labels: expected {values}, one for each output of {target.name}, got {len(labels)}")
    multiply_adds = max(1, (total_cost(target).multiply_adds or 0) // target.values[target.inputs[0]].shape[0])
    chosen = _chosen(data, multiply_adds)
    say(f"answers of the training form for {len(chosen)} validation images")
    inputs = np.stack([preprocess(data.photo(index), preprocessing) for index in chosen])
    exact, usual = answers(module, inputs, torch.float64), answers(module, inputs, torch.float32)
    own_error = _error(usual, exact)
    most = min(MOST_GOLDEN, max(FEWEST_GOLDEN, GOLDEN_BUDGET // multiply_adds))
    first = _golden(data, chosen, usual, exact, most)
    package = pack(
        write(target, batch="batch"),
        name,
        preprocessing,
        version=version,
        labels=labels,
        licence=licence,
        origin=origin,
        photos=[data.encoded(chosen[place]) for place in first],
        expected=exact[first],
        evidence={} if training is None else {"training": dict(training)},
        tell=say,
    )
    assert package.golden is not None
    tolerance = package.golden.tolerances["fp32"]
    found = []
    for batch in batches:
        say(f"the deployed network at batch {batch}")
        found.append(_check(package, batch, inputs, exact, threads))
        _require(found[-1], tolerance, target.name, own_error)
    evidence: JSON = {
        "engine": f"perwatt {__version__}",
        "against": "the training form, computed in float64",
        "images": len(chosen),
        "labels_agree": float((exact.argmax(1) == data.labels[np.array(chosen)]).mean()),
        "tolerance": tolerance,
        "training_form_fp32_error": own_error,
        "batches": [asdict(each) for each in found],
    }
    package = replace(package, evidence={**package.evidence, "export": evidence})
    if path is not None:
        write_package(package, path)
    return package


def answers(module: TrainingForm, inputs: np.ndarray, dtype: torch.dtype, batch: int = 1) -> np.ndarray:
    """Return what the training form answers in this precision on the CPU: float64 [images, values]."""
    form = copy.deepcopy(module).to(device="cpu", dtype=dtype)
    parts = [form.answer(torch.from_numpy(inputs[at : at + batch]).to(dtype)) for at in range(0, len(inputs), batch)]
    found: np.ndarray = torch.cat(parts).double().numpy()
    return found


def _chosen(data: Split, multiply_adds: int) -> list[int]:
    """Return places of images spread evenly over the split: as many as the budget allows."""
    if not len(data):
        raise InputError("validation: expected images to verify the export on, got none; keep some from training")
    count = min(MOST_IMAGES, max(FEWEST_IMAGES, BUDGET // multiply_adds), len(data))
    order = np.argsort(data.labels, kind="stable")  # every class, as far as there are as many images
    return sorted(int(order[place]) for place in np.linspace(0, len(data) - 1, count).round().astype(int))


def _golden(data: Split, chosen: Sequence[int], usual: np.ndarray, exact: np.ndarray, most: int) -> list[int]:
    """Return which of the chosen images become golden examples, those that rounding moves most first.

    The tolerances are made from the first of them, and have to hold for all. Large files are left out where possible: a
    package carries them for ever.
    """
    errors = [math.inf if error is None else error for error in relative_errors(usual, exact)]
    sizes = [len(data.encoded(index)) for index in chosen]
    places = sorted(range(len(chosen)), key=lambda place: -errors[place])
    handy = [place for place in places if sizes[place] <= LARGE_PHOTOGRAPH_BYTES]
    return (handy or sorted(places, key=lambda place: sizes[place])[:1])[:most]


def _check(package: Package, batch: int, inputs: np.ndarray, exact: np.ndarray, threads: int | None) -> Checked:
    """Compile the package at this batch, as production does, and compare its answers for all images."""
    model = open_package(package, batch, threads=threads, tune="estimate")
    order = np.arange(-(-len(inputs) // batch) * batch) % len(inputs)
    parts = [model(np.ascontiguousarray(inputs[order[at : at + batch]])) for at in range(0, len(order), batch)]
    got = np.concatenate(parts).reshape(len(order), -1).astype(np.float64)
    return Checked(
        batch=batch,
        largest_difference=float(np.abs(got - exact[order]).max()),
        largest_relative_error=_error(got, exact[order]),
        top1_agreement=float((got.argmax(1) == exact[order].argmax(1)).mean()),
    )


def _error(got: np.ndarray, exact: np.ndarray) -> float:
    """Return the largest relative error of an image, infinity when one is not finite."""
    return max(math.inf if error is None else error for error in relative_errors(got, exact))


def _require(found: Checked, tolerance: float, name: str, own_error: float) -> None:
    # Two classes as likely as each other may change places within the tolerance; a larger change goes beyond it.
    if not found.largest_relative_error <= max(tolerance, SMALLEST_ERROR):
        raise ExportMismatch(
            f"{name}: expected the deployed network to answer as the trained one within {tolerance:.2g}, got an error "
            f"of {found.largest_relative_error:.2g} at batch {found.batch} (top-1 agreement "
            f"{100 * found.top1_agreement:.4g} %; the training form's own rounding is {own_error:.2g}); nothing was "
            "published, report this with the network"
        )
