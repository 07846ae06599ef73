"""Local response normalisation across channels, and softmax, each in the layouts it is met in.

Blocked LRN takes squares of three neighbouring channel blocks and slides the window over their lanes with shuffles;
lanes behind the last channel count as absent. Softmax subtracts the largest element first, as everybody does.
"""

from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from math import inf, prod

import numpy as np

from perwatt.cpu.ir import Index, Kernel, Mask, Module, Pointer, Vector, Whole
from perwatt.cpu.kernels import operands
from perwatt.cpu.kernels.activation import exponential
from perwatt.cpu.kernels.elementary import logarithm
from perwatt.cpu.kernels.operands import blocked
from perwatt.cpu.kernels.storage import FP32, Stored, load, store
from perwatt.plan.algorithm import Algorithm, Call, Operand, Packed, Step, Tile


class Slot(IntEnum):
    """The words of the blocked kernels. Strides count floats."""

    INPUT = 0
    OUTPUT = 1
    IMAGES = 2
    BLOCKS = 3
    CHANNELS = 4
    PIXELS = 5
    CHUNKS = 6  # parts of the pixels of one image (softmax) or of one image and block (LRN)
    IMAGE_STRIDE = 7
    BLOCK_STRIDE = 8
    OUTPUT_IMAGE_STRIDE = 9
    OUTPUT_BLOCK_STRIDE = 10
    PARAMETERS = 11  # LRN: table of floats: bias, alpha/size, -beta


class PlainSlot(IntEnum):
    """The words of the plain softmax kernels: the axis lies between `OUTER` and `INNER` elements."""

    INPUT = 0
    OUTPUT = 1
    OUTER = 2
    LENGTH = 3
    INNER = 4


def response_name(lanes: int, size: int, three_quarters: bool, source: Stored = FP32, target: Stored = FP32) -> str:
    """Return the name of the kernel that `response` writes."""
    form = "three_quarters" if three_quarters else "any"
    return f"lrn_{size}_{form}_v{lanes}{operands.suffix(source, target)}"


def response(lanes: int, size: int, three_quarters: bool, source: Stored = FP32, target: Stored = FP32) -> Module:
    """Return the kernel of x·(bias + alpha/size·Σ x²)^-beta; `three_quarters` is for beta = 0.75, by square roots."""
    name = response_name(lanes, size, three_quarters, source, target)
    module = Module(name, lanes)
    before, after = (size - 1) // 2, size // 2
    with module.kernel(name) as k:
        blocks, channels, pixels = k.argument(Slot.BLOCKS), k.argument(Slot.CHANNELS), k.argument(Slot.PIXELS)
        chunks, block_stride = k.argument(Slot.CHUNKS), k.argument(Slot.BLOCK_STRIDE)
        bias, scale, power = (k.broadcast(k.pointer(Slot.PARAMETERS), i) for i in range(3))
        first, last = k.share(k.argument(Slot.IMAGES) * blocks * chunks)
        with k.loop(first, last) as tasks:
            line = tasks.index // chunks
            chunk = tasks.index - line * chunks
            image = line // blocks
            block = line - image * blocks
            x = k.pointer(Slot.INPUT) + image * k.argument(Slot.IMAGE_STRIDE)
            y = k.pointer(Slot.OUTPUT) + (
                image * k.argument(Slot.OUTPUT_IMAGE_STRIDE) + block * k.argument(Slot.OUTPUT_BLOCK_STRIDE)
            )
            here = x + block * block_stride
            # At either end the block itself stands in for the missing neighbour, with every lane masked out.
            earlier = x + k.maximum_index(block - 1, 0) * block_stride
            later = x + k.minimum_index(block + 1, blocks - 1) * block_stride
            left = channels - block * lanes
            in_earlier = k.lane_range(0, k.choose_index(block > 0, lanes, 0))
            in_here = k.lane_range(0, k.minimum_index(left, lanes))
            in_later = k.lane_range(0, left - lanes)
            with k.loop(chunk * pixels // chunks, (chunk + 1) * pixels // chunks) as over_pixels:
                place = over_pixels.index * source.words(lanes)
                value = k.select(in_here, load(k, source, here, place), 0.0)
                a = k.select(in_earlier, load(k, source, earlier, place), 0.0)
                b = k.select(in_later, load(k, source, later, place), 0.0)
                a, middle, b = a * a, value * value, b * b
                total = middle
                for distance in range(1, before + 1):
                    total = total + k.shuffle(a, middle, [lanes - distance + lane for lane in range(lanes)])
                for distance in range(1, after + 1):
                    total = total + k.shuffle(middle, b, [distance + lane for lane in range(lanes)])
                s = k.fma(total, scale, bias)
                if three_quarters:
                    result = _over_three_quarters(k, value, s)
                else:
                    result = value * exponential(k, logarithm(k, s) * power)
                same = source.words(lanes) == target.words(lanes)
                there = place if same else over_pixels.index * target.words(lanes)
                store(k, target, k.select(in_here, result, 0.0), y, there)
    return module


def _over_three_quarters(k: Kernel, value: Vector, s: Vector) -> Vector:
    """Return value / s^(3/4), for s >= 0."""
    if k.lanes != 16:
        root = k.square_root(s)
        return value / (root * k.square_root(root))
    # Two roots and a quotient take one slow unit all the time; AVX-512's estimates and a Newton step do not.
    r = _inverse_root(k, s)
    result = value * r * (r * _inverse_root(k, r))
    return k.select(s > 3.4028234e38, value * 0.0, result)


def _inverse_root(k: Kernel, x: Vector) -> Vector:
    """Return 1/sqrt(x) from AVX-512's estimate (relative error 2^-14) and one Newton step."""
    v = k.vector
    k.module.declare(f"declare {v} @llvm.x86.avx512.rsqrt14.ps.512({v}, {v}, i16)")
    call = f"call {v} @llvm.x86.avx512.rsqrt14.ps.512({v} {x.text}, {v} zeroinitializer, i16 -1)"
    guess = Vector(k, k.emit(call))
    half = guess * x * 0.5
    return k.fma(guess, k.fma(-half, guess, k.constant(0.5)), guess)


def _accepts_response(step: Step) -> str | None:
    if not operands.everything_is(step, "blocked"):
        return "input and output must be blocked"
    if operands.whole(step, "size") > 2 * step.lanes:
        return f"the window is wider than {2 * step.lanes} channels"
    return None


def _calls_response(step: Step, tile: Tile) -> tuple[Call, ...]:
    size, beta = operands.whole(step, "size"), operands.real(step, "beta")
    numbers = (operands.real(step, "bias"), operands.real(step, "alpha") / size, -beta)
    parameters = Packed("parameters", lambda: np.array(numbers, np.float32))
    kind = (step.lanes, size, beta == 0.75, *operands.storage(step))
    make = operands.text(partial(response, *kind))
    source, _ = operands.data(step)
    x = blocked(source, step.lanes)
    parts = operands.chunks(step, x.images * x.blocks, x.pixels)
    return (Call(response_name(*kind), make, (*_blocked_words(step, parts), parameters)),)


def _blocked_words(step: Step, parts: int) -> tuple[int | Operand, ...]:
    source, target = operands.data(step)
    x, y = blocked(source, step.lanes), blocked(target, step.lanes)
    return (
        *(Operand(source.name), Operand(target.name), x.images, x.blocks, x.channels, x.pixels, parts),
        *(x.image_stride, x.block_stride, y.image_stride, y.block_stride),
    )


@dataclass(frozen=True)
class _Line:
    """Where one softmax reads and writes: `count` vectors, strides in floats.

    `across_lanes`: the elements fill the vectors, `length` in all, the last vector may be partly used. Otherwise every
    lane is a softmax of its own, and `length` lanes are used. `padded`: unused lanes are written too, with zeros.
    """

    source: Pointer
    target: Pointer
    count: Whole
    length: Index
    step: Whole
    out_step: Whole
    across_lanes: bool
    padded: bool


def _softmax(k: Kernel, line: _Line, logarithmic: bool) -> None:
    lanes = k.lanes

    def used(i: Index) -> Mask:
        return k.lane_range(0, k.minimum_index(line.length - i * lanes, lanes) if line.across_lanes else line.length)

    def read(i: Index, fill: float) -> Vector:
        mask = used(i)
        return k.select(mask, k.load_lanes(line.source + i * line.step, mask), fill)

    def write(value: Vector, i: Index) -> None:
        target, mask = line.target + i * line.out_step, used(i)
        if line.padded:
            k.store(k.select(mask, value, 0.0), target)
        else:
            k.store_lanes(value, target, mask)

    with k.loop(0, line.count, carry=[k.constant(-inf)], at_least_once=True) as largest:
        largest.carry([k.maximum(largest.carried[0], read(largest.index, -inf))])
    top = _largest_lane(k, largest.results[0]) if line.across_lanes else largest.results[0]
    with k.loop(0, line.count, carry=[k.constant(0.0)], at_least_once=True) as sums:
        value = exponential(k, read(sums.index, -inf) - top)
        if not logarithmic:
            write(value, sums.index)
        sums.carry([sums.carried[0] + k.select(used(sums.index), value, 0.0)])
    total = _add_lanes(k, sums.results[0]) if line.across_lanes else sums.results[0]
    scale = logarithm(k, total) if logarithmic else 1.0 / total
    with k.loop(0, line.count, at_least_once=True) as parts:
        if logarithmic:
            write(read(parts.index, 0.0) - top - scale, parts.index)
        else:
            made = k.load_lanes(line.target + parts.index * line.out_step, used(parts.index))
            write(made * scale, parts.index)


def softmax_name(lanes: int, form: str, logarithmic: bool) -> str:
    """Return the name of the kernel that `softmax` writes."""
    return f"{'log_' if logarithmic else ''}softmax_{form}_v{lanes}"


def softmax(lanes: int, form: str, logarithmic: bool) -> Module:
    """Return a softmax kernel: `blocked` over channels, plain over the `last` axis, or an `inner` one."""
    name = softmax_name(lanes, form, logarithmic)
    module = Module(name, lanes)
    with module.kernel(name) as k:
        if form == "blocked":
            _softmax_of_channels(k, logarithmic)
        else:
            _softmax_of_axis(k, form == "last", logarithmic)
    return module


def _softmax_of_channels(k: Kernel, logarithmic: bool) -> None:
    pixels, chunks, channels = k.argument(Slot.PIXELS), k.argument(Slot.CHUNKS), k.argument(Slot.CHANNELS)
    steps = k.argument(Slot.BLOCK_STRIDE), k.argument(Slot.OUTPUT_BLOCK_STRIDE)
    first, last = k.share(k.argument(Slot.IMAGES) * chunks)
    with k.loop(first, last) as tasks:
        image = tasks.index // chunks
        chunk = tasks.index - image * chunks
        x = k.pointer(Slot.INPUT) + image * k.argument(Slot.IMAGE_STRIDE)
        y = k.pointer(Slot.OUTPUT) + image * k.argument(Slot.OUTPUT_IMAGE_STRIDE)
        with k.loop(chunk * pixels // chunks, (chunk + 1) * pixels // chunks) as over:
            place = over.index * k.lanes
            line = _Line(x + place, y + place, k.argument(Slot.BLOCKS), channels, *steps, True, True)
            _softmax(k, line, logarithmic)


def _softmax_of_axis(k: Kernel, last_axis: bool, logarithmic: bool) -> None:
    lanes, length, inner = k.lanes, k.argument(PlainSlot.LENGTH), k.argument(PlainSlot.INNER)
    groups = (inner + (lanes - 1)) // lanes
    first, last = k.share(k.argument(PlainSlot.OUTER) * groups)
    with k.loop(first, last) as tasks:
        outer = tasks.index // groups
        lane = (tasks.index - outer * groups) * lanes
        x = k.pointer(PlainSlot.INPUT) + (outer * length * inner + lane)
        y = k.pointer(PlainSlot.OUTPUT) + (outer * length * inner + lane)
        if last_axis:
            line = _Line(x, y, (length + (lanes - 1)) // lanes, length, lanes, lanes, True, False)
        else:
            line = _Line(x, y, length, k.minimum_index(inner - lane, lanes), inner, inner, False, False)
        _softmax(k, line, logarithmic)


def _accepts_softmax(step: Step) -> str | None:
    x, _ = operands.data(step)
    if prod(x.shape) == 0:
        return "the input is empty"
    if operands.everything_is(step, "plain"):
        return None
    if not operands.everything_is(step, "blocked"):
        return "input and output must have the same layout"
    return None if operands.whole(step, "axis") == 1 else "blocked: over channels only"


def _calls_softmax(step: Step, tile: Tile) -> tuple[Call, ...]:
    x, y = operands.data(step)
    logarithmic, axis = step.operator == "LogSoftmax", operands.whole(step, "axis")
    words: tuple[int | Operand, ...]
    if x.layout == "blocked":
        b = blocked(x, step.lanes)
        form, words = "blocked", _blocked_words(step, operands.chunks(step, b.images, b.pixels))
    else:
        inner = prod(x.shape[axis + 1 :])
        form = "last" if inner == 1 else "inner"
        words = (Operand(x.name), Operand(y.name), prod(x.shape[:axis]), x.shape[axis] if x.shape else 1, inner)
    make = operands.text(partial(softmax, step.lanes, form, logarithmic))
    return (Call(softmax_name(step.lanes, form, logarithmic), make, words),)


LRN = Algorithm(
    "lrn", ("LRN",), _accepts_response, operands.one_tile, operands.traffic_seconds, _calls_response, halves=True
)
SOFTMAX = Algorithm(
    "softmax", ("Softmax", "LogSoftmax"), _accepts_softmax, operands.one_tile, operands.traffic_seconds, _calls_softmax
)


def _add_lanes(k: Kernel, a: Vector) -> Vector:
    """Return the sum of all lanes, in every lane."""
    step = k.lanes // 2
    while step:
        a = a + k.shuffle(a, a, [lane ^ step for lane in range(k.lanes)])
        step //= 2
    return a


def _largest_lane(k: Kernel, a: Vector) -> Vector:
    """Return the largest lane, in every lane."""
    step = k.lanes // 2
    while step:
        a = k.maximum(a, k.shuffle(a, a, [lane ^ step for lane in range(k.lanes)]))
        step //= 2
    return a
