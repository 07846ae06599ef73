"""Compare two Records: what changed in speed, what else changed, and whether that may be called a difference."""

import math
import zlib
from collections import Counter
from dataclasses import dataclass, replace
from typing import Literal

from perwatt.lab import energy, figures, statistics
from perwatt.lab.record import Estimate, MeterFacts, Record, Row

# What makes a machine another one, even under the same host id.
_DECISIVE_FACTS = ("cpu", "vector unit", "cores", "logical cpus", "cpu quota", "memory limit", "gpu")

RowName = tuple[str, int, str, str, str]


@dataclass(frozen=True)
class Difference:
    """One setting in which two Records differ; None where a Record does not have it."""

    what: str
    first: str | None
    second: str | None


@dataclass(frozen=True)
class RowComparison:
    """One row that both Records have: the second's speed over the first's.

    `ratio` is None where one of them has no valid speed; `note` says why, or why nothing may be said of it.
    """

    network: str
    batch: int
    precision: str
    engine: str
    device: str
    first: Estimate | None
    second: Estimate | None
    ratio: Estimate | None
    verdict: statistics.Verdict | Literal["not comparable"]
    note: str | None
    energy: "EnergyComparison | None" = None


@dataclass(frozen=True)
class EnergyComparison:
    """Images per joule of one row in two Records, and the second's over the first's.

    Figures of unlike scope are never set against each other: `ratio` is None then, and `note` names both.
    """

    first: Estimate
    second: Estimate
    scope: str | None
    ratio: Estimate | None
    verdict: Literal["more", "less", "no difference seen", "not comparable"]
    note: str | None


@dataclass(frozen=True)
class Comparison:
    """Two Records side by side. Across unlike machines ratios are shown and no difference is called."""

    same_machine: bool
    differences: tuple[Difference, ...]
    rows: tuple[RowComparison, ...]
    only_first: tuple[RowName, ...]
    only_second: tuple[RowName, ...]


def compare(first: Record, second: Record) -> Comparison:
    """Return what two Records have in common and how it differs.

    The interval of a ratio joins those of both measurements; the verdict allows besides for what either A/A pair left
    unexplained. What changed in the world between the two measurements no interval can know.
    """
    same = first.machine_id == second.machine_id and all(
        first.machine.get(fact) == second.machine.get(fact) for fact in _DECISIVE_FACTS
    )
    ours, theirs = _rows(first), _rows(second)
    bias = max(_bias(each.noise.ratio) if each.noise else 0.0 for each in (first, second))
    energy_bias = max(_bias(each.noise.energy_ratio) if each.noise else 0.0 for each in (first, second))
    networks = {each.name: each.sha256 for each in first.networks}
    other_networks = {each.name: each.sha256 for each in second.networks}
    rows = []
    for name in ours:
        if name not in theirs or name[3] == "null":
            continue
        obstacle = None if same else "the machines are unlike"
        if networks.get(name[0]) != other_networks.get(name[0]):
            obstacle = "the network files differ"
        compared = _row(ours[name], theirs[name], obstacle, bias)
        energy = _energy(ours[name], theirs[name], compared.note, _meters(first), _meters(second), energy_bias)
        rows.append(replace(compared, energy=energy))
    return Comparison(
        same_machine=same,
        differences=tuple(_differences(first, second)),
        rows=tuple(rows),
        only_first=tuple(name for name in ours if name not in theirs),
        only_second=tuple(name for name in theirs if name not in ours),
    )


def _rows(record: Record) -> dict[RowName, Row]:
    """Return the rows by name; where one name was measured with several numbers of threads, they stand in the name."""
    counts = Counter((row.network, row.batch, row.precision, row.engine, row.device) for row in record.rows)
    found: dict[RowName, Row] = {}
    for row in record.rows:
        name = (row.network, row.batch, row.precision, row.engine, row.device)
        engine = row.engine if counts[name] == 1 or row.engine == "null" else f"{row.engine} x{row.threads}"
        found[row.network, row.batch, row.precision, engine, row.device] = row
    return found


def _bias(ratio: Estimate | None) -> float:
    if ratio is None:
        return 0.0
    return statistics.unexplained(statistics.Interval(ratio.value, ratio.low, ratio.high))


def _meters(record: Record) -> dict[str, MeterFacts]:
    return {facts.name: facts for facts in record.energy.meters} if record.energy is not None else {}


def _energy(
    first: Row,
    second: Row,
    obstacle: str | None,
    meters: dict[str, MeterFacts],
    other_meters: dict[str, MeterFacts],
    bias: float,
) -> EnergyComparison | None:
    """Return how the energy of two rows compares; None where one of them has none."""
    ours, theirs = first.figures.energy, second.figures.energy
    if ours is None or theirs is None or ours.images_per_joule is None or theirs.images_per_joule is None:
        return None
    if first.status != "ok" or second.status != "ok":
        return None
    ratio = None
    if ours.scope != theirs.scope:
        obstacle = f"unlike scopes: {ours.meter} counts {ours.scope}, {theirs.meter} counts {theirs.scope}"
    else:
        ratio = statistics.unpaired_ratio(
            list(energy.joules_by_round(second, theirs.meter or "").values()),
            list(energy.joules_by_round(first, ours.meter or "").values()),
            zlib.crc32(f"{first.network}/{first.engine}/{first.batch}/{first.precision}/energy".encode()),
        )
    if ratio is not None and (ours.meter != theirs.meter or obstacle is not None):
        # One meter errs alike both times; two do not.
        gain = math.hypot(
            *(
                math.log1p(facts.gain)
                for facts in (meters.get(ours.meter or ""), other_meters.get(theirs.meter or ""))
                if facts is not None
            )
        )
        ratio = statistics.widened(ratio, gain)
    verdict: Literal["more", "less", "no difference seen", "not comparable"] = "not comparable"
    if ratio is not None and obstacle is None:
        verdict = energy.VERDICTS[statistics.verdict(ratio, bias)]
    return EnergyComparison(
        first=ours.images_per_joule,
        second=theirs.images_per_joule,
        scope=ours.scope if ours.scope == theirs.scope else None,
        ratio=None if ratio is None else figures.estimate(ratio),
        verdict=verdict,
        note=obstacle,
    )


def _row(first: Row, second: Row, obstacle: str | None, bias: float) -> RowComparison:
    ratio = None
    if first.status == "ok" and second.status == "ok":
        ratio = statistics.unpaired_ratio(
            [figures.block_speed(block, second.batch) for block in second.blocks],
            [figures.block_speed(block, first.batch) for block in first.blocks],
            zlib.crc32(f"{first.network}/{first.engine}/{first.batch}/{first.precision}".encode()),
        )
    if ratio is None:
        obstacle = f"first: {first.status}, second: {second.status}"
    return RowComparison(
        network=first.network,
        batch=first.batch,
        precision=first.precision,
        engine=first.engine,
        device=first.device,
        first=first.figures.images_per_s,
        second=second.figures.images_per_s,
        ratio=None if ratio is None else figures.estimate(ratio),
        verdict="not comparable" if ratio is None or obstacle else statistics.verdict(ratio, bias),
        note=obstacle,
    )


def _differences(first: Record, second: Record) -> list[Difference]:
    return [
        Difference(what, one, other)
        for what, (one, other) in _side_by_side(_settings(first), _settings(second)).items()
        if one != other
    ]


def _side_by_side(first: dict[str, str], second: dict[str, str]) -> dict[str, tuple[str | None, str | None]]:
    return {what: (first.get(what), second.get(what)) for what in {**first, **second}}


def _settings(record: Record) -> dict[str, str]:
    """Return everything that may explain a difference, as text by name."""
    found = {"machine id": record.machine_id}
    found |= {f"machine: {name}": value for name, value in record.machine.items()}
    found |= {"perwatt": record.perwatt_version, "commit": record.commit or "unknown", "seed": str(record.seed)}
    found |= {f"profile: {name}": str(value) for name, value in record.profile.model_dump().items()}
    found["photographs"] = ", ".join(sorted(f"{each.name} {each.sha256[:12]}" for each in record.photographs))
    for network in record.networks:
        found[f"{network.name}: sha256"] = network.sha256
        found |= {f"{network.name}: {name}": value for name, value in network.preprocessing.items()}
    for meter in record.energy.meters if record.energy is not None else ():
        found[f"meter {meter.name}"] = f"{meter.scope}; {meter.uncertainty}"
    # One line per engine where its rows agree, which they nearly always do.
    for row in record.rows:
        facts = {"version": row.version, "threads": str(row.threads), **row.options}
        facts["precision reported"] = row.precision_reported
        for name, value in facts.items():
            if value is None:
                continue
            per_row = name == "precision reported" or name in row.options
            where = f" {row.precision} {row.network} {row.batch}" if per_row else ""
            found[f"{row.engine}{where}: {name}"] = value
    return found
