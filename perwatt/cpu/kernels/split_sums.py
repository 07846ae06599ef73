"""Convolution and fully connected layers whose sums are split, for one of two reasons.

Outputs too few to keep every thread busy get more tasks; and where the weights of a register tile's outputs are more
than L2 holds, a part of them stays there while all pixels or images pass by.

A sum runs over entries (channel blocks times taps) of a table, as in `tile`; cut into parts, each part of a tile of
outputs is a task of its own and writes its sums to scratch. A second call, behind the barrier, adds the parts in their
order, whoever made them, and what follows: bias, residual, activation. Both calls take the words of the direct kernel.
"""

from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from math import prod

from perwatt.cpu.ir import Module
from perwatt.cpu.kernels import operands
from perwatt.cpu.kernels.activation import Activation, activate
from perwatt.cpu.kernels.convolution import DIRECT, SLOTS, Slot
from perwatt.cpu.kernels.dense import (
    CACHE_BYTES_PER_S,
    FLOPS_PER_S_AND_LANE,
    MEMORY_BYTES_PER_S,
    REGISTERS,
    activation_of,
    blocks,
    has_tail,
    known,
    operand,
    read_convolution,
    register_tiles,
    residual_of,
)
from perwatt.cpu.kernels.fully_connected import FULLY_CONNECTED
from perwatt.cpu.kernels.tile import LONGEST_RUN, multiply, panel_ahead
from perwatt.plan.algorithm import Algorithm, Call, Scratch, Step, Tile, Word

# With so many full tiles of outputs for each thread, one more or less to a thread is lost in the whole.
ENOUGH_TILES = 4
# What waiting for all threads once more costs, for estimates.
BARRIER_S = 1e-6


class More(IntEnum):
    """The words behind those of the direct kernel."""

    SUMS = SLOTS  # scratch [part][image][block of V output channels][pixel][V]
    PARTS = SLOTS + 1
    BLOCKS = SLOTS + 2  # of V output channels, over all groups and outputs


@dataclass(frozen=True)
class _Work:
    """A step in numbers: lines of pixels in each image, vectors of output channels in each group, entries of a sum.

    Of a fully connected layer the images are the pixels of one line.
    """

    images: int
    lines: int
    pixels: int
    groups: int
    each: int
    entries: int
    across: int  # input pixels from one output pixel to the next

    @property
    def vectors(self) -> int:
        """Vectors of results."""
        return self.images * self.lines * self.pixels * self.groups * self.each


def _work(step: Step) -> _Work:
    x, lanes = operand(step, 0), step.lanes
    if step.operator == "FusedGemm":
        return _Work(1, 1, x.shape[0], 1, blocks(step.outputs[0].shape[1], lanes), blocks(x.shape[1], lanes), 1)
    c = read_convolution(step)
    lines, pixels = (1, c.out_height * c.out_width) if c.pointwise else (c.out_height, c.out_width)
    entries = blocks(c.channels // c.groups, lanes) * prod(c.kernel)
    return _Work(c.images, lines, pixels, c.groups, blocks(c.outputs // c.groups, lanes), entries, c.strides[1])


def partial_sums_name(lanes: int, rows: int, columns: int, across: int, deep: bool) -> str:
    """Return the name of the kernel that `partial_sums` writes."""
    return f"partial_sums_{lanes}_{rows}x{columns}_across{across}{'_deep' if deep else ''}"


def partial_sums(lanes: int, rows: int, columns: int, across: int, deep: bool) -> Module:
    """Return the kernel that sums each part of each tile of outputs; the last tile of a line overlaps its neighbour."""
    name = partial_sums_name(lanes, rows, columns, across, deep)
    module = Module(name, lanes)
    with module.kernel(name) as k:
        table, entries, parts = k.pointer(Slot.TABLE), k.argument(Slot.ENTRIES), k.argument(More.PARTS)
        images, lines, pixels = k.argument(Slot.IMAGES), k.argument(Slot.ROWS), k.argument(Slot.PIXELS)
        sums, plane = k.pointer(More.SUMS), lines * pixels * lanes
        tiles_across = (pixels + (rows - 1)) // rows
        tiles, entry_floats = lines * tiles_across, lanes * columns * lanes
        # Neighbouring tasks share weights, and neighbouring panels of weights lie side by side.
        first, last = k.share(k.argument(Slot.GROUPS) * parts * images * tiles)
        with k.loop(first, last) as tasks:
            panel = tasks.index // (images * tiles)
            place = tasks.index - panel * (images * tiles)
            group = panel // parts
            part = panel - group * parts
            image = place // tiles
            tile = place - image * tiles
            line = tile // tiles_across
            pixel = k.minimum_index((tile - line * tiles_across) * rows, pixels - rows)
            entry = part * entries // parts
            count = (part + 1) * entries // parts - entry
            x = k.pointer(Slot.INPUT) + k.table_entry(k.pointer(Slot.GROUP_INPUTS), group)
            x = x + (image * k.argument(Slot.IMAGE_STRIDE) + line * k.argument(Slot.ROW_STRIDE))
            weights = k.pointer(Slot.WEIGHTS) + (group * entries + entry) * entry_floats
            made = multiply(
                k, [k.constant(0.0)] * (rows * columns), x + pixel * (across * lanes), weights,
                table + entry * 2, count, rows=rows, columns=columns, row_stride=across * lanes, steps=lanes, deep=deep,
                ahead=panel_ahead(k, weights, count * entry_floats, place, images * tiles, count, entry_floats),
            )  # fmt: skip
            block = k.table_entry(k.pointer(Slot.CHANNEL_BLOCKS), group)
            target = sums + ((part * images + image) * k.argument(More.BLOCKS) + block) * plane
            target = target + (line * pixels + pixel) * lanes
            for column in range(columns):
                for row in range(rows):
                    k.store(made[row * columns + column], target + plane * column, row * lanes)
    return module


def joined_sums_name(lanes: int, activation: Activation, residual: bool, tail: bool, parted: bool) -> str:
    """Return the name of the kernel that `joined_sums` writes."""
    more = ("_residual" if residual else "") + ("_tail" if tail else "") + ("_parted" if parted else "")
    return f"joined_sums_{lanes}_{activation.label}{more}"


def joined_sums(lanes: int, activation: Activation, residual: bool, tail: bool, parted: bool) -> Module:
    """Return the kernel that makes the output of the parts' sums."""
    name = joined_sums_name(lanes, activation, residual, tail, parted)
    module = Module(name, lanes)
    with module.kernel(name) as k:
        images, channel_blocks, parts = k.argument(Slot.IMAGES), k.argument(More.BLOCKS), k.argument(More.PARTS)
        pixels = k.argument(Slot.ROWS) * k.argument(Slot.PIXELS)
        first, last = k.share(images * channel_blocks * pixels)
        part_stride = images * channel_blocks * pixels * lanes
        with k.loop(first, last) as vectors:
            plane = vectors.index // pixels
            place = (vectors.index - plane * pixels) * lanes
            image = plane // channel_blocks
            block = plane - image * channel_blocks
            here = k.pointer(More.SUMS) + vectors.index * lanes
            with k.loop(0, parts, carry=[k.load(k.pointer(Slot.BIAS), block * lanes)], at_least_once=True) as over:
                over.carry([over.carried[0] + k.load(here, over.index * part_stride)])
            value = over.results[0]
            if residual:
                offset = image * k.argument(Slot.RESIDUAL_IMAGE_STRIDE) + place
                offset = offset + k.table_entry(k.pointer(Slot.RESIDUAL_BLOCKS), block)
                value = value + k.load(k.pointer(Slot.RESIDUAL), offset)
            value = activate(k, value, activation)
            if tail:
                used = k.lane_range(0, k.table_entry(k.pointer(Slot.USED_LANES), block))
                value = k.select(used, value, 0.0)
            y = k.pointer(Slot.OUTPUT)
            if parted:
                target = k.table_pointer(y, block * 2) + image * k.table_entry(y, block * 2 + 1)
            else:
                offset = k.table_entry(k.pointer(Slot.OUTPUT_BLOCKS), block)
                target = y + (image * k.argument(Slot.OUTPUT_IMAGE_STRIDE) + offset)
            k.store(value, target, place)
    return module


# -- planning


def _whole(step: Step) -> Algorithm:
    """Return the algorithm that does the same with whole sums."""
    return FULLY_CONNECTED if step.operator == "FusedGemm" else DIRECT


def _accepts(step: Step) -> str | None:
    if reason := _whole(step).accepts(step):
        return reason
    work = _work(step)
    if work.entries == 1:
        return "sums of one block of channels cannot be split"
    if _spills(step, work):
        return None
    if step.threads == 1:
        return "one thread has nobody to share a sum with"
    if work.vectors >= ENOUGH_TILES * step.threads * _full_tile(step.lanes):
        return "the outputs alone keep every thread busy, and L2 holds their weights"
    return None


def _cached_bytes(step: Step) -> float:
    """Return how many bytes of weights should lie in L2 at a time, beside what passes by."""
    return 0.5 * (step.machine.l2_bytes or 1 << 20)


def _panel_bytes(work: _Work, lanes: int, columns: int) -> int:
    """Return the bytes of the weights of `columns` vectors of outputs."""
    return 4 * work.entries * lanes * columns * lanes


def _spills(step: Step, work: _Work) -> bool:
    """Return whether weights are read more than once, and L2 does not hold those of the best register tile."""
    rows, columns = next(register_tiles(step.lanes, work.pixels, work.each))
    again = work.images * work.lines * -(-work.pixels // rows) > 1
    return again and _panel_bytes(work, step.lanes, columns) > _cached_bytes(step)


def _full_tile(lanes: int) -> int:
    """Return how many vectors of results a good register tile holds."""
    return REGISTERS[lanes] * 3 // 4


def _tiles(step: Step) -> list[Tile]:
    work = _work(step)
    found: list[tuple[float, int, int]] = []
    for rows, columns in register_tiles(step.lanes, work.pixels, work.each):
        if rows * columns < min(8, work.pixels * work.each) and rows < work.pixels:
            continue
        waste = -(-work.pixels // rows) * rows / work.pixels * (-(-work.each // columns) * columns / work.each)
        found.append((waste * (1 + 0.15 * (rows + columns) / (rows * columns)), rows, columns))
    tiles: list[Tile] = []
    for _, rows, columns in sorted(found)[:4]:
        whole = _tasks(work, rows, columns)
        if _spills(step, work):
            fitting = -(-_panel_bytes(work, step.lanes, columns) // int(_cached_bytes(step)))
            counts = {fitting, 2 * fitting}
        else:
            counts = {-(-step.threads // whole), -(-2 * step.threads // whole), step.threads}
        for parts in sorted({min(work.entries, max(2, count)) for count in counts}):
            tiles.append({"rows": rows, "columns": columns, "parts": parts})
    return tiles


def _tasks(work: _Work, rows: int, columns: int) -> int:
    """Return how many register tiles there are."""
    return work.images * work.lines * -(-work.pixels // rows) * work.groups * -(-work.each // columns)


def _seconds(step: Step, tile: Tile) -> float:
    work, lanes, threads = _work(step), step.lanes, step.threads
    rows, columns, parts = tile["rows"], tile["columns"], tile["parts"]
    whole = _tasks(work, rows, columns)
    balance = -(-whole * parts // threads) * threads / (whole * parts)
    # Few sums at once wait for each other, and for loads.
    loads = max(1.0, 1.6 * (rows + columns) / (rows * columns)) if rows > 1 else 1.0
    loads *= max(1.0, 8 / (rows * columns))
    products = whole * rows * columns * work.entries * lanes * lanes
    arithmetic_s = 2 * products * loads * balance / (FLOPS_PER_S_AND_LANE * lanes * threads)
    weight_bytes = known(step, 1).nbytes
    memory_s = weight_bytes / MEMORY_BYTES_PER_S / min(threads, 2) * balance
    memory_s *= 1.0 if step.operator == "FusedGemm" else 0.5
    cache_s = weight_bytes * whole / max(1, work.groups * -(-work.each // columns)) / CACHE_BYTES_PER_S / threads
    joined_s = 4 * lanes * work.vectors * (2 * parts + 1) / CACHE_BYTES_PER_S / min(threads, work.vectors)
    copied = 0.0
    if step.operator == "FusedConv" and any(read_convolution(step).pads):
        copied = 8 * prod(operand(step, 0).shape) / CACHE_BYTES_PER_S
    return max(arithmetic_s, memory_s, cache_s) + joined_s + BARRIER_S + copied


def _sums_at(step: Step, tile: Tile) -> int:
    """Return where the sums begin in scratch, behind the framed input."""
    return -(-_whole(step).scratch_bytes(step, tile) // 64) * 64


def _scratch_bytes(step: Step, tile: Tile) -> int:
    return _sums_at(step, tile) + 4 * step.lanes * _work(step).vectors * tile["parts"]


def _calls(step: Step, tile: Tile) -> tuple[Call, ...]:
    work, lanes = _work(step), step.lanes
    uncut = {**tile, "pixel_chunks": 1, "group_chunks": 1, "pixels_outside": 0}
    *before, direct = _whole(step).calls(step, uncut)
    words: tuple[Word, ...] = (
        *direct.words, Scratch(_sums_at(step, tile)), tile["parts"], work.groups * work.each,
    )  # fmt: skip
    deep = -(-work.entries // tile["parts"]) * lanes > LONGEST_RUN
    split = (lanes, tile["rows"], tile["columns"], work.across, deep)
    join = (lanes, activation_of(step), residual_of(step) is not None, has_tail(step), len(step.outputs) > 1)
    return (
        *before,
        Call(partial_sums_name(*split), operands.text(partial(partial_sums, *split)), words),
        Call(joined_sums_name(*join), operands.text(partial(joined_sums, *join)), words),
    )


SPLIT_SUMS = Algorithm(
    "split sums", ("FusedConv", "FusedGemm"), _accepts, _tiles, _seconds, _calls, _scratch_bytes
)  # fmt: skip
