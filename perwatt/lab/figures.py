"""Every figure that is printed, computed from a Record's raw parts; `bench` and `check` both use these functions.

A figure may depend on nothing but the Record itself: `complete(record) == record` holds for every Record as measured.
"""

import hashlib
import json
import math
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from perwatt.lab import energy, statistics, truth
from perwatt.lab.record import (
    LATER_FIELDS,
    NO_FIGURES,
    Block,
    Estimate,
    Figures,
    Noise,
    Percentile,
    Record,
    Reference,
    Row,
)

MOST_DRIFT = 0.05
MOST_CLOCK_CHANGE = 0.1
Case = tuple[str, int]
Peers = tuple[str, int, str, str, int]
Value = TypeVar("Value")


def complete(record: Record) -> Record:
    """Return the Record with every derived field computed anew: statuses, figures, noise, harness cost, digest."""
    references = references_by_case(record.references)
    noise = None
    if record.noise is not None:
        base = next((row for row in record.rows if _is_pair(record.noise, row)), None)
        noise = _with_ratio(record.noise, base, record.seed)
        noise = energy.with_energy_ratio(noise, base, record.energy, record.seed)
    judged = tuple(with_judgement(row, references.get((row.network, row.batch), {})) for row in record.rows)
    rows = with_figures(judged, references, noise, record.profile.half_width, record.seed)
    rows = energy.with_energy(rows, record.energy, noise, record.seed)
    changed = record.model_copy(update={"rows": rows, "noise": noise, "harness_cost_s": harness_cost_s(rows)})
    return changed.model_copy(update={"digest": digest(changed)})


def digest(record: Record) -> str:
    """Return the SHA-256 of all fields but the digest itself, as canonical JSON (sorted keys, no spaces).

    Fields that version 1 did not have are left out where a Record does not have them.
    """
    content = _without_absent(record.model_dump(mode="json", exclude={"digest"}))
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _without_absent(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            name: _without_absent(inner)
            for name, inner in value.items()
            if not (name in LATER_FIELDS and inner in (None, []))
        }
    return [_without_absent(each) for each in value] if isinstance(value, list) else value


def _is_pair(noise: Noise, row: Row) -> bool:
    return (row.network, row.engine, row.batch, row.precision) == (
        noise.network, noise.engine, noise.batch, noise.precision,
    ) and noise.threads in (None, row.threads)  # fmt: skip


def references_by_case(references: Sequence[Reference]) -> dict[Case, dict[int, Reference]]:
    """Return the references by network and batch, then by input."""
    found: dict[Case, dict[int, Reference]] = defaultdict(dict)
    for reference in references:
        found[reference.network, reference.batch][reference.input] = reference
    return found


def is_judged(row: Row) -> bool:
    """Return whether the row's outputs and speed mean anything: it was measured to its end, or until Ctrl-C."""
    return row.status in ("ok", "invalid") and bool(row.blocks)


def with_judgement(row: Row, references: Mapping[int, Reference]) -> Row:
    """Return the row as ok or invalid, by its sampled outputs; a row that failed otherwise stays as it is."""
    if not is_judged(row) or row.engine == "null":
        return row
    fault = truth.fault(row.samples, references, row.precision, row.precision_reported, row.coarsest)
    return row.model_copy(update={"status": "invalid" if fault else "ok", "reason": fault})


def block_speed(block: Block, batch: int) -> float:
    """Return a block's speed in images/s: its images over the sum of its runs' durations."""
    return batch * len(block.durations_ns) / (sum(block.durations_ns) * 1e-9)


def speeds_by_round(blocks: Sequence[Block], batch: int) -> dict[int, float]:
    """Return the speed of each round in images/s."""
    return {block.round: block_speed(block, batch) for block in blocks}


def harness_cost_s(rows: Sequence[Row]) -> float | None:
    """Return the wall time per run of the timed loop on the null engine, the median of its blocks; None without one."""
    costs = [
        block.elapsed_s / len(block.durations_ns)
        for row in rows
        if row.engine == "null" and is_judged(row)
        for block in row.blocks
    ]
    return statistics.median(costs) if costs else None


def with_figures(
    rows: Sequence[Row],
    references: Mapping[Case, Mapping[int, Reference]],
    noise: Noise | None,
    half_width: float,
    seed: int,
) -> tuple[Row, ...]:
    """Return the rows with their figures; the rows must have been judged."""
    speeds = [speeds_by_round(row.blocks, row.batch) if is_judged(row) else {} for row in rows]
    own = [
        estimate(
            statistics.median_of_positive(
                [block_speed(each, row.batch) for each in row.blocks], _seed(seed, row, "speed")
            )
        )
        if is_judged(row)
        else None
        for row in rows
    ]
    peers: dict[Peers, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        if row.status == "ok" and row.engine != "null" and speeds[index]:
            peers[_peers(row)].append(index)
    bias = statistics.unexplained(_interval(noise.ratio)) if noise is not None and noise.ratio is not None else 0.0
    changed = []
    for index, row in enumerate(rows):
        if not is_judged(row):
            changed.append(row.model_copy(update={"figures": NO_FIGURES}))
            continue
        others = [each for each in peers.get(_peers(row), ()) if each != index]
        best = max(others, key=lambda each: _value(own[each]), default=None) if row.status == "ok" else None
        ratio, side_by_side = None, True
        if best is not None and row.engine != "null":
            ratio = statistics.paired_ratio(speeds[index], speeds[best], _seed(seed, row, "ratio"))
            if ratio is None:  # they did not fit into memory together
                side_by_side = False
                ratio = statistics.unpaired_ratio(
                    list(speeds[index].values()), list(speeds[best].values()), _seed(seed, row, "ratio")
                )
        figures = _of_row(row, own[index], references.get((row.network, row.batch), {}), half_width)
        if ratio is not None and best is not None:
            wanted = statistics.rounds_wanted(figures.rounds, ratio.half_width(), half_width)
            apart = () if side_by_side else (f"not measured side by side with {rows[best].engine}: memory",)
            figures = figures.model_copy(
                update={
                    "best_other": rows[best].engine,
                    "ratio_to_best": estimate(ratio),
                    "verdict": statistics.verdict(ratio, bias),
                    "rounds_wanted": wanted,
                    "warnings": figures.warnings + apart,
                }
            )
        changed.append(row.model_copy(update={"figures": figures}))
    return tuple(changed)


def _peers(row: Row) -> Peers:
    """Return what rows share that are compared with each other."""
    return (row.network, row.batch, row.precision, row.device, row.threads)


def widest_half_width(rows: Sequence[Row]) -> float | None:
    """Return the widest relative half width among the rows' intervals, None while one has no interval.

    What counts is the ratio to the best other engine, or the speed of a row without one; `null` does not count. The
    rows must have their figures.
    """
    widths = []
    for row in rows:
        if row.status != "ok" or row.engine == "null" or row.figures.images_per_s is None:
            continue
        width = _interval(row.figures.ratio_to_best or row.figures.images_per_s).half_width()
        if width is None:
            return None
        widths.append(width)
    return max(widths, default=None)


def estimate(interval: statistics.Interval) -> Estimate:
    """Return an Interval as the Record keeps it."""
    return Estimate(value=interval.value, low=interval.low, high=interval.high)


def _interval(kept: Estimate) -> statistics.Interval:
    return statistics.Interval(kept.value, kept.low, kept.high)


def _value(kept: Estimate | None) -> float:
    return -math.inf if kept is None else kept.value


def _seed(seed: int, row: Row, purpose: str) -> int:
    return zlib.crc32(f"{seed}/{row.network}/{row.engine}/{row.batch}/{row.precision}/{purpose}".encode())


def _with_ratio(noise: Noise, base: Row | None, seed: int) -> Noise:
    ratio = None
    if base is not None:
        ratio = statistics.paired_ratio(
            speeds_by_round(noise.blocks, noise.batch),
            speeds_by_round(base.blocks, base.batch),
            zlib.crc32(f"{seed}/noise".encode()),
        )
    floor = ratio.half_width() if ratio is not None else None
    return noise.model_copy(update={"ratio": None if ratio is None else estimate(ratio), "floor": floor})


def _of_row(row: Row, speed: Estimate | None, references: Mapping[int, Reference], half_width: float) -> Figures:
    durations = [duration * 1e-9 for block in row.blocks for duration in block.durations_ns]
    bounds = {each: statistics.latency_percentile(durations, each) for each in statistics.PERCENTILES}
    judged = row.engine != "null"
    moved = statistics.drift([block_speed(block, row.batch) for block in row.blocks])
    width = None if speed is None else _interval(speed).half_width()
    return Figures(
        images_per_s=speed,
        latency_p50_s=statistics.median(durations),
        percentiles=tuple(
            Percentile(percentile=each, latency_s=bound) for each, bound in bounds.items() if bound is not None
        ),
        relative_error=truth.worst_error(row.samples) if judged else None,
        tolerance=truth.tolerance(truth.held_to(row.precision, row.coarsest), references) if judged else None,
        top1_agreement=truth.top1_agreement(row.samples, references) if judged else None,
        best_other=None,
        ratio_to_best=None,
        verdict=None,
        drift=moved,
        rounds=len(row.blocks),
        rounds_wanted=statistics.rounds_wanted(len(row.blocks), width, half_width),
        warnings=_warnings(row, moved, references),
    )


def _warnings(row: Row, moved: float | None, references: Mapping[int, Reference]) -> tuple[str, ...]:
    found = []
    if len(row.blocks) < statistics.FEWEST_FOR_INTERVAL:
        found.append(f"{len(row.blocks)} rounds: too few for an interval")
    elif len(row.blocks) < statistics.FEWEST_FOR_BOOTSTRAP:
        found.append(f"{len(row.blocks)} rounds: the interval is Student's t")
    if moved is not None and abs(moved) > MOST_DRIFT:
        found.append(f"drift: the later half of its blocks is {abs(moved):.0%} {'faster' if moved > 0 else 'slower'}")
    restless = sum(not block.rested for block in row.blocks)
    if restless:
        found.append(f"other engines were still busy before {restless} of {len(row.blocks)} blocks")
    clocks = _present([block.clock_mhz for block in row.blocks])
    if clocks and max(clocks) > min(clocks) * (1 + MOST_CLOCK_CHANGE):
        found.append(f"the processor's clock moved from {min(clocks):.0f} to {max(clocks):.0f} MHz")
    if row.engine != "null" and len(references) > 1 and len({each.hash for each in references.values()}) == 1:
        found.append("the reference gives the same output for every input: stale outputs could not be told")
    return tuple(found)


def _present(values: Sequence[Value | None]) -> list[Value]:
    return [value for value in values if value is not None]
