"""The Record of a run: one JSON file with every epoch and curve, and figures that `perwatt check` computes again."""

import datetime
import hashlib
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from perwatt.errors import RecordError
from perwatt.package.atomic_file import write_whole
from perwatt.train.events import Event, history, read

KIND = "training"
SCHEMA_VERSION = 1
RECORD = "record.json"
_COLUMNS = ("step", "loss", "top1", "learning_rate", "gradient_norm", "images_per_s", "waiting")


def of_events(events: Sequence[Event]) -> dict[str, Any]:
    """Return the Record that follows from a run's events. Raises RecordError when the run has not ended."""
    kept = history(events)
    begun = next((event for event in kept if event.kind == "started"), None)
    ended = next((event for event in reversed(kept) if event.kind == "ended"), None)
    if begun is None or ended is None:
        raise RecordError("training: expected the log of a run that ended, got one still under way; let it end")
    steps = [event.facts for event in kept if event.kind == "steps"]
    epochs = [dict(event.facts) for event in kept if event.kind == "epoch"]
    content = {
        "schema_version": SCHEMA_VERSION,
        "kind": KIND,
        "created": datetime.datetime.fromtimestamp(begun.at, datetime.UTC).isoformat(timespec="seconds"),
        **{
            name: begun.facts[name]
            for name in ("request", "data", "parameters", "steps_in_epoch", "machine", "versions")
        },
        "resumed": sum(event.kind == "resumed" for event in kept),
        "ending": ended.facts["ending"],
        "elapsed_s": ended.at - begun.at,
        "test": ended.facts["test"],
        "epochs": epochs,
        "steps": {name: [each[name] for each in steps] for name in _COLUMNS},
    }
    content["figures"] = figures(content)
    content["digest"] = digest(content)
    return content


def figures(content: dict[str, Any]) -> dict[str, Any]:
    """Return what a Record says in short, computed from its epochs.

    images/s is the median over the epochs, `waiting` the share of all steps' time that was spent waiting for data.
    """
    epochs = content["epochs"]
    metric = content["request"]["recipe"]["metric"]

    def merit(epoch: dict[str, Any]) -> tuple[float, float]:
        score = epoch["validation"]
        return (-score["loss"] if metric == "loss" else score[metric], -score["loss"])

    best = max(epochs, key=merit)  # the first of equals, as training takes it
    seconds = sum(each["seconds"] for each in epochs)
    return {
        "epochs": len(epochs),
        "best_epoch": best["epoch"],
        "validation_top1": best["validation"]["top1"],
        "validation_loss": best["validation"]["loss"],
        "test_top1": None if content["test"] is None else content["test"]["top1"],
        "images_per_s": statistics.median(each["images_per_s"] for each in epochs),
        "waiting": sum(each["waiting"] * each["seconds"] for each in epochs) / seconds,
    }


def digest(content: dict[str, Any]) -> str:
    """Return the SHA-256 of a Record without its digest."""
    plain = {name: value for name, value in content.items() if name != "digest"}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def write(folder: Path) -> Path:
    """Write a run's Record beside its log and return its path. Raises OutputError."""
    path = folder / RECORD
    write_whole(path, to_text(of_events(read(folder / "events.jsonl"))).encode())
    return path


def to_text(content: dict[str, Any]) -> str:
    """Return a Record as JSON, an epoch a line, so that two can be told apart."""
    lines = []
    for name, value in content.items():
        if isinstance(value, list):
            text = "[\n" + ",\n".join(json.dumps(each, allow_nan=False) for each in value) + "\n]"
        else:
            text = json.dumps(value, allow_nan=False)
        lines.append(f"{json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def check(content: dict[str, Any]) -> tuple[str, ...]:
    """Return each figure of a training Record that does not follow from it; empty for a valid one.

    Raises RecordError when it is no Record of this kind and version.
    """
    if content.get("kind") != KIND or content.get("schema_version") != SCHEMA_VERSION:
        raise RecordError(
            f"expected a Record of kind {KIND!r}, version {SCHEMA_VERSION}, got {content.get('kind')!r}, "
            f"{content.get('schema_version')!r}"
        )
    try:
        faults = [
            f"{name}: the epochs give {value!r}, the Record says {content['figures'].get(name)!r}"
            for name, value in figures(content).items()
            if content["figures"].get(name) != value
        ]
        if content["digest"] != digest(content):
            faults.append("digest: the content is not what was written")
    except (KeyError, TypeError, ValueError, ZeroDivisionError, AttributeError) as error:
        raise RecordError(f"expected a whole training Record, got one without or with a wrong {error}") from error
    return tuple(faults)


def is_training(fields: dict[str, Any]) -> bool:
    """Return whether a Record's fields are those of a training run."""
    return fields.get("kind") == KIND


def check_file(fields: dict[str, Any], name: str) -> bool:
    """Print VALID, or INVALID with each fault; return whether there is one. Raises RecordError."""
    faults = check(fields)
    for fault in faults:
        print(f"INVALID  {fault}")
    if not faults:
        print(f"VALID  {name}: every figure follows from its {len(fields['epochs'])} epochs")
    return bool(faults)
