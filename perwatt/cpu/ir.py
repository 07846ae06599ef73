"""The staged kernel language: plain Python that writes LLVM IR.

A kernel is a Python function that receives a `Kernel` and computes with typed values: `Index` (a 64-bit integer),
`Vector` (V floats in one register), `Pointer` and `Condition`. Python's own `for` unrolls while the kernel is written;
`with k.loop(...)` is a loop of the finished machine code. Offsets of loads and stores count floats.

    module = Module("double", lanes=16)
    with module.kernel("double") as k:                      # void double(ptr args, i64 thread, i64 threads, ptr claims)
        x, y, vectors = k.pointer(0), k.pointer(1), k.argument(2)
        first, last = k.share(vectors)
        with k.loop(first, last) as loop:
            k.store(k.load(x, loop.index * 16) * 2.0, y, loop.index * 16)
    print(module)                                            # text IR for jit.compile_module
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import cast

from perwatt.cpu.claims import PARAMETERS, open_claims


class Index:
    """A 64-bit signed integer known when the kernel runs."""

    __slots__ = ("kernel", "text")

    def __init__(self, kernel: Kernel, text: str) -> None:
        self.kernel, self.text = kernel, text

    def __add__(self, other: Whole) -> Index:
        return self if other == 0 and isinstance(other, int) else self._binary("add", self, other)

    __radd__ = __add__

    def __sub__(self, other: Whole) -> Index:
        return self if other == 0 and isinstance(other, int) else self._binary("sub", self, other)

    def __rsub__(self, other: int) -> Index:
        return self._binary("sub", other, self)

    def __mul__(self, other: Whole) -> Index:
        return self if other == 1 and isinstance(other, int) else self._binary("mul nsw", self, other)

    __rmul__ = __mul__

    def __floordiv__(self, other: Whole) -> Index:
        """Quotient of two non-negative numbers."""
        return self if other == 1 and isinstance(other, int) else self._binary("udiv", self, other)

    def __mod__(self, other: Whole) -> Index:
        """Remainder of two non-negative numbers."""
        return self._binary("urem", self, other)

    def __and__(self, other: Whole) -> Index:
        return self._binary("and", self, other)

    def __lt__(self, other: Whole) -> Condition:
        return self._compare("slt", other)

    def __le__(self, other: Whole) -> Condition:
        return self._compare("sle", other)

    def __gt__(self, other: Whole) -> Condition:
        return self._compare("sgt", other)

    def __ge__(self, other: Whole) -> Condition:
        return self._compare("sge", other)

    def equals(self, other: Whole) -> Condition:
        """Return whether two integers are the same (`==` stays Python's own)."""
        return self._compare("eq", other)

    def _binary(self, operation: str, left: Whole, right: Whole) -> Index:
        k = self.kernel
        return Index(k, k.emit(f"{operation} i64 {k.whole(left)}, {k.whole(right)}"))

    def _compare(self, predicate: str, other: Whole) -> Condition:
        k = self.kernel
        return Condition(k, k.emit(f"icmp {predicate} i64 {self.text}, {k.whole(other)}"))


Whole = Index | int


class Condition:
    """A truth value known when the kernel runs."""

    __slots__ = ("kernel", "text")

    def __init__(self, kernel: Kernel, text: str) -> None:
        self.kernel, self.text = kernel, text

    def __and__(self, other: Condition) -> Condition:
        return Condition(self.kernel, self.kernel.emit(f"and i1 {self.text}, {other.text}"))

    def __or__(self, other: Condition) -> Condition:
        return Condition(self.kernel, self.kernel.emit(f"or i1 {self.text}, {other.text}"))

    def equals_false(self) -> Condition:
        """Return the opposite (`not` stays Python's own)."""
        return Condition(self.kernel, self.kernel.emit(f"xor i1 {self.text}, true"))


class Pointer:
    """An address of floats (or of 64-bit integers, for tables)."""

    __slots__ = ("kernel", "text")

    def __init__(self, kernel: Kernel, text: str) -> None:
        self.kernel, self.text = kernel, text

    def __add__(self, floats: Whole) -> Pointer:
        if isinstance(floats, int) and floats == 0:
            return self
        k = self.kernel
        return Pointer(k, k.emit(f"getelementptr inbounds float, ptr {self.text}, i64 {k.whole(floats)}"))


class Mask:
    """One truth value per lane, as comparisons of Vectors give."""

    __slots__ = ("kernel", "text")

    def __init__(self, kernel: Kernel, text: str) -> None:
        self.kernel, self.text = kernel, text

    def __and__(self, other: Mask) -> Mask:
        return self._binary("and", other)

    def __or__(self, other: Mask) -> Mask:
        return self._binary("or", other)

    def _binary(self, operation: str, other: Mask) -> Mask:
        k = self.kernel
        return Mask(k, k.emit(f"{operation} <{k.lanes} x i1> {self.text}, {other.text}"))


class Vector:
    """V floats in one register."""

    __slots__ = ("kernel", "text")

    def __init__(self, kernel: Kernel, text: str) -> None:
        self.kernel, self.text = kernel, text

    def __add__(self, other: Number) -> Vector:
        return self._binary("fadd", self, other)

    __radd__ = __add__

    def __sub__(self, other: Number) -> Vector:
        return self._binary("fsub", self, other)

    def __rsub__(self, other: Number) -> Vector:
        return self._binary("fsub", other, self)

    def __mul__(self, other: Number) -> Vector:
        return self._binary("fmul", self, other)

    __rmul__ = __mul__

    def __truediv__(self, other: Number) -> Vector:
        return self._binary("fdiv", self, other)

    def __rtruediv__(self, other: Number) -> Vector:
        return self._binary("fdiv", other, self)

    def __neg__(self) -> Vector:
        k = self.kernel
        return Vector(k, k.emit(f"fneg {k.vector} {self.text}"))

    def __lt__(self, other: Number) -> Mask:
        return self._compare("olt", other)

    def __gt__(self, other: Number) -> Mask:
        return self._compare("ogt", other)

    def __ge__(self, other: Number) -> Mask:
        return self._compare("oge", other)

    def is_nan(self) -> Mask:
        """Return, per lane, whether it holds no number."""
        return self._compare("uno", self)

    def _binary(self, operation: str, left: Number, right: Number) -> Vector:
        k = self.kernel
        return Vector(k, k.emit(f"{operation} {k.vector} {k.number(left)}, {k.number(right)}"))

    def _compare(self, predicate: str, other: Number) -> Mask:
        k = self.kernel
        return Mask(k, k.emit(f"fcmp {predicate} {k.vector} {self.text}, {k.number(other)}"))


Number = Vector | float


@dataclass
class Loop:
    """A running loop: its counter, and the values that one round hands to the next (`carry` sets them)."""

    index: Index
    carried: list[Vector]
    _next: list[Vector] | None = None

    def carry(self, values: Sequence[Vector]) -> None:
        """Say what the carried values are in the next round, and after the last."""
        self._next = list(values)

    @property
    def results(self) -> list[Vector]:
        """The carried values after the loop."""
        assert self._next is not None
        return self._next


class Module:
    """Text IR under construction: functions, and the intrinsics they use."""

    def __init__(self, name: str, lanes: int) -> None:
        self.name, self.lanes = name, lanes
        self._functions: list[str] = []
        self._declarations: set[str] = set()
        self._globals: list[str] = []

    def declare(self, declaration: str) -> None:
        """Add an outside function, such as an intrinsic, once."""
        self._declarations.add(declaration)

    @contextmanager
    def kernel(self, name: str) -> Iterator[Kernel]:
        """Open a kernel `void name(ptr args, i64 thread, i64 threads, ptr claims)`, finished when the block ends."""
        k = Kernel(self, name)
        yield k
        self._functions.append(k.finish())

    def __str__(self) -> str:
        return "\n".join([f"; {self.name}", *sorted(self._declarations), *self._globals, *self._functions]) + "\n"


class Kernel:
    """One function under construction. `args` is an array of 64-bit words: pointers and sizes."""

    def __init__(self, module: Module, name: str) -> None:
        self.module, self.name, self.lanes = module, name, module.lanes
        self.vector = f"<{module.lanes} x float>"
        self.thread, self.threads = Index(self, "%thread"), Index(self, "%threads")
        self._lines: list[str] = []
        self._entry: list[str] = []
        self._numbers = count(1)
        self._block = "entry"
        self._close: Callable[[], None] = lambda: None

    # -- plumbing

    def emit(self, operation: str) -> str:
        """Append an instruction that makes a value and return the value's name."""
        name = f"%v{next(self._numbers)}"
        self._lines.append(f"  {name} = {operation}")
        return name

    def do(self, operation: str) -> None:
        """Append an instruction that makes no value."""
        self._lines.append(f"  {operation}")

    def whole(self, value: Whole) -> str:
        """Return the operand text of an integer."""
        return value.text if isinstance(value, Index) else str(value)

    def number(self, value: Number) -> str:
        """Return the operand text of a vector; a Python number fills every lane."""
        if isinstance(value, Vector):
            return value.text
        constant = _float_text(value)
        return f"<{', '.join([f'float {constant}'] * self.lanes)}>"

    def finish(self) -> str:
        """Return the function's text."""
        self._close()
        head, end = (
            f"define void @{self.name}({PARAMETERS}) #0 {{",
            '}\nattributes #0 = { nounwind "prefer-vector-width"="512" }',
        )
        return "\n".join([head, "entry:", *self._entry, *self._lines, "  ret void", end])

    def start_block(self, name: str) -> str:
        """Begin a basic block and return the name of the one before."""
        before, self._block = self._block, name
        self._lines.append(f"{name}:")
        return before

    def later(self, line: str) -> Callable[[str], None]:
        """Append an instruction whose text becomes known later, by a call of what is returned."""
        place = len(self._lines)
        self._lines.append("")

        def known(rest: str) -> None:
            self._lines[place] = f"  {line}{rest}"

        return known

    # -- arguments

    def argument(self, slot: int) -> Index:
        """Return word `slot` of the step's arguments as an integer."""
        return self.table_entry(Pointer(self, "%args"), slot)

    def pointer(self, slot: int) -> Pointer:
        """Return word `slot` of the step's arguments as a pointer."""
        return self.table_pointer(Pointer(self, "%args"), slot)

    def argument_at(self, slot: Index) -> Index:
        """Return a word of the step's arguments whose number is known only when the kernel runs, as an integer."""
        return self.table_entry(Pointer(self, "%args"), slot)

    def pointer_at(self, slot: Index) -> Pointer:
        """Return a word of the step's arguments whose number is known only when the kernel runs, as a pointer."""
        return self.table_pointer(Pointer(self, "%args"), slot)

    def table_entry(self, table: Pointer, entry: Whole) -> Index:
        """Return one 64-bit integer of a table."""
        place = self.emit(f"getelementptr inbounds i64, ptr {table.text}, i64 {self.whole(entry)}")
        return Index(self, self.emit(f"load i64, ptr {place}, align 8, !invariant.load !{{}}"))

    def table_pointer(self, table: Pointer, entry: Whole) -> Pointer:
        """Return one pointer of a table of pointers."""
        place = self.emit(f"getelementptr inbounds i64, ptr {table.text}, i64 {self.whole(entry)}")
        return Pointer(self, self.emit(f"load ptr, ptr {place}, align 8, !invariant.load !{{}}"))

    def share(self, tasks: Whole) -> tuple[Index, Index]:
        """Return [first, last) of so many tasks: what follows runs for every such piece that this thread claims."""
        for intrinsic in ("smin", "smax"):
            self.module.declare(f"declare i64 @llvm.{intrinsic}.i64(i64, i64)")
        first, last, self._close = open_claims(self, self.emit(f"add i64 {self.whole(tasks)}, 0"))
        return Index(self, first), Index(self, last)

    # -- integers

    def minimum_index(self, a: Whole, b: Whole) -> Index:
        """Return the smaller of two integers."""
        self.module.declare("declare i64 @llvm.smin.i64(i64, i64)")
        return Index(self, self.emit(f"call i64 @llvm.smin.i64(i64 {self.whole(a)}, i64 {self.whole(b)})"))

    def maximum_index(self, a: Whole, b: Whole) -> Index:
        """Return the larger of two integers."""
        self.module.declare("declare i64 @llvm.smax.i64(i64, i64)")
        return Index(self, self.emit(f"call i64 @llvm.smax.i64(i64 {self.whole(a)}, i64 {self.whole(b)})"))

    def choose_index(self, condition: Condition, yes: Whole, no: Whole) -> Index:
        """Return `yes` where the condition holds, else `no`."""
        return Index(self, self.emit(f"select i1 {condition.text}, i64 {self.whole(yes)}, i64 {self.whole(no)}"))

    def choose_pointer(self, condition: Condition, yes: Pointer, no: Pointer) -> Pointer:
        """Return `yes` where the condition holds, else `no`."""
        return Pointer(self, self.emit(f"select i1 {condition.text}, ptr {yes.text}, ptr {no.text}"))

    # -- memory

    def load(self, pointer: Pointer, floats: Whole = 0) -> Vector:
        """Read V floats from `pointer + floats`, which need not be aligned."""
        return Vector(self, self.emit(f"load {self.vector}, ptr {(pointer + floats).text}, align 4"))

    def load_masked(self, pointer: Pointer, lanes: Index) -> Vector:
        """Read the first `lanes` floats and fill the rest with zeros; memory behind them is not touched."""
        return self._masked_load(pointer, self._first_lanes(lanes))

    def store(self, value: Vector, pointer: Pointer, floats: Whole = 0) -> None:
        """Write V floats to `pointer + floats`, which need not be aligned."""
        self.do(f"store {self.vector} {value.text}, ptr {(pointer + floats).text}, align 4")

    def store_masked(self, value: Vector, pointer: Pointer, lanes: Index) -> None:
        """Write the first `lanes` floats only."""
        self.store_lanes(value, pointer, self._first_lanes(lanes))

    def store_lanes(self, value: Vector, pointer: Pointer, mask: Mask) -> None:
        """Write the lanes where the mask holds only."""
        v, bits = self.vector, f"<{self.lanes} x i1>"
        name = f"llvm.masked.store.v{self.lanes}f32.p0"
        self.module.declare(f"declare void @{name}({v}, ptr, i32 immarg, {bits})")
        self.do(f"call void @{name}({v} {value.text}, ptr {pointer.text}, i32 4, {bits} {mask.text})")

    def load_lanes(self, pointer: Pointer, mask: Mask) -> Vector:
        """Read the lanes where the mask holds and fill the rest with zeros; memory of other lanes is not touched."""
        return self._masked_load(pointer, mask)

    def lane_range(self, first: Whole, last: Whole) -> Mask:
        """Return the mask of the lanes from `first` on that are below `last`."""
        below = self._first_lanes(Index(self, self.emit(f"add i64 {self.whole(last)}, 0")))
        if isinstance(first, int) and first == 0:
            return below
        before = self._first_lanes(Index(self, self.emit(f"add i64 {self.whole(first)}, 0")))
        bits = f"<{self.lanes} x i1>"
        inverse = self.emit(f"xor {bits} {before.text}, <{', '.join(['i1 true'] * self.lanes)}>")
        return Mask(self, self.emit(f"and {bits} {below.text}, {inverse}"))

    def store_first(self, value: Vector, pointer: Pointer, floats: Whole = 0) -> None:
        """Write lane 0 only."""
        one = self.emit(f"extractelement {self.vector} {value.text}, i64 0")
        self.do(f"store float {one}, ptr {(pointer + floats).text}, align 4")

    def copy_float(self, source: Pointer, target: Pointer) -> None:
        """Copy one float."""
        self.do(f"store float {self.emit(f'load float, ptr {source.text}, align 4')}, ptr {target.text}, align 4")

    def clear_float(self, target: Pointer) -> None:
        """Write one float 0."""
        self.do(f"store float 0.0, ptr {target.text}, align 4")

    def broadcast(self, pointer: Pointer, floats: Whole = 0) -> Vector:
        """Read one float and copy it to every lane."""
        one = self.emit(f"load float, ptr {(pointer + floats).text}, align 4")
        return self.fill(one)

    def fill(self, scalar: str) -> Vector:
        """Copy a scalar float (operand text) to every lane."""
        first = self.emit(f"insertelement {self.vector} poison, float {scalar}, i64 0")
        zeros = f"<{self.lanes} x i32> zeroinitializer"
        return Vector(self, self.emit(f"shufflevector {self.vector} {first}, {self.vector} poison, {zeros}"))

    def constant(self, value: float) -> Vector:
        """Return a vector that holds `value` in every lane."""
        return Vector(self, self.number(value))

    def prefetch(self, pointer: Pointer, floats: Whole = 0, locality: int = 3, write: bool = False) -> None:
        """Ask for a cache line before it is needed; 3 is the first cache level, 0 none; `write`: to be written."""
        self.module.declare("declare void @llvm.prefetch.p0(ptr, i32 immarg, i32 immarg, i32 immarg)")
        self.do(f"call void @llvm.prefetch.p0(ptr {(pointer + floats).text}, i32 {int(write)}, i32 {locality}, i32 1)")

    def scratch(self, floats: int) -> Pointer:
        """Return space on the stack, aligned to a cache line."""
        name = f"%v{next(self._numbers)}"
        self._entry.append(f"  {name} = alloca [{floats} x float], align 64")
        return Pointer(self, name)

    def _first_lanes(self, lanes: Index) -> Mask:
        kind = f"<{self.lanes} x i32>"
        numbers = ", ".join(f"i32 {lane}" for lane in range(self.lanes))
        narrow = self.emit(f"trunc i64 {lanes.text} to i32")
        one = self.emit(f"insertelement {kind} poison, i32 {narrow}, i64 0")
        every = self.emit(f"shufflevector {kind} {one}, {kind} poison, {kind} zeroinitializer")
        return Mask(self, self.emit(f"icmp sgt {kind} {every}, <{numbers}>"))

    def _masked_load(self, pointer: Pointer, mask: Mask) -> Vector:
        v, bits = self.vector, f"<{self.lanes} x i1>"
        name = f"llvm.masked.load.v{self.lanes}f32.p0"
        self.module.declare(f"declare {v} @{name}(ptr, i32 immarg, {bits}, {v})")
        text = f"call {v} @{name}(ptr {pointer.text}, i32 4, {bits} {mask.text}, {v} zeroinitializer)"
        return Vector(self, self.emit(text))

    # -- arithmetic

    def fma(self, a: Vector, b: Vector, c: Vector) -> Vector:
        """Return a·b + c with one rounding."""
        return self._call("llvm.fma", a, b, c)

    def multiply_add(self, a: Vector, b: Vector, c: Vector) -> Vector:
        """Return a·b + c with one rounding where that is one instruction, else with two.

        For long sums: where a machine has no such instruction, `fma` is a call of the mathematical library per lane.
        """
        return self._call("llvm.fmuladd", a, b, c)

    def maximum(self, a: Vector, b: Number) -> Vector:
        """Return the larger of two, per lane; no number (NaN) stays no number, as in IEEE 754's maximum."""
        larger = self.select(Mask(self, self.emit(f"fcmp ogt {self.vector} {a.text}, {self.number(b)}")), a, b)
        return self.select(a.is_nan(), a, larger)

    def at_least(self, a: Vector, low: float) -> Vector:
        """Return `a`, or the constant `low` where `a` is smaller; NaN stays (one instruction on x86)."""
        return self.select(a < low, low, a)

    def at_most(self, a: Vector, high: float) -> Vector:
        """Return `a`, or the constant `high` where `a` is larger; NaN stays (one instruction on x86)."""
        return self.select(a > high, high, a)

    def larger(self, a: Vector, b: Vector) -> Vector:
        """Return the larger of two, per lane; where either is no number, one of them (one instruction on x86)."""
        return self.select(a > b, a, b)

    def any_lane(self, mask: Mask) -> Condition:
        """Return whether the mask holds in some lane."""
        bits = self.emit(f"bitcast <{self.lanes} x i1> {mask.text} to i{self.lanes}")
        return Condition(self, self.emit(f"icmp ne i{self.lanes} {bits}, 0"))

    def select(self, mask: Mask, yes: Number, no: Number) -> Vector:
        """Return `yes` in the lanes where the mask holds, else `no`."""
        bits = f"<{self.lanes} x i1> {mask.text}"
        return Vector(
            self, self.emit(f"select {bits}, {self.vector} {self.number(yes)}, {self.vector} {self.number(no)}")
        )

    def equal(self, a: Vector, b: Number) -> Mask:
        """Return, per lane, whether two numbers are equal."""
        return Mask(self, self.emit(f"fcmp oeq {self.vector} {a.text}, {self.number(b)}"))

    def square_root(self, a: Vector) -> Vector:
        """Return the correctly rounded square root."""
        return self._call("llvm.sqrt", a)

    def absolute(self, a: Vector) -> Vector:
        """Return the absolute value."""
        return self._call("llvm.fabs", a)

    def floor(self, a: Vector) -> Vector:
        """Return the largest whole number that is not larger."""
        return self._call("llvm.floor", a)

    def ceiling(self, a: Vector) -> Vector:
        """Return the smallest whole number that is not smaller."""
        return self._call("llvm.ceil", a)

    def with_sign(self, size: Vector, sign: Vector) -> Vector:
        """Return the absolute value of the first with the sign of the second."""
        return self._call("llvm.copysign", size, sign)

    def power_of_two(self, whole: Vector) -> Vector:
        """Return 2^n for whole numbers n from -126 to 127, by writing the exponent's bits."""
        v, whole_kind = self.vector, f"<{self.lanes} x i32>"
        number = self.emit(f"fptosi {v} {whole.text} to {whole_kind}")
        biased = self.emit(f"add {whole_kind} {number}, <{', '.join(['i32 127'] * self.lanes)}>")
        shifted = self.emit(f"shl {whole_kind} {biased}, <{', '.join(['i32 23'] * self.lanes)}>")
        return Vector(self, self.emit(f"bitcast {whole_kind} {shifted} to {v}"))

    def shuffle(self, a: Vector, b: Vector, lanes: Sequence[int]) -> Vector:
        """Return lanes picked from a (0 .. V-1) and b (V .. 2V-1)."""
        picked = ", ".join(f"i32 {lane}" for lane in lanes)
        text = f"shufflevector {self.vector} {a.text}, {self.vector} {b.text}, <{self.lanes} x i32> <{picked}>"
        return Vector(self, self.emit(text))

    def _call(self, intrinsic: str, *arguments: Vector) -> Vector:
        v, name = self.vector, f"{intrinsic}.v{self.lanes}f32"
        self.module.declare(f"declare {v} @{name}({', '.join([v] * len(arguments))})")
        return Vector(self, self.emit(f"call {v} @{name}({', '.join(f'{v} {a.text}' for a in arguments)})"))

    # -- control

    @contextmanager
    def loop(
        self, start: Whole, stop: Whole, step: Whole = 1, *, carry: Sequence[Vector] = (), at_least_once: bool = False
    ) -> Iterator[Loop]:
        """Repeat while the counter, from `start` by `step`, is below `stop`.

        `carry` are vectors that change from round to round; the block must call `loop.carry(...)` with as many.
        `at_least_once` promises start < stop and saves a test.
        """
        number = next(self._numbers)
        before, body, after = self._block, f"body{number}", f"after{number}"
        if at_least_once:
            self.do(f"br label %{body}")
        else:
            enter = self.emit(f"icmp slt i64 {self.whole(start)}, {self.whole(stop)}")
            self.do(f"br i1 {enter}, label %{body}, label %{after}")
        self.start_block(body)
        hand: list[Callable[[str], None]] = []

        def phi(kind: str, first: str) -> str:
            name = f"%v{next(self._numbers)}"
            hand.append(self.later(f"{name} = phi {kind} [ {first}, %{before} ], "))
            return name

        index = Index(self, phi("i64", self.whole(start)))
        loop = Loop(index, [Vector(self, phi(self.vector, value.text)) for value in carry])
        yield loop
        following = self.emit(f"add nsw i64 {index.text}, {self.whole(step)}")
        last = self._block
        handed = cast(list[Vector], loop._next if loop._next is not None else [])
        assert len(handed) == len(carry), "loop.carry(...) must hand on as many vectors as the loop carries"
        for known, value in zip(hand, [following, *(v.text for v in handed)], strict=True):
            known(f"[ {value}, %{last} ]")
        again = self.emit(f"icmp slt i64 {following}, {self.whole(stop)}")
        self.do(f"br i1 {again}, label %{body}, label %{after}")
        self.start_block(after)
        if carry and not at_least_once:
            joined = []
            for final, first in zip(handed, carry, strict=True):
                text = f"phi {self.vector} [ {final.text}, %{last} ], [ {first.text}, %{before} ]"
                joined.append(Vector(self, self.emit(text)))
            loop._next = joined

    @contextmanager
    def when(self, condition: Condition) -> Iterator[None]:
        """Run the block only where the condition holds."""
        number = next(self._numbers)
        yes, after = f"yes{number}", f"after{number}"
        self.do(f"br i1 {condition.text}, label %{yes}, label %{after}")
        self.start_block(yes)
        yield
        self.do(f"br label %{after}")
        self.start_block(after)


def _float_text(value: float) -> str:
    """Return a float32 constant as LLVM writes it: the bits of the same number as a double, in hexadecimal."""
    single = struct.unpack("<f", struct.pack("<f", value))[0] if abs(value) != float("inf") else value
    return f"0x{struct.unpack('<Q', struct.pack('<d', single))[0]:016X}"
