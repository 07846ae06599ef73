"""Watts, joules per image and images per joule, computed from a Record's readings; `bench` and `check` both use these.

An interval joins three things that are independent: the spread from block to block (bootstrap of the median), the
meter's error of single readings, which averages out over the blocks, and its gain, which never does. The second shows
in the first as well; counting it again errs on the safe side where few blocks happen to agree.
"""

import math
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from perwatt.lab import statistics
from perwatt.lab.record import (
    Block,
    Energy,
    EnergyFigures,
    Estimate,
    MeterFacts,
    Noise,
    Reading,
    Row,
    ScopedWatts,
)

IDLE_CHANGE = 0.1  # between before and after, relative: more is worth a warning
COARSE = 0.2  # a reading's own relative error: more is worth a warning
LEAST_ABOVE = 0.2  # of its own uncertainty: what is less above idle is not told apart from nothing
MEDIAN_SPREAD = 1.2533  # standard error of a median over that of a mean, of normal values: sqrt(pi / 2)
EnergyVerdict = Literal["more", "less", "no difference seen"]
Peers = tuple[str, int, str, str, int, str]
Case = tuple[str, int]
VERDICTS: Mapping[statistics.Verdict, EnergyVerdict] = {
    "faster": "more",
    "slower": "less",
    "no difference seen": "no difference seen",
}


@dataclass(frozen=True)
class _Sides:
    """A value with what it may be too small (`up`) or too large (`down`) by, in logarithms, without and with gain."""

    value: float
    down: float
    up: float
    gain: float

    def estimate(self, *, upside_down: bool = False) -> Estimate:
        down, up, value = math.hypot(self.down, self.gain), math.hypot(self.up, self.gain), self.value
        if upside_down:
            down, up, value = up, down, 1 / value
        return Estimate(value=value, low=value * math.exp(-down), high=value * math.exp(up))


def meter_of(meters: Iterable[MeterFacts], device: str) -> MeterFacts | None:
    """Return the meter that judges rows of a device: the first whose scope covers it."""
    return next((facts for facts in meters if device in facts.devices), None)


def reading_of(block: Block, meter: str) -> Reading | None:
    """Return what the meter said of the block."""
    return next((reading for reading in block.energy if reading.meter == meter), None)


def _watts(reading: Reading) -> float | None:
    return None if reading.joules is None else reading.joules / (reading.end_s - reading.start_s)


def _sides(values: Sequence[float], readings: Sequence[Reading], seed: int) -> _Sides | None:
    """Return the median of the values, one a reading, with its sides; None where they are too few for an interval."""
    centre = statistics.median_of_positive(values, seed)
    if centre.low is None or centre.high is None:
        return None
    own = [(each.half_width_j or 0.0) / each.joules for each in readings if each.joules]
    once = math.log1p(statistics.median(own)) * MEDIAN_SPREAD / math.sqrt(len(own))
    gain = math.log1p(max(each.gain or 0.0 for each in readings))
    return _Sides(
        centre.value,
        math.hypot(math.log(centre.value / centre.low), once),
        math.hypot(math.log(centre.high / centre.value), once),
        gain,
    )


def joules_by_round(row: Row | Noise, meter: str) -> dict[int, float]:
    """Return images per joule of each round that the meter has read."""
    found = {}
    for block in row.blocks:
        reading = reading_of(block, meter)
        watts = None if reading is None else _watts(reading)
        if watts is not None:
            found[block.round] = _speed(block, row.batch) / watts
    return found


def _speed(block: Block, batch: int) -> float:
    return batch * len(block.durations_ns) / (sum(block.durations_ns) * 1e-9)


def with_energy(rows: Sequence[Row], energy: Energy | None, noise: Noise | None, seed: int) -> tuple[Row, ...]:
    """Return the rows with `figures.energy`; the other figures must be there. Without meters nothing changes."""
    if energy is None or not energy.meters:
        return tuple(rows)
    changed = [_with_own(row, energy, seed) if _is_measured(row) else row for row in rows]
    peers: dict[Peers, list[int]] = defaultdict(list)
    for index, row in enumerate(changed):
        found = row.figures.energy
        if row.status == "ok" and found is not None and found.images_per_joule is not None:
            peers[_peers(row, found.meter or "")].append(index)
    ratio = noise.energy_ratio if noise is not None else None
    bias = 0.0 if ratio is None else statistics.unexplained(statistics.Interval(ratio.value, ratio.low, ratio.high))
    return tuple(_with_ratio(changed, index, peers, bias, seed) for index in range(len(changed)))


def _is_measured(row: Row) -> bool:
    return row.status in ("ok", "invalid") and bool(row.blocks) and row.engine != "null"


def _peers(row: Row, meter: str) -> Peers:
    """Return what rows must share to be compared: the meter above all, and with it the scope."""
    return (row.network, row.batch, row.precision, row.device, row.threads, meter)


def _none(reason: str, meter: MeterFacts | None, beside: tuple[ScopedWatts, ...] = ()) -> EnergyFigures:
    return EnergyFigures(
        meter=meter.name if meter else None,
        scope=meter.scope if meter else None,
        power_w=None,
        joules_per_image=None,
        images_per_joule=None,
        idle_w=None,
        above_idle_joules_per_image=None,
        best_other=None,
        ratio_to_best=None,
        verdict=None,
        beside=beside,
        warnings=(),
        reason=reason,
    )


def _with_own(row: Row, energy: Energy, seed: int) -> Row:
    facts = meter_of(energy.meters, row.device)
    beside = tuple(_beside(row, energy.meters, facts, seed))
    if facts is None:
        names = ", ".join(f"{each.name} ({each.scope})" for each in energy.meters)
        figures = _none(f"{names} does not cover work on the {row.device}", None, beside)
    else:
        figures = _of_row(row, facts, energy, beside, seed)
    return row.model_copy(update={"figures": row.figures.model_copy(update={"energy": figures})})


def _fault(row: Row, meter: str) -> str | None:
    """Return why the row has no energy: the first block without, or too few blocks; None where it has."""
    for index, block in enumerate(row.blocks):
        reading = reading_of(block, meter)
        if reading is None or reading.joules is None:
            why = reading.reason if reading is not None and reading.reason else "not read"
            return f"{why} (block {index + 1} of {len(row.blocks)})"
    if len(row.blocks) < statistics.FEWEST_FOR_INTERVAL:
        return f"{len(row.blocks)} blocks are too few to say how sure a figure is"
    return None


def _of_row(row: Row, facts: MeterFacts, energy: Energy, beside: tuple[ScopedWatts, ...], seed: int) -> EnergyFigures:
    fault = _fault(row, facts.name)
    if fault is not None:
        return _none(fault, facts, beside)
    readings = [reading for block in row.blocks if (reading := reading_of(block, facts.name)) is not None]
    watts = [each for each in map(_watts, readings) if each is not None]
    speeds = [_speed(block, row.batch) for block in row.blocks]
    power = _sides(watts, readings, _seed(seed, row, "power"))
    per_joule = _sides(
        [speed / each for speed, each in zip(speeds, watts, strict=True)], readings, _seed(seed, row, "joules")
    )
    assert power is not None
    assert per_joule is not None
    idle = _idle(energy, facts.name, (row.network, row.batch), seed)
    above, warnings = None, list(_warnings(readings, energy, facts.name, (row.network, row.batch)))
    if idle is None:
        warnings.append("idle power was not measured: nothing is known above idle")
    else:
        above = _above_idle(per_joule, idle, statistics.median(speeds))
        if above is None:
            warnings.append("its power does not stand out of idle power")
    return EnergyFigures(
        meter=facts.name,
        scope=facts.scope,
        power_w=power.estimate(),
        joules_per_image=per_joule.estimate(upside_down=True),
        images_per_joule=per_joule.estimate(),
        idle_w=None if idle is None else idle.estimate(),
        above_idle_joules_per_image=above,
        best_other=None,
        ratio_to_best=None,
        verdict=None,
        beside=beside,
        warnings=tuple(warnings),
        reason=None,
    )


def idle_readings(energy: Energy, meter: str, case: Case) -> tuple[tuple[str, bool, Reading], ...]:
    """Return when, whether all were at rest, and the reading, of each stretch without work of a network and batch."""
    return tuple(
        (idle.when, idle.rested, reading)
        for idle in energy.idle
        if (idle.network, idle.batch) == case
        for reading in idle.readings
        if reading.meter == meter and reading.joules is not None
    )


def _idle(energy: Energy, meter: str, case: Case, seed: int) -> _Sides | None:
    readings = [reading for _, _, reading in idle_readings(energy, meter, case)]
    watts = [each for each in map(_watts, readings) if each is not None]
    if len(watts) < statistics.FEWEST_FOR_INTERVAL:
        return None
    return _sides(watts, readings, zlib.crc32(f"{seed}/{case}/{meter}/idle".encode()))


def idle_power(energy: Energy, meter: str, case: Case, seed: int) -> Estimate | None:
    """Return the power with the engines of a network and batch at rest; None where it was read too seldom."""
    sides = _idle(energy, meter, case, seed)
    return None if sides is None else sides.estimate()


def _above_idle(per_joule: _Sides, idle: _Sides, speed: float) -> Estimate | None:
    """Return J/image above idle: the gross figure less what idling for as long would have taken.

    The gain is common to both parts and so acts on their difference; the rest adds in quadrature. The lower end may lie
    below zero.
    """
    gross, resting = 1 / per_joule.value, idle.value / speed
    value = gross - resting
    low = math.hypot(
        gross * -math.expm1(-per_joule.up), resting * math.expm1(idle.up), abs(value) * math.expm1(idle.gain)
    )
    high = math.hypot(
        gross * math.expm1(per_joule.down), resting * -math.expm1(-idle.down), abs(value) * math.expm1(idle.gain)
    )
    if value <= LEAST_ABOVE * low:
        return None
    return Estimate(value=value, low=value - low, high=value + high)


def _warnings(readings: Sequence[Reading], energy: Energy, meter: str, case: Case) -> Iterable[str]:
    own = statistics.median([(each.half_width_j or 0.0) / (each.joules or math.inf) for each in readings])
    if own > COARSE:
        yield f"{meter} knows the joules of a block to ±{100 * own:.0f} % only"
    resting = idle_readings(energy, meter, case)
    if any(not rested for _, rested, _ in resting):
        yield "idle power was read while engines were still busy"
    before, after = (
        [watts for when, _, reading in resting if when == wanted and (watts := _watts(reading)) is not None]
        for wanted in ("before", "after")
    )
    if before and after:
        change = statistics.median(after) / statistics.median(before) - 1
        if abs(change) > IDLE_CHANGE:
            yield f"idle power was {abs(change):.0%} {'higher' if change > 0 else 'lower'} after the blocks than before"
    elif before:
        yield "idle power was read before the blocks only"
    yield from dict.fromkeys(
        note if note.startswith(meter) else f"{meter}: {note}" for reading in readings for note in reading.notes
    )


def _beside(row: Row, meters: Sequence[MeterFacts], own: MeterFacts | None, seed: int) -> Iterable[ScopedWatts]:
    for facts in meters:
        if facts is own or _fault(row, facts.name) is not None:
            continue
        readings = [reading for block in row.blocks if (reading := reading_of(block, facts.name)) is not None]
        watts = [each for each in map(_watts, readings) if each is not None]
        sides = _sides(watts, readings, _seed(seed, row, f"power/{facts.name}"))
        if sides is not None:
            yield ScopedWatts(meter=facts.name, scope=facts.scope, power_w=sides.estimate())


def _with_ratio(rows: Sequence[Row], index: int, peers: Mapping[Peers, Sequence[int]], bias: float, seed: int) -> Row:
    row, found = rows[index], rows[index].figures.energy
    if found is None or found.meter is None or found.images_per_joule is None or row.status != "ok":
        return row
    others = [each for each in peers[_peers(row, found.meter)] if each != index]
    best = max(others, key=lambda each: _images_per_joule(rows[each]), default=None)
    if best is None:
        return row
    ratio = statistics.paired_ratio(
        joules_by_round(row, found.meter), joules_by_round(rows[best], found.meter), _seed(seed, row, "joules ratio")
    )
    if ratio is None:  # they did not fit into memory together
        return row
    figures = found.model_copy(
        update={
            "best_other": rows[best].engine,
            "ratio_to_best": Estimate(value=ratio.value, low=ratio.low, high=ratio.high),
            "verdict": VERDICTS[statistics.verdict(ratio, bias)],
        }
    )
    return row.model_copy(update={"figures": row.figures.model_copy(update={"energy": figures})})


def _images_per_joule(row: Row) -> float:
    energy = row.figures.energy
    return energy.images_per_joule.value if energy is not None and energy.images_per_joule is not None else -math.inf


def with_energy_ratio(noise: Noise, base: Row | None, energy: Energy | None, seed: int) -> Noise:
    """Return the A/A pair with the ratio of its images per joule, where a meter read both."""
    ratio = None
    facts = meter_of(energy.meters, base.device) if base is not None and energy is not None else None
    if base is not None and facts is not None:
        ratio = statistics.paired_ratio(
            joules_by_round(noise, facts.name),
            joules_by_round(base, facts.name),
            zlib.crc32(f"{seed}/noise of energy".encode()),
        )
    kept = None if ratio is None else Estimate(value=ratio.value, low=ratio.low, high=ratio.high)
    return noise.model_copy(
        update={"energy_ratio": kept, "energy_floor": None if ratio is None else ratio.half_width()}
    )


def _seed(seed: int, row: Row, purpose: str) -> int:
    name = f"{row.network}/{row.engine}/{row.batch}/{row.precision}/{row.device}/{row.threads}"
    return zlib.crc32(f"{seed}/{name}/{purpose}".encode())
