"""Depthwise convolution: every channel has its own kernel, so a channel block is V convolutions side by side.

A tile of neighbouring output pixels of one row stays in registers while the kernel's rows pass; each input column is
loaded once per kernel row and multiplied into every pixel whose window holds it. Weights are packed [C/V][kh][kw][V].
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from math import prod

import numpy as np

from perwatt.cpu.ir import Index, Kernel, Module, Pointer, Vector
from perwatt.cpu.kernels import operands, window
from perwatt.cpu.kernels.activation import NO_ACTIVATION, Activation, activate
from perwatt.cpu.kernels.dense import (
    FLOPS_PER_S_AND_LANE,
    REGISTERS,
    activation_of,
    known,
    padded_bias,
    residual_of,
)
from perwatt.cpu.kernels.operands import blocked
from perwatt.cpu.kernels.storage import FP32, Stored, load, store, stored
from perwatt.cpu.kernels.window import Window
from perwatt.plan.algorithm import Algorithm, Call, Operand, Packed, Step, Tile

WIDEST_TILE = 14


class Slot(IntEnum):
    """The words behind those of `window.Slot`. Strides count floats."""

    WEIGHTS = window.Slot.MORE
    BIAS = WEIGHTS + 1
    WEIGHTS_STRIDE = WEIGHTS + 2  # from one block of V channels to the next
    RESIDUAL = WEIGHTS + 3
    RESIDUAL_IMAGE_STRIDE = WEIGHTS + 4
    RESIDUAL_BLOCK_STRIDE = WEIGHTS + 5


@dataclass(frozen=True)
class Shape:
    """What a depthwise kernel is specialised on; the kernel's height and all sizes are arguments."""

    lanes: int
    window: Window
    activation: Activation = NO_ACTIVATION
    residual: bool = False
    source: Stored = FP32
    target: Stored = FP32
    added: Stored = FP32  # how the residual is stored

    @property
    def name(self) -> str:
        """The exported function's name."""
        tail = f"{self.activation.label}{'_residual' if self.residual else ''}"
        stores = operands.suffix(self.source, self.target, self.added)
        return f"depthwise_{self.window.label}_{tail}_v{self.lanes}{stores}"


def depthwise(shape: Shape) -> Module:
    """Return the module of one depthwise convolution kernel."""
    module, w, lanes = Module(shape.name, shape.lanes), shape.window, shape.lanes
    with module.kernel(shape.name) as k:
        target, words, added_words = shape.target, shape.target.words(lanes), shape.added.words(lanes)
        outside = window.outside_vector(k, 0.0, shape.source)
        with window.output_rows(k, target) as place:
            weights = k.pointer(Slot.WEIGHTS) + place.block * k.argument(Slot.WEIGHTS_STRIDE)
            bias = k.load(k.pointer(Slot.BIAS), place.block * lanes)
            if shape.residual:
                residual = k.pointer(Slot.RESIDUAL) + (
                    place.image * k.argument(Slot.RESIDUAL_IMAGE_STRIDE)
                    + place.block * k.argument(Slot.RESIDUAL_BLOCK_STRIDE)
                    + place.row * k.argument(window.Slot.OUTPUT_WIDTH) * added_words
                )
            add_row = partial(_add_row, k, w, weights)
            with window.tiles(k, w) as (pixel, left):
                for border in (False, True):
                    with window.when_at_border(k, w, left, border):
                        around = outside if border else None
                        start = [bias] * w.outputs
                        sums = window.kernel_rows(k, w, place, left, around, start, add_row, shape.source)
                        for i, value in enumerate(sums):
                            if shape.residual:
                                value = value + load(k, shape.added, residual + pixel * added_words, i * added_words)
                            value = activate(k, value, shape.activation)
                            store(k, target, value, place.target + pixel * words, i * words)
    return module


def _add_row(
    k: Kernel, w: Window, weights: Pointer, values: list[Vector], column: Callable[[int], Vector], kernel_row: Index
) -> list[Vector]:
    """Return the tile's sums with one kernel row added."""
    row = weights + kernel_row * (w.taps * k.lanes)
    factors = [k.load(row, tap * k.lanes) for tap in range(w.taps)]
    sums = list(values)
    for j in w.columns:
        value = column(j)
        for tap, factor in enumerate(factors):
            i, between = divmod(j - tap * w.dilation, w.stride)
            if between == 0 and 0 <= i < w.outputs:
                sums[i] = k.multiply_add(value, factor, sums[i])
    return sums


def _accepts(step: Step) -> str | None:
    x, y = operands.data(step)
    channels = x.shape[1]
    if step.constant(1) is None:
        return "the weights are not constant"
    if operands.whole(step, "group") != channels or known(step, 1).shape[0] != channels:
        return "needs one group and one output for every channel"
    if len(step.outputs) > 1:
        return "has one output"
    if len(x.shape) not in (3, 4):
        return f"needs one or two spatial axes, got shape {x.shape}"
    if not operands.everything_is(step, "blocked"):
        return "input and output must be blocked"
    if operands.wholes(step, "kernel_shape")[-1] > REGISTERS[step.lanes] - 4:
        return "the kernel has more columns than registers"
    return "the output is empty" if prod(y.shape) == 0 else None


def _tiles(step: Step) -> tuple[Tile, ...]:
    """Prefer the tile with the least work: multiply-adds, loads, and a little for each tile and kernel row."""
    g = window.geometry(step)
    width, taps = g.out_size[1], g.kernel[1]
    most = min(width, WIDEST_TILE, REGISTERS[step.lanes] - taps - 2)

    def cost(outputs: int) -> float:
        columns = len(Window(taps, g.strides[1], g.dilations[1], outputs).columns)
        return -(-width // outputs) * (max(outputs, 4) * taps + 0.5 * columns + taps + 6)

    return tuple({"outputs": outputs} for outputs in sorted(range(1, max(most, 1) + 1), key=cost)[:4])


def _seconds(step: Step, tile: Tile) -> float:
    multiply_adds = prod(step.outputs[0].shape) * prod(operands.wholes(step, "kernel_shape"))
    arithmetic = 4 * multiply_adds / (FLOPS_PER_S_AND_LANE * step.lanes * step.threads)
    return max(operands.traffic_seconds(step, tile), arithmetic)


def _pack(step: Step) -> np.ndarray:
    weights = known(step, 1)
    taps = weights.reshape(len(weights), -1)
    padded = operands.pack_channels(taps.T, step.lanes).T
    return np.ascontiguousarray(padded.reshape(-1, step.lanes, taps.shape[1]).transpose(0, 2, 1))


def _calls(step: Step, tile: Tile) -> tuple[Call, ...]:
    g, residual, channels = window.geometry(step), residual_of(step), operands.data(step)[0].shape[1]
    shape = Shape(
        step.lanes,
        Window(g.kernel[1], g.strides[1], g.dilations[1], tile["outputs"]),
        activation_of(step),
        residual is not None,
        *operands.storage(step),
        FP32 if residual is None else stored(residual.element, step.machine),
    )
    strides = (0, 0)
    if residual is not None:
        r = blocked(residual, step.lanes)
        strides = (r.image_stride, r.block_stride)
    words = (
        *window.words(step, g),
        Packed("weights", lambda: _pack(step)),
        Packed("bias", lambda: padded_bias(step, channels, step.lanes)),
        prod(g.kernel) * step.lanes,
        Operand(residual.name) if residual is not None else 0,
        *strides,
    )
    return (Call(shape.name, operands.text(partial(depthwise, shape)), words),)


DEPTHWISE = Algorithm("depthwise", ("FusedConv",), _accepts, _tiles, _seconds, _calls, halves=True)
