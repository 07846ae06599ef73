"""compile(): the one function that joins the rooms. Network -> Graph -> passes -> Plan -> Code -> Model."""

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from perwatt import settings
from perwatt.cpu import memory
from perwatt.cpu.build import build
from perwatt.cpu.catalogue import KERNELS
from perwatt.cpu.team import Team, shared_team
from perwatt.cpu.tuning import measure
from perwatt.errors import InputError, PlanError
from perwatt.graph import Graph, read
from perwatt.machine import Machine, this_machine
from perwatt.passes import apply
from perwatt.plan import Considered, Placement, Precision, Timings, batch_of, make
from perwatt.run import precision_file, storage, tuning_file
from perwatt.run.model import Model

Tune = Literal["measure", "again", "estimate"]


def compile(
    source: str | Path | bytes | Graph,
    batch: int | None = None,
    *,
    threads: int | None = None,
    workspace_bytes: int | None = None,
    tune: Tune = "measure",
    tune_limit_s: float = 12.0,
    images: int | Sequence[int] | None = None,
    precision: str | Mapping[str, Any] | Precision = "fp32",
    progress: Callable[[int, int], None] | None = None,
) -> Model:
    """Return a Model of a network on this machine.

    source: an ONNX file (path or bytes) or a Graph. batch: images in a call; None keeps the network's own (1 if free).
    threads: None uses every core this process may use. workspace_bytes: limit of any step's working memory.
    tune: "measure" times the candidates of every step that was never timed on this machine and keeps the results,
    "again" times all of them anew, "estimate" measures nothing (results that are kept still count).
    tune_limit_s: no new round of timing begins after so many seconds.
    images: how many images pass through the convolutions at a time, or several such parts of the batch, the smaller
    ones for the layers with large activations; None chooses.
    precision: what steps may use besides FP32, where it is faster: "fp16" and "bf16" store weights and activations in
    half the bytes, and compute products in it where this machine can; "auto" is what was measured on images and kept
    (perwatt tune --precision auto); an object is such evidence itself.
    Raises NetworkError for files that cannot be read, UnsupportedOperator, PlanError, InputError.
    """
    graph = read_graph(source, batch)
    machine = this_machine()
    count = threads if threads is not None else settings.threads() or machine.cores
    if not isinstance(count, int | np.integer) or count < 1:
        raise InputError(f"threads: expected a whole number, at least 1, got {count!r}; None takes every core")
    if tune not in get_args(Tune):
        raise InputError(f"tune: expected one of {', '.join(get_args(Tune))}, got {tune!r}")
    allowed = precision_file.wanted(graph, precision)
    team = shared_team(count)
    _check_weights(graph)
    rewritten = apply(graph)
    _check_memory(rewritten, machine, 2 * max((prod(v.shape) * 4 for v in rewritten.values.values()), default=0))
    inputs = {name: rewritten.values[name] for name in rewritten.inputs}
    outputs = {name: rewritten.values[name] for name in rewritten.outputs}
    laid = _laid(
        rewritten, machine, team, count, images_at_a_time(rewritten, images), allowed, workspace_bytes, tune,
        tune_limit_s, progress,
    )  # fmt: skip
    plan = make(rewritten.name, laid.placement, KERNELS, timings=laid.timings, considered=laid.considered)
    plan = replace(plan, why=laid.why)
    model = Model(plan, build(plan, team), inputs, outputs)
    del graph, rewritten, laid, plan  # or their weights would still be held
    memory.give_back()
    return model


def _laid(
    graph: Graph, machine: Machine, team: Team, threads: int, at_a_time: Sequence[int], allowed: Precision,
    workspace_bytes: int | None, tune: Tune, tune_limit_s: float, progress: Callable[[int, int], None] | None,
) -> storage.Laid:  # fmt: skip
    """Return the placement of a graph after the passes, its steps timed as `compile` was asked to."""
    stop = time.monotonic() + tune_limit_s

    def times(placement: Placement, considered: Considered, share: float) -> Timings:
        kept = {} if tune == "again" else tuning_file.timings(placement, considered, tuning_file.load(machine))
        plan = make(graph.name, placement, KERNELS, timings=kept, considered=considered)
        _check_memory(graph, machine, 4 * plan.arena_floats + plan.scratch_bytes)
        if tune == "estimate":
            return kept
        random = np.random.default_rng(0)
        values = graph.values
        arrays = {name: random.standard_normal(values[name].shape).astype(values[name].dtype) for name in graph.inputs}
        arrays |= {
            buffer: np.zeros(values[name].shape, np.float32)
            for buffer, name in zip(placement.outputs, graph.outputs, strict=True)
        }
        timings = measure(
            placement,
            team,
            arrays,
            known=kept,
            considered=considered,
            limit_s=share * max(0.0, stop - time.monotonic()),
            every_step=allowed.storage != "fp32",
            progress=progress,
        )
        if timings != kept:
            tuning_file.keep(placement, timings, machine)
            # Steps alike share what was measured for any of them, now as at the next start.
            timings |= tuning_file.timings(placement, considered, tuning_file.load(machine))
        return timings

    return storage.settle(graph, machine, threads, at_a_time, allowed, workspace_bytes, times)


def _check_weights(graph: Graph) -> None:
    """Warn about weights that are no numbers: every answer that depends on them will be none either."""
    for name, array in graph.constants.items():
        if array.dtype.kind == "f" and not np.isfinite(np.sum(array, dtype=np.float64)):
            warnings.warn(f"the weights {name!r} hold NaN or infinity; outputs will too", stacklevel=3)


def _check_memory(graph: Graph, machine: Machine, working_bytes: int) -> None:
    """Refuse a network whose weights and activations cannot fit, before anything is allocated."""
    limits = [n for n in (machine.memory_bytes, machine.memory_limit_bytes) if n is not None]
    if not limits:
        return
    weights = sum(array.nbytes for array in graph.constants.values())
    needed = 2 * weights + working_bytes
    if needed > min(limits):
        raise PlanError(
            f"{graph.name} needs about {needed / 2**30:.1f} GiB, this process may use {min(limits) / 2**30:.1f} GiB; "
            f"choose a smaller batch"
        )


def read_graph(source: str | Path | bytes | Graph, batch: int | None) -> Graph:
    """Return the Graph of a file, or the Graph itself. Raises as `compile` does."""
    if not isinstance(source, str | Path | bytes | Graph):
        raise InputError(f"expected an ONNX file, its bytes or a Graph, got {type(source).__name__}")
    if isinstance(source, Graph):
        made_with = batch_of(source)
        if batch is not None and made_with != batch:
            raise InputError(f"this Graph was made with batch {made_with}, got {batch}; build or read it with {batch}")
        return source
    return read(source, batch)


def images_at_a_time(graph: Graph, images: int | Sequence[int] | None) -> tuple[int, ...]:
    """Return how many images to take through the convolutions at a time: activations then stay in the caches."""
    batch = batch_of(graph)
    if images is not None:
        parts = (images,) if isinstance(images, int | np.integer) else tuple(images)
        sizes: tuple[int, ...] = (*sorted(parts), batch)
        for part, around in pairwise(sizes):
            if part < 1 or around % part:
                raise InputError(f"images: expected divisors of the batch {batch} and of each other, got {images}")
        return parts
    part = next((part for part in (8, 6, 4, 10, 5, 7) if batch % part == 0 and batch > part), batch)
    return (2, part) if part % 2 == 0 else (part,)
