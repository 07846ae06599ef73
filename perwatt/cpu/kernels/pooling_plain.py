"""Pooling of plain tensors with one to three spatial axes, element by element: what the blocked kernels leave out."""

from enum import IntEnum
from functools import partial
from math import inf, prod

import numpy as np

from perwatt.cpu.ir import Module
from perwatt.cpu.kernels import operands
from perwatt.cpu.kernels.movement import word_of
from perwatt.plan.algorithm import Algorithm, Call, Operand, Packed, Step, Tile

AXES = 3
SECONDS_PER_TAP = 1e-9


class Slot(IntEnum):
    """The words of a call's arguments. Each list has an entry for each of three axes, the outermost first."""

    INPUT = 0
    OUTPUT = 1
    PLANES = 2
    SIZES = 3
    OUTPUT_SIZES = 6
    DILATIONS = 9
    WINDOWS = 12  # tables [output][2]: first tap inside the map, taps inside
    FACTORS = 15  # tables of floats [output]: one over the number of elements an average divides by


def pooling_name(lanes: int, average: bool) -> str:
    """Return the name of the kernel that `pooling` writes."""
    return f"pool_plain_{'average' if average else 'max'}_v{lanes}"


def pooling(lanes: int, average: bool) -> Module:
    """Return the kernel that takes the maximum or average of windows; every lane holds the same value."""
    name = pooling_name(lanes, average)
    module = Module(name, lanes)
    with module.kernel(name) as k:
        sizes, out_sizes, dilations = (
            [k.argument(slot + axis) for axis in range(AXES)]
            for slot in (Slot.SIZES, Slot.OUTPUT_SIZES, Slot.DILATIONS)
        )
        windows, factors = ([k.pointer(slot + axis) for axis in range(AXES)] for slot in (Slot.WINDOWS, Slot.FACTORS))
        plane = sizes[0] * sizes[1] * sizes[2]
        first, last = k.share(k.argument(Slot.PLANES) * out_sizes[0] * out_sizes[1])
        with k.loop(first, last) as rows:
            above = rows.index // out_sizes[1]
            number = above // out_sizes[0]
            at = [above - number * out_sizes[0], rows.index - above * out_sizes[1]]
            x = k.pointer(Slot.INPUT) + number * plane
            y = k.pointer(Slot.OUTPUT) + rows.index * out_sizes[2]
            with k.loop(0, out_sizes[2]) as columns:
                place = [*at, columns.index]
                begin = [k.table_entry(windows[axis], place[axis] * 2) for axis in range(AXES)]
                count = [k.table_entry(windows[axis], place[axis] * 2 + 1) for axis in range(AXES)]
                start = [k.constant(0.0 if average else -inf)]
                with k.loop(0, count[0], carry=start) as over_planes:
                    depth = (begin[0] + over_planes.index * dilations[0]) * sizes[1]
                    with k.loop(0, count[1], carry=over_planes.carried) as over_rows:
                        line = (depth + begin[1] + over_rows.index * dilations[1]) * sizes[2]
                        with k.loop(0, count[2], carry=over_rows.carried) as taps:
                            value = k.broadcast(x, line + begin[2] + taps.index * dilations[2])
                            total = taps.carried[0]
                            taps.carry([total + value if average else k.maximum(total, value)])
                        over_rows.carry(taps.results)
                    over_planes.carry(over_rows.results)
                result = over_planes.results[0]
                if average:
                    for axis in range(AXES):
                        result = result * k.broadcast(factors[axis], place[axis])
                k.store_first(result, y, columns.index)
    return module


def _accepts(step: Step) -> str | None:
    x, _ = operands.data(step)
    if not operands.everything_is(step, "plain"):
        return "input and output must be plain"
    if len(step.outputs) > 1:
        return "gives no indices of the maxima"
    return None if len(x.shape) in (3, 4, 5) else f"needs one to three spatial axes, got shape {x.shape}"


def _taps(step: Step, axis: int) -> np.ndarray:
    """Return where the taps of each output lie along a spatial axis [output, tap], also outside the map."""
    y, rank = step.outputs[0], len(step.outputs[0].shape) - 2
    kernel, strides, dilations = (operands.wholes(step, n)[axis] for n in ("kernel_shape", "strides", "dilations"))
    begin = operands.wholes(step, "pads")[:rank][axis]
    start = np.arange(y.shape[2 + axis])[:, None] * strides - begin
    return np.asarray(start + np.arange(kernel) * dilations)


def _window(step: Step, axis: int) -> np.ndarray:
    taps, size = _taps(step, axis), operands.data(step)[0].shape[2 + axis]
    inside = (taps >= 0) & (taps < size)
    first = np.take_along_axis(taps, inside.argmax(axis=1)[:, None], axis=1)[:, 0]
    return np.ascontiguousarray(np.stack([np.where(inside.any(axis=1), first, 0), inside.sum(axis=1)], 1), np.int64)


def _factor(step: Step, axis: int) -> np.ndarray:
    taps, size, pads = _taps(step, axis), operands.data(step)[0].shape[2 + axis], operands.wholes(step, "pads")
    before, behind = (pads[axis], pads[axis + len(pads) // 2]) if operands.whole(step, "count_include_pad") else (0, 0)
    count = ((taps >= -before) & (taps < size + behind)).sum(axis=1)
    return np.asarray(np.divide(1.0, count, out=np.full(len(count), np.nan), where=count > 0), np.float32)


def _calls(step: Step, tile: Tile) -> tuple[Call, ...]:
    x, y = operands.data(step)
    average, rank = step.operator == "AveragePool", len(x.shape) - 2
    missing = AXES - rank
    one = Packed("one", lambda: np.array([0, 1], np.int64))
    all_one = Packed("factor one", lambda: np.ones(1, np.float32))
    windows = [Packed(f"window {axis}", partial(_window, step, axis)) for axis in range(rank)]
    factors = (
        [Packed(f"factor {axis}", partial(_factor, step, axis)) for axis in range(rank)] if average else [0] * rank
    )
    words = (
        word_of(step, 0), Operand(y.name), prod(x.shape[:2]), *(1,) * missing, *x.shape[2:], *(1,) * missing,
        *y.shape[2:], *(1,) * missing, *operands.wholes(step, "dilations"), *(one,) * missing, *windows,
        *(all_one,) * missing, *factors,
    )  # fmt: skip
    return (Call(pooling_name(step.lanes, average), operands.text(partial(pooling, step.lanes, average)), words),)


def _seconds(step: Step, tile: Tile) -> float:
    taps = prod(step.outputs[0].shape) * prod(operands.wholes(step, "kernel_shape"))
    return operands.CALL_SECONDS + SECONDS_PER_TAP * taps / step.threads


PLAIN_POOLING = Algorithm("plain pooling", ("MaxPool", "AveragePool"), _accepts, operands.one_tile, _seconds, _calls)
