"""The networks of Caffe's time, as today's reader and OpenCV's understand the same files."""

from collections.abc import Callable
from pathlib import Path

import caffe_networks as zoo
import numpy as np
import pytest
from caffe_files import Name, Net
from caffe_oracles import difference, pictures, run_graph, run_opencv, tolerance
from onnx_oracles import structure

import perwatt
from perwatt.graph import Graph, read, total_cost
from perwatt.graph.caffe_import import convert
from perwatt.graph.caffe_reader import read_caffe
from perwatt.networks import build

NETWORKS: dict[str, tuple[Callable[[], Net], str]] = {
    "lenet": (zoo.lenet, "ip2"),
    "alexnet": (zoo.alexnet, "fc8"),
    "caffenet": (lambda: zoo.alexnet(pool_first=True), "fc8"),
    "googlenet": (zoo.googlenet, "loss3/classifier"),
    "vgg16": (zoo.vgg16, "fc8"),
    "squeezenet": (zoo.squeezenet, "pool10"),
    "resnet": (zoo.resnet, "fc1000"),
    "segmenter": (zoo.segmenter, "score"),
}


def differs(graph: Graph, net: Net, folder: Path, logits: str) -> float:
    """Return how far a Graph's first output is from what OpenCV makes of the network's files."""
    prototxt, caffemodel = net.save(folder)
    feeds = pictures(net)
    (wanted,) = run_opencv(prototxt, caffemodel, feeds, [logits])
    got = run_graph(graph, feeds)[0]
    return difference(got.reshape(wanted.shape), wanted) if got.size == wanted.size else float("inf")


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_answers_as_in_opencv(name: str, tmp_path: Path) -> None:
    make, logits = NETWORKS[name]
    net = make()
    graph = read_caffe(*net.save(tmp_path), outputs=[logits]).graph
    assert graph.outputs == (logits,)
    assert differs(graph, net, tmp_path, logits) <= tolerance(graph)


def test_probabilities_follow(tmp_path: Path) -> None:
    net = zoo.squeezenet()
    files = net.save(tmp_path)
    graph = read_caffe(*files).graph
    feeds = pictures(net)
    wanted = run_opencv(*files, feeds, ["prob"])[0]
    got = run_graph(graph, feeds)[0]
    assert graph.outputs == ("prob",)
    # an error of e in the logits, which reach 200 here, is one of e in the logarithm of each probability
    assert difference(got.reshape(wanted.shape), wanted) <= 200 * tolerance(graph)


@pytest.mark.parametrize(
    ("wrong", "where"),
    [
        ({"alpha": 0.0005}, "norm1"),  # not divided by the number of channels
        ({"local_size": 3}, "norm1"),
        ({"beta": 0.5}, "norm2"),
        ({"k": 2.0}, "norm2"),  # the paper's constant
        ({"norm_region": Name("WITHIN_CHANNEL")}, "norm1"),
    ],
)
def test_a_wrong_normalisation_would_be_seen(wrong: dict[str, object], where: str, tmp_path: Path) -> None:
    net, other = zoo.alexnet(), zoo.alexnet()
    next(layer for layer in other.layers if layer["name"] == where)["parameters"]["lrn_param"].update(wrong)
    graph = read_caffe(*other.save(tmp_path), outputs=["fc8"]).graph
    assert differs(graph, net, tmp_path, "fc8") > 20 * tolerance(graph)


def test_a_pool_rounded_down_would_be_seen(tmp_path: Path) -> None:
    net, other = zoo.squeezenet(), zoo.squeezenet()
    for layer in other.layers:
        if layer["type"] == "Pooling" and layer["name"] in ("pool1", "pool3", "pool5"):
            layer["parameters"]["pooling_param"]["round_mode"] = Name("FLOOR")
    assert differs(read_caffe(*net.save(tmp_path), outputs=["pool3"]).graph, net, tmp_path, "pool3") < 1e-5
    other.name = "floor"
    floor = read_caffe(*other.save(tmp_path), outputs=["pool10"]).graph
    assert differs(floor, net, tmp_path, "pool10") > 100 * tolerance(floor)


@pytest.mark.parametrize("pool_first", [False, True])
def test_the_old_syntaxes_mean_the_same_network(pool_first: bool, tmp_path: Path) -> None:
    """The oldest pads by layers of their own; its weights are 4-D and in messages within messages."""
    today = zoo.alexnet(pool_first=pool_first)
    wanted = structure(read_caffe(*today.save(tmp_path)).graph)
    old = read_caffe(*today.save(tmp_path, "old", shapes="old")).graph
    assert structure(old) == wanted
    oldest = zoo.alexnet(pool_first=pool_first, padding_layers=True)
    assert "padding" in oldest.text("oldest")
    assert structure(read_caffe(*oldest.save(tmp_path, "oldest", shapes="old")).graph) == wanted


@pytest.mark.parametrize("syntax", ["old", "oldest"])
def test_opencv_reads_the_old_texts_alike(syntax: str, tmp_path: Path) -> None:
    net = zoo.alexnet(padding_layers=syntax == "oldest")
    prototxt, caffemodel = net.save(tmp_path, syntax, shapes="old")
    graph = read_caffe(prototxt, caffemodel, outputs=["fc8"]).graph
    # OpenCV does not find the weights in messages within messages: it gets them in the form after
    judged = tmp_path / "judged.caffemodel"
    judged.write_bytes(zoo.alexnet().weights("old", shapes="old"))
    feeds = pictures(net)
    (wanted,) = run_opencv(prototxt, judged, feeds, ["fc8"])
    assert difference(run_graph(graph, feeds)[0], wanted) <= tolerance(graph)


@pytest.mark.parametrize(
    ("name", "made"),
    [("lenet", zoo.lenet), ("squeezenet1.1", lambda: zoo.squeezenet(1)), ("googlenet", lambda: zoo.googlenet(1))],
)
def test_in_full_width_it_is_the_built_in_network(name: str, made: Callable[[], Net], tmp_path: Path) -> None:
    ours, theirs = total_cost(build(name)), total_cost(read_caffe(*made().save(tmp_path)).graph)
    assert (theirs.multiply_adds, theirs.parameter_bytes) == (ours.multiply_adds, ours.parameter_bytes)


def test_an_imported_file_runs_at_any_batch(tmp_path: Path) -> None:
    net = zoo.resnet(16, blocks=(1, 1))
    net.layers[-3]["parameters"]["pooling_param"] = {"pool": Name("AVE"), "global_pooling": True}
    converted = convert(*net.save(tmp_path))
    assert converted.batch is None
    x = np.random.default_rng(2).standard_normal((3, 3, 224, 224)).astype(np.float32) * 50
    whole = run_graph(read(converted.model, 3), {"data": x})[0]
    single = np.concatenate([run_graph(read(converted.model, 1), {"data": image[None]})[0] for image in x])
    assert whole.shape == (3, 62)
    np.testing.assert_allclose(whole, single, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "name",
    [
        "lenet",
        "segmenter",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("alexnet", "squeezenet", "resnet")),
    ],
)
def test_perwatts_engine_runs_what_was_imported(name: str, tmp_path: Path) -> None:
    make, logits = NETWORKS[name]
    net = make()
    files = net.save(tmp_path)
    model = perwatt.compile(read_caffe(*files, outputs=[logits]).graph, tune="estimate")
    feeds = pictures(net)
    (wanted,) = run_opencv(*files, feeds, [logits])
    # Winograd and the like may err three times as much as direct sums: the engine's own budget
    limit = 3 * tolerance(read_caffe(*files, outputs=[logits]).graph)
    assert difference(np.asarray(model.run(feeds)[logits]).reshape(wanted.shape), wanted) <= limit
