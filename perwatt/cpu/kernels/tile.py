"""The register tile: rows x columns of output in registers, fed by broadcasts of one operand and vectors of the other.

Every multiplication-heavy kernel (convolution, fully connected layer, Winograd's middle stage) runs on this loop:

    out[row, column·V + lane] += a[offset(entry) + row·row_stride + step] · b[entry, step, column·V + lane]

A row is a pixel (or an image, or a Winograd tile), a column is one vector of output channels. `entry` walks a table of
offsets into the input: channel blocks times kernel taps. So 1x1, kxk, strided, dilated and grouped convolution, the
first layer's planar input and matrix products differ only in their tables.
"""

from collections.abc import Sequence

from perwatt.cpu.ir import Kernel, Pointer, Vector, Whole


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
) -> list[Vector]:
    """Return the accumulators (row-major: row·columns + column) after all entries of the table.

    `a` is read at table[entry] + row·row_stride + step, `b` is packed [entry][step][columns·V].
    """
    width = columns * k.lanes
    with k.loop(0, entries, carry=accumulators, at_least_once=True) as loop:
        here = a + k.table_entry(table, loop.index)
        panel = b + loop.index * (steps * width)
        sums = list(loop.carried)
        for step in range(steps):
            weights = [k.load(panel, step * width + column * k.lanes) for column in range(columns)]
            for row in range(rows):
                pixel = k.broadcast(here, row * row_stride + step)
                for column in range(columns):
                    sums[row * columns + column] = k.multiply_add(pixel, weights[column], sums[row * columns + column])
        loop.carry(sums)
    return loop.results
