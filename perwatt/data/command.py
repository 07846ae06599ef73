"""perwatt data: the examination of a data set, for a terminal and for programs."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from perwatt.data.contact_sheet import contact_sheet
from perwatt.data.dataset import DataSet
from perwatt.data.examination import Duplicate, Examination, examination
from perwatt.data.look import Seen, look
from perwatt.data.source import open_data
from perwatt.errors import OutputError

_SHOWN_CLASSES = 40
_SHOWN_FAULTS = 20


def show_data(source: str, picture: Path | None, to: Console, errors: Console, *, as_json: bool) -> bool:
    """Print what a data set holds, write its contact sheet to `picture`; return whether nothing must be mended.

    Raises DataError when it is no data set, OutputError when the picture cannot be written.
    """
    data = open_data(source)
    found = examination(data, look_shown(data, errors))
    if picture is not None:
        _write(picture, contact_sheet(data, next(iter(data.splits)), found.broken))
    if as_json:
        print(json.dumps(as_object(found, picture), indent=2))
    else:
        _show(found, to)
        if picture is not None:
            to.print(f"\ncontact sheet: {picture}", markup=False, soft_wrap=True)
    return not found.faults


def look_shown(data: DataSet, errors: Console) -> dict[str, tuple[Seen, ...]]:
    """Look at every picture with a moving line on a terminal."""
    columns = (TextColumn("looking at pictures"), BarColumn(24), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task("", total=sum(len(split) for split in data.splits.values()))
        return look(data, lambda done, total: bar.update(task, completed=done, total=total))


def as_object(found: Examination, picture: Path | None) -> dict[str, Any]:
    """Return an Examination as plain values for JSON."""
    data = found.data
    splits = {}
    for name, split in data.splits.items():
        sizes = found.sizes[name]
        splits[name] = {
            "pictures": len(split),
            "per_class": dict(zip(data.classes, found.counts[name], strict=True)),
            "width": None if sizes is None else dict(zip(("least", "median", "most"), sizes.width, strict=True)),
            "height": None if sizes is None else dict(zip(("least", "median", "most"), sizes.height, strict=True)),
            "different_sizes": None if sizes is None else sizes.different,
        }
    return {
        "name": data.name,
        "form": data.form,
        "source": data.source,
        "classes": list(data.classes),
        "splits": splits,
        "broken": [
            {"split": name, "picture": data.splits[name].name(place), "reason": reason}
            for (name, place), reason in found.broken.items()
        ],
        "duplicates": [
            [
                {"split": split, "picture": data.splits[split].name(place), "class": name}
                for split, place, name in each.members
            ]
            for each in found.duplicates
        ],
        "faults": list(found.faults),
        "contact_sheet": None if picture is None else str(picture),
    }


def _show(found: Examination, to: Console) -> None:
    data = found.data
    to.print(f"{data.name} ({data.form}): {len(data.classes)} classes\n", markup=False)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for heading in ("split", "pictures", "least of a class", "most of a class", "width", "height", "sizes"):
        table.add_column(heading, justify="left" if heading == "split" else "right")
    for name, split in data.splits.items():
        counts, sizes = found.counts[name], found.sizes[name]
        spans = ("–", "–", "–") if sizes is None else (_span(sizes.width), _span(sizes.height), f"{sizes.different:,}")
        table.add_row(name, f"{len(split):,}", f"{min(counts):,}", f"{max(counts):,}", *spans)
    to.print(table)
    to.print()
    _show_balance(found, to)
    for (name, _), reason in list(found.broken.items())[:_SHOWN_FAULTS]:
        to.print(f"broken     {name}: {reason}", markup=False, soft_wrap=True)
    _more(len(found.broken), "broken pictures", to)
    for kind, members in (
        ("in 2 splits", found.across),
        ("in 2 classes", found.contradicting),
        ("twice", [each for each in found.duplicates if len(each.splits) == len(each.classes) == 1]),
    ):
        for each in list(members)[:_SHOWN_FAULTS]:
            to.print(f"{kind:12} {_told(data, each)}", markup=False, soft_wrap=True)
        _more(len(members), kind, to)
    lines = found.faults or ("nothing to mend",)
    to.print("\n".join(lines), markup=False, soft_wrap=True)


def _show_balance(found: Examination, to: Console) -> None:
    data = found.data
    most = max((count for counts in found.counts.values() for count in counts), default=1) or 1
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("class")
    for name in data.splits:
        table.add_column(name, justify="right")
    table.add_column("")
    for place, label in list(enumerate(data.classes))[:_SHOWN_CLASSES]:
        counts = [found.counts[name][place] for name in data.splits]
        table.add_row(label, *(f"{count:,}" for count in counts), "█" * round(24 * counts[0] / most))
    to.print(table)
    if len(data.classes) > _SHOWN_CLASSES:
        to.print(f"and {len(data.classes) - _SHOWN_CLASSES} classes more (--json has them all)")
    to.print()


def _told(data: DataSet, each: Duplicate) -> str:
    return " = ".join(f"{data.splits[split].name(place)} ({split}, {name})" for split, place, name in each.members[:4])


def _more(count: int, what: str, to: Console) -> None:
    if count > _SHOWN_FAULTS:
        to.print(f"and {count - _SHOWN_FAULTS} more {what} (--json has them all)")


def _span(sides: tuple[int, int, int]) -> str:
    least, median, most = sides
    return f"{least}" if least == most else f"{least}–{most} ({median})"


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise OutputError(
            f"{path}: expected a place to write a picture, got {error.strerror}; choose another"
        ) from error
