"""An evaluation on a terminal and for programs: accuracies with their intervals, the classes, what is mixed up."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from perwatt.lab.evaluation.figures import is_good, whole
from perwatt.lab.evaluation.record import Confusion, EvaluationRecord, Figures, Row
from perwatt.lab.notation import ABSENT, error_text
from perwatt.lab.record import Estimate, unpack

SHOWN_CLASSES = 40
SHOWN_PAIRS = 5
SHOWN_MISTAKES = 3


def show(record: EvaluationRecord, to: Console, *, record_path: Path, pictures: Sequence[Path]) -> None:
    """Print the table of engines, the classes of the best known row, and where everything lies."""
    data = record.data
    images = data.labels.shape[0]
    left_out = f", {len(data.skipped)} broken ones left out" if data.skipped else ""
    to.print(
        f"{record.package.name} {record.package.version} on {data.name}, {data.split}: {images:,} images of "
        f"{len(data.classes)} classes{left_out}\n",
        markup=False,
        highlight=False,
    )
    to.print(_engines(record))
    to.print()
    for line in _lines(record):
        to.print(line, markup=False, soft_wrap=True, highlight=False)
    main = main_row(record)
    if main is not None and main.figures is not None:
        to.print()
        _show_classes(record, main.figures, to)
    for path in pictures:
        to.print(f" picture  {path}", markup=False, soft_wrap=True, highlight=False)
    to.print(f" record   {record_path}", markup=False, soft_wrap=True, highlight=False)


def main_row(record: EvaluationRecord) -> Row | None:
    """Return the row whose classes and mistakes are shown: the first that was asked for and answered."""
    asked = [row for row in record.rows if row.engine != "reference" and is_good(row)]
    return next(iter([*asked, *filter(is_good, record.rows)]), None)


def as_json(record: EvaluationRecord, record_path: Path, pictures: Sequence[Path]) -> dict[str, Any]:
    """Return what programs want to know; the answers themselves are in the Record."""
    return {
        "package": record.package.model_dump(mode="json", include={"name", "version", "model_sha256"}),
        "data": {
            **record.data.model_dump(mode="json", include={"name", "form", "split", "fingerprint", "skipped"}),
            "images": record.data.labels.shape[0],
            "classes": list(record.data.classes),
        },
        "rows": [
            {
                **row.model_dump(mode="json", exclude={"answers"}),
                "reference": place == record.reference,
                "mistakes": [_mistake(record, row, each) for each in (row.figures.mistakes if row.figures else ())],
            }
            for place, row in enumerate(record.rows)
        ],
        "notes": list(record.notes),
        "record": str(record_path),
        "pictures": list(map(str, pictures)),
    }


def share_text(estimate: Estimate | None, signed: bool = False) -> str:
    """Return '97.2 % (95.0–98.5)', as exact as the interval deserves; 100 % only when nothing is missing."""
    if estimate is None:
        return ABSENT
    low, high = estimate.low, estimate.high
    width = 1.0 if low is None or high is None else high - low
    places = 2 if width < 0.01 else 1
    sign = "+" if signed else ""
    middle = f"{100 * estimate.value:{sign}.{places}f} %"
    if middle == "100.0 %" and estimate.value < 1:
        middle = f"{math.floor(1e5 * estimate.value) / 1e3:.3f} %"
    if low is None or high is None:
        return middle
    return f"{middle} ({100 * low:{sign}.{places}f}{' to ' if signed else '–'}{100 * high:{sign}.{places}f})"


def _plain(estimate: Estimate | None) -> str:
    return ABSENT if estimate is None else share_text(estimate.model_copy(update={"low": None, "high": None}))


def mixed_up(figures: Figures) -> list[Confusion]:
    """Return the pairs of different classes by how often they were taken for each other."""
    return sorted((each for each in figures.confusions if each.label != each.said), key=lambda each: -each.images)


def _engines(record: EvaluationRecord) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("engine")
    table.add_column("precision")
    for heading in ("top-1", "top-5", "ECE", "agreement", "error"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("against reference", no_wrap=True)
    for place, row in enumerate(record.rows):
        found = row.figures
        if found is None:
            cells = [ABSENT] * 5 + [row.status]
        else:
            own = place == record.reference
            cells = [
                share_text(found.top1),
                _plain(found.top5),
                f"{found.ece:.3f}",
                ABSENT if own else _plain(found.agreement),
                ABSENT if own else error_text(found.largest_error),
                "the reference" if own else (found.verdict or ABSENT),
            ]
        table.add_row(row.engine, row.precision.upper(), *cells, style="dim" if found is None else "")
    return table


def _lines(record: EvaluationRecord) -> Iterator[str]:
    for row in record.rows:
        name = f"{row.engine} {row.precision.upper()}"
        if row.status != "ok":
            yield f"{name}: {row.status}: {row.reason}"
        elif row.figures and row.figures.difference is not None:
            found = row.figures
            seen = (
                f"top-1 {share_text(found.difference, signed=True)}, the same class for {share_text(found.agreement)}"
            )
            if found.verdict == "no difference seen" and found.resolution is not None:
                seen += f"; a loss of {100 * found.resolution:.2g} points would have shown"
            yield f"{name}: {seen}"
    if not record.probabilities:
        yield "the outputs are no probabilities: their softmax is taken for the confidences"
    yield from record.notes
    for name, reason in record.data.skipped.items():
        yield f"skipped  {name}: {reason}"


def _show_classes(record: EvaluationRecord, figures: Figures, to: Console) -> None:
    names = record.data.classes
    places = [place for place, each in enumerate(figures.classes) if each.images or each.said]
    worst = sorted(places, key=lambda place: _recall(figures, place))[:SHOWN_CLASSES]
    listed = places if len(places) <= SHOWN_CLASSES else worst
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("class" if listed is places else "class, worst first")
    for heading in ("images", "precision", "recall"):
        table.add_column(heading, justify="right")
    table.add_column("most often taken for")
    for place in listed:
        each = figures.classes[place]
        wrong = [pair for pair in mixed_up(figures) if pair.label == place][:2]
        table.add_row(
            names[place],
            f"{each.images:,}",
            share_text(each.precision),
            share_text(each.recall),
            ", ".join(f"{names[pair.said]} ({pair.images})" for pair in wrong),
        )
    to.print(table)
    if len(listed) < len(places):
        to.print(f"and {len(places) - len(listed)} classes more (--json has them all)")
    to.print()
    row = main_row(record)
    for place in figures.mistakes[:SHOWN_MISTAKES]:
        assert row is not None
        found = _mistake(record, row, place)
        line = f"sure and wrong: {found['name']}, a {found['label']}, was said to be {found['said']}"
        to.print(Text(f"{line} ({100 * found['confidence']:.1f} %)"), soft_wrap=True)
    to.print()


def _recall(figures: Figures, place: int) -> float:
    recall = figures.classes[place].recall
    return 2.0 if recall is None else recall.value


def _mistake(record: EvaluationRecord, row: Row, place: int) -> dict[str, Any]:
    assert row.answers is not None
    names = record.data.classes
    return {
        "name": record.data.names.get(str(place), str(place)),
        "place": place,
        "label": names[int(whole(record.data.labels)[place])],
        "said": names[int(whole(row.answers.said)[place])],
        "confidence": float(unpack(row.answers.confidence)[place]),
        "label_confidence": float(unpack(row.answers.label_confidence)[place]),
    }
