"""The figures of an evaluation, from its answers: accuracy, per-class precision and recall, confusion, calibration."""

import hashlib
import json

import numpy as np

from perwatt.lab.evaluation.proportions import paired_difference, wilson
from perwatt.lab.evaluation.record import (
    Answers,
    Bin,
    ClassFigures,
    Confusion,
    EvaluationRecord,
    Figures,
    Row,
    Verdict,
)
from perwatt.lab.record import Array, Estimate, unpack

BINS = 15
MISTAKES = 24
TOP = 5


def complete(record: EvaluationRecord) -> EvaluationRecord:
    """Return the Record with every figure computed from its raw parts, and its digest. Raises RecordError."""
    labels = whole(record.data.labels)
    reference = None if record.reference is None else record.rows[record.reference].answers
    rows = []
    for place, row in enumerate(record.rows):
        other = None if place == record.reference else reference
        figures = None if row.answers is None else figures_of(row.answers, labels, len(record.data.classes), other)
        rows.append(row.model_copy(update={"figures": figures}))
    made = record.model_copy(update={"rows": tuple(rows), "digest": ""})
    return made.model_copy(update={"digest": digest(made)})


def digest(record: EvaluationRecord) -> str:
    """Return the SHA-256 of all fields but the digest."""
    fields = record.model_dump(mode="json", exclude={"digest"})
    return hashlib.sha256(json.dumps(fields, sort_keys=True, allow_nan=False).encode()).hexdigest()


def whole(array: Array) -> np.ndarray:
    """Return an Array of whole numbers as int64. Raises RecordError."""
    numbers: np.ndarray = np.rint(unpack(array)).astype(np.int64)
    return numbers


def figures_of(answers: Answers, labels: np.ndarray, classes: int, reference: Answers | None) -> Figures:
    """Return the figures of one row's answers; `reference` are the answers it is held against, None for none."""
    said, rank = whole(answers.said), whole(answers.rank)
    confidence = unpack(answers.confidence).astype(np.float64)
    right = said == labels
    count = len(labels)
    top1 = wilson(int(right.sum()), count)
    assert top1 is not None
    bins = _bins(confidence, right)
    wrong = np.flatnonzero(~right)
    pairs, images = np.unique(np.stack([labels, said], 1), axis=0, return_counts=True)
    per_class = tuple(_class(place, labels, said) for place in range(classes))
    errors = None if answers.errors is None else unpack(answers.errors).astype(np.float64)
    agreement = difference = None
    if reference is not None:
        theirs = whole(reference.said)
        agreement = wilson(int((theirs == said).sum()), count)
        before = theirs == labels
        cells = (before & right, before & ~right, right & ~before, ~before & ~right)
        difference = paired_difference(*(int(cell.sum()) for cell in cells))
    return Figures(
        images=count,
        top1=top1,
        top5=wilson(int((rank < TOP).sum()), count) if classes > TOP else None,
        mean_confidence=float(confidence.mean()),
        ece=sum(abs((each.confidence or 0.0) * each.images - each.right) for each in bins) / count,
        bins=bins,
        classes=per_class,
        macro_precision=_mean([each.precision for each in per_class]),
        macro_recall=_mean([each.recall for each in per_class]),
        confusions=tuple(
            Confusion(label=int(label), said=int(other), images=int(number))
            for (label, other), number in zip(pairs, images, strict=True)
        ),
        mistakes=tuple(int(place) for place in wrong[np.argsort(-confidence[wrong], kind="stable")][:MISTAKES]),
        agreement=agreement,
        difference=difference,
        verdict=None if difference is None else _verdict(difference),
        resolution=None if difference is None or difference.low is None else difference.value - difference.low,
        median_error=None if errors is None else float(np.median(errors)),
        largest_error=None if errors is None else float(errors.max()),
    )


def ranked(outputs: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return, per row of outputs [images, classes], the highest class and the number of classes before the label's."""
    own = outputs[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(outputs.shape[1])[None] < labels[:, None]
    rank = ((outputs > own) | ((outputs == own) & earlier)).sum(1)
    return outputs.argmax(1), rank


def is_good(row: Row) -> bool:
    """Return whether a row has figures that may be believed."""
    return row.status == "ok" and row.figures is not None


def _bins(confidence: np.ndarray, right: np.ndarray) -> tuple[Bin, ...]:
    places = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    found = []
    for place in range(BINS):
        inside = places == place
        images = int(inside.sum())
        found.append(
            Bin(
                above=place / BINS,
                images=images,
                confidence=float(confidence[inside].mean()) if images else None,
                right=int(right[inside].sum()),
            )
        )
    return tuple(found)


def _class(place: int, labels: np.ndarray, said: np.ndarray) -> ClassFigures:
    images, told = int((labels == place).sum()), int((said == place).sum())
    right = int(((labels == place) & (said == place)).sum())
    return ClassFigures(
        images=images, said=told, right=right, precision=wilson(right, told), recall=wilson(right, images)
    )


def _mean(estimates: list[Estimate | None]) -> float | None:
    values = [each.value for each in estimates if each is not None]
    return sum(values) / len(values) if values else None


def _verdict(difference: Estimate) -> Verdict:
    if difference.high is not None and difference.high < 0:
        return "loss"
    if difference.low is not None and difference.low > 0:
        return "gain"
    return "no difference seen"
