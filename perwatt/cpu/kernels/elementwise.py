"""Element by element: one kernel for any operator and any mix of operands, made when it is needed.

Blocked, an operand is a map (m), one vector for each channel block (v), or a map of one channel whose value goes to
every lane (f). Plain, an operand of the innermost loop is consecutive (c) or one value (s), and up to five outer axes
have strides of their own, 0 where an operand is broadcast. Constants are packed into whichever form they fit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from math import prod
from typing import TypeVar

import numpy as np

from perwatt.cpu.ir import Index, Kernel, Module, Pointer, Vector
from perwatt.cpu.kernels import operands
from perwatt.cpu.kernels.functions import COPIES, FUNCTIONS, INTERNAL, function_of, numbers
from perwatt.cpu.kernels.storage import FP32, Stored, load, store, stored
from perwatt.plan.algorithm import Algorithm, Call, Operand, Packed, Step, Tensor, Tile, Word

OUTER_AXES = 5
MOST_OPERANDS = 6
WORTH_SPLITTING = 1024  # floats of work in a task


class Slot(IntEnum):
    """The words of a blocked kernel. Strides count floats. Each operand then has `WORDS` words."""

    OUTPUT = 0
    IMAGES = 1
    BLOCKS = 2
    CHANNELS = 3
    PIXELS = 4
    CHUNKS = 5  # parts of the pixels of one image and block
    OUTPUT_IMAGE_STRIDE = 6
    OUTPUT_BLOCK_STRIDE = 7
    OPERANDS = 8
    WORDS = 4  # address, image stride, block stride, pixel stride


class PlainSlot(IntEnum):
    """The words of a plain kernel. Each operand then has `WORDS` words."""

    OUTPUT = 0
    SIZES = 1  # of the five outer axes
    INNER = 6
    CHUNKS = 7  # parts of the innermost axis
    OPERANDS = 8
    WORDS = 6  # address, strides of the five outer axes


Part = TypeVar("Part")


@dataclass(frozen=True)
class Shape:
    """What an element-wise kernel is specialised on; `kinds` has a letter for each operand."""

    lanes: int
    operator: str
    kinds: str
    numbers: tuple[float, ...]
    plain: bool
    unused_lanes: bool = False  # blocked: the last block has lanes without a channel
    stores: tuple[Stored, ...] = ()  # blocked: of the operands, then the output; none: FP32 all

    @property
    def name(self) -> str:
        """The exported function's name."""
        form = "plain" if self.plain else "unused" if self.unused_lanes else "blocked"
        stem = f"elementwise_{self.operator.lower()}_{self.kinds}_{form}_{operands.bits(*self.numbers)}_v{self.lanes}"
        return stem + operands.suffix(*self.stores)


def elementwise(shape: Shape) -> Module:
    """Return the module of one element-wise kernel."""
    module = Module(shape.name, shape.lanes)
    with module.kernel(shape.name) as k:
        if shape.plain:
            _plain(k, shape)
        else:
            _blocked(k, shape)
    return module


def _blocked(k: Kernel, shape: Shape) -> None:
    lanes, function = shape.lanes, FUNCTIONS[shape.operator]
    stores = shape.stores or (FP32,) * (len(shape.kinds) + 1)
    blocks, pixels, chunks = k.argument(Slot.BLOCKS), k.argument(Slot.PIXELS), k.argument(Slot.CHUNKS)
    first, last = k.share(k.argument(Slot.IMAGES) * blocks * chunks)
    with k.loop(first, last) as tasks:
        line = tasks.index // chunks
        chunk = tasks.index - line * chunks
        image = line // blocks
        block = line - image * blocks
        places: list[Pointer] = []
        fixed: dict[int, Vector] = {}
        for i, kind in enumerate(shape.kinds):
            word = Slot.OPERANDS + Slot.WORDS * i
            offset = image * k.argument(word + 1) + block * k.argument(word + 2)
            places.append(k.pointer(word) + offset)
            if kind == "v":
                fixed[i] = load(k, stores[i], places[i])
        y = k.pointer(Slot.OUTPUT) + (
            image * k.argument(Slot.OUTPUT_IMAGE_STRIDE) + block * k.argument(Slot.OUTPUT_BLOCK_STRIDE)
        )
        in_use = k.lane_range(0, k.argument(Slot.CHANNELS) - block * lanes)
        with k.loop(chunk * pixels // chunks, (chunk + 1) * pixels // chunks) as over:
            values = []
            for i, kind in enumerate(shape.kinds):
                if kind == "v":
                    values.append(fixed[i])
                elif kind == "m":
                    values.append(load(k, stores[i], places[i], over.index * stores[i].words(lanes)))
                else:
                    values.append(k.broadcast(places[i], over.index * k.argument(Slot.OPERANDS + Slot.WORDS * i + 3)))
            result = function(k, values, shape.numbers)
            result = k.select(in_use, result, 0.0) if shape.unused_lanes else result
            store(k, stores[-1], result, y, over.index * stores[-1].words(lanes))


def _plain(k: Kernel, shape: Shape) -> None:
    lanes, function, chunks = shape.lanes, FUNCTIONS[shape.operator], k.argument(PlainSlot.CHUNKS)
    sizes = [k.argument(PlainSlot.SIZES + axis) for axis in range(OUTER_AXES)]
    inner = k.argument(PlainSlot.INNER)
    rows = sizes[0] * sizes[1] * sizes[2] * sizes[3] * sizes[4]
    first, last = k.share(rows * chunks)
    with k.loop(first, last) as tasks:
        row = tasks.index // chunks
        chunk = tasks.index - row * chunks
        start, stop = chunk * inner // chunks, (chunk + 1) * inner // chunks
        places = _row_places(k, sizes, row, len(shape.kinds))
        y = k.pointer(PlainSlot.OUTPUT) + row * inner
        fixed = {i: k.broadcast(places[i]) for i, kind in enumerate(shape.kinds) if kind == "s"}

        def result(at: Index, used: Index | None) -> Vector:
            values = []
            for i, place in enumerate(places):
                if i in fixed:
                    values.append(fixed[i])
                else:
                    values.append(k.load(place, at) if used is None else k.load_masked(place + at, used))
            return function(k, values, shape.numbers)

        whole = start + (stop - start) // lanes * lanes
        with k.loop(start, whole, lanes) as over:
            k.store(result(over.index, None), y, over.index)
        with k.when(whole < stop):
            k.store_masked(result(whole, stop - whole), y + whole, stop - whole)


def _row_places(k: Kernel, sizes: Sequence[Index], row: Index, count: int) -> list[Pointer]:
    """Return where each operand's part of an output row begins."""
    rest, at = row, []
    for size in reversed(sizes):
        above = rest // size
        at.append(rest - above * size)
        rest = above
    at.reverse()
    places = []
    for i in range(count):
        word = PlainSlot.OPERANDS + PlainSlot.WORDS * i
        offset = at[0] * k.argument(word + 1)
        for axis in range(1, OUTER_AXES):
            offset = offset + at[axis] * k.argument(word + 1 + axis)
        places.append(k.pointer(word) + offset)
    return places


# -- planning


@dataclass(frozen=True)
class _Part:
    """One operand of a call: its letter, its address, and the strides its kernel wants."""

    kind: str
    address: Word
    strides: tuple[int, ...]
    store: Stored = FP32


def _blocked_part(step: Step, tensor: Tensor, out: tuple[int, ...], position: int) -> _Part | str:
    """Return the operand in blocked form, or the reason why there is none."""
    known = step.constants.get(tensor.name)
    shape = (1,) * (len(out) - len(tensor.shape)) + tensor.shape
    pixels, out_pixels = prod(shape[2:]), prod(out[2:])
    if known is not None:
        return _packed_part(step, known.reshape(shape), out, position)
    if len(tensor.shape) != len(out):
        return f"operand {tensor.name} has another rank"
    if pixels not in (1, out_pixels) or shape[0] not in (1, out[0]) or shape[1] not in (1, out[1]):
        return f"operand {tensor.name} of shape {shape} is broadcast along single spatial axes"
    vector, kind = operands.words(tensor, step.lanes), stored(tensor.element, step.machine)
    if len(out) == 2:  # the batch takes the place of the pixels
        image, pixel, one = 0, vector * (shape[0] > 1), shape[0] == 1 < out[0]
        block_stride = tensor.block_stride
    else:
        numbers_ = operands.blocked(tensor, step.lanes)
        image, pixel, one = numbers_.image_stride * (shape[0] > 1), vector * (pixels > 1), pixels == 1 < out_pixels
        block_stride = numbers_.block_stride
    if shape[1] == 1 < out[1]:
        if kind != FP32:
            return f"operand {tensor.name} has one channel, stored in {tensor.element}"
        return _Part("f", Operand(tensor.name), (image, 0, pixel))
    return _Part("v" if one else "m", Operand(tensor.name), (image, block_stride, pixel), kind)


def _packed_part(step: Step, known: np.ndarray, out: tuple[int, ...], position: int) -> _Part:
    """Return a constant as vectors for each block, or as a map where it differs from pixel to pixel."""
    lanes = step.lanes
    if len(out) == 2:  # [image][channel] -> one image, images as pixels
        known, out = known.T[None, :, :], (1, out[1], out[0])
    images, channels = known.shape[:2]
    per_pixel = prod(known.shape[2:]) > 1
    pixels = prod(out[2:]) if per_pixel else 1
    blocks = 1 if channels == 1 else -(-channels // lanes)

    def make() -> np.ndarray:
        full = np.broadcast_to(known, (images, channels, *(out[2:] if per_pixel else known.shape[2:])))
        full = full.reshape(images, channels, pixels).transpose(0, 2, 1)
        wide = np.repeat(full, lanes, axis=2) if channels == 1 else operands.pack_channels(full, lanes)
        blocked = wide.reshape(images, pixels, blocks, lanes).transpose(0, 2, 1, 3)
        return np.ascontiguousarray(blocked, np.float32)

    strides = (blocks * pixels * lanes * (images > 1), pixels * lanes * (channels > 1), lanes * per_pixel)
    return _Part("m" if per_pixel else "v", Packed(f"operand {position}", make), strides)


def _blocked_call(step: Step, operator: str, given: tuple[float, ...], parts: Sequence[_Part]) -> Call:
    y = operands.blocked(step.outputs[0], step.lanes)
    images, pixels, image_stride = y.images, y.pixels, y.image_stride
    if len(step.outputs[0].shape) == 2:
        images, pixels, image_stride = 1, y.images, 0
    kinds = "".join(part.kind for part in parts)
    stores = (*(part.store for part in parts), stored(step.outputs[0].element, step.machine))
    stores = () if all(kind == FP32 for kind in stores) else stores
    shape = Shape(step.lanes, operator, kinds, given, False, y.channels % step.lanes > 0, stores)
    chunks = operands.chunks(step, images * y.blocks, max(1, pixels * step.lanes // WORTH_SPLITTING))
    words: list[Word] = [Operand(step.outputs[0].name), images, y.blocks, y.channels, pixels, chunks]
    words += [image_stride, y.block_stride]
    for part in parts:
        words += [part.address, *part.strides]
    return Call(shape.name, operands.text(partial(elementwise, shape)), tuple(words))


def collapsed(shapes: Sequence[tuple[int, ...]], out: tuple[int, ...]) -> tuple[list[int], list[list[int]]]:
    """Return (sizes, strides of each operand) of the fewest axes that describe a broadcast of plain tensors."""
    sizes = [size for size in out if size != 1]
    strides = []
    for shape in shapes:
        padded = (1,) * (len(out) - len(shape)) + shape
        steps = [0 if padded[axis] == 1 else prod(padded[axis + 1 :]) for axis in range(len(out))]
        strides.append([step for step, size in zip(steps, out, strict=True) if size != 1])
    axis = len(sizes) - 2
    while axis >= 0:
        if all(steps[axis] == steps[axis + 1] * sizes[axis + 1] for steps in strides):
            sizes[axis : axis + 2] = [sizes[axis] * sizes[axis + 1]]
            for steps in strides:
                del steps[axis]
        axis -= 1
    return sizes or [1], [steps or [0] for steps in strides]


def plain_call(step: Step, operator: str, given: tuple[float, ...], tensors: Sequence[tuple[Tensor, Word]]) -> Call:
    """Return the call that makes a step's first output of plain tensors, each with its address."""
    sizes, strides = collapsed([tensor.shape for tensor, _ in tensors], step.outputs[0].shape)
    outer = [1] * (OUTER_AXES + 1 - len(sizes)) + sizes[:-1]
    kinds = "".join("c" if steps[-1] else "s" for steps in strides)
    shape = Shape(step.lanes, operator, kinds, given, True)
    chunks = operands.chunks(step, prod(outer), max(1, sizes[-1] // WORTH_SPLITTING))
    words: list[Word] = [Operand(step.outputs[0].name), *outer, sizes[-1], chunks]
    for (_, address), steps in zip(tensors, strides, strict=True):
        words += [address, *[0] * (OUTER_AXES + 1 - len(steps)), *steps[:-1]]
    return Call(shape.name, operands.text(partial(elementwise, shape)), tuple(words))


def _inputs(step: Step) -> list[Tensor]:
    return [tensor for tensor in step.inputs if tensor is not None]


def _accepts(step: Step) -> str | None:
    out = step.outputs[0].shape
    if len(step.outputs) > 1:
        return "has one output"
    if step.operator == "Cast" and step.attributes["to"] != "float32":
        return f"computes in float32 only, not {step.attributes['to']}"
    if operands.everything_is(step, "blocked"):
        if step.operator in ("Reshape", "Flatten", "Squeeze", "Unsqueeze"):
            return "blocked: a new shape would move channels"
        if len(out) < 2:
            return f"blocked: needs a batch and a channel axis, got shape {out}"
        if step.operator == "BatchNormalization":
            return (
                None if all(step.constant(i) is not None for i in range(1, 5)) else "blocked: parameters not constant"
            )
        reasons = [_blocked_part(step, tensor, out, i) for i, tensor in enumerate(_inputs(step))]
        return next((reason for reason in reasons if isinstance(reason, str)), None)
    if not operands.everything_is(step, "plain"):
        return "all operands must have the same layout"
    if len(collapsed([_shape(step, t) for t in _inputs(step)], out)[0]) > OUTER_AXES + 1:
        return f"broadcasts over more than {OUTER_AXES + 1} axes"
    return None


def _shape(step: Step, tensor: Tensor) -> tuple[int, ...]:
    """Return an operand's shape as it takes part in the broadcast."""
    rank = len(step.outputs[0].shape)
    if step.operator in COPIES:
        return step.outputs[0].shape
    if step.operator == "BatchNormalization" and len(tensor.shape) == 1 and rank > 1:
        return (1, *tensor.shape, *(1,) * (rank - 2))
    return tensor.shape


def _calls(step: Step, tile: Tile) -> tuple[Call, ...]:
    operator, given, output = function_of(step), numbers(step), step.outputs[0]
    if output.layout == "blocked":
        if step.operator == "BatchNormalization":
            return (_blocked_batch_normalization(step),)
        parts: list[_Part] = []
        for i, tensor in enumerate(_inputs(step)):
            part = _blocked_part(step, tensor, output.shape, i)
            assert isinstance(part, _Part), part
            parts.append(part)
        own = _Part("m", Operand(output.name), _own_strides(step), stored(output.element, step.machine))
        return tuple(_blocked_call(step, name, n, group) for name, n, group in _groups(operator, given, parts, own))
    tensors = [_plain_operand(step, tensor, i) for i, tensor in enumerate(_inputs(step))]
    mine = (output, Operand(output.name))
    return tuple(plain_call(step, name, n, group) for name, n, group in _groups(operator, given, tensors, mine))


def _own_strides(step: Step) -> tuple[int, int, int]:
    y = operands.blocked(step.outputs[0], step.lanes)
    return (
        0 if len(step.outputs[0].shape) == 2 else y.image_stride,
        y.block_stride,
        operands.words(step.outputs[0], step.lanes),
    )


def _plain_operand(step: Step, tensor: Tensor, position: int) -> tuple[Tensor, Word]:
    aligned = Tensor(tensor.name, _shape(step, tensor), "plain")
    known = step.constants.get(tensor.name)
    if known is None:
        return aligned, Operand(tensor.name)
    return aligned, Packed(f"operand {position}", lambda: np.ascontiguousarray(known, np.float32))


def _groups(
    operator: str, given: tuple[float, ...], parts: Sequence[Part], own: Part
) -> list[tuple[str, tuple[float, ...], list[Part]]]:
    """Split many operands into several calls, each of which goes on from the output of the one before."""
    groups = [list(parts[:MOST_OPERANDS])]
    rest = list(parts[MOST_OPERANDS:])
    while rest:
        groups.append([own, *rest[: MOST_OPERANDS - 1]])
        rest = rest[MOST_OPERANDS - 1 :]
    last = len(groups) - 1
    if operator != "Mean":
        return [(operator, given, group) for group in groups]
    return [("Mean" if i == last else "Sum", given if i == last else (), group) for i, group in enumerate(groups)]


def _blocked_batch_normalization(step: Step) -> Call:
    """Return the call with scale/sqrt(var + epsilon) and B - mean·that worked out in advance, in float64."""
    scale, shift, mean, variance = (np.asarray(step.constant(i), np.float64) for i in range(1, 5))
    factor = scale / np.sqrt(variance + operands.real(step, "epsilon"))
    out = step.outputs[0].shape
    shape = (1, out[1], *(1,) * (len(out) - 2))
    data = _blocked_part(step, operands.data(step)[0], out, 0)
    assert isinstance(data, _Part), data
    constants = (factor, shift - mean * factor)
    parts = [_packed_part(step, known.reshape(shape), out, i) for i, known in enumerate(constants, 1)]
    return _blocked_call(step, "ScaleAndShift", (), [data, *parts])


ELEMENTWISE = Algorithm(
    "elementwise",
    (*(name for name in FUNCTIONS if name not in INTERNAL), *COPIES, "onnx.Clip"),
    _accepts,
    operands.one_tile,
    operands.traffic_seconds,
    _calls,
    halves=True,
)
