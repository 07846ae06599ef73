"""Tuning results on disk: measured seconds of candidates by what the step is, so that no step is timed twice.

One JSON file per kind of processor: {signature of the step: {"algorithm key=value ...": seconds}}. A file that cannot
be read counts as empty; writing is atomic, and a folder that cannot be written is not an error.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from perwatt import settings
from perwatt.machine import Machine
from perwatt.plan import Considered, Placement, Step, Tensor, Timings

FORMAT = 3  # one more whenever what is measured, or the kernels themselves, have changed much
Results = dict[str, dict[str, float]]


def path(machine: Machine) -> Path:
    """Return the file for a machine: same processor, vector unit and features, same file."""
    what = f"{FORMAT} {machine.cpu_model} {machine.isa} {' '.join(machine.features)} {machine.l2_bytes}"
    return settings.cache_folder() / "tuning" / f"{hashlib.sha256(what.encode()).hexdigest()[:16]}.json"


def signature(step: Step) -> str:
    """Return what a step's time depends on: operator, operands' shapes and layouts, attributes, threads."""
    operands = [
        None if t is None else (t.shape, t.layout, t.name in step.constants, *_halves(t))
        for t in (*step.inputs, *step.outputs)
    ]
    attributes = sorted((key, str(value)) for key, value in step.attributes.items())
    return hashlib.sha256(repr((step.operator, operands, attributes, step.threads)).encode()).hexdigest()[:24]


def _halves(tensor: Tensor) -> tuple[str, ...]:
    return () if tensor.element == "fp32" else (tensor.element,)


def _label(algorithm: str, tile: Mapping[str, int]) -> str:
    return " ".join([algorithm, *(f"{key}={value}" for key, value in sorted(tile.items()))])


def load(machine: Machine) -> Results:
    """Return all results kept for a machine."""
    try:
        results = json.loads(path(machine).read_text())
    except (OSError, ValueError):
        return {}
    return results if isinstance(results, dict) else {}


def timings(placement: Placement, considered: Considered, results: Results) -> Timings:
    """Return the kept results that apply to the steps of a placement."""
    found = {}
    for position, step in enumerate(placement.steps):
        kept = results.get(signature(step))
        if not isinstance(kept, dict):
            continue
        for candidate in considered[position][0]:
            seconds = kept.get(_label(candidate.algorithm, candidate.tile))
            if isinstance(seconds, int | float) and 0 < seconds < float("inf"):
                found[(position, candidate.algorithm, tuple(sorted(candidate.tile.items())))] = seconds
    return found


def keep(placement: Placement, measured: Timings, machine: Machine) -> None:
    """Add measured seconds to the file; what other processes have written meanwhile stays."""
    results = load(machine)
    for (position, algorithm, tile), seconds in measured.items():
        name = signature(placement.steps[position])
        if not isinstance(results.get(name), dict):
            results[name] = {}
        results[name][_label(algorithm, dict(tile))] = seconds
    target = path(machine)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=target.parent, suffix=".part", delete=False) as file:
            json.dump(results, file)
        os.replace(file.name, target)
    except OSError:
        return
