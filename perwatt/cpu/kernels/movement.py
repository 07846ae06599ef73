"""Elements moved, not computed: one kernel that copies along up to six axes, each with offsets of its own.

An axis is a size, the offsets of its positions in the source and a stride in the target. Transposing, slicing,
splitting, joining, padding and repeating are all lists of such axes. Blocked tensors have axes too (image, block,
rows, columns, lane): what leaves channels alone works on them as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from math import isfinite, prod

import numpy as np

from perwatt.cpu.ir import Module
from perwatt.cpu.kernels import operands
from perwatt.cpu.kernels.operands import blocked
from perwatt.plan.algorithm import Algorithm, Call, Operand, Packed, Step, Tensor, Tile, Word

OUTER_AXES = 5
WORTH_SPLITTING = 1024


class Slot(IntEnum):
    """The words of a call's arguments. Offsets and strides count floats. The five outer axes have two tables each."""

    INPUT = 0
    OUTPUT = 1
    INPUT_OFFSET = 2
    OUTPUT_OFFSET = 3
    SIZES = 4  # of the five outer axes
    INNER = 9
    ROW_CHUNKS = 10  # parts of the fifth axis
    INNER_CHUNKS = 11
    INPUT_STRIDE = 12  # along the innermost axis
    OUTPUT_STRIDE = 13
    INNER_TABLE = 14  # table [inner]: offsets in the input
    TABLES = 15  # five tables of offsets in the input, then five in the output


@dataclass(frozen=True)
class Axis:
    """One axis of a copy: its size, where its positions lie in the source (a stride, or a list of offsets), and in the
    target (a stride)."""

    size: int
    source: int | tuple[int, ...]
    target: int


def copy_name(lanes: int, inner: str) -> str:
    """Return the name of the kernel that `copy` writes."""
    return f"copy_{inner}_v{lanes}"


def copy(lanes: int, inner: str) -> Module:
    """Return a copying kernel by what its innermost axis is: `vectors`, one value to `fill` with, `strides`, or a
    `table` of offsets."""
    name = copy_name(lanes, inner)
    module = Module(name, lanes)
    with module.kernel(name) as k:
        sizes = [k.argument(Slot.SIZES + axis) for axis in range(OUTER_AXES)]
        in_tables = [k.pointer(Slot.TABLES + axis) for axis in range(OUTER_AXES)]
        out_tables = [k.pointer(Slot.TABLES + OUTER_AXES + axis) for axis in range(OUTER_AXES)]
        row_chunks, inner_chunks, length = (k.argument(s) for s in (Slot.ROW_CHUNKS, Slot.INNER_CHUNKS, Slot.INNER))
        x = k.pointer(Slot.INPUT) + k.argument(Slot.INPUT_OFFSET)
        y = k.pointer(Slot.OUTPUT) + k.argument(Slot.OUTPUT_OFFSET)
        first, last = k.share(sizes[0] * sizes[1] * sizes[2] * sizes[3] * row_chunks * inner_chunks)
        with k.loop(first, last) as tasks:
            rest = tasks.index // inner_chunks
            inner_chunk = tasks.index - rest * inner_chunks
            above = rest // row_chunks
            row_chunk = rest - above * row_chunks
            here, there = x, y
            for axis in (3, 2, 1, 0):
                rest = above
                above = rest // sizes[axis]
                at = rest - above * sizes[axis]
                here = here + k.table_entry(in_tables[axis], at)
                there = there + k.table_entry(out_tables[axis], at)
            start, stop = inner_chunk * length // inner_chunks, (inner_chunk + 1) * length // inner_chunks
            row, end = row_chunk * sizes[4] // row_chunks, (row_chunk + 1) * sizes[4] // row_chunks
            whole = start + (stop - start) // lanes * lanes
            with k.loop(row, end) as rows:
                source = here + k.table_entry(in_tables[4], rows.index)
                target = there + k.table_entry(out_tables[4], rows.index)
                if inner in ("vectors", "fill"):
                    value = k.broadcast(source) if inner == "fill" else None
                    with k.loop(start, whole, lanes) as over:
                        k.store(k.load(source, over.index) if value is None else value, target, over.index)
                    with k.when(whole < stop):
                        used = stop - whole
                        k.store_masked(
                            k.load_masked(source + whole, used) if value is None else value, target + whole, used
                        )
                else:
                    in_stride, out_stride = k.argument(Slot.INPUT_STRIDE), k.argument(Slot.OUTPUT_STRIDE)
                    with k.loop(start, stop) as over:
                        at = over.index * in_stride
                        if inner == "table":
                            at = k.table_entry(k.pointer(Slot.INNER_TABLE), over.index)
                        k.store_first(k.broadcast(source, at), target, over.index * out_stride)
    return module


# -- planning


def merged(axes: Sequence[Axis]) -> list[Axis]:
    """Return the fewest axes that mean the same; the innermost comes last. An empty axis makes all of it empty."""
    found: list[Axis] = []
    for axis in reversed([axis for axis in axes if axis.size != 1 or isinstance(axis.source, tuple)]):
        inner = found[0] if found else None
        if (
            inner is not None and isinstance(axis.source, int) and isinstance(inner.source, int)
            and axis.source == inner.source * inner.size and axis.target == inner.target * inner.size
        ):  # fmt: skip
            found[0] = Axis(axis.size * inner.size, inner.source, inner.target)
        else:
            found.insert(0, axis)
    return found or [Axis(1, 0, 1)]


def copy_call(
    step: Step, source: Word, target: Word, axes: Sequence[Axis], label: str, source_offset: int = 0,
    target_offset: int = 0,
) -> Call:  # fmt: skip
    """Return the call that copies along these axes; `label` tells its tables from those of the step's other calls."""
    used = merged(axes)
    inner = used[-1]
    outer = [Axis(1, 0, 0)] * (OUTER_AXES + 1 - len(used)) + used[:-1]
    assert len(outer) == OUTER_AXES, f"{step.name}: {len(used)} axes"
    form = "strides"
    if isinstance(inner.source, tuple):
        form = "table"
    elif inner.target == 1 and inner.source in (0, 1):
        form = "vectors" if inner.source else "fill"
    above = prod(axis.size for axis in outer[:4])
    # Split rows where there are many, else the innermost axis.
    rows = outer[4].size
    row_chunks = operands.chunks(step, above, max(1, rows * inner.size // WORTH_SPLITTING)) if rows > 1 else 1
    row_chunks = min(row_chunks, rows) if rows else 1
    inner_chunks = 1 if rows > 1 else operands.chunks(step, above, max(1, inner.size // WORTH_SPLITTING))

    def offsets(axis: Axis) -> np.ndarray:
        return np.array(axis.source) if isinstance(axis.source, tuple) else np.arange(axis.size) * axis.source

    tables = [Packed(f"{label} from {i}", partial(offsets, axis)) for i, axis in enumerate(outer)]
    tables += [Packed(f"{label} to {i}", partial(_strided, axis)) for i, axis in enumerate(outer)]
    words: list[Word] = [source, target, source_offset, target_offset, *(axis.size for axis in outer), inner.size]
    words += [row_chunks, inner_chunks, inner.source if isinstance(inner.source, int) else 0, inner.target]
    words.append(Packed(f"{label} inner", partial(offsets, inner)) if form == "table" else 0)
    return Call(copy_name(step.lanes, form), operands.text(partial(copy, step.lanes, form)), (*words, *tables))


def _strided(axis: Axis) -> np.ndarray:
    return np.arange(axis.size) * axis.target


def strides(tensor: Tensor, lanes: int) -> list[tuple[int, int]]:
    """Return (size, stride) of each axis; a blocked tensor's channel axis is its blocks, and the lanes come last."""
    if tensor.layout == "plain":
        return [(size, prod(tensor.shape[i + 1 :])) for i, size in enumerate(tensor.shape)]
    b = blocked(tensor, lanes)
    spatial = [(size, lanes * prod(tensor.shape[i + 3 :])) for i, size in enumerate(tensor.shape[2:])]
    return [(b.images, b.image_stride), (b.blocks, b.block_stride), *spatial, (lanes, 1)]


def word_of(step: Step, position: int) -> Word:
    """Return the address of an input, which may be a constant."""
    tensor = step.inputs[position]
    assert tensor is not None
    known = step.constants.get(tensor.name)
    if known is None:
        return Operand(tensor.name)
    return Packed(f"constant {position}", lambda: np.ascontiguousarray(known, np.float32))


def _axes_touched(step: Step) -> tuple[int, ...]:
    """Return the axes along which the operator does anything."""
    x, y = operands.data(step)
    match step.operator:
        case "Transpose":
            return tuple(axis for axis, source in enumerate(operands.wholes(step, "perm")) if axis != source)
        case "Concat" | "Split":
            return (operands.whole(step, "axis"),)
        case "Slice":
            return operands.wholes(step, "axes")
        case _:
            return tuple(axis for axis, (a, b) in enumerate(zip(x.shape, y.shape, strict=True)) if a != b)


def _accepts(step: Step) -> str | None:
    if operands.everything_is(step, "blocked"):
        if step.operator == "Transpose" or len(step.outputs[0].shape) < 3 or 1 in _axes_touched(step):
            return "blocked: along spatial axes only"
        if step.operator == "Pad" and not isfinite(operands.real(step, "value")):
            return "blocked: pads with finite values only"
        if any(t is not None and t.name in step.constants for t in step.inputs):
            return "blocked: takes no constants"
    elif not operands.everything_is(step, "plain"):
        return "inputs and outputs must have the same layout"
    elif step.operator == "Transpose" and any(len(merged(axes)) > OUTER_AXES + 1 for axes in (_transposed(step),)):
        return f"moves more than {OUTER_AXES + 1} axes"
    elif step.operator != "Transpose" and len(step.outputs[0].shape) > OUTER_AXES + 1:
        return f"needs at most {OUTER_AXES + 1} axes"
    return None


def _transposed(step: Step) -> list[Axis]:
    x, y = operands.data(step)
    source, target = strides(x, step.lanes), strides(y, step.lanes)
    perm = operands.wholes(step, "perm")
    return [Axis(size, source[axis][1], stride) for axis, (size, stride) in zip(perm, target, strict=True)]


def _calls(step: Step, tile: Tile) -> tuple[Call, ...]:
    x, y = operands.data(step)
    source, target = strides(x, step.lanes), strides(y, step.lanes)
    match step.operator:
        case "Transpose":
            return (copy_call(step, word_of(step, 0), Operand(y.name), _transposed(step), "axes"),)
        case "Slice":
            return (_slice(step, source, target),)
        case "Split":
            return _parts(step, step.outputs, source, False)
        case "Concat":
            return _parts(step, [t for t in step.inputs if t is not None], target, True)
        case _:
            return _pad(step, source, target)


def _slice(step: Step, source: list[tuple[int, int]], target: list[tuple[int, int]]) -> Call:
    steps, offset = [stride for _, stride in source], 0
    columns = (operands.wholes(step, name) for name in ("starts", "axes", "steps"))
    for start, axis, jump in zip(*columns, strict=True):
        offset += start * steps[axis] if target[axis][0] else 0
        steps[axis] *= jump
    axes = [Axis(size, from_, to) for (size, to), from_ in zip(target, steps, strict=True)]
    return copy_call(step, word_of(step, 0), Operand(step.outputs[0].name), axes, "axes", offset)


def _parts(step: Step, parts: Sequence[Tensor], whole: list[tuple[int, int]], joined: bool) -> tuple[Call, ...]:
    """Return one copy for each part of a Split or Concat."""
    axis, calls, offset = operands.whole(step, "axis"), [], 0
    for i, part in enumerate(parts):
        own = strides(part, step.lanes)
        pairs = [(size, mine, of_whole) for (size, mine), (_, of_whole) in zip(own, whole, strict=True)]
        if joined:
            axes = [Axis(size, mine, of_whole) for size, mine, of_whole in pairs]
            calls.append(copy_call(step, word_of(step, i), Operand(step.outputs[0].name), axes, f"{i}", 0, offset))
        else:
            axes = [Axis(size, of_whole, mine) for size, mine, of_whole in pairs]
            calls.append(copy_call(step, word_of(step, 0), Operand(part.name), axes, f"{i}", offset))
        offset += part.shape[axis] * whole[axis][1]
    return tuple(calls)


def _pad(step: Step, source: list[tuple[int, int]], target: list[tuple[int, int]]) -> tuple[Call, ...]:
    x, y = operands.data(step)
    mode, pads, rank = step.attributes["mode"], operands.wholes(step, "pads"), len(x.shape)
    read, write = word_of(step, 0), Operand(y.name)
    axes: list[Axis] = []
    offsets = [0, 0]
    for i, ((size, from_), (out_size, to)) in enumerate(zip(source, target, strict=True)):
        before, behind = (pads[i], pads[i + rank]) if i < rank else (0, 0)
        if mode == "constant" or before == behind == 0:
            offsets[0] += max(-before, 0) * from_
            offsets[1] += max(before, 0) * to
            axes.append(Axis(max(0, size + min(before, 0) + min(behind, 0)), from_, to))
            continue
        kept = np.arange(size)[max(-before, 0) : size + min(behind, 0)]
        picked = np.pad(kept, (max(before, 0), max(behind, 0)), mode=str(mode))  # type: ignore[call-overload]
        assert len(picked) == out_size
        axes.append(Axis(out_size, tuple(int(p) * from_ for p in picked), to))
    moved = copy_call(step, read, write, axes, "inside", *offsets)
    if mode != "constant":
        return (moved,)
    value = operands.real(step, "value")
    all_of_it = [Axis(size, 0, to) for size, to in target]
    filled = copy_call(step, Packed("value", lambda: np.array([value], np.float32)), write, all_of_it, "border")
    return (filled, moved)


MOVEMENT = Algorithm(
    "movement", ("Transpose", "Slice", "Split", "Concat", "Pad"), _accepts, operands.one_tile,
    operands.traffic_seconds, _calls,
)  # fmt: skip
