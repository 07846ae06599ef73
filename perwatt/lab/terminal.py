"""A Record on a terminal: the table, what is wrong with it, and how sure it is. 100 columns are enough."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from perwatt import settings
from perwatt.errors import NetworkError
from perwatt.lab.best import best_lines, best_of
from perwatt.lab.energy_table import energy_lines, energy_reasons, energy_tables, metered
from perwatt.lab.notation import (
    duration_text,
    error_text,
    estimate_text,
    milliseconds_text,
    number_text,
    percent_text,
    ratio_text,
)
from perwatt.lab.record import Record, Row
from perwatt.networks import NETWORKS, labels

WIDTH = 100
NULL_ENGINE = "null"
SEEN = 5  # classes named
_STYLES = {"ok": "green", "invalid": "bold red", "crashed": "red", "timeout": "red"}


def console(*, stderr: bool = False) -> Console:
    """Return a terminal: colour only where a person looks and NO_COLOR is unset, 100 columns where nobody does."""
    made = Console(stderr=stderr, no_color=settings.no_color() or None, highlight=False)
    return made if made.is_terminal else Console(stderr=stderr, no_color=True, highlight=False, width=WIDTH)


def show(record: Record, to: Console, *, record_path: Path | None = None, report_path: Path | None = None) -> None:
    """Print the whole answer to a run: table, reasons and warnings, certainty, machine, where it is kept."""
    to.print(table(record))
    if any(metered(row) for row in shown(record)):
        cases = [(key, [(engine_name(record, row), row) for row in rows]) for key, rows in grouped(shown(record))]
        for part in energy_tables(record, cases):
            to.print(part)
    for line in (*reasons(record), *warnings(record), *map(Text, energy_reasons(record))):
        to.print(Padding(line, (0, 0, 0, 1)))
    if record.limits is not None:
        to.print()
        for choice in best_lines(record):
            to.print(Padding(choice, (0, 0, 0, 1)))
    to.print()
    for footer in footers(record):
        to.print(Padding(Text(footer), (0, 0, 0, 1)), style="dim")
    for name, path in (("record", record_path), ("report", report_path)):
        if path is not None:
            # Unwrapped, so that a terminal or a person can take the path as one word.
            to.print(Text.assemble(f" {name}  ", (str(path), "bold")), soft_wrap=True)


def shown(record: Record) -> tuple[Row, ...]:
    """Return the rows of the table: all but those of the null engine, which measure the lab itself."""
    return tuple(row for row in record.rows if row.engine != NULL_ENGINE)


def engine_name(record: Record, row: Row) -> str:
    """Return the engine's name, with its threads where the Record has rows of several numbers of them."""
    several = len({other.threads for other in shown(record)}) > 1
    return f"{row.engine} x{row.threads}" if several else row.engine


def grouped(rows: Sequence[Row]) -> Iterator[tuple[tuple[str, int, str], list[Row]]]:
    """Yield rows of one network, batch and precision together, in the order of first appearance, fastest first."""
    groups: dict[tuple[str, int, str], list[Row]] = {}
    for row in sorted(rows, key=lambda row: [other.network for other in rows].index(row.network)):
        groups.setdefault((row.network, row.batch, row.precision), []).append(row)
    for key, members in sorted(groups.items(), key=lambda item: _order(item[0], list(groups))):
        yield key, sorted(members, key=_speed, reverse=True)


def _order(key: tuple[str, int, str], keys: list[tuple[str, int, str]]) -> tuple[int, int, int]:
    networks = [network for network, _, _ in keys]
    precisions = [precision for _, _, precision in keys]
    return networks.index(key[0]), key[1], precisions.index(key[2])


def _speed(row: Row) -> tuple[bool, float]:
    """Good rows before the others, fast ones first."""
    estimate = row.figures.images_per_s
    return row.status == "ok", estimate.value if estimate else 0.0


def table(record: Record) -> RenderableType:
    """Return the table of a Record, one line a row, groups of one network, batch and precision under each other."""
    made = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for name in (
        "network",
        "batch",
        "prec.",
        "engine",
        "images/s",
        "p50 ms",
        "vs best other",
        "error",
        "top-1",
        "status",
    ):
        right = name in {"batch", "images/s", "p50 ms", "error", "top-1"}
        # Only a network's name may wrap, when a long one needs more than 100 columns.
        made.add_column(name, justify="right" if right else "left", no_wrap=name != "network", overflow="fold")
    last: tuple[str, int, str] | None = None
    for key, rows in grouped(shown(record)):
        if last is not None and last[:2] != key[:2]:
            made.add_row()
        for index, row in enumerate(rows):
            changed = last is None or last[:2] != key[:2]
            network, batch, precision = key
            labels = (network, str(batch)) if changed and index == 0 else ("", "")
            made.add_row(*labels, precision if index == 0 else "", *_cells(row, engine_name(record, row)))
            last = key
    return Padding(made, (0, 0, 1, 1))


def _cells(row: Row, engine: str) -> list[Text]:
    figures = row.figures
    status = Text(_word(row.status) + ("*" if figures.warnings else ""), style=_STYLES.get(row.status, "yellow"))
    if row.status not in ("ok", "invalid"):
        return [Text(engine, style="dim"), *[Text("")] * 5, status]
    # The speed of wrong outputs is no result; the report still shows it.
    fast = estimate_text(figures.images_per_s) if row.status == "ok" else ""
    verdict = {"faster": "bold green", "slower": ""}.get(figures.verdict or "", "dim")
    return [
        Text(engine),
        Text(fast, style="bold" if figures.verdict == "faster" else ""),
        Text(milliseconds_text(figures.latency_p50_s) if row.status == "ok" else ""),
        Text(ratio_text(figures) if row.status == "ok" else "", style=verdict),
        Text(error_text(figures.relative_error)),
        Text(percent_text(figures.top1_agreement)),
        status,
    ]


def as_json(record: Record, record_path: Path | None, report_path: Path | None) -> dict[str, Any]:
    """Return what programs want of a Record: every printed figure, without the raw samples."""
    kept = {"network", "engine", "batch", "precision", "device", "status", "reason", "version", "threads", "figures"}
    return {
        "record": None if record_path is None else str(record_path),
        "report": None if report_path is None else str(report_path),
        "partial": record.partial,
        "profile": record.profile.name,
        "machine": record.machine,
        "noise_floor": None if record.noise is None else record.noise.floor,
        "harness_cost_s": record.harness_cost_s,
        "energy": None if record.energy is None else record.energy.model_dump(mode="json"),
        "rows": [row.model_dump(mode="json", include=kept) for row in shown(record)],
        "best": _best_as_json(record) if record.limits is not None else None,
    }


def _best_as_json(record: Record) -> list[dict[str, Any]]:
    """Return the choice by network and goal; rows are named by what tells them apart."""
    name = {"engine", "precision", "batch", "threads", "device"}

    def named(rows: Sequence[Row]) -> list[dict[str, Any]]:
        return [row.model_dump(mode="json", include=name) for row in rows]

    return [
        {
            "network": best.network,
            "picks": [
                {
                    "goal": pick.goal,
                    "setting": named([pick.row])[0] if pick.row is not None else None,
                    "scope": pick.scope,
                    "reason": pick.reason,
                    "not_told_apart": named(pick.tied),
                }
                for pick in best.picks
            ],
            "frontier": named(best.frontier),
            "left_out": dict(best.excluded),
        }
        for best in best_of(record)
    ]


def reasons(record: Record) -> Iterator[Text]:
    """Yield why rows have no figures, a line for each reason, however many rows share it."""
    shared: dict[tuple[str, str], list[Row]] = {}
    for row in shown(record):
        if row.status != "ok":
            reason = (row.reason or "no reason given").removeprefix(f"{row.engine}: ")
            shared.setdefault((row.status, reason), []).append(row)
    for (status, reason), rows in shared.items():
        engines = list(dict.fromkeys(row.engine for row in rows))
        # A word on where is needed only if these engines have other rows too.
        everywhere = len(rows) > 1 and len(rows) == sum(row.engine in engines for row in shown(record))
        where = "" if everywhere else f" ({_where(rows)})"
        line = Text.assemble((f"{', '.join(engines)} ", "bold"), (_word(status), _STYLES.get(status, "yellow")))
        yield line.append(f"{where}: {reason}")


def _word(status: str) -> str:
    """Return a status in a word that its column has room for."""
    return "stopped" if status == "interrupted" else status


def warnings(record: Record) -> Iterator[Text]:
    """Yield what makes a row doubtful, a line for each warning, however many rows share it."""
    shared: dict[str, list[Row]] = {}
    for row in shown(record):
        for warning in row.figures.warnings:
            shared.setdefault(warning, []).append(row)
    for warning, rows in shared.items():
        engines = ", ".join(dict.fromkeys(row.engine for row in rows))
        yield Text.assemble(("* ", "yellow"), (f"{engines} ", "bold"), f"({_where(rows)}): {warning}")


def _where(rows: Sequence[Row]) -> str:
    cases = list(dict.fromkeys(f"{row.network} {row.batch} {row.precision}" for row in rows))
    return ", ".join(cases) if len(cases) <= 3 else f"{', '.join(cases[:2])} and {len(cases) - 2} more"


def footers(record: Record) -> Iterator[str]:
    """Yield how sure the table is and where it was measured, a line each."""
    yield from certainty(record)
    machine = record.machine
    known = [machine[name] for name in ("cpu", "gpu", "vector unit", "system") if name in machine]
    if "cores" in machine:
        known.insert(1, f"{machine['cores']} cores")
    yield f"machine  {', '.join(known)}"
    photographs = len(record.photographs)
    yield (
        f"run  profile {record.profile.name}, {duration_text(record.duration_s)}, inputs from {photographs} "
        f"photograph{'s' if photographs != 1 else ''}, seed {record.seed}, perwatt {record.perwatt_version}"
    )
    yield from energy_lines(record)
    yield from recognised(record)
    yield "± and (–) are 95 % intervals; error and top-1 against the FP32 reference, from the timed runs"
    yield from (f"note  {note}" for note in record.notes)
    if record.partial:
        yield f"partial  {record.partial_reason or 'cut short'}: the rows that were measured are valid"


def recognised(record: Record) -> Iterator[str]:
    """Yield what the trained built-in networks saw in the inputs, by the reference's classes, a line a network.

    A network with drawn weights answers with classes that mean nothing, and a file with classes nobody named: no line.
    """
    for facts in record.networks:
        network = NETWORKS.get(facts.name)
        if network is None or not network.labels or facts.source != "built-in":
            continue
        # The largest batch has the most images; each is counted once.
        references = [each for each in record.references if each.network == facts.name]
        most = max((each.batch for each in references), default=0)
        seen = Counter(number for each in references if each.batch == most for number in each.classes)
        try:
            names = labels()
        except NetworkError as error:
            yield f"{facts.name} saw  classes without names: {error}"
            continue
        told = [f"{names[number].partition(',')[0]} {times}" for number, times in seen.most_common(SEEN)]
        if told:
            yield f"{facts.name} saw  {', '.join(told)} ({sum(seen.values())} crops of the photographs)"


def certainty(record: Record) -> Iterator[str]:
    """Yield the noise floor, the largest drift and the lab's own cost, a line each."""
    noise = record.noise
    if noise is None or noise.floor is None:
        yield "noise floor  unknown: no A/A pair ran long enough"
    else:
        yield (
            f"noise floor  {100 * noise.floor:.1f} % (the same engine twice: {noise.engine}, {noise.network}, "
            f"batch {noise.batch}); smaller differences are not seen"
        )
    drifting = [row for row in shown(record) if row.figures.drift is not None]
    if drifting:
        worst = max(drifting, key=lambda row: abs(row.figures.drift or 0))
        yield (
            f"drift  at most {100 * (worst.figures.drift or 0):+.1f} % between the halves of a row "
            f"({worst.engine}, {worst.network}, batch {worst.batch})"
        )
    if record.harness_cost_s is not None:
        yield f"lab's own cost  {number_text(1e6 * record.harness_cost_s, 2)} µs per run"
