"""A package on a terminal: what it holds, how it answers, what it sees."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from perwatt.package.golden import Replay
from perwatt.package.looking import Answer, Facts

BAR = 24


def show_facts(facts: Facts, to: Console, replayed: Replay | None = None) -> None:
    """Print what a package holds; with a replay, whether this machine gives its answers."""
    to.print(Text.assemble((facts.name, "bold"), f"  version {facts.version}"))
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    table.add_column()
    for name, value in _rows(facts):
        table.add_row(name, Text(value))
    to.print(Padding(table, (0, 0, 0, 1)))
    if facts.golden:
        golden = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
        for heading in ("golden example", "size", "answer", "value"):
            golden.add_column(heading, justify="right" if heading == "value" else "left")
        if replayed is not None:
            golden.add_column("error here", justify="right")
        for place, example in enumerate(facts.golden):
            cells = [example.file, f"{example.width}×{example.height}", example.label, f"{example.value:.4g}"]
            if replayed is not None:
                error = replayed.errors[place]
                cells.append("not finite" if error is None else f"{error:.1e}")
            golden.add_row(*map(Text, cells))
        to.print()
        to.print(Padding(golden, (0, 0, 0, 1)))
        limits = ", ".join(f"{precision} {limit:.1e}" for precision, limit in facts.tolerances.items())
        to.print(Padding(Text(f"largest error that rounding explains: {limits}", style="dim"), (0, 0, 0, 1)))
    if replayed is not None:
        to.print(Padding(replay_line(replayed), (0, 0, 0, 1)))


def replay_line(found: Replay) -> Text:
    """Return whether a replay agrees, in a line."""
    worst = "not finite" if found.largest_error is None else f"{found.largest_error:.1e}"
    limit = f"largest error {worst} of {found.tolerance:.1e} allowed in {found.precision}"
    if found.agrees:
        return Text.assemble(
            ("agrees", "bold green"), f"  {len(found.errors)} golden examples on this machine, {limit}"
        )
    inputs = f"; the inputs of {found.other_inputs} differ already" if found.other_inputs else ""
    return Text.assemble(("DIFFERS", "bold red"), f"  {limit}{inputs}")


def show_answers(answers: Sequence[Answer], to: Console) -> None:
    """Print the highest classes of each photograph, with a bar for each."""
    for place, answer in enumerate(answers):
        if place:
            to.print()
        to.print(Text(answer.photo, style="bold"), soft_wrap=True)
        if answer.error is not None:
            to.print(Padding(Text(answer.error, style="red", overflow="fold"), (0, 0, 0, 2)))
            continue
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(justify="right")
        table.add_column()
        table.add_column()
        largest = max((abs(each.value) for each in answer.top), default=1.0) or 1.0
        for each in answer.top:
            length = round(BAR * (each.value if answer.probabilities else max(each.value, 0.0) / largest))
            value = f"{100 * each.value:.1f} %" if answer.probabilities else f"{each.value:.4g}"
            table.add_row(value, Text("█" * length, style="green"), Text(each.label))
        to.print(Padding(table, (0, 0, 0, 2)))


def _rows(facts: Facts) -> Iterator[tuple[str, str]]:
    yield "file", f"{facts.bytes:,} bytes, SHA-256 {facts.sha256[:16]}…"
    counted = "unknown" if facts.multiply_adds is None else f"{facts.multiply_adds:,}"
    shapes = f"{_shape(facts.input_shape)} → {_shape(facts.output_shape)}"
    yield "network", f"{facts.parameters:,} parameters, {counted} multiply-adds; {shapes}"
    yield "preprocessing", facts.preprocessing
    if facts.labels is None:
        yield "labels", "none: answers are class numbers"
    else:
        yield "labels", f"{len(facts.labels):,}: {', '.join(_first(label) for label in facts.labels[:3])}, …"
    yield "licence", facts.licence or "not stated"
    yield "source", facts.source or "not stated"
    for name, part in facts.evidence.items():
        yield name, _short(part)
    if not facts.golden:
        yield "golden", "none: nothing shows that it answers rightly here"


def _first(label: str) -> str:
    return label.partition(",")[0]


def _shape(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def _short(part: Any, most: int = 160) -> str:
    """Return a JSON object's plain entries, as far as a line goes."""
    told = []
    for name, value in part.items():
        if isinstance(value, str | int | float | bool) or value is None:
            text = f"{value:.4g}" if isinstance(value, float) and np.isfinite(value) else str(value)
        else:
            text = f"{len(value)} entries"
        told.append(f"{name} {text}")
    line = ", ".join(told).encode("unicode_escape").decode("ascii")
    return line if len(line) <= most else line[: most - 1] + "…"
