"""Sums split over threads: convolution and fully connected layers with few outputs, on sizes that fit nothing."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from convolution_cases import Case, allowed, check, problem, some_tiles
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from kernel_runner import each_width, lanes_here, run, step
from test_fully_connected import pose

from perwatt.cpu.kernels.convolution import DIRECT
from perwatt.cpu.kernels.fully_connected import FULLY_CONNECTED
from perwatt.cpu.kernels.split_sums import SPLIT_SUMS

WIDEST = lanes_here()[0]
CASES = [
    Case(33, 40, (3, 2), residual=True, spare_blocks=2, threads=3, activation=("Relu", 0, 0)),
    Case(64, 7, (1, 1), (1, 1), (0, 0, 0, 0), threads=2, activation=("HardSigmoid", 0.2, 0.5)),
    Case(32, 32, (4, 5), groups=2, residual=True, spare_blocks=1, threads=64),
    Case(5, 3, (4, 9), (3, 2), (2, 0, 1, 3), (2, 3), (1, 2), threads=4),
    Case(17, 16, (1, 1), (5, 5), (4, 4, 4, 4), images=2, threads=5),
]
LAYERS = [
    {"images": 1, "depth": 4096, "outputs": 10, "threads": 2, "residual": True, "activation": ("Relu", 0.0, 0.0)},
    {"images": 3, "depth": (33, 2, 3), "outputs": 17, "threads": 5, "activation": ("Sigmoid", 0.0, 0.0)},
    {"images": 1, "depth": 70, "outputs": 260, "threads": 40},
    {"images": 1, "depth": 40, "outputs": 1, "threads": 64, "bias": False},
]


@pytest.mark.parametrize("lanes", each_width())
@pytest.mark.parametrize("case", CASES, ids=str)
def test_convolution_against_the_definition(case: Case, lanes: int) -> None:
    # Groups fill vectors of the widest machine; of narrower ones then too.
    posed = problem(replace(case, lanes=lanes))
    assert SPLIT_SUMS.accepts(posed.step) is None
    check(posed, SPLIT_SUMS, some_tiles(SPLIT_SUMS, posed.step, np.random.default_rng(5), 2))


@pytest.mark.parametrize("lanes", each_width())
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_fully_connected_against_float64(layer: dict[str, Any], lanes: int) -> None:
    s, feeds, wanted, may_be = pose(**layer, lanes=lanes)
    assert SPLIT_SUMS.accepts(s) is None
    for tile in some_tiles(SPLIT_SUMS, s, np.random.default_rng(1), 2):
        assert (abs(run(SPLIT_SUMS, s, feeds, tile)[0] - wanted) <= may_be).all(), tile


@pytest.mark.slow
@pytest.mark.parametrize("lanes", lanes_here())
@given(data=st.data())
@settings(
    max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck),
)  # fmt: skip
def test_any_size(lanes: int, data: st.DataObject) -> None:
    few = st.sampled_from
    groups = data.draw(few([1, 1, 1, 2, 3]), "groups")
    wide = lanes if groups > 1 else 1
    case = Case(
        channels=data.draw(few([1, 3, 17, 33, 70]), "channels") * groups * wide,
        outputs=data.draw(few([1, 2, 3]) if groups > 1 else few([1, 7, 16, 40]), "outputs") * groups * wide,
        size=data.draw(few([(1, 1), (1, 7), (5, 1), (2, 3), (4, 4)]), "size"),
        kernel=data.draw(few([(1, 1), (2, 2), (3, 3), (1, 3), (5, 2)]), "kernel"),
        pads=data.draw(st.tuples(*[st.integers(0, 4)] * 4), "pads"),
        strides=(data.draw(st.integers(1, 3), "down"), data.draw(few([1, 2]), "across")),
        dilations=data.draw(few([(1, 1), (2, 1), (1, 3)]), "dilations"),
        groups=groups,
        images=data.draw(few([1, 2, 3]), "images"),
        residual=data.draw(st.booleans(), "residual"),
        activation=data.draw(few([(None, 0.0, 0.0), ("Relu", 0.0, 0.0), ("Clip", -0.5, 1.0)]), "activation"),
        lanes=lanes,
        threads=data.draw(few([2, 3, 7, 64, 500]), "threads"),
        spare_blocks=data.draw(few([0, 1]), "spare"),
    )
    assume(case.possible)
    posed = problem(case, seed=data.draw(st.integers(0, 99), "seed"), bias=data.draw(st.booleans(), "bias"))
    assume(SPLIT_SUMS.accepts(posed.step) is None)
    offered = SPLIT_SUMS.tiles(posed.step)
    # Few different register tiles, since each is compiled; parts cost nothing.
    nearest = min(abs(t["rows"] - 2) + abs(t["columns"] - 1) for t in offered)
    tiles = [t for t in offered if abs(t["rows"] - 2) + abs(t["columns"] - 1) == nearest]
    check(posed, SPLIT_SUMS, tiles)
    whole = run(DIRECT, posed.step, posed.feeds, DIRECT.tiles(posed.step)[0])[0]
    assert (abs(whole - run(SPLIT_SUMS, posed.step, posed.feeds, tiles[0])[0]) <= 2 * allowed(posed)).all()


@pytest.mark.parametrize("threads", [1, 3])
def test_weights_that_overflow_l2_are_cut_to_fit(threads: int) -> None:
    """Though the outputs are many: a part of the weights stays while all images or pixels pass by."""
    s, feeds, wanted, may_be = pose(images=30, depth=700, outputs=250, threads=threads, lanes=WIDEST)
    assert "L2 holds their weights" in str(SPLIT_SUMS.accepts(s)) or threads == 1
    small = replace(s, machine=replace(s.machine, l2_bytes=1 << 15))
    assert SPLIT_SUMS.accepts(small) is None
    for tile in SPLIT_SUMS.tiles(small):
        assert 4 * 700 / tile["parts"] * tile["columns"] * WIDEST <= 1.3 * (1 << 14)
    for tile in some_tiles(SPLIT_SUMS, small, np.random.default_rng(1), 2):
        assert (abs(run(SPLIT_SUMS, small, feeds, tile)[0] - wanted) <= may_be).all(), tile
    posed = problem(Case(130, 70, (6, 7), images=3, threads=threads, lanes=WIDEST, residual=True))
    tight = replace(posed, step=replace(posed.step, machine=replace(posed.step.machine, l2_bytes=1 << 15)))
    assert SPLIT_SUMS.accepts(tight.step) is None
    check(tight, SPLIT_SUMS, some_tiles(SPLIT_SUMS, tight.step, np.random.default_rng(3), 2))


def test_the_result_depends_on_the_cut_not_on_the_team() -> None:
    case = Case(33, 40, (3, 3), images=2, lanes=WIDEST, residual=True)
    layer = {"images": 2, "depth": 333, "outputs": 20, "lanes": WIDEST}
    for parts in (2, 5, 27):
        tile = {"rows": 3, "columns": 2, "parts": parts}
        results, answers = [], []
        for threads in (2, 3, 5, 8, 200):
            posed = problem(replace(case, threads=threads))
            results.append(run(SPLIT_SUMS, posed.step, posed.feeds, tile)[0])
            s, feeds, _, _ = pose(**layer, threads=threads)
            answers.append(run(SPLIT_SUMS, s, feeds, {**tile, "rows": 2})[0])
        assert all(np.array_equal(result, results[0]) for result in results)
        assert all(np.array_equal(answer, answers[0]) for answer in answers)


@pytest.mark.parametrize("parts", [(24, 16), (7, 1, 33)])
def test_several_outputs(parts: tuple[int, ...]) -> None:
    random = np.random.default_rng(5)
    x = random.standard_normal((2, 70, 1, 2)).astype(np.float32)
    w = random.standard_normal((sum(parts), 70, 1, 1)).astype(np.float32)
    posed = step(
        "FusedConv", [("x", x.shape), ("w", w.shape)], [(2, part, 1, 2) for part in parts], lanes=WIDEST, threads=8,
        layouts=["blocked", "plain", *["blocked"] * len(parts)], constants={"w": w}, spare_blocks=1,
        kernel_shape=(1, 1), strides=(1, 1), pads=(0, 0, 0, 0), dilations=(1, 1), group=1, activation="Sigmoid",
        activation_alpha=0.0, activation_beta=0.0, splits=parts,
    )  # fmt: skip
    whole = 1 / (1 + np.exp(-np.einsum("kc,nchw->nkhw", w[:, :, 0, 0].astype(np.float64), x)))
    wanted = np.split(whole, np.cumsum(parts)[:-1], axis=1)
    for got, expected in zip(run(SPLIT_SUMS, posed, {"x": x}), wanted, strict=True):
        assert np.abs(got - expected).max() <= 70 * 6e-8 * np.abs(w).max() * np.abs(x).max() * 4


def test_what_is_no_number_stays_in_its_place() -> None:
    s, feeds, _, _ = pose(3, 81, 9, lanes=WIDEST, threads=4)
    feeds["x"][1, 80] = np.nan
    got = run(SPLIT_SUMS, s, feeds)[0]
    assert np.isnan(got[1]).all()
    assert np.isfinite(got[[0, 2]]).all()


def test_what_is_refused_says_why() -> None:
    small = Case(64, 32, (2, 2), lanes=WIDEST, threads=2)
    assert SPLIT_SUMS.accepts(problem(small).step) is None
    assert "one thread" in str(SPLIT_SUMS.accepts(problem(replace(small, threads=1)).step))
    assert "keep every thread" in str(SPLIT_SUMS.accepts(problem(replace(small, size=(20, 20))).step))
    pointwise = Case(4, 32, (2, 2), (1, 1), (0, 0, 0, 0), lanes=WIDEST, threads=2)
    assert "cannot be split" in str(SPLIT_SUMS.accepts(problem(pointwise).step))
    first = problem(replace(small, channels=3, layout="plain")).step
    assert "channel blocks" in str(SPLIT_SUMS.accepts(first))
    unknown = replace(problem(small).step, constants={})
    assert SPLIT_SUMS.accepts(unknown) == DIRECT.accepts(unknown)


def test_the_estimate_prefers_it_where_whole_sums_leave_threads_idle() -> None:
    def share(outputs: int, threads: int) -> float:
        """Return how much of the time of whole sums is expected of split ones."""
        s, _, _, _ = pose(1, 4096, outputs, lanes=WIDEST, threads=threads)
        return min(SPLIT_SUMS.seconds(s, t) for t in SPLIT_SUMS.tiles(s)) / min(
            FULLY_CONNECTED.seconds(s, t) for t in FULLY_CONNECTED.tiles(s)
        )

    assert share(WIDEST, 4) < 0.6
    assert share(16 * WIDEST, 4) > 0.95
