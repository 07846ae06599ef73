"""Fully connected layers on the convolution kernel: images take the place of pixels.

At one image the register tile is one row wide: a matrix-vector product that streams the weights, one contiguous region
for each thread, and is bound by memory. At many images a panel of weights is read once for all of them.
"""

from functools import partial
from math import hypot

import numpy as np

from perwatt.cpu.kernels.convolution import Shape, convolution
from perwatt.cpu.kernels.dense import (
    CACHE_BYTES_PER_S,
    FLOPS_PER_S_AND_LANE,
    MEMORY_BYTES_PER_S,
    PRODUCTS_AT_ONCE,
    activation_of,
    blocks,
    first_blocks,
    has_tail,
    known,
    operand,
    output_offsets,
    pack_columns,
    padded_bias,
    register_tiles,
    residual_of,
    residual_offsets,
    used_lanes,
)
from perwatt.cpu.kernels.padding import framing, framing_name
from perwatt.cpu.kernels.storage import numbers_of, packed, pairs, reason_against, stored
from perwatt.cpu.kernels.tile import HALF_SUMS_ERROR, LONGEST_RUN
from perwatt.plan.algorithm import Algorithm, Call, Operand, Packed, Scratch, Step, Tile, Word, direct_error
from perwatt.plan.precision import ELEMENT_BYTES, Element, rounding_error


def _accepts(weights: Element, arithmetic: Element, step: Step) -> str | None:
    if step.constant(1) is None:
        return "the weights are not constant"
    if reason := reason_against(weights, arithmetic, step):
        return reason
    if operand(step, 0).layout != "blocked":
        return "the input is not in channel blocks"
    if arithmetic == "fp16" and known(step, 1).shape[0] <= step.lanes:
        return f"up to {step.lanes} outputs fill half a register of FP16"
    return None


def _sizes(step: Step) -> tuple[int, int, int]:
    """Return (images, vectors of input channels, outputs)."""
    x = operand(step, 0)
    return x.shape[0], _depth_blocks(step), known(step, 1).shape[0]


def _flattened(step: Step) -> tuple[int, int, int] | None:
    """Return (channels, height, width) of the map that was flattened into the input, or None."""
    shape = step.attributes.get("flattened")
    if shape is None:
        return None
    assert isinstance(shape, tuple)
    return int(shape[0]), int(shape[1]), int(shape[2])


def _depth_blocks(step: Step) -> int:
    flattened = _flattened(step)
    if flattened is None:
        return blocks(operand(step, 0).shape[1], step.lanes)
    channels, height, width = flattened
    return blocks(channels, step.lanes) * height * width


def _tiles(arithmetic: Element, step: Step) -> list[Tile]:
    images, _, outputs = _sizes(step)
    each = blocks(outputs, step.lanes)
    found: list[tuple[float, Tile]] = []
    for rows, columns in register_tiles(step.lanes, images, each):
        if rows * columns < min(8, images * each) and rows < images:
            continue
        if arithmetic == "fp16" and columns % 2:  # a register holds two columns
            continue
        waste = -(-images // rows) * rows / images * (-(-each // columns) * columns / each)
        found.append((waste * (1 + 0.3 * (rows + columns) / (rows * columns)), {"rows": rows, "columns": columns}))
    found.sort(key=lambda pair: pair[0])
    tiles: list[Tile] = []
    for _, tile in found[:5]:
        groups = len(first_blocks(outputs, 1, step.lanes, tile["columns"]))
        tiles.append({**tile, "pixel_chunks": 1, "group_chunks": groups, "pixels_outside": 0})
    return tiles


def _seconds(weights: Element, arithmetic: Element, step: Step, tile: Tile) -> float:
    images, depth, outputs = _sizes(step)
    rows, columns = tile["rows"], tile["columns"]
    groups = tile["group_chunks"]
    balance = -(-groups // step.threads) * step.threads / groups
    padded = -(-images // rows) * rows * groups * columns * step.lanes * depth * step.lanes
    loads = max(1.0, 1.6 * (rows + columns) / (rows * columns)) if rows > 1 else 1.0
    rate = FLOPS_PER_S_AND_LANE * PRODUCTS_AT_ONCE[arithmetic]
    arithmetic_s = 2 * padded * loads * balance / (rate * step.lanes * step.threads)
    weight_bytes = ELEMENT_BYTES[weights] * outputs * depth * step.lanes
    memory = weight_bytes / MEMORY_BYTES_PER_S / min(step.threads, 2) * balance
    cache = weight_bytes * -(-images // rows) / CACHE_BYTES_PER_S / step.threads
    return max(arithmetic_s, memory, cache)


def _converted(arithmetic: Element, step: Step) -> bool:
    """Return whether the input is stored otherwise than the products need it."""
    return operand(step, 0).element != arithmetic


def _scratch_bytes(arithmetic: Element, step: Step, tile: Tile) -> int:
    images, depth, _ = _sizes(step)
    if not _converted(arithmetic, step):
        return 0
    return depth * images * step.lanes * ELEMENT_BYTES[arithmetic] + 64 * step.lanes


def _pack(step: Step, starts: np.ndarray, columns: int) -> np.ndarray:
    """Return weights [group of outputs][input channel, in the order the input has][columns·V]."""
    lanes, weights = step.lanes, known(step, 1)
    outputs, depth = weights.shape
    flattened = _flattened(step)
    channels, height, width = flattened if flattened is not None else (depth, 1, 1)
    padded = blocks(channels, lanes) * lanes
    full = np.zeros((blocks(outputs, lanes) * lanes, padded, height * width), np.float32)
    full[:outputs, :channels] = weights.reshape(outputs, channels, height * width)
    # The map's order is channel block, pixel, lane.
    ordered = full.reshape(-1, padded // lanes, lanes, height * width).transpose(0, 1, 3, 2)
    return pack_columns(ordered.reshape(len(full), -1), starts, lanes, columns)


def _calls(weights: Element, arithmetic: Element, step: Step, tile: Tile) -> tuple[Call, ...]:
    lanes, x, y, residual = step.lanes, operand(step, 0), step.outputs[0], residual_of(step)
    images, depth, outputs = _sizes(step)
    numbers = numbers_of(step, weights, arithmetic, residual)
    pixel = numbers.input.words(lanes)
    calls: tuple[Call, ...] = ()
    source: Word = Operand(x.name)
    if _converted(arithmetic, step):  # images take the place of a row's pixels
        source, here = Scratch(), stored(x.element, step.machine)
        there = stored(numbers.input.element, step.machine)
        framed: tuple[Word, ...] = (
            Operand(x.name), Scratch(), 1, depth, 0, images * here.words(lanes), 1, images, 0, 0, 0, 0, 0,
        )  # fmt: skip
        calls = (Call(framing_name(lanes, here, there), lambda: str(framing(lanes, here, there)), framed),)
    shape = Shape(
        lanes, tile["rows"], tile["columns"], pixel, pixel, activation_of(step), residual is not None,
        has_tail(step), deep=weights == "fp32" and depth * lanes > LONGEST_RUN, numbers=numbers,
    )  # fmt: skip
    starts = first_blocks(outputs, 1, lanes, tile["columns"])
    kind = "" if weights == "fp32" else f" {weights}{' pairs' if numbers.pairs else ''}"

    def panels() -> np.ndarray:
        made = _pack(step, starts, tile["columns"])
        return pairs(made) if numbers.pairs else packed(made, weights)

    words: tuple[Word, ...] = (
        source, Packed(f"weights {tile['columns']}{kind}", panels),
        Packed("bias", lambda: padded_bias(step, outputs, lanes)), Operand(y.name),
        Operand(residual.name) if residual else 0,
        Packed(f"table {pixel}", lambda: np.arange(depth, dtype=np.int64) * (images * pixel)), depth, 1, 0, 1, 0,
        images, 0, Packed("output blocks", lambda: output_offsets(step)), 0,
        Packed("residual blocks", lambda: residual_offsets(step)), len(starts),
        Packed(f"first blocks {tile['columns']}", lambda: starts),
        Packed(f"group inputs {tile['columns']}", lambda: np.zeros(len(starts), np.int64)),
        tile["pixel_chunks"], tile["pixels_outside"],
        Packed("used lanes", lambda: used_lanes(step)),
    )  # fmt: skip
    return (*calls, Call(shape.name, lambda: str(convolution(shape)), words))


def _fully_connected(name: str, weights: Element, arithmetic: Element) -> Algorithm:
    def error(step: Step) -> float:
        sums = HALF_SUMS_ERROR if arithmetic == "fp16" else direct_error(step)
        return hypot(sums, rounding_error(weights, arithmetic))

    return Algorithm(
        name, ("FusedGemm",), partial(_accepts, weights, arithmetic), partial(_tiles, arithmetic),
        partial(_seconds, weights, arithmetic), partial(_calls, weights, arithmetic),
        partial(_scratch_bytes, arithmetic), error, weights, arithmetic, True,
    )  # fmt: skip


FULLY_CONNECTED = _fully_connected("fully connected", "fp32", "fp32")
FULLY_CONNECTED_HALF = (
    _fully_connected("fully connected, fp16 weights", "fp16", "fp32"),
    _fully_connected("fully connected, bf16 weights", "bf16", "fp32"),
    _fully_connected("fully connected bf16", "bf16", "bf16"),
    _fully_connected("fully connected fp16", "fp16", "fp16"),
)
