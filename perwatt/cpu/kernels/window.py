"""Windows that slide over one channel block: the part that pooling and depthwise convolution have in common.

A tile is some neighbouring output pixels of one row. For each kernel row that lies inside the map, the input columns
the tile's windows cover are handed to the kernel; in tiles at the border, columns outside the map are read from one
vector that holds the padding's value. A row's last tile overlaps the one before it instead of being a remainder.
Which kernel rows lie inside is a table made with the plan: one entry for each output row.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from perwatt.cpu.ir import Index, Kernel, Pointer, Vector
from perwatt.cpu.kernels import operands
from perwatt.cpu.kernels.operands import blocked
from perwatt.cpu.kernels.storage import FP32, Stored, load, store
from perwatt.plan.algorithm import Operand, Packed, Step, Word


class Slot(IntEnum):
    """The first words of a window kernel's arguments. Strides count floats."""

    INPUT = 0
    OUTPUT = 1
    IMAGES = 2
    BLOCKS = 3
    CHUNKS = 4  # parts of the output rows of one image and block
    IMAGE_STRIDE = 5
    BLOCK_STRIDE = 6
    WIDTH = 7
    OUTPUT_IMAGE_STRIDE = 8
    OUTPUT_BLOCK_STRIDE = 9
    OUTPUT_HEIGHT = 10
    OUTPUT_WIDTH = 11
    PAD_LEFT = 12
    ROW_STEP = 13  # input rows from one kernel row to the next: the dilation
    ROWS = 14  # table [output row][3]: first input row, first kernel row, kernel rows inside the map
    MORE = 15  # the first word of the kernel's own


@dataclass(frozen=True)
class Window:
    """Tap columns, their stride and dilation along a row, and how many outputs a tile has."""

    taps: int
    stride: int
    dilation: int
    outputs: int

    @property
    def span(self) -> int:
        """Input columns from the tile's first to its last."""
        return (self.outputs - 1) * self.stride + (self.taps - 1) * self.dilation + 1

    @property
    def columns(self) -> tuple[int, ...]:
        """The input columns that some window of the tile reads."""
        read = {i * self.stride + t * self.dilation for i in range(self.outputs) for t in range(self.taps)}
        return tuple(sorted(read))

    @property
    def label(self) -> str:
        """The window as part of a function's name."""
        return f"{self.taps}s{self.stride}d{self.dilation}x{self.outputs}"


@dataclass(frozen=True)
class Place:
    """Where a kernel stands: image, channel block and output row, and where that row begins in the output."""

    image: Index
    block: Index
    row: Index
    source: Pointer
    target: Pointer


@contextmanager
def output_rows(k: Kernel, target: Stored = FP32) -> Iterator[Place]:
    """Go over this thread's output rows; `target` is how the output is stored."""
    blocks, chunks, height = k.argument(Slot.BLOCKS), k.argument(Slot.CHUNKS), k.argument(Slot.OUTPUT_HEIGHT)
    image_stride, block_stride = k.argument(Slot.IMAGE_STRIDE), k.argument(Slot.BLOCK_STRIDE)
    out_image_stride, out_block_stride = k.argument(Slot.OUTPUT_IMAGE_STRIDE), k.argument(Slot.OUTPUT_BLOCK_STRIDE)
    pitch = k.argument(Slot.OUTPUT_WIDTH) * target.words(k.lanes)
    x, y = k.pointer(Slot.INPUT), k.pointer(Slot.OUTPUT)
    first, last = k.share(k.argument(Slot.IMAGES) * blocks * chunks)
    with k.loop(first, last) as tasks:
        line = tasks.index // chunks
        chunk = tasks.index - line * chunks
        image = line // blocks
        block = line - image * blocks
        source = x + (image * image_stride + block * block_stride)
        made = y + (image * out_image_stride + block * out_block_stride)
        with k.loop(chunk * height // chunks, (chunk + 1) * height // chunks) as rows:
            yield Place(image, block, rows.index, source, made + rows.index * pitch)


@contextmanager
def tiles(k: Kernel, window: Window) -> Iterator[tuple[Index, Index]]:
    """Go over the tiles of an output row: (first output pixel, first input column, which may lie outside the map)."""
    width = k.argument(Slot.OUTPUT_WIDTH)
    pad = k.argument(Slot.PAD_LEFT)
    with k.loop(0, (width + (window.outputs - 1)) // window.outputs) as over_tiles:
        pixel = k.minimum_index(over_tiles.index * window.outputs, width - window.outputs)
        yield pixel, pixel * window.stride - pad


def outside_vector(k: Kernel, value: float, source: Stored = FP32) -> Pointer:
    """Return where a vector lies, stored as the input is, that stands for every column outside the map."""
    place = k.scratch(source.words(k.lanes))
    store(k, source, k.constant(value), place)
    return place


@contextmanager
def when_at_border(k: Kernel, window: Window, left: Index, border: bool) -> Iterator[None]:
    """Run the block for tiles that reach over the map's border, or (`border` False) for those that do not."""
    inside = (left >= 0) & (left + window.span <= k.argument(Slot.WIDTH))
    with k.when(inside.equals_false() if border else inside):
        yield


def kernel_rows(
    k: Kernel, window: Window, place: Place, left: Index, outside: Pointer | None, start: Sequence[Vector],
    combine: Callable[[list[Vector], Callable[[int], Vector], Index], list[Vector]], source: Stored = FP32,
) -> list[Vector]:  # fmt: skip
    """Return `start` after `combine(values, column, kernel row)` for each kernel row inside the map.

    `column(j)` loads input column j of the tile. Columns outside the map are read at `outside`; None promises that
    there are none.
    """
    words, width = source.words(k.lanes), k.argument(Slot.WIDTH)
    table, step = k.pointer(Slot.ROWS), k.argument(Slot.ROW_STEP)
    input_row, kernel_row = k.table_entry(table, place.row * 3), k.table_entry(table, place.row * 3 + 1)
    corner = place.source + (input_row * width + left) * words
    there = {}
    if outside is not None:
        there = {j: (left + j >= 0) & (left + j < width) for j in window.columns}
    with k.loop(0, k.table_entry(table, place.row * 3 + 2), carry=start) as rows:
        here = corner + rows.index * step * width * words

        def column(j: int) -> Vector:
            if outside is None:
                return load(k, source, here, j * words)
            return load(k, source, k.choose_pointer(there[j], here + j * words, outside))

        rows.carry(combine(list(rows.carried), column, kernel_row + rows.index))
    return rows.results


@dataclass(frozen=True)
class Geometry:
    """A window step in numbers, with height and width for the two axes of everything."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int]  # at the beginning of each axis
    size: tuple[int, int]
    out_size: tuple[int, int]


def geometry(step: Step) -> Geometry:
    """Return the numbers of a step with two spatial axes, or with one, which then counts as the width."""
    x, y = operands.data(step)
    kernel, strides, dilations = (operands.wholes(step, name) for name in ("kernel_shape", "strides", "dilations"))
    pads, size, out_size = operands.wholes(step, "pads")[: len(kernel)], x.shape[2:], y.shape[2:]

    def both(numbers: tuple[int, ...], default: int) -> tuple[int, int]:
        return (numbers[0], numbers[1]) if len(numbers) == 2 else (default, numbers[0])

    return Geometry(
        both(kernel, 1), both(strides, 1), both(dilations, 1), both(pads, 0), both(size, 1), both(out_size, 1)
    )


def row_table(g: Geometry) -> np.ndarray:
    """Return Slot.ROWS, int64 [output rows, 3]."""
    top = np.arange(g.out_size[0]) * g.strides[0] - g.pads[0]
    dilation = g.dilations[0]
    first = np.maximum(-(top // dilation), 0)
    last = np.clip(-((top - g.size[0]) // dilation), 0, g.kernel[0])
    count = np.maximum(last - first, 0)
    # Where no kernel row lies inside, nothing is read; the address is kept inside all the same.
    rows = np.where(count > 0, top + first * dilation, 0)
    return np.ascontiguousarray(np.stack([rows, first, count], axis=1), np.int64)


def words(step: Step, g: Geometry) -> tuple[Word, ...]:
    """Return the words up to Slot.MORE."""
    source, target = operands.data(step)
    x, y = blocked(source, step.lanes), blocked(target, step.lanes)
    parts = operands.chunks(step, x.images * x.blocks, g.out_size[0])
    return (
        *(Operand(source.name), Operand(target.name), x.images, x.blocks, parts, x.image_stride, x.block_stride),
        *(g.size[1], y.image_stride, y.block_stride, g.out_size[0], g.out_size[1], g.pads[1], g.dilations[0]),
        Packed("rows", lambda: row_table(g)),
    )
