"""A Comparison on a terminal: row beside row, then every setting that differs."""

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from perwatt.lab.compare import Comparison, EnergyComparison, RowComparison
from perwatt.lab.notation import ABSENT, estimate_text

_STYLES = {"faster": "bold green", "slower": "bold red", "not comparable": "yellow"}


def show_comparison(comparison: Comparison, to: Console) -> None:
    """Print both Records' rows with the second's speed over the first's, and what else differs."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for name in ("network", "batch", "prec.", "engine", "first", "second", "second/first", "verdict"):
        right = name in {"batch", "first", "second"}
        table.add_column(name, justify="right" if right else "left", no_wrap=name not in {"network", "verdict"})
    for row in comparison.rows:
        table.add_row(
            row.network,
            str(row.batch),
            row.precision,
            row.engine,
            estimate_text(row.first),
            estimate_text(row.second),
            _ratio(row),
            Text(row.verdict, style=_STYLES.get(row.verdict, "dim")),
        )
    to.print(table)
    if any(row.energy is not None for row in comparison.rows):
        to.print()
        to.print(_energy_table(comparison))
    to.print()
    for line in remarks(comparison):
        to.print(f" {line}", markup=False, style="dim")


def _energy_table(comparison: Comparison) -> Table:
    """Return images/s/W of both Records side by side; unlike scopes have no ratio."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for name in ("images/s/W", "batch", "prec.", "engine", "first", "second", "second/first", "verdict", "scope"):
        right = name in {"batch", "first", "second"}
        table.add_column(name, justify="right" if right else "left", no_wrap=name not in {"images/s/W", "scope"})
    for row in comparison.rows:
        if row.energy is None:
            continue
        verdict = row.energy.verdict
        style = {"more": "bold green", "less": "bold red", "not comparable": "yellow"}.get(verdict, "dim")
        table.add_row(
            row.network,
            str(row.batch),
            row.precision,
            row.engine,
            estimate_text(row.energy.first),
            estimate_text(row.energy.second),
            _ratio(row.energy),
            Text(verdict, style=style),
            row.energy.scope or "unlike",
        )
    return table


def _ratio(row: RowComparison | EnergyComparison) -> str:
    if row.ratio is None:
        return ABSENT
    if row.ratio.low is None or row.ratio.high is None:
        return f"{row.ratio.value:.2f}"
    return f"{row.ratio.value:.2f} ({row.ratio.low:.2f}–{row.ratio.high:.2f})"


def remarks(comparison: Comparison) -> Iterator[str]:
    """Yield what stands below the rows: unlike machines, notes, rows of one Record only, settings that differ."""
    if not comparison.same_machine:
        yield "the machines are unlike: ratios are shown, no difference is called"
    notes: dict[str, list[str]] = {}
    for row in comparison.rows:
        if row.note is not None and row.note != "the machines are unlike":
            notes.setdefault(row.note, []).append(f"{row.network} {row.batch} {row.precision} {row.engine}")
    for row in comparison.rows:
        if row.energy is not None and row.energy.note not in (None, row.note, "the machines are unlike"):
            name = f"{row.network} {row.batch} {row.precision} {row.engine}"
            notes.setdefault(f"energy: {row.energy.note}", []).append(name)
    for note, names in notes.items():
        yield f"{', '.join(names)}: {note}"
    for which, only in (("first", comparison.only_first), ("second", comparison.only_second)):
        named = [f"{network} {batch} {precision} {engine}" for network, batch, precision, engine, _ in only]
        if named:
            yield f"only in the {which}: {', '.join(named)}"
    for difference in comparison.differences:
        yield f"{difference.what}: {difference.first or ABSENT} → {difference.second or ABSENT}"


def is_fault(comparison: Comparison) -> bool:
    """Return whether a row got slower, or nothing could be compared at all."""
    verdicts = [row.verdict for row in comparison.rows]
    return "slower" in verdicts or all(verdict == "not comparable" for verdict in verdicts)
