"""Convolution without transforms, on sizes that fit nothing: direct, first layer, groups joined, and as depthwise."""

from dataclasses import replace

import numpy as np
import pytest
from convolution_cases import Case, Problem, allowed, check, errors, problem, some_tiles
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from kernel_runner import each_width, lanes_here, machine, run, step

from perwatt.cpu.catalogue import KERNELS
from perwatt.cpu.kernels.convolution import DIRECT, FIRST_LAYER
from perwatt.cpu.kernels.grouped import GROUPS_JOINED
from perwatt.plan.algorithm import Algorithm, Packed

EXACT = [a for a in KERNELS if "FusedConv" in a.operators and a.weights == "fp32"]
PLAIN_SUMS = [a for a in EXACT if "winograd" not in a.name and "fft" not in a.name]
WIDEST = lanes_here()[0]

CASES = [
    Case(17, 40, (13, 11), images=2, residual=True, spare_blocks=2, threads=3),
    Case(3, 7, (23, 19), (3, 5), (2, 0, 4, 1), (2, 3), (2, 2), layout="plain", threads=5),
    Case(24, 40, (8, 5), groups=4, images=2, residual=True, threads=3),
    Case(1, 1, (1, 1), (1, 1), (0, 0, 0, 0), threads=5),
    Case(33, 16, (1, 13), (1, 1), (0, 0, 0, 0), activation=("Relu", 0, 0)),
]
MORE_CASES = [
    Case(5, 7, (1, 9), (2, 3), (4, 5, 4, 5), threads=2),
    Case(16, 33, (7, 7), (11, 11), (5, 5, 5, 5)),
    Case(5, 40, (31, 29), (7, 7), (3, 3, 3, 3), (2, 2), images=3, threads=5),
    Case(33, 17, (12, 10), (3, 2), (1, 0, 0, 2), (1, 1), (3, 4), spare_blocks=1),
    Case(48, 96, (9, 8), groups=3, threads=2, residual=True),
    Case(6, 4, (5, 6), (3, 3), (0, 0, 0, 0), groups=2),
    Case(128, 64, (5, 5), groups=32),
    Case(32, 64, (9, 9), groups=32, strides=(2, 2)),
    Case(48, 48, (14, 9), groups=48, residual=True, threads=3),
    Case(3, 16, (1, 5), (5, 2), (2, 1, 2, 1), layout="plain", images=2),
    Case(1, 16, (37, 41), (1, 20), (0, 12, 0, 3), layout="plain", threads=2),
    Case(4, 33, (15, 15), (1, 1), (0, 0, 0, 0), (3, 4), layout="plain", residual=True, threads=2),
    Case(17, 16, (2, 3), (1, 1), (0, 0, 0, 0), images=16, threads=3),
    Case(64, 256, (3, 3), (1, 1), (1, 1, 1, 1), threads=2),
]


def able(given: Problem) -> list[Algorithm]:
    return [a for a in given.algorithms() if a in PLAIN_SUMS]


@pytest.mark.parametrize("lanes", each_width())
@pytest.mark.parametrize("case", [*CASES, *(pytest.param(c, marks=pytest.mark.slow) for c in MORE_CASES)], ids=str)
def test_against_the_definition(case: Case, lanes: int) -> None:
    posed = problem(replace(case, lanes=lanes))
    assert able(posed), "every convolution of maps with constant weights must find an algorithm"
    random = np.random.default_rng(5)
    for algorithm in able(posed):
        check(posed, algorithm, some_tiles(algorithm, posed.step, random, 2 if case in CASES else 3))


@pytest.mark.slow
@pytest.mark.parametrize("lanes", lanes_here())
@given(data=st.data())
@settings(
    max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck),
)  # fmt: skip
def test_any_size(lanes: int, data: st.DataObject) -> None:
    few = st.sampled_from
    groups = data.draw(few([1, 1, 1, 2, 3]), "groups")
    case = Case(
        channels=data.draw(few([1, 3, 5, 16, 17, 33]), "channels") * groups,
        outputs=data.draw(few([1, 7, 16, 40]), "outputs") * groups,
        size=data.draw(few([(1, 1), (1, 7), (11, 1), (2, 3), (7, 7), (13, 5), (17, 19)]), "size"),
        kernel=data.draw(few([(1, 1), (2, 2), (3, 3), (1, 3), (5, 2), (7, 7)]), "kernel"),
        pads=data.draw(st.tuples(*[st.integers(0, 5)] * 4), "pads"),
        strides=(data.draw(st.integers(1, 4), "down"), data.draw(few([1, 2, 3]), "across")),
        dilations=data.draw(few([(1, 1), (2, 1), (1, 3)]), "dilations"),
        groups=groups,
        images=data.draw(few([1, 2, 5]), "images"),
        residual=data.draw(st.booleans(), "residual"),
        layout=data.draw(few(["blocked", "plain"]), "layout") if groups == 1 else "blocked",
        lanes=lanes,
        threads=data.draw(few([1, 2, 3, 5]), "threads"),
        spare_blocks=data.draw(few([0, 1]), "spare"),
    )
    assume(case.possible)
    posed = problem(case, seed=data.draw(st.integers(0, 99), "seed"))
    assert able(posed), "every convolution of maps with constant weights must find an algorithm"
    for algorithm in able(posed):
        offered = algorithm.tiles(posed.step)
        # Few different tiles, since each is compiled: of those offered, the one nearest to four rows.
        tile = min(offered, key=lambda t: (abs(t.get("rows", 4) - 4), abs(t.get("columns", 1) - 2), str(t)))
        check(posed, algorithm, [tile])


@pytest.mark.parametrize("lanes", each_width())
def test_the_result_does_not_depend_on_the_team_or_the_cut(lanes: int) -> None:
    case = Case(17, 40, (7, 9), images=2, lanes=lanes)
    results = []
    for threads in (1, 2, 3, 5, 8):
        posed = problem(replace(case, threads=threads))
        for chunks in ({"pixel_chunks": 1, "group_chunks": 2}, {"pixel_chunks": 7, "group_chunks": 1}):
            for outside in (0, 1):
                tile = {"rows": 4, "columns": 1, **chunks, "pixels_outside": outside}
                results.append(run(DIRECT, posed.step, posed.feeds, tile)[0])
    assert all(np.array_equal(result, results[0]) for result in results)


@pytest.mark.parametrize("layout", ["blocked", "plain"])
def test_no_bias_and_a_map_that_is_its_own_residual(layout: str) -> None:
    case = Case(3, 3, (6, 5), lanes=WIDEST, layout=layout)
    posed = problem(case, bias=False)
    algorithm = DIRECT if layout == "blocked" else FIRST_LAYER
    check(posed, algorithm, [algorithm.tiles(posed.step)[0]])
    if layout == "blocked":
        x = posed.step.inputs[0]
        own = replace(posed.step, inputs=(*posed.step.inputs[:3], x))
        got = run(algorithm, own, posed.feeds)[0]
        assert abs(got - (posed.exact + posed.feeds["x"])).max() < 2 * allowed(posed).max()


@pytest.mark.parametrize("lanes", each_width())
def test_infinities_and_nan_go_where_the_definition_says(lanes: int) -> None:
    """Also through spare lanes: what is no number there would reach every channel of the next layer."""
    case = Case(5, 7, (9, 8), lanes=lanes, threads=2)
    posed = problem(case)
    x = posed.feeds["x"]
    x[0, 1, 2, 3], x[0, 0, 6, 6], x[0, 4, 8, 0] = np.inf, np.nan, -np.inf
    with np.errstate(invalid="ignore"):
        # By the definition again, but summed window by window: padding is not multiplied.
        framed = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
        weights = posed.step.constants["w"].astype(np.float64)
        windows = np.lib.stride_tricks.sliding_window_view(framed, (3, 3), (2, 3))
        wanted = (windows[:, None] * weights[None, :, :, None, None]).sum((2, 5, 6))
    for layout, algorithm in (("blocked", DIRECT), ("plain", FIRST_LAYER)):
        same = problem(replace(case, layout=layout))
        got = run(algorithm, same.step, posed.feeds)[0]
        assert np.array_equal(np.isnan(got), np.isnan(wanted))
        assert np.array_equal(np.isposinf(got), np.isposinf(wanted))
        assert np.array_equal(np.isneginf(got), np.isneginf(wanted))


def test_what_is_refused_says_why() -> None:
    lanes = WIDEST
    assert "not a multiple" in str(DIRECT.accepts(problem(Case(6, 4, (5, 6), groups=2, lanes=lanes)).step))
    assert DIRECT.accepts(problem(Case(3, 4, (5, 6), layout="plain", lanes=lanes)).step) is not None
    assert FIRST_LAYER.accepts(problem(Case(3, 4, (5, 6), lanes=lanes)).step) is not None
    whole = problem(Case(2 * lanes, 2 * lanes, (5, 6), groups=2, lanes=lanes)).step
    assert GROUPS_JOINED.accepts(whole) is not None
    assert GROUPS_JOINED.accepts(problem(Case(4, 4, (5, 6), lanes=lanes)).step) == "not grouped"
    unknown = replace(whole, constants={})
    assert all(a.accepts(unknown) is not None for a in KERNELS if "FusedConv" in a.operators)


JOINED = [(2, 3, 2, 2), (32, 4, 4, 4), (4, 6, 10, 4), (8, 8, 16, 2)]


@pytest.mark.parametrize(("groups", "inputs", "outputs", "joined"), JOINED)
def test_no_more_groups_are_joined_than_fill_vectors(groups: int, inputs: int, outputs: int, joined: int) -> None:
    s = problem(Case(groups * inputs, groups * outputs, (3, 3), (1, 1), (0, 0, 0, 0), groups=groups, lanes=16)).step
    call = GROUPS_JOINED.calls(s, {"rows": 1, "columns": 1, "pixel_chunks": 1, "group_chunks": 1, "pixels_outside": 0})
    weights = next(w for w in call[-1].words if isinstance(w, Packed) and w.label.startswith("weights"))
    blocks_in = -(-joined * inputs // 16)
    assert weights.make().shape == (-(-groups * outputs // 16), blocks_in * 16, 16)


@pytest.mark.slow
def test_without_fma_the_arithmetic_is_still_within_tolerance() -> None:
    """The portable target has no FMA: sums round twice, exponentials call the mathematical library's exact one."""
    assert machine(4).isa == "portable"
    for name in ("Sigmoid", "Tanh", "HardSigmoid"):
        posed = problem(Case(9, 6, (5, 7), activation=(name, 0.2, 0.5), lanes=4, threads=2))
        assert (abs(errors(posed, DIRECT)) <= allowed(posed)).all()


@pytest.mark.parametrize("lanes", each_width())
@pytest.mark.parametrize("parts", [(24, 16), (7, 1, 33)])
def test_several_outputs_are_those_of_several_convolutions(parts: tuple[int, ...], lanes: int) -> None:
    random = np.random.default_rng(5)
    x = random.standard_normal((3, 20, 6, 7)).astype(np.float32)
    w = random.standard_normal((sum(parts), 20, 1, 1)).astype(np.float32)
    b = random.standard_normal(sum(parts)).astype(np.float32)
    posed = step(
        "FusedConv", [("x", x.shape), ("w", w.shape), ("b", b.shape)], [(3, part, 6, 7) for part in parts], lanes=lanes,
        threads=2, layouts=["blocked", "plain", "plain", *["blocked"] * len(parts)], constants={"w": w, "b": b},
        spare_blocks=1, kernel_shape=(1, 1), strides=(1, 1), pads=(0, 0, 0, 0), dilations=(1, 1), group=1,
        activation="Relu", activation_alpha=0.0, activation_beta=0.0, splits=parts,
    )  # fmt: skip
    whole = np.einsum("kc,nchw->nkhw", w[:, :, 0, 0].astype(np.float64), x) + b[:, None, None]
    wanted = np.split(np.maximum(whole, 0), np.cumsum(parts)[:-1], axis=1)
    for tile in (DIRECT.tiles(posed)[0], DIRECT.tiles(posed)[-1]):
        for got, expected in zip(run(DIRECT, posed, {"x": x}, tile), wanted, strict=True):
            assert np.abs(got - expected).max() <= 20 * 6e-8 * np.abs(w).max() * np.abs(x).max() * 20


def test_spare_lanes_of_several_outputs_are_zeros_whatever_comes_in() -> None:
    """Neither what an activation makes of zero nor infinity times a weight of zero may stay there."""
    x = np.random.default_rng(5).standard_normal((1, 16, 3, 3)).astype(np.float32)
    x[0, 3, 1, 1] = np.inf
    weights = np.random.default_rng(6).standard_normal((12, 16, 1, 1)).astype(np.float32)
    posed = step(
        "FusedConv", [("x", x.shape), ("w", weights.shape)], [(1, 5, 3, 3), (1, 7, 3, 3)], lanes=WIDEST,
        layouts=["blocked", "plain", "blocked", "blocked"], constants={"w": weights}, kernel_shape=(1, 1),
        strides=(1, 1), pads=(0, 0, 0, 0), dilations=(1, 1), group=1, activation="Sigmoid",
        activation_alpha=0.0, activation_beta=0.0, splits=(5, 7),
    )  # fmt: skip
    # The runner asserts that spare lanes are finite.
    first, second = run(DIRECT, posed, {"x": x})
    assert set(np.unique(np.concatenate([first[0, :, 1, 1], second[0, :, 1, 1]]))) <= {0.0, 1.0}
