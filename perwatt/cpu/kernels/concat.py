"""Channels moved between blocked tensors: Concat, Split and Slice along the channel axis, at any channel counts.

An output block is made of segments: lanes [first, last) come from consecutive channels of one input block, shifted by
as many lanes as the two positions differ. A shifted vector is a load from as many floats earlier under a mask.
"""

from collections.abc import Sequence
from enum import IntEnum
from functools import partial
from math import prod

import numpy as np

from perwatt.cpu.ir import Module
from perwatt.cpu.kernels import operands
from perwatt.cpu.kernels.operands import blocked
from perwatt.plan.algorithm import Algorithm, Call, Operand, Packed, Step, Tensor, Tile, Word


class Slot(IntEnum):
    """The words of a call's arguments. Strides count floats. Each input then has two words: address, image stride."""

    OUTPUT = 0
    IMAGES = 1
    BLOCKS = 2
    PIXELS = 3
    CHUNKS = 4  # parts of the pixels of one image and block
    OUTPUT_IMAGE_STRIDE = 5
    OUTPUT_BLOCK_STRIDE = 6
    FIRST_SEGMENTS = 7  # table [output block + 1]
    SEGMENTS = 8  # table [segment][4]: input, offset in floats, first lane, last lane
    INPUTS = 9


def channels_name(lanes: int) -> str:
    """Return the name of the kernel that `channels` writes."""
    return f"move_channels_v{lanes}"


def channels(lanes: int) -> Module:
    """Return the kernel that puts output blocks together from segments."""
    name = channels_name(lanes)
    module = Module(name, lanes)
    with module.kernel(name) as k:
        blocks, pixels, chunks = k.argument(Slot.BLOCKS), k.argument(Slot.PIXELS), k.argument(Slot.CHUNKS)
        segments, first_segments = k.pointer(Slot.SEGMENTS), k.pointer(Slot.FIRST_SEGMENTS)
        first, last = k.share(k.argument(Slot.IMAGES) * blocks * chunks)
        with k.loop(first, last) as tasks:
            line = tasks.index // chunks
            chunk = tasks.index - line * chunks
            image = line // blocks
            block = line - image * blocks
            offset = image * k.argument(Slot.OUTPUT_IMAGE_STRIDE) + block * k.argument(Slot.OUTPUT_BLOCK_STRIDE)
            y = k.pointer(Slot.OUTPUT) + offset
            start, stop = chunk * pixels // chunks, (chunk + 1) * pixels // chunks
            first_segment = k.table_entry(first_segments, block)
            with k.loop(first_segment, k.table_entry(first_segments, block + 1)) as over:
                row = over.index * 4
                word = k.table_entry(segments, row) * 2 + Slot.INPUTS
                x = k.pointer_at(word) + (image * k.argument_at(word + 1) + k.table_entry(segments, row + 1))
                mask = k.lane_range(k.table_entry(segments, row + 2), k.table_entry(segments, row + 3))
                # The first segment fills the lanes of all others, and those of no channel, with zeros.
                is_first = over.index.equals(first_segment)
                with k.when(is_first), k.loop(start, stop) as over_pixels:
                    place = over_pixels.index * lanes
                    k.store(k.load_lanes(x + place, mask), y, place)
                with k.when(is_first.equals_false()), k.loop(start, stop) as over_pixels:
                    place = over_pixels.index * lanes
                    k.store(k.select(mask, k.load_lanes(x + place, mask), k.load(y, place)), y, place)
    return module


def _segments(sources: Sequence[tuple[int, Tensor, int, int]], lanes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (first segments, segments) for (input, tensor, first channel, channels) that follow one another."""
    rows: list[tuple[int, int, int, int]] = []
    starts = [0]
    at = 0  # channel of the output
    for number, tensor, first, count in sources:
        stride = blocked(tensor, lanes).block_stride
        done = 0
        while done < count:
            if at % lanes == 0 and at:
                starts.append(len(rows))
            channel, lane = first + done, at % lanes
            length = min(count - done, lanes - lane, lanes - channel % lanes)
            rows.append((number, channel // lanes * stride + channel % lanes - lane, lane, lane + length))
            done, at = done + length, at + length
    return np.array([*starts, len(rows)], np.int64), np.array(rows, np.int64)


def _call(step: Step, target: Tensor, sources: Sequence[tuple[int, Tensor, int, int]]) -> Call:
    lanes = step.lanes
    y = blocked(target, lanes)
    chunks = operands.chunks(step, y.images * y.blocks, max(1, y.pixels // 64))
    words: list[Word] = [Operand(target.name), y.images, y.blocks, y.pixels, chunks, y.image_stride, y.block_stride]
    words.append(Packed(f"first segments of {target.name}", lambda: _segments(sources, lanes)[0]))
    words.append(Packed(f"segments of {target.name}", lambda: _segments(sources, lanes)[1]))
    for tensor in step.inputs:
        if tensor is not None:
            words += [Operand(tensor.name), blocked(tensor, lanes).image_stride]
    return Call(channels_name(lanes), operands.text(partial(channels, lanes)), tuple(words))


def _accepts(step: Step) -> str | None:
    if not operands.everything_is(step, "blocked") or step.constants.keys() & {t.name for t in step.inputs if t}:
        return "inputs and outputs must be blocked"
    axes = operands.wholes(step, "axes") if step.operator == "Slice" else (operands.whole(step, "axis"),)
    if axes != (1,):
        return f"moves along the channel axis only, got {axes}"
    if step.operator == "Slice" and operands.wholes(step, "steps") != (1,):
        return "takes every channel of a range"
    return "an output is empty" if any(prod(t.shape) == 0 for t in step.outputs) else None


def _calls(step: Step, tile: Tile) -> tuple[Call, ...]:
    if step.operator == "Concat":
        parts = [(i, t, 0, t.shape[1]) for i, t in enumerate(t for t in step.inputs if t is not None)]
        return (_call(step, step.outputs[0], [part for part in parts if part[3]]),)
    source, _ = operands.data(step)
    calls, first = [], operands.wholes(step, "starts")[0] if step.operator == "Slice" else 0
    for target in step.outputs:
        calls.append(_call(step, target, [(0, source, first, target.shape[1])]))
        first += target.shape[1]
    return tuple(calls)


CHANNELS = Algorithm(
    "channels", ("Concat", "Split", "Slice"), _accepts, operands.one_tile, operands.traffic_seconds, _calls
)
