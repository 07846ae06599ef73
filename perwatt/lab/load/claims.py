"""Sentences that a load test supports or not, each by a rule that anybody can compute again from the Record."""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from perwatt.lab.load.record import Claim, LoadRecord, Run, Series, unpack_samples
from perwatt.lab.record import Estimate
from perwatt.lab.statistics import paired_ratio

CALM_S = 1.0
UNEXPECTED = ("wrong", "stranger", "rejected", "failed", "other")
NOT_ANSWERED = ("unanswered", "broken", "unconnected", "unfinished")
GROWTH_S = 600.0

Found = tuple[float, float | None, float | None] | None
Rule = Callable[[LoadRecord, Sequence[str]], Found]


def claim(text: str, rule: str, of: Sequence[str], relation: str, wanted: float) -> Claim:
    """Return a Claim that `figures.complete` will judge. Raises KeyError for an unknown rule."""
    RULES[rule]
    return Claim.model_validate(
        {
            "text": text,
            "rule": rule,
            "of": tuple(of),
            "relation": relation,
            "wanted": wanted,
            **dict.fromkeys(("value", "low", "high", "met")),
        }
    )


def judged(claim: Claim, record: LoadRecord) -> Claim:
    """Return the claim with its value and whether it is met."""
    found = RULES[claim.rule](record, claim.of) if claim.rule in RULES else None
    if found is None or not math.isfinite(found[0]):
        return claim.model_copy(update={"value": None, "low": None, "high": None, "met": None})
    value, low, high = found
    met = value >= claim.wanted if claim.relation == ">=" else value <= claim.wanted
    return claim.model_copy(update={"value": value, "low": low, "high": high, "met": met})


def _runs(record: LoadRecord, label: str) -> list[Run]:
    return [run for run in record.runs if run.label == label]


def _series(record: LoadRecord, name: str) -> Series | None:
    return next((each for each in record.series if each.name == name), None)


def _one(estimate: Estimate | None) -> Found:
    return None if estimate is None else (estimate.value, estimate.low, estimate.high)


def _answers_per_s(record: LoadRecord, of: Sequence[str]) -> Found:
    """Right answers per second of the fastest run of that label."""
    runs = _runs(record, of[0])
    return _one(max((run.figures.answers_per_s for run in runs), key=lambda each: each.value, default=None))


def _latency_p50(record: LoadRecord, of: Sequence[str]) -> Found:
    """The median over runs of that label of their median latency."""
    found = [run.figures.latency_p50_s for run in _runs(record, of[0]) if run.figures.latency_p50_s is not None]
    return (float(np.median(found)), min(found), max(found)) if found else None


def _latency_p99(record: LoadRecord, of: Sequence[str]) -> Found:
    """The worst p99 (early-stopping bound) of the runs of that label."""
    found = [
        percentile.latency_s
        for run in _runs(record, of[0])
        for percentile in run.figures.percentiles
        if percentile.percentile == 99.0
    ]
    return (max(found), None, None) if found else None


def _rate_ratio(record: LoadRecord, of: Sequence[str]) -> Found:
    """Right answers per second of the first label over the second's, paired by round."""
    first, second = ({run.round: run.figures.answers_per_s.value for run in _runs(record, label)
                      if run.round is not None and run.figures.answers_per_s.value > 0} for label in of)  # fmt: skip
    ratio = paired_ratio(first, second, record.seed) if first and second else None
    return None if ratio is None else (ratio.value, ratio.low, ratio.high)


def _rate_over_series(record: LoadRecord, of: Sequence[str]) -> Found:
    """Right answers per second of a label over a series that has one value a round, paired by round."""
    series = _series(record, of[1])
    ours = {run.round: run.figures.answers_per_s.value for run in _runs(record, of[0])
            if run.round is not None and run.figures.answers_per_s.value > 0}  # fmt: skip
    theirs = dict(enumerate(series.values)) if series is not None else {}
    ratio = paired_ratio(ours, {key: value for key, value in theirs.items() if value > 0}, record.seed)
    return None if ratio is None else (ratio.value, ratio.low, ratio.high)


def _goodput_ratio(record: LoadRecord, of: Sequence[str]) -> Found:
    """Goodput of the first label's runs over right answers per second of the second's, medians."""
    ours = [run.figures.goodput_per_s.value for run in _runs(record, of[0])]
    theirs = [run.figures.answers_per_s.value for run in _runs(record, of[1])]
    if not ours or not theirs or np.median(theirs) <= 0:
        return None
    return float(np.median(ours) / np.median(theirs)), None, None


def _held_ratio(record: LoadRecord, of: Sequence[str]) -> Found:
    """The highest rate that held of the first target over the second's, between the ends of both intervals."""
    found = {search.target: search for search in record.searches}
    first, second = found.get(of[0]), found.get(of[1])
    if first is None or second is None or first.held is None or second.held is None:
        return None
    if second.limited_by != "server":  # it may hold more than was seen: nothing to boast of
        return None
    low = first.held / second.failed if second.failed is not None else None
    high = first.failed / second.held if first.failed is not None else None
    return first.held / second.held, low, high


def _unexpected(record: LoadRecord, of: Sequence[str]) -> Found:
    """Answers of those labels that neither were good nor say that the server is busy."""
    runs = [run for label in of for run in _runs(record, label)]
    names = UNEXPECTED
    return (
        (float(sum(run.figures.outcomes.get(name, 0) for run in runs for name in names)), None, None)
        if (runs)
        else None
    )


def _not_answered(record: LoadRecord, of: Sequence[str]) -> Found:
    """Requests of those labels that got neither an answer nor a refusal."""
    runs = [run for label in of for run in _runs(record, label)]
    return (
        (float(sum(run.figures.outcomes.get(name, 0) for run in runs for name in NOT_ANSWERED)), None, None)
        if (runs)
        else None
    )


def _wrong(record: LoadRecord, of: Sequence[str]) -> Found:
    """Answers of those labels that were wrong, or another request's."""
    runs = [run for label in of for run in _runs(record, label)]
    return (float(sum(run.figures.outcomes.get(name, 0) for run in runs for name in ("wrong", "stranger"))),
            None, None) if runs else None  # fmt: skip


def _recovery(record: LoadRecord, of: Sequence[str]) -> Found:
    """Seconds from the end of the first label's arrivals until a second in which the next run's requests were good.

    Good: right, and within the run's deadline or else its p99 limit. The second starts at a request that is good.
    """
    before, after = _runs(record, of[0]), _runs(record, of[1])
    if not before or not after:
        return None
    limit_s = after[-1].deadline_s or after[-1].limit_s or math.inf
    samples = unpack_samples(after[-1].samples)
    good = (samples.status == 200) & (samples.verdict <= 1) & (samples.done_ns - samples.due_ns <= limit_s * 1e9)
    due_s = samples.due_ns * 1e-9
    waited_s = after[-1].start_s - before[-1].start_s - before[-1].seconds
    for start_s in (0.0, *due_s[good]):
        calm = (due_s >= start_s) & (due_s < start_s + CALM_S)
        if np.any(calm) and np.all(good[calm]) and start_s + CALM_S <= after[-1].seconds:
            return max(0.0, waited_s + float(start_s)), None, None
    return None


def _growth(record: LoadRecord, of: Sequence[str]) -> Found:
    """A series' slope over ten minutes, as a share of its median."""
    series = _series(record, of[0])
    if series is None or series.slope_per_s is None:
        return None
    share = GROWTH_S / float(np.median(series.values))
    slope = series.slope_per_s
    return share * slope.value, _times(slope.low, share), _times(slope.high, share)


def _times(value: float | None, share: float) -> float | None:
    return None if value is None else value * share


RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "answers per second": _answers_per_s,
        "p50 latency": _latency_p50,
        "p99 latency": _latency_p99,
        "ratio of rates": _rate_ratio,
        "ratio to series": _rate_over_series,
        "ratio of goodput to rate": _goodput_ratio,
        "ratio of held rates": _held_ratio,
        "not answered": _not_answered,
        "unexpected answers": _unexpected,
        "wrong answers": _wrong,
        "recovery": _recovery,
        "growth in ten minutes": _growth,
    }
)
