"""What the commands evaluate, check and report do with evaluations; the command line only passes on what was asked."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from perwatt.errors import InputError
from perwatt.lab.evaluation import terminal
from perwatt.lab.evaluation.check import check, require_valid
from perwatt.lab.evaluation.evaluate import EvaluationRequest, evaluate
from perwatt.lab.evaluation.record import EvaluationRecord
from perwatt.lab.evaluation.record_file import load, save
from perwatt.lab.terminal import console
from perwatt.package.preprocessing import Photo


def run_evaluation(request: EvaluationRequest, *, as_json: bool) -> EvaluationRecord:
    """Evaluate, keep the Record and its pictures, print it, and return it."""
    errors = console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(24), MofNCompleteColumn())
    with Progress(
        *columns, TimeRemainingColumn(), console=errors, transient=True, disable=not errors.is_terminal
    ) as bar:
        task = bar.add_task("reading", total=None)

        def tell(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=what or "next")

        found = evaluate(request, tell)
    path = save(found.record, request.out)
    _print(found.record, path, lambda place: found.split.photo(int(found.places[place])), as_json=as_json)
    return found.record


def answered(record: EvaluationRecord) -> bool:
    """Return whether every engine that was asked for gave answers that may be believed."""
    return all(row.status == "ok" for row in record.rows if row.engine != "reference")


def check_file(path: Path) -> list[str]:
    """Print VALID, or INVALID with each place that differs, and return the faults."""
    record = load(path)
    faults = [str(fault) for fault in check(record)]
    for fault in faults:
        print(f"INVALID  {fault}")
    if not faults:
        print(f"VALID  {path}: every figure of {len(record.rows)} rows follows from their answers")
    return faults


def report_file(path: Path, *, as_json: bool) -> None:
    """Draw the pictures of a Record beside it and print its tables. Raises RecordError when it is not valid."""
    record = load(path)
    require_valid(record, str(path))
    _print(record, path, None, as_json=as_json)


def _print(record: EvaluationRecord, path: Path, photo: Callable[[int], Photo] | None, *, as_json: bool) -> None:
    written: tuple[Path, ...] = ()
    try:
        from perwatt.lab.evaluation import pictures
    except ImportError:
        missing = InputError("pictures: expected matplotlib, it is not installed; pip install 'perwatt[bench]'")
        print(f"perwatt: {missing}", file=sys.stderr)
    else:
        written = pictures.write(record, path, photo)
    if as_json:
        print(json.dumps(terminal.as_json(record, path, written), indent=2, allow_nan=False))
    else:
        terminal.show(record, console(), record_path=path, pictures=written)
