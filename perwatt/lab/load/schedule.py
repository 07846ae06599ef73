"""When requests are due, and which request each is: seeded, and fixed before the first is sent."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from perwatt.errors import InputError

MOST_REQUESTS = 20_000_000


@dataclass(frozen=True)
class Schedule:
    """Due times in nanoseconds since the start, ascending, and for each the number of its shot; int64 and int32."""

    due_ns: np.ndarray
    shots: np.ndarray
    seconds: float


def poisson(rate: float, seconds: float, weights: Sequence[float], seed: int) -> Schedule:
    """Return arrivals of a Poisson process: independent clients, of whom none waits for another's answer.

    `weights` says how often each shot is drawn. Raises InputError for a rate, a duration or weights that cannot be.
    """
    if not (0 < rate < 1e7 and 0 < seconds < 1e6 and rate * seconds <= MOST_REQUESTS):
        raise InputError(
            f"rate, seconds: expected positive numbers that make at most {MOST_REQUESTS:,} requests, "
            f"got {rate:g}/s for {seconds:g} s; choose less"
        )
    chances = np.asarray(weights, dtype=np.float64)
    if not len(chances) or not np.all(np.isfinite(chances)) or chances.min() < 0 or chances.sum() <= 0:
        raise InputError("weights: expected one weight of at least 0 a request, some above 0; got others")
    # RandomState, not Generator: its stream is frozen, so that a seed means the same requests with any NumPy.
    random = np.random.RandomState(seed % 2**32)
    gaps: list[np.ndarray] = []
    total = 0.0
    while total < seconds:
        block = random.exponential(1 / rate, size=max(16, int(1.1 * rate * (seconds - total))))
        gaps.append(block)
        total += float(block.sum())
    due_s = np.cumsum(np.concatenate(gaps))
    due_s = due_s[due_s < seconds]
    if not len(due_s):  # a rate so low that nothing would be sent measures nothing
        due_s = np.asarray([seconds / 2])
    shots = random.choice(len(chances), size=len(due_s), p=chances / chances.sum())
    return Schedule((due_s * 1e9).astype(np.int64), shots.astype(np.int32), seconds)
