"""Reorder: tensors between ONNX's plain order and the blocked one, and blocked maps as blocked vectors.

    plain (N, C, H, W)   <->  [N][C/V][H·W][V]     V pixels of V channels are one square, transposed in registers
    plain (N, C)         <->  [C/V][N][V]          V channels are one vector already
    [N][C/V][H·W][V]      ->  [C/V·H·W][N][V]      FlattenBlocked, for a fully connected layer whose weights are in that
                                                   order: (channel block, pixel, lane)

Lanes behind the last channel become zeros.
"""

from collections.abc import Sequence
from enum import IntEnum
from functools import partial

from perwatt.cpu.ir import Index, Kernel, Module, Pointer, Vector
from perwatt.cpu.kernels import operands
from perwatt.cpu.kernels.operands import blocked
from perwatt.cpu.kernels.storage import FP32, Stored, load, store
from perwatt.plan.algorithm import Algorithm, Call, Operand, Step, Tile


class Slot(IntEnum):
    """The words of a call's arguments. Strides count floats."""

    INPUT = 0
    OUTPUT = 1
    IMAGES = 2
    FIRST_BLOCK = 3
    BLOCKS = 4
    PIXELS = 5
    CHUNKS = 6  # parts of the pixels of one image and block
    IMAGE_STRIDE = 7
    BLOCK_STRIDE = 8
    OUTPUT_IMAGE_STRIDE = 9
    OUTPUT_BLOCK_STRIDE = 10


def transpose(k: Kernel, rows: Sequence[Vector]) -> list[Vector]:
    """Return V vectors whose lane i is element j of row i; rows that are missing count as zeros.

    Interleaving the first half of the rows with the second, log2 V times, is a transposition.
    """
    lanes = k.lanes
    vectors = [*rows, *[k.constant(0.0)] * (lanes - len(rows))]
    low = [lane // 2 + lanes * (lane % 2) for lane in range(lanes)]
    high = [lane + lanes // 2 for lane in low]
    for _ in range(lanes.bit_length() - 1):
        pairs = [(vectors[i], vectors[i + lanes // 2]) for i in range(lanes // 2)]
        vectors = [k.shuffle(a, b, picked) for a, b in pairs for picked in (low, high)]
    return vectors


def square_name(lanes: int, rows: int, to_blocked: bool, short: bool, kind: Stored = FP32) -> str:
    """Return the name of the kernel that `squares` writes."""
    form = f"{'to' if to_blocked else 'from'}_blocked{'_short' if short else ''}"
    return f"reorder_{form}_{rows}_v{lanes}{operands.suffix(kind)}"


def squares(lanes: int, rows: int, to_blocked: bool, short: bool, kind: Stored = FP32) -> Module:
    """Return the kernel that reorders blocks of `rows` channels (V, or fewer in the last one).

    `short` is for fewer than V pixels; otherwise the last square overlaps the one before it. `kind` is how the blocked
    side is stored.
    """
    name, words = square_name(lanes, rows, to_blocked, short, kind), kind.words(lanes)
    module = Module(name, lanes)
    with module.kernel(name) as k:
        x, y, pixels, chunks = k.pointer(0), k.pointer(1), k.argument(Slot.PIXELS), k.argument(Slot.CHUNKS)
        blocks, first_block = k.argument(Slot.BLOCKS), k.argument(Slot.FIRST_BLOCK)
        first, last = k.share(k.argument(Slot.IMAGES) * blocks * chunks)
        squares_of_block = (pixels + (lanes - 1)) // lanes
        with k.loop(first, last) as tasks:
            line = tasks.index // chunks
            chunk = tasks.index - line * chunks
            image = line // blocks
            block = line - image * blocks + first_block
            source = x + (image * k.argument(Slot.IMAGE_STRIDE) + block * k.argument(Slot.BLOCK_STRIDE))
            target = y + (image * k.argument(Slot.OUTPUT_IMAGE_STRIDE) + block * k.argument(Slot.OUTPUT_BLOCK_STRIDE))
            square = chunk * squares_of_block // chunks
            with k.loop(square, (chunk + 1) * squares_of_block // chunks) as over_squares:
                pixel = k.minimum_index(over_squares.index * lanes, pixels - lanes)
                if short:
                    _short_square(k, source, target, pixels, rows, to_blocked, kind)
                elif to_blocked:
                    made = transpose(k, [k.load(source + pixel, pixels * row) for row in range(rows)])
                    for number, vector in enumerate(made):
                        store(k, kind, vector, target + pixel * words, number * words)
                else:
                    made = transpose(k, [load(k, kind, source + pixel * words, i * words) for i in range(lanes)])
                    for row in range(rows):
                        k.store(made[row], target + pixel, pixels * row)
    return module


def _short_square(
    k: Kernel, source: Pointer, target: Pointer, pixels: Index, rows: int, to_blocked: bool, kind: Stored
) -> None:
    lanes, words = k.lanes, kind.words(k.lanes)
    if to_blocked:
        made = transpose(k, [k.load_masked(source + pixels * row, pixels) for row in range(rows)])
        for number in range(lanes - 1):
            with k.when(pixels > number):
                store(k, kind, made[number], target, number * words)
    else:
        made = transpose(k, [load(k, kind, source, k.minimum_index(pixels - 1, i) * words) for i in range(lanes)])
        for row in range(rows):
            k.store_masked(made[row], target + pixels * row, pixels)


def vectors_name(lanes: int, rows: int, to_blocked: bool, source: Stored = FP32, target: Stored = FP32) -> str:
    """Return the name of the kernel that `vectors` writes."""
    form = "to" if to_blocked else "from"
    return f"reorder_vectors_{form}_blocked_{rows}_v{lanes}{operands.suffix(source, target)}"


def vectors(lanes: int, rows: int, to_blocked: bool, kind: Stored = FP32, made: Stored = FP32) -> Module:
    """Return the kernel that moves single vectors of which `rows` lanes count: one for each image, block and pixel.

    They are stored as `kind` where they come from and as `made` where they go; the plain side is FP32.
    """
    name = vectors_name(lanes, rows, to_blocked, kind, made)
    module = Module(name, lanes)
    with module.kernel(name) as k:
        x, y, images, pixels = k.pointer(0), k.pointer(1), k.argument(Slot.IMAGES), k.argument(Slot.PIXELS)
        first_block, image_stride = k.argument(Slot.FIRST_BLOCK), k.argument(Slot.IMAGE_STRIDE)
        out_image_stride, out_block_stride = k.argument(Slot.OUTPUT_IMAGE_STRIDE), k.argument(Slot.OUTPUT_BLOCK_STRIDE)
        # Blocks outside, pixels next, images inside: for FlattenBlocked, (block, pixel) is the output's block.
        first, last = k.share(k.argument(Slot.BLOCKS) * pixels)
        with k.loop(first, last) as tasks:
            block = tasks.index // pixels
            pixel = tasks.index - block * pixels
            block = block + first_block
            source = x + (block * k.argument(Slot.BLOCK_STRIDE) + pixel * kind.words(lanes))
            target = y + (block * pixels + pixel) * out_block_stride
            with k.loop(0, images) as over_images:
                here, there = source + over_images.index * image_stride, target + over_images.index * out_image_stride
                if rows == lanes:
                    store(k, made, load(k, kind, here), there)
                elif to_blocked:
                    store(k, made, k.load_lanes(here, k.lane_range(0, rows)), there)
                else:
                    k.store_lanes(load(k, kind, here), there, k.lane_range(0, rows))
    return module


def _accepts(step: Step) -> str | None:
    source, target = operands.data(step)
    if len(source.shape) < 2:
        return f"needs a batch and a channel axis, got shape {source.shape}"
    if step.operator == "FlattenBlocked":
        return None if operands.everything_is(step, "blocked") else "input and output must be blocked"
    if source.layout == target.layout:
        return "input and output have the same layout"
    return None


def _parts(channels: int, lanes: int) -> list[tuple[int, int, int]]:
    """Return (channels used in a block, first block, blocks): the whole blocks, then the last one if it is not full."""
    full, rest = divmod(channels, lanes)
    return [part for part in ((lanes, 0, full), (rest, full, 1)) if part[0] and part[2]]


def _calls(step: Step, tile: Tile) -> tuple[Call, ...]:
    lanes, (source, target) = step.lanes, operands.data(step)
    addresses = (Operand(source.name), Operand(target.name))
    if step.operator == "FlattenBlocked":
        x = blocked(source, lanes)
        image_words = operands.words(target, lanes)
        words = (x.images, 0, x.blocks, x.pixels, 1, x.image_stride, x.block_stride, image_words, target.block_stride)
        form = (lanes, lanes, True, *operands.storage(step))
        return (Call(vectors_name(*form), operands.text(partial(vectors, *form)), (*addresses, *words)),)
    to_blocked = target.layout == "blocked"
    stores = operands.storage(step)
    kind = stores[1] if to_blocked else stores[0]
    maps = blocked(target if to_blocked else source, lanes)
    pixels = maps.pixels
    plain_strides, strides = (maps.channels * pixels, lanes * pixels), (maps.image_stride, maps.block_stride)
    both = (*plain_strides, *strides) if to_blocked else (*strides, *plain_strides)
    calls = []
    for rows, first, blocks in _parts(maps.channels, lanes):
        if pixels == 1:
            moved, parts = (lanes, rows, to_blocked, *stores), 1
            name, make = vectors_name(*moved), partial(vectors, *moved)
        else:
            short = pixels < lanes
            turned = (lanes, rows, to_blocked, short, kind)
            name, make = square_name(*turned), partial(squares, *turned)
            parts = operands.chunks(step, maps.images * blocks, max(1, pixels // (4 * lanes)))
        calls.append(Call(name, operands.text(make), (*addresses, maps.images, first, blocks, pixels, parts, *both)))
    return tuple(calls)


REORDER = Algorithm(
    "reorder", ("Reorder", "FlattenBlocked"), _accepts, operands.one_tile, operands.traffic_seconds, _calls, halves=True
)
