"""Pooling against float64 NumPy that spells out every window."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from kernel_runner import each_width, lanes_here, run, step

from perwatt.cpu.kernels.pooling import GLOBAL_POOLING, POOLING
from perwatt.cpu.kernels.pooling_plain import PLAIN_POOLING
from perwatt.graph import Builder
from perwatt.plan.algorithm import Step


def expected(x: np.ndarray, s: Step) -> np.ndarray:
    """Return the pooled map in float64, window by window."""
    a = s.attributes
    kernel, strides, dilations, pads = (a[n] for n in ("kernel_shape", "strides", "dilations", "pads"))
    y = np.zeros(s.outputs[0].shape)
    rank = len(kernel)
    for at in itertools.product(*(range(n) for n in y.shape[2:])):
        taps = [
            [
                p
                for t in range(kernel[i])
                if 0 <= (p := at[i] * strides[i] - pads[i] + t * dilations[i]) < x.shape[2 + i]
            ]
            for i in range(rank)
        ]
        values = x[(..., *np.ix_(*taps))].reshape(*x.shape[:2], -1).astype(np.float64)
        if s.operator == "MaxPool":
            y[(..., *at)] = values.max(axis=-1, initial=-np.inf)
            continue
        count = math.prod(len(t) for t in taps)
        if a["count_include_pad"]:
            reach = [
                sum(
                    -pads[i] <= at[i] * strides[i] - pads[i] + t * dilations[i] < x.shape[2 + i] + pads[rank + i]
                    for t in range(kernel[i])
                )
                for i in range(rank)
            ]
            count = math.prod(reach)
        y[(..., *at)] = values.sum(axis=-1) / count
    return y


def pool(
    operator: str, shape: tuple[int, ...], lanes: int, threads: int = 1, spare: int = 0, layout: str = "blocked",
    **attributes: Any,
) -> Step:  # fmt: skip
    """Return a pooling Step; its output's shape comes from the operator table."""
    b = Builder("pool")
    b.input("x", shape)
    y = b.add(operator, ["x"], **attributes)
    graph = b.finish([y])
    node = graph.nodes[0]
    return step(
        operator, [("x", shape)], [graph.values[y].shape],
        lanes=lanes, threads=threads, spare_blocks=spare, layouts=layout, **node.attributes,
    )  # fmt: skip


def check(s: Step, x: np.ndarray, settings_tried: int = 3) -> None:
    """The first tile settings give the expected values: maxima exactly, averages up to one rounding per addition."""
    wanted = expected(x, s)
    terms = math.prod(s.attributes["kernel_shape"])
    algorithm = POOLING if s.outputs[0].layout == "blocked" else PLAIN_POOLING
    for tile in algorithm.tiles(s)[:settings_tried]:
        got = run(algorithm, s, {"x": x}, tile)[0]
        if s.operator == "MaxPool":
            np.testing.assert_array_equal(got, wanted.astype(np.float32))
        else:
            np.testing.assert_allclose(got, wanted, rtol=0, atol=(terms + 2) * 6e-8 * np.abs(x).max())


CASES = [
    ((1, 64, 14, 14), {"kernel_shape": (3, 3), "strides": (1, 1), "pads": (1, 1, 1, 1)}),
    ((2, 17, 13, 11), {"kernel_shape": (3, 3), "strides": (2, 2), "ceil_mode": 1}),
    ((1, 3, 1, 1), {"kernel_shape": (3, 3), "strides": (1, 1), "pads": (1, 1, 1, 1)}),
    ((3, 1, 7, 5), {"kernel_shape": (2, 2), "strides": (2, 2)}),
    ((1, 33, 9, 9), {"kernel_shape": (5, 3), "dilations": (2, 2), "pads": (4, 2, 4, 2)}),
    ((1, 16, 6, 7), {"kernel_shape": (4, 7), "strides": (3, 1), "pads": (3, 6, 3, 6)}),
    ((2, 5, 20), {"kernel_shape": (3,), "strides": (2,), "pads": (1, 0)}),
    ((1, 20, 7, 7), {"kernel_shape": (7, 7)}),
    ((1, 4, 2, 3), {"kernel_shape": (5, 5), "pads": (4, 4, 4, 4), "strides": (2, 3), "ceil_mode": 1}),
]


@pytest.mark.parametrize("lanes", each_width())
@pytest.mark.parametrize("operator", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize(("shape", "attributes"), CASES, ids=str)
def test_windows(operator: str, shape: tuple[int, ...], attributes: dict, lanes: int) -> None:
    x = np.random.default_rng(3).normal(size=shape).astype(np.float32)
    includes = ({"count_include_pad": 0}, {"count_include_pad": 1}) if operator == "AveragePool" else ({},)
    for threads, more in zip((1, 3), itertools.cycle(includes), strict=False):
        check(pool(operator, shape, lanes, threads, spare=threads - 1, **attributes, **more), x, 1)


@pytest.mark.parametrize("operator", ["MaxPool", "AveragePool"])
def test_plain_windows(operator: str) -> None:
    cubes = [((1, 2, 3, 4, 5), {"kernel_shape": (2, 3, 1), "pads": (1, 1, 0, 0, 2, 0), "strides": (1, 2, 3)})]
    for shape, attributes in [*CASES, *cubes]:
        x = np.random.default_rng(3).normal(size=shape).astype(np.float32)
        for threads in (1, 3):
            more = {"count_include_pad": threads % 2} if operator == "AveragePool" else {}
            check(pool(operator, shape, lanes_here()[0], threads, layout="plain", **attributes, **more), x)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_window(data: st.DataObject) -> None:
    lanes = data.draw(st.sampled_from(lanes_here()))
    size = [data.draw(st.integers(1, 20)) for _ in range(2)]
    kernel = [data.draw(st.integers(1, 5)) for _ in range(2)]
    dilations = [data.draw(st.integers(1, 2)) for _ in range(2)]
    strides = [data.draw(st.integers(1, 3)) for _ in range(2)]
    reach = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
    pads = [data.draw(st.integers(0, r)) for r in reach] + [data.draw(st.integers(0, r)) for r in reach]
    for i in range(2):
        short = reach[i] + 1 - size[i] - pads[i] - pads[i + 2]
        size[i] += max(0, short)
    shape = (data.draw(st.integers(1, 3)), data.draw(st.sampled_from([1, 3, 16, 17, 33])), *size)
    operator = data.draw(st.sampled_from(["MaxPool", "AveragePool"]))
    more = {"count_include_pad": data.draw(st.integers(0, 1))} if operator == "AveragePool" else {}
    s = pool(
        operator, shape, lanes, data.draw(st.sampled_from([1, 2, 3, 5])), data.draw(st.integers(0, 2)),
        kernel_shape=kernel, strides=strides, dilations=dilations, pads=pads,
        ceil_mode=data.draw(st.integers(0, 1)), **more,
    )  # fmt: skip
    assume(POOLING.accepts(s) != "some window lies in the padding altogether")
    check(s, np.random.default_rng(5).normal(size=shape).astype(np.float32))


@pytest.mark.parametrize("lanes", each_width())
def test_nan_and_infinity_pass(lanes: int) -> None:
    x = np.random.default_rng(3).normal(size=(1, 5, 6, 6)).astype(np.float32)
    x[0, 1, 2, 2], x[0, 2, 0, 0], x[0, 3, 5, 5], x[0, 4] = np.nan, np.inf, -np.inf, -np.inf
    for operator in ("MaxPool", "AveragePool"):
        s = pool(operator, x.shape, lanes, kernel_shape=(3, 3), pads=(1, 1, 1, 1))
        np.testing.assert_allclose(run(POOLING, s, {"x": x})[0], expected(x, s), rtol=1e-6, atol=1e-6)
    s = step("GlobalMaxPool", [("x", x.shape)], [(1, 5, 1, 1)], lanes=lanes)
    np.testing.assert_array_equal(run(GLOBAL_POOLING, s, {"x": x})[0], x.max(axis=(2, 3), keepdims=True))


@pytest.mark.parametrize("lanes", each_width())
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 17, 7, 7), (2, 64, 5, 1), (1, 33, 9)], ids=str)
def test_whole_maps(shape: tuple[int, ...], lanes: int) -> None:
    x = np.random.default_rng(3).normal(size=shape).astype(np.float32)
    axes = tuple(range(2, len(shape)))
    for threads, operator in itertools.product(
        (1, 2, 5), ("GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceMax")
    ):
        average = operator in ("GlobalAveragePool", "ReduceMean")
        wanted = (np.mean if average else np.max)(x.astype(np.float64), axis=axes, keepdims=True)
        flat = operator.startswith("Reduce") and threads == 2
        more = {"axes": axes, "keepdims": 1 - flat} if operator.startswith("Reduce") else {}
        out = shape[:2] if flat else wanted.shape
        s = step(operator, [("x", shape)], [out], lanes=lanes, threads=threads, spare_blocks=threads - 1, **more)
        got = run(GLOBAL_POOLING, s, {"x": x})[0].reshape(wanted.shape)
        tolerance = (math.prod(shape[2:]) + 1) * 6e-8 * np.abs(x).max() if average else 0
        np.testing.assert_allclose(got, wanted, rtol=0, atol=tolerance)
