"""Build Code from a Plan: compile the kernels, pack the weights, lay out the arguments, and write the step table."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from perwatt.cpu import memory
from perwatt.cpu.catalogue import KERNELS
from perwatt.cpu.jit import NativeCode, compile_emitted
from perwatt.cpu.team import BARRIER, Team
from perwatt.plan import Algorithm, Call, Operand, Packed, Places, Plan, Scratch, Word

# Packed arrays by (position of the step, label), so that variants of one plan can share them.
PackedArrays = dict[tuple[int, str], np.ndarray]


@dataclass(frozen=True)
class Relocation:
    """A word of the arguments that depends on a caller's array: which word, which buffer, how far into it."""

    word: int
    buffer: str
    offset_bytes: int


class Code:
    """A network ready to run: machine code, packed weights, working memory and the step table."""

    def __init__(
        self, plan: Plan, team: Team, arguments: np.ndarray, table: np.ndarray, relocations: Sequence[Relocation],
        step_of_row: Sequence[int], keep: Sequence[object], weight_bytes: int, functions: Mapping[str, int],
    ) -> None:  # fmt: skip
        self.team, self.table, self.weight_bytes = team, table, weight_bytes
        self.step_of_row, self.functions = tuple(step_of_row), dict(functions)
        self._arguments, self._relocations, self._keep = arguments, tuple(relocations), keep
        self._bound: dict[str, int] = {}
        self._launch = team.bind(table)
        self.working_bytes = plan.arena_floats * 4 + plan.scratch_bytes

    def bind(self, addresses: Mapping[str, int]) -> None:
        """Point the table at the caller's arrays: the address of each graph input and output."""
        if addresses == self._bound:
            return
        for relocation in self._relocations:
            self._arguments[relocation.word] = addresses[relocation.buffer] + relocation.offset_bytes
        self._bound = dict(addresses)

    def run(self) -> None:
        """Run the network once on the arrays bound last."""
        self._launch()

    def time_steps(self, repeats: int) -> np.ndarray:
        """Return the seconds of each step of the plan in each repeat, float64 [repeats, steps]."""
        rows = self.team.time_steps(self.table, repeats) * 1e-9
        steps = np.zeros((repeats, max(self.step_of_row) + 1))
        for row, step in enumerate(self.step_of_row):
            steps[:, step] += rows[:, row]
        return steps


def build(plan: Plan, team: Team, packed: PackedArrays | None = None) -> Code:
    """Return Code for a Plan on a team of threads. `packed` keeps packed weights between variants of one plan."""
    by_name: dict[str, Algorithm] = {algorithm.name: algorithm for algorithm in KERNELS}
    calls: list[tuple[int, Call]] = []
    for position, planned in enumerate(plan.steps):
        algorithm = by_name[planned.choice.algorithm]
        calls += [(position, call) for call in algorithm.calls(planned.step, planned.choice.tile)]
    functions, native = _compile(plan, [call for _, call in calls])
    arena, scratch = memory.floats(plan.arena_floats), memory.floats(plan.scratch_bytes // 4 + 16)
    packed = {} if packed is None else packed
    kept: dict[tuple[int, str], np.ndarray] = {}
    words: list[int] = []
    rows: list[tuple[int, int]] = []
    relocations: list[Relocation] = []
    step_of_row: list[int] = []
    for first_image, position, call in _sequence(plan, calls):
        rows.append((functions[call.function], len(words)))
        step_of_row.append(position)
        for word in call.words:
            words.append(
                _resolve(plan, position, word, first_image, arena, scratch, packed, kept, relocations, len(words))
            )
    arguments = np.array(words or [0], np.int64)
    table = np.zeros((len(rows), 4), np.int64)
    for number, (function, first) in enumerate(rows):
        table[number] = function, arguments.ctypes.data + 8 * first, BARRIER, 0
    weight_bytes = sum(array.nbytes for array in kept.values())
    keep = (arena, scratch, kept, native)
    used = Counter(call.function for _, _, call in _sequence(plan, calls))
    return Code(plan, team, arguments, table, relocations, step_of_row, keep, weight_bytes, used)


def _sequence(plan: Plan, calls: Sequence[tuple[int, Call]]) -> list[tuple[int, int, Call]]:
    """Return (first image, step, call) in the order in which they run."""
    of_step: dict[int, list[Call]] = {}
    for position, call in calls:
        of_step.setdefault(position, []).append(call)
    return [(first, p, call) for first, p in plan.placement.sequence() for call in of_step.get(p, ())]


def _compile(plan: Plan, calls: Sequence[Call]) -> tuple[dict[str, int], list[NativeCode]]:
    """Return (address of each function, code to keep alive)."""
    modules = {call.module or call.function: call.source for call in calls}
    machine = plan.placement.steps[0].machine if plan.placement.steps else None
    native = compile_emitted(modules, emitter_digest(), machine)
    addresses = {call.function: native[call.module or call.function].address(call.function) for call in calls}
    return addresses, list(native.values())


@cache
def emitter_digest() -> str:
    """Return a digest of the sources that write kernels: an edited kernel is another kernel."""
    here = Path(__file__).parent
    sources = [here / "claims.py", here / "ir.py", *sorted((here / "kernels").glob("*.py"))]
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in sources)).hexdigest()


def _resolve(
    plan: Plan, position: int, word: Word, first_image: int, arena: np.ndarray, scratch: np.ndarray,
    packed: PackedArrays, kept: PackedArrays, relocations: list[Relocation], index: int,
) -> int:  # fmt: skip
    """Return the value of one word: a number, or an address."""
    match word:
        case Operand(name):
            step = plan.steps[position].step
            if name in step.constants:
                return _resolve(
                    plan, position, Packed(f"constant {name}", lambda: step.constants[name]), first_image, arena,
                    scratch, packed, kept, relocations, index,
                )  # fmt: skip
            place = plan.placement.places[name]
            offset_bytes = 4 * place.start(first_image)
            if place.buffer in plan.buffers:
                return int(arena.ctypes.data) + 4 * plan.buffers[place.buffer] + offset_bytes
            relocations.append(Relocation(index, place.buffer, offset_bytes))
            return 0
        case Packed(label, make):
            key = (position, label)
            if key not in packed:
                packed[key] = memory.aligned(make())
            kept[key] = packed[key]
            return int(packed[key].ctypes.data)
        case Places(names):
            table = []
            for name in names:
                tensor = next(t for t in plan.steps[position].step.outputs if t.name == name)
                first = _resolve(
                    plan,
                    position,
                    Operand(name),
                    first_image,
                    arena,
                    scratch,
                    packed,
                    kept,
                    relocations,
                    index,
                )
                assert first, "several outputs lie in the arena, never in a caller's array"
                for block in range(-(-tensor.shape[1] // plan.steps[position].step.lanes)):
                    table.append((first + 4 * block * tensor.block_stride, tensor.image_stride))
            places = kept[(position, f"places of image {first_image}")] = np.array(table, np.int64)
            return int(places.ctypes.data)
        case Scratch(offset_bytes):
            return int(scratch.ctypes.data) + offset_bytes
        case _:
            return int(word)
