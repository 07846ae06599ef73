"""perwatt loadtest: ask a server for a while, in the open or in a loop, or search the highest rate that it holds."""

import os
from dataclasses import dataclass
from pathlib import Path

from perwatt.errors import InputError
from perwatt.lab import record_file
from perwatt.lab.bench import Progress
from perwatt.lab.load.answers import TOLERANCE
from perwatt.lab.load.record import LoadRecord
from perwatt.lab.load.runs import Bench, Report, Settings, asked_alone, closed_run, open_run
from perwatt.lab.load.search import find_max
from perwatt.lab.load.target import Asking, address, prepare
from perwatt.lab.photographs import find_photographs


@dataclass(frozen=True)
class LoadRequest:
    """What to do to which server; times in seconds.

    `rate` requests/s arrive for `seconds` (open loop), or `concurrency` requests are kept under way (closed loop), or
    with `find_max` the highest rate is searched that keeps `p99_s`. `deadline_s` is sent to the server and bounds what
    counts as good. `check`: answers are compared with the answer to the same request, asked alone beforehand.
    """

    url: str
    rate: float | None = None
    seconds: float = 30.0
    photos: Path | None = None
    tensors: bool = False
    models: tuple[str, ...] = ()
    concurrency: int | None = None
    find_max: bool = False
    p99_s: float | None = None
    deadline_s: float | None = None
    timeout_s: float = 10.0
    connections: int = 1024
    check: bool = False
    tolerance: float = TOLERANCE
    token: str | None = None
    seed: int = 1
    out: Path = Path()
    command: tuple[str, ...] = ()


def run_loadtest(request: LoadRequest, report: Report) -> LoadRecord:
    """Do what was asked and return the Record; nothing is written to `out` yet.

    Ctrl-C returns what was measured, marked as partial. Raises InputError or OutputError before anything is sent in
    earnest when the request cannot be met.
    """
    _checked(request)
    record_file.ensure_writable(request.out)
    report(Progress("ask the server what it is", 0.0, request.seconds))
    where = address(request.url)
    headers = (("Authorization", f"Bearer {request.token}"),) if request.token else ()
    asking = Asking(request.models, request.tensors, request.deadline_s, headers)
    prepared = prepare(where, asking, find_photographs(request.photos), request.seed)
    bench = Bench(request.seed, report, request.command)
    bench.add_target(prepared)
    settings = Settings(
        seconds=request.seconds,
        seed=request.seed,
        deadline_s=request.deadline_s,
        limit_s=request.p99_s,
        timeout_s=request.timeout_s,
        connections=_connections(request.connections, bench.notes),
    )
    judge = asked_alone(prepared, settings, bench, request.tolerance, keep=request.check)
    if request.find_max:
        find_max(
            bench,
            prepared.target.name,
            settings,
            lambda probe, rate, label, give_up: open_run(
                bench, prepared, probe, rate, judge, label=label, give_up=give_up
            ),
            lambda brief, lanes: closed_run(bench, prepared, brief, lanes, judge, label="saturation"),
        )
    elif request.concurrency is not None:
        closed_run(bench, prepared, settings, request.concurrency, judge)
    else:
        assert request.rate is not None
        open_run(bench, prepared, settings, request.rate, judge)
    return bench.record()


def _connections(asked: int, notes: list[str]) -> int:
    if os.name != "posix":
        return asked
    import resource  # only POSIX has it

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = max(1, soft - 64)
    if asked > most:
        notes.append(f"at most {most} connections, for this process may open {soft} files; raise it with ulimit -n")
    return min(asked, most)


def _checked(request: LoadRequest) -> None:
    """Raise InputError with the first thing that is wrong with the request."""
    kinds = [request.rate is not None, request.concurrency is not None, request.find_max]
    if sum(kinds) != 1:
        raise InputError("loadtest: expected one of --rate, --find-max and --concurrency; choose one")
    if request.find_max and request.p99_s is None:
        raise InputError("--find-max: expected --p99 MS, the limit that the rate has to keep; add it")
    for name, value, low, high in (
        ("--rate", request.rate, 1e-3, 1e6),
        ("--seconds", request.seconds, 0.1, 1e5),
        ("--p99", request.p99_s, 1e-6, 1e4),
        ("--deadline", request.deadline_s, 1e-6, 1e4),
        ("--timeout", request.timeout_s, 1e-3, 1e4),
        ("--tolerance", request.tolerance, 0.0, 1.0),
        ("--concurrency", request.concurrency, 1, 10_000),
        ("--connections", request.connections, 1, 100_000),
    ):
        if value is not None and not low <= value <= high:
            raise InputError(f"{name}: expected a number from {low:g} to {high:g}, got {value:g}; choose another")
    if request.seed < 0:
        raise InputError(f"--seed: expected a whole number from 0, got {request.seed}; choose another")
