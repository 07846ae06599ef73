"""Built-in networks and the nine light ones: logits as near to float64 as rounding in FP32 explains."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import onnx.backend.test
import pytest
from network_oracles import run_onnxruntime

import perwatt
from perwatt.graph import Graph, Node, read
from perwatt.networks import NETWORKS, build
from perwatt.passes.normalise_pools import normalise_pools

pytestmark = pytest.mark.slow

LIGHT = Path(onnx.backend.test.__file__).parent / "data" / "light"
# The limit: error against float64, as a multiple of what direct FP32 arithmetic has (here: ONNX Runtime's).
MOST_TIMES = 5.0


def logits(graph: Graph) -> Graph:
    """Let the Graph hand out what its last Softmax reads: a softmax would hide the error of small classes."""
    last = graph.producer(graph.outputs[0])
    while last is not None and last.operator in ("Softmax", "Reshape", "Flatten"):
        graph = dataclasses.replace(graph, outputs=(last.inputs[0],))
        last = graph.producer(graph.outputs[0])
    return graph


def in_float64(graph: Graph, images: np.ndarray) -> np.ndarray:
    import torch

    from perwatt.lab.engines.torch_module import GraphModule

    # A pool over the whole map with padding that does not count: torch has it under its other name only.
    graph = normalise_pools(graph)
    with torch.inference_mode():
        module = GraphModule(graph, graph.outputs[0]).double().eval()
        return np.asarray(module(torch.from_numpy(images).double()).numpy())


def relative_error(got: np.ndarray, exact: np.ndarray) -> float:
    return float(np.linalg.norm(got.astype(np.float64) - exact) / np.linalg.norm(exact))


def check_network(graph: Graph, seed: int, **how: object) -> None:
    graph = logits(graph)
    (name,) = graph.inputs
    value = graph.values[name]
    images = np.random.default_rng(seed).standard_normal(value.shape).astype(np.float32)
    exact = in_float64(graph, images)
    (rival,) = run_onnxruntime(graph, {name: images}).values()
    model = perwatt.compile(graph, **{"tune": "estimate", **how})  # type: ignore[arg-type]
    got = model(images)
    assert np.ptp(exact) > 0, "one number everywhere would hide anything"
    own, other = relative_error(got, exact), relative_error(rival, exact)
    assert own <= MOST_TIMES * other, f"error {own:.2e}, ONNX Runtime's is {other:.2e}"


TWICE = ("googlenet", "lenet", "resnet50", "squeezenet1.1")


@pytest.mark.parametrize(("name", "batch"), [*((name, 1) for name in NETWORKS), *((name, 2) for name in TWICE)])
def test_built_in_networks(name: str, batch: int) -> None:
    check_network(build(name, batch=batch), seed=batch)


@pytest.mark.parametrize("isa", ["avx2", "portable"])
@pytest.mark.parametrize("name", ["squeezenet1.1", "googlenet"])
def test_narrower_vectors(name: str, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERWATT_MACHINE", isa)
    check_network(build(name), seed=3)


@pytest.mark.parametrize("name", ["lenet", "squeezenet1.1"])
def test_a_large_batch_in_parts(name: str) -> None:
    check_network(build(name, batch=6), seed=4, images=2, threads=3)


@pytest.mark.parametrize("path", sorted(LIGHT.glob("light_*.onnx")), ids=lambda path: path.stem)
def test_light_networks(path: Path) -> None:
    check_network(with_drawn_weights(read(path)), seed=5)


def with_drawn_weights(graph: Graph, seed: int = 0) -> Graph:
    """Replace the one number that the files hold everywhere by weights that keep activations alive."""
    random = np.random.default_rng(seed)
    constants = dict(graph.constants)
    for node in graph.nodes:
        for place, name in enumerate(node.inputs):
            if name in constants and constants[name].dtype.kind == "f":
                constants[name] = _drawn(random, node, place, constants[name].shape).astype(constants[name].dtype)
    return dataclasses.replace(graph, constants=constants)


def _drawn(random: np.random.Generator, node: Node, place: int, shape: tuple[int, ...]) -> np.ndarray:
    if node.operator in ("Conv", "Gemm") and place == 1:
        depth = math.prod(shape[1:]) if node.operator == "Conv" or node.attributes["transB"] else shape[0]
        return random.standard_normal(shape) * math.sqrt(2 / depth)
    if (node.operator == "BatchNormalization" and place in (1, 4)) or node.operator == "Mul":
        return random.uniform(0.8, 1.2, shape)
    return random.standard_normal(shape) * 0.1
