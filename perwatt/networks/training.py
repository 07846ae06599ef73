"""What the papers say about training their networks: initial weights, dropout, and what auxiliary classifiers count.

The seeded weights of `weights.py` keep activations alive in a network that is never trained; these are those that
training starts from. Where a builder follows Caffe's published file, and that file and the paper differ, the rule below
names its source.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from perwatt.errors import InputError
from perwatt.graph import Graph, Node
from perwatt.networks.weights import generator

# Szegedy et al., section 5: what the loss of each auxiliary classifier counts beside the main one's 1.
AUXILIARY_WEIGHT = 0.3

# The part of the elements that a Dropout leaves out, by network and node. GoogLeNet: section 5 of the paper (40 %, and
# 70 % in the auxiliary classifiers); half in the other papers.
DROPOUT: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "alexnet": {"drop6": 0.5, "drop7": 0.5},
        "caffenet": {"drop6": 0.5, "drop7": 0.5},
        "vgg16": {"drop6": 0.5, "drop7": 0.5},
        "googlenet": {"pool5/drop": 0.4, "loss1/drop": 0.7, "loss2/drop": 0.7},
        "squeezenet1.1": {"drop9": 0.5},
    }
)

# A rule returns the weights [outputs, inputs per group, ...] and the one value of all biases of a layer.
Rule = Callable[[np.random.Generator, str, tuple[int, ...]], tuple[np.ndarray, float]]


def initial_weights(network: str, graph: Graph, seed: int) -> dict[str, np.ndarray]:
    """Return the tensors that training of a built-in network starts from, float32 by the names of the constants.

    They depend on the seed and each layer's name only. Batch normalisations start as the identity: scale 1, shift 0,
    mean 0, variance 1. Raises InputError when there is no rule for the network.
    """
    rule = RULES.get(network)
    if rule is None:
        raise InputError(f"initial weights: expected one of {', '.join(RULES)}, got {network!r}; choose one of these")
    found: dict[str, np.ndarray] = {}
    for node in graph.nodes:
        if node.operator in ("Conv", "Gemm"):
            found |= _layer(rule, node, graph, seed)
        elif node.operator == "BatchNormalization":
            for name, value in zip(node.inputs[1:], (1.0, 0.0, 0.0, 1.0), strict=True):
                found[name] = np.full(graph.values[name].shape, value, np.float32)
    return found


def _layer(rule: Rule, node: Node, graph: Graph, seed: int) -> dict[str, np.ndarray]:
    weights, *rest = node.inputs[1:]
    drawn, bias = rule(generator(seed, weights), node.name, graph.values[weights].shape)
    made = {weights: drawn.astype(np.float32)}
    for name in rest:
        if name:
            made[name] = np.full(graph.values[name].shape, bias, np.float32)
    return made


def _fan_in(shape: tuple[int, ...]) -> int:
    return math.prod(shape[1:])


def _xavier(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Glorot, Bengio (AISTATS 2010), as Caffe's filler "xavier" has it: uniform with the variance 1 / inputs."""
    reach = math.sqrt(3.0 / _fan_in(shape))
    return random.uniform(-reach, reach, shape)


def _lenet(random: np.random.Generator, name: str, shape: tuple[int, ...]) -> tuple[np.ndarray, float]:
    """Caffe's file of this network: "xavier". The paper's rule (uniform, 2.4 / inputs) is for squashing units."""
    return _xavier(random, shape), 0.0


def _alexnet(random: np.random.Generator, name: str, shape: tuple[int, ...]) -> tuple[np.ndarray, float]:
    """Section 5 of the paper: deviation 0.01; biases 1 in conv2, conv4, conv5 and the hidden layers, else 0."""
    return 0.01 * random.standard_normal(shape), 1.0 if name in ("conv2", "conv4", "conv5", "fc6", "fc7") else 0.0


def _caffenet(random: np.random.Generator, name: str, shape: tuple[int, ...]) -> tuple[np.ndarray, float]:
    """Caffe's file: as AlexNet's paper, with the deviation 0.005 in the hidden fully connected layers."""
    drawn, bias = _alexnet(random, name, shape)
    return (0.5 if name in ("fc6", "fc7") else 1.0) * drawn, bias


def _googlenet(random: np.random.Generator, name: str, shape: tuple[int, ...]) -> tuple[np.ndarray, float]:
    """Caffe's file (the paper says nothing): "xavier", biases 0.2, in the classifiers 0."""
    return _xavier(random, shape), 0.0 if name == "logits" or name.endswith("classifier") else 0.2


def _squeezenet(random: np.random.Generator, name: str, shape: tuple[int, ...]) -> tuple[np.ndarray, float]:
    """The authors' file: "xavier", and deviation 0.01 in conv10; biases 0."""
    return (0.01 * random.standard_normal(shape) if name == "conv10" else _xavier(random, shape)), 0.0


def _vgg(random: np.random.Generator, name: str, shape: tuple[int, ...]) -> tuple[np.ndarray, float]:
    """Section 3.1 of the paper: Glorot's rule, which needs no shallower network trained before; biases 0."""
    outputs = shape[0] * math.prod(shape[2:])
    reach = math.sqrt(6.0 / (_fan_in(shape) + outputs))
    return random.uniform(-reach, reach, shape), 0.0


def _resnet(random: np.random.Generator, name: str, shape: tuple[int, ...]) -> tuple[np.ndarray, float]:
    """Section 3.4 of the paper refers to He et al. (arXiv:1502.01852), equation 10: variance 2 / inputs; biases 0."""
    gain = 1.0 if name == "logits" else 2.0  # no Relu behind the classifier
    return math.sqrt(gain / _fan_in(shape)) * random.standard_normal(shape), 0.0


def _efficientnet(random: np.random.Generator, name: str, shape: tuple[int, ...]) -> tuple[np.ndarray, float]:
    """The authors' code: variance 2 / outputs of a kernel; the classifier uniform within 1 / sqrt(outputs)."""
    if name == "logits":
        reach = 1.0 / math.sqrt(shape[0])
        return random.uniform(-reach, reach, shape), 0.0
    outputs = shape[0] * math.prod(shape[2:])
    # A depthwise kernel's outputs are counted for each of its inputs, of which it has one.
    return math.sqrt(2.0 / (outputs if shape[1] > 1 else math.prod(shape[2:]))) * random.standard_normal(shape), 0.0


RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "alexnet": _alexnet,
        "caffenet": _caffenet,
        "googlenet": _googlenet,
        "squeezenet1.1": _squeezenet,
        "vgg16": _vgg,
        "resnet50": _resnet,
        "lenet": _lenet,
        "efficientnet-lite0": _efficientnet,
    }
)
