"""Strided first layers by Winograd: every s x s patch of the plain input becomes the channels of one pixel.

A k x k convolution of stride s on C channels is a stride-1 convolution with ceil(k/s) x ceil(k/s) taps on s²·C channels
(11x11 of stride 4 on 3 channels: 3x3 on 48; 7x7 of stride 2: 4x4 on 12). Winograd's minimal filtering then applies.
"""

from dataclasses import replace
from enum import IntEnum
from functools import partial

import numpy as np

from perwatt.cpu.ir import Module
from perwatt.cpu.kernels import winograd_algorithms as winograd
from perwatt.cpu.kernels.dense import CACHE_BYTES_PER_S, Convolution, blocks, operand, read_convolution
from perwatt.cpu.kernels.padding import padding
from perwatt.cpu.kernels.winograd_algorithms import Kind
from perwatt.plan.algorithm import Algorithm, Call, Operand, Packed, Scratch, Step, Tensor, Tile, Word

_PATCHES = "patches"


class Slot(IntEnum):
    """The words of the arguments of `space_to_depth`. Strides and offsets count floats."""

    INPUT = 0  # framed by zeros, plain
    OUTPUT = 1  # blocked, dense
    IMAGES = 2
    BLOCKS = 3
    ROWS = 4  # of the output
    COLUMNS = 5
    IMAGE_STRIDE = 6  # of the input
    ROW_STRIDE = 7  # of the input, from one output row to the next
    OFFSETS = 8  # table: where each lane of each block lies in the patch; lanes without a channel: -1


def space_to_depth(lanes: int, stride: int) -> Module:
    """Return the module of `space_to_depth_{stride}_v{lanes}`: one patch's floats become the lanes of a pixel.

    Where the table has runs of `stride` neighbours (always, but for the last block), they are what is copied.
    """
    name = f"space_to_depth_{stride}_v{lanes}"
    module = Module(name, lanes)
    with module.kernel(name) as k:
        channel_blocks, rows, columns = k.argument(Slot.BLOCKS), k.argument(Slot.ROWS), k.argument(Slot.COLUMNS)
        offsets = k.pointer(Slot.OFFSETS)
        first, last = k.share(k.argument(Slot.IMAGES) * channel_blocks * rows)
        with k.loop(first, last) as lines:
            plane = lines.index // rows
            row = lines.index - plane * rows
            image = plane // channel_blocks
            block = plane - image * channel_blocks
            source = k.pointer(Slot.INPUT) + image * k.argument(Slot.IMAGE_STRIDE) + row * k.argument(Slot.ROW_STRIDE)
            target = k.pointer(Slot.OUTPUT) + lines.index * columns * lanes
            for lane in range(lanes):
                offset = k.table_entry(offsets, block * lanes + lane)
                with k.when(offset >= 0), k.loop(0, columns) as across:
                    k.copy_float(source + (offset + across.index * stride), target + (across.index * lanes + lane))
                with k.when(offset < 0), k.loop(0, columns) as across:
                    k.clear_float(target + (across.index * lanes + lane))
    return module


def _derived(step: Step) -> tuple[Convolution, Step, int, int]:
    """Return (the convolution, the stride-1 step it turns into, framed height, framed width)."""
    c = read_convolution(step)
    stride = c.strides[0]
    taps = -(-c.kernel[0] // stride)
    rows, columns = c.out_height + taps - 1, c.out_width + taps - 1
    channels = c.channels * stride * stride
    plane = rows * columns * step.lanes
    patches = Tensor(
        _PATCHES, (c.images, channels, rows, columns), "blocked", blocks(channels, step.lanes) * plane, plane
    )
    weights = operand(step, 1)
    attributes = {
        **step.attributes, "kernel_shape": (taps, taps), "strides": (1, 1), "dilations": (1, 1), "pads": (0, 0, 0, 0),
    }  # fmt: skip
    given = step.constant(1)
    constants = dict(step.constants)
    if given is not None:
        constants[weights.name] = _rearranged(given, stride, taps)
    inputs = (patches, weights, *step.inputs[2:])
    return c, replace(step, inputs=inputs, attributes=attributes, constants=constants), rows * stride, columns * stride


def _rearranged(weights: np.ndarray, stride: int, taps: int) -> np.ndarray:
    """Return weights (K, C, k, k) as (K, C·s·s, taps, taps); channel (c, down, across) of a patch."""
    outputs, channels, kernel, _ = weights.shape
    full = np.zeros((outputs, channels, taps * stride, taps * stride), np.float32)
    full[:, :, :kernel, :kernel] = weights
    split = full.reshape(outputs, channels, taps, stride, taps, stride).transpose(0, 1, 3, 5, 2, 4)
    return np.ascontiguousarray(split.reshape(outputs, channels * stride * stride, taps, taps))


def _accepts(outputs: int, taps: int, step: Step) -> str | None:
    if step.constant(1) is None:
        return "the weights are not constant"
    if len(operand(step, 0).shape) != 4 or len(step.outputs) > 1:
        return "not a convolution over height and width with one output"
    if operand(step, 0).layout != "plain":
        return "for plain input (a first layer) only"
    c = read_convolution(step)
    stride = c.strides[0]
    if c.strides[1] != stride or stride < 2 or c.kernel[0] != c.kernel[1] or c.dilations != (1, 1) or c.groups > 1:
        return "not a strided square convolution"
    if -(-c.kernel[0] // stride) != taps:
        return f"does not become {taps}x{taps}"
    return winograd.accepts(Kind(outputs, taps, "fused"), _derived(step)[1])


def _tiles(outputs: int, taps: int, step: Step) -> list[Tile]:
    return winograd.tiles(Kind(outputs, taps, "fused"), _derived(step)[1])


def _seconds(outputs: int, taps: int, step: Step, tile: Tile) -> float:
    c, derived, height, width = _derived(step)
    copied = 4 * c.images * c.channels * height * width
    return winograd.seconds(Kind(outputs, taps, "fused"), derived, tile) + 6 * copied / CACHE_BYTES_PER_S / step.threads


def _part_bytes(step: Step) -> tuple[int, int]:
    """Return bytes of (the framed input, the patches), each rounded up to cache lines with slack."""
    c, derived, height, width = _derived(step)
    patches = operand(derived, 0)
    framed = 4 * c.images * c.channels * height * width
    return -(-framed // 64) * 64 + 256, -(-4 * c.images * patches.image_stride // 64) * 64 + 256


def _scratch_bytes(outputs: int, taps: int, step: Step, tile: Tile) -> int:
    return sum(_part_bytes(step)) + winograd.scratch_bytes(Kind(outputs, taps, "fused"), _derived(step)[1], tile)


def _calls(outputs: int, taps: int, step: Step, tile: Tile) -> tuple[Call, ...]:
    c, derived, height, width = _derived(step)
    x, patches, lanes, stride = operand(step, 0), operand(derived, 0), step.lanes, c.strides[0]
    framed_bytes, patch_bytes = _part_bytes(step)
    image_stride = c.channels * height * width
    # Rows and columns beyond what the last window reads are cut off, missing ones are zeros.
    rows, columns = min(c.height, height - c.pads[0]), min(c.width, width - c.pads[1])
    frame: tuple[Word, ...] = (
        Operand(x.name), Scratch(), c.images, c.channels, c.channels * c.height * c.width, c.height * c.width,
        rows, columns, c.pads[0], height - c.pads[0] - rows, c.pads[1], width - c.pads[1] - columns, c.width,
    )  # fmt: skip

    def offsets() -> np.ndarray:
        lane = np.arange(blocks(c.channels * stride * stride, lanes) * lanes)
        channel, down, across = lane // (stride * stride), lane // stride % stride, lane % stride
        return np.where(channel < c.channels, channel * height * width + down * width + across, -1)

    patch_words: tuple[Word, ...] = (
        Scratch(), Scratch(framed_bytes), c.images, patches.image_stride // patches.block_stride, patches.shape[2],
        patches.shape[3], image_stride, stride * width, Packed("patch offsets", offsets),
    )  # fmt: skip
    calls = [
        Call(f"padding_{lanes}", lambda: str(padding(lanes)), frame),
        Call(f"space_to_depth_{stride}_v{lanes}", lambda: str(space_to_depth(lanes, stride)), patch_words),
    ]
    for call in winograd.calls(Kind(outputs, taps, "fused"), derived, tile):
        moved = tuple(_moved(word, framed_bytes, framed_bytes + patch_bytes) for word in call.words)
        calls.append(replace(call, words=moved))
    return tuple(calls)


def _moved(word: Word, patches_at: int, scratch_at: int) -> Word:
    """Point the inner algorithm's input at the patches, and its scratch behind them."""
    if word == Operand(_PATCHES):
        return Scratch(patches_at)
    return Scratch(word.offset_bytes + scratch_at) if isinstance(word, Scratch) else word


SPACE_TO_DEPTH = tuple(
    Algorithm(
        f"space to depth + winograd F({outputs},{taps})",
        ("FusedConv",),
        partial(_accepts, outputs, taps),
        partial(_tiles, outputs, taps),
        partial(_seconds, outputs, taps),
        partial(_calls, outputs, taps),
        partial(_scratch_bytes, outputs, taps),
        partial(winograd.error, Kind(outputs, taps, "fused")),
        halves=True,
    )
    for outputs, taps in ((4, 3), (6, 3), (2, 3), (3, 4), (4, 4))
)
