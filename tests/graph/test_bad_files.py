"""Files that cannot be used: one line each that says what was expected, what was got and what to do."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx_oracles import model_of, one_node

from perwatt.errors import NetworkError
from perwatt.graph import read, with_batch

FLOAT = onnx.TensorProto.FLOAT


def good() -> bytes:
    weights = np.arange(32, dtype=np.float32).reshape(4, 2, 2, 2)
    return one_node("Conv", [(1, 2, 5, 5), weights], 13)


def refused(source: str | Path | bytes, *words: str) -> None:
    for call in (read, lambda what: with_batch(what, 2)):
        with pytest.raises(NetworkError) as caught:
            call(source)
        message = str(caught.value)
        assert "expected" in message
        assert "got" in message
        assert "; " in message, "there must be a remedy"
        assert "\n" not in message
        assert all(word in message for word in words), message


def test_a_missing_file(tmp_path: Path) -> None:
    refused(tmp_path / "no.onnx", "no.onnx", "no such file")
    refused(str(tmp_path / "no.onnx"), "no such file")


def test_a_folder(tmp_path: Path) -> None:
    refused(tmp_path, "got a folder")


def test_an_empty_file(tmp_path: Path) -> None:
    place = tmp_path / "empty.onnx"
    place.write_bytes(b"")
    refused(place, "empty.onnx", "got an empty one")
    refused(b"", "got an empty one")


@pytest.mark.parametrize(
    "data",
    [
        b"hello, I am a text and no network\n",
        b"\x89PNG\r\n\x1a\n" + bytes(64),
        b"PK\x03\x04" + bytes(99),
        bytes(1),
        b"\x08",
    ],
    ids=["text", "picture", "zip", "zero", "one byte"],
)
def test_a_file_that_is_no_onnx(data: bytes) -> None:
    refused(data, "expected an ONNX file")


def test_a_truncated_file_is_refused_wherever_it_was_cut() -> None:
    data = good()
    assert read(data).nodes
    for length in range(1, len(data)):
        with pytest.raises(NetworkError) as caught:
            read(data[:length])
        assert "expected" in str(caught.value)


def test_a_damaged_file_is_refused_or_read_but_never_crashes() -> None:
    data = good()
    random = np.random.default_rng(1)
    for _ in range(300):
        broken = bytearray(data)
        for place in random.integers(0, len(data), 3):
            broken[place] = random.integers(0, 256)
        try:
            read(bytes(broken))
        except NetworkError as error:
            assert "\n" not in str(error)  # noqa: PT017 - a damaged file may happen to be whole


def test_weights_in_a_file_that_is_missing_too_short_or_elsewhere(tmp_path: Path) -> None:
    place, weights = tmp_path / "net.onnx", tmp_path / "net.weights"
    model = onnx.load_from_string(good())
    onnx.save_model(model, place, save_as_external_data=True, location="net.weights", size_threshold=0)
    assert read(place).constants
    refused(place.read_bytes(), "'net.weights'", "give the path")
    weights.write_bytes(weights.read_bytes()[:100])
    refused(place, "net.weights")
    weights.unlink()
    refused(place, str(weights), "no such file", "'x1'")
    (tmp_path / "outside").write_bytes(bytes(128))
    inner = tmp_path / "inner"
    inner.mkdir()
    model = onnx.load_model(place, load_external_data=False)
    model.graph.initializer[0].external_data[0].value = "../outside"
    (inner / "net.onnx").write_bytes(model.SerializeToString())
    refused(inner / "net.onnx", "'../outside'", "beside the model")


def test_weights_of_an_impossible_shape() -> None:
    model = onnx.load_from_string(good())
    model.graph.initializer[0].dims[0] = 5
    refused(model.SerializeToString(), "weights 'x1'", "(5, 2, 2, 2)")
    model.graph.initializer[0].dims[0] = -4
    refused(model.SerializeToString(), "weights 'x1'")
    weights = np.zeros((4, 3, 2, 2), np.float32)  # three channels where the image has two
    refused(one_node("Conv", [(1, 2, 5, 5), weights], 13), "Conv node 'the_node'", "2 channels", "(4, 3, 2, 2)")


def test_an_operator_that_nobody_knows() -> None:
    model = onnx.load_from_string(good())
    model.graph.node[0].op_type = "Convolve"
    refused(model.SerializeToString(), "Convolve node 'the_node'", "opset 13")
    model.graph.node[0].domain = "com.example"
    refused(model.SerializeToString(), "Convolve node 'the_node'", "'com.example'")
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    refused(model.SerializeToString(), "Convolve node 'the_node'", "'com.example'")


def test_an_operator_that_is_newer_than_the_file_says() -> None:
    model = onnx.load_from_string(one_node("Gelu", [(2, 3)], 20))
    model.opset_import[0].version = 13
    refused(model.SerializeToString(), "Gelu node 'the_node'", "opset 13")


@pytest.mark.parametrize(("version", "words"), [(6, "export it again"), (999, "install a newer onnx")])
def test_an_opset_too_old_or_too_new(version: int, words: str) -> None:
    model = onnx.load_from_string(good())
    model.opset_import[0].version = version
    refused(model.SerializeToString(), f"got {version}", words)


def test_sizes_that_only_a_run_can_tell() -> None:
    refused(one_node("NonZero", [(2, 3)], 13), "NonZero node 'the_node'", "only a run can tell")


def test_control_flow() -> None:
    branch = helper.make_graph([], "empty", [], [helper.make_tensor_value_info("x", FLOAT, (2,))])
    node = helper.make_node("If", ["choice"], ["y"], name="fork", then_branch=branch, else_branch=branch)
    inputs = [
        helper.make_tensor_value_info("x", FLOAT, (2,)),
        helper.make_tensor_value_info("choice", onnx.TensorProto.BOOL, ()),
    ]
    graph = helper.make_graph([node], "test", inputs, [helper.make_tensor_value_info("y", FLOAT, (2,))])
    refused(helper.make_model(graph).SerializeToString(), "If node 'fork'", "control flow")


def test_nodes_that_read_or_make_what_they_may_not() -> None:
    values = [helper.make_tensor_value_info("x", FLOAT, (2,))]
    relu = helper.make_node("Relu", ["ghost"], ["y"], name="first")
    refused(model_of([relu], values, ["y"]), "Relu node 'first'", "'ghost'")
    twice = [helper.make_node("Relu", ["x"], ["y"], name="a"), helper.make_node("Relu", ["x"], ["y"], name="b")]
    graph = helper.make_graph(twice, "test", values, [helper.make_tensor_value_info("y", FLOAT, (2,))])
    refused(helper.make_model(graph).SerializeToString(), "Relu node 'b'", "'y' a second time")
    refused(model_of([helper.make_node("Relu", ["x"], ["z"])], values, ["y"]), "output 'y'")


def test_a_node_with_too_few_inputs_or_a_wrong_attribute() -> None:
    refused(one_node("Conv", [(1, 2, 5, 5)], 13), "Conv node 'the_node'")
    refused(one_node("Reshape", [(1, 2)], 13), "Reshape node 'the_node'")
    target = np.array([7, -1], np.int64)
    refused(one_node("Reshape", [(1, 2), target], 13), "Reshape node 'the_node'", "the 2 elements")


def test_an_input_that_is_no_tensor_or_has_no_shape() -> None:
    sequence = helper.make_tensor_sequence_value_info("x", FLOAT, (2,))
    refused(model_of([helper.make_node("Identity", ["x"], ["y"])], [sequence], ["y"]), "input 'x'", "a tensor")
    unknown = helper.make_tensor_value_info("x", FLOAT, None)
    refused(model_of([helper.make_node("Relu", ["x"], ["y"])], [unknown], ["y"]), "input 'x'", "a shape")


def test_sparse_weights() -> None:
    model = onnx.load_from_string(good())
    values = numpy_helper.from_array(np.ones(1, np.float32), "sparse")
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "places")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [3]))
    refused(model.SerializeToString(), "'sparse'", "dense")
