"""Reductions and matrix products of plain tensors against float64 NumPy."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from kernel_runner import each_width, run, step

from perwatt.cpu.kernels.matrix import MATRIX_PRODUCT
from perwatt.cpu.kernels.reduction import REDUCTION

NUMPY = {"ReduceSum": np.sum, "ReduceMean": np.mean, "ReduceMax": np.max, "ReduceMin": np.min}


@pytest.mark.parametrize("lanes", each_width())
@pytest.mark.parametrize("shape", [(7,), (2, 3, 4, 5), (1, 33, 1, 17), (3, 1, 40), (2, 2, 2, 2, 19)], ids=str)
@pytest.mark.parametrize("operator", NUMPY)
def test_reductions(operator: str, shape: tuple[int, ...], lanes: int) -> None:
    x = np.random.default_rng(8).normal(size=shape).astype(np.float32)
    for count in range(len(shape) + 1):
        for number, axes in enumerate(itertools.combinations(range(len(shape)), count)):
            keep = number % 2
            wanted = NUMPY[operator](x.astype(np.float64), axis=axes, keepdims=bool(keep))
            s = step(
                operator, [("x", shape)], [wanted.shape], lanes=lanes, threads=number % 3 + 1, layouts="plain",
                axes=axes, keepdims=keep,
            )  # fmt: skip
            terms = math.prod(shape[axis] for axis in axes) + 1
            exact = operator in ("ReduceMax", "ReduceMin")
            size = np.abs(x).max() * (terms if operator == "ReduceSum" else 1)
            tolerance = 0 if exact else terms * 6e-8 * size
            np.testing.assert_allclose(run(REDUCTION, s, {"x": x})[0], wanted, rtol=0, atol=tolerance)


@pytest.mark.parametrize("operator", ["GlobalAveragePool", "GlobalMaxPool"])
def test_whole_maps_of_any_rank(operator: str) -> None:
    x = np.random.default_rng(8).normal(size=(2, 3, 4, 5, 3)).astype(np.float32)
    wanted = (np.mean if operator == "GlobalAveragePool" else np.max)(x, axis=(2, 3, 4), keepdims=True)
    s = step(operator, [("x", x.shape)], [wanted.shape], layouts="plain")
    np.testing.assert_allclose(run(REDUCTION, s, {"x": x})[0], wanted, atol=1e-6)


def product(operator: str, shapes: list[tuple[int, ...]], lanes: int, threads: int, **attributes: Any) -> None:
    rng = np.random.default_rng(8)
    feeds = {f"x{i}": np.asarray(rng.normal(size=shape), np.float32) for i, shape in enumerate(shapes)}
    a, b, *c = (array.astype(np.float64) for array in feeds.values())
    if operator == "Gemm":
        a, b = a.T if attributes["transA"] else a, b.T if attributes["transB"] else b
        wanted = attributes["alpha"] * (a @ b) + (attributes["beta"] * c[0] if c else 0)
    else:
        wanted = a @ b
    s = step(
        operator, [(n, x.shape) for n, x in feeds.items()], [wanted.shape], lanes=lanes, threads=threads,
        layouts="plain", constants={"x1": feeds["x1"]} if threads == 3 else {}, **attributes,
    )  # fmt: skip
    got = run(MATRIX_PRODUCT, s, feeds)[0]
    np.testing.assert_allclose(got, wanted, rtol=0, atol=(a.shape[-1] + 4) * 6e-8 * 12 * (1 + 2 * len(c)))


@pytest.mark.parametrize("lanes", each_width())
def test_matrix_products(lanes: int) -> None:
    for threads, shapes in enumerate(
        [
            [(3, 4), (4, 5)],
            [(1, 1), (1, 1)],
            [(2, 9, 17), (2, 17, 33)],
            [(2, 1, 5, 3), (4, 3, 40)],
            [(7,), (7, 5)],
            [(3, 2, 7), (7,)],
            [(4,), (4,)],
            [(5, 64), (64, 1)],
        ]
    ):
        product("MatMul", shapes, lanes, threads % 4 + 1)


@pytest.mark.parametrize("lanes", each_width())
def test_gemm(lanes: int) -> None:
    for number, (a, b, third) in enumerate(
        itertools.product((0, 1), (0, 1), (None, (), (19,), (1, 19), (6, 1), (6, 19)))
    ):
        shapes = [(11, 6) if a else (6, 11), (19, 11) if b else (11, 19), *([] if third is None else [third])]
        product("Gemm", shapes, lanes, number % 3 + 1, transA=a, transB=b, alpha=1.5 if number % 2 else 1.0, beta=0.5)
