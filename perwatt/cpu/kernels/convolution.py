"""Convolution as a register-tiled matrix product: direct, 1x1, first layer and fully connected in one kernel.

Tasks are (image, chunk of pixel tiles) x (chunk of output-channel groups). Inside a task the channel groups run outside
and the pixel tiles inside, so that a group's weights stay in cache while the pixels pass by. The last tile of a row and
the last group of channels overlap their neighbours instead of being masked: the overlapped results are computed twice,
with equal values, and no tail code is needed. That is why nothing here may accumulate into its output.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from math import hypot, prod

import numpy as np

from perwatt.cpu.ir import Module
from perwatt.cpu.kernels.activation import NO_ACTIVATION, Activation, activate
from perwatt.cpu.kernels.dense import (
    CACHE_BYTES_PER_S,
    FLOPS_PER_S_AND_LANE,
    LEAST_TILES,
    MEMORY_BYTES_PER_S,
    PRODUCTS_AT_ONCE,
    SPILLED_BYTES_PER_S,
    TASKS_OF_A_THREAD,
    Convolution,
    blocks,
    first_blocks,
    has_tail,
    known,
    operand,
    output_offsets,
    pack_columns,
    padded_bias,
    read_convolution,
    register_tiles,
    residual_of,
    residual_offsets,
    spread,
    used_lanes,
)
from perwatt.cpu.kernels.padding import framing, framing_name, padding
from perwatt.cpu.kernels.storage import Numbers, load, numbers_of, packed, pairs, reason_against, store, stored
from perwatt.cpu.kernels.tile import FP32_NUMBERS, HALF_SUMS_ERROR, LONGEST_RUN, ask_for, multiply, panel_ahead
from perwatt.plan.algorithm import (
    Algorithm,
    Call,
    Operand,
    Packed,
    Places,
    Scratch,
    Step,
    Tensor,
    Tile,
    Word,
    direct_error,
)
from perwatt.plan.precision import ELEMENT_BYTES, Element, rounding_error


class Slot(IntEnum):
    """The words of a step's arguments. Strides and offsets count floats (of halves, two are one)."""

    INPUT = 0
    WEIGHTS = 1
    BIAS = 2
    OUTPUT = 3  # parted: a table of (address, floats from image to image) for each block of V output channels
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
    PIXELS_OUTSIDE = 20  # 1: neighbouring tasks share pixels; 0: neighbouring tasks share channels
    USED_LANES = 21  # table: how many lanes of each block of V output channels are channels; the others become zeros


SLOTS = len(Slot)
MOST_STEPS = 16


@dataclass(frozen=True)
class Shape:
    """What a convolution kernel is specialised on; sizes are arguments."""

    lanes: int
    rows: int
    columns: int
    row_stride: int
    steps: int
    activation: Activation = NO_ACTIVATION
    residual: bool = False
    tail: bool = False
    parted: bool = False
    deep: bool = False
    numbers: Numbers = FP32_NUMBERS

    @property
    def name(self) -> str:
        """The exported function's name, which holds all that the code depends on."""
        tail = f"{self.activation.label}{'_residual' if self.residual else ''}{'_tail' if self.tail else ''}"
        tail += ("_parted" if self.parted else "") + ("_deep" if self.deep else "") + self.numbers.label
        return f"convolution_{self.lanes}_{self.rows}x{self.columns}_stride{self.row_stride}_steps{self.steps}_{tail}"


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
        pixel_chunks = k.argument(Slot.PIXEL_CHUNKS)
        image_stride, row_stride = k.argument(Slot.IMAGE_STRIDE), k.argument(Slot.ROW_STRIDE)
        out_image_stride, outside = k.argument(Slot.OUTPUT_IMAGE_STRIDE), k.argument(Slot.PIXELS_OUTSIDE)
        numbers, pixel_words = shape.numbers, shape.numbers.output.words(lanes)
        panel_floats = shape.steps * columns * numbers.panel_words(lanes)
        weights_stride = entries * panel_floats
        if shape.residual:
            residual, residual_blocks = k.pointer(Slot.RESIDUAL), k.pointer(Slot.RESIDUAL_BLOCKS)
            residual_image_stride = k.argument(Slot.RESIDUAL_IMAGE_STRIDE)
        across = (pixels + (rows - 1)) // rows
        tiles = out_rows * across
        chunks = k.argument(Slot.IMAGES) * pixel_chunks
        # A task is one group of output channels over one chunk of pixels.
        first, last = k.share(chunks * groups)
        with k.loop(first, last) as tasks:
            by_pixel, by_group = tasks.index // groups, tasks.index // chunks
            pixel_first = outside.equals(1)
            chunk = k.choose_index(pixel_first, by_pixel, tasks.index - by_group * chunks)
            group = k.choose_index(pixel_first, tasks.index - by_pixel * groups, by_group)
            image = chunk // pixel_chunks
            part = chunk - image * pixel_chunks
            tile_first, tile_last = part * tiles // pixel_chunks, (part + 1) * tiles // pixel_chunks
            x_image, y_image = x + image * image_stride, y + image * out_image_stride
            block = k.table_entry(channel_blocks, group)
            panel = weights + group * weights_stride
            x_group = x_image + k.table_entry(group_inputs, group)
            if shape.parted:
                y_places = [
                    k.table_pointer(y, (block + column) * 2) + image * k.table_entry(y, (block + column) * 2 + 1)
                    for column in range(columns)
                ]
            else:
                y_places = [y_image + k.table_entry(out_blocks, block + column) for column in range(columns)]
            if shape.residual:
                image_residual = residual + image * residual_image_stride
                residual_places = [
                    image_residual + k.table_entry(residual_blocks, block + column) for column in range(columns)
                ]
            if shape.tail:
                used = k.pointer(Slot.USED_LANES)
                kept = [k.lane_range(0, k.table_entry(used, block + column)) for column in range(columns)]
            start = [k.load(bias + block * lanes, column * lanes) for column in range(columns)]
            with k.loop(tile_first, tile_last) as over_tiles:
                row = over_tiles.index // across
                pixel = k.minimum_index((over_tiles.index - row * across) * rows, pixels - rows)
                here = x_group + (row * row_stride + pixel * shape.row_stride)
                place = (row * pixels + pixel) * pixel_words
                for column in range(columns):
                    ask_for(k, y_places[column] + place, rows * pixel_words, write=True)
                if shape.residual:
                    residual_words = numbers.residual.words(lanes)
                    same = residual_words == pixel_words
                    residual_place = place if same else (row * pixels + pixel) * residual_words
                    for column in range(columns):
                        ask_for(k, residual_places[column] + residual_place, rows * residual_words)
                sums = multiply(
                    k, [start[i % columns] for i in range(rows * columns)], here, panel, table, entries,
                    rows=rows, columns=columns, row_stride=shape.row_stride, steps=shape.steps, deep=shape.deep,
                    numbers=numbers,
                    ahead=panel_ahead(
                        k, panel, weights_stride, over_tiles.index - tile_first, tile_last - tile_first, entries,
                        panel_floats,
                    ),
                )  # fmt: skip
                for column in range(columns):
                    for r in range(rows):
                        value = sums[r * columns + column]
                        if shape.residual:
                            other = residual_places[column] + residual_place
                            value = value + load(k, numbers.residual, other, r * residual_words)
                        value = activate(k, value, shape.activation)
                        if shape.tail:
                            # Zero weights would not do: an infinite input times zero is no number.
                            value = k.select(kept[column], value, 0.0)
                        store(k, numbers.output, value, y_places[column] + place, r * pixel_words)

    return module


def _source(shape: Shape) -> Callable[[], str]:
    return lambda: str(convolution(shape))


def _reason_against(step: Step) -> str | None:
    if step.constant(1) is None:
        return "the weights are not constant"
    if len(operand(step, 0).shape) not in (3, 4):
        return "not a convolution over one or two axes"
    if len({output.element for output in step.outputs}) > 1:
        return "outputs stored in different numbers"
    return None


def _accepts_direct(weights: Element, arithmetic: Element, step: Step) -> str | None:
    if reason := _reason_against(step) or reason_against(weights, arithmetic, step):
        return reason
    c = read_convolution(step)
    if operand(step, 0).layout != "blocked":
        return "the input is not in channel blocks"
    if c.groups > 1 and (c.channels // c.groups % step.lanes or c.outputs // c.groups % step.lanes):
        return f"channels of a group are not a multiple of {step.lanes}"
    if arithmetic == "fp16" and c.outputs // c.groups <= step.lanes:
        return f"up to {step.lanes} output channels fill half a register of FP16"
    return None


def _accepts_first(step: Step) -> str | None:
    if reason := _reason_against(step):
        return reason
    if operand(step, 0).layout != "plain":
        return "for plain input (a first layer) only"
    return "groups" if read_convolution(step).groups > 1 else None


def _pixels(c: Convolution) -> int:
    """Return how many output pixels lie in one run: the whole map for a pointwise convolution, else a row."""
    return c.out_height * c.out_width if c.pointwise else c.out_width


def _tiles(arithmetic: Element, step: Step) -> list[Tile]:
    c = read_convolution(step)
    each, pixels = blocks(c.outputs // c.groups, step.lanes), _pixels(c)
    found: list[tuple[float, Tile]] = []
    for rows, columns in register_tiles(step.lanes, pixels, each):
        if rows * columns < min(8, pixels * each) and rows < pixels:
            continue
        if arithmetic == "fp16" and columns % 2:  # a register holds two columns
            continue
        waste = -(-pixels // rows) * rows / pixels * (-(-each // columns) * columns / each)
        loads = (rows + columns) / (rows * columns)
        found.append((waste * (1 + 0.15 * loads), {"rows": rows, "columns": columns}))
    found.sort(key=lambda pair: pair[0])
    shapes = [tile for _, tile in found[:6]]
    # Every tile of pixels reads a panel again: of long sums a narrower one may be all that stays in L2.
    narrow = [tile for _, tile in found if _panel_floats(step, c, tile) * 8 <= (step.machine.l2_bytes or 1 << 20)]
    shapes += [tile for tile in narrow[:2] if tile not in shapes]
    return [{**tile, **chunks} for tile in shapes for chunks in _chunkings(step, c, tile)]


def _panel_floats(step: Step, c: Convolution, tile: Tile) -> int:
    """Return the weights that one register tile reads."""
    depth = blocks(c.channels // c.groups, step.lanes) * step.lanes * prod(c.kernel)
    return depth * tile["columns"] * step.lanes


def _chunkings(step: Step, c: Convolution, tile: Tile) -> list[Tile]:
    """Return ways to cut the work: by output channels (weights read once), or by pixels (input read once)."""
    groups = len(first_blocks(c.outputs, c.groups, step.lanes, tile["columns"]))
    tiles = -(-_pixels(c) // tile["rows"]) * (1 if c.pointwise else c.out_height)
    ways: list[Tile] = []
    if groups >= step.threads:
        ways.append({"pixel_chunks": 1, "group_chunks": groups, "pixels_outside": 0})
    l2_bytes = (step.machine.l2_bytes or 1 << 20) // 4
    input_bytes = c.channels * c.height * c.width * 4
    wanted = max(-(-input_bytes // l2_bytes), -(-step.threads // c.images))
    chunks = min(tiles, -(-wanted * c.images // step.threads) * step.threads // c.images or 1)
    ways.append({"pixel_chunks": max(1, chunks), "group_chunks": 1, "pixels_outside": 1})
    if c.images == 1 and tiles >= 2 * step.threads and chunks < tiles:
        ways.append({"pixel_chunks": min(tiles, 4 * step.threads), "group_chunks": 1, "pixels_outside": 1})
    return ways


def _pixel_chunks(step: Step, c: Convolution, tile: Tile, groups: int) -> int:
    """Return the chunks of pixels in an image: more than the tile says where there would be few tasks to share."""
    tiles = -(-_pixels(c) // tile["rows"]) * (1 if c.pointwise else c.out_height)
    tasks = c.images * tile["pixel_chunks"] * groups
    finer = -(-TASKS_OF_A_THREAD * step.threads // tasks) if step.threads > 1 else 1
    return max(tile["pixel_chunks"], min(tile["pixel_chunks"] * finer, tiles // LEAST_TILES))


def _seconds(weights: Element, arithmetic: Element, step: Step, tile: Tile) -> float:
    c = read_convolution(step)
    each = blocks(c.outputs // c.groups, step.lanes)
    rows, columns, pixels = tile["rows"], tile["columns"], _pixels(c)
    waste = -(-pixels // rows) * rows / pixels * (-(-each // columns) * columns * step.lanes * c.groups / c.outputs)
    if operand(step, 0).layout == "blocked":
        waste *= blocks(c.channels, step.lanes) * step.lanes / c.channels
    loads = max(1.0, 1.6 * (rows + columns) / (rows * columns)) * (1.0 if rows * columns >= 12 else 1.3)
    loads *= 1.0 if rows * columns >= 7 else 2.0
    tasks = tile["pixel_chunks"] * tile["group_chunks"] * c.images
    balance = -(-tasks // step.threads) * step.threads / tasks
    arithmetic_s = 2 * c.multiply_adds * waste * loads * balance / (FLOPS_PER_S_AND_LANE * step.lanes * step.threads)
    arithmetic_s /= PRODUCTS_AT_ONCE[arithmetic]
    weight_bytes = known(step, 1).size * ELEMENT_BYTES[weights]
    traffic = weight_bytes / MEMORY_BYTES_PER_S / min(step.threads, 2) * (0.5 if c.images > 1 else 1.0)
    reread = weight_bytes * (tile["pixel_chunks"] * c.images if tile["pixels_outside"] else 1)
    cache = reread / CACHE_BYTES_PER_S / step.threads
    panel = _panel_floats(step, c, tile) * ELEMENT_BYTES[weights]
    if 2 * panel > (step.machine.l2_bytes or 1 << 20):
        runs = c.images * -(-pixels // rows) * (1 if c.pointwise else c.out_height)
        cache += weight_bytes * runs / SPILLED_BYTES_PER_S / step.threads
    copied = 2 * c.images * c.channels * c.height * c.width * 4 / CACHE_BYTES_PER_S
    copy = copied if any(c.pads) or _converted(arithmetic, operand(step, 0)) else 0.0
    return max(arithmetic_s, cache) + 0.5 * traffic + copy


def _converted(arithmetic: Element, x: Tensor) -> bool:
    """Return whether the input is stored otherwise than the products need it."""
    return x.element != arithmetic


def _framed(c: Convolution) -> tuple[int, int]:
    """Return height and width of the input with its padding."""
    return c.height + c.pads[0] + c.pads[2], c.width + c.pads[1] + c.pads[3]


def _scratch_bytes(arithmetic: Element, step: Step, tile: Tile) -> int:
    c, x = read_convolution(step), operand(step, 0)
    if not any(c.pads) and not _converted(arithmetic, x):
        return 0
    height, width = _framed(c)
    channels = blocks(c.channels, step.lanes) * step.lanes if x.layout == "blocked" else c.channels
    return c.images * channels * height * width * ELEMENT_BYTES[arithmetic] + 64 * step.lanes


def _calls(weights: Element, arithmetic: Element, step: Step, tile: Tile) -> tuple[Call, ...]:
    c, lanes, x = read_convolution(step), step.lanes, operand(step, 0)
    blocked, residual = x.layout == "blocked", residual_of(step)
    numbers = numbers_of(step, weights, arithmetic, residual)
    pixel, planes = (numbers.input.words(lanes), blocks(c.channels, lanes)) if blocked else (1, c.channels)
    height, width = _framed(c)
    plane_stride = x.block_stride if blocked else c.height * c.width
    image_stride = x.image_stride if blocked else c.channels * c.height * c.width
    source: Word = Operand(x.name)
    calls: tuple[Call, ...] = ()
    if _converted(arithmetic, x):
        source, here = Scratch(), stored(x.element, step.machine)
        there = stored(numbers.input.element, step.machine)
        framed: tuple[Word, ...] = (
            Operand(x.name), Scratch(), c.images, planes, image_stride, plane_stride, c.height, c.width,
            c.pads[0], c.pads[2], c.pads[1], c.pads[3], c.width * here.words(lanes),
        )  # fmt: skip
        calls = (Call(framing_name(lanes, here, there), lambda: str(framing(lanes, here, there)), framed),)
        plane_stride = height * width * pixel
        image_stride = planes * plane_stride
    elif any(c.pads):
        source = Scratch()
        words: tuple[Word, ...] = (
            Operand(x.name), Scratch(), c.images, planes, image_stride, plane_stride, c.height, c.width * pixel,
            c.pads[0], c.pads[2], c.pads[1] * pixel, c.pads[3] * pixel, c.width * pixel,
        )  # fmt: skip
        calls = (Call(f"padding_{lanes}", lambda: str(padding(lanes)), words),)
        plane_stride = height * width * pixel
        image_stride = planes * plane_stride
    # Neighbouring taps of a plain row lie side by side unless dilated; a long row of them would be unrolled code.
    together = c.kernel[1] if c.dilations[1] == 1 and c.kernel[1] <= MOST_STEPS else 1
    steps = pixel if blocked else together
    taps_across = c.kernel[1] if blocked else c.kernel[1] // together
    parted = len(step.outputs) > 1
    entries = planes // c.groups * c.kernel[0] * taps_across
    shape = Shape(
        lanes, tile["rows"], tile["columns"], c.strides[1] * pixel, steps, c.activation, c.residual,
        has_tail(step), parted, weights == "fp32" and entries * steps > LONGEST_RUN, numbers,
    )  # fmt: skip

    def panels() -> np.ndarray:
        made = _pack(step, c, tile["columns"], blocked)
        return pairs(made) if numbers.pairs else packed(made, weights)

    def table() -> np.ndarray:
        plane = np.arange(planes // c.groups)[:, None, None] * plane_stride
        down = np.arange(c.kernel[0])[None, :, None] * (c.dilations[0] * width * pixel)
        across = np.arange(taps_across)[None, None, :] * (c.dilations[1] * pixel)
        return np.ascontiguousarray((plane + down + across).reshape(-1), np.int64)

    starts = first_blocks(c.outputs, c.groups, lanes, tile["columns"])
    group_of = starts // blocks(c.outputs // c.groups, lanes)
    group_stride = planes // c.groups * plane_stride
    kind = "" if weights == "fp32" else f" {weights}{' pairs' if numbers.pairs else ''}"
    y = step.outputs[0]
    target: Word = Places(tuple(out.name for out in step.outputs)) if parted else Operand(y.name)
    rows, row_stride = (1, 0) if c.pointwise else (c.out_height, c.strides[0] * width * pixel)
    words = (
        source, Packed(f"weights {lanes} {tile['columns']}{kind}", panels),
        Packed("bias", lambda: padded_bias(step, c.outputs, lanes)), target,
        Operand(residual.name) if residual else 0, Packed(f"table {plane_stride}", table), entries,
        c.images, image_stride, rows, row_stride, _pixels(c), y.image_stride,
        Packed("output blocks", lambda: output_offsets(step)), residual.image_stride if residual else 0,
        Packed("residual blocks", lambda: residual_offsets(step)), len(starts),
        Packed(f"first blocks {tile['columns']}", lambda: starts),
        Packed(f"group inputs {tile['columns']} {plane_stride}", lambda: group_of * group_stride),
        _pixel_chunks(step, c, tile, len(starts)), tile["pixels_outside"],
        Packed("used lanes", lambda: used_lanes(step)),
    )  # fmt: skip
    return (*calls, Call(shape.name, _source(shape), words))


def _pack(step: Step, c: Convolution, columns: int, blocked: bool) -> np.ndarray:
    """Return weights [group of channels][entry][step][columns·V]; entry and step as the table walks the input."""
    lanes, weights = step.lanes, known(step, 1)
    outputs, channels = blocks(c.outputs, lanes) * lanes, c.channels // c.groups
    padded = blocks(channels, lanes) * lanes if blocked else channels
    full = np.zeros((outputs, padded, *c.kernel), np.float32)
    full[: c.outputs, :channels] = spread(step, weights).reshape(c.outputs, channels, *c.kernel)
    if blocked:  # [outputs][block][down][across][lane]
        ordered = full.reshape(outputs, padded // lanes, lanes, *c.kernel).transpose(0, 1, 3, 4, 2)
    else:  # [outputs][channel][down][across]
        ordered = full
    return pack_columns(ordered.reshape(outputs, -1), first_blocks(c.outputs, c.groups, lanes, columns), lanes, columns)


def _direct(name: str, weights: Element, arithmetic: Element) -> Algorithm:
    def error(step: Step) -> float:
        sums = HALF_SUMS_ERROR if arithmetic == "fp16" else direct_error(step)
        return hypot(sums, rounding_error(weights, arithmetic))

    return Algorithm(
        name, ("FusedConv",), partial(_accepts_direct, weights, arithmetic), partial(_tiles, arithmetic),
        partial(_seconds, weights, arithmetic), partial(_calls, weights, arithmetic),
        partial(_scratch_bytes, arithmetic), error, weights, arithmetic, True,
    )  # fmt: skip


DIRECT = _direct("direct", "fp32", "fp32")
DIRECT_HALF = (
    _direct("direct, fp16 weights", "fp16", "fp32"),
    _direct("direct, bf16 weights", "bf16", "fp32"),
    _direct("direct bf16", "bf16", "bf16"),
    _direct("direct fp16", "fp16", "fp16"),
)
FIRST_LAYER = Algorithm(
    "first layer", ("FusedConv",), _accepts_first, partial(_tiles, "fp32"), partial(_seconds, "fp32", "fp32"),
    partial(_calls, "fp32", "fp32"), partial(_scratch_bytes, "fp32"), halves=True,
)  # fmt: skip
