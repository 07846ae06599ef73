"""Checkpoints: every tensor of a run as safetensors with the rest as JSON in its head; one file, whole or absent.

No pickle: a checkpoint from elsewhere cannot run code. A digest over the content tells a damaged file from a good one.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from perwatt.errors import OutputError, TrainingError
from perwatt.package.atomic_file import write_whole

VERSION = 1
HEAD = "perwatt"
SUFFIX = ".safetensors"
# The one before stays until the next is safe, against a disk that lies about what it has written.
KEPT = 2


@dataclass(frozen=True)
class Checkpoint:
    """A run at a step: tensors by name, and plain values for JSON."""

    tensors: Mapping[str, torch.Tensor]
    values: Mapping[str, Any]


def write(checkpoint: Checkpoint, path: Path) -> int:
    """Write a checkpoint so that the path holds the old file or the whole new one; return its size in bytes.

    Raises OutputError when it cannot be written, for one because the disk is full; what was there before stays.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    head = {"version": VERSION, "values": checkpoint.values, "digest": _digest(tensors, checkpoint.values)}
    # One entry: safetensors writes several in an order that differs from time to time.
    content = save(tensors, metadata={HEAD: json.dumps(head, allow_nan=False)})
    try:
        write_whole(path, content)
    except OutputError as error:
        raise OutputError(f"{error}; then go on with --resume") from error
    return len(content)


def read(path: Path) -> Checkpoint:
    """Return the checkpoint of a file. Raises TrainingError when it is damaged or of another version."""
    try:
        with safe_open(path, framework="pt") as file:
            head = json.loads((file.metadata() or {})[HEAD])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
        if head["version"] != VERSION:
            raise TrainingError(
                f"{path}: expected a checkpoint of version {VERSION}, got {head['version']}; "
                "go on with the perwatt that wrote it"
            )
        values = head["values"]
        if head["digest"] != _digest(tensors, values):
            raise TrainingError(f"{path}: expected the content that was written, its digest differs; it is damaged")
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise TrainingError(f"{path}: expected a checkpoint, got a file that cannot be read: {error}") from error
    return Checkpoint(tensors, values)


def place(folder: Path, step: int) -> Path:
    """Return where the checkpoint of a step lies."""
    return folder / f"step-{step:09d}{SUFFIX}"


def keep(checkpoint: Checkpoint, folder: Path, step: int) -> int:
    """Write the checkpoint of a step and remove those before the last KEPT; return its size. Raises OutputError."""
    size = write(checkpoint, place(folder, step))
    for old in _all(folder)[:-KEPT]:
        old.unlink(missing_ok=True)
    return size


def latest(folder: Path) -> tuple[Checkpoint | None, tuple[str, ...]]:
    """Return the newest checkpoint that is whole, and why newer ones are not; None where there is none at all.

    Raises TrainingError when there are some and none is whole.
    """
    faults: list[str] = []
    for path in reversed(_all(folder)):
        try:
            return read(path), tuple(faults)
        except TrainingError as error:
            faults.append(str(error))
    if faults:
        raise TrainingError(f"{folder}: expected a whole checkpoint, got none: {'; '.join(faults)}; train anew")
    return None, ()


def _all(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"step-*{SUFFIX}"))


def _digest(tensors: Mapping[str, torch.Tensor], values: Mapping[str, Any]) -> str:
    digest = hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()
