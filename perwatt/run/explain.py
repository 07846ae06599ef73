"""Explain: the stages a network goes through, as text, and where its time goes, step by step."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal

import numpy as np

from perwatt.cpu.peak import Peak, measure
from perwatt.graph import Graph
from perwatt.passes import apply
from perwatt.run.compile import compile, read_graph
from perwatt.run.model import Model

Stage = Literal["graph", "passes", "plan", "code"]
STAGES: tuple[Stage, ...] = ("graph", "passes", "plan", "code")


@dataclass(frozen=True)
class StepTime:
    """One row of the per-layer table. Rates that do not apply are None.

    `gflops` counts the multiply-adds of the definition as two operations each, so a Winograd step may exceed the peak.
    """

    step: str
    operator: str
    shape: str
    algorithm: str
    seconds: float
    share: float
    gflops: float | None
    peak_share: float | None
    bandwidth_share: float | None


def explain(source: str | Path | bytes | Graph, batch: int | None, stop: Stage, threads: int | None = None) -> str:
    """Return the network after one stage as text. Raises what `compile` raises."""
    graph = read_graph(source, batch)
    if stop == "graph":
        return str(graph)
    if stop == "passes":
        return str(apply(graph))
    model = compile(graph, threads=threads, tune="estimate")
    return str(model.plan) if stop == "plan" else model.code_listing()


def step_times(model: Model, repeats: int = 20, peak: Peak | None = None) -> list[StepTime]:
    """Return where the time of a Model goes: the median of each step, measured at its barriers inside whole runs."""
    random = np.random.default_rng(0)
    arrays = {n: random.standard_normal(v.shape).astype(v.dtype) for n, v in model.inputs.items()}
    seconds = np.median(model.time_steps(arrays, repeats), axis=0)
    threads = model.plan.threads
    peak = measure(threads) if peak is None else peak
    total = float(seconds.sum())
    placement = model.plan.placement
    rows = []
    for position, planned in enumerate(model.plan.steps):
        runs = placement.repeats(position)
        spent, load = float(seconds[position]), model.work[position]
        operations = 2 * load.multiply_adds * runs
        moved = load.constant_bytes + load.tensor_bytes * runs
        rate = operations / spent / 1e9 if operations and spent > 0 else None
        rows.append(
            StepTime(
                planned.step.name, planned.step.operator, _shape(planned.step.outputs[0].shape, runs),
                str(planned.choice), spent, spent / total, rate,
                None if rate is None else rate / peak.gflop_per_s,
                moved / spent / 1e9 / peak.read_gb_per_s if spent > 0 else None,
            )
        )  # fmt: skip
    return rows


def table(rows: list[StepTime]) -> Iterator[str]:
    """Yield the per-layer table as lines of text."""
    yield f"{'µs':>8} {'share':>6} {'GFLOP/s':>8} {'of peak':>7} {'of bw':>6}  step"
    for row in rows:
        rate = "" if row.gflops is None else f"{row.gflops:.0f}"
        peak = "" if row.peak_share is None else f"{100 * row.peak_share:.0f} %"
        bandwidth = "" if row.bandwidth_share is None else f"{100 * row.bandwidth_share:.0f} %"
        yield (
            f"{row.seconds * 1e6:8.0f} {100 * row.share:5.1f}% {rate:>8} {peak:>7} {bandwidth:>6}  "
            f"{row.operator} {row.step} {row.shape}: {row.algorithm}"
        )
    yield f"{sum(row.seconds for row in rows) * 1e6:8.0f} in all"


def _shape(shape: tuple[int, ...], runs: int) -> str:
    text = "x".join(map(str, shape)) if prod(shape) else "empty"
    return f"{text} x{runs}" if runs > 1 else text
