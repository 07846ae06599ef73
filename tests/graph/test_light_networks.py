"""The nine networks that the onnx package ships without weights: read, set to another batch, run."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx_oracles import EPSILON, run_onnxruntime, structure

from perwatt.graph import cost, read, total_cost, unsupported, with_batch, write

FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
QUICK = ("squeezenet", "inception_v1", "shufflenet")
SLOW = ("bvlc_alexnet", "densenet121", "inception_v2", "resnet50", "vgg19", "zfnet512")
NAMES = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
# Multiply-adds of one image in 1e9, as torchvision's table of models gives them for the same layers.
GIGA = {"vgg19": 19.63, "squeezenet": 0.35, "resnet50": 4.09}


def place(name: str) -> Path:
    return FOLDER / f"light_{name}.onnx"


def shipped(name: str) -> np.ndarray:
    tensor = onnx.TensorProto()
    tensor.ParseFromString((FOLDER / f"light_{name}_output_0.pb").read_bytes())
    return numpy_helper.to_array(tensor)


def seeded(name: str) -> bytes:
    """Return a light network with numbers in place of its weights, which are all 0.02: images must tell apart."""
    model = onnx.load_model(place(name))
    random = np.random.default_rng(11)
    sizes = {entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer}
    kept = []
    for node in model.graph.node:
        if node.op_type == "ConstantOfShape":
            shape = sizes[node.input[0]]
            high = np.sqrt(6 / np.prod(shape[1:]))
            low, high = (0.5, 1.5) if len(shape) == 1 else (-high, high)  # variances must be positive
            numbers = random.uniform(low, high, shape)
            model.graph.initializer.append(numpy_helper.from_array(numbers.astype(np.float32), node.output[0]))
        elif node.op_type == "Softmax":  # it would saturate: the logits say more
            model.graph.output[0].name = node.input[0]
        else:
            kept.append(node)
    del model.graph.node[:]
    model.graph.node.extend(kept)
    model.ir_version = 8
    return bytes(model.SerializeToString())


def images(count: int) -> np.ndarray:
    return np.random.default_rng(5).uniform(0, 1, (count, 3, 224, 224)).astype(np.float32)


@pytest.mark.parametrize("name", NAMES)
def test_a_light_network_reads_at_batch_1_and_48(name: str) -> None:
    output = shipped(name)
    one, many = read(place(name)), read(place(name), batch=48)
    for graph, batch in ((one, 1), (many, 48)):
        assert unsupported(graph) == ()
        assert len(graph.inputs) == 1
        assert graph.values[graph.inputs[0]].shape == (batch, 3, 224, 224)
        (made,) = graph.outputs
        assert graph.values[made].shape == (batch, *output.shape[1:])
        assert all(graph.values[name].shape[0] == batch for node in graph.nodes for name in node.outputs)
    assert [node.operator for node in one.nodes] == [node.operator for node in many.nodes]
    alone, together = total_cost(one), total_cost(many)
    assert alone.multiply_adds is not None
    assert together.multiply_adds == 48 * alone.multiply_adds
    assert together.parameter_bytes == alone.parameter_bytes
    if name in GIGA:
        assert alone.multiply_adds / 1e9 == pytest.approx(GIGA[name], abs=5e-3)


def test_alexnets_convolutions_cost_what_its_table_says() -> None:
    graph = read(place("bvlc_alexnet"))
    found = [cost(graph, node).multiply_adds for node in graph.nodes if node.operator == "Conv"]
    # maps x height x width x kernel x channels of a group; this variant takes 224x224, so its first maps are 54x54
    assert found == [
        96 * 54 * 54 * 11 * 11 * 3,
        256 * 26 * 26 * 5 * 5 * 48,
        384 * 12 * 12 * 3 * 3 * 256,
        384 * 12 * 12 * 3 * 3 * 192,
        256 * 12 * 12 * 3 * 3 * 192,
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*QUICK, *SLOW])
def test_a_light_network_runs_with_another_batch_and_gives_what_is_shipped(name: str) -> None:
    batch = 2 if name in ("vgg19", "zfnet512", "resnet50") else 5
    model = with_batch(place(name), batch)
    onnx.checker.check_model(model, full_check=True)
    feed = {read(place(name)).inputs[0]: images(batch)}
    (got,) = run_onnxruntime(model, feed)
    output = shipped(name)
    assert got.shape == (batch, *output.shape[1:])
    # every shipped number is a mean over at most 2048 equal terms; sums of thousands of terms lie before it
    np.testing.assert_allclose(got, np.broadcast_to(output, got.shape), rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shufflenet", "inception_v1", "squeezenet"])
def test_images_do_not_mix_when_the_batch_grows(name: str) -> None:
    model = seeded(name)
    graph = read(model)
    feed, batch = images(3), 3
    single = [run_onnxruntime(model, {graph.inputs[0]: feed[at : at + 1]})[0][0] for at in range(batch)]
    assert not np.allclose(single[0], single[1], rtol=0.01, atol=0), (
        "the images must differ for this test to say anything"
    )
    grown = run_onnxruntime(with_batch(model, batch), {graph.inputs[0]: feed})[0]
    written = run_onnxruntime(write(read(model, batch)), {graph.inputs[0]: feed})[0]
    for got in (grown, written):
        # the same sums in perhaps another order: deep networks amplify rounding, here by less than 1000 units
        np.testing.assert_allclose(got, np.stack(single), rtol=1000 * EPSILON, atol=1000 * EPSILON * np.abs(got).max())


@pytest.mark.parametrize("name", ["squeezenet", "shufflenet"])
def test_writing_and_reading_keeps_the_structure(name: str) -> None:
    graph = read(place(name), batch=2)
    again = read(write(graph))
    assert structure(again) == structure(graph)
    assert again.name == graph.name
