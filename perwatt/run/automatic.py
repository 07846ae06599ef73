"""Precision "auto": per step the cheapest storage and arithmetic whose effect on the answers stays inside a budget.

On the caller's own images:
1. the range of every activation in FP32: what would overflow FP16, or sink below its normal numbers, is not stored so;
2. every step in halves alone, the others FP32: how far the answers move (relative RMS of the outputs);
3. all steps in halves that are faster so. Where the answers then agree with FP32's too rarely, steps go back to finer
   numbers, those first that move the answers most for the time they save, until the whole network passes;
4. the Model that is handed out is checked as a whole once more. If no mixture passes, it is FP32.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np

from perwatt.cpu.build import PackedArrays, build
from perwatt.cpu.catalogue import KERNELS
from perwatt.cpu.kernels.storage import has_bf16_products
from perwatt.cpu.team import shared_team
from perwatt.errors import InputError
from perwatt.graph import Graph
from perwatt.machine import this_machine
from perwatt.passes import apply
from perwatt.plan import Allowance, Candidate, Precision, make
from perwatt.plan.precision import LARGEST, SMALLEST_NORMAL, Element
from perwatt.run import precision_file, storage, tuning_file
from perwatt.run.compile import compile, images_at_a_time, read_graph
from perwatt.run.model import Model

HALVES = Allowance(("bf16", "fp16"), ("bf16", "fp16"))
FINER = Allowance(("fp16",), ())
# Other images may be brighter than these: activations must stay this many times below what FP16 can hold.
HEADROOM = 8.0
SENSITIVITY_IMAGES = 16
Progress = Callable[[str], None]
Z = 1.959963984540054  # of a 95 % interval


@dataclass(frozen=True)
class Check:
    """Answers of a mixture against FP32's: images whose first class is the same, and the largest relative error.

    The error of an image is its largest |difference| over its largest |FP32 output|.
    """

    images: int
    agreeing: int
    largest_error: float

    @property
    def share(self) -> float:
        """Top-1 agreement."""
        return self.agreeing / self.images

    @property
    def interval(self) -> tuple[float, float]:
        """95 % of the agreement by Wilson's score (Journal of the American Statistical Association 22, 1927)."""
        n, p = self.images, self.share
        centre, half = p + Z * Z / (2 * n), Z * sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
        scale = 1 + Z * Z / n
        return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


@dataclass(frozen=True)
class Range:
    """What an activation reaches on the images: the largest |number|, and the root mean square of those not zero."""

    tensor: str
    largest: float
    rms: float

    def against(self, element: Element) -> str | None:
        """Return why it must not be stored so, or None."""
        end, begin = LARGEST[element], SMALLEST_NORMAL[element]
        if not np.isfinite(self.largest) or self.largest * HEADROOM > end:
            return f"reaches {self.largest:.3g}; {element} ends at {end:.4g}, of which {HEADROOM:g} times is kept free"
        if 0 < self.rms < begin:
            return f"is {self.rms:.1e} at root mean square; {element}'s normal numbers begin at {begin:.1e}"
        return None


class _Trial:
    """One network on one machine in many precisions: weights packed once, timings shared, answers of FP32 kept."""

    def __init__(self, graph: Graph, images: np.ndarray, threads: int) -> None:
        self.graph, self.images, self.threads = graph, images, threads
        self.rewritten, self.machine = apply(graph), this_machine()
        self.batch = graph.values[graph.inputs[0]].shape[0]
        self._packed: PackedArrays = {}
        self._kept = tuning_file.load(self.machine)
        self.reference = self.answers(Precision())

    def model(self, precision: Precision) -> Model:
        """Return a Model by what is known of times, measuring nothing."""
        laid = self.laid(precision)
        plan = make(
            self.rewritten.name, laid.placement, KERNELS, timings=laid.timings, considered=laid.considered
        )  # fmt: skip
        # Tables in steps' constants depend on how activations are stored: only FP32 throughout recurs.
        packed = {} if storage.halved(laid.placement) else self._packed
        values = self.rewritten.values
        inputs = {name: values[name] for name in self.rewritten.inputs}
        outputs = {name: values[name] for name in self.rewritten.outputs}
        return Model(plan, build(plan, shared_team(self.threads), packed), inputs, outputs)

    def laid(self, precision: Precision) -> storage.Laid:
        """Return the placement that compile would choose, by what is known of times."""
        at_a_time = images_at_a_time(self.rewritten, None)
        return storage.settle(
            self.rewritten, self.machine, self.threads, at_a_time, precision, None,
            lambda placement, considered, _: tuning_file.timings(placement, considered, self._kept),
        )  # fmt: skip

    def answers(self, precision: Precision, most: int | None = None) -> np.ndarray:
        """Return the outputs of a mixture on the first images, float32 [images, values]."""
        return answers(self.model(precision), self.images[:most])

    def check(self, precision: Precision) -> Check:
        """Return how the answers of a mixture compare with FP32's on all images."""
        return compare(self.answers(precision), self.reference)


def answers(model: Model, images: np.ndarray) -> np.ndarray:
    """Return a Model's first output for any number of images, float32 [images, values]."""
    (batch, *_), rows = next(iter(model.inputs.values())).shape, []
    for first in range(0, len(images), batch):
        part = images[first : first + batch]
        full = np.concatenate([part, np.repeat(part[-1:], batch - len(part), axis=0)]) if len(part) < batch else part
        rows.append(model(np.ascontiguousarray(full, np.float32))[: len(part)].reshape(len(part), -1))
    return np.concatenate(rows)


def compare(got: np.ndarray, wanted: np.ndarray) -> Check:
    """Return how two sets of answers compare; an answer that is no number agrees with nothing."""
    scale = np.maximum(abs(wanted).max(axis=1), np.finfo(np.float32).tiny)
    with np.errstate(invalid="ignore"):
        error = abs(got - wanted).max(axis=1) / scale
    same = (got.argmax(axis=1) == wanted.argmax(axis=1)) & np.isfinite(got).all(axis=1)
    return Check(len(wanted), int(same.sum()), float(np.nan_to_num(error, nan=np.inf).max(initial=0.0)))


def ranges(graph: Graph, images: np.ndarray, threads: int) -> list[Range]:
    """Return the range of every activation of a network on images, computed in FP32."""
    rewritten = apply(graph)
    inside = tuple(
        name
        for node in rewritten.nodes
        for name in node.outputs
        if name and rewritten.values[name].dtype == np.float32 and len(rewritten.values[name].shape) in (2, 4)
    )
    shown = replace(rewritten, outputs=tuple(dict.fromkeys((*inside, *rewritten.outputs))))
    model = compile(shown, threads=threads, tune="estimate")
    largest: dict[str, float] = {}
    squares: dict[str, list[float]] = {}
    name, value = next(iter(model.inputs.items()))
    for first in range(0, len(images), value.shape[0]):
        part = images[first : first + value.shape[0]]
        if len(part) < value.shape[0]:
            part = np.concatenate([part, np.repeat(part[-1:], value.shape[0] - len(part), axis=0)])
        for tensor, array in model.run({name: np.ascontiguousarray(part, np.float32)}).items():
            size = abs(array)
            top = float(size.max(initial=0.0))
            largest[tensor] = max(largest.get(tensor, 0.0), top if np.isfinite(top) else float("inf"))
            total, count = squares.setdefault(tensor, [0.0, 0.0])
            squares[tensor] = [total + float(np.square(size, dtype=np.float64).sum()), count + np.count_nonzero(size)]
    return [Range(t, largest[t], sqrt(squares[t][0] / squares[t][1]) if squares[t][1] else 0.0) for t in inside]


def tune_precision(
    source: str | Path | bytes | Graph, batch: int | None, images: np.ndarray, *, agreement: float = 0.999,
    threads: int | None = None, progress: Progress | None = None, **settings: Any,
) -> tuple[Model, dict[str, Any]]:  # fmt: skip
    """Return (a Model whose answers agree with FP32's on at least this share of the images, the evidence as JSON).

    images: float32 [n, ...], preprocessed as the network wants them. `settings` are those of compile. The evidence is
    kept, so that compile(precision="auto") finds it. Raises InputError for images that do not fit and an agreement
    outside 0 to 1, and what compile raises.
    """
    graph = read_graph(source, batch)
    shape = graph.values[graph.inputs[0]].shape
    if images.ndim != len(shape) or images.shape[1:] != shape[1:] or not len(images):
        raise InputError(f"data: expected images of shape {shape[1:]}, got an array of shape {images.shape}")
    if not 0 < agreement <= 1:
        raise InputError(f"agreement: expected a share above 0 and at most 1, got {agreement}")
    tell = progress or (lambda text: None)
    count = threads if threads is not None else this_machine().cores
    # The halves are to be chosen by time, so their times are measured first.
    tell("timing FP32 and halves")
    compile(graph, threads=threads, precision=Precision(HALVES, storage=_storages()[0]), **settings)
    tell("ranges of activations")
    spans = ranges(graph, images[:SENSITIVITY_IMAGES], count)
    trial = _Trial(graph, images, count)
    refused = {element: _refused(spans, element) for element in _storages()}
    sensitive = _sensitivities(trial, refused, tell)
    states = _states(sensitive, refused)
    first, checks = 0, {}

    def passes(number: int) -> bool:
        tell(f"checking mixture {number + 1} of {len(states)}")
        checks[number] = trial.check(states[number][0])
        return checks[number].share >= agreement

    if not passes(0):
        first, last = 1, len(states) - 1
        while first < last:
            middle = (first + last) // 2
            first, last = (first, middle) if passes(middle) else (middle + 1, last)
    while True:
        precision, finer = states[first]
        tell("building")
        model = compile(graph, threads=threads, precision=precision, **settings)
        found = compare(answers(model, images), trial.reference)
        if found.share >= agreement or first == len(states) - 1:
            break
        first += 1
    evidence = _evidence(trial, model, precision, found, agreement, sensitive, finer, refused, checks[0])
    precision_file.keep(graph, evidence)
    return model, evidence


Refused = Mapping[Element, Mapping[str, str]]


def _storages() -> tuple[Element, ...]:
    """Return how activations may be stored, the cheapest first: BF16 products take BF16 as it is."""
    return ("bf16", "fp16") if has_bf16_products(this_machine()) else ("fp16",)


def _refused(spans: list[Range], element: Element) -> dict[str, str]:
    """Return the activations that must not be stored so, with the reason."""
    return {span.tensor: reason for span in spans if (reason := span.against(element)) is not None}


@dataclass(frozen=True)
class Sensitivity:
    """What a step in halves alone does: relative RMS of the change of the answers, and the seconds it saves.

    The activations of the whole network, stored in halves, count as a step whose name is "" and the element's.
    """

    step: str
    error: float
    saved_s: float


def _sensitivities(trial: _Trial, refused: Refused, tell: Progress) -> list[Sensitivity]:
    """Return the sensitivity of every step that is faster in halves, and of activations in halves."""
    everything = Precision(HALVES)
    laid = trial.laid(everything)
    plan = make(
        trial.rewritten.name, laid.placement, KERNELS, timings=laid.timings, considered=laid.considered
    )  # fmt: skip
    images = min(len(trial.images), SENSITIVITY_IMAGES)
    found = []
    mixtures: list[tuple[str, float, Precision]] = [
        (f" {element}", 0.0, Precision(storage=element, kept=frozenset(refused[element]))) for element in refused
    ]
    for planned, (candidates, _) in zip(plan.steps, laid.considered, strict=True):
        if planned.choice.weights != "fp32":
            alone = Precision(steps={planned.step.name: HALVES})
            mixtures.append((planned.step.name, _saved(planned.choice, candidates), alone))
    for number, (name, saved_s, alone) in enumerate(mixtures, 1):
        tell(f"step {number} of {len(mixtures)} in halves alone")
        moved = trial.answers(alone, images).astype(np.float64) - trial.reference[:images]
        size = np.sqrt(np.mean(np.square(trial.reference[:images], dtype=np.float64)))
        error = float(np.sqrt(np.mean(moved**2)) / max(size, 1e-300))
        found.append(Sensitivity(name, error if np.isfinite(error) else float("inf"), saved_s))
    return found


def _saved(choice: Candidate, candidates: list[Candidate]) -> float:
    exact = [c.seconds for c in candidates if c.weights == c.arithmetic == "fp32"]
    return max(min(exact, default=choice.seconds) - choice.seconds, 0.0)


def _states(sensitive: list[Sensitivity], refused: Refused) -> list[tuple[Precision, dict[str, str]]]:
    """Return mixtures from the fastest to FP32, each with what was made finer and to what.

    Activations go from BF16 to FP16, steps from halves to weights in FP16 with FP32 arithmetic, then activations to
    FP32, then weights to FP32; among steps those first that move the answers most for the time they save.
    """
    steps = [s for s in sensitive if not s.step.startswith(" ")]
    steps.sort(key=lambda s: -(s.error**2) / max(s.saved_s, 1e-9))
    names = [s.step for s in steps]
    states: list[tuple[Precision, dict[str, str]]] = []

    def add(finer: int, exact: int, activations: Element) -> None:
        allowed = dict.fromkeys(names[finer:], HALVES) | dict.fromkeys(names[exact:finer], FINER)
        notes = dict.fromkeys(names[:exact], "fp32") | dict.fromkeys(names[exact:finer], "fp16 weights")
        kept = frozenset(refused.get(activations, {}))
        states.append((Precision(steps=allowed, storage=activations, kept=kept), notes))

    *coarse, finest = refused
    for element in coarse:
        add(0, 0, element)
    for number in range(len(names) + 1):
        add(number, 0, finest)
    for number in range(len(names) + 1):
        add(len(names), number, "fp32")
    return states


def _evidence(
    trial: _Trial, model: Model, precision: Precision, found: Check, agreement: float, sensitive: list[Sensitivity],
    finer: Mapping[str, str], refused: Refused, fastest: Check,
) -> dict[str, Any]:  # fmt: skip
    errors = {s.step: s.error for s in sensitive}
    steps = []
    for planned in model.plan.steps:
        choice = planned.choice
        if not choice.error:
            continue
        name = planned.step.name
        why = f"kept to {finer[name]}: alone it moves the answers by {errors[name]:.1e}" if name in finer else None
        steps.append({
            "step": name, "weights": choice.weights, "arithmetic": choice.arithmetic,
            "algorithm": choice.algorithm, "expected_error": choice.error,
            "answers_moved": _number(errors.get(name)), "why": why,
        })  # fmt: skip
    low, high = found.interval
    return {
        **precision_file.to_json(precision),
        "network": trial.graph.name,
        "images": found.images,
        "agreement": {"asked": agreement, "agreeing": found.agreeing, "share": found.share, "interval_95": [low, high]},
        "largest_error": _number(found.largest_error),
        "fastest_mixture": {"share": fastest.share, "largest_error": _number(fastest.largest_error)},
        "activations_moved": {element: _number(errors.get(f" {element}")) for element in refused},
        "range": [
            {"tensor": name, "element": element, "why": f"{name} {reason}"}
            for element, reasons in refused.items()
            for name, reason in reasons.items()
        ],
        "steps": steps,
        "activations": _counts([t.element for planned in model.plan.steps for t in planned.step.outputs]),
        "is_fp32": all(
            planned.choice.weights == "fp32" and not planned.step.in_halves for planned in model.plan.steps
        ),
    }  # fmt: skip


def _counts(elements: list[Element]) -> dict[str, int]:
    return {element: elements.count(element) for element in dict.fromkeys(elements)}


def _number(value: float | None) -> float | None:
    """Return a number as JSON has it: what is not finite is not known."""
    return value if value is not None and np.isfinite(value) else None


def summary(evidence: Mapping[str, Any]) -> list[str]:
    """Return the evidence as lines of text for a person."""
    agreement = evidence["agreement"]
    low, high = agreement["interval_95"]
    lines = [
        f"top-1 agrees with FP32 on {agreement['agreeing']} of {evidence['images']} images "
        f"({100 * agreement['share']:.2f} %, 95 % interval {100 * low:.2f} to {100 * high:.2f} %; "
        f"asked for {100 * agreement['asked']:g} %), largest error {evidence['largest_error']:.1e}",
        "activations between steps: " + ", ".join(f"{n} in {e}" for e, n in evidence["activations"].items()),
    ]
    lines += [f"not stored in {each['element']}: {each['why']}" for each in evidence["range"]]
    lines += [f"{step['step']} {step['why']}" for step in evidence["steps"] if step["why"]]
    if evidence["is_fp32"]:
        tried = evidence["fastest_mixture"]["share"]
        why = "no mixture kept the agreement" if tried < agreement["asked"] else "nothing is faster in halves here"
        lines.append(f"FP32 throughout: {why}; all in halves agreed on {100 * tried:.2f} %")
    counts: dict[str, int] = {}
    for step in evidence["steps"]:
        kind = f"weights {step['weights']}, products {step['arithmetic']}"
        counts[kind] = counts.get(kind, 0) + 1
    lines.append("; ".join(f"{count} steps: {kind}" for kind, count in sorted(counts.items(), key=lambda c: -c[1])))
    return lines
