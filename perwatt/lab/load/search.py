"""The highest rate that keeps a p99 limit, by few probes: a guess from saturation, then halving the interval."""

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from perwatt.lab.bench import Progress
from perwatt.lab.load.figures import allowed, concluded
from perwatt.lab.load.generator import Generator
from perwatt.lab.load.record import Run, Search
from perwatt.lab.load.runs import Bench, Settings
from perwatt.lab.statistics import fewest_runs

RESOLUTION = 0.05
MOST_PROBES = 20
FIRST_LANES = 32
SATURATION_S = 3.0
REST_S = 0.5
# Enough that one request in a hundred is a handful: a p99 of fewer is one bad moment.
FEWEST_REQUESTS = fewest_runs(99.0, 1)
_FIRST = 0.8  # of the saturated rate: arrivals are uneven, and a queue needs room for that
_GROW = 1.5
LONGEST_PROBE_S = 120.0
BUSY_SHARE = 0.5  # of a core: a generator that is late for lack of its own speed uses more
MOST_TRIES = 3  # of a rate


GiveUp = Callable[[Generator], bool]
Send = Callable[[Settings, float, str, GiveUp], Run]
Saturate = Callable[[Settings, int], Run]


def find_max(
    bench: Bench,
    target: str,
    settings: Settings,
    send: Send,
    saturate: Saturate,
    rest_s: float = REST_S,
    most_probes: int = MOST_PROBES,
    resolution: float = RESOLUTION,
) -> Search:
    """Search the rate of a target and add probes and conclusion to the bench.

    `send` makes an open run at a rate and `saturate` a closed one; both add it to the bench.

    The interval shrinks until its ends are within `resolution` of each other. A probe that the generator could not keep
    up with ends the search upwards: what lies above is its own limit, not the server's.
    """
    assert settings.limit_s is not None
    found = Search(
        target=target,
        limit_s=settings.limit_s,
        resolution=resolution,
        probes=(),
        held=None,
        failed=None,
        limited_by="nothing held",
    )
    place = len(bench.searches)
    bench.searches.append(found)
    saturated = _saturation(bench, settings, saturate)
    ceiling = math.inf
    stalls: Counter[float] = Counter()
    rate = max(_FIRST * saturated, 1.0 / LONGEST_PROBE_S)
    for number in range(most_probes):
        if bench.partial_reason is not None:
            break
        seconds = probe_seconds(rate, settings.seconds)
        probe = replace(settings, seconds=seconds, seed=settings.seed + number)
        time.sleep(rest_s)
        run = send(probe, rate, f"probe {number + 1}", _hopeless(probe, rate))
        found = concluded(found.model_copy(update={"probes": (*found.probes, len(bench.runs) - 1)}), bench.runs)
        bench.searches[place] = found
        if not run.figures.kept_up:
            # Busy: what lies above is the generator's limit. Else the machine stood still for a while: once more.
            stalls[rate] += 1
            if run.figures.generator_share < BUSY_SHARE and stalls[rate] < MOST_TRIES:
                continue
            ceiling = min(ceiling, rate)
        upper = min(found.failed or math.inf, ceiling)
        if found.held is not None and upper <= found.held * (1 + resolution):
            break
        rate = next_rate(found.held, upper, rate)
        if rate * LONGEST_PROBE_S < FEWEST_REQUESTS / 4:
            bench.notes.append("the search ended at a rate too low for a p99 within two minutes")
            break
    return found


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


def _saturation(bench: Bench, settings: Settings, saturate: Saturate) -> float:
    """Return about what rate the server reaches when it is never without work."""
    bench.report(Progress("saturate the server for a first guess", 0.0, SATURATION_S))
    brief = replace(settings, seconds=SATURATION_S, limit_s=None)
    run = saturate(brief, min(FIRST_LANES, settings.connections))
    return max(run.figures.answers_per_s.value, 1.0 / LONGEST_PROBE_S)


def _hopeless(probe: Settings, rate: float) -> GiveUp:
    """Return a function that says whether a probe has already failed, whatever comes: the rest need not be sent."""
    may_fail = allowed(math.ceil(rate * probe.seconds))
    limit_ns = (probe.limit_s or 0.0) * 1e9

    def look(generator: Generator) -> bool:
        done = np.frombuffer(generator.done, np.int64)[: generator.next]
        due = np.frombuffer(generator.due, np.int64)[: generator.next]
        status = np.frombuffer(generator.status, np.int16)[: generator.next]
        over = int(np.sum((done >= 0) & ((status != 200) | (done - due > limit_ns))))
        # Far beyond the allowance, so that one bad moment early on cannot end a probe that would hold.
        return over > 3 * may_fail + 20

    return look
