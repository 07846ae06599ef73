"""A run that is killed with SIGKILL, again and again, ends bit for bit as one that never stopped."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from perwatt.train import checkpoint
from perwatt.train.events import Event, history, read

CHILD = Path(__file__).parent / "killed_run.py"
# Between checkpoints, in one, in validation, and in the first one after a resumption.
PLACES = ("step:8", "write:2", "validate:1", "write:1")


def start(folder: Path, how: str, place: str) -> int:
    """Run the child and return its exit code."""
    command = [sys.executable, str(CHILD), str(folder), how, place]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


def scores(folder: Path) -> list[tuple[object, ...]]:
    """Return what the epochs say, less what depends on time."""
    epochs: list[Event] = [event for event in history(read(folder / "events.jsonl")) if event.kind == "epoch"]
    return [
        tuple(str(event.facts[name]) for name in ("epoch", "step", "train", "validation", "best")) for event in epochs
    ]


@pytest.mark.slow
def test_a_killed_run_ends_as_one_that_never_stopped(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole, "new", "never") == 0
    for number, place in enumerate(PLACES):
        assert start(killed, "resume" if number else "new", place) == -signal.SIGKILL, place
    assert start(killed, "resume", "never") == 0

    last, _ = checkpoint.latest(whole / "checkpoints")
    other, faults = checkpoint.latest(killed / "checkpoints")
    assert last is not None
    assert other is not None
    assert not faults
    assert last.values == other.values
    assert last.values["learner"]["step"] == 40
    assert last.tensors.keys() == other.tensors.keys()
    for name, tensor in last.tensors.items():
        assert torch.equal(tensor, other.tensors[name]), name
    assert (whole / "best.safetensors").read_bytes() == (killed / "best.safetensors").read_bytes()
    assert scores(whole) == scores(killed)
    assert len(scores(whole)) == 2

    events = read(killed / "events.jsonl")
    assert sum(event.kind == "resumed" for event in events) == len(PLACES)
    assert json.loads((killed / "record.json").read_text())["resumed"] >= 1
    assert not list(killed.rglob("*.part"))
    # At most the last interval was lost: every resumption begins at most three steps before the last step it had seen.
    seen = 0
    for event in events:
        if event.kind == "resumed":
            assert event.facts["step"] >= seen - 3
        seen = max(seen, event.facts.get("step", 0))
