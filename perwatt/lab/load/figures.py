"""What follows from the samples of a load test: outcomes, rates, percentiles, whether the generator kept up."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from perwatt.lab.load import claims, generator
from perwatt.lab.load.generator import RIGHT, STRANGER, UNJUDGED, WRONG, Samples
from perwatt.lab.load.record import (
    LoadRecord,
    Run,
    RunFigures,
    Search,
    ShotFacts,
    unpack_samples,
)
from perwatt.lab.load.trend import slope
from perwatt.lab.record import Estimate, Percentile
from perwatt.lab.statistics import PERCENTILES, fewest_runs, latency_percentile, student_t

OUTCOMES = (
    "good", "late", "wrong", "stranger", "hostile", "left", "refused", "unavailable", "expired", "rejected", "failed",
    "other", "unanswered", "broken", "unconnected", "unfinished",
)  # fmt: skip
LIMIT_PERCENTILE = 99.0
# The generator kept up when its own lateness moves no percentile by more than these.
LATENESS_SHARE = 0.1
LATENESS_S = 1e-3
MOST_GENERATOR_SHARE = 0.9  # of one core, for the generator is one thread
SLICES = 10
MOST_TOLD = 5
_NUMBER = {name: number for number, name in enumerate(OUTCOMES)}
_WITHOUT_STATUS = {
    generator.UNANSWERED: "unanswered",
    generator.BROKEN: "broken",
    generator.UNCONNECTED: "unconnected",
    generator.LEFT: "left",
    generator.UNFINISHED: "unfinished",
}
_OF_STATUS = {429: "refused", 503: "unavailable", 504: "expired", 408: "expired"}


def complete(record: LoadRecord) -> LoadRecord:
    """Return the Record with every derived field computed anew: figures, slopes, search, claims, digest."""
    shots = {target.name: target.shots for target in record.targets}
    runs = tuple(run.model_copy(update={"figures": figures_of(run, shots[run.target])}) for run in record.runs)
    series = tuple(each.model_copy(update={"slope_per_s": slope(each.times_s, each.values)}) for each in record.series)
    searches = tuple(concluded(search, runs) for search in record.searches)
    changed = record.model_copy(update={"runs": runs, "series": series, "searches": searches})
    changed = changed.model_copy(update={"claims": tuple(claims.judged(claim, changed) for claim in record.claims)})
    return changed.model_copy(update={"digest": digest(changed)})


def digest(record: LoadRecord) -> str:
    """Return the SHA-256 of all fields but the digest itself, as canonical JSON (sorted keys, no spaces)."""
    content = record.model_dump(mode="json", exclude={"digest"})
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def figures_of(run: Run, shots: Sequence[ShotFacts]) -> RunFigures:
    """Return the figures of a run from its samples."""
    samples = unpack_samples(run.samples)
    names = outcomes(samples, shots, good_within_s(run))
    latency_s = latencies_s(samples)
    window_s = window(run, samples)
    right = np.isin(names, (_NUMBER["good"], _NUMBER["late"]))
    done_s = samples.done_ns * 1e-9
    answered = latency_s[right]
    late_s = np.maximum(samples.released_ns - samples.due_ns, 0) * 1e-9
    reason = behind(run, samples)
    plain = np.asarray([shot.behaviour == "plain" and 200 in shot.expects for shot in shots])[samples.shot]
    bounded = np.where(right, latency_s, math.inf)[plain & (samples.status != generator.UNFINISHED)]
    kept_up = reason is None
    shown = answered.tolist() if kept_up else []
    # What was under way when a run was stopped might have been late: such a run can show a failure, no success.
    kept = holds(bounded, run.limit_s) if kept_up else None
    carried = ((percentile, latency_percentile(shown, percentile)) for percentile in PERCENTILES)
    return RunFigures(
        requests=len(names),
        outcomes=_counts(names),
        offered_per_s=len(names) / window_s,
        answers_per_s=rate(done_s[right], window_s),
        goodput_per_s=rate(done_s[names == _NUMBER["good"]], window_s),
        latency_p50_s=float(np.median(answered)) if len(shown) else None,
        percentiles=tuple(
            Percentile(percentile=percentile, latency_s=bound) for percentile, bound in carried if bound is not None
        ),
        longest_s=float(answered.max()) if len(shown) else None,
        within_limit=_share(bounded, run.limit_s),
        holds=None if kept and run.stopped else kept,
        lateness_p50_s=_quantile(late_s, 50),
        lateness_p99_s=_quantile(late_s, 99),
        waited_for_connection=int(np.sum(samples.sent_ns - samples.released_ns > 1e6)),
        generator_share=run.processor_s / run.wall_s,
        generator_cost_s=run.processor_s / max(len(names), 1),
        kept_up=kept_up,
        kept_up_reason=reason,
        warnings=tuple(_warnings(run, samples, names, shots)),
    )


def good_within_s(run: Run) -> float | None:
    """Return within what time a right answer is good: the deadline, else the p99 limit, else any."""
    return run.deadline_s if run.deadline_s is not None else run.limit_s


def outcomes(samples: Samples, shots: Sequence[ShotFacts], within_s: float | None) -> np.ndarray:
    """Return the outcome of each request as an index of OUTCOMES; a right answer after `within_s` is late."""
    found = np.full(len(samples.status), _NUMBER["other"], dtype=np.int64)
    status = samples.status.astype(np.int64)
    found[(status >= 400) & (status < 500)] = _NUMBER["rejected"]
    found[(status >= 500) & (status < 600)] = _NUMBER["failed"]
    for code, name in (_WITHOUT_STATUS | _OF_STATUS).items():
        found[status == code] = _NUMBER[name]
    ok = status == 200
    in_time = np.ones(len(ok), dtype=bool) if within_s is None else latencies_s(samples) <= within_s
    found[ok & in_time] = _NUMBER["good"]
    found[ok & ~in_time] = _NUMBER["late"]
    found[ok & (samples.verdict == WRONG)] = _NUMBER["wrong"]
    found[ok & (samples.verdict == STRANGER)] = _NUMBER["stranger"]
    for number, shot in enumerate(shots):
        if shot.expects == (200,):
            continue
        mine, meant = samples.shot == number, np.isin(status, shot.expects)
        found[mine & meant & ~ok] = _NUMBER["hostile"]
        found[mine & ok & ~meant] = _NUMBER["wrong"]  # what had to be refused was answered
    return found


def latencies_s(samples: Samples) -> np.ndarray:
    """Return each request's latency from its due time, in seconds; infinite where it was never done."""
    return np.where(samples.done_ns >= 0, (samples.done_ns - samples.due_ns) * 1e-9, math.inf)


def window(run: Run, samples: Samples) -> float:
    """Return the time over which a run's rates count: all of it, or up to where it was stopped or given up."""
    if not (run.stopped or run.gave_up) or not len(samples.due_ns):
        return run.seconds
    return max(1e-3, min(run.seconds, float(samples.due_ns[-1]) * 1e-9))


def rate(done_s: np.ndarray, window_s: float) -> Estimate:
    """Return how many were done per second of the window, with a 95 % interval from ten slices of it.

    Answers after the window do not count: they were made in time that nobody waited in.
    """
    counts, _ = np.histogram(done_s, bins=SLICES, range=(0.0, window_s))
    value = float(counts.sum()) / window_s
    half = student_t(0.975, SLICES - 1) * float(np.std(counts, ddof=1)) * SLICES / window_s / math.sqrt(SLICES)
    return Estimate(value=value, low=max(0.0, value - half), high=value + half)


def behind(run: Run, samples: Samples) -> str | None:
    """Return why nothing may be concluded about the server, or None when the generator kept up.

    Its lateness is part of every latency. While it moves no percentile of all requests by much, latencies are the
    server's; the same thread takes the answers, so that one which is late to send is as late to see them. A machine
    that stands still for a while shows here too, for it stops the generator with the server.
    """
    if run.mode == "closed":
        return None
    share = run.processor_s / run.wall_s
    if share > MOST_GENERATOR_SHARE:
        return f"the generator used {100 * share:.0f} % of the one core it can use"
    done = samples.done_ns >= 0
    if not np.any(done):
        return None
    from_due_s = (samples.done_ns - samples.due_ns)[done] * 1e-9
    late_s = np.maximum(samples.released_ns - samples.due_ns, 0)[done] * 1e-9
    for percentile in (50, 99):
        whole = float(np.percentile(from_due_s, percentile))
        moved = whole - float(np.percentile(from_due_s - late_s, percentile))
        if moved > max(LATENESS_S, LATENESS_SHARE * whole):
            return f"the generator's own lateness makes {1e3 * moved:.1f} of {1e3 * whole:.1f} ms at p{percentile}"
    return None


def holds(bounded_s: np.ndarray, limit_s: float | None) -> bool | None:
    """Return whether p99 keeps the limit at 99 % confidence (MLPerf's early stopping); failures count as endless."""
    if limit_s is None:
        return None
    bound = latency_percentile(bounded_s.tolist(), LIMIT_PERCENTILE)
    if bound is not None:
        return bound <= limit_s
    # Too few to show that it holds; enough to show that it does not?
    return False if int(np.sum(bounded_s > limit_s)) > allowed(fewest_runs(LIMIT_PERCENTILE, 0)) else None


def allowed(requests: int) -> int:
    """Return how many of so many requests may exceed a p99 limit that still counts as kept; -1 when none may."""
    over = -1
    while requests >= fewest_runs(LIMIT_PERCENTILE, over + 1):
        over += 1
    return max(over - 1, 0)


def concluded(search: Search, runs: Sequence[Run]) -> Search:
    """Return the search with what its probes show: the interval, and what its upper end is of."""
    probes = [runs[index] for index in search.probes]
    fell = [run.rate for run in probes if run.figures.holds is False and run.rate is not None]
    behind_at = [run.rate for run in probes if not run.figures.kept_up and run.rate is not None]
    failed = min(fell, default=None)
    kept = [run.rate for run in probes if run.figures.holds and run.rate is not None]
    held = max((each for each in kept if failed is None or each < failed), default=None)
    if held is None:
        limited = "nothing held"
    elif failed is not None and (not behind_at or failed < min(behind_at)):
        limited = "server"
    else:
        limited = "generator" if behind_at else "ceiling"
    return search.model_copy(update={"held": held, "failed": failed, "limited_by": limited})


def _counts(names: np.ndarray) -> dict[str, int]:
    counts = np.bincount(names, minlength=len(OUTCOMES)).tolist()
    return {name: count for name, count in zip(OUTCOMES, counts, strict=True) if count}


def _share(bounded_s: np.ndarray, limit_s: float | None) -> float | None:
    return None if limit_s is None or not len(bounded_s) else float(np.mean(bounded_s <= limit_s))


def _quantile(values: np.ndarray, percentile: float) -> float | None:
    return float(np.percentile(values, percentile)) if len(values) else None


def _warnings(run: Run, samples: Samples, names: np.ndarray, shots: Sequence[ShotFacts]) -> list[str]:
    found = []
    waited = int(np.sum(samples.sent_ns - samples.released_ns > 1e6))
    if waited > 0.01 * len(names) and run.connections >= run.connections_limit:
        found.append(f"{waited} requests waited for one of {run.connections_limit} connections; allow more")
    judged = int(np.sum(samples.verdict != UNJUDGED))
    wrong = judged - int(np.sum(samples.verdict == RIGHT))
    if wrong:
        found.append(f"{wrong} of {judged} checked answers are wrong")
    odd = np.isin(names, [_NUMBER[name] for name in claims.UNEXPECTED])
    counts = Counter(zip(samples.shot[odd].tolist(), samples.status[odd].tolist(), strict=True))
    told = [f"{shots[shot].name} got {status} ({count}x)" for (shot, status), count in counts.most_common(MOST_TOLD)]
    if told:
        found.append(", ".join(told) + (", ..." if len(counts) > MOST_TOLD else ""))
    return found
