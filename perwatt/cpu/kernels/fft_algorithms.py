"""FFT convolution as algorithms a plan can choose: tiles of 16 x 16 or 32 x 32, each fused or shared.

Where it wins (one core with AVX-512 and 1 MB of L2, effective GFLOP/s of direct / best Winograd / FFT 16 / FFT 32):
  32 -> 32, 11x11 at 64²                             100 /  -  / 715 / 1800
  64 -> 64, 7x7 at 56²                               113 /  -  / 790 / 540
  64 -> 64, 9x9 at 28²                               113 /  -  / 750 / 560
  64 -> 64, 7x7 at 14²                               113 /  -  / 370 / 125
  64 -> 64, 5x5 at 112²                              114 / 535 / 535 / 575
  96 -> 256 in two groups, 5x5 at 27², 24 images     113 / 457 / 343 / 549
  32 -> 96, 5x5 at 28², 8 images                     115 / 552 / 373 / 619
  96 -> 256, 5x5 at 27², one image                   111 / 520 / 312 / weights of 100 MB
  64 -> 64, 3x3 at 112²                              110 / 334 / 261 / -
Least CPU time of one thread over 10 to 25 calls with weights in cache, on a machine in use by others; the figures of a
line are not all of one run, so differences below a tenth say little. Tuning has the last word.

It errs less than direct convolution does, and with 64 channels an eighth (with 256 a quarter) of what F(4,5) does.
Windows as small as 3x3 are left to Winograd. Tiles of 8 x 8 hardly won anywhere. Gauss's three real products per
complex one need larger weights and use registers less well: of five tiles tried of each, its best took 0.9 to 1.4 times
as long as the best with four. Prefetch instructions helped large blocks only, which are slower than small ones.
"""

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

SIZES = (16, 32)
MOST_TILES = 3
FEWEST_TAPS = 10
MOST_WEIGHT_BYTES = 64 << 20
# Between L2 and the cache behind it: tiles, one frequency at a time, which no prefetcher sees; and weights, which one
# does see. Weights too large for caches come from memory, two threads getting twice as much as one.
SPILLED_BYTES_PER_S = 12e9
STREAMED_BYTES_PER_S = 25e9
STREAMED_FROM_MEMORY_BYTES_PER_S = 20e9
# Root of the mean square error over that of the result, in FP32: the transforms' part, and that of each input channel
# (root of their sum), measured over 16 to 256 channels and windows from 3x3 to 11x11; the window does not matter.
TRANSFORM_ERROR, CHANNEL_ERROR = 1.25e-7, 2.15e-8


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
    taps = c.kernel[0] * c.kernel[1]
    if taps < FEWEST_TAPS:
        return "Winograd or direct convolution is faster for so small a window"
    if c.out_height * c.out_width * taps < 2 * _multiplications(size) * _tile_count(size, c) // c.images:
        return "less than half the multiplications are saved"
    if _weight_bytes(size, step, c) > MOST_WEIGHT_BYTES:
        return f"transformed weights would fill more than {MOST_WEIGHT_BYTES >> 20} MiB"
    if c.groups > 1 and (c.channels // c.groups % step.lanes or c.outputs // c.groups % step.lanes):
        return f"channels of a group are not a multiple of {step.lanes}"
    if c.channels // c.groups < 8:
        return "too few input channels to pay for the transforms"
    if shared and _tile_count(size, c) > 16 * step.threads:
        return "too many tiles for one shared transform"
    if not shared and _tile_count(size, c) < step.threads:
        return "fewer tiles than threads"
    return None


def _weight_bytes(size: int, step: Step, c: Convolution) -> int:
    lanes = step.lanes
    return 4 * size * size * blocks(c.channels // c.groups, lanes) * lanes * blocks(c.outputs, lanes) * lanes


def tiles(size: int, shared: bool, step: Step) -> list[Tile]:
    """Return register tiles of complex products and blocks of FFT tiles worth trying, best estimate first.

    All have one number of columns, so that weights, which are large, are packed once.
    """
    c = read_convolution(step)
    count, each = _tile_count(size, c), blocks(c.outputs // c.groups, step.lanes)
    per_thread = -(-count // step.threads)
    per_tile = 4 * (size * size + 1) * step.lanes * (blocks(c.channels, step.lanes) + 2)
    fitting = int((step.machine.l2_bytes or 1 << 20) * 0.7) // per_tile
    found: list[Tile] = []
    for columns in range(1, min(each, 4) + 1):
        for rows in range(1, min(max(count, 2), 16) + 1):
            if 2 * rows * columns + 2 * columns + 1 > REGISTERS[step.lanes]:
                continue
            wanted = (count,) if shared else {min(n, per_thread) for n in (fitting, 4, 8, 12, 16, 24, 32)}
            sizes = sorted({max(1, -(-n // rows)) * rows for n in wanted})
            found += [{"rows": rows, "columns": columns, "block": block} for block in sizes]
    found.sort(key=lambda tile: seconds(size, shared, step, tile))
    return [tile for tile in found if tile["columns"] == found[0]["columns"]][:MOST_TILES]


def seconds(size: int, shared: bool, step: Step, tile: Tile) -> float:
    """Return the estimated time: products, transforms, and the passage of the weights."""
    c, lanes, threads = read_convolution(step), step.lanes, step.threads
    count, rows, columns, block = _tile_count(size, c), tile["rows"], tile["columns"], tile["block"]
    starts = len(first_blocks(c.outputs, c.groups, lanes, columns))
    in_blocks, group_blocks = blocks(c.channels, lanes), blocks(c.channels // c.groups, lanes)
    rate = FLOPS_PER_S_AND_LANE / 2  # vector instructions a second
    # The thread with most work decides.
    passages = 1 if shared else ceil(ceil(count / block) / threads)
    own_tiles = count if shared else min(count, passages * block)
    own_starts = -(-starts // threads) if shared else starts
    padded = passages * (-(-min(block, count) // rows) * rows)
    loads = (0.92 + 0.15 * (rows + columns) / (rows * columns)) * (1.0 if rows * columns >= 6 else 1.3)
    products = _multiplications(size) * padded * own_starts * columns * group_blocks * lanes * loads / rate
    # One tile's transform of V channels at once, in vector instructions.
    operations = 1.4 * size * size * size.bit_length() * 2
    inputs = own_tiles * in_blocks / (threads if shared else 1)
    transforms = operations * (inputs + own_tiles * own_starts * columns) / rate
    weights = 4 * size * size * group_blocks * lanes * columns * lanes
    streamed = weights * own_starts * passages / STREAMED_BYTES_PER_S
    first = weights * starts / MEMORY_BYTES_PER_S / min(threads, 2) * (0.7 if c.images == 1 else 0.2)
    if weights * starts > (step.machine.l3_bytes or 32 << 20):
        rate_here = STREAMED_FROM_MEMORY_BYTES_PER_S * min(threads, 2) / threads
        streamed, first = weights * own_starts * passages / rate_here, 0.0
    streamed += weights * own_starts * passages * (ceil(block / rows) - 1) / CACHE_BYTES_PER_S
    per_tile = 4 * size * size * lanes
    outside = max(0.0, 1 - (step.machine.l2_bytes or 1 << 20) / (block * per_tile * (group_blocks + columns)))
    spilled = outside * own_tiles * per_tile * (in_blocks + own_starts * (group_blocks + 2 * columns))
    return max(products, streamed) + first + transforms + spilled / SPILLED_BYTES_PER_S


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


def error(step: Step) -> float:
    """Return the expected error: the transforms' own, and that of adding up the input channels."""
    channels = operand(step, 1).shape[1]
    return sqrt(TRANSFORM_ERROR**2 + CHANNEL_ERROR**2 * channels)


def _algorithm(size: int, shared: bool) -> Algorithm:
    return Algorithm(
        f"fft {size} {'shared' if shared else 'fused'}",
        ("FusedConv",),
        partial(accepts, size, shared),
        partial(tiles, size, shared),
        partial(seconds, size, shared),
        partial(calls, size, shared),
        partial(scratch_bytes, size, shared),
        error,
    )


FFT = tuple(_algorithm(size, shared) for size in SIZES for shared in (False, True))
