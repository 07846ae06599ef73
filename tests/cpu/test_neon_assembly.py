"""Every kernel of the catalogue becomes code for 64-bit ARM with NEON, and for x86 without AVX, on any machine.

No such processor is needed to see what matters for speed: multiply-adds on whole registers, no call inside a loop.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import pytest
from convolution_cases import Case
from kernel_runner import machine

from perwatt.cpu.catalogue import KERNELS
from perwatt.cpu.compiler import Target, assembly, neon_target, target_of
from perwatt.graph import Builder, Graph
from perwatt.passes import apply
from perwatt.plan import Step, place

LANES = 4
EXACT = [a for a in KERNELS if a.weights == a.arithmetic == "fp32"]  # the others: test_half_assembly.py
CONVOLUTIONS = [
    Case(16, 16, (31, 31)),
    Case(16, 16, (31, 31), (5, 5), (2, 2, 2, 2)),
    Case(16, 16, (2, 2)),
    Case(16, 16, (9, 9), groups=16),
    Case(12, 12, (9, 9), groups=6),
    Case(3, 16, (40, 40), layout="plain"),
    Case(3, 16, (41, 41), (11, 11), (0, 0, 0, 0), (4, 4), layout="plain"),
    Case(3, 16, (41, 41), (7, 7), (3, 3, 3, 3), (2, 2), layout="plain"),
]  # each with residual and ReLU, but for first layers


def others() -> Graph:
    """Return a network that meets every algorithm that is no convolution."""
    b = Builder("others")

    def constant(name: str, *shape: int) -> str:
        return b.constant(name, np.full(shape, 0.5, np.float32))

    solid = b.add("MaxPool", [b.input("solid", (1, 3, 5, 6, 9))], kernel_shape=(2, 2, 2))
    x = b.add("Conv", [b.input("map", (2, 6, 11, 9)), constant("w", 8, 6, 1, 1)])
    x = b.add("ConvTranspose", [x, constant("t", 8, 8, 2, 2)], strides=(2, 2))
    x = b.add("AveragePool", [b.add("MaxPool", [x], kernel_shape=(3, 3))], kernel_shape=(2, 2))
    x = b.add("LRN", [b.add("Silu", [b.add("Mul", [x, constant("factor", 8, 1, 1)])])], size=5)
    halves = b.add("Split", [x], axis=1, split=(3, 5), outputs=2)
    x = b.add("Concat", [halves[1], halves[0]], axis=1)
    x = b.add("Resize", [x], mode="linear", sizes=(2, 8, 13, 11))
    x = b.add("Add", [x, b.add("Sigmoid", [b.add("GlobalAveragePool", [x])])])
    turned = b.add("Transpose", [b.add("Softmax", [x], axis=1)], perm=(0, 2, 3, 1))
    product = b.add("MatMul", [turned, constant("m", 8, 5)])
    summed = b.add("ReduceSum", [product], axes=(2,), keepdims=0)
    flat = b.add("Flatten", [x], axis=1)
    answer = b.add("Gemm", [flat, constant("g", 8 * 13 * 11, 7), constant("c", 7)])
    found = b.add("ArgMax", [turned], axis=1)
    return b.finish([solid, summed, found, b.add("Tanh", [answer]), b.add("Gelu", [product])])


def steps() -> Iterator[Step]:
    for case in CONVOLUTIONS:
        more: dict[str, Any] = {} if case.layout == "plain" else {"residual": True, "activation": ("Relu", 0.0, 0.0)}
        weights = np.ones((case.outputs, case.channels // case.groups, *case.kernel), np.float32)
        yield replace(case, lanes=LANES, threads=2, **more).step(weights, None)
    yield from place(apply(others()), machine(LANES), 2).steps


@cache
def sources() -> dict[str, dict[str, str]]:
    """Return the modules of each algorithm's calls, for its first tile of each step: IR text by function."""
    arm = replace(machine(LANES), isa="neon", vector_floats=LANES)
    found: dict[str, dict[str, str]] = {algorithm.name: {} for algorithm in EXACT}
    for step in steps():
        step = replace(step, machine=arm)
        for algorithm in EXACT:
            if step.operator in algorithm.operators and algorithm.accepts(step) is None:
                for call in algorithm.calls(step, algorithm.tiles(step)[0]):
                    if call.function not in found[algorithm.name]:
                        found[algorithm.name][call.function] = call.source()
    return found


def arm_target() -> Target:
    try:
        target = neon_target()
        llvm.Target.from_triple(target.triple)
    except RuntimeError as error:
        pytest.skip(f"this LLVM has no ARM target: {error}")
    return target


def loops(text: str) -> list[str]:
    """Return the bodies of the loops that hold no other: blocks that end by jumping back to their own start."""
    blocks = re.split(r"^(\.L\w+):", text, flags=re.MULTILINE)[1:]
    named = zip(blocks[::2], blocks[1::2], strict=True)
    return [body for name, body in named if re.search(rf"\b(b\.\w+|b|cbn?z|tbn?z)\s.*{re.escape(name)}\b", body)]


def short_loops(text: str) -> list[str]:
    """Return the bodies of loops, those among them that hold one other loop of a single block (asking for memory)."""
    parts = re.split(r"^(\.L\w+):", text, flags=re.MULTILINE)[1:]
    names, blocks = parts[::2], parts[1::2]
    found = []
    for first, name in enumerate(names):
        for last in range(first, min(first + 3, len(blocks))):
            if re.search(rf"\b(b\.\w+|b|cbn?z|tbn?z)\s.*{re.escape(name)}\b", blocks[last]):
                found.append("".join(blocks[first : last + 1]))
    return found


# What meets an elementary function in the network above.
WITH_FUNCTIONS = ("elementwise", "softmax", "lrn", "fully connected", "split sums")
# The first of each takes a second or two; what shares its emitter waits for the slow run.
QUICK = ("direct", "fft 16 fused", "elementwise", "pooling")
EACH = [
    pytest.param(a.name, marks=[] if a.name in QUICK else [pytest.mark.slow], id=a.name) for a in EXACT
]  # fmt: skip


def test_every_algorithm_is_met() -> None:
    assert [name for name, functions in sources().items() if not functions] == []


@pytest.mark.parametrize("name", EACH)
def test_neon(name: str) -> None:
    target = arm_target()
    (operators,) = (a.operators for a in EXACT if a.name == name)
    texts = {function: assembly(source, target) for function, source in sources()[name].items()}
    for function, text in texts.items():
        assert "fmaf" not in text, f"{function} calls libm for multiply-adds"
        assert not re.search(r"\bfmadd\s+s\d", text), f"{function} multiplies and adds one float at a time"
        assert not any(re.search(r"\bbl\s", body) for body in loops(text)), f"{function} calls something in a loop"
    if name != "movement":  # it copies single floats
        assert any(re.search(r"\bq\d+|\bv\d+\.", text) for text in texts.values()), "no vector registers are used"
    if set(operators) & {"FusedConv", "FusedGemm"}:
        found = [
            len(re.findall(r"\bfml[as]\s+v\d+\.4s", body)) for text in texts.values() for body in short_loops(text)
        ]
        assert max(found, default=0) >= 8, f"no inner loop of {list(texts)} multiplies and adds vectors"


@pytest.mark.parametrize("name", EACH)
def test_without_wide_vectors(name: str) -> None:
    """The code for a machine that has no unit perwatt knows: it assembles and keeps to what every x86 or ARM has."""
    target = target_of(machine(LANES))
    for function, source in sources()[name].items():
        text = assembly(source, target)
        assert f"{function}:" in text
        assert not re.search(r"\b[yz]mm\d", text), f"{function} uses wide registers"
        # Elementary functions need the exact product, sums do not: there a call for each number would be the time.
        elementary = "fmaf" in text and name in WITH_FUNCTIONS
        assert elementary or "fmaf" not in text, f"{function} calls libm for multiply-adds"
