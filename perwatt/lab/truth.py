"""Whether what an engine returned inside the timed run is the network's answer to the input it was given.

Outputs of a seeded sample of timed runs are held against the FP32 reference (ONNX Runtime, optimisations off). A fast
engine that computes something else must not get a figure: zeros, another precision, the answer to the previous input,
images of a batch in another order.
"""

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from perwatt.lab.engine import Numbers, Precision
from perwatt.lab.record import Reference, Sample

# The largest relative error ||output - reference|| / ||reference|| of one image that a precision explains, before the
# last softmax. A sum of K products in precision of unit roundoff u errs by about u sqrt(K), and the errors of L layers
# add up as sqrt(L): fp32 (u = 6e-8, K = 9216, L = 60) 4e-5, and twice that for Winograd's transforms; FP16 or TF32
# behind the back of an fp32 row exceeds it. In fp16 and bf16 (u = 5e-4, 4e-3) weights and activations are rounded once
# per layer, uniformly, and sums are in FP32: u sqrt(2 L / 3) gives 3e-3 and 2.5e-2, and twice that to be on the safe
# side. A mixture (auto) is held to the coarsest numbers in it: each of its roundings is one of these or finer.
TOLERANCES: Mapping[Numbers, float] = {"fp32": 1e-4, "fp16": 6e-3, "bf16": 5e-2}
# What is derived so is the error of a typical image, which the median is held to. fp32 is far from it and has one bound
# for every image. In fp16 and bf16 an image that lies between classes errs several times as much: the worst of 96 by
# 12 times the median in PyTorch and OpenVINO alike, which round independently of each other.
SINGLE_IMAGE: Mapping[Numbers, float] = {"fp32": 1.0, "fp16": 8.0, "bf16": 8.0}
UNRELATED = 0.5  # no rounding explains this much: outputs that have nothing to do with each other differ by 1 or more
# A softmax turns an error e of the logits, relative to their spread s, into an error e s of the probabilities.
WIDEST_SPREAD = 10.0
# An image is a stranger when its output is this many times nearer to another image's reference than to its own...
STRANGER_RATIO = 4.0
# ... unless its error is within this share of the tolerance, where rounding may do that to images that look alike.
STRANGER_SHARE = 0.1
MOST_STRANGERS = 0.1


@dataclass(frozen=True)
class Judgement:
    """What a whole output says per image: relative error (None: not finite), class, and how many are strangers."""

    relative_errors: tuple[float | None, ...]
    classes: tuple[int, ...]
    strangers: int
    hash: str


def held_to(precision: Precision, coarsest: Numbers | None) -> Numbers:
    """Return whose rounding outputs in a precision are held to: its own; of a mixture, that of its coarsest numbers.

    A mixture that does not say what its coarsest numbers are is held to FP32.
    """
    return (coarsest or "fp32") if precision == "auto" else precision


def by_image(output: np.ndarray, batch: int) -> np.ndarray | None:
    """Return an output as float32 [batch, values], or None when its first dimension is not the batch."""
    if output.ndim == 0 or output.shape[0] != batch:
        return None
    return np.ascontiguousarray(output, dtype=np.float32).reshape(batch, -1)


def output_hash(output: np.ndarray) -> str:
    """Return a short hash of an output's bytes."""
    return hashlib.sha256(np.ascontiguousarray(output, dtype="<f4").tobytes()).hexdigest()[:16]


def relative_error(output: np.ndarray, reference: np.ndarray) -> float | None:
    """Return ||output - reference|| / ||reference|| of one image in float64; None when it is not a finite number."""
    wanted = reference.astype(np.float64).ravel()
    size = float(np.linalg.norm(wanted))
    distance = float(np.linalg.norm(output.astype(np.float64).ravel() - wanted))
    error = distance / size if size > 0 else (0.0 if distance == 0 else np.inf)
    return float(error) if np.isfinite(error) else None


def logit_spread(outputs: np.ndarray) -> float | None:
    """Return the standard deviation of the logits behind softmax outputs [batch, values], mean over the batch.

    None when the outputs are no probabilities: then nothing amplifies the error.
    """
    values = outputs.astype(np.float64)
    if values.shape[1] < 2 or values.min() < 0 or np.abs(values.sum(axis=1) - 1).max() > 1e-3:
        return None
    logs = np.log(np.maximum(values, np.finfo(np.float32).tiny))
    return float(logs.std(axis=1).mean())


def tolerance(precision: Numbers, references: Mapping[int, Reference]) -> float:
    """Return the largest relative error of one image that a precision explains on a network with these references.

    `precision` is what `held_to` returns, here and below.
    """
    spread = max((reference.spread or 1.0 for reference in references.values()), default=1.0)
    return TOLERANCES[precision] * min(max(spread, 1.0), WIDEST_SPREAD)


def judge(output: np.ndarray, reference: np.ndarray, others: np.ndarray, precision: Numbers) -> Judgement:
    """Hold one run's output against its reference, both with the batch first, and against other inputs' references.

    `others` has shape (any number, values): references of images that this run was not given.
    """
    batch = len(reference)
    wanted = reference.reshape(batch, -1).astype(np.float64)
    got = by_image(output, batch)
    if got is None or got.shape != wanted.shape:
        return Judgement((None,) * batch, (-1,) * batch, 0, output_hash(output))
    errors = tuple(relative_error(got[image], wanted[image]) for image in range(batch))
    finite = np.nan_to_num(got.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    candidates = np.concatenate([wanted, others.reshape(-1, wanted.shape[1]).astype(np.float64)])
    squares = (finite**2).sum(1)[:, None] + (candidates**2).sum(1)[None] - 2 * finite @ candidates.T
    distances = np.sqrt(np.maximum(squares, 0))
    own = np.linalg.norm(finite - wanted, axis=1)
    distances[np.arange(batch), np.arange(batch)] = np.inf
    norms = np.linalg.norm(wanted, axis=1)
    strange = (distances.min(axis=1) * STRANGER_RATIO < own) & (own > STRANGER_SHARE * TOLERANCES[precision] * norms)
    classes = tuple(int(each) for each in finite.argmax(axis=1))
    return Judgement(errors, classes, int(strange.sum()), output_hash(got))


def top1_agreement(samples: Sequence[Sample], references: Mapping[int, Reference]) -> float | None:
    """Return the share of sampled images for which output and reference have the same highest class; None without."""
    pairs = [
        ours == theirs
        for sample in samples
        for ours, theirs in zip(sample.classes, references[sample.input].classes, strict=True)
    ]
    return sum(pairs) / len(pairs) if pairs else None


def worst_error(samples: Sequence[Sample]) -> float | None:
    """Return the largest relative error of all sampled images; None without any, or when one is not finite."""
    errors = [error for sample in samples for error in sample.relative_errors]
    known = [error for error in errors if error is not None]
    return max(known) if known and len(known) == len(errors) else None


def fault(
    samples: Sequence[Sample],
    references: Mapping[int, Reference],
    precision: Precision,
    precision_reported: str | None,
    coarsest: Numbers | None = None,
) -> str | None:
    """Return why a row's outputs cannot be taken for the network's, or None when they can."""
    if precision_reported is not None and precision_reported != precision:
        return f"asked for {precision}, the engine ran {precision_reported}"
    numbers = held_to(precision, coarsest)
    if not samples:
        return "no output of a timed run was kept, so nothing shows that it computed the network"
    errors = [error for sample in samples for error in sample.relative_errors]
    if any(error is None for error in errors):
        return "an output has numbers that are not finite, or another shape than the reference"
    most = tolerance(numbers, references)
    alike: dict[str, list[Sample]] = {}
    for sample in samples:
        alike.setdefault(sample.hash, []).append(sample)
    for same in alike.values():
        inputs = sorted({sample.input for sample in same})
        # A saturated softmax may truly give the same bits for two inputs; then both of them are right.
        if len({references[each].hash for each in inputs}) > 1 and (worst_error(same) or 0) > STRANGER_SHARE * most:
            return f"stale: the same output, bit for bit, for the different inputs {inputs}"
    strangers, images = sum(sample.strangers for sample in samples), len(errors)
    if strangers > MOST_STRANGERS * images:
        return f"stale or permuted: {strangers} of {images} outputs belong to another image than the one given"
    typical = float(np.median([error for error in errors if error is not None]))
    if typical > most:
        return f"relative error {typical:.2g} of the median image is above {most:.2g}, the most that {numbers} explains"
    worst, single = worst_error(samples), min(most * SINGLE_IMAGE[numbers], max(most, UNRELATED))
    if worst is not None and worst > single:
        return f"relative error {worst:.2g} is above {single:.2g}, the most that {numbers} explains"
    return None


def sampled_runs(runs_expected: int, generator: random.Random) -> tuple[int, ...]:
    """Return which runs of a block to keep: two neighbours at a random place, and the last (-1).

    Neighbours have different inputs, so an engine that answers with the run before is caught.
    """
    first = generator.randrange(max(1, runs_expected - 1))
    return (first, first + 1, -1) if runs_expected > 1 else (0, -1)


def is_sampled(blocks: int, generator: random.Random) -> bool:
    """Return whether to keep outputs of a row's next block: always of the first four, ever more seldom after."""
    return generator.random() * (blocks + 1) < 4
