"""perwatt import: the ONNX file, the mean, and what a person is told."""

import json
from pathlib import Path
from typing import Any

import caffe_networks as zoo
import cv2
import numpy as np
import onnx
import pytest
from caffe_files import Name, Net, blob_bytes
from caffe_oracles import difference, pictures, run_graph, run_opencv, tolerance
from onnx_oracles import run_onnxruntime

from perwatt import cli
from perwatt.errors import InputError, NetworkError
from perwatt.graph import read
from perwatt.graph.caffe_import import TRIAL_BATCH, convert, lines, preprocessing
from perwatt.graph.caffe_reader import read_caffe

RANDOM = np.random.default_rng(6)


def mean_file(folder: Path, shape: tuple[int, int, int] = (3, 256, 256)) -> tuple[Path, np.ndarray]:
    mean = (RANDOM.uniform(80, 140, shape) + np.arange(shape[0]).reshape(-1, 1, 1)).astype(np.float32)
    path = folder / "mean.binaryproto"
    path.write_bytes(blob_bytes(mean[None], "old"))
    return path, mean


def told(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert cli.run(["import", *map(str, words)]) == 0
    return capsys.readouterr().out


# -- the mean


def test_a_mean_image_is_subtracted_inside_the_network_around_its_centre(tmp_path: Path) -> None:
    """As Caffe's data layer does: it cuts picture and mean image alike, here 227 from the middle of 256."""
    net = zoo.squeezenet()
    files = net.save(tmp_path)
    path, mean = mean_file(tmp_path)
    found = read_caffe(*files, path, outputs=["pool10"])
    assert found.graph.nodes[0].operator == "Sub"
    assert found.mean_inside
    assert found.mean_values == pytest.approx(tuple(mean.astype(np.float64).mean(axis=(1, 2))), rel=1e-5)
    pixels = RANDOM.uniform(0, 255, (1, 3, 227, 227)).astype(np.float32)
    (wanted,) = run_opencv(*files, {"data": pixels - mean[:, 14:241, 14:241]}, ["pool10"])
    assert difference(run_graph(found.graph, {"data": pixels})[0], wanted) <= tolerance(found.graph)
    assert preprocessing(found)["mean"] == [0.0, 0.0, 0.0]


def test_the_scale_of_the_data_layer_follows_a_mean_inside(tmp_path: Path) -> None:
    net = Net("scaled", inputs={})
    data = {"transform_param": {"scale": 0.5, "crop_size": 4}}
    net.add("Data", "data", (), ["data", "label"], extra=data)
    net.conv("conv", "data", 3, 2, 1)
    mean = np.array([1.0, 2.0, 3.0], np.float32)
    np.save(tmp_path / "mean.npy", mean)
    found = read_caffe(*net.save(tmp_path), tmp_path / "mean.npy")
    assert [node.operator for node in found.graph.nodes] == ["Sub", "Mul", "Conv"]
    x = RANDOM.uniform(0, 255, (1, 3, 4, 4)).astype(np.float32)
    weights, bias = net.blobs["conv"]
    fed = (x.astype(np.float64) - mean.reshape(3, 1, 1)) * 0.5
    wanted = np.einsum("oc,nchw->nohw", weights[:, :, 0, 0].astype(np.float64), fed) + bias.reshape(2, 1, 1)
    assert difference(run_graph(found.graph, {"data": x})[0], wanted) < 1e-6
    assert preprocessing(found)["scale"] == 1.0  # it is in the network


def test_a_mean_as_values_stays_outside(tmp_path: Path) -> None:
    files = zoo.squeezenet().save(tmp_path)
    path, mean = mean_file(tmp_path)
    found = read_caffe(*files, path, mean_as="values")
    assert found.graph.nodes[0].operator == "Conv"
    assert preprocessing(found)["mean"] == pytest.approx(list(mean.mean(axis=(1, 2))), rel=1e-5)
    with pytest.raises(InputError, match="image or values"):
        read_caffe(*files, path, mean_as="both")  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(1, 256, 256), (3, 200, 256), (3, 256, 226)])
def test_a_mean_that_does_not_fit_is_refused(shape: tuple[int, int, int], tmp_path: Path) -> None:
    files = zoo.squeezenet().save(tmp_path)
    with pytest.raises(NetworkError, match="use --mean-as values, or another file"):
        read_caffe(*files, mean_file(tmp_path, shape)[0])


def test_a_mean_wants_one_input_of_pictures(tmp_path: Path) -> None:
    net = Net("two", inputs={"a": (1, 3, 8, 8), "b": (1, 3, 8, 8)})
    net.add("Eltwise", "sum", ["a", "b"])
    with pytest.raises(InputError, match="got 2; leave it out"):
        read_caffe(*net.save(tmp_path), mean_file(tmp_path)[0])


# -- the batch


def test_any_batch_or_the_one_that_is_asked_for(tmp_path: Path) -> None:
    files = zoo.lenet(5).save(tmp_path)
    free, fixed = convert(*files), convert(*files, batch=7)
    onnx.checker.check_model(free.model, full_check=True)
    x = RANDOM.standard_normal((5, 1, 28, 28)).astype(np.float32)
    assert run_onnxruntime(free.model, {"data": x})[0].shape == (5, 10)
    assert read(fixed.model).values["data"].shape == (7, 1, 28, 28)
    assert (free.batch, fixed.batch) == (None, 7)


def test_a_network_that_fixes_its_batch_keeps_its_own_and_says_why(tmp_path: Path) -> None:
    net = Net("fixed", inputs={"data": (2, 6, 4, 4)})
    net.add("Reshape", "reshape", "data", reshape_param={"shape": {"dim": [2, -1]}})
    net.linear("ip", "reshape", 96, 4)
    files = net.save(tmp_path)
    found = convert(*files)
    assert found.batch == 2
    note = next(line for line in lines(found, tmp_path / "net.onnx") if "batch stays" in line)
    assert f"the batch stays 2; one of {TRIAL_BATCH}, tried: InnerProduct layer 'ip'" in note
    x = pictures(net)
    wanted = x["data"].reshape(2, 96).astype(np.float64) @ net.blobs["ip"][0].T.astype(np.float64) + net.blobs["ip"][1]
    assert difference(run_onnxruntime(found.model, x)[0], wanted) < 1e-5


# -- the command


def test_the_command_tells_layers_input_output_and_what_comes_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = zoo.squeezenet()
    prototxt, caffemodel = net.save(tmp_path)
    out = told(capsys, prototxt, caffemodel, "-o", tmp_path / "net.onnx")
    assert (tmp_path / "net.onnx").stat().st_size > 10_000
    rows = out.splitlines()
    assert rows[0].split() == ["layer", "type", "became", "output", "parameters"]
    conv = next(line for line in rows if line.startswith("conv1 ")).split()
    assert conv == ["conv1", "Convolution", "Conv", "N×8×113×113", "224"]
    total = sum(blob.size for blobs in net.blobs.values() for blob in blobs)
    assert f"{total:,} parameters" in out
    assert "blue, green, red" in out
    assert "perwatt package" in rows[-1]
    assert "--channels bgr --mean MEAN" in rows[-1]


def test_the_command_in_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = zoo.lenet(5)
    prototxt, caffemodel = net.save(tmp_path)
    found: dict[str, Any] = json.loads(told(capsys, prototxt, caffemodel, "--json", "--outputs", "ip1, prob"))
    assert found["path"] == str(prototxt.with_suffix(".onnx"))
    assert found["outputs"] == {"ip1": [1, 100], "prob": [1, 10]}
    assert found["parameters"] == sum(blob.size for blobs in net.blobs.values() for blob in blobs)
    assert [layer["name"] for layer in found["layers"]] == [layer["name"] for layer in net.layers]
    assert found["preprocessing"] == {
        "size": [28, 28], "resize_to": None, "channel_order": "grey", "mean": None, "scale": None,
    }  # fmt: skip


def test_the_command_tells_what_training_did_to_pixels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = zoo.lenet(5)
    data = {"transform_param": {"scale": 0.00390625, "crop_size": 28, "mean_value": [33.5]}}
    net.inputs = {}
    net.add("Data", "mnist", (), ["data", "label"], extra={"include": {"phase": Name("TEST")}, **data})
    net.layers.insert(0, net.layers.pop())
    net.add("Accuracy", "accuracy", ["ip2", "label"])
    out = told(capsys, *net.save(tmp_path))
    assert "training took away 33.5" in out
    assert "training multiplied pixels by 0.00390625" in out
    assert "dropped accuracy (Accuracy): judges answers in training" in out
    assert "--channels grey --mean 33.5 --scale 0.00390625 --range 255" in out.splitlines()[-1]


def test_the_command_with_a_mean_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = zoo.squeezenet().save(tmp_path)
    path, mean = mean_file(tmp_path)
    inside = told(capsys, *files, path)
    assert "subtracted inside the network" in inside
    assert "--mean 0,0,0 --resize-to 256" in inside
    outside = told(capsys, *files, path, "--mean-as", "values")
    assert f"--mean {','.join(f'{value:.6g}' for value in mean.astype(np.float64).mean(axis=(1, 2)))}" in outside


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--input", "3x227"], "such as 3,227,227"),
        (["--input", "none"], "such as 3,227,227"),
        (["--mean-as", "pixel"], "image or values"),
        (["--outputs", "porb"], "did you mean prob?"),
        (["--batch", "0"], "batch"),
        (["-o", "/proc/none/x.onnx"], "expected to write here"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(
    words: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = zoo.lenet(5).save(tmp_path)
    assert cli.run(["import", *map(str, files), *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert expected in captured.err


def test_opencv_reads_the_onnx_file_as_it_reads_the_originals(tmp_path: Path) -> None:
    """The way there and the original, both in one foreign engine."""
    net = zoo.alexnet(16)
    files = net.save(tmp_path)
    path = tmp_path / "net.onnx"
    path.write_bytes(convert(*files, batch=1).model)
    feeds = pictures(net)
    there = cv2.dnn.readNetFromONNX(str(path))
    there.setInput(feeds["data"], "data")
    assert difference(there.forward(), run_opencv(*files, feeds, ["prob"])[0]) <= 1e-3
