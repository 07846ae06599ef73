"""Check a load test's Record: its samples must be possible, and every figure must follow from them."""

from collections.abc import Iterator

import numpy as np

from perwatt.errors import RecordError
from perwatt.lab.check import Finding, differences
from perwatt.lab.load import figures
from perwatt.lab.load.claims import RULES
from perwatt.lab.load.generator import LEFT, STRANGER, UNFINISHED
from perwatt.lab.load.record import LoadRecord, Run, unpack_samples
from perwatt.lab.load.schedule import poisson

_EXTRA_S = 1.0  # a sweep may find a request late by a little more than its limit


def check(record: LoadRecord) -> list[Finding]:
    """Return every place where the Record contradicts its raw samples; an empty list means VALID."""
    found = [*_raw(record)]
    if found:
        return found
    return [*differences("", record.model_dump(), figures.complete(record).model_dump())]


def require_valid(record: LoadRecord, name: str) -> None:
    """Raise RecordError with the first place that differs; `name` says which Record."""
    found = check(record)
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise RecordError(f"{name}: INVALID: {found[0]}{more}; take the Record from its source again")


def _raw(record: LoadRecord) -> Iterator[Finding]:
    targets = {target.name: target for target in record.targets}
    if len(targets) != len(record.targets):
        yield Finding("targets", "two of one name", "a name each")
    for index, run in enumerate(record.runs):
        where = f"runs[{index}]"
        target = targets.get(run.target)
        if target is None:
            yield Finding(f"{where}.target", run.target, f"one of {', '.join(targets)}")
            continue
        yield from _raw_run(where, run, len(target.shots))
    for index, series in enumerate(record.series):
        if len(series.times_s) != len(series.values) or any(np.diff(series.times_s) < 0):
            yield Finding(f"series[{index}].times_s", f"{len(series.times_s)} times", "ascending times, one a value")
    for index, search in enumerate(record.searches):
        for probe in search.probes:
            asked = record.runs[probe] if 0 <= probe < len(record.runs) else None
            if asked is None or (asked.mode, asked.limit_s, asked.target) != ("open", search.limit_s, search.target):
                yield Finding(f"searches[{index}].probes", str(probe), "open runs of its target with its limit")
    for index, claim in enumerate(record.claims):
        if claim.rule not in RULES:
            yield Finding(f"claims[{index}].rule", claim.rule, f"one of {', '.join(RULES)}")
    if record.partial != (record.partial_reason is not None):
        yield Finding("partial_reason", str(record.partial_reason), "a reason if and only if the Record is partial")


def _raw_run(where: str, run: Run, shots: int) -> Iterator[Finding]:
    samples = unpack_samples(run.samples)
    times = (samples.due_ns, samples.released_ns, samples.sent_ns, samples.done_ns)
    if (run.mode == "open") != (run.rate is not None) or (run.mode == "closed") != (run.concurrency is not None):
        yield Finding(f"{where}.mode", run.mode, "open with a rate, or closed with a concurrency")
    if not (run.wall_s > 0 and run.seconds > 0 and run.processor_s >= 0):
        yield Finding(f"{where}.wall_s", str(run.wall_s), "positive durations")
        return
    if len(samples.due_ns) == 0:
        return
    if np.any(np.diff(samples.due_ns) < 0) or samples.due_ns[0] < 0:
        yield Finding(f"{where}.samples.due", "descending", "ascending from 0")
    for name, early, late in zip(("released", "sent", "done"), times, times[1:], strict=False):
        if np.any((late >= 0) & (late < early)):
            yield Finding(f"{where}.samples.{name}", "before what precedes it", "in order")
    if max(int(each.max()) for each in times) > (run.wall_s + _EXTRA_S) * 1e9:
        yield Finding(f"{where}.samples", "times after the run's end", f"at most {run.wall_s} s")
    if samples.shot.min() < 0 or samples.shot.max() >= shots:
        yield Finding(f"{where}.samples.shot", str(samples.shot.max()), f"below {shots}")
    if np.any(
        (samples.status < UNFINISHED) | ((samples.status >= 0) & (samples.status < 200)) | (samples.status > 999)
    ):
        yield Finding(f"{where}.samples.status", "no status", "a status, or -1 to -5")
    if np.any((samples.status != UNFINISHED) & (samples.done_ns < 0)):
        yield Finding(f"{where}.samples.done", "never, with an outcome", "the time of the outcome")
    if np.any(samples.status == UNFINISHED) and not (run.stopped or run.gave_up):
        yield Finding(f"{where}.samples.status", "unfinished requests", "none in a run that was not stopped")
    if samples.verdict.min() < 0 or samples.verdict.max() > STRANGER:
        yield Finding(f"{where}.samples.verdict", str(samples.verdict.max()), "0 to 3")
    unanswered = samples.status == LEFT
    if np.any(samples.verdict[unanswered] != 0):
        yield Finding(f"{where}.samples.verdict", "of answers that never came", "0")
    if run.mode == "open" and run.rate is not None:
        yield from _drawn(where, run, samples.due_ns)


def _drawn(where: str, run: Run, due_ns: np.ndarray) -> Iterator[Finding]:
    """Yield a finding when the arrivals are not those that rate, duration and seed draw: a schedule is no choice."""
    assert run.rate is not None
    again = poisson(run.rate, run.seconds, (1.0,), run.seed).due_ns // 1000 * 1000
    whole = not (run.stopped or run.gave_up)
    if (whole and len(again) != len(due_ns)) or len(again) < len(due_ns) or np.any(again[: len(due_ns)] != due_ns):
        yield Finding(f"{where}.samples.due", f"{len(due_ns)} arrivals", f"the {len(again)} that the seed draws")
