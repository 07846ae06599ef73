"""The networks of Caffe's time, as today's reader and OpenCV's understand the same files."""

from collections.abc import Callable
from pathlib import Path

import caffe_networks as zoo
import numpy as np
import pytest
from caffe_files import Net
from caffe_oracles import difference, pictures, run_graph, run_opencv, tolerance

from perwatt.graph.caffe_reader import read_caffe

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


def compared(net: Net, folder: Path, logits: str, **how: str) -> tuple[float, float]:
    """Return the difference from OpenCV, and the tolerance; also of the softmax, where there is one."""
    prototxt, caffemodel = net.save(folder, **how)
    feeds = pictures(net)
    soft = net.layers[-1]["type"] == "Softmax"
    names = [logits, "prob"] if soft else [logits]
    imported = read_caffe(prototxt, caffemodel, outputs=names)
    wanted = run_opencv(prototxt, caffemodel, feeds, names)
    got = run_graph(imported.graph, feeds)
    assert imported.graph.outputs == tuple(names)
    limit = tolerance(imported.graph)
    if soft:  # a probability's error is its logit's, which is taken off the largest
        assert np.abs(got[1] - wanted[1]).max() <= 2 * limit * np.abs(wanted[0]).max() + limit
    return difference(got[0].reshape(wanted[0].shape), wanted[0]), limit


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_answers_as_in_opencv(name: str, tmp_path: Path) -> None:
    build, logits = NETWORKS[name]
    found, limit = compared(build(), tmp_path, logits)
    print(name, found, limit)
    assert found <= limit
