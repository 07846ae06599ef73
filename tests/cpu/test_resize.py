"""Resize against the ONNX project's reference implementation."""

import itertools
from typing import Any

import numpy as np
import onnx
import pytest
from kernel_runner import each_width, run, step
from onnx.reference import ReferenceEvaluator

from perwatt.cpu.kernels.resize import RESIZE
from perwatt.graph import Builder

COORDINATES = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric"]


def check(shape: tuple[int, ...], lanes: int, layouts: tuple[str, ...], threads: int, **attributes: Any) -> None:
    b = Builder("resize")
    b.input("x", shape)
    y = b.add("Resize", ["x"], **attributes)
    node = b.finish([y]).nodes[0]
    x = np.random.default_rng(6).normal(size=shape).astype(np.float32)
    form = {"axes": None, **attributes}
    target = {name: form.pop(name, None) for name in ("scales", "sizes")}
    form.pop("axes")
    inputs = ["x", "", "scales" if target["scales"] else "", "sizes" if target["sizes"] else ""]
    made = onnx.helper.make_node("Resize", inputs, ["y"], **form)
    tensors = [onnx.helper.make_tensor_value_info("x", 1, shape)]
    constants = [
        onnx.numpy_helper.from_array(np.array(value, np.float32 if name == "scales" else np.int64), name)
        for name, value in target.items()
        if value
    ]
    graph = onnx.helper.make_graph([made], "g", tensors, [onnx.helper.make_tensor_value_info("y", 1, None)], constants)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 19)])
    wanted = ReferenceEvaluator(model).run(None, {"x": x})[0]
    for layout in layouts:
        s = step(
            "Resize", [("x", shape)], [wanted.shape], lanes=lanes, layouts=layout, threads=threads,
            spare_blocks=threads - 1, **node.attributes,
        )  # fmt: skip
        got = run(RESIZE, s, {"x": x})[0]
        if attributes["mode"] == "nearest":
            np.testing.assert_array_equal(got, wanted)
        else:  # weights of both signs, in two passes
            np.testing.assert_allclose(got, wanted, rtol=0, atol=40 * 6e-8 * np.abs(x).max())


BOTH = ("plain", "blocked")


@pytest.mark.parametrize("lanes", each_width())
@pytest.mark.parametrize("coordinates", COORDINATES)
def test_nearest(coordinates: str, lanes: int) -> None:
    for nearest_mode, sizes in itertools.product(
        ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"), ((1, 3, 4, 10), (1, 3, 3, 2), (1, 3, 1, 7))
    ):
        how = {"coordinate_transformation_mode": coordinates, "nearest_mode": nearest_mode}
        check((1, 3, 2, 5), lanes, BOTH, 2, mode="nearest", sizes=sizes, **how)


@pytest.mark.parametrize("lanes", each_width())
@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_weighted(mode: str, coordinates: str, lanes: int) -> None:
    how: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": coordinates}
    for threads, sizes in enumerate(((2, 3, 4, 11), (2, 3, 2, 5), (2, 3, 1, 7)), 1):
        check((2, 3, 3, 5), lanes, BOTH, threads, sizes=sizes, **how)
    check((1, 2, 3, 5), lanes, BOTH, 2, scales=(1.0, 1.0, 1.7, 0.6), **how)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_antialias_and_exclude_outside(mode: str) -> None:
    for how in ({"antialias": 1}, {"exclude_outside": 1}, {"antialias": 1, "exclude_outside": 1}):
        check((1, 2, 9, 8), 16, BOTH, 1, mode=mode, scales=(1.0, 1.0, 0.4, 0.7), **how)
    check((1, 2, 5, 5), 16, BOTH, 1, mode="cubic", scales=(1.0, 1.0, 2.0, 1.5), cubic_coeff_a=-0.5)


def test_axes_other_than_the_spatial_ones() -> None:
    check((2, 3, 4), 16, ("plain",), 2, mode="linear", sizes=(3, 5, 9))
    check((2, 3, 4, 5), 16, ("plain",), 2, mode="nearest", sizes=(4, 2, 8, 5))
    check((1, 20, 6), 16, BOTH, 2, mode="linear", sizes=(1, 20, 13))
