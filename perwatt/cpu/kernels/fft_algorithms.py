"""FFT convolution as algorithms a plan can choose: tiles of 16 x 16, fused or shared."""

from functools import partial
from math import ceil, sqrt

import numpy as np

from perwatt.cpu.kernels.dense import (
    CACHE_BYTES_PER_S,
    FLOPS_PER_S_AND_LANE,
    MEMORY_BYTES_PER_S,
    REGISTERS,
    Convolution,
    blocks,
    first_blocks,
    known,
    operand,
    output_offsets,
    padded_bias,
    read_convolution,
    residual_of,
    residual_offsets,
)
from perwatt.cpu.kernels.fft import Shape, fft_fused, fft_shared
from perwatt.cpu.kernels.fft_transform import REAL_PLANES, transform_weights
from perwatt.plan.algorithm import Algorithm, Call, Operand, Packed, Scratch, Step, Tile, Word

MOST_TILES = 6


def _steps(size: int, c: Convolution) -> tuple[int, int]:
    """Return how many output rows and columns a tile gives."""
    return size + 1 - c.kernel[0], size + 1 - c.kernel[1]


def _multiplications(size: int) -> int:
    """Return the real multiplications of one tile's products, for a pair of channels."""
    return 2 * (size * size - REAL_PLANES) + REAL_PLANES


def _tiles_of(size: int, c: Convolution) -> tuple[int, int]:
    down, across = _steps(size, c)
    return -(-c.out_height // down), -(-c.out_width // across)


def _tile_count(size: int, c: Convolution) -> int:
    down, across = _tiles_of(size, c)
    return c.images * down * across


def accepts(size: int, shared: bool, step: Step) -> str | None:
    """Return why an FFT of size x size tiles cannot do the step, or None."""
    if step.constant(1) is None:
        return "the weights are not constant"
    if len(step.outputs) > 1:
        return "several outputs"
    if len(operand(step, 0).shape) != 4:
        return "not a convolution over height and width"
    if operand(step, 0).layout != "blocked":
        return "the input is not in channel blocks"
    c = read_convolution(step)
    if c.strides != (1, 1) or c.dilations != (1, 1):
        return "strided or dilated"
    if max(c.kernel) > size * 3 // 4:
        return f"the window is too large for tiles of {size}x{size}"
    down, across = _steps(size, c)
    if down * across * c.kernel[0] * c.kernel[1] <= _multiplications(size):
        return "the window is so small that no multiplications are saved"
    if c.groups > 1 and (c.channels // c.groups % step.lanes or c.outputs // c.groups % step.lanes):
        return f"channels of a group are not a multiple of {step.lanes}"
    if c.channels // c.groups < 8:
        return "too few input channels to pay for the transforms"
    if shared and _tile_count(size, c) > 128:
        return "too many tiles for one shared transform"
    if not shared and _tile_count(size, c) < step.threads:
        return "fewer tiles than threads"
    return None


def tiles(size: int, shared: bool, step: Step) -> list[Tile]:
    """Return register tiles of complex products and blocks of FFT tiles worth trying, best estimate first."""
    c = read_convolution(step)
    count, each = _tile_count(size, c), blocks(c.outputs // c.groups, step.lanes)
    per_thread = -(-count // step.threads)
    per_tile = 4 * (size * size + 1) * step.lanes * (blocks(c.channels, step.lanes) + 2)
    fitting = int((step.machine.l2_bytes or 1 << 20) * 0.6) // per_tile
    found: list[Tile] = []
    for columns in range(1, min(each, 4) + 1):
        for rows in range(1, min(max(count, 2), 16) + 1):
            if 2 * rows * columns + 2 * columns + 1 > REGISTERS[step.lanes]:
                continue
            if shared:
                sizes = {-(-count // rows) * rows}
            else:
                sizes = {max(rows, min(n, per_thread) // rows * rows) for n in (fitting, 8, 12, 16, 24, 32)}
                sizes.add(max(rows, -(-per_thread // rows) * rows) if per_thread <= 40 else rows)
            found += [{"rows": rows, "columns": columns, "block": block} for block in sorted(sizes)]
    found.sort(key=lambda tile: seconds(size, shared, step, tile))
    return found[:MOST_TILES]


def seconds(size: int, shared: bool, step: Step, tile: Tile) -> float:
    """Return the estimated time: products, transforms, and the passage of the weights."""
    c, lanes = read_convolution(step), step.lanes
    count, rows, columns, block = _tile_count(size, c), tile["rows"], tile["columns"], tile["block"]
    starts = len(first_blocks(c.outputs, c.groups, lanes, columns))
    reduction = blocks(c.channels // c.groups, lanes) * lanes
    rate = FLOPS_PER_S_AND_LANE / 2  # vector instructions a second
    # The thread with most work decides.
    passages = 1 if shared else ceil(ceil(count / block) / step.threads)
    own_tiles = count if shared else min(count, passages * block)
    own_starts = -(-starts // step.threads) if shared else starts
    padded = passages * (-(-min(block, count) // rows) * rows)
    loads = max(1.0, 1.6 * (rows + columns) / (2 * rows * columns)) * (1.0 if rows * columns >= 6 else 2.0)
    products = _multiplications(size) * padded * own_starts * columns * reduction * loads / rate
    operations = 14 * size * size  # of one tile's transform, V channels at once
    inputs = own_tiles * blocks(c.channels, lanes) / (step.threads if shared else 1)
    transforms = operations * (inputs + own_tiles * own_starts * columns) / rate
    weights = 4 * size * size * reduction * columns * lanes
    memory = weights * starts / MEMORY_BYTES_PER_S / min(step.threads, 2) * (1.0 if c.images == 1 else 0.3)
    cache = weights * own_starts * passages / CACHE_BYTES_PER_S
    per_tile = 4 * size * size * lanes
    if block * per_tile * (blocks(c.channels, lanes) + columns) > 0.8 * (step.machine.l2_bytes or 1 << 20):
        cache += (
            own_tiles
            * own_starts
            * per_tile
            * (blocks(c.channels // c.groups, lanes) + 2 * columns)
            / CACHE_BYTES_PER_S
        )
    return max(products, cache) + 0.7 * memory + transforms


def _scratch_layout(size: int, shared: bool, step: Step, tile: Tile) -> tuple[int, int]:
    """Return (floats of the shared transformed input, floats of each thread's part)."""
    c = read_convolution(step)
    plane = tile["block"] * (size * size + 1) * step.lanes
    transformed, products = blocks(c.channels, step.lanes) * plane, tile["columns"] * plane
    return (transformed, products) if shared else (0, transformed + products)


def scratch_bytes(size: int, shared: bool, step: Step, tile: Tile) -> int:
    """Return the bytes of transformed input and products, of all threads."""
    common, part = _scratch_layout(size, shared, step, tile)
    return 4 * (common + part * step.threads)


def calls(size: int, shared: bool, step: Step, tile: Tile) -> tuple[Call, ...]:
    """Return the kernel calls: one when fused, two when the transformed input is shared."""
    c, lanes, x, y = read_convolution(step), step.lanes, operand(step, 0), step.outputs[0]
    shape = Shape(lanes, size, tile["rows"], tile["columns"], c.activation, c.residual)
    down, across = _tiles_of(size, c)
    step_down, step_across = _steps(size, c)
    common, part = _scratch_layout(size, shared, step, tile)
    columns, block_floats = tile["columns"], tile["block"] * shape.tile_floats
    starts = first_blocks(c.outputs, c.groups, lanes, columns)
    group_blocks = blocks(c.channels // c.groups, lanes)
    group_of = starts // blocks(c.outputs // c.groups, lanes)
    residual = residual_of(step)
    words: tuple[Word, ...] = (
        Operand(x.name), Packed(f"fft {size} {columns}", lambda: _pack(size, step, c, starts, columns)),
        Packed("bias", lambda: padded_bias(step, c.outputs, lanes)), Operand(y.name),
        Operand(residual.name) if residual else 0, Scratch(4 * common), part, Scratch(),
        Packed(f"fft table {block_floats}", lambda: np.arange(group_blocks, dtype=np.int64) * block_floats),
        blocks(c.channels, lanes), c.height, c.width, down, across, _tile_count(size, c), tile["block"],
        x.image_stride, x.block_stride, c.pads[0], c.pads[1], c.out_height, c.out_width, y.image_stride,
        Packed("output blocks", lambda: output_offsets(step)), residual.image_stride if residual else 0,
        Packed("residual blocks", lambda: residual_offsets(step)), len(starts),
        Packed(f"first blocks {columns}", lambda: starts), group_blocks,
        Packed(f"fft group inputs {columns} {block_floats}", lambda: group_of * (group_blocks * block_floats)),
        step_down, step_across,
    )  # fmt: skip
    if not shared:
        return (Call(f"{shape.stem}_fused", lambda: str(fft_fused(shape)), words),)
    return tuple(
        Call(f"{shape.stem}_shared_{half}", lambda: str(fft_shared(shape)), words) for half in ("input", "output")
    )


def _pack(size: int, step: Step, c: Convolution, starts: np.ndarray, columns: int) -> np.ndarray:
    """Return transformed weights [group of channels]: real frequencies [C][columns·V], then complex ones twice that."""
    lanes, weights = step.lanes, known(step, 1)
    channels = c.channels // c.groups
    padded, width = blocks(channels, lanes) * lanes, columns * lanes
    packed = np.zeros((len(starts), size * size * padded * width), np.float32)
    for panel, start in zip(packed, starts * lanes, strict=True):
        taken = weights[start : start + width]
        planes = np.zeros((size * size, width, padded))
        planes[:, : len(taken), :channels] = transform_weights(size, taken)
        real, parts = planes[:REAL_PLANES], planes[REAL_PLANES:].reshape(-1, 2, width, padded)
        panel[: real.size] = real.transpose(0, 2, 1).reshape(-1)
        panel[real.size :] = parts.transpose(0, 3, 1, 2).reshape(-1)
    return packed


def error(size: int, step: Step) -> float:
    """Return the expected error: the transforms' own, and that of adding up the input channels."""
    channels = operand(step, 1).shape[1]
    return sqrt(1.5e-7**2 + (6.3e-9**2) * channels)


def _algorithm(size: int, shared: bool) -> Algorithm:
    return Algorithm(
        f"fft {size} {'shared' if shared else 'fused'}",
        ("FusedConv",),
        partial(accepts, size, shared),
        partial(tiles, size, shared),
        partial(seconds, size, shared),
        partial(calls, size, shared),
        partial(scratch_bytes, size, shared),
        partial(error, size),
    )


FFT = tuple(_algorithm(16, shared) for shared in (False, True))
