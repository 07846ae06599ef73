"""FFT convolution: its transforms, windows of 1 to 12, both tile sizes and ways to spread them, its rounding error."""

from dataclasses import replace

import numpy as np
import pytest
from convolution_cases import UNIT, Case, Problem, allowed, errors, problem, some_tiles
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from kernel_runner import each_width, lanes_here, run

from perwatt.cpu.ir import Kernel, Module
from perwatt.cpu.kernels.convolution import DIRECT
from perwatt.cpu.kernels.fft_algorithms import FFT
from perwatt.cpu.kernels.fft_transform import (
    complex_transform,
    frequencies,
    inverse_real_transform,
    real_transform,
    transform_weights,
)
from perwatt.plan.algorithm import Algorithm, Tile

FUSED, SHARED, FUSED_32, SHARED_32 = FFT
WIDEST = lanes_here()[0]

CASES = [
    Case(17, 40, (13, 31), (7, 3), (3, 1, 3, 1), images=2, residual=True, spare_blocks=2, threads=3),
    Case(16, 16, (20, 11), (5, 5), (2, 2, 2, 2), threads=2, activation=("Relu", 0, 0)),
]
MORE_CASES = [
    Case(8, 1, (1, 1), pads=(1, 1, 1, 1), images=7, threads=2),
    Case(16, 33, (1, 17), pads=(0, 2, 3, 0), threads=2),
    Case(19, 16, (11, 3), (5, 5), (7, 1, 2, 6), threads=3, residual=True, activation=("Clip", -0.5, 0.5)),
    Case(48, 96, (29, 14), (11, 11), (5, 6, 7, 5), groups=3, threads=2, activation=("Silu", 0, 0)),
    Case(64, 32, (31, 17), (7, 7), (3, 3, 3, 3), threads=2, images=2),
    Case(16, 16, (5, 5), (9, 9), (9, 9, 9, 9), threads=2, spare_blocks=1),
    Case(24, 24, (40, 37), (12, 2), (0, 0, 0, 0), threads=2),
    Case(16, 48, (9, 45), (1, 7), (0, 3, 0, 3), threads=2, residual=True),
    Case(33, 16, (14, 14), (9, 10), (20, 4, 0, 4), threads=3),
]


def whatever(algorithm: Algorithm) -> Algorithm:
    """Return an algorithm that also takes steps which it could do, but refuses because others are faster."""
    return replace(algorithm, accepts=lambda step: None)


def suited(posed: Problem) -> list[Algorithm]:
    """Return the algorithms whose tiles are larger than the window by enough."""
    return [whatever(a) for a in FFT if "too large" not in str(a.accepts(posed.step))]


def check(posed: Problem, algorithm: Algorithm, tiles: list[Tile]) -> None:
    """Assert that results are as near to the exact ones as rounding of sums and of the transforms allows.

    A transform there and back has 4·log2(N) levels of butterflies; each rounds once, in either direction, relative to
    the root mean square over the tile, wherever in it a pixel lies. Six times their sum's deviation is allowed.
    """
    size = np.sqrt((posed.exact**2).mean())
    limit = allowed(posed) + 6 * np.sqrt(4 * 5) * UNIT * size
    for tile in tiles:
        excess = abs(errors(posed, algorithm, tile)) / limit
        worst = np.unravel_index(int(np.argmax(np.nan_to_num(excess, nan=np.inf))), excess.shape)
        assert excess[worst] <= 1, f"{algorithm.name} {dict(tile)}: {excess[worst]:.1f} times the tolerance at {worst}"


class _Numbers(Kernel):
    """Stands in for a Kernel and computes with arrays, so that what is emitted can be read as mathematics."""

    def __init__(self) -> None:
        super().__init__(Module("numbers", 1), "numbers")

    def constant(self, value: float) -> np.ndarray:  # type: ignore[override]
        return np.float64(value)

    def multiply_add(self, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:  # type: ignore[override]
        return a * b + c


@pytest.mark.parametrize("size", [2, 4, 8, 16, 32])
def test_transforms_against_numpy(size: int) -> None:
    k, random = _Numbers(), np.random.default_rng(3)
    x = random.standard_normal((size, 5))
    first, between, last = real_transform(k, list(x))
    wanted = np.fft.rfft(x, axis=0)
    got = [first, *(real + 1j * imaginary for real, imaginary in between), last]
    assert np.allclose(got, wanted, rtol=0, atol=1e-13)
    assert np.allclose(inverse_real_transform(k, first, between, last), size * x, rtol=0, atol=1e-12)
    z = x + 1j * random.standard_normal((size, 5))
    for sign, exact in ((-1, np.fft.fft(z, axis=0)), (1, np.fft.ifft(z, axis=0) * size)):
        values = complex_transform(k, list(zip(z.real, z.imag, strict=True)), sign)
        assert np.allclose([real + 1j * imaginary for real, imaginary in values], exact, rtol=0, atol=1e-13)


@pytest.mark.parametrize("size", [8, 16])
def test_the_planes_hold_every_frequency_once(size: int) -> None:
    real, between = frequencies(size)
    mirrored = {(-down % size, -across % size) for down, across in between}
    assert mirrored.isdisjoint(between)
    assert len({*real, *between, *mirrored}) == size * size
    kernels = np.random.default_rng(4).standard_normal((2, 3, 5, 4))
    planes = transform_weights(size, kernels)
    whole = np.conj(np.fft.fft2(kernels, (size, size))) / size**2
    assert np.allclose(planes[: len(real)], [whole[:, :, v, u].real for v, u in real], rtol=0, atol=1e-16)
    parts = planes[len(real) :: 2] + 1j * planes[len(real) + 1 :: 2]
    assert np.allclose(parts, [whole[:, :, v, u] for v, u in between], rtol=0, atol=1e-16)


@pytest.mark.parametrize("lanes", each_width())
@pytest.mark.parametrize(
    "case", [CASES[0], *(pytest.param(c, marks=pytest.mark.slow) for c in CASES[1:] + MORE_CASES)], ids=str
)
def test_against_the_definition(case: Case, lanes: int) -> None:
    posed = problem(replace(case, lanes=lanes))
    random = np.random.default_rng(5)
    for algorithm in suited(posed):
        check(posed, algorithm, some_tiles(algorithm, posed.step, random, 1 if case in CASES else 2))


@pytest.mark.slow
@pytest.mark.parametrize("lanes", lanes_here())
@given(data=st.data())
@settings(
    max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck),
)  # fmt: skip
def test_any_size(lanes: int, data: st.DataObject) -> None:
    few = st.sampled_from
    groups = data.draw(few([1, 1, 2]), "groups")
    case = Case(
        channels=data.draw(few([8, 16, 17, 33]), "channels") if groups == 1 else 32,
        outputs=data.draw(few([1, 7, 16, 40]), "outputs") if groups == 1 else 64,
        size=data.draw(few([(1, 1), (1, 7), (11, 1), (2, 3), (7, 7), (13, 5), (17, 39)]), "size"),
        kernel=(data.draw(few([2, 3, 5, 7, 9, 11]), "down"), data.draw(few([2, 3, 5, 7, 8, 11]), "across")),
        pads=data.draw(st.tuples(*[st.integers(0, 12)] * 4), "pads"),
        groups=groups,
        images=data.draw(few([1, 2, 5]), "images"),
        residual=data.draw(st.booleans(), "residual"),
        lanes=lanes,
        threads=data.draw(few([1, 2, 3]), "threads"),
        spare_blocks=data.draw(few([0, 1]), "spare"),
    )
    assume(case.possible)
    posed = problem(case, seed=data.draw(st.integers(0, 99), "seed"))
    for algorithm in suited(posed):
        # Few different register tiles, since each is compiled. A shared block holds all tiles, others are rarely full.
        block = data.draw(few([3, 6, 9]), "block")
        if "shared" in algorithm.name:
            block = -(-max(tile["block"] for tile in algorithm.tiles(posed.step)) // 3) * 3
        check(posed, algorithm, [{"rows": 3, "columns": 1, "block": block}])


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", [FUSED, FUSED_32], ids=lambda a: a.name)
@pytest.mark.parametrize("window", [3, 5, 7, 9, 11])
def test_the_error_is_the_one_promised(window: int, algorithm: Algorithm) -> None:
    pad = window // 2
    posed = problem(Case(64, 32, (37, 37), (window, window), (pad,) * 4, lanes=WIDEST), bias=False)
    size = np.sqrt(np.mean(posed.exact**2))
    own, direct = (float(np.sqrt(np.mean(errors(posed, a) ** 2)) / size) for a in (whatever(algorithm), DIRECT))
    assert 0.5 * algorithm.error(posed.step) <= own <= 1.2 * algorithm.error(posed.step)
    assert own <= direct


@pytest.mark.parametrize("lanes", each_width())
def test_the_result_does_not_depend_on_the_team_or_the_blocks(lanes: int) -> None:
    results, fused, shared = [], whatever(FUSED), whatever(SHARED)
    for threads in (1, 2, 3):
        case = Case(17, 24, (13, 31), (5, 7), (2, 3, 2, 3), images=2, lanes=lanes, threads=threads, residual=True)
        posed = problem(case)
        for block in (4, 8):
            results.append(run(fused, posed.step, posed.feeds, {"rows": 4, "columns": 1, "block": block})[0])
        results.append(run(shared, posed.step, posed.feeds, {"rows": 4, "columns": 1, "block": 16})[0])
    assert all(np.array_equal(result, results[0]) for result in results)


def test_no_bias() -> None:
    posed = problem(Case(16, 16, (9, 9), lanes=WIDEST), bias=False)
    check(posed, whatever(FUSED), [{"rows": 3, "columns": 1, "block": 3}])


def test_what_is_refused_says_why() -> None:
    def reason(case: Case, algorithm: Algorithm = FUSED) -> str:
        weights = np.zeros((case.outputs, case.channels // case.groups, *case.kernel), np.float32)
        return str(algorithm.accepts(replace(case, lanes=WIDEST).step(weights, None)))

    large = {"kernel": (5, 5), "pads": (2, 2, 2, 2)}
    assert reason(Case(16, 16, (27, 27), **large)) == "None"
    assert reason(Case(16, 16, (27, 27), **large), SHARED_32) == "None"
    assert "strided" in reason(Case(16, 16, (9, 9), strides=(2, 1)))
    assert "dilated" in reason(Case(16, 16, (9, 9), dilations=(1, 2)))
    assert "too large" in reason(Case(16, 16, (20, 20), (13, 3)))
    assert "so small a window" in reason(Case(16, 16, (90, 90)))
    assert "half the multiplications" in reason(Case(16, 16, (5, 5), **large))
    assert "MiB" in reason(Case(512, 512, (27, 27), **large))
    assert "not a multiple" in reason(Case(30, 30, (27, 27), groups=3, **large))
    assert "too few" in reason(Case(3, 16, (27, 27), **large))
    assert "blocks" in reason(Case(16, 16, (27, 27), layout="plain", **large))
    assert "fewer tiles" in reason(Case(16, 16, (12, 12), threads=2, **large))
    assert "too many" in reason(Case(8, 1, (99, 99), images=3, **large), SHARED)
    posed = problem(Case(16, 16, (27, 27), lanes=WIDEST, **large))
    assert "not constant" in str(FUSED.accepts(replace(posed.step, constants={})))
