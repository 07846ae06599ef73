"""ArgMax and ArgMin of plain tensors: the place of the largest or smallest along one axis.

Places are whole numbers in FP32, exact up to 2^24; `run/model.py` hands them out as int64. NaN counts as larger and as
smaller than every number, as in NumPy; of equals the first is taken, or the last with `select_last_index`.
"""

from enum import IntEnum
from functools import partial
from math import inf, prod

from perwatt.cpu.ir import Index, Kernel, Mask, Module, Vector
from perwatt.cpu.kernels import operands
from perwatt.cpu.kernels.movement import word_of
from perwatt.plan.algorithm import Algorithm, Call, Operand, Step, Tile

LONGEST_AXIS = 2**24
# The place in a lane that holds nothing yet: it loses against every other place.
_NOWHERE = {"first": float(2 * LONGEST_AXIS), "last": -1.0}


class Slot(IntEnum):
    """The words of a call's arguments."""

    INPUT = 0  # [outer][axis][inner]
    OUTPUT = 1  # [outer][inner]
    OUTER = 2
    AXIS = 3
    INNER = 4


def places_name(lanes: int, kind: str, which: str, across: bool) -> str:
    """Return the name of the kernel that `places` writes."""
    return f"{which}_{kind}_{'across' if across else 'along'}_v{lanes}"


def places(lanes: int, kind: str, which: str, across: bool) -> Module:
    """Return the kernel for the `which` (first or last) place of the `kind` (largest or smallest) values.

    `across`: lanes are neighbours on the axis, which is the last; else they are neighbours on the last axis.
    """
    name = places_name(lanes, kind, which, across)
    module = Module(name, lanes)
    with module.kernel(name) as k:
        x, y = k.pointer(Slot.INPUT), k.pointer(Slot.OUTPUT)
        axis, inner = k.argument(Slot.AXIS), k.argument(Slot.INNER)
        found = (k.constant(-inf if kind == "largest" else inf), k.constant(_NOWHERE[which]))
        groups = Index(k, k.emit("add i64 0, 1")) if across else (inner + (lanes - 1)) // lanes
        first, last = k.share(k.argument(Slot.OUTER) * groups)
        with k.loop(first, last) as tasks:
            row = tasks.index // groups
            source = x + row * axis * inner
            if across:
                whole = axis // lanes * lanes
                with k.loop(0, whole, lanes, carry=[*found, _lane_numbers(k)]) as over:
                    value, place, here = over.carried
                    over.carry(
                        [*_better(k, kind, which, (k.load(source, over.index), here), (value, place)), here + lanes]
                    )
                value, place, here = over.results
                used = k.lane_range(0, axis - whole)
                rest = (k.select(used, k.load_lanes(source + whole, used), found[0]), k.select(used, here, found[1]))
                value, place = _better(k, kind, which, rest, (value, place))
                distance = lanes // 2
                while distance:
                    turned = [lane ^ distance for lane in range(lanes)]
                    other = (k.shuffle(value, value, turned), k.shuffle(place, place, turned))
                    value, place = _better(k, kind, which, other, (value, place))
                    distance //= 2
                k.store_first(place, y + row)
            else:
                lane = (tasks.index - row * groups) * lanes
                used_lanes = k.minimum_index(inner - lane, lanes)
                with k.loop(0, axis, carry=[*found, k.constant(0.0)], at_least_once=True) as over:
                    value, place, here = over.carried
                    seen = k.load_masked(source + (over.index * inner + lane), used_lanes)
                    over.carry([*_better(k, kind, which, (seen, here), (value, place)), here + 1.0])
                k.store_masked(over.results[1], y + (row * inner + lane), used_lanes)
    return module


def _lane_numbers(k: Kernel) -> Vector:
    return Vector(k, f"<{', '.join(f'float {float(lane)}' for lane in range(k.lanes))}>")


def _better(
    k: Kernel, kind: str, which: str, one: tuple[Vector, Vector], other: tuple[Vector, Vector]
) -> tuple[Vector, Vector]:
    """Return, per lane, which of two (value, place) is to be kept."""
    (value, place), (best, there) = one, other
    nearer = place < there if which == "first" else place > there
    same = k.equal(value, best) | (value.is_nan() & best.is_nan())
    beyond = (value > best if kind == "largest" else value < best) | (value.is_nan() & k.equal(best, best))
    wins: Mask = beyond | (same & nearer)
    return k.select(wins, value, best), k.select(wins, place, there)


def _accepts(step: Step) -> str | None:
    if not operands.everything_is(step, "plain"):
        return "input and output must be plain"
    size = operands.data(step)[0].shape[operands.whole(step, "axis")]
    return f"an axis longer than {LONGEST_AXIS}" if size > LONGEST_AXIS else None


def _calls(step: Step, tile: Tile) -> tuple[Call, ...]:
    shape, axis = operands.data(step)[0].shape, operands.whole(step, "axis")
    kind = "largest" if step.operator == "ArgMax" else "smallest"
    which = "last" if operands.whole(step, "select_last_index") else "first"
    inner = prod(shape[axis + 1 :])
    words = (word_of(step, 0), Operand(step.outputs[0].name), prod(shape[:axis]), shape[axis], inner)
    form = (step.lanes, kind, which, inner == 1)
    return (Call(places_name(*form), operands.text(partial(places, *form)), words),)


PLACES = Algorithm("places", ("ArgMax", "ArgMin"), _accepts, operands.one_tile, operands.traffic_seconds, _calls)
