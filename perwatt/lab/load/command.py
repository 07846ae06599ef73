"""What the commands loadtest, check and report do with load tests; the command line only passes on what was asked."""

import json
import signal
import sys
from pathlib import Path

from perwatt.errors import InputError
from perwatt.lab.load import terminal
from perwatt.lab.load.check import check, require_valid
from perwatt.lab.load.loadtest import LoadRequest, run_loadtest
from perwatt.lab.load.record import LoadRecord
from perwatt.lab.load.record_file import load, save
from perwatt.lab.progress import Display
from perwatt.lab.terminal import console


def loadtest(request: LoadRequest, *, as_json: bool) -> LoadRecord:
    """Do a load test, keep its Record and pictures, print it, and return it."""
    # A polite end from outside keeps what was measured, as Ctrl-C does.
    before = signal.signal(signal.SIGTERM, lambda number, frame: signal.raise_signal(signal.SIGINT))
    try:
        with Display(console(stderr=True)) as display:
            record = run_loadtest(request, display)
    finally:
        signal.signal(signal.SIGTERM, before)
    _print(record, save(record, request.out), as_json=as_json)
    return record


def shown(arguments: list[str]) -> tuple[str, ...]:
    """Return the command line as a Record keeps it: without the token."""
    hidden = [
        "--token=..." if word.startswith("--token=") else "..." if before == "--token" else word
        for before, word in zip(["", *arguments], arguments, strict=False)
    ]
    return ("perwatt", *hidden)


def is_fault(record: LoadRecord) -> bool:
    """Return whether a load test found a wrong answer, a limit that was not kept, or may conclude nothing."""
    wrong = any(run.figures.outcomes.get(name) for run in record.runs for name in ("wrong", "stranger"))
    if record.searches:
        return wrong or any(search.held is None for search in record.searches)
    last = record.runs[-1].figures if record.runs else None
    return wrong or last is None or not last.kept_up or last.holds is False


def check_file(path: Path) -> list[str]:
    """Print VALID, or INVALID with each place that differs, and return the faults."""
    record = load(path)
    faults = [str(fault) for fault in check(record)]
    for fault in faults:
        print(f"INVALID  {fault}")
    if not faults:
        partial = f"; partial: {record.partial_reason}" if record.partial else ""
        print(f"VALID  {path}: every figure of {len(record.runs)} runs follows from its raw samples{partial}")
    return faults


def report_file(path: Path, *, as_json: bool) -> None:
    """Draw the pictures of a Record beside it and print its table. Raises RecordError when it is not valid."""
    record = load(path)
    require_valid(record, str(path))
    _print(record, path, as_json=as_json)


def _print(record: LoadRecord, path: Path, *, as_json: bool) -> None:
    written: tuple[Path, ...] = ()
    try:
        from perwatt.lab.load import pictures
    except ImportError:
        missing = InputError("pictures: expected matplotlib, it is not installed; pip install 'perwatt[bench]'")
        print(f"perwatt: {missing}", file=sys.stderr)
    else:
        written = pictures.write(record, path)
    if as_json:
        print(json.dumps(terminal.as_json(record, path, written), indent=2, allow_nan=False))
    else:
        terminal.show(record, console(), record_path=path, pictures=written)
