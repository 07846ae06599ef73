"""Convolution by Fourier transforms of overlapping N x N tiles (overlap and save), stride 1, any window smaller than N.

Three stages as in Winograd's method: transform of the input tiles, a product over channels for each frequency, inverse
transform with bias, residual and activation. A tile gives N + 1 - window outputs along each dimension. Products of
complex numbers are done in registers, four real ones each.

Two ways to spread it over a team:
  fused    each thread takes blocks of tiles through all three stages in a scratch of its own.
  shared   step one transforms every tile into a buffer all threads see; in step two each thread has a part of the
           output channels, so the transformed weights are read once in all. For few tiles.

Layouts, in floats (V lanes, T tiles in a block, C input and K output channels in blocks of V):
  transformed input   [C/V][T][N²][V], with one vector behind each tile against aliasing in L1
  transformed weights [K group]: 4 real frequencies [C][columns·V], then the complex ones [C][re, im][columns·V]
  products            [columns][T][N²][V], padded likewise
The order of the N² planes is that of fft_transform.frequencies.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from perwatt.cpu.ir import Index, Kernel, Module, Pointer, Vector, Whole
from perwatt.cpu.kernels.activation import NO_ACTIVATION, Activation, activate
from perwatt.cpu.kernels.fft_transform import (
    REAL_PLANES,
    complex_transform,
    inverse_real_transform,
    real_transform,
)
from perwatt.cpu.kernels.tile import multiply


class Slot(IntEnum):
    """The words of a step's arguments. Strides and offsets count floats."""

    INPUT = 0
    WEIGHTS = 1
    BIAS = 2
    OUTPUT = 3
    RESIDUAL = 4
    SCRATCH = 5  # fused: one part per thread; shared: the products' part per thread
    SCRATCH_STRIDE = 6
    TRANSFORMED = 7  # shared: the transformed input of all tiles (fused: unused)
    TABLE = 8  # offset of each block of V input channels in the transformed input
    CHANNEL_BLOCKS = 9  # blocks of V input channels
    HEIGHT = 10
    WIDTH = 11
    TILES_DOWN = 12
    TILES_ACROSS = 13
    TILES = 14  # of all images
    BLOCK = 15  # tiles in a block, at least the register tile's rows
    IMAGE_STRIDE = 16
    BLOCK_STRIDE = 17  # of the input, from one block of V channels to the next
    PAD_TOP = 18
    PAD_LEFT = 19
    OUTPUT_HEIGHT = 20
    OUTPUT_WIDTH = 21
    OUTPUT_IMAGE_STRIDE = 22
    OUTPUT_BLOCKS = 23  # table: offset of each block of V output channels
    RESIDUAL_IMAGE_STRIDE = 24
    RESIDUAL_BLOCKS = 25
    GROUPS = 26  # register-wide groups of output channels
    FIRST_BLOCKS = 27  # table: the first block of V output channels of each group
    GROUP_BLOCKS = 28  # blocks of V input channels that one output channel reads
    GROUP_INPUTS = 29  # table: where in the transformed input each group's channels begin
    STEP_DOWN = 30  # output rows of a tile
    STEP_ACROSS = 31


SLOTS = len(Slot)


@dataclass(frozen=True)
class Shape:
    """What an FFT kernel is specialised on: tile, register tile (of complex products), what follows."""

    lanes: int
    size: int
    rows: int
    columns: int
    activation: Activation = NO_ACTIVATION
    residual: bool = False

    @property
    def stem(self) -> str:
        """The common part of the exported functions' names."""
        tail = f"{self.activation.label}{'_residual' if self.residual else ''}"
        return f"fft_{self.lanes}_{self.size}_{self.rows}x{self.columns}_{tail}"

    @property
    def tile_floats(self) -> int:
        """Floats of one transformed tile of V channels, with the vector that keeps tiles off the same cache sets."""
        return (self.size * self.size + 1) * self.lanes


def fft_fused(shape: Shape) -> Module:
    """Return the module of the kernel that takes blocks of tiles through all three stages."""
    module = Module(f"{shape.stem}_fused", shape.lanes)
    with module.kernel(f"{shape.stem}_fused") as k:
        tiles, block, channel_blocks = (k.argument(s) for s in (Slot.TILES, Slot.BLOCK, Slot.CHANNEL_BLOCKS))
        v = k.pointer(Slot.SCRATCH) + k.thread * k.argument(Slot.SCRATCH_STRIDE)
        m = v + channel_blocks * block * shape.tile_floats
        first, last = k.share((tiles + (block - 1)) // block)
        with k.loop(first, last) as blocks:
            tile = blocks.index * block
            count = k.minimum_index(block, tiles - tile)
            _transform_inputs(k, shape, v, block, tile, tile, tile + count, 0, channel_blocks)
            _products_and_outputs(k, shape, v, m, block, tile, count, 0, k.argument(Slot.GROUPS))
    return module


def fft_shared(shape: Shape) -> Module:
    """Return the module of the two kernels that share one transformed input: `..._input` and `..._output`."""
    module = Module(f"{shape.stem}_shared", shape.lanes)
    with module.kernel(f"{shape.stem}_shared_input") as k:
        tiles, block, channel_blocks = (k.argument(s) for s in (Slot.TILES, Slot.BLOCK, Slot.CHANNEL_BLOCKS))
        first, last = k.share(tiles * channel_blocks)
        with k.loop(first, last) as tasks:
            channel = tasks.index // tiles
            tile = tasks.index - channel * tiles
            _transform_inputs(k, shape, k.pointer(Slot.TRANSFORMED), block, 0, tile, tile + 1, channel, channel + 1)
    with module.kernel(f"{shape.stem}_shared_output") as k:
        tiles, block = k.argument(Slot.TILES), k.argument(Slot.BLOCK)
        m = k.pointer(Slot.SCRATCH) + k.thread * k.argument(Slot.SCRATCH_STRIDE)
        first, last = k.share(k.argument(Slot.GROUPS))
        _products_and_outputs(k, shape, k.pointer(Slot.TRANSFORMED), m, block, 0, tiles, first, last)
    return module


def _place(k: Kernel, tile: Index) -> tuple[Index, Index, Index]:
    """Return (image, first output row, first output column) of a tile of the whole batch."""
    across, down = k.argument(Slot.TILES_ACROSS), k.argument(Slot.TILES_DOWN)
    line = tile // across
    image = line // down
    top, left = line - image * down, tile - line * across
    return image, top * k.argument(Slot.STEP_DOWN), left * k.argument(Slot.STEP_ACROSS)


def _transform_inputs(
    k: Kernel, shape: Shape, v: Pointer, block: Index, origin: Whole, first: Whole, last: Whole,
    first_channel: Whole, last_channel: Whole,
) -> None:  # fmt: skip
    """Transform tiles [first, last) of channel blocks [first_channel, last_channel); `origin` is tile 0 of v.

    Half done are the rows: [row][N][V], of each row the two real columns, then real and imaginary parts in turn.
    """
    size, lanes = shape.size, shape.lanes
    height, width = k.argument(Slot.HEIGHT), k.argument(Slot.WIDTH)
    x, image_stride, block_stride = k.pointer(Slot.INPUT), k.argument(Slot.IMAGE_STRIDE), k.argument(Slot.BLOCK_STRIDE)
    half_done, framed = k.scratch(size * size * lanes), k.scratch(size * lanes)
    zero = k.constant(0.0)
    with k.loop(first, last) as over_tiles:
        image, down, across = _place(k, over_tiles.index)
        top, left = down - k.argument(Slot.PAD_TOP), across - k.argument(Slot.PAD_LEFT)
        inside = (left >= 0) & (left + size <= width)
        column_first, column_last = k.maximum_index(0 - left, 0), k.minimum_index(width - left, size)
        with k.when(inside.equals_false()):
            for column in range(size):  # those outside the map stay zero for all rows
                k.store(zero, framed, column * lanes)
        corner = x + (image * image_stride + (top * width + left) * lanes)
        with k.loop(first_channel, last_channel) as over_channels:
            channel = over_channels.index
            source = corner + channel * block_stride
            with k.loop(0, size, at_least_once=True) as over_rows:
                row = over_rows.index
                there = (row + top >= 0) & (row + top < height)
                line, target = source + row * width * lanes, half_done + row * (size * lanes)
                with k.when(there.equals_false()):
                    for column in range(size):
                        k.store(zero, target, column * lanes)
                with k.when(there):
                    with k.when(inside.equals_false()), k.loop(column_first, column_last) as columns:
                        k.store(k.load(line, columns.index * lanes), framed, columns.index * lanes)
                    pixels = k.choose_pointer(inside, line, framed)
                    values = [k.load(pixels, column * lanes) for column in range(size)]
                    ahead, between, behind = real_transform(k, values)
                    k.store(ahead, target)
                    k.store(behind, target, lanes)
                    for column, value in enumerate(between, start=1):
                        _store_complex(k, value, target + 2 * column * lanes)
            place = (channel * block + (over_tiles.index - origin)) * shape.tile_floats
            _transform_columns(k, shape, half_done, v + place)


def _transform_columns(k: Kernel, shape: Shape, half_done: Pointer, target: Pointer) -> None:
    """Transform the columns of half-done rows into the planes of one tile."""
    size, lanes, half = shape.size, shape.lanes, shape.size // 2
    pitch = size * lanes
    with k.loop(1, half, at_least_once=True) as over_columns:
        source = half_done + over_columns.index * (2 * lanes)
        column = target + (over_columns.index - 1) * (2 * pitch)
        values = [_load_complex(k, source + row * pitch) for row in range(size)]
        for down, value in enumerate(complex_transform(k, values, -1)):
            _store_complex(k, value, column + (REAL_PLANES + 2 * down) * lanes)
    for number in range(2):
        reals = [k.load(half_done, row * pitch + number * lanes) for row in range(size)]
        first, between, last = real_transform(k, reals)
        k.store(first, target, 2 * number * lanes)
        k.store(last, target, (2 * number + 1) * lanes)
        column = target + _half_column(size, number) * lanes
        for down, value in enumerate(between):
            _store_complex(k, value, column + 2 * down * lanes)


def _half_column(size: int, number: int) -> int:
    """Return the first plane of the complex frequencies of column 0 (number 0) or N/2 (number 1)."""
    half = size // 2
    return REAL_PLANES + 2 * size * (half - 1) + number * 2 * (half - 1)


def _load_complex(k: Kernel, place: Pointer) -> tuple[Vector, Vector]:
    return k.load(place), k.load(place, k.lanes)


def _store_complex(k: Kernel, value: tuple[Vector, Vector], place: Pointer) -> None:
    k.store(value[0], place)
    k.store(value[1], place, k.lanes)


def multiply_complex(
    k: Kernel, accumulators: Sequence[Vector], a: Pointer, b: Pointer, table: Pointer, entries: Whole, *,
    rows: int, columns: int, row_stride: int,
) -> list[Vector]:  # fmt: skip
    """Return complex sums, as tile.multiply does real ones, over all entries of the table and V steps in each.

    Accumulators are row-major, the real and then the imaginary part of each row and column. `a` is read at
    table[entry] + row·row_stride + step, its imaginary part V floats behind; `b` is packed
    [entry][step][re, im][columns·V].
    """
    lanes = k.lanes
    width = columns * lanes
    with k.loop(0, entries, carry=accumulators, at_least_once=True) as loop:
        here = a + k.table_entry(table, loop.index)
        panel = b + loop.index * (2 * lanes * width)
        sums = list(loop.carried)
        for step in range(lanes):
            real = [k.load(panel, 2 * step * width + column * lanes) for column in range(columns)]
            imaginary = [k.load(panel, (2 * step + 1) * width + column * lanes) for column in range(columns)]
            for row in range(rows):
                ours = range(2 * row * columns, 2 * (row + 1) * columns, 2)
                value = k.broadcast(here, row * row_stride + step)
                for i, b_real, b_imaginary in zip(ours, real, imaginary, strict=True):
                    sums[i] = k.multiply_add(value, b_real, sums[i])
                    sums[i + 1] = k.multiply_add(value, b_imaginary, sums[i + 1])
                value = k.broadcast(here, row * row_stride + lanes + step)
                for i, b_real, b_imaginary in zip(ours, real, imaginary, strict=True):
                    sums[i] = k.multiply_add(-value, b_imaginary, sums[i])
                    sums[i + 1] = k.multiply_add(value, b_real, sums[i + 1])
        loop.carry(sums)
    return loop.results


def _products_and_outputs(
    k: Kernel, shape: Shape, v: Pointer, m: Pointer, block: Index, tile: Whole, count: Index,
    first_group: Whole, last_group: Whole,
) -> None:  # fmt: skip
    """Multiply tiles [tile, tile + count) with the channel groups' weights and write their outputs."""
    lanes, rows, columns, pitch = shape.lanes, shape.rows, shape.columns, shape.tile_floats
    planes = shape.size * shape.size
    channel_blocks, table = k.argument(Slot.GROUP_BLOCKS), k.pointer(Slot.TABLE)
    panel = channel_blocks * (lanes * columns * lanes)
    column_stride = block * pitch
    zero = k.constant(0.0)
    with k.loop(first_group, last_group) as groups:
        weights = k.pointer(Slot.WEIGHTS) + groups.index * panel * planes
        a = v + k.table_entry(k.pointer(Slot.GROUP_INPUTS), groups.index)
        with k.loop(0, REAL_PLANES, at_least_once=True) as over_planes:
            plane = over_planes.index
            with k.loop(0, (count + (rows - 1)) // rows) as over_rows:
                row = k.minimum_index(over_rows.index * rows, block - rows)
                place = row * pitch + plane * lanes
                sums = multiply(
                    k, [zero] * (rows * columns), a + place, weights + plane * panel, table, channel_blocks,
                    rows=rows, columns=columns, row_stride=pitch, steps=lanes,
                )  # fmt: skip
                for column in range(columns):
                    for r in range(rows):
                        k.store(sums[r * columns + column], m + (place + column_stride * column), r * pitch)
        with k.loop(REAL_PLANES, planes, 2, at_least_once=True) as over_planes:
            plane = over_planes.index
            with k.loop(0, (count + (rows - 1)) // rows) as over_rows:
                row = k.minimum_index(over_rows.index * rows, block - rows)
                place = row * pitch + plane * lanes
                sums = multiply_complex(
                    k, [zero] * (2 * rows * columns), a + place, weights + plane * panel, table, channel_blocks,
                    rows=rows, columns=columns, row_stride=pitch,
                )  # fmt: skip
                for column in range(columns):
                    for r in range(rows):
                        i = 2 * (r * columns + column)
                        _store_complex(k, (sums[i], sums[i + 1]), m + (place + column_stride * column) + r * pitch)
        first_block = k.table_entry(k.pointer(Slot.FIRST_BLOCKS), groups.index)
        with k.loop(0, columns, at_least_once=True) as over_columns:
            source = m + over_columns.index * column_stride
            _transform_outputs(k, shape, source, tile, count, first_block + over_columns.index)


def _transform_outputs(k: Kernel, shape: Shape, m: Pointer, tile: Whole, count: Index, block: Index) -> None:
    """Write activation(inverse transform + bias + residual) of `count` tiles for one block of V output channels."""
    size, lanes, half = shape.size, shape.lanes, shape.size // 2
    pitch = size * lanes
    height, width = k.argument(Slot.OUTPUT_HEIGHT), k.argument(Slot.OUTPUT_WIDTH)
    bias = k.load(k.pointer(Slot.BIAS), block * lanes)
    out_block = k.pointer(Slot.OUTPUT) + k.table_entry(k.pointer(Slot.OUTPUT_BLOCKS), block)
    if shape.residual:
        residual_block = k.pointer(Slot.RESIDUAL) + k.table_entry(k.pointer(Slot.RESIDUAL_BLOCKS), block)
    half_done, finished = k.scratch(size * size * lanes), k.scratch(size * lanes)
    with k.loop(0, count) as over_tiles:
        planes = m + over_tiles.index * shape.tile_floats
        with k.loop(1, half, at_least_once=True) as over_columns:
            source = planes + ((over_columns.index - 1) * (2 * pitch) + REAL_PLANES * lanes)
            values = [_load_complex(k, source + 2 * down * lanes) for down in range(size)]
            target = half_done + over_columns.index * (2 * lanes)
            for row, value in enumerate(complex_transform(k, values, 1)):
                _store_complex(k, value, target + row * pitch)
        for number in range(2):
            source = planes + _half_column(size, number) * lanes
            between = [_load_complex(k, source + 2 * down * lanes) for down in range(half - 1)]
            ends = [k.load(planes, (2 * number + end) * lanes) for end in range(2)]
            for row, real in enumerate(inverse_real_transform(k, ends[0], between, ends[1])):
                k.store(real, half_done, row * pitch + number * lanes)
        image, top, left = _place(k, over_tiles.index + tile)
        place = (top * width + left) * lanes
        out = out_block + (image * k.argument(Slot.OUTPUT_IMAGE_STRIDE) + place)
        if shape.residual:
            other = residual_block + (image * k.argument(Slot.RESIDUAL_IMAGE_STRIDE) + place)
        pixels = k.minimum_index(k.argument(Slot.STEP_ACROSS), width - left)
        with k.loop(0, k.minimum_index(k.argument(Slot.STEP_DOWN), height - top), at_least_once=True) as over_rows:
            source = half_done + over_rows.index * pitch
            between = [_load_complex(k, source + 2 * column * lanes) for column in range(1, half)]
            for column, real in enumerate(inverse_real_transform(k, k.load(source), between, k.load(source, lanes))):
                k.store(real, finished, column * lanes)
            row_offset = over_rows.index * width * lanes
            with k.loop(0, pixels, at_least_once=True) as over_pixels:
                offset = over_pixels.index * lanes
                total = k.load(finished, offset) + bias
                if shape.residual:
                    total = total + k.load(other + row_offset, offset)
                k.store(activate(k, total, shape.activation), out + row_offset, offset)
