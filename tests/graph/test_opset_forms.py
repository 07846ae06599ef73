"""Operators as older opsets wrote them: read, written anew, and run by ONNX Runtime beside the original."""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx_oracles import EPSILON, feeds_of, model_of, one_node, run_onnxruntime

from perwatt.errors import NetworkError
from perwatt.graph import read, unsupported, write

FLOAT = onnx.TensorProto.FLOAT
LONG = (2, 3, 5, 7)


def longs(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def floats(*numbers: float) -> np.ndarray:
    return np.array(numbers, np.float32)


WEIGHTS = np.random.default_rng(3).uniform(-1, 1, (4, 3, 3, 2)).astype(np.float32)
TURNED = WEIGHTS.swapaxes(0, 1).copy()
CHANNELS = tuple(np.random.default_rng(seed).uniform(0.5, 2, 3).astype(np.float32) for seed in range(4))
SCALES = floats(1, 1, 2, 3)

# what: operator, inputs (shape: fed; array: constant; None: left out), opset, attributes
FORMS: dict[str, tuple[str, list[Any], int, dict[str, Any]]] = {
    "clip 6": ("Clip", [LONG], 7, {"min": 0.0, "max": 2.0}),
    "clip 6 open": ("Clip", [LONG], 10, {"max": 2.0}),
    "clip 11": ("Clip", [LONG, None, np.array(1.5, np.float32)], 11, {}),
    "clip 13 both": ("Clip", [LONG, np.array(0, np.float32), np.array(6, np.float32)], 13, {}),
    "squeeze 1": ("Squeeze", [(1, 3, 1, 5)], 7, {"axes": [0, 2]}),
    "squeeze 11 all": ("Squeeze", [(1, 3, 1, 5)], 11, {}),
    "squeeze 13": ("Squeeze", [(1, 3, 1, 5), longs(-2)], 13, {}),
    "unsqueeze 1": ("Unsqueeze", [(3, 5)], 9, {"axes": [0, 3]}),
    "unsqueeze 13": ("Unsqueeze", [(3, 5), longs(1, -1)], 13, {}),
    "slice 1": ("Slice", [LONG], 9, {"starts": [1, -3], "ends": [3, 100], "axes": [1, 3]}),
    "slice 10": ("Slice", [LONG, longs(4, 0), longs(-100, 2), longs(2, 3), longs(-2, 1)], 10, {}),
    "slice 13 no axes": ("Slice", [LONG, longs(0, 1), longs(1, 3)], 13, {}),
    "pad 2": ("Pad", [LONG], 9, {"pads": [0, 0, 1, 2, 0, 0, 3, 0], "value": 0.5}),
    "pad 2 reflect": ("Pad", [LONG], 10, {"pads": [0, 0, 1, 2, 0, 0, 3, 0], "mode": "reflect"}),
    "pad 11": ("Pad", [LONG, longs(0, 0, 1, 2, 0, 0, 3, 0), np.array(-1, np.float32)], 11, {}),
    "pad 13 edge": ("Pad", [LONG, longs(0, 0, 1, 2, 0, 0, 3, 0)], 13, {"mode": "edge"}),
    "pad 18 axes": ("Pad", [LONG, longs(1, 2, 0, 3), None, longs(-1, 1)], 18, {}),
    "pad 19 wrap": ("Pad", [LONG, longs(0, 0, 1, 2, 0, 0, 3, 0)], 19, {"mode": "wrap"}),
    "upsample 7": ("Upsample", [LONG], 7, {"scales": [1.0, 1.0, 2.0, 3.0]}),
    "upsample 9": ("Upsample", [LONG, SCALES], 9, {}),
    "upsample 9 linear": ("Upsample", [LONG, SCALES], 9, {"mode": "linear"}),
    "resize 10": ("Resize", [LONG, SCALES], 10, {}),
    "resize 10 linear": ("Resize", [LONG, floats(1, 1, 1.5, 0.6)], 10, {"mode": "linear"}),
    "resize 11": ("Resize", [LONG, floats(), floats(1, 1, 1.5, 1.7)], 11, {"mode": "linear"}),
    "resize 11 sizes": ("Resize", [LONG, floats(), floats(), longs(2, 3, 8, 9)], 11, {"nearest_mode": "ceil"}),
    "resize 13 torch": (
        *("Resize", [LONG, None, None, longs(2, 3, 11, 4)], 13),
        {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"},
    ),
    "resize 13 cubic": (
        *("Resize", [LONG, None, None, longs(2, 3, 11, 13)], 13),
        {"mode": "cubic", "cubic_coeff_a": -0.5, "coordinate_transformation_mode": "align_corners"},
    ),
    "resize 18 axes": ("Resize", [LONG, None, floats(2, 3)], 18, {"axes": [-1, 2]}),
    "mean 1": ("ReduceMean", [LONG], 9, {"axes": [2, -1], "keepdims": 0}),
    "mean 17 all": ("ReduceMean", [LONG], 17, {}),
    "mean 18": ("ReduceMean", [LONG, longs(-1, -2)], 18, {"keepdims": 0}),
    "sum 11": ("ReduceSum", [LONG], 11, {"axes": [1]}),
    "sum 13": ("ReduceSum", [LONG, longs(1)], 13, {}),
    "sum 13 nothing": ("ReduceSum", [LONG], 13, {"noop_with_empty_axes": 1}),
    "max 12": ("ReduceMax", [LONG], 12, {"axes": [-1]}),
    "softmax 1": ("Softmax", [LONG], 9, {"axis": 1}),
    "softmax 1 default": ("Softmax", [(2, 3, 5)], 9, {}),
    "softmax 11 last": ("Softmax", [LONG], 11, {"axis": -1}),
    "softmax 11 first": ("Softmax", [(2, 3)], 11, {"axis": 0}),
    "softmax 11 flat": ("Softmax", [(2, 7, 1, 1)], 11, {"axis": 1}),
    "softmax 11 before": ("Softmax", [(2, 1, 7)], 11, {"axis": 1}),
    "softmax 13": ("Softmax", [LONG], 13, {"axis": 1}),
    "logsoftmax 11": ("LogSoftmax", [LONG], 11, {"axis": 2}),
    "normalisation 7": ("BatchNormalization", [LONG, *CHANNELS], 7, {"epsilon": 1e-3, "momentum": 0.9}),
    "normalisation 9": ("BatchNormalization", [LONG, *CHANNELS], 9, {}),
    "normalisation 15": ("BatchNormalization", [LONG, *CHANNELS], 15, {"momentum": 0.5}),
    "conv upper": ("Conv", [LONG, WEIGHTS], 11, {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "conv lower": ("Conv", [LONG, WEIGHTS], 11, {"auto_pad": "SAME_LOWER", "strides": [1, 2]}),
    "conv valid": ("Conv", [LONG, WEIGHTS], 11, {"auto_pad": "VALID"}),
    "transposed upper": ("ConvTranspose", [LONG, TURNED], 11, {"auto_pad": "SAME_UPPER", "strides": [2, 1]}),
    "transposed lower": ("ConvTranspose", [LONG, TURNED], 11, {"auto_pad": "SAME_LOWER", "strides": [2, 1]}),
    "transposed valid": ("ConvTranspose", [LONG, TURNED], 11, {"auto_pad": "VALID", "strides": [2, 1]}),
    "transposed size": ("ConvTranspose", [LONG, TURNED], 11, {"output_shape": [8, 13], "strides": [2, 2]}),
    "transposed size upper": (
        *("ConvTranspose", [LONG, TURNED], 11),
        {"auto_pad": "SAME_UPPER", "output_shape": [8, 11], "dilations": [2, 2], "strides": [2, 2]},
    ),
    "transposed larger": ("ConvTranspose", [LONG, TURNED], 11, {"output_shape": [12, 15], "strides": [2, 2]}),
    "pool upper": ("MaxPool", [LONG], 8, {"auto_pad": "SAME_UPPER", "kernel_shape": [3, 2], "strides": [2, 2]}),
    "pool lower": ("AveragePool", [LONG], 10, {"auto_pad": "SAME_LOWER", "kernel_shape": [2, 2], "strides": [2, 3]}),
    "pool valid": ("MaxPool", [LONG], 12, {"auto_pad": "VALID", "kernel_shape": [2, 2], "storage_order": 0}),
    "reshape 5": ("Reshape", [LONG, longs(0, -1, 7)], 7, {}),
    "reshape 14": ("Reshape", [LONG, longs(6, 35)], 14, {"allowzero": 1}),
    "flatten 9": ("Flatten", [LONG], 9, {"axis": 2}),
    "flatten 13": ("Flatten", [LONG], 13, {"axis": -2}),
    "gather one": ("Gather", [LONG, np.array(-1, np.int64)], 13, {"axis": 2}),
    "gather first": ("Gather", [LONG, np.array(0, np.int64)], 13, {}),
    "cast": ("Cast", [LONG], 9, {"to": onnx.TensorProto.INT32}),
    "gemm 7": ("Gemm", [(3, 5), WEIGHTS.reshape(8, 9)[:5], floats(2)], 7, {"alpha": 0.5}),
    "dropout 7": ("Dropout", [LONG], 7, {"ratio": 0.4}),
    "dropout 12": ("Dropout", [LONG, np.array(0.4, np.float32)], 12, {}),
}


def same(original: bytes, tolerance: float = 16 * EPSILON) -> None:
    """Assert that the file read and written again has no foreign node and gives ONNX Runtime the same numbers."""
    graph = read(original)
    assert unsupported(graph) == ()
    feeds = feeds_of(graph)
    expected, got = run_onnxruntime(original, feeds), run_onnxruntime(write(graph), feeds)
    for name, left, right in zip(graph.outputs, expected, got, strict=True):
        assert graph.values[name].shape == left.shape
        assert graph.values[name].dtype == left.dtype
        np.testing.assert_allclose(right, left, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("what", FORMS)
def test_an_old_form_keeps_its_meaning(what: str) -> None:
    operator, inputs, opset, attributes = FORMS[what]
    same(one_node(operator, inputs, opset, **attributes))


@pytest.mark.parametrize(("opset", "constants"), [(11, []), (13, [longs(3, 1, 1)])])
def test_parts_of_a_split_may_differ(opset: int, constants: list[np.ndarray]) -> None:
    attributes = {} if constants else {"split": [3, 1, 1]}
    same(one_node("Split", [LONG, *constants], opset, outputs=3, axis=2, **attributes))
    same(one_node("Split", [(2, 6)], opset, outputs=3, axis=-1))


def test_a_split_may_leave_a_smaller_last_part() -> None:
    same(one_node("Split", [(2, 7)], 18, outputs=3, axis=-1, num_outputs=3))


def test_the_mask_of_a_dropout_vanishes_unless_it_is_read() -> None:
    values = [helper.make_tensor_value_info("x", FLOAT, (2, 3))]
    node = helper.make_node("Dropout", ["x"], ["y", "mask"], ratio=0.5)
    graph = read(model_of([node], values, ["y"], opset=9))
    assert [(node.operator, node.outputs) for node in graph.nodes] == [("Dropout", ("y",))]
    graph = read(model_of([node], values, ["y", "mask"], opset=12))
    assert [node.operator for node in unsupported(graph)] == ["Dropout"]


def test_what_follows_from_shapes_is_a_constant() -> None:
    """The usual flattening of an exporter: Shape, Gather, Unsqueeze, Concat, Reshape."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Constant", [], ["zero"], value=numpy_helper.from_array(np.array(0, np.int64))),
        helper.make_node("Gather", ["shape", "zero"], ["batch"], axis=0),
        helper.make_node("Unsqueeze", ["batch"], ["first"], axes=[0]),
        helper.make_node("Constant", [], ["rest"], value=numpy_helper.from_array(longs(-1))),
        helper.make_node("Concat", ["first", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["y"]),
    ]
    model = model_of(nodes, [helper.make_tensor_value_info("x", FLOAT, ("n", 3, 5))], ["y"], opset=11)
    for batch in (1, 48):
        graph = read(model, batch)
        assert [(node.operator, node.attributes["shape"]) for node in graph.nodes] == [("Reshape", (batch, 15))]
        assert dict(graph.constants) == {}


def test_constants_are_folded_and_the_unread_dropped() -> None:
    nodes = [
        helper.make_node("ConstantOfShape", ["two"], ["ones"], value=numpy_helper.from_array(floats(1))),
        helper.make_node("Mul", ["ones", "half"], ["halves"]),
        helper.make_node("Add", ["x", "halves"], ["y"]),
    ]
    constants = [
        numpy_helper.from_array(longs(3, 2), "two"),
        numpy_helper.from_array(floats(0.5), "half"),
        numpy_helper.from_array(floats(7), "unread"),
    ]
    values = [helper.make_tensor_value_info("x", FLOAT, (3, 2)), helper.make_tensor_value_info("half", FLOAT, (1,))]
    graph = read(model_of(nodes, values, ["y"], constants, opset=9))
    assert graph.inputs == ("x",)
    assert [node.operator for node in graph.nodes] == ["Add"]
    assert list(graph.constants) == ["halves"]
    np.testing.assert_array_equal(graph.constants["halves"], np.full((3, 2), 0.5, np.float32))
    assert graph.constants["halves"].flags["C_CONTIGUOUS"]
    assert not graph.constants["halves"].flags["WRITEABLE"]


def test_a_local_function_is_inlined() -> None:
    body = helper.make_function(
        *("local", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])]),
        [helper.make_opsetid("", 17)],
    )
    model = onnx.load_from_string(
        model_of(
            [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Add", ["r", "r"], ["y"])],
            [helper.make_tensor_value_info("x", FLOAT, (2,))],
            ["y"],
        )
    )
    model.graph.node[1].op_type, model.graph.node[1].domain = "Twice", "local"
    del model.graph.node[1].input[1:]
    model.functions.append(body)
    model.opset_import.append(helper.make_opsetid("local", 1))
    assert [node.operator for node in read(model.SerializeToString()).nodes] == ["Relu", "Add"]


def test_a_node_outside_the_table_stays_with_its_shape_and_is_written_back() -> None:
    model = one_node(
        "ConvTranspose", [(1, 3, 5, 5), WEIGHTS.reshape(3, 4, 3, 2)], 13, strides=[2, 3], auto_pad="SAME_UPPER"
    )
    graph = read(model)
    (node,) = unsupported(graph)
    assert (node.operator, node.name) == ("ConvTranspose", "the_node")
    assert graph.values["y0"].shape == (1, 4, 10, 14)
    feeds = feeds_of(graph)
    again = write(graph)
    np.testing.assert_array_equal(run_onnxruntime(again, feeds)[0], run_onnxruntime(model, feeds)[0])
    assert [node.name for node in unsupported(read(again))] == ["the_node"]


def test_a_node_whose_meaning_has_changed_since_cannot_be_written() -> None:
    graph = read(one_node("Hardmax", [(2, 3, 5)], 11))
    assert [node.operator for node in unsupported(graph)] == ["Hardmax"]
    with pytest.raises(NetworkError, match=r"Hardmax node 'the_node': .* use the original file"):
        write(graph)


def test_nodes_without_names_get_one_each() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Relu", ["a"], ["y"], name="a")]
    graph = read(model_of(nodes, [helper.make_tensor_value_info("x", FLOAT, (2,))], ["y"]))
    assert [node.name for node in graph.nodes] == ["a", "a_1"]
