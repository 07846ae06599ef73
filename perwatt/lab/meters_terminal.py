"""Meters on a terminal: what this machine has, live watts, and the judgement of a test. 100 columns are enough."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from perwatt.lab.meter_check import Judgement
from perwatt.lab.meters import HOW_TO_GET_ONE, Choice
from perwatt.lab.meters.meter import Found, Meter
from perwatt.lab.notation import ABSENT, number_text


def as_json(found: Sequence[Found], choices: dict[str, Choice]) -> dict[str, Any]:
    """Return the meters and what `--meter auto` would read for each device, as plain values."""
    return {
        "meters": [
            {
                **asdict(each.meter),
                "open": each.open is not None,
                "reason": each.reason,
                "remedy": each.remedy,
                "overlaps": list(each.overlaps),
            }
            for each in found
        ],
        "auto": {device: asdict(choice) for device, choice in choices.items()},
    }


def show_meters(found: Sequence[Found], choices: dict[str, Choice], to: Console) -> None:
    """Print every meter, how to open the closed ones, and what `--meter auto` would read."""
    if found:
        to.print(_table(found))
    for line in (*_notes(found), *_remedies(found)):
        to.print(Padding(Text(line), (0, 0, 0, 1)))
    to.print()
    for device, choice in choices.items():
        rows = "CPU rows" if device == "cpu" else "GPU rows"
        what = f"reads {', '.join(choice.names)}: {choice.why}" if choice.names else f"reads none: {choice.why}"
        to.print(Padding(Text(f"--meter auto, {rows}: {what}"), (0, 0, 0, 1)), style="dim")
    if not any(each.open for each in found):
        to.print(Padding(Text(HOW_TO_GET_ONE), (0, 0, 0, 1)))


def _table(found: Sequence[Found]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for heading in ("", "meter", "scope", "unit", "step", "every", "error", "readers", "overlaps"):
        table.add_column(heading, overflow="fold")
    for each in found:
        meter = each.meter
        mark = Text("open", style="green") if each.open else Text("closed", style="yellow")
        overlaps = ", ".join(name.rpartition(":")[2] if "//" not in name else name for name in each.overlaps)
        table.add_row(
            mark,
            meter.name,
            meter.scope,
            meter.unit,
            _quantum_text(meter),
            f"{_seconds_text(meter.update_period_s)}",
            f"{100 * meter.gain:.0f}%",
            meter.readers,
            overlaps or ABSENT,
        )
    return table


def _quantum_text(meter: Meter) -> str:
    for limit, factor, prefix in ((1e-3, 1e6, "µ"), (1.0, 1e3, "m")):
        if meter.quantum < limit:
            return f"{number_text(meter.quantum * factor, 2)} {prefix}{meter.unit}"
    return f"{number_text(meter.quantum, 2)} {meter.unit}"


def _seconds_text(seconds: float) -> str:
    return f"{number_text(seconds * 1000, 2)} ms" if seconds < 1 else f"{number_text(seconds, 2)} s"


def _notes(found: Sequence[Found]) -> list[str]:
    lines = []
    for each in found:
        wrap_j = each.meter.wrap_j
        wraps = f"wraps at {number_text(wrap_j)} J, which is followed" if wrap_j is not None else ""
        text = "; ".join(part for part in (each.meter.note, wraps) if part)
        if text:
            lines.append(f"{each.meter.name}: {text}")
    return lines


def _remedies(found: Sequence[Found]) -> list[str]:
    """Return why meters are closed, and each command that opens some of them once."""
    closed = [each for each in found if each.open is None]
    lines = [f"{each.meter.name} is closed: {each.reason}" for each in closed]
    for remedy in dict.fromkeys(each.remedy for each in closed if each.remedy):
        names = ", ".join(each.meter.name for each in closed if each.remedy == remedy)
        lines.append(f"to open {names}: {remedy}")
    return lines


def show_judgements(judged: Sequence[Judgement], to: Console) -> None:
    """Print what each meter showed idle and under load, and what is wrong with it."""
    if not judged:
        to.print(Text("no meter is open; perwatt meters says how to open one"))
        return
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for heading in ("meter", "idle W", "load W", "moves", "wraps every", "period, claimed", "judgement"):
        table.add_column(heading, overflow="fold")
    for each in judged:
        table.add_row(
            each.name,
            _watts_text(each.idle_w, each.idle_half_w),
            _watts_text(each.load_w, each.load_half_w),
            "yes" if each.moves else "no",
            f"{number_text(each.wraps_every_s)} s" if each.wraps_every_s else ABSENT,
            f"{_seconds_text(each.period_s) if each.period_s else ABSENT}, {_seconds_text(each.claimed_period_s)}",
            Text("; ".join(fault.removeprefix(f"{each.name}: ") for fault in each.faults), style="red")
            if each.faults
            else Text("good", style="green"),
        )
    to.print(table)
    for note in dict.fromkeys(
        f"{each.name}: {note.removeprefix(f'{each.name}: ')}" for each in judged for note in each.notes
    ):
        to.print(Padding(Text(note), (0, 0, 0, 1)))


def _watts_text(watts: float | None, half_w: float | None) -> str:
    if watts is None or half_w is None:
        return ABSENT
    return f"{number_text(watts)} ±{number_text(half_w, 1)}"


def watts_line(powers: Sequence[tuple[str, float | None]]) -> str:
    """Return one line of live watts."""
    return "   ".join(f"{name} {ABSENT if watts is None else number_text(watts)} W" for name, watts in powers)
