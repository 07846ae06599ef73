"""Depthwise convolution against float64 NumPy."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from kernel_runner import each_width, lanes_here, run, step

from perwatt.cpu.kernels.depthwise import DEPTHWISE

ACTIVATIONS = {
    None: lambda v: v,
    "Relu": lambda v: np.maximum(v, 0),
    "Clip": lambda v: np.clip(v, 0.0, 6.0),
    "Silu": lambda v: v / (1 + np.exp(-v)),
}


def check(
    shape: tuple[int, ...], kernel: tuple[int, ...], strides: tuple[int, ...], dilations: tuple[int, ...],
    pads: tuple[int, ...], lanes: int, threads: int, activation: str | None = None, residual: bool = False,
    bias: bool = True, spare: int = 0, settings_tried: int = 4,
) -> None:  # fmt: skip
    rng = np.random.default_rng(7)
    x, w = rng.normal(size=shape).astype(np.float32), rng.normal(size=(shape[1], 1, *kernel)).astype(np.float32)
    b = rng.normal(size=shape[1]).astype(np.float32)
    rank = len(kernel)
    around = [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)]
    padded = np.pad(x.astype(np.float64), around)
    out = tuple((padded.shape[2 + i] - dilations[i] * (kernel[i] - 1) - 1) // strides[i] + 1 for i in range(rank))
    y = np.zeros((*shape[:2], *out)) + bias * b.astype(np.float64).reshape(1, -1, *[1] * rank)
    for tap in itertools.product(*(range(n) for n in kernel)):
        cut = tuple(
            slice(t * d, t * d + (n - 1) * s + 1, s) for t, d, n, s in zip(tap, dilations, out, strides, strict=True)
        )
        y += padded[(slice(None), slice(None), *cut)] * w[(slice(None), 0, *tap)].reshape(1, -1, *[1] * rank)
    r = rng.normal(size=y.shape).astype(np.float32)
    y = ACTIVATIONS[activation](y + r if residual else y)
    inputs = [("x", shape), ("w", w.shape), ("b", b.shape) if bias else None, ("r", y.shape) if residual else None]
    layouts = ["blocked", "plain", "plain", "blocked", "blocked"]
    s = step(
        "FusedConv", inputs, [y.shape], lanes=lanes, threads=threads, layouts=layouts, spare_blocks=spare,
        constants={"w": w, "b": b} if bias else {"w": w}, kernel_shape=kernel, strides=strides, dilations=dilations,
        pads=pads, group=shape[1], activation=activation, activation_alpha=0.0,
        activation_beta=6.0 if activation == "Clip" else 0.0, splits=None,
    )  # fmt: skip
    terms = math.prod(kernel) + 3
    for tile in DEPTHWISE.tiles(s)[:settings_tried]:
        got = run(DEPTHWISE, s, {"x": x, "r": r}, tile)[0]
        np.testing.assert_allclose(got, y, rtol=1e-6, atol=terms * 6e-8 * np.abs(x).max() * np.abs(w).max() * 2)


@pytest.mark.parametrize("lanes", each_width())
@pytest.mark.parametrize("size", [1, 2, 7, 14, 17])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2), (1, 1), (4, 3)])
def test_square_kernels(kernel: int, stride: int, size: int, lanes: int) -> None:
    pad = kernel // 2
    for threads, channels in ((1, 1), (3, 33)):
        check(
            (2, channels, size, size),
            (kernel,) * 2,
            (stride,) * 2,
            (1, 1),
            (pad,) * 4,
            lanes,
            threads,
            settings_tried=1,
        )


@pytest.mark.parametrize("lanes", each_width())
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_what_follows(activation: str | None, lanes: int) -> None:
    for residual, bias in ((True, True), (False, False), (True, False)):
        check(
            (2, 19, 6, 9), (3, 3), (1, 1), (1, 1), (1, 1, 1, 1), lanes, 2, activation, residual, bias, spare=1,
            settings_tried=1,
        )  # fmt: skip


def test_one_spatial_axis_and_very_wide_pads() -> None:
    check((2, 5, 11), (3,), (2,), (2,), (4, 3), 16, 2)
    check((1, 17, 3, 2), (7, 7), (1, 1), (1, 1), (6, 6, 6, 6), 16, 5)


def test_what_is_no_depthwise_convolution_is_refused() -> None:
    w = np.zeros((8, 1, 3, 3), np.float32)
    how = {"kernel_shape": (3, 3), "strides": (1, 1), "dilations": (1, 1), "pads": (1,) * 4, "activation": None}
    s = step("FusedConv", [("x", (1, 4, 5, 5)), ("w", w.shape)], [(1, 8, 5, 5)], constants={"w": w}, group=4, **how)
    assert "one output for every channel" in str(DEPTHWISE.accepts(s))


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_window(data: st.DataObject) -> None:
    draw = data.draw

    def pair(low: int, high: int) -> tuple[int, int]:
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    kernel, size, strides, dilations = pair(1, 6), pair(1, 20), pair(1, 3), pair(1, 3)
    pads = (*pair(0, 7), *pair(0, 7))
    assume(all(size[i] + pads[i] + pads[i + 2] > dilations[i] * (kernel[i] - 1) for i in range(2)))
    shape = (draw(st.integers(1, 3)), draw(st.sampled_from([1, 3, 16, 17, 33])), *size)
    check(
        shape, kernel, strides, dilations, pads, draw(st.sampled_from(lanes_here())),
        draw(st.sampled_from([1, 2, 3, 5])), draw(st.sampled_from(list(ACTIVATIONS))), draw(st.booleans()),
        draw(st.booleans()), draw(st.integers(0, 1)), 2,
    )  # fmt: skip
