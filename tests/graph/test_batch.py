"""Setting the batch: what the file fixed for its own batch is corrected, what follows by itself is left alone."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx_oracles import model_of, run_onnxruntime

from perwatt.errors import InputError, NetworkError
from perwatt.graph import read, with_batch

FLOAT = onnx.TensorProto.FLOAT


def longs(name: str, *numbers: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(numbers, np.int64), name)


def data(*shape: int | str | None, name: str = "x") -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, FLOAT, shape)


def node(operator: str, inputs: list[str], output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(operator, inputs, [output], name=f"{operator}_{output}", **attributes)


def agrees(model: bytes, per_image: tuple[int, ...], batch: int = 3) -> onnx.ModelProto:
    """Assert that each image of a larger batch is answered as if it were alone; return the larger model."""
    grown = with_batch(model, batch)
    onnx.checker.check_model(grown, full_check=True)
    feed = np.random.default_rng(0).uniform(-1, 1, (batch, *per_image)).astype(np.float32)
    one = with_batch(model, 1)
    alone = [run_onnxruntime(one, {"x": feed[at : at + 1]}) for at in range(batch)]
    for position, together in enumerate(run_onnxruntime(grown, {"x": feed})):
        np.testing.assert_allclose(together, np.concatenate([outputs[position] for outputs in alone]), rtol=1e-6)
    assert read(model, batch).values["y"].shape[0] == batch
    return onnx.load_from_string(grown)


@pytest.mark.parametrize(
    "target",
    [(1, 60), (1, -1), (-1, 60), (0, -1), (1, 3, 2, 10), (1, 15, -1), (0, 3, 20), (-1, 3, 4, 5), (1, 60, -1)],
    ids=str,
)
def test_the_target_of_a_reshape_grows_with_the_batch(target: tuple[int, ...]) -> None:
    nodes = [node("Relu", ["x"], "r"), node("Reshape", ["r", "target"], "y")]
    agrees(model_of(nodes, [data(1, 3, 4, 5)], ["y"], [longs("target", *target)]), (3, 4, 5))


def test_a_target_that_two_nodes_share_and_one_from_a_constant_node_grow() -> None:
    nodes = [
        node("Constant", [], "target", value=longs("", 1, 3, 20)),
        node("Reshape", ["x", "target"], "a"),
        node("Sigmoid", ["x"], "s"),
        node("Reshape", ["s", "target"], "b"),
        node("Add", ["a", "b"], "y"),
    ]
    agrees(model_of(nodes, [data(1, 3, 4, 5)], ["y"]), (3, 4, 5))


def test_windows_cut_from_an_image_and_put_back_grow() -> None:
    """Axis 0 holds the batch times 4 windows, and the target that puts them together a -1 that is no batch."""
    nodes = [
        node("Reshape", ["x", "cut"], "a"),
        node("Transpose", ["a"], "b", perm=[0, 2, 4, 1, 3, 5]),  # batch, rows, columns, channels, 2, 2
        node("Reshape", ["b", "windows"], "c"),
        node("Softmax", ["c"], "d"),
        node("Reshape", ["d", "apart"], "y"),
    ]
    constants = [longs("cut", 1, 3, 2, 2, 2, 2), longs("windows", -1, 3, 4), longs("apart", 1, 2, 2, 3, -1)]
    agrees(model_of(nodes, [data(1, 3, 4, 4)], ["y"], constants), (3, 4, 4))


def test_a_minus_one_that_was_the_batch_goes_on_being_it() -> None:
    """Sequence first, as transformers of PyTorch do it: [pixels, batch, channels]."""
    nodes = [
        node("Transpose", ["x"], "a", perm=[2, 0, 1]),
        node("Reshape", ["a", "first"], "b"),
        node("Relu", ["b"], "c"),
        node("Reshape", ["c", "second"], "d"),
        node("Transpose", ["d"], "y", perm=[1, 2, 0]),
    ]
    constants = [longs("first", 7, -1, 3), longs("second", 7, -1, 3)]
    agrees(model_of(nodes, [data(1, 3, 7)], ["y"], constants), (3, 7))


def test_a_target_computed_from_the_input_is_left_alone() -> None:
    nodes = [
        node("Shape", ["x"], "shape"),
        node("Gather", ["shape", "zero"], "first", axis=0),
        node("Concat", ["first", "rest"], "target", axis=0),
        node("Reshape", ["x", "target"], "y"),
    ]
    model = model_of(nodes, [data(1, 3, 4)], ["y"], [longs("zero", 0), longs("rest", -1)])
    grown = agrees(model, (3, 4))
    assert [entry.op_type for entry in grown.graph.node] == ["Shape", "Gather", "Concat", "Reshape"]
    assert {entry.name for entry in grown.graph.initializer} == {"zero", "rest"}


def test_a_reshape_of_what_has_no_batch_is_left_alone() -> None:
    weights = numpy_helper.from_array(np.arange(3, dtype=np.float32), "w")
    nodes = [node("Reshape", ["w", "target"], "s"), node("Mul", ["x", "s"], "y")]
    grown = agrees(model_of(nodes, [data(1, 3, 4, 5)], ["y"], [weights, longs("target", 1, 3, 1, 1)]), (3, 4, 5))
    assert {entry.name for entry in grown.graph.initializer} == {"w", "target"}


def test_the_sizes_of_a_resize_grow() -> None:
    nodes = [node("Resize", ["x", "", "", "sizes"], "y", mode="linear")]
    agrees(model_of(nodes, [data(1, 3, 4, 5)], ["y"], [longs("sizes", 1, 3, 8, 9)]), (3, 4, 5))


def test_a_file_made_for_a_larger_batch_shrinks() -> None:
    nodes = [node("Reshape", ["x", "target"], "y")]
    model = model_of(nodes, [data(4, 3, 5)], ["y"], [longs("target", 4, 15)])
    assert read(model).values["y"].shape == (4, 15)
    assert read(model, 1).values["y"].shape == (1, 15)
    assert read(model, 6).values["y"].shape == (6, 15)


def test_a_free_batch_is_1_unless_another_is_asked_for() -> None:
    for name in ("batch", None):
        model = model_of([node("Relu", ["x"], "y")], [data(name, 3)], ["y"])
        assert read(model).values["y"].shape == (1, 3)
        assert read(model, 7).values["y"].shape == (7, 3)
        proto = onnx.load_from_string(with_batch(model, 7))
        assert [dim.dim_value for dim in proto.graph.output[0].type.tensor_type.shape.dim] == [7, 3]


def test_inputs_that_share_the_batch_share_its_new_size() -> None:
    nodes = [node("Add", ["x", "z"], "y")]
    for batch in ("n", 1):
        model = model_of(nodes, [data(batch, 3), data(batch, 1, name="z")], ["y"])
        graph = read(model, 5)
        assert [graph.values[name].shape for name in ("x", "z", "y")] == [(5, 3), (5, 1), (5, 3)]


def test_every_tensor_of_the_new_file_has_a_static_shape_and_old_lists_of_weights_are_gone() -> None:
    nodes = [node("Shape", ["x"], "s"), node("Relu", ["x"], "r"), node("Mul", ["r", "w"], "y")]
    weights = numpy_helper.from_array(np.ones(3, np.float32), "w")
    unread = numpy_helper.from_array(np.ones(3, np.float32), "unread")
    model = onnx.load_from_string(model_of(nodes, [data("n", 3), data(3, name="w")], ["y"], [weights, unread], opset=9))
    model.ir_version = 3
    model.graph.value_info.append(data("n", 99, name="r"))  # a shape that is wrong
    grown = onnx.load_from_string(with_batch(model.SerializeToString(), 4))
    assert grown.ir_version == 4
    assert [entry.name for entry in grown.graph.input] == ["x"]
    assert [entry.name for entry in grown.graph.initializer] == ["w"]
    shapes = {
        entry.name: tuple(dim.dim_value for dim in entry.type.tensor_type.shape.dim)
        for entry in (*grown.graph.value_info, *grown.graph.output)
    }
    assert shapes == {"s": (2,), "r": (4, 3), "y": (4, 3)}


def test_weights_beside_the_file_are_pulled_in(tmp_path: Path) -> None:
    weights = np.arange(3000, dtype=np.float32)
    nodes = [node("Mul", ["x", "w"], "y")]
    model = onnx.load_from_string(model_of(nodes, [data(1, 3000)], ["y"], [numpy_helper.from_array(weights, "w")]))
    place = tmp_path / "net.onnx"
    onnx.save_model(model, place, save_as_external_data=True, location="net.weights", size_threshold=0)
    assert place.stat().st_size < 1000
    np.testing.assert_array_equal(read(place).constants["w"], weights)
    np.testing.assert_array_equal(read(str(place)).constants["w"], weights)
    grown = with_batch(place, 2)
    (got,) = run_onnxruntime(grown, {"x": np.ones((2, 3000), np.float32)})
    np.testing.assert_array_equal(got, np.stack([weights, weights]))


@pytest.mark.parametrize("batch", [0, -1, True, 1.5, "2"])
def test_a_batch_below_1_or_of_another_kind_is_refused(batch: object) -> None:
    model = model_of([node("Relu", ["x"], "y")], [data(1, 3)], ["y"])
    for call in (read, with_batch):
        with pytest.raises(InputError, match=r"^batch: expected a whole number from 1 up, got .*; use 1"):
            call(model, batch)  # type: ignore[operator]


@pytest.mark.parametrize(("shape", "words"), [(("n", 3, "height", 4), "'height'"), ((1, None, 4), "dimension 1")])
def test_a_free_dimension_other_than_the_batch_names_input_and_dimension(
    shape: tuple[int | str | None, ...], words: str
) -> None:
    model = model_of([node("Relu", ["picture"], "y")], [data(*shape, name="picture")], ["y"])
    for call in (read, lambda source: with_batch(source, 2)):
        with pytest.raises(NetworkError, match=r"'picture'.*fixed size$") as caught:
            call(model)
        assert words in str(caught.value)


def test_a_network_that_is_tied_to_its_batch_says_which_node_ties_it() -> None:
    token = numpy_helper.from_array(np.ones((1, 1, 4), np.float32), "token")
    nodes = [node("Concat", ["token", "x"], "y", axis=1)]
    model = model_of(nodes, [data(1, 3, 4)], ["y"], [token])
    assert read(model).values["y"].shape == (1, 4, 4)
    with pytest.raises(NetworkError, match="Concat node 'Concat_y'"):
        read(model, 2)
