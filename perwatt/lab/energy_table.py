"""Watts, images/s/W and J/image of a Record on a terminal, or why there are none; the report uses the same lines."""

from collections.abc import Iterator

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from perwatt.lab import energy
from perwatt.lab.notation import estimate_text
from perwatt.lab.record import EnergyFigures, Record, Row


def metered(row: Row) -> EnergyFigures | None:
    """Return the row's energy figures where it has some and its outputs are right."""
    found = row.figures.energy
    return found if row.status == "ok" and found is not None and found.images_per_joule is not None else None


def energy_tables(
    record: Record, cases: list[tuple[tuple[str, int, str], list[tuple[str, Row]]]]
) -> Iterator[RenderableType]:
    """Yield a table of the metered rows of each scope, for figures of unlike scopes never stand under each other.

    `cases` are the rows by network, batch and precision, each with the name of its engine.
    """
    heads = ("network", "batch", "prec.", "engine", "images/s", "W", "images/s/W", "J/image", "above idle")
    for scope, meter in scopes(record):
        yield Padding(Text(f"watts of {scope}, read by {meter} in the same blocks", style="italic"), (0, 0, 0, 1))
        made = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
        for name in heads:
            right = name in heads[4:] or name == "batch"
            # Wide figures wrap; cropping would take digits away.
            fixed = name in {"batch", "prec.", "engine"}
            made.add_column(name, justify="right" if right else "left", no_wrap=fixed, overflow="fold")
        last: tuple[str, int, str] | None = None
        for key, rows in cases:
            for engine, row in rows:
                found = metered(row)
                if found is None or found.meter != meter:
                    continue
                network, batch = ("", "") if last is not None and last[:2] == key[:2] else (key[0], str(key[1]))
                made.add_row(
                    network,
                    batch,
                    key[2] if last != key else "",
                    engine,
                    estimate_text(row.figures.images_per_s),
                    estimate_text(found.power_w),
                    Text(estimate_text(found.images_per_joule), style="bold" if found.verdict == "more" else ""),
                    estimate_text(found.joules_per_image),
                    estimate_text(found.above_idle_joules_per_image),
                )
                last = key
        yield Padding(made, (0, 0, 1, 1))


def scopes(record: Record) -> tuple[tuple[str, str], ...]:
    """Return (scope, meter) of the figures that the rows have, in the order of the meters."""
    used = {found.meter for row in record.rows if (found := metered(row)) is not None}
    facts = record.energy.meters if record.energy is not None else ()
    return tuple((each.scope, each.name) for each in facts if each.name in used)


def energy_lines(record: Record) -> Iterator[str]:
    """Yield how energy was measured, a line a fact: the meter, its scope and error, idle power, what is left out."""
    if record.energy is None:
        yield "energy  not measured: no meter was read"
        return
    if not record.energy.meters:
        remedy = f"; to enable one: {record.energy.remedy}" if record.energy.remedy else ""
        yield f"energy  not measured: {record.energy.reason}{remedy}"
        return
    for facts in record.energy.meters:
        yield f"meter  {facts.name}: {facts.scope}; {facts.uncertainty}"
        yield f"not in these watts  {facts.leaves_out}"
        if facts.overlaps:
            yield f"never added to them  {', '.join(facts.overlaps)}, which count some of the same joules"
        if facts.note:
            yield f"of this meter  {facts.note}"
        idle = tuple(dict.fromkeys((row.network, row.batch) for row in record.rows if row.blocks))
        told = [(case, energy.idle_power(record.energy, facts.name, case, record.seed)) for case in idle]
        known = [f"{network} {batch}: {estimate_text(power)} W" for (network, batch), power in told if power]
        if known:
            yield f"idle {facts.scope}  {', '.join(known)} (engines loaded, at rest, before and after)"
        beside = [
            f"{row.network} {row.batch} {row.precision} {row.engine} {estimate_text(each.power_w)} W"
            for row in record.rows
            if row.figures.energy is not None
            for each in row.figures.energy.beside
            if each.meter == facts.name
        ]
        if beside:
            yield f"{facts.scope} beside it, not added  {', '.join(beside)}"
    if len({scope for scope, _ in scopes(record)}) > 1:
        yield "figures of unlike scopes are not comparable"
    if record.noise is not None and record.noise.energy_floor is not None:
        yield f"noise floor of images/s/W  {100 * record.noise.energy_floor:.1f} % (the same engine twice)"


def energy_reasons(record: Record) -> Iterator[str]:
    """Yield why measured rows have no energy, and what makes others doubtful, a line for all rows that share it."""
    shared: dict[str, list[str]] = {}
    for row in record.rows:
        found = row.figures.energy
        if found is None or row.status != "ok":
            continue
        told = ((f"no energy: {found.reason}",) if found.reason else ()) + found.warnings
        for text in told:
            shared.setdefault(text, []).append(f"{row.network} {row.batch} {row.precision} {row.engine}")
    for text, names in shared.items():
        where = ", ".join(names) if len(names) <= 3 else f"{', '.join(names[:2])} and {len(names) - 2} more"
        yield f"{where}: {text}"
