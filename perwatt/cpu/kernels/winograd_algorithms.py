"""Winograd as algorithms a plan can choose: F(2,3), F(4,3), F(6,3), F(2,5), F(4,5), each fused, shared or staged.

In halves: F(2,3) with BF16 products, and the smaller tiles with transformed weights stored in FP16. Larger tiles would
multiply the error of a half (F(4,3) by four), so their transform domain stays FP32; maps may be halves with all.
"""

from dataclasses import dataclass
from functools import partial
from math import hypot, prod, sqrt
from typing import Literal

import numpy as np

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
    known,
    operand,
    output_offsets,
    padded_bias,
    read_convolution,
    register_tiles,
    residual_of,
    residual_offsets,
)
from perwatt.cpu.kernels.storage import numbers_of, packed, pairs, reason_against, stored
from perwatt.cpu.kernels.winograd import WINOGRAD_RUN, Shape, winograd_fused, winograd_shared, winograd_staged
from perwatt.cpu.kernels.winograd_transform import ERRORS, transform
from perwatt.plan.algorithm import Algorithm, Call, Operand, Packed, Scratch, Step, Tile, Word
from perwatt.plan.precision import ELEMENT_BYTES, Element, rounding_error

Mode = Literal["fused", "shared", "staged"]
MODES: tuple[Mode, ...] = ("fused", "shared", "staged")
# How much more error a rounding of the transformed weights makes than one of the weights themselves; measured.
AMPLIFIED = {(2, 3): 1.6, (4, 3): 4.1, (2, 5): 4.9}


@dataclass(frozen=True)
class Kind:
    """F(outputs, taps) in a mode, with weights stored and products computed in these."""

    outputs: int
    taps: int
    mode: Mode
    weights: Element = "fp32"
    arithmetic: Element = "fp32"

    @property
    def name(self) -> str:
        """The algorithm's name."""
        halves = "" if self.weights == "fp32" else ", fp16 weights" if self.arithmetic == "fp32" else " bf16"
        return f"winograd F({self.outputs},{self.taps}) {self.mode}{halves}"


def accepts(kind: Kind, step: Step) -> str | None:
    """Return why F(outputs, taps) cannot do the step, or None."""
    outputs, taps, mode = kind.outputs, kind.taps, kind.mode
    if step.constant(1) is None:
        return "the weights are not constant"
    if reason := reason_against(kind.weights, kind.arithmetic, step):
        return reason
    if len(step.outputs) > 1:
        return "several outputs"
    if len(operand(step, 0).shape) != 4:
        return "not a convolution over height and width"
    c = read_convolution(step)
    if c.kernel != (taps, taps):
        return f"the window is not {taps}x{taps}"
    if c.strides != (1, 1) or c.dilations != (1, 1):
        return "strided or dilated"
    if operand(step, 0).layout != "blocked":
        return "the input is not in channel blocks"
    if c.groups > 1 and (c.channels // c.groups % step.lanes or c.outputs // c.groups % step.lanes):
        return f"channels of a group are not a multiple of {step.lanes}"
    if c.channels // c.groups < 8:
        return "too few input channels to pay for the transforms"
    if mode == "shared" and _tile_count(c, outputs) > 512:
        return "too many tiles for one shared transform"
    if mode == "staged" and _tile_count(c, outputs) < 24:
        return "too few tiles to take the stages apart"
    if mode == "fused" and _tile_count(c, outputs) < step.threads:
        return "fewer tiles than threads"
    return None


def _tiles_of(c: Convolution, outputs: int) -> tuple[int, int]:
    return -(-c.out_height // outputs), -(-c.out_width // outputs)


def _tile_count(c: Convolution, outputs: int) -> int:
    down, across = _tiles_of(c, outputs)
    return c.images * down * across


def tiles(kind: Kind, step: Step) -> list[Tile]:
    """Return register tiles and blocks of Winograd tiles worth trying, best guess first."""
    outputs, taps, mode = kind.outputs, kind.taps, kind.mode
    c = read_convolution(step)
    count, each = _tile_count(c, outputs), blocks(c.outputs // c.groups, step.lanes)
    planes = (outputs + taps - 1) ** 2
    # Half of L2 for a block's transformed input and products; the rest is for the weights that stream past.
    budget = (step.machine.l2_bytes or 1 << 20) * 0.6
    found: list[tuple[float, Tile]] = []
    for rows, columns in register_tiles(step.lanes, max(count, 2), each):
        registers = {"rows": rows, "columns": columns}
        loads = (rows + columns) / (rows * columns)
        waste_columns = -(-each // columns) * columns / each
        if rows * columns < 8 and rows < count:
            continue
        if mode == "staged":
            # One plane's inputs should fill no more than half of L2; smaller blocks keep the stages nearer to caches.
            most = max(rows, int(budget / 2 / (blocks(c.channels, step.lanes) * step.lanes * 4)))
            for share in (1.0, 0.4):
                chunks = -(-count // min(count, max(rows, int(most * share))))
                block = -(-count // chunks // rows) * rows
                found.append(
                    (waste_columns * block * chunks / count * (1 + 0.3 * loads), {**registers, "block": block})
                )
            continue
        if mode == "shared":
            padded = -(-count // rows) * rows
            score = padded / count * waste_columns * (1 + 0.3 * loads)
            found.append((score, {**registers, "block": padded}))
            continue
        per_tile = planes * (blocks(c.channels, step.lanes) + columns) * step.lanes * 4
        largest = min(int(budget / per_tile), -(-count // step.threads))
        for share in (1.0, 0.5, 2.0):
            block = max(rows, int(largest * share) // rows * rows)
            tasks = -(-count // block)
            balance = -(-tasks // step.threads) * step.threads * block / count
            over = max(1.0, block * per_tile / budget) ** 0.5
            score = waste_columns * balance * over * (1 + 0.3 * loads) * (1 + 1.0 / block)
            found.append((score, {**registers, "block": block}))
    found.sort(key=lambda pair: pair[0])
    unique: list[Tile] = []
    for _, tile in found:
        if tile not in unique:
            unique.append(tile)
    return unique[:6]


def seconds(kind: Kind, step: Step, tile: Tile) -> float:
    """Return the estimated time: products, transforms, and the passage of the weights."""
    outputs, taps, mode = kind.outputs, kind.taps, kind.mode
    c, lanes = read_convolution(step), step.lanes
    size = outputs + taps - 1
    planes, count = size * size, _tile_count(c, outputs)
    rows, columns, block = tile["rows"], tile["columns"], tile["block"]
    starts = len(first_blocks(c.outputs, c.groups, lanes, columns))
    reduction = blocks(c.channels // c.groups, lanes) * lanes
    chunks = -(-count // block)
    tasks = {"fused": chunks, "shared": starts, "staged": starts * planes}[mode]
    balance = -(-tasks // step.threads) * step.threads / tasks
    padded = -(-min(block, count) // rows) * rows * chunks
    loads = max(1.0, 1.6 * (rows + columns) / (rows * columns)) * (1.0 if rows * columns >= 12 else 2.0)
    rate = FLOPS_PER_S_AND_LANE * lanes
    products = 2 * planes * padded * starts * columns * lanes * reduction * loads * balance / (rate * step.threads)
    products /= PRODUCTS_AT_ONCE[kind.arithmetic]
    # About α additions or multiplications for each of α² values, twice (columns and rows), at half the FMA rate.
    transforms = 4 * planes * size * count * (c.channels + 1.5 * c.outputs) * balance / (rate * step.threads)
    weights = ELEMENT_BYTES[kind.weights] * planes * reduction * starts * columns * lanes
    # A block's passage reads all the weights, from memory the first time, from L2 or the cache behind it afterwards.
    apart = mode != "fused"
    passages = chunks if apart else -(-chunks // step.threads)
    memory = weights / MEMORY_BYTES_PER_S / (min(step.threads, 2) if apart else 1) * (1.0 if c.images == 1 else 0.3)
    cache = weights * passages / (step.threads if apart else 1)
    spilled = 0.0
    if mode == "staged":  # transformed inputs and products go through the outer caches, there and back
        spilled = 8 * planes * count * (c.channels + c.outputs) / step.threads
    elif mode == "shared":  # so do the transformed inputs, and a group's products where they do not fit L2
        own = 4 * planes * count * columns * lanes
        spilled = 8 * planes * count * c.channels / step.threads
        spilled += 2 * own * starts / step.threads * (own > 0.5 * (step.machine.l2_bytes or 1 << 20))
    return max(products, cache / CACHE_BYTES_PER_S) + spilled / SPILLED_BYTES_PER_S + 0.7 * memory + transforms


def _plane_floats(step: Step, c: Convolution, tile: Tile, inner: int) -> int:
    return blocks(c.channels, step.lanes) * tile["block"] * inner + step.lanes


def _inner_words(kind: Kind, lanes: int) -> int:
    """Return the words of one vector of the transformed input."""
    return lanes // 2 if kind.arithmetic == "bf16" else lanes


def _product_floats(step: Step, tile: Tile) -> int:
    return tile["columns"] * tile["block"] * step.lanes + step.lanes


def _scratch_layout(kind: Kind, step: Step, tile: Tile) -> tuple[int, int]:
    """Return (floats of the shared transformed input, floats of each thread's part)."""
    c, planes, mode = read_convolution(step), (kind.outputs + kind.taps - 1) ** 2, kind.mode
    transformed = planes * _plane_floats(step, c, tile, _inner_words(kind, step.lanes))
    slack = 32 * step.lanes
    if mode == "staged":
        every = blocks(c.outputs, step.lanes) * tile["block"] * step.lanes + step.lanes
        return transformed + slack + planes * every + slack, 0
    products = planes * _product_floats(step, tile)
    part = (products if mode == "shared" else transformed + products) + slack
    return (transformed if mode == "shared" else 0), -(-part // 16) * 16


def scratch_bytes(kind: Kind, step: Step, tile: Tile) -> int:
    """Return the bytes of transformed input and products, of all threads."""
    common, part = _scratch_layout(kind, step, tile)
    return 4 * (common + part * step.threads)


def calls(kind: Kind, step: Step, tile: Tile) -> tuple[Call, ...]:
    """Return the kernel calls: one when fused, two when shared, three for each block of tiles when staged."""
    outputs, taps, mode = kind.outputs, kind.taps, kind.mode
    c, lanes, x, y = read_convolution(step), step.lanes, operand(step, 0), step.outputs[0]
    tail, inner = c.outputs % lanes > 0, _inner_words(kind, lanes)
    numbers = numbers_of(step, kind.weights, kind.arithmetic, residual_of(step))
    source = stored(x.element, step.machine)
    group_blocks = blocks(c.channels // c.groups, lanes)
    deep = kind.weights == "fp32" and group_blocks * lanes > WINOGRAD_RUN
    shape = Shape(
        lanes, outputs, taps, tile["rows"], tile["columns"], c.activation, c.residual, tail, source, numbers, deep
    )
    down, across = _tiles_of(c, outputs)
    common, part = _scratch_layout(kind, step, tile)
    if mode == "staged":  # products lie behind the transformed inputs
        products_at = 4 * ((outputs + taps - 1) ** 2 * _plane_floats(step, c, tile, inner) + 32 * lanes)
    else:
        products_at = 4 * common
    starts = first_blocks(c.outputs, c.groups, lanes, tile["columns"])
    group_of = starts // blocks(c.outputs // c.groups, lanes)
    block_floats = tile["block"] * inner
    residual = residual_of(step)
    label = f"F({outputs},{taps}) {tile['columns']}"
    label += "" if kind.weights == "fp32" else f" {kind.weights}{' pairs' if numbers.pairs else ''}"
    words: tuple[Word, ...] = (
        Operand(x.name), Packed(label, lambda: _pack(kind, step, c, starts, tile)),
        Packed("bias", lambda: padded_bias(step, c.outputs, lanes)), Operand(y.name),
        Operand(residual.name) if residual else 0, Scratch(products_at), part, Scratch(),
        Packed(f"winograd table {block_floats}", lambda: np.arange(group_blocks, dtype=np.int64) * block_floats),
        blocks(c.channels, lanes), c.height, c.width, down, across, _tile_count(c, outputs), tile["block"],
        x.image_stride, x.block_stride, c.pads[0], c.pads[1], c.out_height, c.out_width, y.image_stride,
        Packed("output blocks", lambda: output_offsets(step)), residual.image_stride if residual else 0,
        Packed("residual blocks", lambda: residual_offsets(step)), len(starts),
        Packed(f"first blocks {tile['columns']}", lambda: starts), group_blocks,
        Packed(
            f"winograd group inputs {tile['columns']} {block_floats}", lambda: group_of * (group_blocks * block_floats)
        ),
        c.outputs,
    )  # fmt: skip
    if mode == "fused":
        return (Call(f"{shape.stem}_fused", lambda: str(winograd_fused(shape)), words),)
    if mode == "shared":
        module = f"{shape.stem}_shared"
        lines, threads = -(-_tile_count(c, outputs) // tile["rows"]), step.threads
        parts = 1 if threads == 1 else max(1, min(-(-TASKS_OF_A_THREAD * threads // len(starts)), lines // LEAST_TILES))
        words = (*words, parts)
        return tuple(
            Call(f"{module}_{half}", lambda: str(winograd_shared(shape)), words, module) for half in ("input", "output")
        )
    count = _tile_count(c, outputs)
    return tuple(
        Call(
            f"{shape.stem}_staged_{stage}",
            lambda: str(winograd_staged(shape)),
            (*words, first, min(tile["block"], count - first), blocks(c.outputs, lanes)),
            f"{shape.stem}_staged",
        )
        for first in range(0, count, tile["block"])
        for stage in ("input", "products", "output")
    )


def _pack(kind: Kind, step: Step, c: Convolution, starts: np.ndarray, tile: Tile) -> np.ndarray:
    """Return transformed weights [group of channels][α²][input channel][columns·V], transformed in float64."""
    weights, lanes, width = known(step, 1), step.lanes, tile["columns"] * step.lanes
    channels = c.channels // c.groups
    matrix = transform(kind.outputs, kind.taps).weights
    both = np.kron(matrix, matrix)  # G g Gᵀ as one matrix for the taps in a row
    taps = weights.reshape(len(weights), channels, -1)
    panels = np.zeros((len(starts), len(both), blocks(channels, lanes) * lanes, width), np.float32)
    for panel, start in zip(panels, starts, strict=True):
        rows = taps[start * lanes : start * lanes + width].T.astype(np.float64)
        panel[:, :channels, : rows.shape[-1]] = (both @ rows.reshape(len(rows), -1)).reshape(-1, *rows.shape[1:])
    return pairs(panels) if kind.arithmetic == "bf16" else packed(panels, kind.weights)


def error(kind: Kind, step: Step) -> float:
    """Return the expected error: the transforms' own, that of adding up the input channels, and that of halves."""
    size = kind.outputs, kind.taps
    channels = operand(step, 1).shape[1] * prod(read_convolution(step).strides)  # after space to depth
    transforms, each = ERRORS[size]
    if kind.weights == "fp32":
        return sqrt(transforms**2 + each**2 * min(channels, WINOGRAD_RUN))
    return hypot(
        sqrt(transforms**2 + each**2 * channels), AMPLIFIED[size] * rounding_error(kind.weights, kind.arithmetic)
    )


def _algorithm(kind: Kind) -> Algorithm:
    return Algorithm(
        kind.name, ("FusedConv",), partial(accepts, kind), partial(tiles, kind), partial(seconds, kind),
        partial(calls, kind), partial(scratch_bytes, kind), partial(error, kind), kind.weights, kind.arithmetic, True,
    )  # fmt: skip


WINOGRAD = tuple(
    _algorithm(Kind(*size, mode)) for size in ((2, 3), (4, 3), (6, 3), (2, 5), (4, 5)) for mode in MODES
)  # fmt: skip
WINOGRAD_HALF = (
    *(_algorithm(Kind(2, 3, mode, "bf16", "bf16")) for mode in MODES),
    *(_algorithm(Kind(*size, mode, "fp16")) for size in ((2, 3), (4, 3), (2, 5)) for mode in MODES),
)
