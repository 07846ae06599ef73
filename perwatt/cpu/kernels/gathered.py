"""Strided and small convolutions as a matrix product: the inputs of every tap are gathered, then it is a 1x1.

A register tile takes neighbouring pixels of one output row, and rows of 7 or 14 pixels fill few tiles well; with a
stride the pixels a tile reads lie apart. Gathered, all pixels of a map are one run: [image][tap][C/V][pixel][V]. The
copy has kernel height x width values for each output pixel and input channel, so it pays where outputs are many.
"""

from dataclasses import replace
from enum import IntEnum
from math import prod

import numpy as np

from perwatt.cpu.ir import Module
from perwatt.cpu.kernels.convolution import DIRECT
from perwatt.cpu.kernels.dense import CACHE_BYTES_PER_S, blocks, operand, read_convolution
from perwatt.cpu.kernels.storage import FP32, Stored, load, store, stored
from perwatt.plan.algorithm import Algorithm, Call, Operand, Packed, Scratch, Step, Tensor, Tile, Word

_GATHERED = "gathered"
# Of wider maps the rows fill the register tiles anyway, and Winograd does more for them.
WIDEST_MAP = 8


class Slot(IntEnum):
    """The words of the arguments. Strides count floats (of halves, two are one)."""

    INPUT = 0
    OUTPUT = 1
    IMAGES = 2
    BLOCKS = 3  # of V input channels
    IMAGE_STRIDE = 4
    BLOCK_STRIDE = 5
    HEIGHT = 6
    WIDTH = 7
    OUTPUT_HEIGHT = 8
    OUTPUT_WIDTH = 9
    TAPS = 10
    STRIDE_DOWN = 11
    STRIDE_ACROSS = 12
    OFFSETS = 13  # table [tap][2]: input row and column that the first output pixel reads, which may lie outside


def gather_name(lanes: int, source: Stored) -> str:
    """Return the name of the kernel that `gather` writes."""
    return f"gather_{source.label}_{lanes}"


def gather(lanes: int, source: Stored) -> Module:
    """Return the kernel that copies what each tap reads, zeros outside the map, into FP32."""
    name, words = gather_name(lanes, source), source.words(lanes)
    module = Module(name, lanes)
    with module.kernel(name) as k:
        channel_blocks, taps = k.argument(Slot.BLOCKS), k.argument(Slot.TAPS)
        height, width = k.argument(Slot.HEIGHT), k.argument(Slot.WIDTH)
        rows, columns = k.argument(Slot.OUTPUT_HEIGHT), k.argument(Slot.OUTPUT_WIDTH)
        down, across = k.argument(Slot.STRIDE_DOWN), k.argument(Slot.STRIDE_ACROSS)
        zero = k.constant(0.0)
        first, last = k.share(k.argument(Slot.IMAGES) * taps * channel_blocks * rows)
        with k.loop(first, last) as lines:
            plane = lines.index // rows
            row = lines.index - plane * rows
            tap_of_image = plane // channel_blocks
            block = plane - tap_of_image * channel_blocks
            image = tap_of_image // taps
            tap = tap_of_image - image * taps
            top, left = (k.table_entry(k.pointer(Slot.OFFSETS), tap * 2 + axis) for axis in range(2))
            target = k.pointer(Slot.OUTPUT) + lines.index * columns * lanes
            here = row * down + top
            inside = (here >= 0) & (here < height)
            # Output columns [begin, end) read inside the map.
            begin = k.minimum_index((k.maximum_index(0 - left, 0) + (across - 1)) // across, columns)
            end = k.minimum_index((k.maximum_index(width - left, 0) + (across - 1)) // across, columns)
            begin, end = k.choose_index(inside, begin, columns), k.choose_index(inside, end, columns)
            line = image * k.argument(Slot.IMAGE_STRIDE) + block * k.argument(Slot.BLOCK_STRIDE)
            x = k.pointer(Slot.INPUT) + (line + (here * width + left) * words)
            with k.loop(0, begin) as zeros:
                k.store(zero, target, zeros.index * lanes)
            with k.loop(begin, end) as pixels:
                value = load(k, source, x, pixels.index * across * words)
                store(k, FP32, value, target, pixels.index * lanes)
            with k.loop(end, columns) as zeros:
                k.store(zero, target, zeros.index * lanes)
    return module


def _gathered(step: Step) -> Tensor:
    """Return the gathered tensor: the blocks of input channels once for each tap, a pixel for each output pixel."""
    c, lanes = read_convolution(step), step.lanes
    channels = prod(c.kernel) * blocks(c.channels, lanes) * lanes
    plane = c.out_height * c.out_width * lanes
    shape = (c.images, channels, c.out_height, c.out_width)
    return Tensor(_GATHERED, shape, "blocked", channels // lanes * plane, plane)


def _derived(step: Step, weights: np.ndarray | None = None) -> Step:
    """Return the 1x1 step over the gathered tensor; without `weights` they are a stand-in that has their shape."""
    gathered, given = _gathered(step), operand(step, 1)
    shape = (given.shape[0], gathered.shape[1], 1, 1)
    attributes = {
        **step.attributes, "kernel_shape": (1, 1), "strides": (1, 1), "dilations": (1, 1), "pads": (0, 0, 0, 0),
    }  # fmt: skip
    array = np.broadcast_to(np.float32(0), shape) if weights is None else weights.reshape(shape)
    inputs = (gathered, replace(given, shape=shape), *step.inputs[2:])
    return replace(step, inputs=inputs, attributes=attributes, constants={**step.constants, given.name: array})


def _rearranged(step: Step) -> np.ndarray:
    """Return weights (K, C, height, width) as (K, height, width, C filled up to whole vectors)."""
    weights = step.constant(1)
    assert weights is not None
    padded = -weights.shape[1] % step.lanes
    return np.pad(np.asarray(weights, np.float32).transpose(0, 2, 3, 1), [(0, 0)] * 3 + [(0, padded)])


def _accepts(step: Step) -> str | None:
    if step.constant(1) is None:
        return "the weights are not constant"
    if len(operand(step, 0).shape) != 4 or len(step.outputs) > 1:
        return "not a convolution over height and width with one output"
    if operand(step, 0).layout != "blocked":
        return "the input is not in channel blocks"
    c = read_convolution(step)
    if c.groups > 1:
        return "groups"
    if c.pointwise:
        return "is a 1x1 already"
    if c.strides == (1, 1) and c.out_width > WIDEST_MAP:
        return f"neither strided nor up to {WIDEST_MAP} pixels wide"
    return None


def _seconds(step: Step, tile: Tile) -> float:
    copied = 8 * prod(_gathered(step).shape)
    return DIRECT.seconds(_derived(step), tile) + copied / CACHE_BYTES_PER_S / step.threads


def _gathered_bytes(step: Step) -> int:
    return 4 * prod(_gathered(step).shape) + 64 * step.lanes


def _calls(step: Step, tile: Tile) -> tuple[Call, ...]:
    c, x, lanes = read_convolution(step), operand(step, 0), step.lanes
    source = stored(x.element, step.machine)

    def offsets() -> np.ndarray:
        down, across = np.indices(c.kernel).reshape(2, -1)
        rows, columns = down * c.dilations[0] - c.pads[0], across * c.dilations[1] - c.pads[1]
        return np.ascontiguousarray(np.stack([rows, columns], axis=1), np.int64)

    words: tuple[Word, ...] = (
        Operand(x.name), Scratch(), c.images, blocks(c.channels, lanes), x.image_stride, x.block_stride, c.height,
        c.width, c.out_height, c.out_width, prod(c.kernel), *c.strides, Packed("gathered offsets", offsets),
    )  # fmt: skip
    calls = [Call(gather_name(lanes, source), lambda: str(gather(lanes, source)), words)]
    for call in DIRECT.calls(_derived(step, _rearranged(step)), tile):
        calls.append(replace(call, words=tuple(_moved(word) for word in call.words)))
    return tuple(calls)


def _moved(word: Word) -> Word:
    """Point the product's input at the gathered tensor; its packed arrays are others than those of "direct"."""
    if word == Operand(_GATHERED):
        return Scratch()
    return Packed(f"gathered {word.label}", word.make) if isinstance(word, Packed) else word


GATHERED = Algorithm(
    "gathered", ("FusedConv",), _accepts, lambda step: DIRECT.tiles(_derived(step)), _seconds, _calls,
    lambda step, tile: _gathered_bytes(step) + DIRECT.scratch_bytes(_derived(step), tile), DIRECT.error,
    halves=True,
)  # fmt: skip
