"""The slow twin against onnx's own slow implementation, PyTorch in float64, and ONNX Runtime on whole networks."""

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from perwatt.errors import NetworkError
from perwatt.graph import write
from perwatt.graph.reference import Reference
from perwatt.networks import build

EPSILON = float(np.finfo(np.float64).eps)


def single(
    operator: str, shape: tuple[int, ...], weights: list[np.ndarray], opset: int = 22, **attributes: Any
) -> bytes:
    """Return a network of one operator whose other inputs are constants."""
    names = [f"w{place}" for place in range(len(weights))]
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", *names], ["y"], **attributes)],
        "single",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for array, name in zip(weights, names, strict=True)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=9)
    return bytes(model.SerializeToString())


def by_onnx(model: bytes, x: np.ndarray) -> np.ndarray:
    """Run a network in onnx's reference implementation, its weights in float64."""
    proto = onnx.load_from_string(model)
    for entry in proto.graph.initializer:
        entry.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(entry).astype(np.float64), entry.name))
    return np.asarray(ReferenceEvaluator(proto).run(None, {"x": x.astype(np.float64)})[0])


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def same(got: np.ndarray, exact: np.ndarray, terms: int) -> None:
    """Assert equality up to the rounding of sums of so many terms in another order."""
    wanted = exact.reshape(len(exact), -1)
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, rtol=0, atol=4 * EPSILON * terms * max(np.abs(wanted).max(), 1))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("channels", "filters", "group", "kernel", "strides", "dilations", "pads"),
    [
        (3, 5, 1, (3, 3), (1, 1), (1, 1), (1, 1)),
        (4, 6, 2, (3, 2), (2, 3), (1, 2), (2, 0)),
        (6, 6, 6, (5, 3), (2, 1), (1, 1), (2, 1)),
        (3, 9, 3, (1, 1), (2, 2), (1, 1), (0, 0)),
        (2, 4, 1, (7, 7), (4, 4), (1, 1), (3, 3)),
    ],
)
def test_convolution(
    channels: int, filters: int, group: int, kernel: tuple[int, int], strides: tuple[int, int],
    dilations: tuple[int, int], pads: tuple[int, int], bias: bool,
) -> None:  # fmt: skip
    x = drawn(2, channels, 13, 17)
    weights = drawn(filters, channels // group, *kernel, seed=1)
    constants = [weights, drawn(filters, seed=2)] if bias else [weights]
    model = single(
        "Conv", (1, *x.shape[1:]), constants, strides=strides, dilations=dilations, pads=(*pads, *pads), group=group
    )
    exact = torch.nn.functional.conv2d(
        torch.from_numpy(x).double(), torch.from_numpy(weights).double(),
        torch.from_numpy(constants[1]).double() if bias else None, strides, pads, dilations, group,
    )  # fmt: skip
    same(Reference(model)(x), exact.numpy(), channels * kernel[0] * kernel[1])


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize(("size", "strides"), [((13, 16), (2, 2)), ((12, 9), (3, 1))])
def test_convolution_that_pads_itself(mode: str, size: tuple[int, int], strides: tuple[int, int]) -> None:
    x, weights = drawn(1, 3, *size), drawn(4, 3, 3, 4, seed=1)
    model = single("Conv", x.shape, [weights], strides=strides, auto_pad=mode)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    exact = session.run(None, {"x": x})[0]
    got = Reference(model)(x)
    np.testing.assert_allclose(got, exact.reshape(1, -1), rtol=0, atol=1e-6 * 36)


POOLS = [
    {"kernel_shape": (3, 3), "strides": (2, 2)},
    {"kernel_shape": (3, 3), "strides": (2, 2), "ceil_mode": 1},
    {"kernel_shape": (2, 3), "strides": (1, 2), "pads": (1, 1, 0, 1)},
    {"kernel_shape": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1), "ceil_mode": 1},
    {"kernel_shape": (3, 3), "strides": (1, 1), "auto_pad": "SAME_UPPER"},
    {"kernel_shape": (2, 2), "strides": (3, 3), "ceil_mode": 1},
]


@pytest.mark.parametrize("size", [(11, 12), (8, 7)])
@pytest.mark.parametrize("attributes", POOLS)
def test_largest_of_a_window(size: tuple[int, int], attributes: dict[str, Any]) -> None:
    x = drawn(2, 3, *size) - 5  # padding with zeros would win
    model = single("MaxPool", (1, 3, *size), [], **attributes)
    same(Reference(model)(x), np.concatenate([by_onnx(model, each[np.newaxis]) for each in x]), 1)


@pytest.mark.parametrize("include", [0, 1])
@pytest.mark.parametrize("size", [(11, 12), (8, 7)])
@pytest.mark.parametrize("attributes", POOLS)
def test_mean_of_a_window(size: tuple[int, int], attributes: dict[str, Any], include: int) -> None:
    if include and "auto_pad" in attributes:
        attributes = {**attributes, "auto_pad": "VALID"}  # onnx and ONNX Runtime differ about this one
    x = drawn(1, 3, *size)
    model = single("AveragePool", x.shape, [], count_include_pad=include, **attributes)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    exact = session.run(None, {"x": x})[0].astype(np.float64)
    np.testing.assert_allclose(Reference(model)(x), exact.reshape(1, -1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 5, 9])
def test_local_normalisation(size: int) -> None:
    """By the definition, channel by channel: onnx's own implementation looks at the first channel only."""
    x = drawn(1, 7, 5, 4)
    alpha, beta, bias = (float(np.float32(each)) for each in (0.3, 0.6, 1.5))
    model = single("LRN", x.shape, [], size=size, alpha=alpha, beta=beta, bias=bias)
    exact = x.astype(np.float64)
    for channel in range(7):
        first, last = max(0, channel - (size - 1) // 2), min(6, channel + size // 2)
        squares = sum(x[:, each].astype(np.float64) ** 2 for each in range(first, last + 1))
        exact[:, channel] /= (bias + alpha / size * squares) ** beta
    same(Reference(model)(x), exact, 10)


def test_float64_is_kept_where_a_file_names_float32() -> None:
    """A cast or a constant of float32 in the file must not round the reference."""
    value = numpy_helper.from_array(np.array([3.0], dtype=np.float32))
    nodes = [
        helper.make_node("Constant", [], ["three"], value=value),
        helper.make_node("Cast", ["x"], ["same"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["same", "three"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "cast", [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 2, 1, 1))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 2, 1, 1))],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    x = drawn(1, 2, 1, 1)
    np.testing.assert_array_equal(Reference(model)(x), (x.astype(np.float64) / 3).reshape(1, -1))


def test_an_operator_that_cannot_run_says_so() -> None:
    model = single("Reshape", (1, 4, 1, 1), [np.array([1, 3], dtype=np.int64)])
    with pytest.raises(NetworkError, match="Reshape node 'y': expected a reference result"):
        Reference(model)(drawn(1, 4, 1, 1))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lenet", "squeezenet1.1", "efficientnet-lite0", "googlenet"])
def test_whole_networks(name: str) -> None:
    model = write(build(name), batch="batch")
    proto = onnx.load_from_string(model)
    shape = [entry.dim_value for entry in proto.graph.input[0].type.tensor_type.shape.dim][1:]
    x = drawn(2, *shape)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    theirs = session.run(None, {proto.graph.input[0].name: x})[0].astype(np.float64)
    exact = Reference(model)(x)
    # ONNX Runtime rounds in FP32: some 2^-24 sqrt(4608) in each of up to 100 layers, which add up as sqrt(100).
    assert np.abs(theirs - exact).max() / np.abs(exact).max() <= 8 * 2**-24 * np.sqrt(4608 * 100)
