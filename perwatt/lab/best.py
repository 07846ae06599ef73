"""The choice: which engine, precision, batch and threads give most images/s, least latency, most images/s/W.

Only what a Record shows counts: a setting whose p99 its runs do not carry is not one that keeps a p99 limit.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rich.text import Text

from perwatt.lab import energy_table, statistics
from perwatt.lab.notation import estimate_text, milliseconds_text, percent_text
from perwatt.lab.record import Estimate, Limits, Record, Row

MOST_SPEED, LEAST_LATENCY, MOST_PER_WATT = "most images/s", "least latency", "most images/s/W"
NO_LIMITS = Limits(p99_s=None, top1_agreement=None)


@dataclass(frozen=True)
class Pick:
    """The best setting for one goal, and those that this measurement does not tell apart from it.

    `scope` is that of the watts. Without a row, `reason` says why.
    """

    goal: str
    row: Row | None
    tied: tuple[Row, ...] = ()
    scope: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Best:
    """The choice for one network: a pick for each goal, the frontier, and how many settings fell to which limit.

    The frontier are the settings that no other beats in images/s, latency and images/s/W at once.
    """

    network: str
    picks: tuple[Pick, ...]
    frontier: tuple[Row, ...]
    excluded: tuple[tuple[str, int], ...]


def best_of(record: Record) -> tuple[Best, ...]:
    """Return the choice for each network of a Record, within its limits."""
    networks = dict.fromkeys(row.network for row in record.rows if row.engine != "null")
    return tuple(_of_network(record, network, record.limits or NO_LIMITS) for network in networks)


def _of_network(record: Record, network: str, limits: Limits) -> Best:
    kept: list[Row] = []
    excluded: dict[str, int] = {}
    for row in record.rows:
        if row.network != network or row.engine == "null":
            continue
        why = obstacle(row, limits)
        if why is None:
            kept.append(row)
        else:
            excluded[why] = excluded.get(why, 0) + 1
    return Best(network, tuple(_picks(record, kept)), frontier(kept), tuple(excluded.items()))


def obstacle(row: Row, limits: Limits) -> str | None:
    """Return why a row cannot be chosen, in words that rows share; None where it can."""
    figures = row.figures
    if row.status != "ok" or figures.images_per_s is None or figures.latency_p50_s is None:
        return "no valid speed"
    if limits.p99_s is not None:
        shown = next((each.latency_s for each in figures.percentiles if each.percentile == 99.0), None)
        if shown is not None and shown > limits.p99_s:
            return f"p99 above {milliseconds_text(limits.p99_s)} ms"
        if shown is None:
            longest = max((duration for block in row.blocks for duration in block.durations_ns), default=0) * 1e-9
            if figures.latency_p50_s > limits.p99_s:
                return f"p99 above {milliseconds_text(limits.p99_s)} ms"
            seen = "though no run was longer" if longest <= limits.p99_s else "and some runs were longer"
            fewest = statistics.fewest_runs(99.0, 0)
            return f"p99 not shown by fewer than {fewest} runs, {seen}; a longer profile may show it"
    if limits.top1_agreement is not None and (figures.top1_agreement or 0.0) < limits.top1_agreement:
        return f"top-1 agreement below {100 * limits.top1_agreement:g} %"
    return None


def _picks(record: Record, rows: Sequence[Row]) -> Iterator[Pick]:
    if not rows:
        for goal in (MOST_SPEED, LEAST_LATENCY, MOST_PER_WATT):
            yield Pick(goal, None, reason="no setting keeps the limits")
        return
    fastest = max(rows, key=_speed)
    yield Pick(MOST_SPEED, fastest, _tied(fastest, rows, lambda row: row.figures.images_per_s))
    soonest = min(rows, key=_latency)
    yield Pick(LEAST_LATENCY, soonest, _tied_latency(soonest, rows))
    found = energy_table.scopes(record)
    for scope, meter in found:
        metered = [row for row in rows if (of := energy_table.metered(row)) is not None and of.meter == meter]
        if metered:
            frugal = max(metered, key=_per_joule)
            yield Pick(MOST_PER_WATT, frugal, _tied(frugal, metered, _estimate_per_joule), scope=scope)
    if not any(energy_table.metered(row) for row in rows):
        reason = record.energy.reason if record.energy is not None else None
        failed = next((of.reason for row in rows if (of := row.figures.energy) is not None and of.reason), None)
        yield Pick(MOST_PER_WATT, None, reason=failed or reason or "no meter was read")


def _tied(best: Row, rows: Sequence[Row], take: Callable[[Row], Estimate | None]) -> tuple[Row, ...]:
    """Return the rows whose interval reaches into the best one's."""
    own = take(best)
    if own is None or own.low is None:
        return tuple(row for row in rows if row is not best)
    found = []
    for row in rows:
        other = take(row)
        if row is not best and other is not None and (other.high is None or other.high >= own.low):
            found.append(row)
    return tuple(found)


def _tied_latency(best: Row, rows: Sequence[Row]) -> tuple[Row, ...]:
    """Return the rows whose median latency is not told apart from the best one's, by the intervals of their speeds."""

    def relative(row: Row) -> float:
        speed = row.figures.images_per_s
        if speed is None or speed.low is None or speed.high is None:
            return 1.0
        return (speed.high - speed.low) / 2 / speed.value

    most = _latency(best) * (1 + relative(best))
    return tuple(row for row in rows if row is not best and _latency(row) * (1 - relative(row)) <= most)


def _speed(row: Row) -> float:
    return row.figures.images_per_s.value if row.figures.images_per_s is not None else 0.0


def _latency(row: Row) -> float:
    return row.figures.latency_p50_s if row.figures.latency_p50_s is not None else float("inf")


def _estimate_per_joule(row: Row) -> Estimate | None:
    return row.figures.energy.images_per_joule if row.figures.energy is not None else None


def _per_joule(row: Row) -> float:
    found = _estimate_per_joule(row)
    return found.value if found is not None else 0.0


def frontier(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Return the rows that no other beats: none is as good in all of speed, latency and images/s/W, better in one.

    Images/s/W count only between rows of the same meter: unlike scopes are not compared.
    """
    return tuple(row for row in rows if not any(_beats(other, row) for other in rows if other is not row))


def _beats(one: Row, other: Row) -> bool:
    ours, theirs = one.figures.energy, other.figures.energy
    gains = [_speed(one) - _speed(other), _latency(other) - _latency(one)]
    if theirs is not None and theirs.images_per_joule is not None:
        if ours is None or ours.images_per_joule is None or ours.meter != theirs.meter:
            return False
        gains.append(_per_joule(one) - _per_joule(other))
    return min(gains) >= 0 and max(gains) > 0


def setting(row: Row) -> str:
    """Return a row's setting in words."""
    return f"{row.engine} {row.precision}, batch {row.batch}, {row.threads} thread{'s' if row.threads != 1 else ''}"


def best_lines(record: Record) -> Iterator[Text]:
    """Yield the choice for people, a line a goal."""
    for best in best_of(record):
        limits = _limits_text(record.limits or NO_LIMITS)
        yield Text.assemble((f"best settings for {best.network}", "bold"), limits)
        for pick in best.picks:
            yield Text.assemble(f"  {pick.goal}: ", (setting(pick.row), "bold") if pick.row else "none", _told(pick))
        for why, count in best.excluded:
            yield Text(f"  left out: {count} setting{'s' if count != 1 else ''}, {why}")


def _limits_text(limits: Limits) -> str:
    parts = []
    if limits.p99_s is not None:
        parts.append(f"p99 at most {milliseconds_text(limits.p99_s)} ms")
    if limits.top1_agreement is not None:
        parts.append(f"top-1 agreement at least {100 * limits.top1_agreement:g} %")
    return f" ({', '.join(parts)})" if parts else ""


def _told(pick: Pick) -> str:
    if pick.row is None:
        return f": {pick.reason}"
    figures, metered = pick.row.figures, energy_table.metered(pick.row)
    told = f": {estimate_text(figures.images_per_s)} images/s, p50 {milliseconds_text(figures.latency_p50_s)} ms"
    told += f", top-1 {percent_text(figures.top1_agreement)}"
    if metered is not None:
        told += f", {estimate_text(metered.images_per_joule)} images/s/W ({metered.scope})"
    if pick.tied:
        names = "; ".join(setting(row) for row in pick.tied[:3])
        told += f"; not told apart: {names}" + (f" and {len(pick.tied) - 3} more" if len(pick.tied) > 3 else "")
    return told
