"""A checkpoint is the old one or the whole new one, whatever happens while it is written, and never runs code."""

import errno
import os
from pathlib import Path

import pytest
import torch

from perwatt.errors import OutputError, TrainingError
from perwatt.train import checkpoint
from perwatt.train.checkpoint import Checkpoint


def made(seed: int) -> Checkpoint:
    torch.manual_seed(seed)
    tensors = {
        "a": torch.randn(3, 4),
        "half": torch.randn(5).to(torch.bfloat16),
        "step": torch.tensor(seed),
        "none": torch.zeros(0, 3),
    }
    return Checkpoint(tensors, {"step": seed, "best": [0.5, -1.25], "nothing": None, "exact": 0.1 + seed})


def same(one: Checkpoint, other: Checkpoint) -> bool:
    return (
        one.values == other.values
        and one.tensors.keys() == other.tensors.keys()
        and all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)
        and all(one.tensors[name].dtype == other.tensors[name].dtype for name in one.tensors)
    )


def test_it_comes_back_as_it_was(tmp_path: Path) -> None:
    size = checkpoint.write(made(1), tmp_path / "deep" / "x.safetensors")
    path = tmp_path / "deep" / "x.safetensors"
    assert size == path.stat().st_size
    assert same(checkpoint.read(path), made(1))


@pytest.mark.parametrize("place", [3, 60, 200, -1, -9])
def test_a_changed_byte_is_seen(tmp_path: Path, place: int) -> None:
    path = tmp_path / "x.safetensors"
    checkpoint.write(made(1), path)
    content = bytearray(path.read_bytes())
    content[place] ^= 0x40
    path.write_bytes(content)
    with pytest.raises(TrainingError, match=r"x\.safetensors"):
        checkpoint.read(path)


@pytest.mark.parametrize("length", [0, 5, 100, -1])
def test_a_cut_file_is_seen(tmp_path: Path, length: int) -> None:
    path = tmp_path / "x.safetensors"
    checkpoint.write(made(1), path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(TrainingError):
        checkpoint.read(path)


def test_a_pickle_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    torch.save({"a": torch.zeros(2)}, path)
    with pytest.raises(TrainingError, match="expected a checkpoint"):
        checkpoint.read(path)


@pytest.mark.parametrize("fails", ["fsync", "replace", "write"])
def test_a_full_disk_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    path = tmp_path / "x.safetensors"
    checkpoint.write(made(1), path)

    def full(*arguments: object, **names: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        if fails == "write":
            patch.setattr(os, "fdopen", full)
        else:
            patch.setattr(os, fails, full)
        with pytest.raises(OutputError, match=r"No space left.*--resume"):
            checkpoint.write(made(2), path)
    assert same(checkpoint.read(path), made(1))
    assert [each.name for each in tmp_path.iterdir()] == ["x.safetensors"]


def test_the_last_two_are_kept_and_the_newest_whole_one_is_taken(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path) == (None, ())
    for step in (9, 10, 1100):
        checkpoint.keep(made(step), tmp_path, step)
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        "step-000000010.safetensors",
        "step-000001100.safetensors",
    ]
    found, faults = checkpoint.latest(tmp_path)
    assert found is not None
    assert same(found, made(1100))
    assert not faults
    newest = checkpoint.place(tmp_path, 1100)
    newest.write_bytes(newest.read_bytes()[:-1])
    found, faults = checkpoint.latest(tmp_path)
    assert found is not None
    assert same(found, made(10))
    assert len(faults) == 1
    checkpoint.place(tmp_path, 10).write_bytes(b"")
    with pytest.raises(TrainingError, match="train anew"):
        checkpoint.latest(tmp_path)
