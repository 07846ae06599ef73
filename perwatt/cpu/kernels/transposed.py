"""Transposed convolution: a direct convolution that makes every phase of the output, a copy that interleaves them.

Of stride s, output o reads input i through tap t where i·s + t·dilation = o + pad. So outputs of one phase, the same
(o + pad) mod s, are a convolution of stride 1 whose taps are those t that lead to the phase: all phases together are
s·s times the output channels with 1/s taps along each axis, no multiplication more than the definition has. Where
phases have different numbers of taps, the missing ones are zeros; an infinite input then reaches, as zero times
infinity, outputs next to those that read it. Groups that do not fill whole vectors are joined, see `grouped`.
"""

from dataclasses import dataclass, replace
from enum import IntEnum
from functools import partial
from math import prod

import numpy as np

from perwatt.cpu.ir import Module
from perwatt.cpu.kernels import operands
from perwatt.cpu.kernels.convolution import DIRECT
from perwatt.cpu.kernels.dense import CACHE_BYTES_PER_S, blocks, known, operand, used_lanes
from perwatt.cpu.kernels.grouped import expanded, joined_groups
from perwatt.plan.algorithm import Algorithm, Call, Operand, Packed, Scratch, Step, Tensor, Tile, Word, direct_error

_PHASES = "phases"
_NO_ACTIVATION = {"activation": None, "activation_alpha": 0.0, "activation_beta": 0.0, "splits": None}


class Slot(IntEnum):
    """The words of the arguments of `interleaving`. Strides count floats."""

    PHASES = 0  # dense: [image][group][phase][block of a group][row][column][V]
    OUTPUT = 1
    IMAGES = 2
    BLOCKS = 3  # of the output
    HEIGHT = 4
    WIDTH = 5
    OUTPUT_IMAGE_STRIDE = 6
    OUTPUT_BLOCK_STRIDE = 7
    EACH = 8  # blocks of a group
    ROWS = 9  # of a phase
    COLUMNS = 10
    DOWN = 11  # stride
    ACROSS = 12
    ABOVE = 13  # pads
    LEFT = 14
    FIRST_ROW = 15  # (output row + pad above) // stride of a phase's first row
    FIRST_COLUMN = 16
    USED_LANES = 17  # table: how many lanes of each block of V output channels are channels; the others become zeros


def interleaving_name(lanes: int, tail: bool) -> str:
    """Return the name of the kernel that `interleaving` writes."""
    return f"interleaving_v{lanes}{'_tail' if tail else ''}"


def interleaving(lanes: int, tail: bool) -> Module:
    """Return the kernel that puts the phases' pixels where they belong and leaves out those beyond the output."""
    name = interleaving_name(lanes, tail)
    module = Module(name, lanes)
    with module.kernel(name) as k:
        channel_blocks, height, width = k.argument(Slot.BLOCKS), k.argument(Slot.HEIGHT), k.argument(Slot.WIDTH)
        down, across, left = k.argument(Slot.DOWN), k.argument(Slot.ACROSS), k.argument(Slot.LEFT)
        each, columns = k.argument(Slot.EACH), k.argument(Slot.COLUMNS)
        plane = k.argument(Slot.ROWS) * columns * lanes
        first, last = k.share(k.argument(Slot.IMAGES) * channel_blocks * height)
        with k.loop(first, last) as lines:
            above = lines.index // height
            row = lines.index - above * height
            image = above // channel_blocks
            block = above - image * channel_blocks
            group = block // each
            source_row = (row + k.argument(Slot.ABOVE)) // down
            phase_down = row + k.argument(Slot.ABOVE) - source_row * down
            target = k.pointer(Slot.OUTPUT) + image * k.argument(Slot.OUTPUT_IMAGE_STRIDE)
            target = target + (block * k.argument(Slot.OUTPUT_BLOCK_STRIDE) + row * width * lanes)
            of_image = k.pointer(Slot.PHASES) + image * (channel_blocks * down * across) * plane
            of_row = of_image + (source_row - k.argument(Slot.FIRST_ROW)) * (columns * lanes)
            if tail:
                used = k.lane_range(0, k.table_entry(k.pointer(Slot.USED_LANES), block))
            with k.loop(0, across) as over:
                phase = (group * down + phase_down) * across + over.index
                start = (over.index + across - left % across) % across
                column = (start + left) // across - k.argument(Slot.FIRST_COLUMN)
                source = of_row + (phase * each + block - group * each) * plane + column * lanes
                with k.loop(0, (width - start + (across - 1)) // across) as pixels:
                    value = k.load(source, pixels.index * lanes)
                    if tail:
                        value = k.select(used, value, 0.0)
                    k.store(value, target, (start + pixels.index * across) * lanes)
    return module


# -- planning


@dataclass(frozen=True)
class _Axis:
    """One spatial axis; `before` is the padding in front."""

    size: int
    out: int
    kernel: int
    stride: int
    dilation: int
    before: int

    @property
    def taps(self) -> int:
        """Taps of a phase, some of them zeros."""
        return (self.kernel - 1) * self.dilation // self.stride + 1

    @property
    def first(self) -> int:
        """(output + pad) // stride of the first pixel made; where the pad is wider than the window, before the first
        one that is needed."""
        return min(self.before // self.stride, self.taps - 1)

    @property
    def last(self) -> int:
        """The same of the last pixel made."""
        return max((self.out - 1 + self.before) // self.stride, self.size - 1)

    @property
    def made(self) -> int:
        """Pixels of a phase."""
        return self.last - self.first + 1

    @property
    def pads(self) -> tuple[int, int]:
        """Padding of the phases' convolution."""
        return self.taps - 1 - self.first, self.last - self.size + 1


def _axes(step: Step) -> list[_Axis]:
    x, y = operands.data(step)
    window = (operands.wholes(step, name) for name in ("kernel_shape", "strides", "dilations", "pads"))
    return [_Axis(*sizes) for sizes in zip(x.shape[2:], y.shape[2:], *window, strict=False)]


def _convolution(step: Step, numbers: bool) -> tuple[Step, int]:
    """Return (the step that makes the phases, blocks of output channels in a group).

    Without `numbers`, with weights of the right shape that take no memory.
    """
    axes, x, lanes = _axes(step), operand(step, 0), step.lanes
    groups = operands.whole(step, "group")
    given = known(step, 1)
    channels, each, kernel = given.shape[0] // groups, given.shape[1], given.shape[2:]
    # As the weights of a convolution: [outputs, channels of a group, ...].
    shape = (groups * each, channels, *kernel)
    if numbers:
        turned = given.reshape(groups, channels, each, *kernel).swapaxes(1, 2).reshape(shape)
    else:
        turned = np.broadcast_to(np.float32(0), shape)
    weights = replace(operand(step, 1), shape=shape)
    plain = replace(
        step, inputs=(x, weights, *step.inputs[2:]), constants={**step.constants, weights.name: turned},
    )  # fmt: skip
    if joined_groups(plain) not in (None, 1):
        plain = expanded(plain, numbers)
        turned, groups = known(plain, 1), operands.whole(plain, "group")
        each, channels = turned.shape[0] // groups, turned.shape[1]
    wide, phases, taps = blocks(each, lanes), prod(a.stride for a in axes), tuple(a.taps for a in axes)
    outputs = groups * phases * wide * lanes
    constants = {weights.name: np.broadcast_to(np.float32(0), (outputs, channels, *taps))}
    if numbers:
        constants[weights.name] = _by_phase(turned.reshape(groups, each, channels, -1), wide * lanes, axes)
    bias = step.constant(2)
    inputs: tuple[Tensor | None, ...] = (x, replace(weights, shape=(outputs, channels, *taps)))
    if bias is not None:
        tensor = operand(step, 2)
        full = np.zeros((groups, phases, wide * lanes), np.float32)
        full[:, :, :each] = bias.reshape(groups, 1, each)
        constants[tensor.name] = full.reshape(-1)
        inputs = (*inputs, replace(tensor, shape=(outputs,)))
    begins, ends = zip(*(axis.pads for axis in axes), strict=True)
    ones = (1,) * len(axes)
    attributes = {
        **_NO_ACTIVATION, "kernel_shape": taps, "strides": ones, "dilations": ones, "pads": (*begins, *ends),
        "group": groups,
    }  # fmt: skip
    made = operands.dense(_PHASES, (x.shape[0], outputs, *(axis.made for axis in axes)), lanes)
    derived = replace(
        step, operator="FusedConv", inputs=inputs, outputs=(made,), attributes=attributes, constants=constants,
    )  # fmt: skip
    return derived, wide


def _by_phase(weights: np.ndarray, width: int, axes: list[_Axis]) -> np.ndarray:
    """Return weights [group, output, channel, taps] as [group · phase · width outputs, channel, taps of a phase]."""
    groups, each, channels, _ = weights.shape
    strides, taps = [axis.stride for axis in axes], [axis.taps for axis in axes]
    made = np.zeros((groups, prod(strides), width, channels, prod(taps)), np.float32)
    for number, at in enumerate(np.ndindex(*(axis.kernel for axis in axes))):
        reach = [tap * axis.dilation for tap, axis in zip(at, axes, strict=True)]
        phase = np.ravel_multi_index([r % axis.stride for r, axis in zip(reach, axes, strict=True)], strides)
        back = [axis.taps - 1 - r // axis.stride for r, axis in zip(reach, axes, strict=True)]
        made[:, phase, :each, :, np.ravel_multi_index(back, taps)] = weights[:, :, :, number]
    return made.reshape(-1, channels, *taps)


def _accepts(step: Step) -> str | None:
    if any(step.constant(i) is None for i, tensor in enumerate(step.inputs) if i and tensor is not None):
        return "the weights are not constant"
    if len(operand(step, 0).shape) not in (3, 4):
        return "not a convolution over one or two axes"
    if not operands.everything_is(step, "blocked"):
        return "input and output must be in channel blocks"
    return DIRECT.accepts(_convolution(step, False)[0])


def _tiles(step: Step) -> list[Tile]:
    return list(DIRECT.tiles(_convolution(step, False)[0]))


def _seconds(step: Step, tile: Tile) -> float:
    derived, _ = _convolution(step, False)
    copied = 8 * prod(derived.outputs[0].shape) / CACHE_BYTES_PER_S / step.threads
    return DIRECT.seconds(derived, tile) + copied


def _phases_at(derived: Step, tile: Tile) -> int:
    """Return where the phases begin in scratch, behind the framed input."""
    return -(-DIRECT.scratch_bytes(derived, tile) // 64) * 64


def _scratch_bytes(step: Step, tile: Tile) -> int:
    derived, _ = _convolution(step, False)
    return _phases_at(derived, tile) + 4 * derived.outputs[0].shape[0] * derived.outputs[0].image_stride


def _calls(step: Step, tile: Tile) -> tuple[Call, ...]:
    lanes, y = step.lanes, operands.blocked(step.outputs[0], step.lanes)
    derived, wide = _convolution(step, True)
    phases, made = Scratch(_phases_at(derived, tile)), operands.blocked(derived.outputs[0], lanes)
    axes = [_Axis(1, 1, 1, 1, 1, 0), *_axes(step)][-2:]
    calls = [
        replace(call, words=tuple(phases if word == Operand(_PHASES) else word for word in call.words))
        for call in DIRECT.calls(derived, tile)
    ]
    tail = y.channels % lanes > 0
    words: tuple[Word, ...] = (
        phases, Operand(step.outputs[0].name), y.images, y.blocks, y.height, y.width, y.image_stride, y.block_stride,
        wide, made.height, made.width, *(a.stride for a in axes), *(a.before for a in axes), *(a.first for a in axes),
        Packed("used lanes of the output", lambda: used_lanes(step)),
    )  # fmt: skip
    make = operands.text(partial(interleaving, lanes, tail))
    return (*calls, Call(interleaving_name(lanes, tail), make, words))


def _error(step: Step) -> float:
    return direct_error(_convolution(step, False)[0])


TRANSPOSED = Algorithm(
    "phases", ("ConvTranspose",), _accepts, _tiles, _seconds, _calls, _scratch_bytes, _error
)  # fmt: skip
