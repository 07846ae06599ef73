"""Networks for other sizes, other numbers of classes, and with what training hears besides."""

import numpy as np
import pytest

from perwatt.errors import InputError
from perwatt.networks import NETWORKS, build, sized

SMALL = ("lenet", "squeezenet1.1")
ALL = [pytest.param(name, marks=() if name in SMALL else pytest.mark.slow) for name in NETWORKS]


@pytest.mark.parametrize("name", ALL)
def test_the_least_size_is_the_least(name: str) -> None:
    least = NETWORKS[name].least_size
    graph = build(name, 2, classes=3, size=least)
    assert graph.values["data"].shape[2:] == (least, least)
    assert graph.values["prob"].shape == (2, 3)
    with pytest.raises(InputError, match=f"size: expected at least {least} for {name}"):
        build(name, size=least - 1)


@pytest.mark.parametrize("name", ["lenet", "squeezenet1.1", "googlenet"])
def test_its_own_size_and_classes_are_what_it_is_without(name: str) -> None:
    network = NETWORKS[name]
    classes = 10 if name == "lenet" else 1000
    plain, asked = build(name), build(name, classes=classes, size=network.input_size[0])
    assert str(plain) == str(asked)
    assert all(np.array_equal(plain.constants[key], asked.constants[key]) for key in plain.constants)


def test_fewer_than_two_classes_are_refused() -> None:
    with pytest.raises(InputError, match="classes: expected at least 2, got 1"):
        build("lenet", classes=1)


@pytest.mark.parametrize("size", [33, 50, 96, 100, 224])
def test_efficientnet_pads_as_tensorflow_does_at_any_size(size: int) -> None:
    graph = build("efficientnet-lite0", classes=4, size=size)
    for node in graph.nodes:
        if node.operator == "Conv":
            before, after = graph.values[node.inputs[0]].shape[2], graph.values[node.outputs[0]].shape[2]
            stride = node.attributes["strides"][0]
            assert after == -(-before // stride)  # "same": one output for every stride begun
            top, _, bottom, _ = node.attributes["pads"]
            assert 0 <= bottom - top <= 1


def test_only_googlenet_has_auxiliary_classifiers() -> None:
    assert build("lenet", auxiliary=True).outputs == ("prob",)
    graph = build("googlenet", classes=6, auxiliary=True)
    assert graph.outputs == ("prob", "loss1/prob", "loss2/prob")
    # Section 5 of the paper: 5x5 windows with stride 3 give 4x4 maps, then 128 filters, 1024 units, the classes.
    assert graph.values["loss1/ave_pool"].shape == (1, 512, 4, 4)
    assert graph.values["loss2/ave_pool"].shape == (1, 528, 4, 4)
    assert graph.constants["loss2/fc.weight"].shape == (1024, 128 * 4 * 4)
    assert [name for name, network in NETWORKS.items() if network.auxiliary] == ["googlenet"]


def test_a_photograph_shrinks_with_the_input() -> None:
    small = sized(NETWORKS["googlenet"], 112)
    assert (small.input_size, small.resize_to) == ((112, 112), 128)
    assert sized(NETWORKS["lenet"], 32).resize_to == 32
