"""Every row of the operator table, written to ONNX, against ONNX's inference, its reference and ONNX Runtime."""

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx_oracles import EPSILON, feeds_of, inferred, run_onnxruntime, run_reference, structure

from perwatt.errors import InvalidGraph
from perwatt.graph import OPERATORS, Builder, Graph, Node, Value, read, write
from perwatt.graph.cost import cost
from perwatt.graph.operators import make

RANDOM = np.random.default_rng(7)


def weights(*shape: int) -> np.ndarray:
    return RANDOM.uniform(-1, 1, shape).astype(np.float32)


def positive(*shape: int) -> np.ndarray:
    return RANDOM.uniform(0.5, 2, shape).astype(np.float32)


# Inputs (a shape is fed, an array is a constant) and attributes, on sizes that are awkward: 1, primes, tails.
CASES: dict[str, list[tuple[list[Any], dict[str, Any]]]] = {
    "Conv": [
        ([(2, 6, 7, 5), weights(4, 3, 3, 2), weights(4)], {"group": 2, "pads": (1, 0, 2, 1), "strides": (2, 1)}),
        ([(1, 5, 11, 13), weights(5, 1, 3, 3)], {"group": 5, "dilations": (2, 3), "pads": (2, 3, 2, 3)}),
        ([(1, 3, 1, 1), weights(2, 3, 1, 1)], {}),
        ([(1, 1, 9), weights(3, 1, 4)], {"strides": (3,)}),
        ([(1, 2, 3, 4, 5), weights(2, 2, 2, 2, 2)], {}),
        ([(1, 2, 2, 2), weights(1, 2, 5, 5)], {"pads": (3, 2, 2, 3)}),
    ],
    "ConvTranspose": [
        (
            [(2, 4, 5, 3), weights(4, 3, 3, 2), weights(6)],
            {"group": 2, "strides": (2, 3), "pads": (1, 0, 0, 1), "dilations": (2, 1), "output_padding": (1, 0)},
        ),
        ([(1, 3, 7, 5), weights(3, 2, 4, 4)], {"strides": (2, 2), "pads": (1, 1, 1, 1)}),
        ([(1, 1, 9), weights(1, 3, 4)], {}),
    ],
    "Gemm": [
        ([(3, 5), weights(5, 7), weights(7)], {"alpha": 0.3, "beta": 1.7}),
        ([(5, 3), weights(7, 5)], {"transA": 1, "transB": 1}),
        ([(1, 5), weights(5, 1), weights(1, 1)], {}),
    ],
    "MatMul": [
        ([(3, 5), weights(5, 7)], {}),
        ([(2, 1, 3, 5), weights(4, 5, 2)], {}),
        ([(5,), weights(5, 2)], {}),
        ([(2, 3, 5), weights(5)], {}),
        ([(5,), weights(5)], {}),
    ],
    "MaxPool": [
        ([(2, 3, 7, 5)], {"kernel_shape": (3, 3), "strides": (2, 2), "ceil_mode": 1, "pads": (1, 1, 1, 1)}),
        ([(1, 1, 7, 11)], {"kernel_shape": (2, 3), "dilations": (2, 1)}),
        ([(1, 2, 6)], {"kernel_shape": (2,), "strides": (2,)}),
        ([(1, 1, 5, 5)], {"kernel_shape": (1, 1), "strides": (2, 2), "ceil_mode": 1}),
    ],
    "AveragePool": [
        ([(2, 3, 7, 5)], {"kernel_shape": (3, 3), "pads": (1, 1, 1, 1), "count_include_pad": 1}),
        ([(2, 3, 7, 5)], {"kernel_shape": (3, 3), "pads": (1, 1, 1, 1), "strides": (2, 2)}),
        ([(1, 1, 6, 6)], {"kernel_shape": (3, 3), "strides": (2, 2), "ceil_mode": 1}),
    ],
    "GlobalAveragePool": [([(2, 3, 7, 5)], {}), ([(1, 1, 1, 1)], {})],
    "GlobalMaxPool": [([(2, 3, 7, 5)], {})],
    "LRN": [([(2, 7, 3, 5)], {"size": 5}), ([(1, 2, 1, 1)], {"size": 3, "alpha": 0.5, "beta": 0.5, "bias": 2.0})],
    "BatchNormalization": [
        ([(2, 3, 5, 7), weights(3), weights(3), weights(3), positive(3)], {"epsilon": 1e-3}),
        ([(2, 3), weights(3), weights(3), weights(3), positive(3)], {}),
    ],
    "Softmax": [([(2, 3, 5)], {"axis": 1}), ([(7, 11)], {}), ([(1, 1)], {"axis": 0})],
    "LogSoftmax": [([(2, 3, 5)], {"axis": -2})],
    "Clip": [([(3, 5)], {"min": 0, "max": 6}), ([(3, 5)], {"min": -0.1}), ([(3, 5)], {})],
    "HardSigmoid": [([(3, 5)], {"alpha": 1 / 6, "beta": 0.5})],
    "LeakyRelu": [([(3, 5)], {"alpha": 0.1})],
    "Elu": [([(3, 5)], {"alpha": 0.7})],
    "Selu": [([(3, 5)], {})],
    "Gelu": [([(3, 5)], {}), ([(3, 5)], {"approximate": "tanh"})],
    "Cast": [([(3, 5)], {"to": "int32"}), ([(3, 5)], {"to": "float16"}), ([()], {"to": np.float64})],
    "Sum": [([(3, 5), (5,), (1, 1)], {}), ([(2,)], {})],
    "Max": [([(3, 5), (5,), (3, 1)], {})],
    "Min": [([(3, 5), (5,)], {})],
    "Mean": [([(3, 5), (5,), ()], {})],
    "PRelu": [([(2, 3, 5, 7), weights(3, 1, 1)], {})],
    "ReduceMean": [([(2, 3, 5, 7)], {"axes": (-1, 2)}), ([(2, 3)], {"keepdims": 0}), ([(2, 3)], {"axes": ()})],
    "ReduceSum": [([(2, 3, 5)], {"axes": (1,), "keepdims": 0})],
    "ReduceMax": [([(2, 3, 5)], {"axes": (0, 2)})],
    "ReduceMin": [([(2, 3, 5)], {})],
    "ArgMax": [([(2, 3, 5)], {"axis": -1}), ([(2, 3)], {"keepdims": 0, "select_last_index": 1})],
    "ArgMin": [([(2, 3, 5)], {"axis": 1}), ([(7,)], {"keepdims": 0})],
    "Concat": [([(2, 3, 5), (2, 1, 5), (2, 7, 5)], {"axis": -2}), ([(2,)], {"axis": 0})],
    "Flatten": [([(2, 3, 5, 7)], {}), ([(2, 3, 5)], {"axis": -1}), ([(2, 3)], {"axis": 0}), ([(2, 3)], {"axis": 2})],
    "Reshape": [([(2, 3, 5)], {"shape": (0, -1)}), ([(2, 3)], {"shape": (3, 1, 2)}), ([(1, 1)], {"shape": ()})],
    "Transpose": [([(2, 3, 5)], {}), ([(2, 3, 5, 7)], {"perm": (0, 2, 3, 1)})],
    "Squeeze": [([(1, 3, 1, 1)], {"axes": (-1, 2)}), ([(1, 3, 1)], {})],
    "Unsqueeze": [([(3, 5)], {"axes": (0, -1)}), ([()], {"axes": (0,)})],
    "Pad": [
        ([(2, 3, 5)], {"pads": (0, 1, 2, 1, 0, 3), "value": 0.25}),
        ([(4, 5)], {"pads": (1, 2, 1, 2), "mode": "reflect"}),
        ([(4, 5)], {"pads": (1, 2, 1, 2), "mode": "edge"}),
    ],
    "Slice": [
        ([(7, 5, 3)], {"starts": (1, -1), "ends": (2**31, -100), "axes": (0, 1), "steps": (2, -2)}),
        ([(7, 5)], {"starts": (0,), "ends": (-1,), "axes": (-1,)}),
    ],
    "Split": [([(2, 7)], {"axis": -1, "split": (3, 4)}), ([(5, 2)], {"split": (1, 1, 3)})],
    "Resize": [
        ([(1, 2, 3, 5)], {"scales": (1, 1, 2, 2)}),
        ([(1, 2, 3, 5)], {"sizes": (1, 2, 7, 11), "mode": "linear"}),
        (
            [(1, 1, 5, 5)],
            {"scales": (1, 1, 1.5, 0.7), "mode": "linear", "coordinate_transformation_mode": "asymmetric"},
        ),
        ([(1, 1, 4, 4)], {"sizes": (1, 1, 8, 8), "mode": "cubic", "coordinate_transformation_mode": "align_corners"}),
        (
            [(1, 1, 4, 4)],
            {"sizes": (1, 1, 6, 2), "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
        ),
    ],
}
BINARY = {"Add", "Sub", "Mul", "Div", "Pow"}
FUSED = {"FusedConv", "FusedGemm", "Silu"}  # perwatt's own: tested beside the passes that make them
PLAIN = {name for name, row in OPERATORS.items() if row.inputs == (1, 1) and not row.attributes} - set(CASES) - FUSED
CASES |= {name: [([(3, 1, 5), (4, 1)], {}), ([(), (2,)], {})] for name in BINARY}
CASES |= {name: [([(3, 5)], {}), ([(1,)], {})] for name in PLAIN - set(CASES)}
POSITIVE = {"Log", "Sqrt", "Pow", "Div", "Reciprocal"}  # where negative numbers or those near 0 say nothing
ALL = [(name, *case) for name, cases in sorted(CASES.items()) for case in cases]


def built(operator: str, inputs: list[Any], attributes: dict[str, Any]) -> Graph:
    builder = Builder("test")
    names = [
        builder.constant(f"c{at}", entry) if isinstance(entry, np.ndarray) else builder.input(f"x{at}", entry)
        for at, entry in enumerate(inputs)
    ]
    outputs = len(attributes["split"]) if operator == "Split" else 1
    made = builder.add(operator, names, name="y", outputs=outputs, **attributes)
    return builder.finish([made] if isinstance(made, str) else made)


def test_every_operator_of_the_table_has_a_case() -> None:
    assert set(CASES) == set(OPERATORS) - FUSED


@pytest.mark.parametrize(("operator", "inputs", "attributes"), ALL, ids=lambda part: part if type(part) is str else "")
def test_shapes_and_numbers_survive_the_way_to_onnx(
    operator: str, inputs: list[Any], attributes: dict[str, Any]
) -> None:
    graph = built(operator, inputs, attributes)
    model = write(graph)
    onnx.checker.check_model(model, full_check=True)
    recorded = [(graph.values[name].shape, graph.values[name].dtype) for name in graph.outputs]
    assert recorded == inferred(model)
    assert structure(read(model)) == structure(graph)
    low = 0.5 if operator in POSITIVE else -3.0
    feeds = feeds_of(graph, low=low)
    expected = run_reference(model, feeds)
    got = run_onnxruntime(model, feeds)
    for value, left, right in zip(recorded, expected, got, strict=True):
        assert left.shape == right.shape == value[0]
        # sums of at most 200 products of numbers up to 3, and functions that runtimes approximate to a few units
        np.testing.assert_allclose(left.astype(np.float64), right.astype(np.float64), rtol=64 * EPSILON, atol=1e-5)


def test_a_negative_pad_crops() -> None:
    graph = built("Pad", [(4, 5)], {"pads": (-1, 0, 0, -2)})
    numbers = np.arange(20, dtype=np.float32).reshape(4, 5)
    assert graph.values["y"].shape == (3, 3)
    np.testing.assert_array_equal(run_onnxruntime(write(graph), {"x0": numbers})[0], numbers[1:, :-2])


def window_node(operator: str, attributes: dict[str, Any], shape: tuple[int, ...]) -> tuple[int, ...]:
    values = [Value("x", shape, np.dtype(np.float32))]
    names = ["x"]
    if operator == "Conv":
        values.append(Value("w", (2, shape[1], *attributes["kernel_shape"]), np.dtype(np.float32)))
        names.append("w")
    return make(operator, "node", names, ["y"], attributes, values)[1][0].shape


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_windows_have_the_size_that_onnx_infers(data: st.DataObject) -> None:
    operator = data.draw(st.sampled_from(["Conv", "MaxPool", "AveragePool"]))
    rank = data.draw(st.integers(1, 2))
    many = lambda low, high, count: tuple(data.draw(st.integers(low, high)) for _ in range(count))  # noqa: E731
    shape = (1, 2, *many(1, 17, rank))
    kernel = many(1, 5, rank)
    attributes: dict[str, Any] = {"kernel_shape": kernel, "strides": many(1, 4, rank), "dilations": many(1, 3, rank)}
    # a pad as wide as the window would be a window that sees nothing; runtimes refuse it in pools
    attributes["pads"] = tuple(data.draw(st.integers(0, kernel[at % rank] - 1)) for at in range(2 * rank))
    if operator != "Conv":
        attributes["ceil_mode"] = data.draw(st.integers(0, 1))
    spans = [
        size + attributes["pads"][at] + attributes["pads"][at + rank] - attributes["dilations"][at] * (kernel[at] - 1)
        for at, size in enumerate(shape[2:])
    ]
    if min(spans) < 1:
        with pytest.raises(InvalidGraph, match="no wider than the padded input"):
            window_node(operator, attributes, shape)
        return
    inputs: list[Any] = [shape, weights(2, 2, *kernel)] if operator == "Conv" else [shape]
    graph = built(operator, inputs, attributes)
    assert [(graph.values["y"].shape, graph.values["y"].dtype)] == inferred(write(graph))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(-12, 12), st.integers(-12, 12), st.sampled_from([-7, -3, -2, -1, 1, 2, 3, 7]))
def test_slices_take_what_the_reference_takes(size: int, start: int, end: int, step: int) -> None:
    graph = built("Slice", [(2, size)], {"starts": (start,), "ends": (end,), "axes": (1,), "steps": (step,)})
    numbers = np.arange(2 * size, dtype=np.float32).reshape(2, size)
    made = graph.values["y"].shape
    expected = numbers[:, slice(start, end, step)]
    assume(expected.size)
    assert made == expected.shape
    np.testing.assert_array_equal(run_reference(write(graph), {"x0": numbers})[0], expected)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([1, 2, 3]), max_size=4), st.lists(st.sampled_from([1, 2, 3]), max_size=4))
def test_shapes_broadcast_as_in_numpy_or_are_refused(left: list[int], right: list[int]) -> None:
    try:
        expected = (np.zeros(left) + np.zeros(right)).shape
    except ValueError:
        with pytest.raises(InvalidGraph, match="shapes that broadcast"):
            built("Add", [tuple(left), tuple(right)], {})
        return
    assert built("Add", [tuple(left), tuple(right)], {}).values["y"].shape == expected


def multiply_adds(operator: str, inputs: list[Any], **attributes: Any) -> int | None:
    graph = built(operator, inputs, attributes)
    return cost(graph, graph.nodes[0]).multiply_adds


@pytest.mark.parametrize(
    ("operator", "shape", "parts", "attributes", "told"),
    [
        ("Conv", (1, 3, 5, 5), [weights(4, 2, 3, 3)], {}, "3 channels in 1 groups"),
        ("Conv", (1, 4, 5, 5), [weights(3, 2, 3, 3)], {"group": 2}, "4 channels in 2 groups"),
        ("Conv", (1, 3, 5, 5), [weights(4, 3, 3, 3), weights(3)], {}, r"a bias of shape \(4,\)"),
        ("Conv", (1, 3, 5, 5), [weights(4, 3, 3)], {}, "kernel"),
        ("ConvTranspose", (1, 3, 5, 5), [weights(4, 3, 3, 3)], {}, "3 channels in 1 groups"),
        ("ConvTranspose", (1, 3, 5, 5), [weights(3, 4, 3, 3)], {"group": 2}, "3 channels in 2 groups"),
        ("ConvTranspose", (1, 4, 5, 5), [weights(4, 3, 3, 3), weights(3)], {"group": 2}, r"a bias of shape \(6,\)"),
        ("ConvTranspose", (1, 3, 1, 1), [weights(3, 4, 2, 2)], {"pads": (1, 1, 1, 1)}, "pads that leave something"),
        ("ConvTranspose", (1, 3, 5, 5), [weights(3, 4, 2, 2)], {"output_padding": (1,)}, "output_padding of 2 numbers"),
        ("ArgMax", (2, 3), [], {"axis": 2}, "axis from -2 to 1"),
    ],
)
def test_what_does_not_fit_is_refused(
    operator: str, shape: tuple[int, ...], parts: list[np.ndarray], attributes: dict[str, Any], told: str
) -> None:
    with pytest.raises(InvalidGraph, match=told):
        built(operator, [shape, *parts], attributes)


def test_multiply_adds_are_those_counted_by_hand() -> None:
    # AlexNet's conv1: 96 maps of 55x55, each number a sum over 11x11x3
    first = multiply_adds("Conv", [(1, 3, 227, 227), weights(96, 3, 11, 11), weights(96)], strides=(4, 4))
    assert first == 96 * 55 * 55 * 11 * 11 * 3 == 105_415_200
    # its conv2 in two groups: 256 maps of 27x27, each a sum over 5x5x48
    second = multiply_adds("Conv", [(1, 96, 27, 27), weights(256, 48, 5, 5)], group=2, pads=(2, 2, 2, 2))
    assert second == 256 * 27 * 27 * 5 * 5 * 48 == 223_948_800
    assert multiply_adds("Conv", [(4, 8, 5, 5), weights(8, 1, 3, 3)], group=8) == 4 * 8 * 3 * 3 * 9
    # each of 8x5x5 numbers goes into 4x3x3 products
    assert multiply_adds("ConvTranspose", [(2, 8, 5, 5), weights(8, 4, 3, 3)], strides=(2, 2)) == 2 * 8 * 25 * 4 * 9
    assert multiply_adds("Gemm", [(3, 5), weights(7, 5)], transB=1) == 3 * 5 * 7
    assert multiply_adds("Gemm", [(5, 3), weights(5, 7)], transA=1) == 3 * 5 * 7
    assert multiply_adds("MatMul", [(2, 3, 5), weights(2, 5, 7)]) == 2 * 3 * 5 * 7
    assert multiply_adds("MatMul", [(5,), weights(5)]) == 5
    assert multiply_adds("MaxPool", [(1, 1, 4, 4)], kernel_shape=(2, 2)) == 0


def test_bytes_count_each_tensor_once() -> None:
    graph = built("Conv", [(1, 3, 5, 5), weights(4, 3, 3, 3), weights(4)], {})
    found = cost(graph, graph.nodes[0])
    assert found.parameter_bytes == 4 * (4 * 3 * 9 + 4)
    assert found.read_bytes == 4 * 3 * 25
    assert found.written_bytes == 4 * 4 * 9
    builder = Builder("square")
    twice = builder.add("Mul", [builder.input("x", (7,)), "x"], name="y")
    graph = builder.finish([str(twice)])
    assert cost(graph, graph.nodes[0]).read_bytes == 4 * 7


WRONG: list[tuple[str, list[Any], dict[str, Any], str]] = [
    ("Conv", [(1, 3, 5, 5), weights(4, 2, 3, 3)], {}, "weights for 3 channels in 1 groups"),
    ("Conv", [(1, 4, 5, 5), weights(3, 2, 3, 3)], {"group": 2}, "weights for 4 channels in 2 groups"),
    ("Conv", [(1, 3, 5, 5), weights(4, 3, 3, 3), weights(3)], {}, "a bias of shape"),
    ("Conv", [(1, 3, 5, 5), weights(4, 3, 3, 3)], {"strides": (0, 1)}, "strides of 2 numbers from 1 up"),
    ("Conv", [(1, 3, 5, 5), weights(4, 3, 3, 3)], {"pads": (1, 1)}, "pads of 4 numbers"),
    ("Conv", [(1, 3, 5, 5), weights(4, 3, 3, 3)], {"stride": (1, 1)}, "attributes among"),
    ("Conv", [(1, 3, 5, 5)], {}, "2 inputs"),
    ("MaxPool", [(1, 3, 5, 5)], {}, "kernel_shape"),
    ("MaxPool", [(1, 3, 2, 2)], {"kernel_shape": (3, 3)}, "no wider than the padded input"),
    ("Gemm", [(3, 5), weights(6, 7)], {}, "matrices that fit"),
    ("Gemm", [(3, 5), weights(5, 7), weights(3)], {}, "C that broadcasts"),
    ("MatMul", [(3, 5), weights(4, 7)], {}, "matrices that fit"),
    ("LRN", [(1, 3, 5, 5)], {}, "attribute size"),
    ("Softmax", [(3, 5)], {"axis": 2}, "axis from -2 to 1"),
    ("Concat", [(2, 3), (3, 3)], {"axis": 1}, "differ along axis 1 only"),
    ("Reshape", [(2, 3)], {"shape": (4, -1)}, "holds the 6 elements"),
    ("Reshape", [(2, 3)], {"shape": (-1, -1)}, "holds the 6 elements"),
    ("Squeeze", [(2, 1)], {"axes": (0,)}, "axes of size 1"),
    ("Transpose", [(2, 3)], {"perm": (0, 0)}, "a permutation of 2 axes"),
    ("Split", [(2, 7)], {"axis": 1, "split": (3, 3)}, "add up to 7"),
    ("PRelu", [(3, 5), weights(2, 3, 5)], {}, "a slope that broadcasts"),
    ("BatchNormalization", [(1, 3, 5, 5), *(weights(4),) * 4], {}, "of shape (3,)"),
    ("Cast", [(3,)], {"to": "float33"}, "a NumPy name"),
    ("Teleport", [(3,)], {}, "an operator of the table"),
]


@pytest.mark.parametrize(("operator", "inputs", "attributes", "words"), WRONG)
def test_a_broken_rule_is_refused_with_node_and_reason(
    operator: str, inputs: list[Any], attributes: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidGraph) as caught:
        built(operator, inputs, attributes)
    message = str(caught.value)
    assert words in message
    assert "'y'" in message
    assert "got" in message
    assert "\n" not in message


def test_a_node_prints_on_one_line() -> None:
    graph = built("MaxPool", [(1, 2, 6)], {"kernel_shape": (2,)})
    node = graph.nodes[0]
    assert isinstance(node, Node)
    assert "MaxPool(x0) ceil_mode=0 dilations=(1,) kernel_shape=(2,) pads=(0, 0) strides=(1,)" in str(graph)
