"""Reductions of plain tensors over any axes: sum, mean, maximum, minimum.

Neighbouring axes of one kind are merged. Where the last axis is kept, every lane is a result of its own; where it is
reduced, the lanes are combined at the end. All other axes are tables of offsets made with the plan.
"""

from collections.abc import Callable
from enum import IntEnum
from functools import partial
from math import inf, prod

import numpy as np

from perwatt.cpu.ir import Index, Kernel, Module, Pointer, Vector
from perwatt.cpu.kernels import operands
from perwatt.cpu.kernels.functions import minimum
from perwatt.cpu.kernels.movement import word_of
from perwatt.plan.algorithm import Algorithm, Call, Operand, Packed, Step, Tile

KINDS = {"ReduceSum": "sum", "ReduceMean": "mean", "ReduceMax": "max", "ReduceMin": "min"}
KINDS |= {"GlobalAveragePool": "mean", "GlobalMaxPool": "max"}


class Slot(IntEnum):
    """The words of a call's arguments. Offsets count floats."""

    INPUT = 0
    OUTPUT = 1
    KEPT = 2
    KEPT_TABLE = 3  # table [kept]: offset of each result's, or row of results', first element
    REDUCED = 4
    REDUCED_TABLE = 5  # table [reduced]: offsets of the elements, or rows, that belong to one result
    INNER = 6  # size of the last axis
    FACTOR = 7  # float


def _combiner(k: Kernel, kind: str) -> tuple[Callable[[Vector, Vector], Vector], float]:
    """Return (how two values become one, the value that changes nothing)."""
    match kind:
        case "max":
            return k.maximum, -inf
        case "min":
            return (lambda a, b: minimum(k, a, b)), inf
        case _:
            return (lambda a, b: a + b), 0.0


def reduction_name(lanes: int, kind: str, across: bool) -> str:
    """Return the name of the kernel that `reduction` writes."""
    return f"reduce_{kind}_{'across' if across else 'along'}_v{lanes}"


def reduction(lanes: int, kind: str, across: bool) -> Module:
    """Return a reducing kernel; `across` is for a last axis that is reduced too."""
    name = reduction_name(lanes, kind, across)
    module = Module(name, lanes)
    with module.kernel(name) as k:
        combine, neutral = _combiner(k, kind)
        x, y, inner = k.pointer(Slot.INPUT), k.pointer(Slot.OUTPUT), k.argument(Slot.INNER)
        factor = k.broadcast(k.pointer(Slot.FACTOR))
        groups = Index(k, k.emit("add i64 0, 1")) if across else (inner + (lanes - 1)) // lanes
        first, last = k.share(k.argument(Slot.KEPT) * groups)
        with k.loop(first, last) as tasks:
            row = tasks.index // groups
            source = x + k.table_entry(k.pointer(Slot.KEPT_TABLE), row)
            if across:
                value = _across(k, source, inner, combine, neutral)
                k.store_first(value * factor if kind == "mean" else value, y + row)
            else:
                lane = (tasks.index - row * groups) * lanes
                used = k.minimum_index(inner - lane, lanes)
                table = k.pointer(Slot.REDUCED_TABLE)
                start = [k.constant(neutral)]
                with k.loop(0, k.argument(Slot.REDUCED), carry=start) as over:
                    here = source + k.table_entry(table, over.index) + lane
                    over.carry([combine(over.carried[0], k.load_masked(here, used))])
                value = over.results[0]
                k.store_masked(value * factor if kind == "mean" else value, y + row * inner + lane, used)
    return module


def _across(
    k: Kernel, source: Pointer, inner: Index, combine: Callable[[Vector, Vector], Vector], neutral: float
) -> Vector:
    """Return one result, in every lane."""
    lanes, table = k.lanes, k.pointer(Slot.REDUCED_TABLE)
    whole = inner // lanes * lanes
    rest = inner - whole
    in_use = k.lane_range(0, rest)
    with k.loop(0, k.argument(Slot.REDUCED), carry=[k.constant(neutral)]) as rows:
        here = source + k.table_entry(table, rows.index)
        with k.loop(0, whole, lanes, carry=rows.carried) as over:
            over.carry([combine(over.carried[0], k.load(here, over.index))])
        tail = k.select(in_use, k.load_lanes(here + whole, in_use), neutral)
        rows.carry([combine(over.results[0], tail)])
    value, distance = rows.results[0], lanes // 2
    while distance:
        value = combine(value, k.shuffle(value, value, [lane ^ distance for lane in range(lanes)]))
        distance //= 2
    return value


def _runs(step: Step) -> list[tuple[bool, int, int]]:
    """Return (reduced, size, stride) of the input's axes, neighbours of one kind merged, axes of size 1 left out."""
    shape = operands.data(step)[0].shape
    reduced = set(range(2, len(shape))) if step.operator.startswith("Global") else set(operands.wholes(step, "axes"))
    runs: list[tuple[bool, int, int]] = []
    for axis, size in enumerate(shape):
        if size == 1:
            continue
        kind, stride = axis in reduced, prod(shape[axis + 1 :])
        if runs and runs[-1][0] == kind:
            size *= runs.pop()[1]
        runs.append((kind, size, stride))
    return runs or [(False, 1, 1)]


def _offsets(runs: list[tuple[int, int]]) -> np.ndarray:
    """Return every sum of one multiple of each stride, the last run's changing fastest."""
    offsets = np.zeros(1, np.int64)
    for size, stride in runs:
        offsets = (offsets[:, None] + np.arange(size) * stride).reshape(-1)
    return offsets


def _accepts(step: Step) -> str | None:
    if not operands.everything_is(step, "plain"):
        return "input and output must be plain"
    x, y = operands.data(step)
    if prod(x.shape) == 0 and prod(y.shape) > 0:
        return "reduces nothing"
    return None


def _calls(step: Step, tile: Tile) -> tuple[Call, ...]:
    runs, kind, y = _runs(step), KINDS[step.operator], step.outputs[0]
    across, inner, _ = runs[-1]
    kept = [(size, stride) for reduced, size, stride in runs[:-1] if not reduced]
    reduced_runs = [(size, stride) for reduced, size, stride in runs[:-1] if reduced]
    count = prod(size for size, _ in reduced_runs) * (inner if across else 1)
    words = (
        word_of(step, 0), Operand(y.name), prod(size for size, _ in kept), Packed("kept", lambda: _offsets(kept)),
        prod(size for size, _ in reduced_runs), Packed("reduced", lambda: _offsets(reduced_runs)), inner,
        Packed("factor", lambda: np.array([1 / max(count, 1)], np.float32)),
    )  # fmt: skip
    make = operands.text(partial(reduction, step.lanes, kind, across))
    return (Call(reduction_name(step.lanes, kind, across), make, words),)


REDUCTION = Algorithm("reduction", tuple(KINDS), _accepts, operands.one_tile, operands.traffic_seconds, _calls)
