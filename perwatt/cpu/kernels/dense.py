"""What the dense algorithms (direct, first layer, fully connected, Winograd) share: reading a step, tiles, packing."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import numpy as np

from perwatt.cpu.kernels.activation import Activation
from perwatt.plan.algorithm import Step, Tensor
from perwatt.plan.precision import Element

# Register tiles: rows x columns accumulators, `columns` vectors of weights and one broadcast must fit the registers.
REGISTERS = {16: 31, 8: 16, 4: 31}
# Single-core FMA rate and bandwidths assumed by estimates; only their ratios steer the choice.
FLOPS_PER_S_AND_LANE = 6.5e9
CACHE_BYTES_PER_S = 60e9
SPILLED_BYTES_PER_S = 20e9  # of one core, between L2 and the cache behind it, where it is read again and again
MEMORY_BYTES_PER_S = 12e9
# So many tasks let threads of unlike speed finish together; each reads its weights anew, for so many tiles at least.
TASKS_OF_A_THREAD, LEAST_TILES = 8, 4
# How many products of a kind pass in the time of one in FP32, for estimates.
PRODUCTS_AT_ONCE: dict[Element, float] = {"fp32": 1.0, "fp16": 1.9, "bf16": 1.9}


@dataclass(frozen=True)
class Convolution:
    """A FusedConv step read once: sizes, window and what follows."""

    images: int
    channels: int
    height: int
    width: int
    outputs: int
    out_height: int
    out_width: int
    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int, int, int]
    groups: int
    activation: Activation
    residual: bool

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of the direct method, without padding to vectors."""
        window = self.channels // self.groups * prod(self.kernel)
        return self.images * self.outputs * self.out_height * self.out_width * window

    @property
    def pointwise(self) -> bool:
        """Whether every output pixel reads one input pixel, in the same order."""
        return self.kernel == (1, 1) and self.strides == (1, 1) and not any(self.pads)


def activation_of(step: Step) -> Activation:
    """Return the activation a fused step ends with."""
    name = step.attributes["activation"]
    if name is None:
        return Activation()
    alpha, beta = step.attributes["activation_alpha"], step.attributes["activation_beta"]
    assert isinstance(alpha, int | float)
    assert isinstance(beta, int | float)
    return Activation(str(name), float(alpha), float(beta))


def read_convolution(step: Step) -> Convolution:
    """Return the sizes of a FusedConv step; of one with a single spatial axis, that axis is the width."""
    x, y = operand(step, 0), step.outputs[0]
    one_axis = len(x.shape) == 3
    images, channels, height, width = (*x.shape[:2], 1, x.shape[2]) if one_axis else x.shape

    def numbers(name: str) -> tuple[int, ...]:
        value = step.attributes[name]
        assert isinstance(value, tuple)
        return tuple(int(v) for v in value)

    (kernel, strides, dilations, pads) = (numbers(n) for n in ("kernel_shape", "strides", "dilations", "pads"))
    if one_axis:
        kernel, strides, dilations, pads = (1, *kernel), (1, *strides), (1, *dilations), (0, pads[0], 0, pads[1])
    groups = step.attributes["group"]
    assert isinstance(groups, int)
    return Convolution(
        images, channels, height, width, _outputs(step),
        1 if one_axis else y.shape[2], y.shape[-1],
        (kernel[0], kernel[1]), (strides[0], strides[1]), (dilations[0], dilations[1]),
        (pads[0], pads[1], pads[2], pads[3]), groups, activation_of(step), residual_of(step) is not None,
    )  # fmt: skip


def operand(step: Step, position: int) -> Tensor:
    """Return an input that must be there."""
    tensor = step.inputs[position]
    assert tensor is not None
    return tensor


def residual_of(step: Step) -> Tensor | None:
    """Return the tensor that is added before the activation, or None."""
    return step.inputs[3] if len(step.inputs) > 3 else None


def known(step: Step, position: int) -> np.ndarray:
    """Return a constant input that must be known."""
    value = step.constant(position)
    assert value is not None
    return value


def blocks(channels: int, lanes: int) -> int:
    """Return how many vectors hold that many channels."""
    return -(-channels // lanes)


def register_tiles(lanes: int, rows_limit: int, columns_limit: int) -> Iterator[tuple[int, int]]:
    """Yield register tiles (rows, columns) that fit, largest product first; at least 8 accumulators hide the latency.

    One row (a matrix-vector product) takes columns only.
    """
    registers = REGISTERS[lanes]
    fitting = [
        (rows, columns)
        for rows in range(1, min(rows_limit, 30) + 1)
        for columns in range(1, min(columns_limit, 8 if rows == 1 else 6) + 1)
        if rows * columns + columns + 1 <= registers
    ]
    yield from sorted(fitting, key=lambda tile: (-tile[0] * tile[1] / (tile[0] + tile[1] + 0.5), tile))


def first_blocks(outputs: int, groups: int, lanes: int, columns: int) -> np.ndarray:
    """Return the first vector of output channels of each register-wide group; the last of a convolution group overlaps.

    `outputs` are the channels of all `groups` convolution groups, each a multiple of `lanes` where there are several.
    """
    each = blocks(outputs // groups, lanes)
    starts = [min(start, each - columns) for start in range(0, each, columns)]
    return np.array([group * each + start for group in range(groups) for start in starts], np.int64)


def pack_columns(matrix: np.ndarray, starts: np.ndarray, lanes: int, columns: int) -> np.ndarray:
    """Return a matrix (outputs, depth) as [start][depth][columns·V]: `columns` vectors of outputs from each start."""
    width = columns * lanes
    panels = [matrix[start * lanes : start * lanes + width].T for start in starts]
    return np.ascontiguousarray(np.stack(panels), np.float32)


def _outputs(step: Step) -> int:
    """Return the output channels; where there are several outputs each takes whole vectors."""
    if len(step.outputs) == 1:
        return step.outputs[0].shape[1]
    return sum(blocks(out.shape[1], step.lanes) for out in step.outputs) * step.lanes


def spread(step: Step, rows: np.ndarray) -> np.ndarray:
    """Return an array with a row per output channel, with rows of zeros where an output does not fill its vectors."""
    if len(step.outputs) == 1:
        return rows
    full = np.zeros((_outputs(step), *rows.shape[1:]), rows.dtype)
    taken = placed = 0
    for out in step.outputs:
        full[placed : placed + out.shape[1]] = rows[taken : taken + out.shape[1]]
        taken += out.shape[1]
        placed += blocks(out.shape[1], step.lanes) * step.lanes
    return full


def has_tail(step: Step) -> bool:
    """Return whether some vector of output channels is not filled."""
    return any(out.shape[1] % step.lanes for out in step.outputs)


def used_lanes(step: Step) -> np.ndarray:
    """Return how many lanes of each vector of output channels are channels, over all outputs."""
    counts = [
        min(step.lanes, out.shape[1] - first) for out in step.outputs for first in range(0, out.shape[1], step.lanes)
    ]
    return np.array(counts, np.int64)


def padded_bias(step: Step, outputs: int, lanes: int) -> np.ndarray:
    """Return the bias, filled up with zeros to whole vectors."""
    bias = np.zeros(blocks(outputs, lanes) * lanes, np.float32)
    given = step.constant(2)
    if given is not None:
        bias[:outputs] = spread(step, given)
    return bias


def output_offsets(step: Step) -> np.ndarray:
    """Return the offset of each block of V output channels from the first output's start, in floats."""
    out = step.outputs[0]
    return np.arange(blocks(out.shape[1], step.lanes), dtype=np.int64) * out.block_stride


def residual_offsets(step: Step) -> np.ndarray:
    """Return the offset of each block of V channels of the residual, in floats; empty where there is none."""
    tensor = residual_of(step)
    if tensor is None:
        return np.zeros(1, np.int64)
    return np.arange(blocks(tensor.shape[1], step.lanes), dtype=np.int64) * tensor.block_stride
