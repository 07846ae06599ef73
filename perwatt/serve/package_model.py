"""A package in the hands of the model process: one Model for each batch size, each held against the golden answers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from perwatt import package as packages
from perwatt.errors import InputError, NetworkError
from perwatt.run import Model
from perwatt.serve.loaded import Loaded, Run, Tell
from perwatt.serve.service import TensorFacts


def create(arguments: Mapping[str, Any], tell: Tell) -> Loaded:
    """Return a package ready to serve.

    arguments: path of the package; sizes of batches; precision; threads (None: every core); tune_limit_s, how long the
    tuning of each size may go on where this machine never timed it; unproven, to take a package without golden
    examples. A network that cannot be compiled for a larger batch is served at the sizes that it can, and a note says
    why; it must be able to run one image. Raises what package.read and package.open raise.
    """
    package = packages.read(Path(arguments["path"]))
    models: dict[int, Model] = {}
    notes: list[str] = []
    sizes = sorted(arguments["sizes"])
    for size in sizes:
        tell(f"compiling batch {size} of {', '.join(map(str, sizes))}")
        try:
            models[size] = packages.open(
                package,
                size,
                arguments["precision"],
                arguments["threads"],
                tune_limit_s=arguments["tune_limit_s"],
                unproven=arguments["unproven"],
            )
        except NetworkError as error:
            if not models:
                raise
            notes.append(f"batches of {size} and more are not served: {error}")
            break
    first = next(iter(models.values()))
    if any(value.dtype != np.float32 for value in first.inputs.values()):
        raise InputError(f"{package.name}: expected a network that reads float32, got another type; convert it")
    name = next(iter(first.inputs))
    return Loaded(
        runs={size: _runner(model, name) for size, model in models.items()},
        input=_facts(first.inputs)[0],
        outputs=_facts(first.outputs),
        notes=tuple(notes),
    )


def _runner(model: Model, name: str) -> Run:
    def run(images: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(model.run({name: images}).values())

    return run


def _facts(values: Mapping[str, Any]) -> tuple[TensorFacts, ...]:
    return tuple(TensorFacts(name, np.dtype(value.dtype), tuple(value.shape[1:])) for name, value in values.items())
