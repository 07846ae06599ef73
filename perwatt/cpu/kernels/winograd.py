"""Winograd convolution F(m x m, r x r), stride 1: input transform, α² matrix products, output transform.

Three ways to spread it over a team:
  fused    each thread takes blocks of tiles through all three stages in a scratch of its own that fits its L2; the
           transformed weights are read once per block. For maps with many tiles.
  shared   step one transforms every tile into a buffer all threads see; step two gives each thread a part of the output
           channels, so the transformed weights are read once in all. For small maps at small batch, where reading the
           weights is what takes the time.
  staged   all three stages apart, for a block of tiles at a time; a thread multiplies whole planes, so that one plane's
           inputs and weights meet in its L2. For many channels and many tiles, where the weights exceed the caches.

Layouts, in floats (V lanes, T tiles in a block, C input and K output channels in blocks of V):
  transformed input   [α²][C/V][T][V], with one vector of padding after each of the α² planes against aliasing in L1
  transformed weights [K group][α²][C][columns·V]
  products            [α²][columns][T][V], padded likewise; staged: [α²][K/V][T][V]
Maps may be stored in halves: transforms convert as they read and write. With BF16 products the transformed input and
weights are pairs of BF16, the sums and the products stay FP32.
"""

from dataclasses import dataclass
from enum import IntEnum

from perwatt.cpu.ir import Index, Kernel, Module, Pointer, Whole
from perwatt.cpu.kernels.activation import NO_ACTIVATION, Activation, activate
from perwatt.cpu.kernels.storage import FP32, Numbers, Stored, load, store
from perwatt.cpu.kernels.tile import FP32_NUMBERS, multiply, panel_ahead
from perwatt.cpu.kernels.winograd_transform import Transform, apply, transform

# The output transform magnifies what rounding leaves in the sums over the channels, so these are summed in short runs.
WINOGRAD_RUN = 128


class Slot(IntEnum):
    """The words of a step's arguments. Strides and offsets count floats (of halves, two are one)."""

    INPUT = 0
    WEIGHTS = 1
    BIAS = 2
    OUTPUT = 3
    RESIDUAL = 4
    SCRATCH = 5  # fused: one part per thread; shared: the products' part per thread
    SCRATCH_STRIDE = 6
    TRANSFORMED = 7  # shared: the transformed input of all tiles (fused: unused)
    TABLE = 8  # offset of each block of V input channels inside a plane
    CHANNEL_BLOCKS = 9  # blocks of V input channels
    HEIGHT = 10
    WIDTH = 11
    TILES_DOWN = 12
    TILES_ACROSS = 13
    TILES = 14  # of all images
    BLOCK = 15  # tiles in a block; shared: all tiles, rounded up to the register tile's rows
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
    GROUP_INPUTS = 29  # table: where in a plane of the transformed input each group's channels begin
    CHANNELS = 30  # output channels; lanes behind them are written as zeros
    PARTS = 31  # shared: of the tiles, for each group of output channels
    FIRST_TILE = 31  # staged: the block of tiles this call is for
    TILE_COUNT = 32
    OUTPUT_CHANNEL_BLOCKS = 33  # staged: blocks of V output channels


SLOTS = len(Slot)


@dataclass(frozen=True)
class Shape:
    """What a Winograd kernel is specialised on; sizes are arguments."""

    lanes: int
    outputs: int
    taps: int
    rows: int
    columns: int
    activation: Activation = NO_ACTIVATION
    residual: bool = False
    tail: bool = False
    source: Stored = FP32
    numbers: Numbers = FP32_NUMBERS
    deep: bool = False  # sums over more than WINOGRAD_RUN channels, in runs of that length

    @property
    def stem(self) -> str:
        """The common part of the exported functions' names."""
        tail = f"{self.activation.label}{'_residual' if self.residual else ''}{'_tail' if self.tail else ''}"
        if self.source != FP32 or self.numbers != FP32_NUMBERS:
            tail += f"_{self.source.label}{self.numbers.label}"
        tail += "_deep" if self.deep else ""
        return f"winograd_{self.lanes}_f{self.outputs}_{self.taps}_{self.rows}x{self.columns}_{tail}"

    @property
    def inner(self) -> int:
        """Words of one vector of the transformed input."""
        return self.numbers.input.words(self.lanes)

    @property
    def plane_padding(self) -> int:
        """Floats added to each plane so that the α² planes do not fall on the same cache sets."""
        return self.lanes


def winograd_fused(shape: Shape) -> Module:
    """Return the module of the kernel that takes blocks of tiles through all three stages."""
    module = Module(f"{shape.stem}_fused", shape.lanes)
    with module.kernel(f"{shape.stem}_fused") as k:
        tiles, block = k.argument(Slot.TILES), k.argument(Slot.BLOCK)
        v = k.pointer(Slot.SCRATCH) + k.thread * k.argument(Slot.SCRATCH_STRIDE)
        channel_blocks = k.argument(Slot.CHANNEL_BLOCKS)
        plane = channel_blocks * block * shape.inner + shape.plane_padding
        size = shape.outputs + shape.taps - 1
        m = v + plane * (size * size)
        first, last = k.share((tiles + (block - 1)) // block)
        with k.loop(first, last) as blocks:
            tile = blocks.index * block
            count = k.minimum_index(block, tiles - tile)
            _transform_inputs(k, shape, v, plane, block, tile, tile, tile + count, 0, channel_blocks)
            _products_and_outputs(k, shape, v, plane, m, block, tile, count, 0, k.argument(Slot.GROUPS))
    return module


def winograd_shared(shape: Shape) -> Module:
    """Return the module of the two kernels that share one transformed input: `..._input` and `..._output`."""
    module = Module(f"{shape.stem}_shared", shape.lanes)
    with module.kernel(f"{shape.stem}_shared_input") as k:
        tiles, block, channel_blocks = (k.argument(s) for s in (Slot.TILES, Slot.BLOCK, Slot.CHANNEL_BLOCKS))
        plane = channel_blocks * block * shape.inner + shape.plane_padding
        first, last = k.share(tiles * channel_blocks)
        with k.loop(first, last) as tasks:
            channel = tasks.index // tiles
            tile = tasks.index - channel * tiles
            v = k.pointer(Slot.TRANSFORMED)
            _transform_inputs(k, shape, v, plane, block, 0, tile, tile + 1, channel, channel + 1)
    with module.kernel(f"{shape.stem}_shared_output") as k:
        tiles, block, channel_blocks = (k.argument(s) for s in (Slot.TILES, Slot.BLOCK, Slot.CHANNEL_BLOCKS))
        plane = channel_blocks * block * shape.inner + shape.plane_padding
        m = k.pointer(Slot.SCRATCH) + k.thread * k.argument(Slot.SCRATCH_STRIDE)
        parts, lines = k.argument(Slot.PARTS), (tiles + (shape.rows - 1)) // shape.rows
        first, last = k.share(k.argument(Slot.GROUPS) * parts)
        with k.loop(first, last) as tasks:
            group = tasks.index // parts
            part = tasks.index - group * parts
            tile = part * lines // parts * shape.rows
            count = k.minimum_index((part + 1) * lines // parts * shape.rows, tiles) - tile
            v = k.pointer(Slot.TRANSFORMED) + tile * shape.inner
            _products_and_outputs(k, shape, v, plane, m, block, tile, count, group, group + 1)
    return module


def winograd_staged(shape: Shape) -> Module:
    """Return the module of three kernels for a block of tiles: `..._input`, `..._products` and `..._output`."""
    module, lanes = Module(f"{shape.stem}_staged", shape.lanes), shape.lanes
    matrices = transform(shape.outputs, shape.taps)
    planes = matrices.size * matrices.size
    with module.kernel(f"{shape.stem}_staged_input") as k:
        tile, count, block = (k.argument(s) for s in (Slot.FIRST_TILE, Slot.TILE_COUNT, Slot.BLOCK))
        channel_blocks = k.argument(Slot.CHANNEL_BLOCKS)
        plane = channel_blocks * block * shape.inner + shape.plane_padding
        first, last = k.share(count * channel_blocks)
        with k.loop(first, last) as tasks:
            channel = tasks.index // count
            here = tile + (tasks.index - channel * count)
            v = k.pointer(Slot.TRANSFORMED)
            _transform_inputs(k, shape, v, plane, block, tile, here, here + 1, channel, channel + 1)
    with module.kernel(f"{shape.stem}_staged_products") as k:
        count, block, groups = (k.argument(s) for s in (Slot.TILE_COUNT, Slot.BLOCK, Slot.GROUPS))
        plane = k.argument(Slot.CHANNEL_BLOCKS) * block * shape.inner + shape.plane_padding
        m_plane = k.argument(Slot.OUTPUT_CHANNEL_BLOCKS) * block * lanes + shape.plane_padding
        panel = k.argument(Slot.GROUP_BLOCKS) * (shape.inner * shape.columns * shape.numbers.panel_words(lanes))
        first, last = k.share(groups * planes)
        with k.loop(first, last) as tasks:
            number = tasks.index // groups
            group = tasks.index - number * groups
            a = k.pointer(Slot.TRANSFORMED) + number * plane + k.table_entry(k.pointer(Slot.GROUP_INPUTS), group)
            weights = k.pointer(Slot.WEIGHTS) + (group * planes + number) * panel
            first_block = k.table_entry(k.pointer(Slot.FIRST_BLOCKS), group)
            m = k.pointer(Slot.SCRATCH) + number * m_plane + first_block * block * lanes
            _products(k, shape, a, weights, panel * planes, m, block, count)
    with module.kernel(f"{shape.stem}_staged_output") as k:
        tile, count, block = (k.argument(s) for s in (Slot.FIRST_TILE, Slot.TILE_COUNT, Slot.BLOCK))
        out_blocks = k.argument(Slot.OUTPUT_CHANNEL_BLOCKS)
        m_plane = out_blocks * block * lanes + shape.plane_padding
        first, last = k.share(out_blocks * count)
        with k.loop(first, last) as tasks:
            out_block = tasks.index // count
            here = tasks.index - out_block * count
            m = k.pointer(Slot.SCRATCH) + (out_block * block + here) * lanes
            _transform_outputs(k, shape, matrices, m, m_plane, tile + here, 1, out_block)
    return module


def _place(k: Kernel, tile: Index) -> tuple[Index, Index, Index]:
    """Return (image, tile row, tile column) of a tile of the whole batch."""
    across, down = k.argument(Slot.TILES_ACROSS), k.argument(Slot.TILES_DOWN)
    line = tile // across
    image = line // down
    return image, line - image * down, tile - line * across


def _transform_inputs(
    k: Kernel, shape: Shape, v: Pointer, plane: Index, block: Index, origin: Whole, first: Whole, last: Whole,
    first_channel: Whole, last_channel: Whole,
) -> None:  # fmt: skip
    """Write Bᵀ d B of tiles [first, last) and channel blocks [first_channel, last_channel); `origin` is tile 0 of v."""
    matrices, lanes = transform(shape.outputs, shape.taps), shape.lanes
    size = matrices.size
    height, width = k.argument(Slot.HEIGHT), k.argument(Slot.WIDTH)
    x, image_stride, block_stride = k.pointer(Slot.INPUT), k.argument(Slot.IMAGE_STRIDE), k.argument(Slot.BLOCK_STRIDE)
    source_words, inner = shape.source.words(lanes), shape.numbers.input
    half_done, gathered = k.scratch(size * size * lanes), k.scratch(size * size * source_words)
    with k.loop(first, last) as over_tiles:
        tile = over_tiles.index
        image, down, across = _place(k, tile)
        top = down * shape.outputs - k.argument(Slot.PAD_TOP)
        left = across * shape.outputs - k.argument(Slot.PAD_LEFT)
        inside = (top >= 0) & (left >= 0) & (top + size <= height) & (left + size <= width)
        row_first, row_last = k.maximum_index(0 - top, 0), k.minimum_index(height - top, size)
        column_first, column_last = k.maximum_index(0 - left, 0), k.minimum_index(width - left, size)
        corner = x + (image * image_stride + (top * width + left) * source_words)
        pitch = k.choose_index(inside, width * source_words, size * source_words)
        with k.loop(first_channel, last_channel) as over_channels:
            channel = over_channels.index
            source = corner + channel * block_stride
            with k.when(inside.equals_false()):
                for i in range(size * size):
                    store(k, shape.source, k.constant(0.0), gathered, i * source_words)
                with k.loop(row_first, row_last) as rows, k.loop(column_first, column_last) as columns:
                    value = load(k, shape.source, source, (rows.index * width + columns.index) * source_words)
                    store(k, shape.source, value, gathered, (rows.index * size + columns.index) * source_words)
            d = k.choose_pointer(inside, source, gathered)
            for j in range(size):
                column_values = [load(k, shape.source, d, pitch * i + j * source_words) for i in range(size)]
                for i, value in enumerate(apply(k, matrices.input, column_values)):
                    k.store(value, half_done, (i * size + j) * lanes)
            target = v + (channel * block + (tile - origin)) * shape.inner
            for i in range(size):
                row_values = [k.load(half_done, (i * size + j) * lanes) for j in range(size)]
                for j, value in enumerate(apply(k, matrices.input, row_values)):
                    store(k, inner, value, target, plane * (i * size + j))


def _products_and_outputs(
    k: Kernel, shape: Shape, v: Pointer, plane: Index, m: Pointer, block: Index, tile: Whole, count: Index,
    first_group: Whole, last_group: Whole,
) -> None:  # fmt: skip
    """Multiply tiles [tile, tile + count) with the channel groups' weights and write their outputs."""
    matrices, lanes, columns = transform(shape.outputs, shape.taps), shape.lanes, shape.columns
    planes = matrices.size * matrices.size
    panel = k.argument(Slot.GROUP_BLOCKS) * (shape.inner * columns * shape.numbers.panel_words(lanes))
    m_plane = block * (columns * lanes) + shape.plane_padding
    with k.loop(first_group, last_group) as groups:
        weights = k.pointer(Slot.WEIGHTS) + groups.index * panel * planes
        source_channels = v + k.table_entry(k.pointer(Slot.GROUP_INPUTS), groups.index)
        with k.loop(0, planes) as over_planes:
            a, b = source_channels + over_planes.index * plane, weights + over_planes.index * panel
            _products(k, shape, a, b, panel, m + over_planes.index * m_plane, block, count)
        first_block = k.table_entry(k.pointer(Slot.FIRST_BLOCKS), groups.index)
        with k.loop(0, columns) as over_columns:
            source = m + over_columns.index * block * lanes
            _transform_outputs(k, shape, matrices, source, m_plane, tile, count, first_block + over_columns.index)


def _products(
    k: Kernel, shape: Shape, a: Pointer, b: Pointer, following: Index, m: Pointer, block: Index, count: Index
) -> None:
    """Write one plane's products of `count` tiles and one group of output channels: [columns][block][V] at m.

    b is the panel of weights; the one that is needed next lies `following` behind it.
    """
    lanes, rows, columns = shape.lanes, shape.rows, shape.columns
    zero, table, entries = k.constant(0.0), k.pointer(Slot.TABLE), k.argument(Slot.GROUP_BLOCKS)
    entry_floats = shape.inner * columns * shape.numbers.panel_words(lanes)
    tiles = (count + (rows - 1)) // rows
    with k.loop(0, tiles) as over_rows:
        row = k.minimum_index(over_rows.index * rows, k.maximum_index(block - rows, 0))
        sums = multiply(
            k, [zero] * (rows * columns), a + row * shape.inner, b, table, entries,
            rows=rows, columns=columns, row_stride=shape.inner, steps=shape.inner, deep=shape.deep,
            longest=WINOGRAD_RUN, numbers=shape.numbers,
            ahead=panel_ahead(k, b, following, over_rows.index, tiles, entries, entry_floats),
        )  # fmt: skip
        place = m + row * lanes
        for column in range(columns):
            for r in range(rows):
                k.store(sums[r * columns + column], place + block * (column * lanes), r * lanes)


def _transform_outputs(
    k: Kernel, shape: Shape, matrices: Transform, m: Pointer, m_plane: Index, tile: Whole, count: Whole, block: Index
) -> None:
    """Write activation(Aᵀ m A + bias + residual) of `count` tiles for one block of V output channels."""
    lanes, size, outputs = shape.lanes, matrices.size, matrices.outputs
    height, width = k.argument(Slot.OUTPUT_HEIGHT), k.argument(Slot.OUTPUT_WIDTH)
    bias = k.load(k.pointer(Slot.BIAS), block * lanes)
    out_block = k.pointer(Slot.OUTPUT) + k.table_entry(k.pointer(Slot.OUTPUT_BLOCKS), block)
    if shape.residual:
        residual_block = k.pointer(Slot.RESIDUAL) + k.table_entry(k.pointer(Slot.RESIDUAL_BLOCKS), block)
    half_done = k.scratch(outputs * size * lanes)
    words, residual_words = shape.numbers.output.words(lanes), shape.numbers.residual.words(lanes)
    if shape.tail:
        kept = k.lane_range(0, k.argument(Slot.CHANNELS) - block * lanes)
    with k.loop(0, count) as over_tiles:
        for j in range(size):
            column_values = [k.load(m + over_tiles.index * lanes, m_plane * (i * size + j)) for i in range(size)]
            for i, value in enumerate(apply(k, matrices.output, column_values)):
                k.store(value, half_done, (i * size + j) * lanes)
        image, down, across = _place(k, over_tiles.index + tile)
        top, left = down * outputs, across * outputs
        place = (top * width + left) * words
        target = out_block + (image * k.argument(Slot.OUTPUT_IMAGE_STRIDE) + place)
        if shape.residual:
            residual_place = place if residual_words == words else (top * width + left) * residual_words
            other = residual_block + (image * k.argument(Slot.RESIDUAL_IMAGE_STRIDE) + residual_place)
        for i in range(outputs):
            with k.when(top + i < height):
                row_values = [k.load(half_done, (i * size + j) * lanes) for j in range(size)]
                for j, value in enumerate(apply(k, matrices.output, row_values)):
                    with k.when(left + j < width):
                        pixel = width * i + j
                        total = value + bias
                        if shape.residual:
                            total = total + load(k, shape.numbers.residual, other, pixel * residual_words)
                        total = activate(k, total, shape.activation)
                        total = k.select(kept, total, 0.0) if shape.tail else total
                        store(k, shape.numbers.output, total, target, pixel * words)
