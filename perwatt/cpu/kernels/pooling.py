"""Pooling of blocked maps: maximum and average over windows, and over whole maps.

A window's columns are first combined over the kernel's rows, then along the row, so that neighbouring windows share
the work. Maxima keep NaN. Averages divide by the number of elements inside the map, or, with count_include_pad, inside
the padded map: factors made with the plan, one table of a row for each number of rows a window can have inside.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import partial, reduce
from math import inf, prod

import numpy as np

from perwatt.cpu.ir import Index, Kernel, Module, Pointer, Vector
from perwatt.cpu.kernels import operands, window
from perwatt.cpu.kernels.operands import blocked
from perwatt.cpu.kernels.storage import FP32, Stored, load, store
from perwatt.cpu.kernels.window import Geometry, Window
from perwatt.plan.algorithm import Algorithm, Call, Operand, Packed, Step, Tile

# Accumulators of one tile: they and a few temporaries must fit the registers.
MOST_COLUMNS = {16: 24, 8: 11, 4: 24}
WITNESSES = 3
GLOBAL_ACCUMULATORS = 4


class Slot(IntEnum):
    """The words of a window kernel behind those of `window.Slot`."""

    FACTORS = window.Slot.MORE  # average: table of floats, one row of the output's width for each kind of output row
    KINDS = FACTORS + 1  # average: table [output row], where its row of factors begins


class GlobalSlot(IntEnum):
    """The words of a global pooling kernel. Strides count floats."""

    INPUT = 0
    OUTPUT = 1
    IMAGES = 2
    BLOCKS = 3
    PIXELS = 4
    IMAGE_STRIDE = 5
    BLOCK_STRIDE = 6
    OUTPUT_IMAGE_STRIDE = 7
    OUTPUT_BLOCK_STRIDE = 8
    FACTOR = 9


def pooling_name(lanes: int, shape: Window, average: bool, source: Stored = FP32, target: Stored = FP32) -> str:
    """Return the name of the kernel that `pooling` writes."""
    return f"pool_{'average' if average else 'max'}_{shape.label}_v{lanes}{operands.suffix(source, target)}"


def pooling(lanes: int, shape: Window, average: bool, source: Stored = FP32, target: Stored = FP32) -> Module:
    """Return the module of one pooling kernel that reads and writes numbers stored so.

    The instruction for a maximum loses NaN. So maxima are taken without a thought for it, while a sum of the same
    elements tells whether there was one (or infinities of both signs); only then the tile is done again with care.
    """
    name = pooling_name(lanes, shape, average, source, target)
    module = Module(name, lanes)
    with module.kernel(name) as k:
        outside = window.outside_vector(k, 0.0 if average else -inf, source)
        with window.output_rows(k, target) as place, window.tiles(k, shape) as (pixel, left):
            for border in (False, True):
                tile = _Tile(shape, place, pixel, left, outside if border else None, source, target)
                with window.when_at_border(k, shape, left, border):
                    if average:
                        _average(k, tile)
                    else:
                        _maximum(k, tile)
    return module


@dataclass(frozen=True)
class _Tile:
    """Neighbouring outputs of one row; `outside` as for window.kernel_rows."""

    shape: Window
    place: window.Place
    pixel: Index
    left: Index
    outside: Pointer | None
    source: Stored
    target: Stored


def _average(k: Kernel, tile: _Tile) -> None:
    kind = k.table_entry(k.pointer(Slot.KINDS), tile.place.row)
    factors = k.pointer(Slot.FACTORS) + kind + tile.pixel
    sums, _ = _combined(k, tile, lambda a, b: a + b, 0.0, 0)
    _store(k, tile, [value * k.broadcast(factors, i) for i, value in enumerate(sums)])


def _maximum(k: Kernel, tile: _Tile) -> None:
    maxima, witness = _combined(k, tile, k.larger, -inf, WITNESSES)
    _store(k, tile, maxima)
    with k.when(k.any_lane(reduce(lambda a, b: a + b, witness).is_nan())):
        _store(k, tile, _combined(k, tile, k.maximum, -inf, 0)[0])


def _combined(
    k: Kernel, tile: _Tile, combine: Callable[[Vector, Vector], Vector], nothing: float, witnesses: int
) -> tuple[list[Vector], list[Vector]]:
    """Return (the tile's outputs, sums over parts of the elements read)."""
    shape, columns = tile.shape, tile.shape.columns

    def add_row(values: list[Vector], column: Callable[[int], Vector], kernel_row: Index) -> list[Vector]:
        read = [column(j) for j in columns]
        made = [combine(value, new) for value, new in zip(values, read, strict=False)]
        sums = values[len(columns) :]
        for i in range(len(read) if witnesses else 0):
            sums[i % witnesses] = sums[i % witnesses] + read[i]
        return [*made, *sums]

    start = [k.constant(nothing)] * len(columns) + [k.constant(0.0)] * witnesses
    values = window.kernel_rows(k, shape, tile.place, tile.left, tile.outside, start, add_row, tile.source)
    done = dict(zip(columns, values, strict=False))
    outputs = [
        reduce(combine, [done[i * shape.stride + t * shape.dilation] for t in range(shape.taps)])
        for i in range(shape.outputs)
    ]
    return outputs, values[len(columns) :]


def _store(k: Kernel, tile: _Tile, outputs: Sequence[Vector]) -> None:
    words = tile.target.words(k.lanes)
    for i, value in enumerate(outputs):
        store(k, tile.target, value, tile.place.target + tile.pixel * words, i * words)


def whole_name(lanes: int, average: bool, source: Stored = FP32, target: Stored = FP32) -> str:
    """Return the name of the kernel that `whole_map` writes."""
    return f"pool_whole_{'average' if average else 'max'}_v{lanes}{operands.suffix(source, target)}"


def whole_map(lanes: int, average: bool, source: Stored = FP32, target: Stored = FP32) -> Module:
    """Return the kernel that takes the maximum or the average of whole maps, stored so."""
    name, several = whole_name(lanes, average, source, target), GLOBAL_ACCUMULATORS
    words = source.words(lanes)
    module = Module(name, lanes)
    with module.kernel(name) as k:
        combine = (lambda a, b: a + b) if average else k.maximum
        blocks, pixels = k.argument(GlobalSlot.BLOCKS), k.argument(GlobalSlot.PIXELS)
        factor = k.broadcast(k.pointer(GlobalSlot.FACTOR))
        first, last = k.share(k.argument(GlobalSlot.IMAGES) * blocks)
        with k.loop(first, last) as tasks:
            image = tasks.index // blocks
            block = tasks.index - image * blocks
            offset = image * k.argument(GlobalSlot.IMAGE_STRIDE) + block * k.argument(GlobalSlot.BLOCK_STRIDE)
            x = k.pointer(GlobalSlot.INPUT) + offset
            start = [k.constant(0.0 if average else -inf)] * several
            even = pixels // several * several
            with k.loop(0, even, several, carry=start) as pieces:
                here = x + pieces.index * words
                read = [load(k, source, here, i * words) for i in range(several)]
                pieces.carry([combine(*pair) for pair in zip(pieces.carried, read, strict=True)])
            with k.loop(even, pixels, carry=[reduce(combine, pieces.results)]) as rest:
                rest.carry([combine(rest.carried[0], load(k, source, x, rest.index * words))])
            out_image_stride = k.argument(GlobalSlot.OUTPUT_IMAGE_STRIDE)
            place = image * out_image_stride + block * k.argument(GlobalSlot.OUTPUT_BLOCK_STRIDE)
            result = rest.results[0] * factor if average else rest.results[0]
            store(k, target, result, k.pointer(GlobalSlot.OUTPUT) + place)
    return module


def _covers_whole_map(g: Geometry) -> bool:
    return g.out_size == (1, 1) and g.kernel == g.size and g.pads == (0, 0) and g.dilations == (1, 1)


def _accepts(step: Step) -> str | None:
    x, _ = operands.data(step)
    if not operands.everything_is(step, "blocked"):
        return "input and output must be blocked"
    if len(step.outputs) > 1:
        return "gives no indices of the maxima"
    if len(x.shape) not in (3, 4):
        return f"needs one or two spatial axes, got shape {x.shape}"
    g = window.geometry(step)
    most = MOST_COLUMNS[step.lanes]
    if not _covers_whole_map(g) and len(Window(g.kernel[1], g.strides[1], g.dilations[1], 1).columns) > most:
        return f"the window is wider than {most} columns"
    if not (_counts(g, 0) > 0).all() or not (_counts(g, 1) > 0).all():
        return "some window lies in the padding altogether"
    return None


def _tiles(step: Step) -> tuple[Tile, ...]:
    """Prefer the tile that computes the fewest pixels twice, then the widest."""
    g = window.geometry(step)
    if _covers_whole_map(g):
        return ({"outputs": 1},)
    width, most = g.out_size[1], MOST_COLUMNS[step.lanes]
    fitting = [
        outputs
        for outputs in range(1, min(width, 8) + 1)
        if len(Window(g.kernel[1], g.strides[1], g.dilations[1], outputs).columns) <= most
    ]
    # Every output costs its own stores, every tile its shared columns.
    cost = {
        o: -(-width // o) * (o + len(Window(g.kernel[1], g.strides[1], g.dilations[1], o).columns)) for o in fitting
    }
    return tuple({"outputs": outputs} for outputs in sorted(fitting, key=lambda o: (cost[o], -o))[:3])


def _counts(g: Geometry, axis: int, before: int = 0, behind: int = 0) -> np.ndarray:
    """Return for each output how many taps along an axis lie inside the map grown by so many pixels at both ends."""
    start = np.arange(g.out_size[axis])[:, None] * g.strides[axis] - g.pads[axis]
    taps = start + np.arange(g.kernel[axis]) * g.dilations[axis]
    return np.asarray(((taps >= -before) & (taps < g.size[axis] + behind)).sum(axis=1))


def _factors(g: Geometry, ends: tuple[int, int], include_pad: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return (factors [kinds, output width], the kind's offset for each output row)."""
    grown = [(g.pads[axis], ends[axis]) if include_pad else (0, 0) for axis in (0, 1)]
    kinds, kind = np.unique(_counts(g, 0, *grown[0]), return_inverse=True)
    factors = 1 / np.outer(kinds, _counts(g, 1, *grown[1]))
    return factors.astype(np.float32), np.asarray(kind * g.out_size[1], np.int64)


def _calls(step: Step, tile: Tile) -> tuple[Call, ...]:
    g, average = window.geometry(step), step.operator == "AveragePool"
    if _covers_whole_map(g):
        return _whole_calls(step, average)
    shape = Window(g.kernel[1], g.strides[1], g.dilations[1], tile["outputs"])
    more: tuple[Packed, ...] = ()
    if average:
        pads = operands.wholes(step, "pads")
        ends = (0, pads[1]) if len(pads) == 2 else (pads[2], pads[3])
        include = bool(operands.whole(step, "count_include_pad"))
        more = (
            Packed("factors", lambda: _factors(g, ends, include)[0]),
            Packed("kinds", lambda: _factors(g, ends, include)[1]),
        )
    kind = (step.lanes, shape, average, *operands.storage(step))
    return (Call(pooling_name(*kind), operands.text(partial(pooling, *kind)), (*window.words(step, g), *more)),)


def _whole_calls(step: Step, average: bool) -> tuple[Call, ...]:
    source, target = operands.data(step)
    x, y = blocked(source, step.lanes), blocked(target, step.lanes)
    strides = (x.image_stride, x.block_stride, y.image_stride, y.block_stride)
    factor = Packed("factor", lambda: np.array([1 / x.pixels], np.float32))
    words = (Operand(source.name), Operand(target.name), x.images, x.blocks, x.pixels, *strides, factor)
    kind = (step.lanes, average, *operands.storage(step))
    return (Call(whole_name(*kind), operands.text(partial(whole_map, *kind)), words),)


def _accepts_whole(step: Step) -> str | None:
    x, y = operands.data(step)
    if not operands.everything_is(step, "blocked"):
        return "input and output must be blocked"
    if prod(x.shape[2:]) == 0:
        return "the map is empty"
    if step.operator.startswith("Reduce"):
        axes = tuple(sorted(operands.wholes(step, "axes")))
        if axes != tuple(range(2, len(x.shape))) or len(y.shape) not in (2, len(x.shape)):
            return f"reduces blocked maps over all their pixels only, got axes {axes}"
    return None


def _calls_whole(step: Step, tile: Tile) -> tuple[Call, ...]:
    return _whole_calls(step, step.operator in ("GlobalAveragePool", "ReduceMean"))


POOLING = Algorithm(
    "pooling", ("MaxPool", "AveragePool"), _accepts, _tiles, operands.traffic_seconds, _calls, halves=True
)
GLOBAL_POOLING = Algorithm(
    "global pooling", ("GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceMax"),
    _accepts_whole, operands.one_tile, operands.traffic_seconds, _calls_whole, halves=True,
)  # fmt: skip
