"""Runs against a server, gathered into a Record: in the open, in a loop, or one request alone."""

import asyncio
import datetime
import itertools
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import perwatt
from perwatt.errors import InputError
from perwatt.lab.bench import Progress, commit
from perwatt.lab.load import figures
from perwatt.lab.load.answers import Judge
from perwatt.lab.load.generator import UNANSWERED, Client, Endpoint, Generator, Outcome, fine_loop
from perwatt.lab.load.record import Checking, Claim, LoadRecord, Run, RunFigures, Search, Series, Target, pack_samples
from perwatt.lab.load.schedule import poisson
from perwatt.lab.load.shot import Shot
from perwatt.lab.load.target import Prepared, address
from perwatt.lab.record import Photograph
from perwatt.machine import this_machine

Report = Callable[[Progress], None]
ATTEMPTS = 10  # to ask alone
_NO_FIGURES = RunFigures.model_construct()  # until they are computed


@dataclass
class Bench:
    """A load test that grows run by run; `record` closes it."""

    seed: int
    report: Report
    command: tuple[str, ...] = ()
    start_s: float = field(default_factory=time.monotonic)
    created: str = field(default_factory=lambda: datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))
    targets: list[Target] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    series: list[Series] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    photographs: dict[str, Photograph] = field(default_factory=dict)
    checking: Checking | None = None
    searches: list[Search] = field(default_factory=list)
    partial_reason: str | None = None

    def now_s(self) -> float:
        """Return seconds since the start."""
        return time.monotonic() - self.start_s

    def add_target(self, prepared: Prepared) -> None:
        """Keep what was prepared for a server."""
        self.targets.append(prepared.target)
        self.photographs |= {photo.sha256: photo for photo in prepared.photographs}

    def record(self) -> LoadRecord:
        """Return the Record of all runs, complete with its figures."""
        machine = this_machine()
        hosts = {address(target.url).endpoint.host for target in self.targets}
        return figures.complete(
            LoadRecord(
                kind="loadtest",
                schema_version=1,
                created=self.created,
                perwatt_version=perwatt.__version__,
                commit=commit(),
                command=self.command,
                seed=self.seed,
                machine=machine.facts(),
                machine_id=machine.host_id,
                shared_machine=all(host in ("localhost", "::1") or host.startswith("127.") for host in hosts),
                partial=self.partial_reason is not None,
                partial_reason=self.partial_reason,
                notes=tuple(self.notes),
                duration_s=self.now_s(),
                photographs=tuple(sorted(self.photographs.values(), key=lambda photo: (photo.name, photo.sha256))),
                targets=tuple(self.targets),
                checking=self.checking,
                runs=tuple(self.runs),
                series=tuple(self.series),
                searches=tuple(self.searches),
                claims=tuple(self.claims),
                digest="",
            )
        )


@dataclass(frozen=True)
class Settings:
    """How a run is made and judged; times in seconds."""

    seconds: float
    seed: int
    deadline_s: float | None = None
    limit_s: float | None = None
    timeout_s: float = 10.0
    connections: int = 1024
    round: int | None = None

    def client(self) -> Client:
        """Return the limits of the client side."""
        return Client(self.connections, self.timeout_s)


def open_run(
    bench: Bench,
    prepared: Prepared,
    settings: Settings,
    rate: float,
    judge: Judge | None = None,
    *,
    label: str = "open loop",
    weights: Sequence[float] | None = None,
    give_up: Callable[[Generator], bool] | None = None,
) -> Run:
    """Send requests at `rate` and add the run to the bench."""
    schedule = poisson(rate, settings.seconds, weights or [1.0] * len(prepared.shots), settings.seed)
    generator = Generator(prepared.endpoint, prepared.shots, settings.client(), judge)
    start_s = bench.now_s()
    told = f"{label}: {rate:.4g} requests/s"
    outcome = _run(generator.open_loop(schedule, _progress(bench, told, settings.seconds), give_up))
    return _add(bench, prepared, settings, outcome, label, start_s, rate=rate)


def closed_run(
    bench: Bench,
    prepared: Prepared,
    settings: Settings,
    concurrency: int,
    judge: Judge | None = None,
    *,
    label: str = "closed loop",
) -> Run:
    """Keep `concurrency` requests under way and add the run to the bench."""
    order = np.random.RandomState(settings.seed % 2**32).permutation(len(prepared.shots)).tolist()
    draw = itertools.cycle(order).__next__
    generator = Generator(prepared.endpoint, prepared.shots, settings.client(), judge)
    start_s = bench.now_s()
    told = f"{label}: {concurrency} at a time"
    outcome = _run(generator.closed_loop(concurrency, settings.seconds, draw, _progress(bench, told, settings.seconds)))
    return _add(bench, prepared, settings, outcome, label, start_s, concurrency=concurrency)


def asked_alone(prepared: Prepared, settings: Settings, bench: Bench, tolerance: float, *, keep: bool) -> Judge | None:
    """Send each request once, alone: it warms connections up, shows mistakes, and gives the expected answers.

    Returns the judge when `keep`, else None. Raises InputError when the server answers none of them with 200.
    """
    judge = Judge(len(prepared.shots), tolerance)
    count = len(prepared.shots) if keep else min(len(prepared.shots), 3)
    bench.report(Progress("ask once for each photograph, alone", 0.0, settings.seconds))
    for number in range(count):
        shot = prepared.shots[number]
        for attempt in range(ATTEMPTS):
            outcome = _run(_one(prepared.endpoint, shot, number, settings, judge.learn))
            if outcome.stopped:
                raise KeyboardInterrupt
            status = int(outcome.samples.status[0])
            # Who is busy may be asked again; any other refusal is an answer.
            if status not in (429, 503, 504, UNANSWERED):
                break
            time.sleep(0.1 * attempt)
        if status != 200:
            raise InputError(
                f"{shot.name}: expected status 200 from {prepared.target.url}, asked alone, got "
                f"{status if status > 0 else 'no answer'}; see what the server says with curl --data-binary"
            )
    if not keep:
        return None
    known, distinct = judge.known(), judge.distinct()
    before = bench.checking
    bench.checking = Checking(
        source="the server, asked alone",
        tolerance=tolerance,
        shots=known + (before.shots if before else 0),
        distinct=distinct + (before.distinct if before else 0),
    )
    if distinct < known:
        bench.notes.append(
            f"{prepared.target.name}: only {distinct} of {known} expected answers differ from all others: among the "
            "rest a swapped answer would not be seen"
        )
    return judge


async def _one(
    endpoint: Endpoint, shot: Shot, number: int, settings: Settings, look: Callable[[int, bytes, bytes], int]
) -> Outcome:
    generator = Generator(
        endpoint, (shot,), Client(1, max(settings.timeout_s, 30.0)), lambda _, head, body: look(number, head, body)
    )
    schedule = poisson(1e6, 1e-6, (1.0,), 1)
    return await generator.open_loop(schedule)


def _run(work: Coroutine[Any, Any, Outcome]) -> Outcome:
    with asyncio.Runner(loop_factory=fine_loop) as runner:
        return runner.run(work)


def _add(
    bench: Bench,
    prepared: Prepared,
    settings: Settings,
    outcome: Outcome,
    label: str,
    start_s: float,
    *,
    rate: float | None = None,
    concurrency: int | None = None,
) -> Run:
    run = Run(
        label=label,
        target=prepared.target.name,
        mode="open" if rate is not None else "closed",
        rate=rate,
        concurrency=concurrency,
        seconds=settings.seconds,
        seed=settings.seed,
        deadline_s=settings.deadline_s,
        limit_s=settings.limit_s,
        timeout_s=settings.timeout_s,
        connections_limit=settings.connections,
        round=settings.round,
        start_s=start_s,
        wall_s=outcome.wall_s,
        processor_s=outcome.processor_s,
        connections=outcome.connections,
        stopped=outcome.stopped,
        gave_up=outcome.gave_up,
        samples=pack_samples(outcome.samples),
        figures=_NO_FIGURES,
    )
    run = run.model_copy(update={"figures": figures.figures_of(run, prepared.target.shots)})
    bench.runs.append(run)
    if outcome.stopped:
        bench.partial_reason = "stopped by Ctrl-C"
    return run


def _progress(bench: Bench, text: str, seconds: float) -> Callable[[float], None]:
    return lambda share: bench.report(Progress(text, share, (1 - share) * seconds))
