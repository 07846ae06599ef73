"""The engines the lab can run, as one table. Nothing here imports an engine: only a worker process does, by name."""

from dataclasses import dataclass

from perwatt.lab.engine import Device, Precision


@dataclass(frozen=True)
class EngineEntry:
    """One engine: where its class is ("module:Class"), what it needs installed, and what it may be asked for.

    `distributions` are the installed packages whose versions tell whether the engine is here; `precisions` are those
    worth asking for, the engine itself has the last word.
    """

    name: str
    target: str
    distributions: tuple[str, ...]
    install: str
    device: Device
    precisions: tuple[Precision, ...]


ENGINES: tuple[EngineEntry, ...] = (
    EngineEntry("null", "perwatt.lab.engines.null:NullEngine", (), "", "cpu", ("fp32",)),
)


def entry(name: str) -> EngineEntry | None:
    """Return the row of the table with this name, or None."""
    return next((engine for engine in ENGINES if engine.name == name), None)
