"""Winograd convolution: its matrices, every size fused, shared and staged, and how much it adds to direct rounding."""

from dataclasses import replace

import numpy as np
import pytest
from convolution_cases import Case, Problem, check, errors, problem, some_tiles
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from kernel_runner import each_width, lanes_here, run

from perwatt.cpu.catalogue import KERNELS
from perwatt.cpu.kernels.convolution import DIRECT, FIRST_LAYER
from perwatt.cpu.kernels.winograd_algorithms import WINOGRAD
from perwatt.cpu.kernels.winograd_transform import POINTS, transform
from perwatt.plan.algorithm import Algorithm

ALL = [a for a in KERNELS if "winograd" in a.name and a.weights == "fp32"]
WIDEST = lanes_here()[0]
# What a transform may add to rounding, as a multiple of direct convolution's error on the same numbers (root of the
# mean square). The limit is 10 for what a plan may choose.
MOST_AMPLIFICATION = 10.0

CASES = [
    Case(17, 40, (13, 11), images=2, residual=True, spare_blocks=2, threads=3),
    Case(33, 16, (7, 7), (5, 5), (2, 2, 2, 2), threads=2, activation=("Relu", 0, 0)),
    Case(3, 16, (23, 19), (7, 7), (3, 3, 3, 3), (2, 2), layout="plain", threads=2),
]
MORE_CASES = [
    Case(8, 1, (1, 1), images=7, threads=2),
    Case(16, 33, (1, 17), pads=(0, 2, 3, 0), threads=2),
    Case(19, 16, (11, 3), (5, 5), (7, 1, 2, 6), threads=3, residual=True, activation=("Clip", -0.5, 0.5)),
    Case(48, 96, (9, 10), groups=3, threads=2, residual=True, images=3),
    Case(256, 32, (14, 14), threads=2),
    Case(290, 17, (9, 6), threads=2, residual=True),
    Case(16, 16, (5, 5), pads=(5, 5, 5, 5), threads=5, spare_blocks=1),
    Case(3, 20, (31, 31), (11, 11), (0, 0, 0, 0), (4, 4), layout="plain", threads=2),
    Case(4, 17, (15, 18), (7, 7), (0, 6, 5, 1), (2, 2), layout="plain", images=3, threads=3),
    Case(1, 7, (40, 33), (9, 9), (3, 0, 9, 2), (3, 3), layout="plain", threads=2),
]


def able(given: Problem) -> list[Algorithm]:
    return [a for a in given.algorithms() if a in ALL]


SIZES = [(size, taps) for size in sorted(POINTS) for taps in (2, 3, 4, 5) if size > taps]


@pytest.mark.parametrize(("size", "taps"), SIZES)
def test_the_matrices_convolve(size: int, taps: int) -> None:
    t = transform(size - taps + 1, taps)
    random = np.random.default_rng(2)
    d, g = random.standard_normal(size), random.standard_normal(taps)
    wanted = [d[i : i + taps] @ g for i in range(t.outputs)]
    assert np.allclose(t.output @ ((t.weights @ g) * (t.input @ d)), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("lanes", each_width())
@pytest.mark.parametrize("case", [CASES[0], *(pytest.param(c, marks=pytest.mark.slow) for c in CASES[1:] + MORE_CASES)],
                         ids=str)  # fmt: skip
def test_against_the_definition(case: Case, lanes: int) -> None:
    posed = problem(replace(case, lanes=lanes))
    assert able(posed)
    random = np.random.default_rng(5)
    for algorithm in able(posed):
        check(posed, algorithm, some_tiles(algorithm, posed.step, random, 1 if case in CASES else 2), 10.0)


@pytest.mark.slow
@pytest.mark.parametrize("lanes", lanes_here())
@given(data=st.data())
@settings(
    max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck),
)  # fmt: skip
def test_any_size(lanes: int, data: st.DataObject) -> None:
    few = st.sampled_from
    taps, groups = data.draw(few([3, 3, 5]), "taps"), data.draw(few([1, 1, 2]), "groups")
    case = Case(
        channels=data.draw(few([8, 16, 17, 33]), "channels") if groups == 1 else 32,
        outputs=data.draw(few([1, 7, 16, 40]), "outputs") if groups == 1 else 64,
        size=data.draw(few([(1, 1), (1, 7), (11, 1), (2, 3), (7, 7), (13, 5), (17, 19)]), "size"),
        kernel=(taps, taps),
        pads=data.draw(st.tuples(*[st.integers(0, 6)] * 4), "pads"),
        groups=groups,
        images=data.draw(few([1, 2, 5]), "images"),
        residual=data.draw(st.booleans(), "residual"),
        lanes=lanes,
        threads=data.draw(few([1, 2, 3, 5]), "threads"),
        spare_blocks=data.draw(few([0, 1]), "spare"),
    )
    assume(case.possible)
    posed = problem(case, seed=data.draw(st.integers(0, 99), "seed"))
    for algorithm in able(posed):
        # Few different register tiles, since each is compiled; the last block is rarely full.
        offered = algorithm.tiles(posed.step)
        tile = min(offered, key=lambda t: (abs(t["rows"] - 4), abs(t["columns"] - 2), t["block"]))
        check(posed, algorithm, [tile], 10.0)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALL, ids=lambda a: a.name)
def test_error_stays_within_ten_times_that_of_direct_convolution(algorithm: Algorithm) -> None:
    offers = [
        Case(64, 32, (31, 31), lanes=WIDEST), Case(64, 32, (31, 31), (5, 5), (2, 2, 2, 2), lanes=WIDEST),
        Case(3, 32, (37, 37), (7, 7), (3, 3, 3, 3), (2, 2), layout="plain", lanes=WIDEST),
        Case(3, 32, (51, 51), (11, 11), (0, 0, 0, 0), (4, 4), layout="plain", lanes=WIDEST),
    ]  # fmt: skip
    posed = next(p for p in map(problem, offers) if algorithm.accepts(p.step) is None)
    direct = DIRECT if posed.case.layout == "blocked" else FIRST_LAYER
    own, other = (np.sqrt(np.mean(errors(posed, a) ** 2)) for a in (algorithm, direct))
    assert own <= MOST_AMPLIFICATION * other, f"{own / other:.1f} times the error of {direct.name}"


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [3, 5])
def test_error_is_what_the_plan_expects_however_many_channels(kernel: int) -> None:
    """Sums over many channels are parted, so the error stops growing where the runs end."""
    for channels in (48, 128, 384):
        posed = problem(Case(channels, 16, (14, 14), (kernel, kernel), (kernel // 2,) * 4, lanes=WIDEST, threads=2))
        for algorithm in able(posed):
            made = errors(posed, algorithm)
            result = np.sqrt(np.mean(np.square(posed.exact)))
            found = np.sqrt(np.mean(made**2)) / result
            expected = algorithm.error(posed.step)
            assert 0.6 * expected < found < 1.3 * expected, f"{algorithm.name}, {channels}: {found:.1e}, {expected:.1e}"


@pytest.mark.parametrize("lanes", each_width())
def test_the_result_does_not_depend_on_the_team_or_the_blocks(lanes: int) -> None:
    fused, shared, staged = (a for a in WINOGRAD if "F(4,3)" in a.name)
    results = []
    for threads in (1, 2, 3, 5):
        posed = problem(Case(17, 24, (13, 11), images=2, lanes=lanes, threads=threads, residual=True))
        for block in (4, 8):
            tile = {"rows": 4, "columns": 1, "block": block}
            results.append(run(fused, posed.step, posed.feeds, tile)[0])
        for block in (8, 24):
            results.append(run(staged, posed.step, posed.feeds, {"rows": 4, "columns": 1, "block": block})[0])
        results.append(run(shared, posed.step, posed.feeds, {"rows": 4, "columns": 1, "block": 24})[0])
    assert all(np.array_equal(result, results[0]) for result in results)


def test_nan_reaches_at_least_what_the_definition_reaches() -> None:
    """It may spread over the tile it lies in: transforms subtract infinities. Other tiles must be untouched."""
    posed = problem(Case(17, 7, (12, 12), lanes=WIDEST))
    fused = next(a for a in WINOGRAD if a.name == "winograd F(4,3) fused")
    clean = run(fused, posed.step, posed.feeds, {"rows": 4, "columns": 1, "block": 12})[0]
    posed.feeds["x"][0, 3, 5, 6] = np.nan
    got = run(fused, posed.step, posed.feeds, {"rows": 4, "columns": 1, "block": 12})[0]
    assert np.isnan(got[:, :, 4:7, 5:8]).all()
    far = np.ones((12, 12), bool)
    far[4:8, 4:8] = False  # the 4 x 4 outputs whose 6 x 6 inputs hold it
    assert np.array_equal(got[:, :, far], clean[:, :, far])


def test_what_is_refused_says_why() -> None:
    refused = {
        "strided": Case(16, 16, (9, 9), strides=(2, 2)),
        "dilated": Case(16, 16, (9, 9), dilations=(2, 2)),
        "window": Case(16, 16, (9, 9), (3, 1), (1, 0, 1, 0)),
        "multiple": Case(16, 32, (9, 9), groups=2),
        "blocks": Case(16, 16, (9, 9), layout="plain"),
    }
    for word, case in refused.items():
        s = problem(replace(case, lanes=16)).step
        assert all(word in str(a.accepts(s)) for a in WINOGRAD if ",3)" in a.name), word
