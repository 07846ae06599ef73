"""Copy planes into a larger frame of zeros, so that kernels with windows need no tests at the border.

`framing` does it to vectors of V numbers and changes how they are stored on the way.
"""

from enum import IntEnum

from perwatt.cpu.ir import Module
from perwatt.cpu.kernels.storage import Stored, load, store


class Slot(IntEnum):
    """The words of the arguments. A row is `ROW` consecutive floats: pixels times floats per pixel."""

    INPUT = 0
    OUTPUT = 1
    IMAGES = 2
    PLANES = 3  # of an image: channels, or blocks of channels
    IMAGE_STRIDE = 4
    PLANE_STRIDE = 5
    ROWS = 6
    ROW = 7
    ABOVE = 8  # rows of zeros
    BELOW = 9
    LEFT = 10  # floats of zeros
    RIGHT = 11
    ROW_STRIDE = 12  # of the input


def padding(lanes: int) -> Module:
    """Return the module of `padding_{lanes}`; its output is contiguous: [image][plane][above + rows + below][row]."""
    module = Module(f"padding_{lanes}", lanes)
    with module.kernel(f"padding_{lanes}") as k:
        planes, rows, row = k.argument(Slot.PLANES), k.argument(Slot.ROWS), k.argument(Slot.ROW)
        above, left = k.argument(Slot.ABOVE), k.argument(Slot.LEFT)
        height, width = rows + above + k.argument(Slot.BELOW), row + left + k.argument(Slot.RIGHT)
        zero = k.constant(0.0)
        first, last = k.share(k.argument(Slot.IMAGES) * planes * height)
        with k.loop(first, last) as lines:
            plane_number = lines.index // height
            line = lines.index - plane_number * height
            image = plane_number // planes
            plane = plane_number - image * planes
            target = k.pointer(Slot.OUTPUT) + lines.index * width
            inside = (line >= above) & (line < above + rows)
            copied_from = k.choose_index(inside, left, width)
            copied_to = k.choose_index(inside, left + row, width)
            with k.loop(0, copied_from, lanes) as zeros:
                left_over = k.minimum_index(copied_from - zeros.index, lanes)
                k.store_masked(zero, target + zeros.index, left_over)
            offset = image * k.argument(Slot.IMAGE_STRIDE) + plane * k.argument(Slot.PLANE_STRIDE)
            source = k.pointer(Slot.INPUT) + (offset + (line - above) * k.argument(Slot.ROW_STRIDE))
            whole = (copied_to - copied_from) // lanes * lanes
            with k.loop(0, whole, lanes) as vectors:
                k.store(k.load(source, vectors.index), target + copied_from, vectors.index)
            rest = copied_to - copied_from - whole
            with k.when(rest > 0):
                k.store_masked(k.load_masked(source + whole, rest), target + (copied_from + whole), rest)
            with k.loop(copied_to, width, lanes) as zeros:
                k.store_masked(zero, target + zeros.index, k.minimum_index(width - zeros.index, lanes))
    return module


def framing_name(lanes: int, source: Stored, target: Stored) -> str:
    """Return the name of the kernel that `framing` writes."""
    return f"framing_{source.label}_to_{target.label}_{lanes}"


def framing(lanes: int, source: Stored, target: Stored) -> Module:
    """Return the kernel that copies blocked planes into frames, from one kind of storage to another.

    Slots are those of `padding`, but ROW, LEFT and RIGHT count pixels; strides count words of four bytes.
    """
    name = framing_name(lanes, source, target)
    module, here, there = Module(name, lanes), source.words(lanes), target.words(lanes)
    with module.kernel(name) as k:
        planes, rows, row = k.argument(Slot.PLANES), k.argument(Slot.ROWS), k.argument(Slot.ROW)
        above, left = k.argument(Slot.ABOVE), k.argument(Slot.LEFT)
        height, width = rows + above + k.argument(Slot.BELOW), row + left + k.argument(Slot.RIGHT)
        zero = k.constant(0.0)
        first, last = k.share(k.argument(Slot.IMAGES) * planes * height)
        with k.loop(first, last) as lines:
            plane_number = lines.index // height
            line = lines.index - plane_number * height
            image = plane_number // planes
            plane = plane_number - image * planes
            y = k.pointer(Slot.OUTPUT) + lines.index * width * there
            inside = (line >= above) & (line < above + rows)
            copied_from = k.choose_index(inside, left, width)
            copied_to = k.choose_index(inside, left + row, width)
            with k.loop(0, copied_from) as zeros:
                store(k, target, zero, y, zeros.index * there)
            offset = image * k.argument(Slot.IMAGE_STRIDE) + plane * k.argument(Slot.PLANE_STRIDE)
            x = k.pointer(Slot.INPUT) + (offset + (line - above) * k.argument(Slot.ROW_STRIDE))
            with k.loop(0, copied_to - copied_from) as pixels:
                value = load(k, source, x, pixels.index * here)
                store(k, target, value, y, (copied_from + pixels.index) * there)
            with k.loop(copied_to, width) as zeros:
                store(k, target, zero, y, zeros.index * there)
    return module
