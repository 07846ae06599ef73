"""Kernels in halves become the instructions they are made for: BF16 and FP16 products of x86 and ARM, conversions.

No such processor is needed to read the code: multiply-adds on whole registers inside the innermost loop, no call there.
"""

import re
from collections.abc import Iterator
from dataclasses import replace

import llvmlite.binding as llvm
import numpy as np
import pytest
from convolution_cases import Case
from kernel_runner import in_halves, machine
from test_half_products import ANY
from test_neon_assembly import loops

from perwatt.cpu.catalogue import KERNELS
from perwatt.cpu.compiler import Target, assembly, host_target, neon_target
from perwatt.machine import Isa
from perwatt.plan.algorithm import Algorithm, Call
from perwatt.plan.precision import Element

HALF = [a for a in KERNELS if a.weights != "fp32" and "FusedConv" in a.operators]
ARM = "+neon,+fullfp16,+bf16"
X86 = "+avx512f,+avx512bw,+avx512vl,+avx512dq,+avx512cd,+f16c,+fma,+avx512bf16,+avx512fp16"
FEATURES: dict[Isa, tuple[str, ...]] = {
    "neon": ("neon", "fullfp16", "bf16"), "avx512": ("avx512bf16", "avx512fp16", "f16c"), "avx2": ("f16c",),
    "portable": (),
}  # fmt: skip
LANES: dict[Isa, int] = {"neon": 4, "avx512": 16, "avx2": 8, "portable": 4}
PRODUCTS: dict[tuple[str, Element], str] = {
    ("neon", "bf16"): r"\bbfdot\s+v\d+\.4s", ("neon", "fp16"): r"\bfmla\s+v\d+\.8h",
    ("neon", "fp32"): r"\bfmla\s+v\d+\.4s",
    ("avx512", "bf16"): r"\bvdpbf16ps\s.*zmm", ("avx512", "fp16"): r"\bvfmadd\d+ph\s.*zmm",
    ("avx512", "fp32"): r"\bvfmadd\d+ps\s.*zmm",
}  # fmt: skip


# How LLVM may write the copy of a tile at the border; all else has to be instructions.
COPIES = {"memcpy", "memset"}
EACH = [pytest.param(a, id=a.name, marks=[] if "direct" in a.name else [pytest.mark.slow]) for a in HALF]


def target(isa: Isa) -> Target:
    try:
        if isa == "neon":
            found = Target(neon_target().triple, "neoverse-v2", ARM)
        else:
            llvm.initialize_all_targets()
            llvm.initialize_all_asmprinters()
            found = Target("x86_64-unknown-linux-gnu", "sapphirerapids" if isa == "avx512" else "x86-64", X86)
        llvm.Target.from_triple(found.triple)
    except RuntimeError as error:
        pytest.skip(f"this LLVM has no such target: {error}")
    return found


def calls(algorithm: Algorithm, isa: Isa, data: Element) -> Iterator[Call]:
    """Yield the calls of a convolution that the algorithm takes, on maps stored as `data`."""
    lanes = LANES[isa]
    able = replace(machine(lanes), isa=isa, vector_floats=lanes, features=FEATURES[isa])
    kernel = 5 if "5)" in algorithm.name else 3
    case = Case(32, 4 * lanes, (31, 31), (kernel, kernel), (kernel // 2,) * 4, lanes=lanes, threads=2, residual=True)
    weights = np.ones((case.outputs, 32, kernel, kernel), np.float32)
    step = in_halves(replace(case.step(weights, None), machine=able), ANY, data, data)
    assert algorithm.accepts(step) is None
    yield from algorithm.calls(step, algorithm.tiles(step)[0])


@pytest.mark.parametrize("isa", ["neon", "avx512"])
@pytest.mark.parametrize("algorithm", EACH)
def test_products(algorithm: Algorithm, isa: Isa) -> None:
    data: Element = algorithm.arithmetic if algorithm.arithmetic != "fp32" else "fp16"
    texts = {c.module or c.function: assembly(c.source(), target(isa)) for c in calls(algorithm, isa, data)}
    wanted = PRODUCTS[(isa, algorithm.arithmetic)]
    found = [len(re.findall(wanted, body)) for text in texts.values() for body in loops(text)]
    if isa == "avx512":
        found = [len(re.findall(wanted, text)) for text in texts.values()]
    assert max(found, default=0) >= 8, f"{algorithm.name}: no loop of {wanted}"
    for name, text in texts.items():
        called = set(re.findall(r"\s(?:bl|callq?)\s+(\w+)", text))
        assert called <= COPIES, f"{name} calls {called}: a conversion or product without an instruction"


@pytest.mark.parametrize(("isa", "element", "wanted"), [
    ("neon", "fp16", r"\bfcvtl"), ("neon", "bf16", r"\bbfcvtn|\bshll"), ("avx512", "fp16", r"\bvcvtph2psx?\s.*zmm"),
    ("avx512", "bf16", r"\bvpmovzxwd\s.*zmm"),
])  # fmt: skip
def test_conversions(isa: Isa, element: Element, wanted: str) -> None:
    (stored,) = (a for a in HALF if a.name == "direct, fp16 weights")
    first, *_ = calls(stored, isa, element)
    assert re.search(wanted, assembly(first.source(), target(isa)))


@pytest.mark.parametrize("isa", ["avx2", "portable"])
def test_without_the_instructions_there_are_none(isa: Isa) -> None:
    """Products in halves are refused, stored weights are converted by what there is: no illegal instruction."""
    lanes = LANES[isa]
    able = replace(machine(lanes), isa=isa, vector_floats=lanes, features=FEATURES[isa])
    step = in_halves(replace(Case(32, 64, (9, 9), lanes=lanes).step(np.ones((64, 32, 3, 3), np.float32), None),
                             machine=able), ANY, "bf16", "fp16")  # fmt: skip
    for algorithm in HALF:
        reason = algorithm.accepts(step)
        if algorithm.arithmetic != "fp32":
            assert reason is not None
            assert reason.startswith("this machine has no ")
        elif reason is None:
            for call in algorithm.calls(step, algorithm.tiles(step)[0]):
                source = call.source()
                assert "avx512" not in source
                assert "bfloat" not in source
                if isa == "portable":
                    assert "half" not in source
    assert host_target().triple
