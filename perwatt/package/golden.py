"""Replay: whether a network still gives the golden answers, in the hands of whatever will run it."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from perwatt.errors import GoldenMismatch, InputError, PhotographRefused
from perwatt.package.package import PRECISIONS, Golden, Package, Precision
from perwatt.package.preprocessing import Preprocessing, preprocess


@dataclass(frozen=True)
class Replay:
    """What a replay found: per golden image the relative error (None: not finite), and the largest against its limit.

    `other_inputs` counts images whose preprocessed pixels differ from those at packing; None when nothing tells.
    """

    agrees: bool
    precision: Precision
    tolerance: float
    largest_error: float | None
    errors: tuple[float | None, ...]
    other_inputs: int | None


def replay(
    package: Package, run: Callable[[np.ndarray], np.ndarray], precision: Precision = "fp32", batch: int = 1
) -> Replay:
    """Run the golden photographs and hold the answers against those that are expected.

    `run` is given float32 [batch, channels, height, width] and returns [batch, ...], the first output. Every place of
    every batch is filled and checked, with photographs again where they are fewer. Raises GoldenMismatch when the
    package has no golden examples, no tolerance for the precision, photographs that cannot be decoded here, or `run`
    returns another shape.
    """
    golden = _golden(package, precision)
    inputs = golden_inputs(golden, package.preprocessing)
    count = len(inputs)
    whole = -(-count // batch) * batch
    order = np.arange(whole) % count
    worst: list[float | None] = [0.0] * count
    for start in range(0, whole, batch):
        places = order[start : start + batch]
        got = np.asarray(run(np.ascontiguousarray(inputs[places])))
        if got.ndim < 1 or got.shape[0] != batch or got.size != batch * golden.outputs.shape[1]:
            raise GoldenMismatch(
                f"{package.name}: expected {golden.outputs.shape[1]} values for each of {batch} images, got an output "
                f"{list(got.shape)}; make the package again"
            )
        for place, error in zip(places, relative_errors(got.reshape(batch, -1), golden.outputs[places]), strict=True):
            before = worst[place]
            worst[place] = None if error is None or before is None else max(before, error)
    known = [error for error in worst if error is not None]
    largest = max(known) if len(known) == count else None
    tolerance = golden.tolerances[precision]
    return Replay(
        agrees=largest is not None and largest <= tolerance,
        precision=precision,
        tolerance=tolerance,
        largest_error=largest,
        errors=tuple(worst),
        other_inputs=_other_inputs(golden, inputs),
    )


def require(package: Package, found: Replay) -> None:
    """Raise GoldenMismatch, with what is likely to have changed, unless the replay agrees."""
    if found.agrees:
        return
    wrong = sum(error is None or error > found.tolerance for error in found.errors)
    got = "numbers that are not finite" if found.largest_error is None else f"an error of {found.largest_error:.2g}"
    if found.other_inputs:
        cause = (
            f"the pixels of {found.other_inputs} differ already: photographs are decoded or resized in another way "
            "than where it was made; use that Pillow version"
        )
    elif found.other_inputs == 0:
        cause = "its inputs are the same, so the network is computed in another way; report it, or pack it again"
    else:
        cause = "pack it again if the network was changed on purpose"
    raise GoldenMismatch(
        f"{package.name}: expected the golden answers within {found.tolerance:.2g} in {found.precision}, got {got}, "
        f"{wrong} of {len(found.errors)} photographs wrong; {cause}"
    )


def golden_inputs(golden: Golden, how: Preprocessing) -> np.ndarray:
    """Return the preprocessed golden photographs, float32 [images, channels, height, width]. Raises GoldenMismatch."""
    try:
        return np.stack([preprocess(image, how) for image in golden.images])
    except PhotographRefused as error:
        raise GoldenMismatch(f"golden example: {error}") from error


def fingerprint(image: np.ndarray) -> str:
    """Return the SHA-256 digest of a preprocessed image, as little-endian float32."""
    return hashlib.sha256(np.ascontiguousarray(image, dtype="<f4").tobytes()).hexdigest()


def relative_errors(got: np.ndarray, expected: np.ndarray) -> tuple[float | None, ...]:
    """Return, per image, the largest |difference| over the largest |expected|; None where it is not finite."""
    wanted = expected.astype(np.float64)
    with np.errstate(all="ignore"):
        errors = np.abs(got.astype(np.float64) - wanted).max(axis=1) / np.abs(wanted).max(axis=1)
    return tuple(float(error) if np.isfinite(error) else None for error in errors)


def _golden(package: Package, precision: Precision) -> Golden:
    if precision not in PRECISIONS:
        raise InputError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
    if package.golden is None:
        raise GoldenMismatch(
            f"{package.name}: expected golden examples, got a package without: nothing shows that it answers rightly "
            "here; make it again with --golden"
        )
    if precision not in package.golden.tolerances:
        raise GoldenMismatch(
            f"{package.name}: expected a tolerance for {precision}, got {', '.join(package.golden.tolerances)}: "
            f"on this network the rounding of {precision} cannot be told from a wrong answer; use fp32"
        )
    return package.golden


def _other_inputs(golden: Golden, inputs: np.ndarray) -> int | None:
    if not golden.inputs:
        return None
    return sum(fingerprint(image) != told for image, told in zip(inputs, golden.inputs, strict=True))
