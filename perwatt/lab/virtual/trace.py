"""A power trace whose joules are known exactly: a simulated machine that idles, then runs a network, and so on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

STEP_S = 0.001


@dataclass(frozen=True)
class Level:
    """The power of one part of a machine while it idles and while it works, in watts."""

    idle_w: float
    load_w: float


@dataclass(frozen=True)
class Phase:
    """A stretch of the trace: whether the machine works, and for how long."""

    load: bool
    seconds: float


@dataclass(frozen=True)
class Trace:
    """Joules of every part at steps of a millisecond, `joules[part][i]` up to the time `i * STEP_S`.

    `amidst_work_s` is the middle of the last stretch of work, or of the trace where there is none.

    After its end every part goes on with the power of its last step.
    """

    joules: Mapping[str, np.ndarray]
    seconds: float
    amidst_work_s: float

    def at(self, part: str, time_s: float) -> float:
        """Return the joules of a part from the beginning to a time; times before the beginning have the idle power."""
        curve = self.joules[part]
        place = time_s / STEP_S
        whole = int(min(max(place, 0.0), len(curve) - 2))
        return float(curve[whole] + (place - whole) * (curve[whole + 1] - curve[whole]))

    def between(self, part: str, start_s: float, end_s: float) -> float:
        """Return the joules of a part between two times."""
        return self.at(part, end_s) - self.at(part, start_s)

    def mean_w(self, part: str, start_s: float, end_s: float) -> float:
        """Return the mean power of a part between two times, in watts."""
        return self.between(part, start_s, end_s) / (end_s - start_s)


def make(parts: Mapping[str, Level], phases: Sequence[Phase], seed: int) -> Trace:
    """Return the seeded trace of a machine.

    While it works, its power ripples with the runs of the network (2 to 120 ms a run, with a pause between runs), has
    noise that lasts for about 20 ms and some that lasts for seconds, and creeps up as the machine warms.
    """
    generator = np.random.default_rng(seed)
    seconds = sum(phase.seconds for phase in phases)
    times = np.arange(round(seconds / STEP_S) + 1) * STEP_S
    activity = np.zeros(len(times))
    begin, amidst_s = 0.0, seconds / 2
    for phase in phases:
        if phase.load:
            inside = (times >= begin - STEP_S / 2) & (times < begin + phase.seconds - STEP_S / 2)
            amidst_s = begin + phase.seconds / 2
            activity[inside] = _work(times[inside] - begin, generator)
        begin += phase.seconds
    joules = {}
    for part, level in parts.items():
        noise = 1 + 0.04 * _lasting(len(times), 0.02, generator) + 0.015 * _lasting(len(times), 3.0, generator)
        watts = (level.idle_w + (level.load_w - level.idle_w) * activity) * np.clip(noise, 0.5, 1.5)
        joules[part] = np.concatenate([[0.0], np.cumsum(watts[:-1]) * STEP_S])
    return Trace(joules, seconds, amidst_s)


def _work(times: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return how busy a machine is that runs a network again and again: 1 in a run, less in the pauses."""
    period_s = float(np.exp(generator.uniform(np.log(0.002), np.log(0.12))))
    share, depth = generator.uniform(0.75, 0.97), generator.uniform(0.3, 0.8)
    # Runs never take exactly the same time.
    jitter = np.cumsum(generator.normal(0, 0.02, len(times)) * np.sqrt(STEP_S / period_s))
    place = (times / period_s + generator.random() + jitter) % 1.0
    warming = 1 + 0.03 * (1 - np.exp(-times / 4.0))
    return np.where(place < share, 1.0, 1 - depth) * warming


def _lasting(count: int, seconds: float, generator: np.random.Generator) -> np.ndarray:
    """Return noise of deviation 1 that stays alike for about so many seconds."""
    steps = max(1, round(seconds / STEP_S))
    knots = generator.normal(0, 1, count // steps + 2)
    return np.interp(np.arange(count) / steps, np.arange(len(knots)), knots)
