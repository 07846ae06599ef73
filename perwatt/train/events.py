"""The event log of a run: JSON lines with rising ids, only ever appended to, readable while it is written.

A line is written whole or not at all as far as the system allows; a line torn by a killed writer or a full disk is
passed over by readers, and the next writer begins a new one.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from perwatt.errors import OutputError, TrainingError

_ROOM = "free some, then go on with --resume"


@dataclass(frozen=True)
class Event:
    """One thing that happened: its id, kind, seconds since the Unix epoch, and what is known of it."""

    id: int
    kind: str
    at: float
    facts: Mapping[str, Any]


class EventLog:
    """Appends to a log; the clock is an argument, for tests. Raises OutputError when the disk is full."""

    def __init__(self, path: Path, clock: Any) -> None:
        self.path, self.clock, self.torn = path, clock, False
        self.next_id = max((event.id for event in read(path)), default=0) + 1
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            if _torn(path):
                os.write(self.file, b"\n")
        except OSError as error:
            raise OutputError(f"{path}: expected a log that can be written, got {error.strerror}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.file)

    def append(self, kind: str, **facts: Any) -> Event:
        """Write an event and return it. Raises OutputError when it cannot be written."""
        event = Event(self.next_id, kind, self.clock(), facts)
        line = json.dumps({"id": event.id, "kind": kind, "at": event.at, **facts}, allow_nan=False) + "\n"
        content = ("\n" + line if self.torn else line).encode()
        written = 0
        try:
            written = os.write(self.file, content)
        except OSError as error:
            raise OutputError(f"{self.path}: expected room for an event, got {error.strerror}; {_ROOM}") from error
        finally:
            self.torn = written != len(content)
        if self.torn:
            raise OutputError(f"{self.path}: expected room for an event, the disk is full; {_ROOM}")
        self.next_id += 1
        return event


def read(path: Path, after: int = 0) -> tuple[Event, ...]:
    """Return the events with an id above `after`; torn lines are passed over, a missing log has none.

    Raises TrainingError when ids do not rise: then it is not one log.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise TrainingError(f"{path}: expected a log that can be read, got {error.strerror}") from error
    events: list[Event] = []
    for line in lines:
        event = _event(line)
        if event is None:
            continue
        if events and event.id <= events[-1].id:
            raise TrainingError(f"{path}: expected ids that rise, got {event.id} after {events[-1].id}; it was edited")
        events.append(event)
    return tuple(event for event in events if event.id > after)


def history(events: Sequence[Event]) -> tuple[Event, ...]:
    """Return what is part of the run as it ended: steps that were done again after a resume are left out once."""
    kept: list[Event] = []
    for event in events:
        if event.kind == "resumed":
            step = event.facts["step"]
            kept = [each for each in kept if "step" not in each.facts or each.facts["step"] <= step]
        kept.append(event)
    return tuple(kept)


def _event(line: bytes) -> Event | None:
    try:
        content = json.loads(line)
        facts = {name: value for name, value in content.items() if name not in ("id", "kind", "at")}
        return Event(int(content["id"]), str(content["kind"]), float(content["at"]), facts)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None  # torn: a whole line is always an object with these three


def _torn(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
