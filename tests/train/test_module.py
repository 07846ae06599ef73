"""The training form answers as the deployed Graph does, for every built-in network, and nothing is lost on the way."""

import copy

import numpy as np
import onnxruntime
import pytest
import torch

from perwatt.graph import Graph, write
from perwatt.networks import NETWORKS, build
from perwatt.train.module import deployed, training_form

LARGE = ("alexnet", "caffenet", "vgg16", "resnet50", "googlenet")
ALL = [pytest.param(name, marks=pytest.mark.slow if name in LARGE else ()) for name in NETWORKS]


def inputs(graph: Graph, seed: int = 0) -> np.ndarray:
    """Return smooth pictures: noise alone has no large structures, and pools hardly tell."""
    random = np.random.default_rng(seed)
    shape = graph.values[graph.inputs[0]].shape
    coarse = random.standard_normal((*shape[:2], -(-shape[2] // 8), -(-shape[3] // 8)))
    smooth = np.kron(coarse, np.ones((1, 1, 8, 8)))[..., : shape[2], : shape[3]]
    name = NETWORKS[graph.name]
    return ((smooth + 0.3 * random.standard_normal(shape)) * 60.0 * name.scale[0]).astype(np.float32)


@pytest.mark.parametrize("name", ALL)
def test_the_training_form_equals_the_deployed_form(name: str) -> None:
    graph = build(name, 2)
    module = training_form(graph).eval()
    fed = inputs(graph)
    with torch.no_grad():
        trained = torch.softmax(module(torch.from_numpy(fed)).double(), 1).numpy()
    session = onnxruntime.InferenceSession(write(deployed(module)), providers=["CPUExecutionProvider"])
    answer = session.run(None, {"data": fed})[0]
    # Two float32 paths; errors of some hundred roundings in the logits move a probability by that part of itself.
    assert np.abs(trained - answer).max() < 1e-4 * trained.max()
    assert np.array_equal(trained.argmax(1), answer.argmax(1))


def test_a_copy_has_tensors_of_its_own() -> None:
    module = training_form(build("lenet"))
    copied = copy.deepcopy(module)
    with torch.no_grad():
        module.constant("conv1.weight").zero_()
    assert copied.constant("conv1.weight").abs().sum() > 0
    assert list(copied.state_dict()) == list(module.state_dict()) == list(module.graph.constants)
