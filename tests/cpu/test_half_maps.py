"""Maps stored in halves through every kernel that takes them: against the same kernel on FP32 maps.

Arithmetic between a load and a store is FP32's, so a kernel that reads halves computes exactly what it computes of the
same numbers in FP32, and one that writes halves writes that result rounded. Both are asked for to the bit.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from convolution_cases import Case, problem
from kernel_runner import each_width, in_halves, run, step

from perwatt.cpu.catalogue import KERNELS
from perwatt.cpu.kernels.concat import CHANNELS
from perwatt.cpu.kernels.depthwise import DEPTHWISE
from perwatt.cpu.kernels.elementwise import ELEMENTWISE
from perwatt.cpu.kernels.grouped import GROUPS_JOINED
from perwatt.cpu.kernels.normalization import LRN
from perwatt.cpu.kernels.pooling import GLOBAL_POOLING, POOLING
from perwatt.cpu.kernels.reorder import REORDER
from perwatt.cpu.kernels.storage import from_bf16, packed
from perwatt.plan.algorithm import Algorithm, Step
from perwatt.plan.halves import TAKE_HALVES
from perwatt.plan.precision import FP32_ONLY, Element

STORAGES: list[tuple[Element, Element]] = [
    ("bf16", "bf16"), ("fp16", "fp16"), ("bf16", "fp32"), ("fp32", "fp16"),
]  # fmt: skip
WINDOW: dict[str, Any] = {"strides": (2, 1), "dilations": (1, 1), "pads": (1, 1, 1, 1), "auto_pad": "NOTSET"}


def rounded(values: np.ndarray, element: Element) -> np.ndarray:
    halves = packed(values, element)
    return from_bf16(halves) if element == "bf16" else halves.astype(np.float32)


def compare(algorithm: Algorithm, s: Step, feeds: dict[str, np.ndarray]) -> None:
    """Run a step on halves and on FP32 numbers of the same value, and compare to the bit."""
    tile = algorithm.tiles(s)[0]
    for data, made in STORAGES:
        kept = {name: rounded(value, data) for name, value in feeds.items()}
        wanted = [rounded(y, o.element) for y, o in zip(
            run(algorithm, s, kept, tile, garbage=0.5), in_halves(s, FP32_ONLY, data, made).outputs, strict=True
        )]  # fmt: skip
        got = run(algorithm, in_halves(s, FP32_ONLY, data, made), kept, tile, garbage=0.5)
        for a, b in zip(got, wanted, strict=True):
            different = ~((a == b) | (np.isnan(a) & np.isnan(b)))
            assert not different.any(), (algorithm.name, data, made, a[different][:4], b[different][:4])


def maps(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("lanes", each_width())
@pytest.mark.parametrize("operator", ["MaxPool", "AveragePool"])
def test_pooling(operator: str, lanes: int) -> None:
    more = {"ceil_mode": 0, "storage_order": 0} if operator == "MaxPool" else {"ceil_mode": 0, "count_include_pad": 0}
    s = step(
        operator, [("x", (2, 19, 9, 8))], [(2, 19, 5, 8)], lanes=lanes, threads=3, spare_blocks=1,
        kernel_shape=(3, 3), **WINDOW, **more,
    )  # fmt: skip
    compare(POOLING, s, {"x": maps(2, 19, 9, 8)})


@pytest.mark.parametrize("lanes", each_width())
@pytest.mark.parametrize("operator", ["GlobalAveragePool", "GlobalMaxPool"])
def test_global_pooling(operator: str, lanes: int) -> None:
    s = step(operator, [("x", (3, 33, 5, 7))], [(3, 33, 1, 1)], lanes=lanes, threads=2, spare_blocks=1)
    compare(GLOBAL_POOLING, s, {"x": maps(3, 33, 5, 7)})


@pytest.mark.parametrize("lanes", each_width())
@pytest.mark.parametrize("beta", [0.75, 0.6])
def test_response_normalisation(beta: float, lanes: int) -> None:
    s = step(
        "LRN", [("x", (2, 37, 4, 5))], [(2, 37, 4, 5)], lanes=lanes, threads=2, size=5, alpha=0.1, beta=beta, bias=1.5,
    )  # fmt: skip
    compare(LRN, s, {"x": maps(2, 37, 4, 5)})


@pytest.mark.parametrize("lanes", each_width())
@pytest.mark.parametrize("shape", [(2, 19, 5, 7), (3, 40, 2, 1), (2, 33, 1, 1)], ids=str)
def test_reorder(shape: tuple[int, ...], lanes: int) -> None:
    for layouts in (("blocked", "plain"), ("plain", "blocked")):
        s = step("Reorder", [("x", shape)], [shape], lanes=lanes, threads=2, layouts=layouts, spare_blocks=1)
        compare(REORDER, s, {"x": maps(*shape)})


@pytest.mark.parametrize("lanes", each_width())
def test_flatten(lanes: int) -> None:
    blocks = -(-21 // lanes)
    s = step("FlattenBlocked", [("x", (3, 21, 2, 5))], [(3, blocks * lanes * 10)], lanes=lanes, threads=2)
    # Whole vectors are moved, spare lanes and all: compare where channels are.
    for data, made in STORAGES:
        x = rounded(maps(3, 21, 2, 5), data)
        got = run(REORDER, in_halves(s, FP32_ONLY, data, made), {"x": x}, garbage=0.5)[0]
        got = got.reshape(3, blocks, 10, lanes).transpose(0, 1, 3, 2).reshape(3, blocks * lanes, 2, 5)[:, :21]
        assert np.array_equal(got, rounded(x, made))


@pytest.mark.parametrize("lanes", each_width())
@pytest.mark.parametrize(
    "shapes", [((2, 19, 4, 5),) * 3, ((2, 19, 4, 5), (2, 19, 1, 1), (2, 19, 4, 5)), ((6, 24),) * 3]
)
def test_sums(shapes: tuple[tuple[int, ...], ...], lanes: int) -> None:
    s = step("Add", [("a", shapes[0]), ("b", shapes[1])], [shapes[2]], lanes=lanes, threads=2, spare_blocks=1)
    compare(ELEMENTWISE, s, {"a": maps(*shapes[0]), "b": maps(*shapes[1], seed=2)})


@pytest.mark.parametrize("lanes", each_width())
def test_activation_alone(lanes: int) -> None:
    s = step("Relu", [("x", (2, 40, 3, 3))], [(2, 40, 3, 3)], lanes=lanes, threads=2)
    compare(ELEMENTWISE, s, {"x": maps(2, 40, 3, 3)})


CONVOLUTIONS = [
    Case(35, 40, (15, 14), images=3, threads=2, spare_blocks=1, residual=True, activation=("Relu", 0.0, 0.0)),
    Case(20, 18, (13, 12), (5, 5), (2, 2, 2, 2), threads=3),
    Case(3, 24, (43, 37), (11, 11), (0, 0, 0, 0), (4, 4), layout="plain", threads=2),
    Case(3, 24, (23, 25), (7, 7), (3, 3, 3, 3), (2, 2), layout="plain", images=2),
    Case(17, 20, (21, 19), (5, 5), (2, 2, 2, 2), threads=2),  # tiles enough for stages apart
    Case(21, 20, (15, 9), strides=(2, 2), images=2, threads=3, residual=True, spare_blocks=1),
]
EXACT = [a for a in KERNELS if a.halves and a.weights == "fp32" and "FusedConv" in a.operators]
QUICK = ("first layer", "winograd F(4,3) fused", "winograd F(2,5) shared")
EACH = [
    pytest.param(a, id=a.name, marks=[] if a.name in QUICK else [pytest.mark.slow])
    for a in EXACT
    if a not in (DEPTHWISE, GROUPS_JOINED)
]


@pytest.mark.parametrize("lanes", each_width())
@pytest.mark.parametrize("algorithm", EACH)
def test_convolution(algorithm: Algorithm, lanes: int) -> None:
    met = False
    for case in CONVOLUTIONS:
        given = problem(replace(case, lanes=lanes), seed=3)
        if algorithm.accepts(given.step) is None:
            met = True
            compare(algorithm, given.step, given.feeds)
            break
    assert met, "no case meets the algorithm"


@pytest.mark.parametrize("lanes", each_width())
@pytest.mark.parametrize(("algorithm", "channels", "groups"), [(DEPTHWISE, 37, 37), (GROUPS_JOINED, 30, 3)])
def test_groups(algorithm: Algorithm, channels: int, groups: int, lanes: int) -> None:
    case = Case(channels, channels, (11, 9), groups=groups, residual=True, threads=2, spare_blocks=1, lanes=lanes)
    given = problem(case, seed=4)
    compare(algorithm, given.step, given.feeds)


def test_only_these_operators_are_stored_so() -> None:
    """What placement takes for granted: every operator has a kernel for halves."""
    able = {operator for algorithm in KERNELS if algorithm.halves for operator in algorithm.operators}
    assert able >= TAKE_HALVES
    assert not CHANNELS.halves
