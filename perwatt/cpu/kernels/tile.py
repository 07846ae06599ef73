"""The register tile: rows x columns of output in registers, fed by broadcasts of one operand and vectors of the other.

Every multiplication-heavy kernel (convolution, fully connected layer, Winograd's middle stage) runs on this loop:

    out[row, column·V + lane] += a[offset(entry) + row·row_stride + step] · b[entry, step, column·V + lane]

A row is a pixel (or an image, or a Winograd tile), a column is one vector of output channels. `entry` walks a table of
offsets into the input: channel blocks times kernel taps. So 1x1, kxk, strided, dilated and grouped convolution, the
first layer's planar input and matrix products differ only in their tables.

Weights stored in halves are converted as they are loaded. With BF16 products a word of four bytes is a pair of numbers
on both sides, so the loop is the same with half the steps: b is packed [entry][pair][column·V + lane][2].

With FP16 products a register holds two columns, and sums of LONGEST_HALF_RUN products before they are added in FP32.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from perwatt.cpu.ir import Index, Kernel, Pointer, Vector, Whole
from perwatt.cpu.kernels.storage import FP32, Numbers, broadcast_half, dot_pairs, load, multiply_halves, widened

# Products that are summed in one go before a sum is worth the parting.
LONGEST_RUN = 512
# In FP16 the error of a sum passes that of its rounded factors after some dozens.
LONGEST_HALF_RUN = 32
# RMS error over RMS result of sums in runs of that length, by drawing normal numbers.
HALF_SUMS_ERROR = 8.3e-4
FP32_NUMBERS = Numbers()
LINE_FLOATS = 16
# Cache lines of the next panel that are asked for at most while an entry of this one is multiplied.
MOST_LINES_AHEAD = 16
# The same where one tile alone uses a panel: then the weights pass by once, and the processor itself sees them come.
LINES_ALONE = 2


@dataclass(frozen=True)
class Ahead:
    """What to ask memory for while a tile is multiplied: so many cache lines an entry, from `place` on."""

    place: Pointer
    lines: Index


def ask_for(k: Kernel, place: Pointer, floats: int, *, write: bool = False) -> None:
    """Ask for every cache line of a run of floats that a tile will read or write when its products are done."""
    for offset in range(0, floats, LINE_FLOATS):
        k.prefetch(place, offset, write=write)


def panel_ahead(
    k: Kernel, b: Pointer, following: Whole, tile: Index, tiles: Index, entries: Index, entry_floats: int
) -> Ahead:  # fmt: skip
    """Return `multiply`'s `ahead` for one of the `tiles` that share the panel b; the next panel is `following` on.

    Each tile asks for its part of the next panel, so that it has come from memory when its turn comes: few tiles for
    much at a time, many for a line an entry, the last of them for what is there already, which costs nothing.
    """
    panel = -(-entry_floats // LINE_FLOATS)
    each = k.minimum_index((tiles + (panel - 1)) // tiles, MOST_LINES_AHEAD)
    each = k.choose_index(tiles < 2, LINES_ALONE, each)
    lines = tile * each
    return Ahead(k.choose_pointer(lines < panel, b + following + lines * entries * LINE_FLOATS, b), each)


def multiply(
    k: Kernel,
    accumulators: Sequence[Vector],
    a: Pointer,
    b: Pointer,
    table: Pointer,
    entries: Whole,
    *,
    rows: int,
    columns: int,
    row_stride: int,
    steps: int,
    deep: bool = False,
    longest: int = LONGEST_RUN,
    numbers: Numbers = FP32_NUMBERS,
    ahead: Ahead | None = None,
) -> list[Vector]:
    """Return the accumulators (row-major: row·columns + column) after all entries of the table.

    `a` is read at table[entry] + row·row_stride + step, `b` is packed [entry][step][columns·V].

    `deep` sums runs of `longest` products by themselves, and then the runs: the error of a sum in one go grows with
    the root of its length, at 25088 terms to ten times this one's. The runs' totals wait on the stack.

    `numbers` says how b is stored; with pairs of BF16 on both sides, steps and strides count pairs.

    `ahead` is what to ask memory for meanwhile, see `panel_ahead`.
    """
    if numbers.halves:
        return _in_halves(k, accumulators, a, b, table, entries, rows, columns, row_stride, steps)
    if not deep:
        return _run(k, accumulators, a, b, table, 0, entries, rows, columns, row_stride, steps, numbers, ahead)
    lanes, run = k.lanes, max(1, longest // steps)
    totals = k.scratch(rows * columns * lanes)
    for number, value in enumerate(accumulators):
        k.store(value, totals, number * lanes)
    zeros = [k.constant(0.0)] * (rows * columns)
    with k.loop(0, entries, run, at_least_once=True) as runs:
        last = k.minimum_index(runs.index + run, entries)
        sums = _run(k, zeros, a, b, table, runs.index, last, rows, columns, row_stride, steps, numbers, ahead)
        for number, value in enumerate(sums):
            k.store(k.load(totals, number * lanes) + value, totals, number * lanes)
    return [k.load(totals, number * lanes) for number in range(rows * columns)]


def _run(
    k: Kernel, accumulators: Sequence[Vector], a: Pointer, b: Pointer, table: Pointer, first: Whole, last: Whole,
    rows: int, columns: int, row_stride: int, steps: int, numbers: Numbers, ahead: Ahead | None,
) -> list[Vector]:  # fmt: skip
    """Return the accumulators after the entries [first, last) of the table, of which there is at least one."""
    kind, vector = FP32 if numbers.pairs else numbers.weights, numbers.panel_words(k.lanes)
    width, multiply_add = columns * vector, partial(dot_pairs, k) if numbers.pairs else k.multiply_add
    with k.loop(first, last, carry=accumulators, at_least_once=True) as loop:
        here = a + k.table_entry(table, loop.index)
        panel = b + loop.index * (steps * width)
        if ahead is not None:
            with k.loop(0, ahead.lines, at_least_once=True) as asking:
                k.prefetch(ahead.place, (loop.index * ahead.lines + asking.index) * LINE_FLOATS, locality=2)
        sums = list(loop.carried)
        for step in range(steps):
            weights = [load(k, kind, panel, step * width + column * vector) for column in range(columns)]
            for row in range(rows):
                pixel = k.broadcast(here, row * row_stride + step)
                for column in range(columns):
                    sums[row * columns + column] = multiply_add(pixel, weights[column], sums[row * columns + column])
        loop.carry(sums)
    return loop.results


def _in_halves(
    k: Kernel, accumulators: Sequence[Vector], a: Pointer, b: Pointer, table: Pointer, entries: Whole, rows: int,
    columns: int, row_stride: int, steps: int,
) -> list[Vector]:  # fmt: skip
    """Return the accumulators after all entries, by FP16 products; steps and strides count words of two numbers."""
    lanes, run, width, pairs = k.lanes, max(1, LONGEST_HALF_RUN // (2 * steps)), columns * k.lanes // 2, columns // 2
    totals = k.scratch(rows * columns * lanes)
    for number, value in enumerate(accumulators):
        k.store(value, totals, number * lanes)
    with k.loop(0, entries, run, at_least_once=True) as runs:
        last = k.minimum_index(runs.index + run, entries)
        with k.loop(runs.index, last, carry=[k.constant(0.0)] * (rows * pairs), at_least_once=True) as loop:
            here = a + k.table_entry(table, loop.index)
            panel = b + loop.index * (2 * steps * width)
            sums = list(loop.carried)
            for step in range(2 * steps):
                weights = [k.load(panel, step * width + pair * lanes) for pair in range(pairs)]
                for row in range(rows):
                    pixel = broadcast_half(k, here, row * row_stride + step // 2, step % 2)
                    for pair in range(pairs):
                        sums[row * pairs + pair] = multiply_halves(k, pixel, weights[pair], sums[row * pairs + pair])
            loop.carry(sums)
        for number, value in enumerate(loop.results):
            for half, wide in enumerate(widened(k, value)):
                place = (number * 2 + half) * lanes
                k.store(k.load(totals, place) + wide, totals, place)
    return [k.load(totals, number * lanes) for number in range(rows * columns)]
