"""ArgMax and ArgMin against NumPy, on values with ties, infinities and NaN; and as a network's answer in int64."""

import numpy as np
import onnxruntime
import pytest
from kernel_runner import each_width, lanes_here, run, step

from perwatt.cpu.kernels.places import LONGEST_AXIS, PLACES
from perwatt.errors import UnsupportedOperator
from perwatt.graph import Builder, write
from perwatt.run.compile import compile

SHAPES = [((7,), 0), ((3, 37), 1), ((2, 5, 11), 1), ((2, 5, 11), 0), ((4, 16), 1), ((1, 3, 1, 1), 1), ((9, 1), 1)]


def wanted(operator: str, x: np.ndarray, axis: int, last: int) -> np.ndarray:
    """Return what NumPy finds, from behind for the last place."""
    search = np.argmax if operator == "ArgMax" else np.argmin
    return x.shape[axis] - 1 - search(np.flip(x, axis), axis) if last else search(x, axis)


@pytest.mark.parametrize("lanes", each_width())
@pytest.mark.parametrize("operator", ["ArgMax", "ArgMin"])
@pytest.mark.parametrize("last", [0, 1])
def test_against_numpy(operator: str, last: int, lanes: int) -> None:
    random = np.random.default_rng(4)
    special = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0], np.float32)
    for shape, axis in SHAPES:
        s = step(
            operator, [("x", shape)], [shape[:axis] + shape[axis + 1 :]], lanes=lanes, threads=3, layouts="plain",
            axis=axis, keepdims=0, select_last_index=last,
        )  # fmt: skip
        ties = random.integers(-2, 3, shape).astype(np.float32)
        strange = np.where(random.random(shape) < 0.3, random.choice(special, shape), ties)
        for x in (random.standard_normal(shape).astype(np.float32), ties, strange, np.full_like(ties, -np.inf)):
            assert np.array_equal(run(PLACES, s, {"x": x})[0], wanted(operator, x, axis, last)), (shape, axis)


def test_an_axis_too_long_for_whole_numbers_in_float32_is_refused() -> None:
    s = step("ArgMax", [("x", (LONGEST_AXIS + 1,))], [()], lanes=lanes_here()[0], layouts="plain", axis=0)
    assert "longer" in str(PLACES.accepts(s))


def test_places_leave_a_network_as_int64_and_can_be_moved_and_made_real() -> None:
    random = np.random.default_rng(3)
    b = Builder("classifier")
    x = b.add(
        "Conv", [b.input("x", (2, 3, 7, 5)), b.constant("w", random.normal(size=(9, 3, 3, 3)).astype(np.float32))]
    )
    found = b.add("ArgMax", [x], axis=1, keepdims=0)
    turned = b.add("Transpose", [found], perm=(0, 2, 1))
    real = b.add("Cast", [b.add("Unsqueeze", [found], axes=(1,))], to="float32")
    lowest = b.add("ArgMin", [b.add("Flatten", [x])], axis=-1)
    graph = b.finish([found, turned, b.add("Mul", [real, real]), lowest])
    feed = random.standard_normal((2, 3, 7, 5)).astype(np.float32)
    session = onnxruntime.InferenceSession(write(graph), providers=["CPUExecutionProvider"])
    model = compile(graph, tune="estimate", threads=2)
    for _ in range(2):
        got = model.run({"x": feed})
        for name, expected in zip(graph.outputs, session.run(None, {"x": feed}), strict=True):
            assert got[name].dtype == expected.dtype
            assert np.array_equal(got[name], expected)


def test_arithmetic_with_places_is_refused() -> None:
    b = Builder("sum")
    found = b.add("ArgMax", [b.input("x", (2, 3))])
    with pytest.raises(UnsupportedOperator, match=r"Add .*int64"):
        compile(b.finish([b.add("Add", [found, found])]))
