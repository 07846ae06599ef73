"""The highest rate that keeps a p99 limit, by few probes: a guess from saturation, then halving the interval."""

import math
import time
from collections.abc import Callable

from perwatt.lab.bench import Progress
from perwatt.lab.load.answers import Judge
from perwatt.lab.load.figures import allowed, concluded
from perwatt.lab.load.generator import Generator
from perwatt.lab.load.record import Search
from perwatt.lab.load.runs import Bench, Settings, closed_run, open_run
from perwatt.lab.load.target import Prepared
from perwatt.lab.statistics import fewest_runs

RESOLUTION = 0.05
MOST_PROBES = 12
FIRST_LANES = 32
SATURATION_S = 3.0
REST_S = 0.5
# Enough that one request in a hundred is a handful: a p99 of fewer is one bad moment.
FEWEST_REQUESTS = fewest_runs(99.0, 3)
_FIRST = 0.8  # of the saturated rate: arrivals are uneven, and a queue needs room for that
_GROW = 1.5
LONGEST_PROBE_S = 120.0


def find_max(bench: Bench, prepared: Prepared, settings: Settings, judge: Judge | None = None) -> Search:
    """Search the rate and add probes and conclusion to the bench.

    The interval shrinks until its ends are within RESOLUTION of each other. A probe that the generator could not keep
    up with ends the search upwards: what lies above is its own limit, not the server's.
    """
    assert settings.limit_s is not None
    probes: list[int] = []

    def state() -> Search:
        made = Search(
            limit_s=settings.limit_s or 0.0,
            resolution=RESOLUTION,
            probes=tuple(probes),
            held=None,
            failed=None,
            limited_by="nothing held",
        )
        bench.search = concluded(made, bench.runs)
        return bench.search

    state()
    saturated = _saturation(bench, prepared, settings, judge)
    ceiling = math.inf
    rate = max(_FIRST * saturated, 1.0 / LONGEST_PROBE_S)
    for number in range(MOST_PROBES):
        if bench.partial_reason is not None:
            break
        seconds = probe_seconds(rate, settings.seconds)
        probe = Settings(
            seconds=seconds,
            seed=settings.seed + number,
            deadline_s=settings.deadline_s,
            limit_s=settings.limit_s,
            timeout_s=settings.timeout_s,
            connections=settings.connections,
        )
        time.sleep(REST_S)
        run = open_run(bench, prepared, probe, rate, judge, label=f"probe {number + 1}", give_up=_hopeless(probe, rate))
        probes.append(len(bench.runs) - 1)
        found = state()
        if not run.figures.kept_up and (found.failed is None or rate < found.failed):
            ceiling = min(ceiling, rate)
        upper = min(found.failed or math.inf, ceiling)
        if found.held is not None and upper <= found.held * (1 + RESOLUTION):
            break
        rate = next_rate(found.held, upper, rate)
        if rate * LONGEST_PROBE_S < FEWEST_REQUESTS / 4:
            bench.notes.append("the search ended at a rate too low for a p99 within two minutes")
            break
    return state()


def next_rate(held: float | None, failed: float, last: float) -> float:
    """Return the next rate to try: the middle of the interval, or further out where it has no end yet."""
    if held is None:
        return (min(failed, last)) / _GROW
    if math.isinf(failed):
        return held * _GROW
    return math.sqrt(held * failed)


def probe_seconds(rate: float, asked_s: float) -> float:
    """Return how long a probe lasts: as asked, but long enough for a p99 that is more than one bad moment."""
    return min(max(asked_s, 1.05 * FEWEST_REQUESTS / rate), max(LONGEST_PROBE_S, asked_s))


def _saturation(bench: Bench, prepared: Prepared, settings: Settings, judge: Judge | None) -> float:
    """Return about what rate the server reaches when it is never without work."""
    bench.report(Progress("saturate the server for a first guess", 0.0, SATURATION_S))
    brief = Settings(
        seconds=SATURATION_S, seed=settings.seed, timeout_s=settings.timeout_s, connections=settings.connections
    )
    run = closed_run(bench, prepared, brief, min(FIRST_LANES, settings.connections), judge, label="saturation")
    return max(run.figures.answers_per_s.value, 1.0 / LONGEST_PROBE_S)


def _hopeless(probe: Settings, rate: float) -> Callable[[Generator], bool]:
    """Return a function that says whether a probe has already failed, whatever comes: the rest need not be sent."""
    may_fail = allowed(math.ceil(rate * probe.seconds))
    limit_ns = (probe.limit_s or 0.0) * 1e9

    def look(generator: Generator) -> bool:
        # Twice the allowance and more, so that noise of the count cannot make a good probe fail.
        over = sum(
            1
            for index in range(generator.next)
            if generator.done[index] >= 0
            and (generator.status[index] != 200 or generator.done[index] - generator.due[index] > limit_ns)
        )
        return over > 3 * may_fail + 20

    return look
