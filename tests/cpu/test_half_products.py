"""Convolutions and fully connected layers with halves: against float64 with operands rounded as the storage has it.

A product of two BF16 numbers is exact in FP32 and the sums are FP32's, so once the operands are rounded in the
reference what is left is FP32's rounding; a half that is written adds its own. BF16 products may flush subnormals and
round every product pair as they like: twice FP32's allowance.
"""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from convolution_cases import Case, Problem, activated, allowed, convolve, problem, some_tiles
from kernel_runner import each_width, in_halves, lanes_here, run
from test_fully_connected import CASES as FULLY_CONNECTED_CASES
from test_fully_connected import pose

from perwatt.cpu.kernels.convolution import DIRECT, DIRECT_HALF
from perwatt.cpu.kernels.fully_connected import FULLY_CONNECTED, FULLY_CONNECTED_HALF
from perwatt.cpu.kernels.storage import from_bf16, has_bf16_products, has_fp16_products, packed
from perwatt.cpu.kernels.tile import LONGEST_HALF_RUN
from perwatt.cpu.kernels.winograd_algorithms import WINOGRAD_HALF
from perwatt.plan.algorithm import Algorithm
from perwatt.plan.precision import Allowance, Element

ANY = Allowance(("fp16", "bf16"), ("fp16", "bf16"))
RELU = ("Relu", 0.0, 0.0)
# Half a unit in the last place of what is written, and the smallest subnormal.
UNIT: dict[Element, float] = {"fp32": 0.0, "fp16": 2.0**-11, "bf16": 2.0**-8}

WIDEST = lanes_here()[0]
# FP16's rounding of a sum grows over runs of this length only.
HALF_SUMS = 2.0**-11 * 2 * math.sqrt(LONGEST_HALF_RUN)

CASES = [
    Case(16, 16, (7, 7), (1, 1), (0, 0, 0, 0), activation=RELU, residual=True),
    Case(19, 37, (9, 13), (1, 1), (0, 0, 0, 0), threads=3, spare_blocks=1),
    Case(33, 48, (13, 13), (3, 3), (1, 1, 1, 1), images=2, threads=2, activation=RELU),
    Case(64, 40, (14, 11), (3, 3), (1, 0, 2, 1), (2, 2), residual=True, images=3, threads=2),
    Case(32, 64, (9, 8), (5, 5), (2, 2, 2, 2), groups=2, threads=4, spare_blocks=2),
    Case(48, 16, (11, 12), (3, 2), (2, 1, 2, 0), (1, 2), (2, 1)),
]


def some_slow(cases: list[Any], quick: int) -> list[Any]:
    """Return the cases as parameters; most of their time is the compiler's, so one in a few belongs to a quick run."""
    return [pytest.param(c, marks=[] if i == quick else [pytest.mark.slow]) for i, c in enumerate(cases)]


BY_FP32_SUMS = [a for a in DIRECT_HALF if a.arithmetic != "fp16"]


def rounded(values: np.ndarray, element: Element) -> np.ndarray:
    halves = packed(values, element)
    return from_bf16(halves) if element == "bf16" else halves.astype(np.float32)


def with_rounded_operands(given: Problem, algorithm: Algorithm, data: Element) -> Problem:
    """Return the problem whose exact answer starts from the operands as the kernel has them."""
    case, feeds = given.case, {name: rounded(value, data) for name, value in given.feeds.items()}
    x = feeds["x"] if algorithm.arithmetic == "fp32" else rounded(feeds["x"], algorithm.arithmetic)
    weights = rounded(given.step.constants["w"], algorithm.weights)
    exact, magnitude = convolve(x, weights, case), convolve(abs(x), abs(weights), case)
    bias = given.step.constants["b"][:, None, None]
    exact, magnitude = exact + bias, magnitude + abs(bias)
    if case.residual:
        exact, magnitude = exact + feeds["r"], magnitude + abs(feeds["r"])
    return Problem(case, given.step, feeds, exact, magnitude)


@pytest.mark.parametrize("lanes", each_width())
@pytest.mark.parametrize("case", some_slow(CASES, 3), ids=str)
@pytest.mark.parametrize("algorithm", [DIRECT, *BY_FP32_SUMS], ids=lambda a: a.name)
def test_convolution(algorithm: Algorithm, case: Case, lanes: int) -> None:
    given = problem(replace(case, lanes=lanes), seed=2)
    if algorithm.arithmetic == "bf16" and not has_bf16_products(given.step.machine):
        assert algorithm.accepts(replace(given.step, allowed=ANY)) == "this machine has no BF16 products"
        return
    storages: list[tuple[Element, Element]] = [("fp32", "fp32"), ("bf16", "bf16"), ("fp16", "fp32"), ("fp32", "fp16")]
    for data, made in storages:
        step = in_halves(given.step, ANY, data, made)
        assert algorithm.accepts(step) is None
        known = with_rounded_operands(given, algorithm, data)
        wanted = activated(known.exact, case.activation)
        tolerance = 2 * allowed(known) + UNIT[made] * abs(wanted) + 2.0**-24
        for tile in some_tiles(algorithm, step, np.random.default_rng(4), 2):
            got = run(algorithm, step, known.feeds, tile, garbage=0.5)[0]
            excess = (abs(got - wanted) / tolerance).max()
            assert excess <= 1, f"{algorithm.name} {data} to {made}, {dict(tile)}: {excess:.2f} times what is allowed"


@pytest.mark.parametrize("lanes", each_width())
@pytest.mark.parametrize("case", some_slow(FULLY_CONNECTED_CASES, 2), ids=str)
@pytest.mark.parametrize("algorithm", [FULLY_CONNECTED, *FULLY_CONNECTED_HALF[:3]], ids=lambda a: a.name)
def test_fully_connected(algorithm: Algorithm, case: dict[str, Any], lanes: int) -> None:
    step, feeds, _, tolerance = pose(**case, lanes=lanes)
    if algorithm.arithmetic == "bf16" and not has_bf16_products(step.machine):
        assert algorithm.accepts(replace(step, allowed=ANY)) == "this machine has no BF16 products"
        return
    weights = rounded(step.constants["w"], algorithm.weights).astype(np.float64)
    for data in ("fp32", "bf16"):
        stored = in_halves(step, ANY, data)
        kept = {name: rounded(value, data) for name, value in feeds.items()}
        x = (rounded(kept["x"], "bf16") if algorithm.arithmetic == "bf16" else kept["x"]).astype(np.float64)
        if isinstance(case["depth"], tuple):
            channels, height, width = case["depth"]
            x = x.reshape(len(x), -1, height * width, lanes).transpose(0, 1, 3, 2)
            x = x.reshape(len(x), -1, height * width)[:, :channels].reshape(len(x), -1)
        exact = x @ weights.T + step.constants.get("b", 0.0) + kept.get("r", 0.0)
        wanted = activated(exact, case.get("activation", (None, 0.0, 0.0)))
        for tile in some_tiles(algorithm, stored, np.random.default_rng(1), 2):
            got = run(algorithm, stored, kept, tile, garbage=0.5)[0]
            assert (abs(got - wanted) <= 2 * tolerance + 1e-6).all(), tile


def test_fp32_steps_take_no_halves() -> None:
    given = problem(CASES[0])
    assert all(a.accepts(given.step) is not None for a in DIRECT_HALF)
    only_weights = replace(given.step, allowed=Allowance(("bf16",), ()))
    taken = [a.name for a in DIRECT_HALF if a.accepts(only_weights) is None]
    assert taken == ["direct, bf16 weights"]


def test_weights_beyond_fp16_are_refused() -> None:
    given = problem(CASES[0])
    given.step.constants["w"][3, 2] = 70000.0
    reasons = {a.name: a.accepts(replace(given.step, allowed=ANY)) for a in DIRECT_HALF}
    assert reasons["direct, fp16 weights"] == "a weight of 7e+04 is beyond the largest fp16"
    assert reasons["direct, bf16 weights"] is None


@pytest.mark.parametrize("case", some_slow([CASES[1], CASES[2], CASES[3]], 0), ids=str)
def test_fp16_products(case: Case) -> None:
    """Machines with FP16 arithmetic are rare: elsewhere LLVM makes the same numbers of FP32 arithmetic."""
    (algorithm,) = (a for a in DIRECT_HALF if a.arithmetic == "fp16")
    given = problem(replace(case, lanes=WIDEST), seed=2)
    features = {"avx512": "avx512fp16", "neon": "fullfp16"}
    able = replace(given.step.machine, features=(features.get(given.step.machine.isa, "-"),))
    if not has_fp16_products(able):
        pytest.skip(f"{able.isa} has no FP16 arithmetic")
    none = replace(given.step, allowed=ANY, machine=replace(able, features=()))
    assert algorithm.accepts(none) == "this machine has no FP16 products"
    step = in_halves(replace(given.step, machine=able), ANY, "fp16", "fp16")
    known = with_rounded_operands(given, algorithm, "fp16")
    wanted = activated(known.exact, case.activation)
    tolerance = allowed(known) + HALF_SUMS * known.magnitude + UNIT["fp16"] * abs(wanted) + 2.0**-20
    for tile in some_tiles(algorithm, step, np.random.default_rng(4), 2):
        got = run(algorithm, step, known.feeds, tile, garbage=0.5)[0]
        excess = (abs(got - wanted) / tolerance).max()
        assert excess <= 1, f"{dict(tile)}: {excess:.2f} times what is allowed"


@pytest.mark.parametrize("taps", [pytest.param(3), pytest.param(5, marks=pytest.mark.slow)])
def test_winograd_in_halves_is_as_exact_as_its_error_says(taps: int) -> None:
    """What the plan expects of a transform domain in halves, against float64: 0.6 to 1.4 times as much is seen."""
    pads = (taps // 2,) * 4
    case = Case(64, 32, (20, 18), (taps, taps), pads, images=2, threads=2, lanes=WIDEST)
    given = problem(case, seed=6, bias=False)
    step = in_halves(given.step, ANY)
    met = []
    for algorithm in WINOGRAD_HALF:
        if algorithm.accepts(step) is not None:
            continue
        difference = run(algorithm, step, given.feeds)[0] - given.exact
        error = np.sqrt(np.mean(difference**2) / np.mean(given.exact**2))
        met.append(algorithm.name)
        assert 0.6 < error / algorithm.error(step) < 1.4, f"{algorithm.name}: {error:.2e}, {algorithm.error(step):.2e}"
    assert len(met) >= 3
