"""Check an evaluation's Record: its answers must be possible, and every figure must follow from them."""

from collections.abc import Iterator

import numpy as np

from perwatt.errors import RecordError
from perwatt.lab.check import Finding, differences
from perwatt.lab.evaluation import figures
from perwatt.lab.evaluation.figures import whole
from perwatt.lab.evaluation.record import EvaluationRecord, Row
from perwatt.lab.record import Array, unpack


def check(record: EvaluationRecord) -> list[Finding]:
    """Return every place where the Record contradicts its raw parts; an empty list means VALID."""
    found = [*_raw(record)]
    if found:
        return found
    return [*differences("", record.model_dump(), figures.complete(record).model_dump())]


def require_valid(record: EvaluationRecord, name: str) -> None:
    """Raise RecordError with the first place that differs; `name` says which Record."""
    found = check(record)
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise RecordError(f"{name}: INVALID: {found[0]}{more}; take the Record from its source again")


def _raw(record: EvaluationRecord) -> Iterator[Finding]:
    classes = len(record.data.classes)
    labels = whole(record.data.labels)
    if labels.ndim != 1 or not len(labels) or labels.min() < 0 or labels.max() >= classes:
        yield Finding("data.labels", "others", f"places in {classes} classes")
        return
    names = [(row.engine, row.precision) for row in record.rows]
    if len(set(names)) != len(names):
        yield Finding("rows", "two of one engine and precision", "one each")
    if record.reference is not None and not 0 <= record.reference < len(record.rows):
        yield Finding("reference", str(record.reference), f"a place in {len(record.rows)} rows")
    for place, row in enumerate(record.rows):
        yield from _raw_row(f"rows[{place}]", row, labels, classes)


def _raw_row(where: str, row: Row, labels: np.ndarray, classes: int) -> Iterator[Finding]:
    if (row.reason is None) != (row.status == "ok"):
        yield Finding(f"{where}.reason", str(row.reason), "a reason for every status but ok")
    if row.answers is None:
        if row.status == "ok":
            yield Finding(f"{where}.answers", "none", "answers of a row that is ok")
        return
    count = len(labels)
    kept: dict[str, Array | None] = {name: getattr(row.answers, name) for name in type(row.answers).model_fields}
    for name, array in kept.items():
        if array is not None and (array.shape != (count,) or not np.isfinite(unpack(array)).all()):
            yield Finding(f"{where}.answers.{name}", f"shape {array.shape}", f"{count} finite numbers, one an image")
            return
    said, rank = whole(row.answers.said), whole(row.answers.rank)
    confidence, own = unpack(row.answers.confidence), unpack(row.answers.label_confidence)
    if said.min() < 0 or said.max() >= classes or rank.min() < 0 or rank.max() >= classes:
        yield Finding(f"{where}.answers", "classes beyond the last", f"places in {classes} classes")
    if np.any((rank == 0) != (said == labels)):
        yield Finding(f"{where}.answers.rank", "first without being said", "rank 0 where the label is said")
    if confidence.min() < 0 or max(confidence.max(), own.max()) > 1 + 1e-3 or np.any(own > confidence):
        yield Finding(f"{where}.answers.confidence", "no probabilities", "0 to 1, the said class's the greatest")
