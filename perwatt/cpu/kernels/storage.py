"""Numbers in half the bytes: loads and stores that convert, and products of pairs with FP32 sums.

Kernels count memory in words of four bytes. A vector of V halves takes V/2 words; which instructions convert it depends
on the machine: F16C, AVX-512 BF16 and NEON have some, elsewhere shifts and masks of integers do it (`native` False).
Arithmetic inside kernels stays FP32 between a load and a store.
"""

from dataclasses import dataclass

import numpy as np

from perwatt.cpu.ir import Kernel, Pointer, Vector, Whole
from perwatt.machine import Machine
from perwatt.plan.algorithm import Step, Tensor
from perwatt.plan.precision import LARGEST, Element


@dataclass(frozen=True)
class Stored:
    """How numbers lie in memory, and whether the machine has instructions that convert them."""

    element: Element = "fp32"
    native: bool = True

    @property
    def label(self) -> str:
        """The storage as part of a function's name."""
        return self.element + ("" if self.native else "bits")

    def words(self, lanes: int) -> int:
        """Return how many words of four bytes a vector takes."""
        return lanes if self.element == "fp32" else lanes // 2


FP32 = Stored()


@dataclass(frozen=True)
class Numbers:
    """How a kernel that multiplies has its operands.

    `pairs`: inputs and weights are pairs of BF16 with FP32 sums. `halves`: products and short runs of sums are FP16.
    """

    weights: Stored = FP32
    output: Stored = FP32
    residual: Stored = FP32
    pairs: bool = False
    halves: bool = False

    @property
    def label(self) -> str:
        """What differs from FP32, as part of a function's name."""
        if self == Numbers():
            return ""
        weights = "pairs" if self.pairs else "halves" if self.halves else self.weights.label
        return f"_{weights}_to_{self.output.label}_plus_{self.residual.label}"

    @property
    def input(self) -> Stored:
        """How the input must lie: what is stored otherwise is converted before."""
        return Stored("bf16") if self.pairs else Stored("fp16") if self.halves else FP32

    def panel_words(self, lanes: int) -> int:
        """Return the words of one vector of weights, for one step of `multiply`."""
        return lanes if self.pairs or self.halves else self.weights.words(lanes)


def stored(element: Element, machine: Machine) -> Stored:
    """Return a kind of storage with what the machine has for it."""
    match element:
        case "fp16":  # F16C came with AVX2; every 64-bit ARM converts
            return Stored("fp16", machine.isa in ("avx512", "avx2", "neon"))
        case "bf16":
            return Stored("bf16", has_bf16_products(machine))
        case _:
            return FP32


def reason_against(weights: Element, arithmetic: Element, step: Step) -> str | None:
    """Return why a step may not, or a machine cannot, store weights and compute products in these; None: go ahead."""
    if not step.allowed.permits(weights, arithmetic):
        return f"weights in {weights} and products in {arithmetic} are not allowed for this step"
    if arithmetic == "bf16" and not has_bf16_products(step.machine):
        return "this machine has no BF16 products"
    if arithmetic == "fp16" and not has_fp16_products(step.machine):
        return "this machine has no FP16 products"
    if weights != "fp32":
        given = step.constant(1)
        largest = 0.0 if given is None else float(np.abs(given).max(initial=0.0))
        if largest > LARGEST[weights]:
            return f"a weight of {largest:.3g} is beyond the largest {weights}"
    return None


def numbers_of(step: Step, weights: Element, arithmetic: Element, residual: Tensor | None) -> Numbers:
    """Return how a step's kernel that multiplies has its operands."""
    machine = step.machine
    return Numbers(
        stored(weights, machine), stored(step.outputs[0].element, machine),
        FP32 if residual is None else stored(residual.element, machine), arithmetic == "bf16", arithmetic == "fp16",
    )  # fmt: skip


def pairs(panels: np.ndarray) -> np.ndarray:
    """Return weights [...][depth][columns·V] as pairs of BF16, uint16 [...][depth/2][columns·V][2]."""
    *outer, depth, width = panels.shape
    halves = to_bf16(panels).reshape(*outer, depth // 2, 2, width)
    return np.ascontiguousarray(halves.swapaxes(-1, -2))


def has_bf16_products(machine: Machine) -> bool:
    """Return whether the machine multiplies pairs of BF16 and sums in FP32, on whole registers."""
    return {"avx512": "avx512bf16", "neon": "bf16"}.get(machine.isa, "-") in machine.features


def has_fp16_products(machine: Machine) -> bool:
    """Return whether the machine multiplies and adds FP16, on whole registers."""
    return {"avx512": "avx512fp16", "neon": "fullfp16"}.get(machine.isa, "-") in machine.features


def load(k: Kernel, kind: Stored, pointer: Pointer, words: Whole = 0) -> Vector:
    """Read V numbers from `pointer + words` as FP32."""
    if kind.element == "fp32":
        return k.load(pointer, words)
    lanes, place = k.lanes, (pointer + words).text
    if kind == Stored("fp16", True):
        half = k.emit(f"load <{lanes} x half>, ptr {place}, align 2")
        return Vector(k, k.emit(f"fpext <{lanes} x half> {half} to {k.vector}"))
    narrow = k.emit(f"load <{lanes} x i16>, ptr {place}, align 2")
    wide = k.emit(f"zext <{lanes} x i16> {narrow} to <{lanes} x i32>")
    if kind.element == "bf16":
        return _as_floats(k, _bits(k, "shl", wide, 16))
    return _half_by_bits(k, wide)


def store(k: Kernel, kind: Stored, value: Vector, pointer: Pointer, words: Whole = 0) -> None:
    """Round V numbers to nearest (ties to even) and write them to `pointer + words`."""
    if kind.element == "fp32":
        k.store(value, pointer, words)
        return
    lanes, place = k.lanes, (pointer + words).text
    match kind:
        case Stored("fp16", True):
            half = k.emit(f"fptrunc {k.vector} {value.text} to <{lanes} x half>")
            k.do(f"store <{lanes} x half> {half}, ptr {place}, align 2")
        case Stored("bf16", True) if lanes == 16:
            name = "llvm.x86.avx512bf16.cvtneps2bf16.512"
            k.module.declare(f"declare <16 x bfloat> @{name}(<16 x float>)")
            half = k.emit(f"call <16 x bfloat> @{name}(<16 x float> {value.text})")
            k.do(f"store <16 x bfloat> {half}, ptr {place}, align 2")
        case Stored("bf16", True):
            half = k.emit(f"fptrunc {k.vector} {value.text} to <{lanes} x bfloat>")
            k.do(f"store <{lanes} x bfloat> {half}, ptr {place}, align 2")
        case _:
            wide = _bfloat_by_bits(k, value) if kind.element == "bf16" else _to_half_by_bits(k, value)
            narrow = k.emit(f"trunc <{lanes} x i32> {wide} to <{lanes} x i16>")
            k.do(f"store <{lanes} x i16> {narrow}, ptr {place}, align 2")


def dot_pairs(k: Kernel, a: Vector, b: Vector, sums: Vector) -> Vector:
    """Return, per lane, sum + a₀·b₀ + a₁·b₁ of the two BF16 numbers in each lane's four bytes.

    AVX-512 BF16 and NEON BF16 only; both take subnormals as zeros.
    """
    lanes, pairs = k.lanes, f"<{2 * k.lanes} x bfloat>"
    first = k.emit(f"bitcast {k.vector} {a.text} to {pairs}")
    second = k.emit(f"bitcast {k.vector} {b.text} to {pairs}")
    name = {16: "llvm.x86.avx512bf16.dpbf16ps.512", 4: "llvm.aarch64.neon.bfdot.v4f32.v8bf16"}[lanes]
    k.module.declare(f"declare {k.vector} @{name}({k.vector}, {pairs}, {pairs})")
    return Vector(k, k.emit(f"call {k.vector} @{name}({k.vector} {sums.text}, {pairs} {first}, {pairs} {second})"))


def multiply_halves(k: Kernel, a: Vector, b: Vector, sums: Vector) -> Vector:
    """Return sum + a·b of the 2V FP16 numbers in each vector's bits, rounded once where the machine can."""
    kind, name = f"<{2 * k.lanes} x half>", f"llvm.fmuladd.v{2 * k.lanes}f16"
    k.module.declare(f"declare {kind} @{name}({kind}, {kind}, {kind})")
    given = [k.emit(f"bitcast {k.vector} {each.text} to {kind}") for each in (a, b, sums)]
    made = k.emit(f"call {kind} @{name}({', '.join(f'{kind} {each}' for each in given)})")
    return Vector(k, k.emit(f"bitcast {kind} {made} to {k.vector}"))


def broadcast_half(k: Kernel, pointer: Pointer, words: Whole, second: int) -> Vector:
    """Read the first or second FP16 number of a word and copy it to all 2V places of a vector's bits."""
    kind, count = f"<{2 * k.lanes} x half>", 2 * k.lanes
    place = k.emit(f"getelementptr inbounds half, ptr {(pointer + words).text}, i64 {second}")
    one = k.emit(f"load half, ptr {place}, align 2")
    first = k.emit(f"insertelement {kind} poison, half {one}, i64 0")
    every = k.emit(f"shufflevector {kind} {first}, {kind} poison, <{count} x i32> zeroinitializer")
    return Vector(k, k.emit(f"bitcast {kind} {every} to {k.vector}"))


def widened(k: Kernel, halves: Vector) -> tuple[Vector, Vector]:
    """Return the 2V FP16 numbers in a vector's bits as two vectors of FP32."""
    lanes, kind = k.lanes, f"<{2 * k.lanes} x half>"
    bits = k.emit(f"bitcast {k.vector} {halves.text} to {kind}")
    parts = []
    for start in (0, lanes):
        picked = ", ".join(f"i32 {start + lane}" for lane in range(lanes))
        part = k.emit(f"shufflevector {kind} {bits}, {kind} poison, <{lanes} x i32> <{picked}>")
        parts.append(Vector(k, k.emit(f"fpext <{lanes} x half> {part} to {k.vector}")))
    return parts[0], parts[1]


def packed(array: np.ndarray, element: Element) -> np.ndarray:
    """Return an array in a kind of storage: float32, float16, or the upper halves of rounded float32 as uint16.

    FP16 beyond 65504 becomes infinite, as IEEE 754 has it: the plan must not choose it for such weights.
    """
    if element == "fp32":
        return np.ascontiguousarray(array, np.float32)
    if element == "fp16":
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(array, np.float16)
    return to_bf16(array)


def to_bf16(array: np.ndarray) -> np.ndarray:
    """Return float32 rounded to nearest BF16, ties to even, as uint16; NaN stays NaN."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    # In place where it can be: the weights of a network pass through here.
    rounded = (bits >> 16) & np.uint32(1)
    rounded += np.uint32(0x7FFF)
    rounded += bits
    rounded >>= np.uint32(16)
    result = rounded.astype(np.uint16)
    broken = np.isnan(array)
    if broken.any():
        result[broken] = 0x7FC0
    return result


def from_bf16(bits: np.ndarray) -> np.ndarray:
    """Return the float32 values of BF16 numbers given as uint16."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _bits(k: Kernel, operation: str, left: str, right: str | int) -> str:
    """Emit an operation on V 32-bit integers; a Python number fills every lane."""
    kind = f"<{k.lanes} x i32>"
    other = right if isinstance(right, str) else f"<{', '.join([f'i32 {right}'] * k.lanes)}>"
    return k.emit(f"{operation} {kind} {left}, {other}")


def _choose(k: Kernel, mask: str, yes: str, no: str | int) -> str:
    kind = f"<{k.lanes} x i32>"
    other = no if isinstance(no, str) else f"<{', '.join([f'i32 {no}'] * k.lanes)}>"
    return k.emit(f"select <{k.lanes} x i1> {mask}, {kind} {yes}, {kind} {other}")


def _as_floats(k: Kernel, bits: str) -> Vector:
    return Vector(k, k.emit(f"bitcast <{k.lanes} x i32> {bits} to {k.vector}"))


def _as_bits(k: Kernel, value: Vector) -> str:
    return k.emit(f"bitcast {k.vector} {value.text} to <{k.lanes} x i32>")


def _half_by_bits(k: Kernel, wide: str) -> Vector:
    """Return FP16 (in the low half of integers) as FP32 without an instruction for it, subnormals and all.

    A subnormal half m·2^-24 is (1 + m·2^-23)·2^-1 - 2^-1 scaled by 2^-1: no FP32 subnormal appears, so machines that
    flush those give the same.
    """
    sign = _bits(k, "shl", _bits(k, "and", wide, 0x8000), 16)
    size = _bits(k, "and", wide, 0x7FFF)
    normal = _bits(k, "add", _bits(k, "shl", size, 13), 112 << 23)
    special = _bits(k, "icmp uge", size, 0x7C00)
    normal = _choose(k, special, _bits(k, "add", normal, 112 << 23), normal)
    # 0.5 + m·2^-24 exactly: 0.5's last place is 2^-24.
    raised = _as_floats(k, _bits(k, "or", size, 126 << 23))
    small = _as_bits(k, raised - 0.5)
    subnormal = _bits(k, "icmp ult", size, 0x0400)
    return _as_floats(k, _bits(k, "or", _choose(k, subnormal, small, normal), sign))


def _to_half_by_bits(k: Kernel, value: Vector) -> str:
    """Return FP32 as FP16 in the low half of integers, rounded to nearest even, without an instruction for it."""
    bits = _as_bits(k, value)
    sign = _bits(k, "lshr", _bits(k, "and", bits, -2147483648), 16)
    size = _bits(k, "and", bits, 0x7FFFFFFF)
    odd = _bits(k, "and", _bits(k, "lshr", size, 13), 1)
    normal = _bits(k, "lshr", _bits(k, "add", _bits(k, "add", _bits(k, "sub", size, 112 << 23), 0xFFF), odd), 13)
    # Below 2^-14 the sum with 0.5 rounds at 2^-24, FP16's last place there.
    raised = _as_floats(k, size) + 0.5
    small = _bits(k, "sub", _as_bits(k, raised), 126 << 23)
    result = _choose(k, _bits(k, "icmp ult", size, 113 << 23), small, normal)
    result = _choose(k, _bits(k, "icmp ult", size, (127 + 15) << 23 | 0x7FF000), result, 0x7C00)
    result = _choose(k, _bits(k, "icmp ugt", size, 0x7F800000), _bits(k, "or", size, 0x7E00), result)
    return _bits(k, "or", _bits(k, "and", result, 0x7FFF), sign)


def _bfloat_by_bits(k: Kernel, value: Vector) -> str:
    """Return FP32 as BF16 in the low half of integers, rounded to nearest even, without an instruction for it."""
    bits = _as_bits(k, value)
    odd = _bits(k, "and", _bits(k, "lshr", bits, 16), 1)
    rounded = _bits(k, "lshr", _bits(k, "add", _bits(k, "add", bits, 0x7FFF), odd), 16)
    size = _bits(k, "and", bits, 0x7FFFFFFF)
    return _choose(
        k, _bits(k, "icmp ugt", size, 0x7F800000), _bits(k, "lshr", _bits(k, "or", bits, 1 << 22), 16), rounded
    )
