"""Convolution as a register-tiled matrix product: direct, 1x1, first layer and fully connected in one kernel.

Tasks are (image, chunk of pixel tiles) x (chunk of output-channel groups). Inside a task the channel groups run outside
and the pixel tiles inside, so that a group's weights stay in cache while the pixels pass by. The last tile of a row and
the last group of channels overlap their neighbours instead of being masked: the overlapped results are computed twice,
with equal values, and no tail code is needed. That is why nothing here may accumulate into its output.
"""

from dataclasses import dataclass
from enum import IntEnum

from perwatt.cpu.ir import Module
from perwatt.cpu.kernels.activation import Activation, activate
from perwatt.cpu.kernels.tile import multiply


class Slot(IntEnum):
    """The words of a step's arguments. Strides and offsets count floats."""

    INPUT = 0
    WEIGHTS = 1
    BIAS = 2
    OUTPUT = 3
    RESIDUAL = 4
    TABLE = 5
    ENTRIES = 6
    IMAGES = 7
    IMAGE_STRIDE = 8
    ROWS = 9  # output rows of an image
    ROW_STRIDE = 10  # of the input, from one output row to the next
    PIXELS = 11  # output pixels of a row
    OUTPUT_IMAGE_STRIDE = 12
    OUTPUT_BLOCKS = 13  # table: offset of each block of V output channels
    RESIDUAL_IMAGE_STRIDE = 14
    RESIDUAL_BLOCKS = 15
    GROUPS = 16  # register-wide groups of output channels, over all convolution groups
    CHANNEL_BLOCKS = 17  # table: the first block of V output channels of each group
    GROUP_INPUTS = 18  # table: the offset into the input of each group's convolution group
    PIXEL_CHUNKS = 19  # chunks of pixel tiles in one image
    GROUP_CHUNKS = 20
    PIXELS_OUTSIDE = 21  # 1: neighbouring tasks share channels; 0: neighbouring tasks share pixels


SLOTS = len(Slot)


@dataclass(frozen=True)
class Shape:
    """What a convolution kernel is specialised on; sizes are arguments."""

    lanes: int
    rows: int
    columns: int
    row_stride: int
    steps: int
    activation: Activation = Activation()
    residual: bool = False

    @property
    def name(self) -> str:
        """The exported function's name, unique among shapes up to the activation's parameters."""
        tail = f"{self.activation.name or 'none'}{'_residual' if self.residual else ''}"
        return f"convolution_{self.rows}x{self.columns}_stride{self.row_stride}_steps{self.steps}_{tail}"


def convolution(shape: Shape) -> Module:
    """Return the module of one convolution kernel."""
    module = Module(shape.name, shape.lanes)
    rows, columns, lanes = shape.rows, shape.columns, shape.lanes
    with module.kernel(shape.name) as k:
        x, weights, bias, y = (k.pointer(s) for s in (Slot.INPUT, Slot.WEIGHTS, Slot.BIAS, Slot.OUTPUT))
        table, entries = k.pointer(Slot.TABLE), k.argument(Slot.ENTRIES)
        out_blocks, channel_blocks = k.pointer(Slot.OUTPUT_BLOCKS), k.pointer(Slot.CHANNEL_BLOCKS)
        group_inputs = k.pointer(Slot.GROUP_INPUTS)
        pixels, out_rows, groups = k.argument(Slot.PIXELS), k.argument(Slot.ROWS), k.argument(Slot.GROUPS)
        pixel_chunks, group_chunks = k.argument(Slot.PIXEL_CHUNKS), k.argument(Slot.GROUP_CHUNKS)
        image_stride, row_stride = k.argument(Slot.IMAGE_STRIDE), k.argument(Slot.ROW_STRIDE)
        out_image_stride, outside = k.argument(Slot.OUTPUT_IMAGE_STRIDE), k.argument(Slot.PIXELS_OUTSIDE)
        weights_stride = entries * (shape.steps * columns * lanes)
        if shape.residual:
            residual, residual_blocks = k.pointer(Slot.RESIDUAL), k.pointer(Slot.RESIDUAL_BLOCKS)
            residual_image_stride = k.argument(Slot.RESIDUAL_IMAGE_STRIDE)
        across = (pixels + (rows - 1)) // rows
        tiles = out_rows * across
        chunks = k.argument(Slot.IMAGES) * pixel_chunks
        first, last = k.share(chunks * group_chunks)
        with k.loop(first, last) as tasks:
            by_pixel, by_group = tasks.index // group_chunks, tasks.index // chunks
            pixel_first = outside.equals(1)
            chunk = k.choose_index(pixel_first, by_pixel, tasks.index - by_group * chunks)
            group_chunk = k.choose_index(pixel_first, tasks.index - by_pixel * group_chunks, by_group)
            image = chunk // pixel_chunks
            part = chunk - image * pixel_chunks
            tile_first, tile_last = part * tiles // pixel_chunks, (part + 1) * tiles // pixel_chunks
            group_first, group_last = group_chunk * groups // group_chunks, (group_chunk + 1) * groups // group_chunks
            x_image, y_image = x + image * image_stride, y + image * out_image_stride
            with k.loop(group_first, group_last) as over_groups:
                group = over_groups.index
                block = k.table_entry(channel_blocks, group)
                panel = weights + group * weights_stride
                x_group = x_image + k.table_entry(group_inputs, group)
                y_places = [y_image + k.table_entry(out_blocks, block + column) for column in range(columns)]
                if shape.residual:
                    image_residual = residual + image * residual_image_stride
                    residual_places = [
                        image_residual + k.table_entry(residual_blocks, block + column) for column in range(columns)
                    ]
                start = [k.load(bias + block * lanes, column * lanes) for column in range(columns)]
                with k.loop(tile_first, tile_last) as over_tiles:
                    row = over_tiles.index // across
                    pixel = k.minimum_index((over_tiles.index - row * across) * rows, pixels - rows)
                    here = x_group + (row * row_stride + pixel * shape.row_stride)
                    sums = multiply(
                        k, [start[i % columns] for i in range(rows * columns)], here, panel, table, entries,
                        rows=rows, columns=columns, row_stride=shape.row_stride, steps=shape.steps,
                    )  # fmt: skip
                    place = (row * pixels + pixel) * lanes
                    for column in range(columns):
                        for r in range(rows):
                            value = sums[r * columns + column]
                            if shape.residual:
                                value = value + k.load(residual_places[column] + place, r * lanes)
                            k.store(activate(k, value, shape.activation), y_places[column] + place, r * lanes)
    return module
