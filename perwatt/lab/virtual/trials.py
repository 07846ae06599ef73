"""How far the meters' figures are from the truth on simulated machines, and how often their intervals hold it.

A trial is one seeded machine that idles, works, and idles again; one window of work is measured between two marks, and
asked for once the meter has settled. The meter's gain is drawn within its tolerance; the timing is judged apart, with a
perfect gain.
"""

import math
import random
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from perwatt.errors import MeterError
from perwatt.lab import meters
from perwatt.lab.virtual.machines import machine, world_of
from perwatt.lab.virtual.trace import Phase

IDLE_S = 4.0


@dataclass(frozen=True)
class Case:
    """One kind of trial: which machine, which meters ("auto", or names), the parts they measure, the window's seconds.

    `inside_s`: the window begins so much after the first mark and ends before the second, between readings. `refuses`:
    the meter fails in the middle of the window, and there must be no figure.
    """

    name: str
    machine: str
    wanted: str
    device: str
    parts: tuple[str, ...]
    window_s: tuple[float, float]
    inside_s: float = 0.0
    refuses: bool = False


CASES: tuple[Case, ...] = (
    Case("two packages and memory", "intel-server", "auto", "cpu", ("cpu0", "cpu1", "dram0", "dram1"), (0.5, 4)),
    Case(
        "the same, between readings", "intel-server", "auto", "cpu", ("cpu0", "cpu1", "dram0", "dram1"), (0.5, 4), 0.03
    ),
    Case("package below psys", "intel-laptop", "auto", "cpu", ("cpu0",), (0.5, 4)),
    Case("psys", "intel-laptop", "rapl:psys", "cpu", ("system",), (0.5, 4)),
    Case("wrap-around", "amd-desktop", "auto", "cpu", ("cpu0",), (8, 20)),
    Case("several wrap-arounds", "amd-desktop", "auto", "cpu", ("cpu0",), (1000, 1400)),
    Case("mirrored dies", "threadripper", "auto", "cpu", ("cpu0",), (0.5, 4)),
    Case("100 ms steps", "l4", "auto", "cuda", ("gpu0",), (1, 6)),
    Case("25 % sampling", "h100", "auto", "cuda", ("gpu0",), (2, 10)),
    Case("mean of the last second", "two-3090", "auto", "cuda", ("gpu0",), (3, 12)),
    Case("rails that hold each other", "jetson", "auto", "cpu", ("system",), (1, 6)),
    Case("battery beside closed RAPL", "closed-laptop", "battery", "cpu", ("system",), (15, 60)),
    Case("wall log, clock 3 s off", "wall-log", "auto", "cpu", ("wall",), (15, 60)),
    Case("smart plug that is late", "plug", "auto", "cpu", ("wall",), (15, 60)),
    Case("counter stands still", "still", "auto", "cpu", ("cpu0",), (8, 20), refuses=True),
    Case("counter goes back", "going-back", "auto", "cpu", ("cpu0",), (2, 8), refuses=True),
    Case("battery pulled out", "unplugged", "auto", "cpu", ("system",), (15, 60), refuses=True),
    Case("plug stops answering", "hanging-plug", "auto", "cpu", ("wall",), (30, 60), refuses=True),
)


@dataclass(frozen=True)
class Trial:
    """One trial: the true joules, and the figure with its half widths, or why there was none.

    `timing_share` and `share` are the stated 95 % half widths without and with the meter's gain, over the truth;
    `timing_error` and `error` are the figure's relative errors with a perfect and with a drawn gain.
    """

    true_j: float
    timing_error: float | None
    timing_share: float | None
    error: float | None
    share: float | None
    reason: str | None


@dataclass(frozen=True)
class Outcome:
    """All trials of a case, in relative terms; None where every trial was refused."""

    case: str
    meter: str
    trials: int
    refused: int
    reasons: tuple[str, ...]
    bias: float | None
    worst_error: float | None
    median_error: float | None
    median_half_width: float | None
    covered: int
    timing_median_error: float | None
    timing_median_half_width: float | None
    timing_covered: int


def trial(case: Case, seed: int) -> Trial:
    """Run one trial."""
    kind = machine(case.machine)
    assert kind is not None, case.machine
    with tempfile.TemporaryDirectory() as folder:
        generator_seed = seed * 1000 + sum(map(ord, case.name))
        length_s = _between(case.window_s, generator_seed)
        phases = [Phase(False, IDLE_S), Phase(True, length_s), Phase(False, IDLE_S)]
        world = world_of(kind, Path(folder), phases, generator_seed)
        world.now_s = 0.1  # discovery takes its time, too
        host = world.host()
        found = meters.discover(host, world.wanted)
        # A wall meter is discovered by its name and chosen like any other.
        choice = meters.choose(found, case.wanted, case.device)
        with meters.open_meters(found, choice, host) as meter:
            world.run_until(meter, IDLE_S)
            start_ns = meter.mark() + round(case.inside_s * 1e9)
            world.run_until(meter, IDLE_S + length_s)
            end_ns = meter.mark() - round(case.inside_s * 1e9)
            world.run_until(meter, world.now_s + meter.meter.settle_s)
            true_j = sum(world.trace.between(part, world.time_s(start_ns), world.time_s(end_ns)) for part in case.parts)
            try:
                energy = meter.energy(start_ns, end_ns)
            except MeterError as error:
                return Trial(true_j, None, None, None, None, str(error))
    gain = meter.meter.gain if len(choice.names) == 1 else energy.gain
    drawn = 1 + gain / 1.96 * _normal(generator_seed)
    # What a sensor that looks away may miss is stated with the gain, but here it comes of the timing.
    missed = math.sqrt(max(energy.gain**2 - gain**2, 0.0))
    timing_j = math.hypot(energy.random_j, missed * energy.joules)
    whole_j = math.hypot(energy.random_j * drawn, energy.gain * energy.joules * drawn)
    return Trial(
        true_j,
        energy.joules / true_j - 1,
        timing_j / true_j,
        energy.joules * drawn / true_j - 1,
        whole_j / true_j,
        None,
    )


def run(case: Case, seeds: Sequence[int]) -> Outcome:
    """Run the seeded trials of one case."""
    trials = [trial(case, seed) for seed in seeds]
    errors = [each.error for each in trials if each.error is not None]
    timing = [each.timing_error for each in trials if each.timing_error is not None]
    shares = [each.share for each in trials if each.share is not None]
    timing_shares = [each.timing_share for each in trials if each.timing_share is not None]
    reasons = {each.reason.partition(": ")[2].split(",")[0] for each in trials if each.reason is not None}
    return Outcome(
        case=case.name,
        meter=case.machine,
        trials=len(trials),
        refused=sum(each.reason is not None for each in trials),
        reasons=tuple(sorted(reasons))[:3],
        bias=_median(timing),
        worst_error=max(map(abs, errors), default=None),
        median_error=_median([abs(each) for each in errors]),
        median_half_width=_median(shares),
        covered=sum(abs(error) <= share for error, share in zip(errors, shares, strict=True)),
        timing_median_error=_median([abs(each) for each in timing]),
        timing_median_half_width=_median(timing_shares),
        timing_covered=sum(abs(error) <= share for error, share in zip(timing, timing_shares, strict=True)),
    )


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _between(limits: tuple[float, float], seed: int) -> float:
    return random.Random(f"length/{seed}").uniform(*limits)


def _normal(seed: int) -> float:
    return random.Random(f"gain/{seed}").gauss(0, 1)
