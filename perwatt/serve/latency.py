"""How long a batch takes, by its size: measured at warm-up, learnt while serving, never taken to be a line.

Each compiled batch size keeps its latest durations. From them come two curves that never fall as batches grow: what a
batch is expected to take (the median) and what it hardly ever exceeds (the 99th percentile). Images in between sizes
run at the smallest size that holds them. From the expected curve follow the plans: how a number of waiting images is
best cut into batches, for the least time in all, the least waiting, or the fewest joules.
"""

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, isfinite
from typing import Literal

from perwatt.errors import InputError

Objective = Literal["latency", "throughput", "energy"]
OBJECTIVES: tuple[Objective, ...] = ("latency", "throughput", "energy")
KEPT_SAMPLES = 100  # the fewest that carry a 99th percentile; also how soon an old pace is forgotten
PERCENTILE = 0.99
# Before a size has enough samples its 99th percentile is put this far above the median, or at its slowest run.
TAIL_OF_FEW = 1.25
# The most that a bound lies above the median: a machine that once stood still for seconds would otherwise turn away
# requests for as long as that run is remembered.
MOST_TAIL = 4.0
# Plans are made anew when a curve has moved by this share: they cost more than a prediction.
_MOVED = 0.03
# A size whose quantiles have moved by less than this share leaves the curves as they are.
_SAME = 0.003
# Where two sizes contradict each other, one that was not observed for so many batches counts half.
_STALE_AFTER = 10
# A size that was not observed for so many batches is worth a try, if it promises this share of the best pace; what was
# known of it shrinks to a few samples, so that new ones count.
_TRY_AFTER = 64
_WORTH_TRYING = 0.7
_KEPT_OF_STALE = 4


@dataclass(frozen=True)
class SizeFacts:
    """One row of the table, in seconds; what was never measured, or what too few samples carry, is None."""

    size: int
    samples: int
    expected_s: float
    p99_s: float | None
    images_per_s: float
    joules: float | None


@dataclass(frozen=True)
class PredictionError:
    """How far predictions lay from the truth, in seconds, over `batches` batches; positive: slower than predicted.

    `beyond_bound` counts the batches that took longer than their predicted 99th percentile.
    """

    batches: int
    mean_s: float | None
    mean_absolute_s: float | None
    worst_s: float | None
    beyond_bound: int


class _Samples:
    """The latest durations of one size, in order of arrival and in order of length, and when the last one came."""

    __slots__ = ("last", "latest", "ordered")

    def __init__(self) -> None:
        self.latest: deque[float] = deque()
        self.ordered: list[float] = []
        self.last = 0

    def add(self, seconds: float) -> None:
        if len(self.latest) == KEPT_SAMPLES:
            del self.ordered[bisect_left(self.ordered, self.latest.popleft())]
        self.latest.append(seconds)
        insort(self.ordered, seconds)

    def forget(self, kept: int) -> None:
        while len(self.latest) > kept:
            del self.ordered[bisect_left(self.ordered, self.latest.popleft())]

    def quantile(self, share: float) -> float:
        return self.ordered[max(0, ceil(share * len(self.ordered)) - 1)]


class LatencyTable:
    """Seconds of a batch by its size, and what follows from them. Not for several threads at once.

    sizes: the compiled batch sizes, ascending. It predicts nothing before every size was observed once.
    Raises InputError for sizes that are empty, not ascending or below one.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        if not sizes or sizes[0] < 1 or any(a >= b for a, b in pairwise(sizes)):
            raise InputError(f"batch sizes: expected ascending whole numbers from 1, got {list(sizes)}")
        self.sizes = tuple(sizes)
        self.largest = sizes[-1]
        self._samples = {size: _Samples() for size in sizes}
        self._observed = 0
        self._drawn_from: dict[int, tuple[float, float, int]] = {}  # median, 99th percentile, samples of each size
        self._joules: dict[int, float] = {}
        self._size_of = [next(size for size in sizes if size >= max(images, 1)) for images in range(self.largest + 1)]
        self._horizon = 2 * self.largest
        self._expected: list[float] = []  # by images, 0 .. largest
        self._bound: list[float] = []
        self._planned_for: list[float] = []  # the curve that the plans below were made for
        self._first: dict[Objective, list[int]] = {}  # by images, 0 .. horizon
        self._errors = [0, 0.0, 0.0, 0.0, 0]

    @property
    def ready(self) -> bool:
        """Whether every size was observed, so that it can predict."""
        return bool(self._expected)

    def observe(self, size: int, seconds: float) -> None:
        """Add the duration of a batch that ran at one of the sizes; raises InputError for what cannot be one."""
        if size not in self._samples or not (isfinite(seconds) and seconds >= 0):
            raise InputError(f"expected a duration of a batch of {self.sizes}, got {seconds!r} s for {size}")
        samples = self._samples[size]
        if self._observed - samples.last > _TRY_AFTER:
            samples.forget(_KEPT_OF_STALE)
        samples.add(max(seconds, 1e-9))
        self._observed += 1
        samples.last = self._observed
        seen = (samples.quantile(0.5), samples.quantile(PERCENTILE), len(samples.ordered))
        if self._unmoved(self._drawn_from.get(size), seen):
            return
        self._drawn_from[size] = seen
        if len(self._drawn_from) == len(self.sizes):
            self._draw()

    def observe_all(self, size: int, durations: Iterable[float]) -> None:
        """Add several durations of one size."""
        for seconds in durations:
            self.observe(size, seconds)

    def observe_joules(self, size: int, joules: float) -> None:
        """Set what one batch of a size takes, in joules; raises InputError for what cannot be an energy."""
        if size not in self._samples or not (isfinite(joules) and joules > 0):
            raise InputError(f"expected the joules of a batch of {self.sizes}, got {joules!r} for {size}")
        self._joules[size] = joules
        self._planned_for = []
        if self.ready:
            self._plan()

    def judge(self, predicted_s: float, bound_s: float, seconds: float) -> None:
        """Keep how far a prediction lay from what came."""
        error = seconds - predicted_s
        count, total, absolute, worst, beyond = self._errors
        self._errors = [
            count + 1,
            total + error,
            absolute + abs(error),
            max(worst, error, key=abs),
            beyond + (seconds > bound_s),
        ]

    @property
    def prediction_error(self) -> PredictionError:
        """Predicted against real, over all batches judged so far."""
        count, total, absolute, worst, beyond = self._errors
        if not count:
            return PredictionError(0, None, None, None, 0)
        return PredictionError(int(count), total / count, absolute / count, worst, int(beyond))

    def size_of(self, images: int) -> int:
        """Return the smallest compiled size that holds so many images, 1 .. largest."""
        return self._size_of[images]

    def expected_s(self, images: int) -> float:
        """Return what a batch of so many images is expected to take (the median), 0 .. largest images."""
        return self._expected[images]

    def bound_s(self, images: int) -> float:
        """Return what a batch of so many images hardly ever exceeds (the 99th percentile), 0 .. largest images."""
        return self._bound[images]

    def fastest_s(self) -> float:
        """Return the shortest run on record of the smallest size: no request can be answered in less."""
        return self._samples[self.sizes[0]].ordered[0]

    @property
    def curves(self) -> tuple[list[float], list[float]]:
        """The expected and the bounding seconds by images, 0 .. largest; replaced, never changed, as it learns."""
        return self._expected, self._bound

    def first_batch(self, images: int, objective: Objective) -> int:
        """Return how many of so many waiting images the next batch should carry, were there no deadlines."""
        if objective == "energy" and not self.has_joules:
            objective = "throughput"
        return self._first[objective][min(images, self._horizon)]

    def stalest(self, images: int) -> int | None:
        """Return the size up to so many images that is most worth measuring again, or None: all that matter are fresh.

        What the plans do not use they learn nothing about; one bad warm-up must not rule a size out for ever.
        """
        paces = {size: size / self._expected[size] for size in self.sizes}
        enough = _WORTH_TRYING * max(paces.values())
        stale = [
            (self._samples[size].last, size)
            for size in self.sizes
            if size <= images and paces[size] >= enough and self._observed - self._samples[size].last > _TRY_AFTER
        ]
        return min(stale)[1] if stale else None

    @property
    def has_joules(self) -> bool:
        """Whether the joules of every size are known, so that energy can be an objective."""
        return len(self._joules) == len(self.sizes)

    def joules_per_image(self, images: int) -> float | None:
        """Return the joules of each of so many images when they run as one batch, or None where nobody measured."""
        joules = self._joules.get(self._size_of[images])
        return None if joules is None else joules / images

    def rows(self) -> tuple[SizeFacts, ...]:
        """Return the table for people and metrics; empty before it is ready."""
        if not self.ready:
            return ()
        return tuple(
            SizeFacts(
                size,
                len(self._samples[size].ordered),
                self._expected[size],
                self._bound[size] if len(self._samples[size].ordered) >= KEPT_SAMPLES else None,
                size / self._expected[size],
                self._joules.get(size),
            )
            for size in self.sizes
        )

    @staticmethod
    def _unmoved(before: tuple[float, float, int] | None, now: tuple[float, float, int]) -> bool:
        """Whether a size says the same as when the curves were drawn last: then drawing them again is idle."""
        return (
            before is not None
            and before[2] == now[2] == KEPT_SAMPLES
            and (abs(now[0] - before[0]) <= _SAME * before[0] and abs(now[1] - before[1]) <= _SAME * before[1])
        )

    def _draw(self) -> None:
        """Make both curves from the samples: rising, and the bound nowhere below what is expected."""
        samples = [self._samples[size] for size in self.sizes]
        medians = [each.quantile(0.5) for each in samples]
        weights = [len(each.ordered) / (1 + (self._observed - each.last) / _STALE_AFTER) for each in samples]
        full = [each.quantile(PERCENTILE) / median for each, median in zip(samples, medians, strict=True)
                if len(each.ordered) >= KEPT_SAMPLES]  # fmt: skip
        tail = max(full, default=TAIL_OF_FEW)
        slowest = [
            each.quantile(PERCENTILE) if len(each.ordered) >= KEPT_SAMPLES else max(each.ordered[-1], median * tail)
            for each, median in zip(samples, medians, strict=True)
        ]
        bounds = [min(pair) for pair in zip(slowest, (MOST_TAIL * median for median in medians), strict=True)]
        expected = _rising(medians, weights)
        bound = [max(pair) for pair in zip(_rising(bounds, weights), expected, strict=True)]
        place = {size: index for index, size in enumerate(self.sizes)}
        self._expected = [0.0] + [expected[place[size]] for size in self._size_of[1:]]
        self._bound = [0.0] + [bound[place[size]] for size in self._size_of[1:]]
        if not self._planned_for or any(
            abs(now - then) > _MOVED * then for now, then in zip(expected, self._planned_for, strict=True)
        ):
            self._planned_for = expected
            self._plan()

    def _plan(self) -> None:
        """Cut every number of images up to the horizon into batches, by dynamic programming over the first batch.

        throughput: least time in all; latency: least sum of all images' waiting; energy: fewest joules. Of two cuts as
        good as each other the one that begins with the larger batch is taken: it answers more images sooner.
        """
        seconds = [self._expected[size] for size in self.sizes]
        self._first["throughput"] = self._cut(seconds, by_waiting=False)
        self._first["latency"] = self._cut(seconds, by_waiting=True)
        if self.has_joules:
            self._first["energy"] = self._cut([self._joules[size] for size in self.sizes], by_waiting=False)

    def _cut(self, costs: Sequence[float], by_waiting: bool) -> list[int]:
        """Return the images of the first batch of the best cut of 0 .. horizon images."""
        best, first = [0.0], [0]
        options = list(zip(self.sizes, costs, strict=True))[::-1]
        for images in range(1, self._horizon + 1):
            least, chosen = float("inf"), 0
            for size, cost in options:
                total = cost * (images if by_waiting else 1) + best[max(0, images - size)]
                if total < least * (1 - 1e-9):
                    least, chosen = total, size
            best.append(least)
            first.append(min(chosen, images))
        return first


def _rising(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """Return the closest values that never fall, weighted least squares (pool adjacent violators).

    Pooling, and not a running maximum: one bad warm-up run of a small size must not darken every larger one.
    """
    pools: list[tuple[float, float, int]] = []  # value, weight, members
    for value, weight in zip(values, weights, strict=True):
        members = 1
        while pools and pools[-1][0] > value:
            before, heavy, others = pools.pop()
            value = (before * heavy + value * weight) / (heavy + weight)
            weight, members = heavy + weight, members + others
        pools.append((value, weight, members))
    return [value for value, _, members in pools for _ in range(members)]
