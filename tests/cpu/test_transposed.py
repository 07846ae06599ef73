"""Transposed convolution by phases, against its definition in float64: every input spread over outputs."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
import pytest
from convolution_cases import UNIT, some_tiles
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from kernel_runner import each_width, lanes_here, run, step

from perwatt.cpu.kernels.transposed import TRANSPOSED
from perwatt.graph import Builder, write
from perwatt.plan.algorithm import Step
from perwatt.run.compile import compile

WIDEST = lanes_here()[0]


@dataclass(frozen=True)
class Spread:
    """One ConvTranspose over one or two axes; `pads` in ONNX's order."""

    channels: int
    outputs: int
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    more: tuple[int, ...] = ()  # output_padding
    groups: int = 1
    images: int = 1
    threads: int = 2
    spare_blocks: int = 0
    bias: bool = True

    def per_axis(self) -> list[tuple[int, ...]]:
        """Return (size, kernel, stride, pad before, pad behind, dilation, output padding) of each axis."""
        rank = len(self.size)
        pads, ones, zeros = self.pads or (0,) * 2 * rank, self.dilations or (1,) * rank, self.more or (0,) * rank
        columns = (self.size, self.kernel, self.strides, pads[:rank], pads[rank:], ones, zeros)
        return list(zip(*columns, strict=True))

    @property
    def out_size(self) -> tuple[int, ...]:
        return tuple(s * (n - 1) + d * (k - 1) + 1 + more - p - e for n, k, s, p, e, d, more in self.per_axis())


def spread(x: np.ndarray, weights: np.ndarray, case: Spread) -> np.ndarray:
    """Return the transposed convolution in float64, one tap after the other, before what is cropped."""
    each, made = case.channels // case.groups, case.outputs // case.groups
    axes = case.per_axis()
    whole = [s * (n - 1) + d * (k - 1) + 1 + more for n, k, s, _, _, d, more in axes]
    total = np.zeros((case.images, case.outputs, *whole))
    for tap in np.ndindex(*case.kernel):
        reach = zip(tap, axes, strict=True)
        places = tuple(slice(t * d, t * d + (n - 1) * s + 1, s) for t, (n, _, s, _, _, d, _) in reach)
        for g in range(case.groups):
            mine = slice(g * each, (g + 1) * each)
            part = np.einsum("nc...,cm->nm...", x[:, mine].astype(np.float64), weights[(mine, slice(None), *tap)])
            total[(slice(None), slice(g * made, (g + 1) * made), *places)] += part
    inside = tuple(slice(p, size - e) for size, (_, _, _, p, e, _, _) in zip(whole, axes, strict=True))
    return total[(slice(None), slice(None), *inside)]


def pose(case: Spread, lanes: int, seed: int = 0) -> tuple[Step, dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Return (step, feeds, result in float64, what may be lost)."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((case.images, case.channels, *case.size)).astype(np.float32)
    weights = random.standard_normal((case.channels, case.outputs // case.groups, *case.kernel)).astype(np.float32)
    exact, size = spread(x, weights, case), spread(abs(x), abs(weights), case)
    inputs: list[tuple[str, Any] | None] = [("x", x.shape), ("w", weights.shape)]
    constants = {"w": weights}
    if case.bias:
        shift = random.standard_normal(case.outputs).astype(np.float32)
        inputs.append(("b", shift.shape))
        constants["b"] = shift
        column = shift.reshape(-1, *(1,) * len(case.size))
        exact, size = exact + column, size + abs(column)
    columns = list(zip(*case.per_axis(), strict=True))
    s = step(
        "ConvTranspose", inputs, [exact.shape], lanes=lanes, threads=case.threads, constants=constants,
        layouts=[*("blocked", "plain", "plain")[: len(inputs)], "blocked"], spare_blocks=case.spare_blocks,
        kernel_shape=case.kernel, strides=case.strides, pads=(*columns[3], *columns[4]), dilations=columns[5],
        output_padding=columns[6], group=case.groups,
    )  # fmt: skip
    terms = case.channels // case.groups * math.prod(case.kernel) + 1
    return s, {"x": x}, exact, UNIT * size * min(terms, 2 * math.sqrt(terms)) * 1.5 + 1e-30


CASES = [
    Spread(17, 40, (5, 4), (2, 2), (2, 2), images=2, spare_blocks=1, threads=3),
    Spread(5, 7, (3, 4), (3, 3), (2, 2), (1, 1, 1, 1), more=(1, 1)),
    Spread(21, 21, (3, 2), (8, 8), (4, 4), (2, 2, 2, 2), groups=21, bias=False),
    Spread(32, 64, (3, 3), (4, 3), (2, 1), (1, 0, 2, 1), groups=2, threads=5),
    Spread(3, 5, (6,), (5,), (3,), (2, 1), (2,), (2,), threads=2),
    Spread(4, 3, (4, 3), (2, 3), (4, 5), (3, 1, 2, 4)),
    Spread(1, 1, (1, 1), (1, 1), (1, 1)),
    Spread(6, 4, (7, 5), (2, 2), (1, 1), (4, 3, 3, 2), groups=2),
]


@pytest.mark.parametrize("lanes", each_width())
@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_the_definition(case: Spread, lanes: int) -> None:
    s, feeds, wanted, allowed = pose(case, lanes)
    assert wanted.shape[2:] == case.out_size
    assert TRANSPOSED.accepts(s) is None
    for tile in some_tiles(TRANSPOSED, s, np.random.default_rng(1), 2):
        assert (abs(run(TRANSPOSED, s, feeds, tile)[0] - wanted) <= allowed).all(), tile


@pytest.mark.slow
@pytest.mark.parametrize("lanes", lanes_here())
@given(data=st.data())
@settings(
    max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck),
)  # fmt: skip
def test_any_size(lanes: int, data: st.DataObject) -> None:
    few, rank = st.sampled_from, data.draw(st.sampled_from([1, 2, 2]), "rank")

    def each(values: list[int], what: str) -> tuple[int, ...]:
        return data.draw(st.tuples(*[few(values)] * rank), what)

    groups = data.draw(few([1, 1, 2, 3, 8]), "groups")
    strides, dilations = each([1, 2, 3, 4], "strides"), each([1, 1, 2, 3], "dilations")
    case = Spread(
        channels=data.draw(few([1, 3, 8, 17]), "channels") * groups,
        outputs=data.draw(few([1, 2, 8, 9]), "outputs") * groups,
        size=each([1, 2, 5, 7], "size"), kernel=each([1, 2, 3, 4, 5], "kernel"), strides=strides,
        pads=each([0, 1, 2, 5], "before") + each([0, 1, 2, 5], "behind"), dilations=dilations,
        more=tuple(data.draw(st.integers(0, max(s, d) - 1)) for s, d in zip(strides, dilations, strict=True)),
        groups=groups, images=data.draw(few([1, 2]), "images"), threads=data.draw(few([1, 2, 5]), "threads"),
        spare_blocks=data.draw(few([0, 1]), "spare"), bias=data.draw(st.booleans(), "bias"),
    )  # fmt: skip
    assume(min(case.out_size) >= 1)
    s, feeds, wanted, allowed = pose(case, lanes, data.draw(st.integers(0, 99), "seed"))
    # Few different tiles, since each is compiled: of those offered, the one nearest to four rows.
    tile = min(TRANSPOSED.tiles(s), key=lambda t: (abs(t["rows"] - 4), abs(t["columns"] - 2), str(t)))
    assert (abs(run(TRANSPOSED, s, feeds, tile)[0] - wanted) <= allowed).all()


def test_nan_reaches_no_other_image_and_no_spare_lane() -> None:
    s, feeds, wanted, _ = pose(Spread(3, 5, (4, 4), (2, 2), (2, 2), images=2), WIDEST)
    feeds["x"][1, 2, 1, 3] = np.nan
    got = run(TRANSPOSED, s, feeds)[0]  # the runner asserts that spare lanes are finite
    assert np.isnan(got[1, :, 2:4, 6:8]).all()
    got[1, :, 2:4, 6:8] = wanted[1, :, 2:4, 6:8]
    assert np.isfinite(got).all()


def test_what_is_refused_says_why() -> None:
    s, _, _, _ = pose(CASES[0], WIDEST)
    assert TRANSPOSED.accepts(Step(**{**vars(s), "constants": {}})) == "the weights are not constant"
    solid, _, _, _ = pose(Spread(2, 2, (2, 2, 2), (1, 1, 1), (1, 1, 1)), WIDEST)
    assert TRANSPOSED.accepts(solid) == "not a convolution over one or two axes"


def test_between_other_layers_and_part_of_the_batch_at_a_time() -> None:
    """As in a U-Net: enlarged beside what was before, joined as views, two of four images at a time."""
    random = np.random.default_rng(8)
    b = Builder("enlarged")

    def drawn(*shape: int) -> str:
        return b.constant(f"w{random.integers(1 << 40)}", (random.normal(size=shape) / 6).astype(np.float32))

    early = b.add("Relu", [b.add("Conv", [b.input("x", (4, 3, 12, 10)), drawn(16, 3, 3, 3)], pads=(1,) * 4)])
    deep = b.add("MaxPool", [early], kernel_shape=(2, 2), strides=(2, 2))
    large = b.add("ConvTranspose", [deep, drawn(16, 20, 2, 2), drawn(20)], strides=(2, 2))
    joined = b.add("Concat", [early, b.add("Relu", [large])], axis=1)
    last = b.add("Conv", [joined, drawn(8, 36, 3, 3)], pads=(1,) * 4)
    wide = b.add("ConvTranspose", [last, drawn(8, 1, 8, 8)], strides=(4, 4), pads=(2,) * 4, group=8)
    graph = b.finish([wide])
    x = random.standard_normal((4, 3, 12, 10)).astype(np.float32)
    (wanted,) = onnxruntime.InferenceSession(write(graph), providers=["CPUExecutionProvider"]).run(None, {"x": x})
    for images in (2, 4):
        got = compile(graph, tune="estimate", threads=2, images=images)(x)
        # Three products in a row, of at most 324 terms each.
        np.testing.assert_allclose(got, wanted, rtol=0, atol=3 * 2 * math.sqrt(324) * UNIT * np.abs(wanted).max())
