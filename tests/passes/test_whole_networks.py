"""All passes over real networks: the built-in ones and the nine that the onnx package carries without weights."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import onnx.backend.test
import pytest
from small_nets import longest_sum, run

from perwatt.graph import Graph, Node, check, read
from perwatt.networks import NETWORKS, build
from perwatt.passes import apply

LIGHT = Path(onnx.backend.test.__file__).parent / "data" / "light"
LIGHT_NETWORKS = sorted(path.stem for path in LIGHT.glob("light_*.onnx"))
# What is gone after all passes, in networks where each Conv has constant weights.
GONE = {"Conv", "Gemm", "MatMul", "BatchNormalization", "Dropout", "Identity", "Sum", "Squeeze", "Unsqueeze"}


def with_drawn_weights(graph: Graph, seed: int = 0) -> Graph:
    """Replace the one number that the files hold everywhere by weights that keep activations alive."""
    random = np.random.default_rng(seed)
    constants = dict(graph.constants)
    for node in graph.nodes:
        for place, name in enumerate(node.inputs):
            if name in constants and np.issubdtype(constants[name].dtype, np.floating):
                constants[name] = drawn(random, node, place, constants[name].shape).astype(constants[name].dtype)
    return dataclasses.replace(graph, constants=constants)


def drawn(random: np.random.Generator, node: Node, place: int, shape: tuple[int, ...]) -> np.ndarray:
    if node.operator in ("Conv", "Gemm") and place == 1:
        depth = math.prod(shape[1:]) if node.operator == "Conv" or node.attributes["transB"] else shape[0]
        return random.standard_normal(shape, np.float32) * math.sqrt(2 / depth)
    if (node.operator == "BatchNormalization" and place in (1, 4)) or node.operator == "Mul":
        return random.uniform(0.8, 1.2, shape)
    return random.standard_normal(shape) * 0.1


def logits(graph: Graph) -> Graph:
    """Let the Graph hand out what its last Softmax reads: classes far from the top have something to say there."""
    last = graph.producer(graph.outputs[0])
    while last is not None and last.operator in ("Softmax", "Reshape", "Flatten"):
        graph = dataclasses.replace(graph, outputs=(last.inputs[0],))
        last = graph.producer(graph.outputs[0])
    return graph


def check_network(graph: Graph) -> Graph:
    """Assert that all passes keep the network's answers to seeded pixels; return what they made of it.

    Tolerance: float32 roundings of n terms over d nodes, all independent, add up to √(n·d) of them; four times that.
    """
    random = np.random.default_rng(1)
    feeds = {name: random.standard_normal(graph.values[name].shape).astype(np.float32) for name in graph.inputs}
    short = logits(graph)
    after = apply(short)
    check(after)
    (one,), (other,) = run(short, feeds), run(after, feeds)
    assert np.ptp(one) > 0.1 * np.abs(one).max() > 0, "dead activations would hide anything"
    tolerance = 4 * float(np.finfo(np.float32).eps) * math.sqrt(longest_sum(short) * len(short.nodes))
    error = np.abs(one - other).max() / np.abs(one).max()
    assert error <= tolerance
    whole = apply(graph)
    assert apply(whole) is whole
    assert not GONE & {node.operator for node in whole.nodes}
    return whole


@pytest.mark.slow
@pytest.mark.parametrize("name", list(NETWORKS))
def test_built_in_networks_keep_their_answers(name):
    before = build(name)
    after = check_network(before)
    assert "Relu" not in {node.operator for node in after.nodes}
    convolutions = sum(node.operator == "Conv" for node in before.nodes)
    fused = [node for node in after.nodes if node.operator == "FusedConv"]
    assert sum(len(node.outputs) for node in fused) == convolutions


@pytest.mark.slow
@pytest.mark.parametrize("name", LIGHT_NETWORKS)
def test_the_nine_light_networks_keep_their_answers(name):
    after = check_network(with_drawn_weights(read(LIGHT / f"{name}.onnx")))
    assert "FusedConv" in {node.operator for node in after.nodes}


def test_googlenet_shares_the_input_of_each_module():
    merged = [node.attributes["splits"] for node in apply(build("googlenet")).nodes if node.attributes.get("splits")]
    assert merged[0] == (64, 96, 16)
    assert len(merged) == 9
