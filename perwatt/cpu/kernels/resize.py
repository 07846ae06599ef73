"""Resize: nearest neighbours as a copy with tables, linear and cubic as weighted sums, one axis after the other.

Where each output element lies in the input, and the weights around it, are worked out with the plan from ONNX's
formulas. The kernel sums a few input rows into an output row; in blocked maps a row is whole vectors.
"""

from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from math import ceil, floor, prod

import numpy as np

from perwatt.cpu.ir import Module
from perwatt.cpu.kernels import operands
from perwatt.cpu.kernels.movement import OUTER_AXES, Axis, copy_call, merged, strides, word_of
from perwatt.plan.algorithm import Algorithm, Call, Operand, Packed, Scratch, Step, Tensor, Tile, Word

MOST_TAPS = 64
WORTH_SPLITTING = 1024


class Slot(IntEnum):
    """The words of one pass. Strides and offsets count floats."""

    INPUT = 0
    OUTPUT = 1
    IMAGES = 2
    PLANES = 3
    ROWS = 4  # output positions along the axis
    LENGTH = 5  # floats of a row: everything behind the axis
    IMAGE_STRIDE = 6
    PLANE_STRIDE = 7
    OUTPUT_IMAGE_STRIDE = 8
    OUTPUT_PLANE_STRIDE = 9
    OUTPUT_ROW_STRIDE = 10
    OFFSETS = 11  # table [output row][taps]: where each input row begins
    WEIGHTS = 12  # floats [output row][taps]


def weighted_name(lanes: int, taps: int) -> str:
    """Return the name of the kernel that `weighted` writes."""
    return f"weighted_rows_{taps}_v{lanes}"


def weighted(lanes: int, taps: int) -> Module:
    """Return the kernel that sums `taps` weighted input rows into each output row."""
    name = weighted_name(lanes, taps)
    module = Module(name, lanes)
    with module.kernel(name) as k:
        planes, rows, length = k.argument(Slot.PLANES), k.argument(Slot.ROWS), k.argument(Slot.LENGTH)
        first, last = k.share(k.argument(Slot.IMAGES) * planes * rows)
        with k.loop(first, last) as tasks:
            line = tasks.index // rows
            row = tasks.index - line * rows
            image = line // planes
            plane = line - image * planes
            x = k.pointer(Slot.INPUT) + (image * k.argument(Slot.IMAGE_STRIDE) + plane * k.argument(Slot.PLANE_STRIDE))
            out_plane = image * k.argument(Slot.OUTPUT_IMAGE_STRIDE) + plane * k.argument(Slot.OUTPUT_PLANE_STRIDE)
            y = k.pointer(Slot.OUTPUT) + (out_plane + row * k.argument(Slot.OUTPUT_ROW_STRIDE))
            sources = [x + k.table_entry(k.pointer(Slot.OFFSETS), row * taps + tap) for tap in range(taps)]
            weights = [k.broadcast(k.pointer(Slot.WEIGHTS), row * taps + tap) for tap in range(taps)]
            whole = length // lanes * lanes
            with k.loop(0, whole, lanes) as over:
                value = k.load(sources[0], over.index) * weights[0]
                for source, weight in zip(sources[1:], weights[1:], strict=True):
                    value = k.multiply_add(k.load(source, over.index), weight, value)
                k.store(value, y, over.index)
            with k.when(whole < length):
                left = length - whole
                value = k.load_masked(sources[0] + whole, left) * weights[0]
                for source, weight in zip(sources[1:], weights[1:], strict=True):
                    value = k.multiply_add(k.load_masked(source + whole, left), weight, value)
                k.store_masked(value, y + whole, left)
    return module


# -- where samples are taken


def positions(size: int, out_size: int, scale: float, coordinates: str) -> np.ndarray:
    """Return where each output position lies along an input axis, float64 (ONNX Resize)."""
    at = np.arange(out_size, dtype=np.float64)
    whole = scale * size
    match coordinates:
        case "align_corners":
            return at * (size - 1) / (whole - 1) if whole != 1 else at * 0
        case "asymmetric":
            return at / scale
        case "pytorch_half_pixel" if whole == 1:
            return at * 0 - 0.5
        case "half_pixel" | "pytorch_half_pixel":
            return (at + 0.5) / scale - 0.5
        case "half_pixel_symmetric":
            return size / 2 * (1 - out_size / whole) + (at + 0.5) / scale - 0.5
        case _:
            raise KeyError(f"no coordinate transformation {coordinates}")


def _left(at: np.ndarray) -> np.ndarray:
    """Return the neighbour to the left, which for whole numbers is the one before: fractions lie in (0, 1]."""
    return np.asarray(np.ceil(at) - 1)


def nearest(at: np.ndarray, size: int, mode: str) -> np.ndarray:
    """Return the index of the nearest element, inside the axis."""
    left = _left(at)
    fraction = at - left
    to_left = {
        "round_prefer_floor": fraction <= 0.5,
        "round_prefer_ceil": fraction < 0.5,
        "floor": fraction < 1,
        "ceil": np.zeros_like(fraction, bool),
    }[mode]
    return np.asarray(np.clip(left + ~to_left, 0, size - 1), np.int64)


def _hat(distance: np.ndarray) -> np.ndarray:
    return np.asarray(np.maximum(0.0, 1 - np.abs(distance)))


def _keys(distance: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic convolution kernel, IEEE Trans. ASSP 29 (1981)."""
    d = np.abs(distance)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((d - 5) * d + 8) * d * a - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def weights(step: Step, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (indices inside the axis, weights) of linear or cubic sampling, each [output, taps]."""
    x, y = operands.data(step)
    size, out_size, scale = x.shape[axis], y.shape[axis], _scales(step)[axis]
    cubic, coefficient = step.attributes["mode"] == "cubic", operands.real(step, "cubic_coeff_a")
    at = positions(size, out_size, scale, str(step.attributes["coordinate_transformation_mode"]))
    shrink = min(scale, 1.0) if operands.whole(step, "antialias") else 1.0
    start = floor(-(2 if cubic else 1) / shrink) + 1
    taps = np.arange(start, 2 - start)
    left = _left(at)
    distance = (taps - (at - left)[:, None]) * shrink
    factor = _keys(distance, coefficient) if cubic else _hat(distance)
    index = left[:, None] + taps
    if operands.whole(step, "exclude_outside"):
        factor = np.where((index >= 0) & (index < size), factor, 0.0)
    if operands.whole(step, "exclude_outside") or operands.whole(step, "antialias"):
        factor = factor / factor.sum(axis=1, keepdims=True)
    return np.clip(index, 0, size - 1).astype(np.int64), factor


def _scales(step: Step) -> list[float]:
    """Return the scale of each axis: the exact quotient of the sizes where the given float32 number is that rounded."""
    x, y = operands.data(step)
    scales = []
    for size, out_size, scale in zip(x.shape, y.shape, operands.reals(step, "scales"), strict=True):
        exact = out_size / size
        scales.append(exact if np.float32(exact) == np.float32(scale) else scale)
    return scales


def _changed(step: Step) -> list[int]:
    """Return the axes along which something happens."""
    x, y = operands.data(step)
    return [i for i, (a, b, s) in enumerate(zip(x.shape, y.shape, _scales(step), strict=True)) if a != b or s != 1]


# -- planning


@dataclass(frozen=True)
class _Pass:
    """One axis sampled: from which tensor to which, at which addresses."""

    axis: int
    source: Tensor
    target: Tensor
    read: Word
    write: Word


def _dense(tensor: Tensor, shape: tuple[int, ...], lanes: int) -> Tensor:
    if tensor.layout == "plain":
        return Tensor(tensor.name, shape, "plain")
    return operands.dense(tensor.name, shape, lanes)


def _floats(tensor: Tensor, lanes: int) -> int:
    return prod(size for size, _ in strides(_dense(tensor, tensor.shape, lanes), lanes))


def _passes(step: Step) -> tuple[list[_Pass], int]:
    """Return the passes, axes that shrink first, and the bytes of scratch for what lies between them."""
    x, y = operands.data(step)
    axes = sorted(_changed(step), key=lambda i: y.shape[i] / x.shape[i])
    found, here, read, used = [], x, word_of(step, 0), 0
    for number, axis in enumerate(axes):
        shape = (*here.shape[:axis], y.shape[axis], *here.shape[axis + 1 :])
        last = number == len(axes) - 1
        there = y if last else _dense(y, shape, step.lanes)
        write: Word = Operand(y.name) if last else Scratch(used)
        if not last:
            used += -(-_floats(there, step.lanes) * 4 // 64) * 64
        found.append(_Pass(axis, here, there, read, write))
        here, read = there, write
    return found, used


def _call(step: Step, one: _Pass) -> Call:
    source, target = strides(one.source, step.lanes), strides(one.target, step.lanes)
    axis, row_stride = one.axis, source[one.axis][1]
    behind = prod(size for size, _ in source[axis + 1 :])
    if one.source.layout == "plain":
        above, planes = prod(size for size, _ in source[:axis]), 1
        in_strides, out_strides = (source[axis][0] * row_stride, 0), (target[axis][0] * target[axis][1], 0)
    else:  # image and block have strides of their own, spatial axes before this one are split off by copying none
        above, planes = source[0][0], source[1][0]
        in_strides, out_strides = (source[0][1], source[1][1]), (target[0][1], target[1][1])
    index, factor = weights(step, axis)
    before = [] if one.source.layout == "plain" else source[2:axis]
    out_before = target[2:axis] if before else []
    rows, taps = index.shape
    # Blocked rows behind other spatial axes: one table row for each position of those.
    offsets, places = index * row_stride, np.arange(rows) * target[axis][1]
    for (size, stride), (_, out_stride) in zip(reversed(before), reversed(out_before), strict=True):
        offsets = (np.arange(size)[:, None, None] * stride + offsets).reshape(-1, taps)
        places = (np.arange(size)[:, None] * out_stride + places).reshape(-1)
    every = np.tile(factor.astype(np.float32), (len(offsets) // rows, 1))
    assert len(places) < 2 or (np.diff(places) == places[1] - places[0]).all()
    words: tuple[Word, ...] = (
        one.read, one.write, above, planes, len(offsets), behind, *in_strides, *out_strides,
        int(places[1]) if len(places) > 1 else 0,
        Packed(f"offsets {axis}", lambda: np.ascontiguousarray(offsets, np.int64)),
        Packed(f"weights {axis}", lambda: every),
    )  # fmt: skip
    return Call(weighted_name(step.lanes, taps), operands.text(partial(weighted, step.lanes, taps)), words)


def _nearest_axes(step: Step) -> list[Axis]:
    x, y = operands.data(step)
    source, target = strides(x, step.lanes), strides(y, step.lanes)
    changed, scales = _changed(step), _scales(step)
    axes = []
    for i, ((size, stride), (out_size, out_stride)) in enumerate(zip(source, target, strict=True)):
        if i in changed:
            at = positions(size, out_size, scales[i], str(step.attributes["coordinate_transformation_mode"]))
            picked = nearest(at, size, str(step.attributes["nearest_mode"]))
            axes.append(Axis(out_size, tuple(int(p) * stride for p in picked), out_stride))
        else:
            axes.append(Axis(out_size, stride, out_stride))
    return axes


def _accepts(step: Step) -> str | None:
    x, y = operands.data(step)
    if operands.everything_is(step, "blocked"):
        if len(x.shape) < 3 or 1 in _changed(step) or 0 in _changed(step):
            return "blocked: along spatial axes only"
    elif not operands.everything_is(step, "plain"):
        return "input and output must have the same layout"
    if prod(x.shape) * prod(y.shape) == 0:
        return "an operand is empty"
    if step.attributes["mode"] == "nearest":
        return None if len(merged(_nearest_axes(step))) <= OUTER_AXES + 1 else f"has more than {OUTER_AXES + 1} axes"
    if step.attributes["mode"] not in ("linear", "cubic"):
        return f"no mode {step.attributes['mode']}"
    if any(ceil(2 / min(_scales(step)[axis], 1)) * 2 > MOST_TAPS for axis in _changed(step)):
        return f"sums more than {MOST_TAPS} elements along an axis"
    return None


def _scratch(step: Step, tile: Tile) -> int:
    return 0 if step.attributes["mode"] == "nearest" else _passes(step)[1]


def _calls(step: Step, tile: Tile) -> tuple[Call, ...]:
    if step.attributes["mode"] == "nearest" or not _changed(step):
        read, write = word_of(step, 0), Operand(step.outputs[0].name)
        return (copy_call(step, read, write, _nearest_axes(step), "axes"),)
    return tuple(_call(step, one) for one in _passes(step)[0])


RESIZE = Algorithm("resize", ("Resize",), _accepts, operands.one_tile, operands.traffic_seconds, _calls, _scratch)
