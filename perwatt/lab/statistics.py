"""What may be said of noisy timings: medians with 95 % intervals, paired ratios, honest percentiles, drift.

Pure functions, seeded. The interval was chosen by simulation (`benchmarks/statistics_trials.py`: log-normal noise,
heavy- tailed bursts, drift, slowdowns that last): a percentile bootstrap of the mean called a difference in 9–17 % of
A/A trials at 6 to 40 rounds, Student's t missed most true differences of 3 % because of the bursts, and the bootstrap
of the median with expanded percentiles kept its 5 % and found the most.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np

RESAMPLES = 4000
FEWEST_FOR_BOOTSTRAP = 6  # of fewer values, all resampled medians lie within a range that covers less than 95 %
FEWEST_FOR_INTERVAL = 3
LEAST_DIFFERENCE = 0.005  # a smaller one is never called: a 95 % interval alone would err in 5 of 100 trials, no fewer
CONFIDENCE = 0.99  # of a latency percentile, as MLPerf has it
PERCENTILES = (90.0, 95.0, 99.0, 99.9)

Verdict = Literal["faster", "slower", "no difference seen"]


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval; both ends are None where the samples are too few for one."""

    value: float
    low: float | None
    high: float | None

    def half_width(self) -> float | None:
        """Return half the width of the interval relative to the value, or None without one."""
        if self.low is None or self.high is None:
            return None
        return (self.high - self.low) / 2 / self.value


def median(values: Sequence[float]) -> float:
    """Return the middle value, the mean of the middle two of an even number; ValueError without values."""
    if not len(values):
        raise ValueError("median: expected at least one value, got none")
    return float(np.median(np.asarray(values, dtype=np.float64)))


def median_of_positive(values: Sequence[float], seed: int) -> Interval:
    """Return the median of positive values with its 95 % interval, worked out on their logarithms.

    From 6 values: percentile bootstrap of the median with the percentiles expanded for small samples (Hesterberg, "What
    teachers should know about the bootstrap", The American Statistician 69, 2015). From 3 to 5: Student's t, widened
    where needed to hold the median. Below: no interval.
    """
    logs = np.log(np.asarray(values, dtype=np.float64))
    if not np.all(np.isfinite(logs)):
        raise ValueError("median_of_positive: expected positive finite values")
    centre = median(logs.tolist())
    ends = _ends(logs, centre, seed)
    if ends is None:
        return Interval(math.exp(centre), None, None)
    return Interval(math.exp(centre), math.exp(min(ends[0], centre)), math.exp(max(ends[1], centre)))


def _ends(logs: np.ndarray, centre: float, seed: int) -> tuple[float, float] | None:
    count = len(logs)
    if count < FEWEST_FOR_INTERVAL:
        return None
    if count < FEWEST_FOR_BOOTSTRAP:
        half = student_t(0.975, count - 1) * float(np.std(logs, ddof=1)) / math.sqrt(count)
        return float(np.mean(logs)) - half, float(np.mean(logs)) + half
    # RandomState, not Generator: its stream is frozen, so a Record can be computed again with any NumPy.
    draws = np.random.RandomState(seed % 2**32).randint(0, count, (RESAMPLES, count))
    medians = np.median(logs[draws], axis=1)
    tail = NormalDist().cdf(-math.sqrt(count / (count - 1)) * student_t(0.975, count - 1))
    low, high = np.quantile(medians, (tail, 1 - tail))
    return float(low), float(high)


def paired_ratio(ours: Mapping[int, float], theirs: Mapping[int, float], seed: int) -> Interval | None:
    """Return the median over rounds of ours / theirs with its interval; None without a round in common.

    Both map a round to a speed measured in it. Whatever slows a whole round cancels in its ratio.
    """
    shared = sorted(ours.keys() & theirs.keys())
    if not shared:
        return None
    return median_of_positive([ours[each] / theirs[each] for each in shared], seed)


def unpaired_ratio(ours: Sequence[float], theirs: Sequence[float], seed: int) -> Interval | None:
    """Return the ratio of the medians of two sets of speeds that were not measured side by side; None without values.

    The interval joins the two medians' own in quadrature of their logarithms; it knows nothing of what changed between
    the two measurements.
    """
    if not ours or not theirs:
        return None
    first, second = median_of_positive(ours, seed), median_of_positive(theirs, seed + 1)
    value = first.value / second.value
    if first.low is None or first.high is None or second.low is None or second.high is None:
        return Interval(value, None, None)
    down = math.hypot(math.log(first.value / first.low), math.log(second.high / second.value))
    up = math.hypot(math.log(first.high / first.value), math.log(second.value / second.low))
    return Interval(value, value * math.exp(-down), value * math.exp(up))


def widened(interval: Interval, more: float) -> Interval:
    """Return the interval with another independent error, a 95 % half width in logarithms, joined in quadrature."""
    if interval.low is None or interval.high is None:
        return interval
    down = math.hypot(math.log(interval.value / interval.low), more)
    up = math.hypot(math.log(interval.high / interval.value), more)
    return Interval(interval.value, interval.value * math.exp(-down), interval.value * math.exp(up))


def verdict(ratio: Interval, bias: float = 0.0) -> Verdict:
    """Return what a ratio of speeds shows: 'faster', 'slower', or 'no difference seen'.

    The interval must leave out 1 by more than `bias`, the part of the A/A pair's difference (in logarithms) that its
    own interval does not explain (two processes of one engine can differ for good, and rounds cannot show that), plus
    LEAST_DIFFERENCE.
    """
    margin = bias + math.log1p(LEAST_DIFFERENCE)
    if ratio.low is not None and ratio.high is not None:
        if math.log(ratio.low) > margin:
            return "faster"
        if math.log(ratio.high) < -margin:
            return "slower"
    return "no difference seen"


def unexplained(twins: Interval | None) -> float:
    """Return by how much (in logarithms) an A/A pair's interval leaves out 1; 0 where it holds 1 or there is none."""
    if twins is None or twins.low is None or twins.high is None:
        return 0.0
    return max(0.0, math.log(twins.low), -math.log(twins.high))


def rounds_wanted(rounds: int, half_width: float | None, wanted: float) -> int | None:
    """Return how many rounds would bring a half width down to the wanted one (it shrinks with their square root)."""
    if half_width is None:
        return None
    return max(FEWEST_FOR_BOOTSTRAP, math.ceil(rounds * (half_width / wanted) ** 2 - 1e-9))


def drift(values: Sequence[float]) -> float | None:
    """Return the median of the later half over that of the earlier half, minus 1; None below four values.

    The middle value of an odd number belongs to neither half.
    """
    half = len(values) // 2
    if half < 2:
        return None
    return median(values[-half:]) / median(values[:half]) - 1


def fewest_runs(percentile: float, over: int, confidence: float = CONFIDENCE) -> int:
    """Return the fewest runs of which `over` may exceed a bound so that it still is one for the percentile.

    The smallest n with P(X <= over) <= 1 - confidence for X binomial of n and 1 - percentile / 100: had more than that
    share of all runs been over, so few would have been seen that seldom (MLPerf Inference rules, early stopping).
    """
    low, high = over + 1, over + 2
    while _binomial_tail(high, over, 1 - percentile / 100) > 1 - confidence:
        low, high = high, high * 2
    while low < high:
        middle = (low + high) // 2
        if _binomial_tail(middle, over, 1 - percentile / 100) > 1 - confidence:
            low = middle + 1
        else:
            high = middle
    return low


def latency_percentile(durations: Sequence[float], percentile: float) -> float | None:
    """Return MLPerf's early-stopping bound of a latency percentile, or None where the runs are too few to carry it.

    With t the most runs that may lie over the bound, it drops the t - 1 longest and returns the longest that remains: a
    short measurement gives a larger number, never a flattering one.
    """
    count = len(durations)
    if count < fewest_runs(percentile, 0):
        return None
    low, high = 0, count  # `low` may lie over, `high` may not
    while high - low > 1:
        middle = (low + high) // 2
        if _binomial_tail(count, middle, 1 - percentile / 100) <= 1 - CONFIDENCE:
            low = middle
        else:
            high = middle
    dropped = max(low - 1, 0)
    ordered = np.sort(np.asarray(durations, dtype=np.float64))
    return float(ordered[count - 1 - dropped])


def _binomial_tail(count: int, most: int, share: float) -> float:
    """Return P(X <= most) for X binomial of `count` trials with probability `share`."""
    if most >= count:
        return 1.0
    log_share, log_rest, log_count = math.log(share), math.log1p(-share), math.lgamma(count + 1)
    return math.fsum(
        math.exp(
            log_count - math.lgamma(hit + 1) - math.lgamma(count - hit + 1) + hit * log_share + (count - hit) * log_rest
        )
        for hit in range(most + 1)
    )


def student_t(probability: float, freedom: int) -> float:
    """Return the quantile (probability above 0.5) of Student's t distribution of whole degrees of freedom.

    Bisection on the finite series of its distribution function (Abramowitz and Stegun, 26.7.3 and 26.7.4).
    """
    low, high = 0.0, 1.0
    while (1 + _student_middle(high, freedom)) / 2 < probability:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        if (1 + _student_middle(middle, freedom)) / 2 < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _student_middle(value: float, freedom: int) -> float:
    """Return P(-value < T < value)."""
    angle = math.atan(value / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2 == 1
    term, total = (cosine, cosine) if odd else (1.0, 1.0)
    if freedom == 1:
        total = 0.0
    for index in range(3 if odd else 2, freedom - 1, 2):
        term *= (index - 1) / index * cosine * cosine
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
