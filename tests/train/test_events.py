"""The event log is only appended to; whatever tears its last line costs that line alone."""

import errno
import json
import os
from itertools import count
from pathlib import Path

import pytest

from perwatt.errors import OutputError, TrainingError
from perwatt.train.events import Event, EventLog, history, read


def log(path: Path) -> EventLog:
    ticks = count(100)
    return EventLog(path, lambda: float(next(ticks)))


def test_events_come_back_in_order_with_rising_ids(tmp_path: Path) -> None:
    path = tmp_path / "run" / "events.jsonl"
    with log(path) as one:
        first = one.append("started", step=0, text="ä\n")
        one.append("steps", step=1, loss=0.25)
    with log(path) as again:
        again.append("resumed", step=1)
    events = read(path)
    assert [event.id for event in events] == [1, 2, 3]
    assert events[0] == first == Event(1, "started", 100.0, {"step": 0, "text": "ä\n"})
    assert [event.kind for event in read(path, after=2)] == ["resumed"]
    assert all(json.loads(line) for line in path.read_text().splitlines())
    assert read(tmp_path / "none") == ()


@pytest.mark.parametrize(
    "torn", [b"{", b'{"id": 3, "kind": "st', b'{"id": 3, "kind": "steps", "at": 1.0', b"\xff\xfe", b"3"]
)
def test_a_torn_last_line_is_passed_over_and_the_next_writer_begins_a_new_one(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "events.jsonl"
    with log(path) as one:
        one.append("a")
        one.append("b")
    with path.open("ab") as file:
        file.write(torn)
    assert [event.kind for event in read(path)] == ["a", "b"]
    with log(path) as again:
        again.append("c")
    assert [(event.id, event.kind) for event in read(path)] == [(1, "a"), (2, "b"), (3, "c")]
    assert path.read_bytes().startswith(b'{"id": 1')


def test_every_prefix_of_a_log_can_be_read(tmp_path: Path) -> None:
    path, part = tmp_path / "whole", tmp_path / "part"
    with log(path) as one:
        for number in range(4):
            one.append("steps", step=number)
    content = path.read_bytes()
    lines = content.count(b"\n")
    for length in range(len(content)):
        part.write_bytes(content[:length])
        kinds = len(read(part))
        assert content[:length].count(b"\n") <= kinds <= lines
        with log(part) as again:
            again.append("next")
        assert len(read(part)) == kinds + 1


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int, content: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with log(tmp_path / "events.jsonl") as one:
        one.append("a")
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            with pytest.raises(OutputError, match="No space left"):
                one.append("b")
        real = os.write
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", lambda handle, content: real(handle, content[:7]))
            with pytest.raises(OutputError, match="full"):
                one.append("c")
        one.append("d")
    assert [event.kind for event in read(tmp_path / "events.jsonl")] == ["a", "d"]


def test_an_edited_log_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with log(path) as one:
        one.append("a")
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(TrainingError, match="rise"):
        read(path)


def test_history_has_each_step_once() -> None:
    steps = [("started", None), ("steps", 1), ("steps", 2), ("checkpoint", 2), ("steps", 3), ("epoch", 3)]
    after = [("resumed", 2), ("steps", 3), ("epoch", 3), ("ended", 3)]
    events = [
        Event(place, kind, 0.0, {} if step is None else {"step": step})
        for place, (kind, step) in enumerate(steps + after, 1)
    ]
    kept = [(event.kind, event.facts.get("step")) for event in history(events)]
    assert kept == [*steps[:4], *after]
