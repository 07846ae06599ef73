"""Matrix products of plain tensors that are both known only when the network runs: MatMul and Gemm.

The first matrix is read by broadcasts, with any strides; rows of the second are read as vectors, so a transposed one is
copied first. Fully connected layers, whose weights are constants, have a kernel of their own in the blocked layout.
"""

from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from math import prod

import numpy as np

from perwatt.cpu.ir import Module
from perwatt.cpu.kernels import operands
from perwatt.cpu.kernels.dense import FLOPS_PER_S_AND_LANE
from perwatt.cpu.kernels.elementwise import plain_call
from perwatt.cpu.kernels.movement import Axis, copy_call, word_of
from perwatt.plan.algorithm import Algorithm, Call, Operand, Packed, Scratch, Step, Tensor, Tile, Word

ROWS, COLUMNS = 4, 2  # of a register tile, in elements and in vectors


class Slot(IntEnum):
    """The words of a call's arguments. Strides and offsets count floats."""

    A = 0
    B = 1
    OUTPUT = 2
    BATCH = 3
    A_OFFSETS = 4  # table [batch]
    B_OFFSETS = 5  # table [batch]
    HEIGHT = 6
    WIDTH = 7
    DEPTH = 8
    A_ROW_STRIDE = 9
    A_STEP = 10  # along the depth


def product_name(lanes: int, rows: int) -> str:
    """Return the name of the kernel that `product` writes."""
    return f"matrix_product_{rows}_v{lanes}"


def product(lanes: int, rows: int) -> Module:
    """Return the kernel that multiplies matrices in tiles of `rows` rows; the last tile overlaps the one before it."""
    name = product_name(lanes, rows)
    module = Module(name, lanes)
    with module.kernel(name) as k:
        height, width, depth = (k.argument(s) for s in (Slot.HEIGHT, Slot.WIDTH, Slot.DEPTH))
        row_stride, step = k.argument(Slot.A_ROW_STRIDE), k.argument(Slot.A_STEP)
        across, down = (width + (COLUMNS * lanes - 1)) // (COLUMNS * lanes), (height + (rows - 1)) // rows
        first, last = k.share(k.argument(Slot.BATCH) * down * across)
        with k.loop(first, last) as tasks:
            line = tasks.index // across
            column = (tasks.index - line * across) * (COLUMNS * lanes)
            matrix = line // down
            row = k.minimum_index((line - matrix * down) * rows, height - rows)
            a = k.pointer(Slot.A) + (k.table_entry(k.pointer(Slot.A_OFFSETS), matrix) + row * row_stride)
            b = k.pointer(Slot.B) + (k.table_entry(k.pointer(Slot.B_OFFSETS), matrix) + column)
            used = [k.lane_range(0, width - column - part * lanes) for part in range(COLUMNS)]
            with k.loop(0, depth, carry=[k.constant(0.0)] * (rows * COLUMNS)) as over:
                here, there = a + over.index * step, b + over.index * width
                parts = [k.load_lanes(there + part * lanes, used[part]) for part in range(COLUMNS)]
                sums = []
                for i in range(rows):
                    factor = k.broadcast(here, row_stride * i)
                    sums += [
                        k.multiply_add(factor, parts[part], over.carried[i * COLUMNS + part]) for part in range(COLUMNS)
                    ]
                over.carry(sums)
            y = k.pointer(Slot.OUTPUT) + ((matrix * height + row) * width + column)
            for i in range(rows):
                for part in range(COLUMNS):
                    k.store_lanes(over.results[i * COLUMNS + part], y + width * i + part * lanes, used[part])
    return module


@dataclass(frozen=True)
class _Product:
    """A step as matrices: (batch, height, depth) times (batch, depth, width)."""

    batch: tuple[int, ...]
    height: int
    width: int
    depth: int
    a_batch: tuple[int, ...]
    b_batch: tuple[int, ...]
    a_transposed: bool = False
    b_transposed: bool = False


def _product(step: Step) -> _Product:
    left, right = (t.shape for t in step.inputs[:2] if t is not None)
    if step.operator == "Gemm":
        turned = bool(operands.whole(step, "transA")), bool(operands.whole(step, "transB"))
        height, depth = left[::-1] if turned[0] else left
        return _Product((), height, right[0] if turned[1] else right[1], depth, (), (), *turned)
    rows, columns = left if len(left) > 1 else (1, *left), right if len(right) > 1 else (*right, 1)
    batch = np.broadcast_shapes(rows[:-2], columns[:-2])
    return _Product(batch, rows[-2], columns[-1], rows[-1], rows[:-2], columns[:-2])


def _batch_offsets(shape: tuple[int, ...], batch: tuple[int, ...], matrix: int) -> np.ndarray:
    """Return where each matrix of a broadcast batch begins."""
    numbers = np.arange(prod(shape), dtype=np.int64).reshape(shape) * matrix
    return np.ascontiguousarray(np.broadcast_to(numbers, batch).reshape(-1))


def _accepts(step: Step) -> str | None:
    if not operands.everything_is(step, "plain"):
        return "inputs and output must be plain"
    return None


def _seconds(step: Step, tile: Tile) -> float:
    p = _product(step)
    multiply_adds = prod(p.batch) * p.height * p.width * p.depth
    arithmetic = 4 * multiply_adds / (FLOPS_PER_S_AND_LANE * step.lanes * step.threads)
    return max(operands.traffic_seconds(step, tile), arithmetic)


def _scratch(step: Step, tile: Tile) -> int:
    p = _product(step)
    return 4 * p.width * p.depth if p.b_transposed else 0


def _calls(step: Step, tile: Tile) -> tuple[Call, ...]:
    p, y, calls = _product(step), step.outputs[0], []
    if prod(y.shape) == 0:
        return ()
    right: Word = word_of(step, 1)
    if p.b_transposed:
        axes = [Axis(p.depth, 1, p.width), Axis(p.width, p.depth, 1)]
        calls.append(copy_call(step, right, Scratch(), axes, "turned"))
        right = Scratch()
    rows = min(ROWS, p.height)
    strides = (1, p.height) if p.a_transposed else (p.depth, 1)
    words = (
        word_of(step, 0), right, Operand(y.name), prod(p.batch),
        Packed("a offsets", lambda: _batch_offsets(p.a_batch, p.batch, p.height * p.depth)),
        Packed("b offsets", lambda: _batch_offsets(p.b_batch, p.batch, p.depth * p.width)),
        p.height, p.width, p.depth, *strides,
    )  # fmt: skip
    source = operands.text(partial(product, step.lanes, rows))
    calls.append(Call(product_name(step.lanes, rows), source, words))
    if step.operator == "Gemm":
        calls += _add_third(step, y)
    return tuple(calls)


def _add_third(step: Step, y: Tensor) -> list[Call]:
    """Return the call that makes alpha·AB + beta·C of AB, where there is anything to do."""
    alpha, beta = operands.real(step, "alpha"), operands.real(step, "beta")
    third = step.inputs[2] if len(step.inputs) > 2 else None
    own: tuple[Tensor, Word] = (y, Operand(y.name))
    if third is None:
        return [] if alpha == 1 else [plain_call(step, "Scale", (alpha,), [own])]
    return [plain_call(step, "WeightedSum", (alpha, beta), [own, (third, word_of(step, 2))])]


MATRIX_PRODUCT = Algorithm(
    "matrix product", ("MatMul", "Gemm"), _accepts, operands.one_tile, _seconds, _calls, _scratch
)
