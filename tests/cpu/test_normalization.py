"""LRN and softmax against float64 NumPy."""

import itertools

import numpy as np
import pytest
from kernel_runner import each_width, run, step

from perwatt.cpu.kernels.normalization import LRN, SOFTMAX


def lrn(x: np.ndarray, size: int, alpha: float, beta: float, bias: float) -> np.ndarray:
    """Return ONNX's LRN in float64."""
    x = x.astype(np.float64)
    total = np.zeros_like(x)
    for c in range(x.shape[1]):
        low, high = max(0, c - (size - 1) // 2), min(x.shape[1], c + size // 2 + 1)
        total[:, c] = (x[:, low:high] ** 2).sum(axis=1)
    return x * (bias + alpha / size * total) ** -beta


@pytest.mark.parametrize("lanes", each_width())
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 3, 5, 5), (2, 17, 3, 7), (3, 33, 1, 2), (1, 64, 6, 6)], ids=str)
@pytest.mark.parametrize(("size", "beta"), [(5, 0.75), (4, 0.75), (1, 0.5), (3, 1.0), (7, 0.6)])
def test_lrn(shape: tuple[int, ...], size: int, beta: float, lanes: int) -> None:
    x = (np.random.default_rng(1).normal(size=shape) * 30).astype(np.float32)
    attributes = {"size": size, "alpha": 1e-1, "beta": beta, "bias": 2.0}
    for threads in (1, 2, 5):
        s = step("LRN", [("x", shape)], [shape], lanes=lanes, threads=threads, spare_blocks=threads - 1, **attributes)
        # One rounding per element of the window, a few for root, quotient and the logarithm times beta.
        np.testing.assert_allclose(run(LRN, s, {"x": x})[0], lrn(x, **attributes), rtol=(size + 12) * 6e-8, atol=0)


@pytest.mark.parametrize("lanes", each_width())
def test_lrn_of_what_is_no_number(lanes: int) -> None:
    x = np.ones((1, 40, 1, 3), np.float32)
    x[0, 5, 0, 0], x[0, 20, 0, 1], x[0, 39, 0, 2] = np.nan, np.inf, 1e30
    for beta in (0.75, 0.6):
        attributes = {"size": 5, "alpha": 1e-1, "beta": beta, "bias": 2.0}
        wanted = lrn(x, **attributes)
        wanted[0, 37:, 0, 2] = 0  # 1e30 squared is infinite in float32
        with np.errstate(invalid="ignore"):
            got = run(LRN, step("LRN", [("x", x.shape)], [x.shape], lanes=lanes, **attributes), {"x": x})[0]
        np.testing.assert_allclose(got, wanted, rtol=20 * 6e-8)


def softmax(x: np.ndarray, axis: int, logarithmic: bool) -> np.ndarray:
    """Return the softmax in float64."""
    shifted = x.astype(np.float64) - x.max(axis=axis, keepdims=True)
    total = np.exp(shifted).sum(axis=axis, keepdims=True)
    return shifted - np.log(total) if logarithmic else np.exp(shifted) / total


@pytest.mark.parametrize("lanes", each_width())
@pytest.mark.parametrize("shape", [(1, 1000), (3, 17), (2, 1), (2, 33, 1, 1), (2, 5, 3, 7), (4, 7, 19), (3,)], ids=str)
def test_softmax(shape: tuple[int, ...], lanes: int) -> None:
    x = (np.random.default_rng(1).normal(size=shape) * 5).astype(np.float32)
    length = max(shape)
    for operator, axis in itertools.product(("Softmax", "LogSoftmax"), range(len(shape))):
        layouts = ["plain", "blocked"] if axis == 1 else ["plain"]
        for threads, layout in itertools.product((1, 3), layouts):
            s = step(operator, [("x", shape)], [shape], lanes=lanes, threads=threads, layouts=layout, axis=axis)
            got, wanted = run(SOFTMAX, s, {"x": x})[0], softmax(x, axis, operator == "LogSoftmax")
            # x - max is rounded once: an error of eps·|x - max| relative in e^x.
            np.testing.assert_allclose(got, wanted, rtol=(length / 16 + 40) * 6e-8, atol=4e-6 * (operator[0] == "L"))


@pytest.mark.parametrize("layout", ["plain", "blocked"])
def test_softmax_of_what_is_no_number(layout: str) -> None:
    x = np.zeros((5, 20), np.float32)
    x[0, 3], x[1, 3], x[2, 3], x[3] = np.nan, np.inf, -np.inf, -np.inf
    s = step("Softmax", [("x", x.shape)], [x.shape], layouts=layout, axis=1)
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(run(SOFTMAX, s, {"x": x})[0], softmax(x, 1, False), rtol=1e-6)
