"""Fine-tuning: a trained network's Graph for other classes. All but the last layer stays, weights and structure alike.

The Graph comes from a package, so any ONNX network whose operators can be trained will do, not the built-in ones only.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from perwatt.errors import InputError, InvalidGraph, NetworkError
from perwatt.graph import Attribute, Graph, Node, Value, check, integers, make, read
from perwatt.networks.training import RULES
from perwatt.networks.weights import generator
from perwatt.package import Package

# What keeps every class's values apart from those of the others: looked through on the way from the logits to the layer
# that makes them.
CLASSWISE = frozenset(
    {
        *("Softmax", "LogSoftmax", "Flatten", "Reshape", "Squeeze", "Identity", "Dropout"),
        *("Relu", "Clip", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid", "Elu"),
        *("GlobalAveragePool", "GlobalMaxPool", "AveragePool", "MaxPool", "ReduceMean", "ReduceMax", "Add"),
    }
)


# From a layer of the classes, one of its constants and whether it is the weights' to what stands there from now on.
Renew = Callable[[Node, str, bool], np.ndarray]


def fine_tuned(package: Package, labels: Sequence[str], seed: int, size: int | None = None) -> Graph:
    """Return the Graph that training goes on from: the package's own, with batch 1.

    Where the package tells other classes apart than `labels`, its last layer is drawn anew from the seed; where it
    tells the same ones in another order, that of its last layer follows. `size` is another height and width of the
    input, for networks that take any. Raises NetworkError when the package's network cannot be read or has no last
    layer to replace, InputError when the classes or the size do not fit.
    """
    graph = _main_output(read(package.model, batch=1))
    classes = len(labels)
    if classes < 2:
        raise InputError(f"classes: expected at least 2, got {classes}; nothing is told apart with fewer")
    if size is not None:
        graph = _at_size(graph, size)
    had = math.prod(graph.values[graph.outputs[0]].shape[1:])
    known = tuple(labels) if package.labels is None else package.labels
    if had == classes and known == tuple(labels):
        return graph
    if had == classes and set(known) == set(labels):
        order = [known.index(label) for label in labels]
        return _with_classes(
            graph, had, classes, lambda node, name, weights: _ordered(graph, node, name, weights, order)
        )
    return _with_classes(
        graph, had, classes, lambda node, name, weights: _drawn(graph, node, name, weights, had, classes, seed)
    )


def _main_output(graph: Graph) -> Graph:
    """Return a Graph with its first output only; raises NetworkError unless it has one input of images."""
    shape = graph.values[graph.inputs[0]].shape
    if len(graph.inputs) != 1 or len(shape) != 4:
        raise NetworkError(f"{graph.name}: expected one input of images, got {len(graph.inputs)} of rank {len(shape)}")
    return Graph(graph.name, graph.inputs, graph.outputs[:1], graph.nodes, graph.constants, graph.values)


def _with_classes(graph: Graph, had: int, classes: int, renew: Renew) -> Graph:
    """Renew the layer that makes the logits, and correct the targets of Reshapes behind it."""
    last, behind = _last_layer(graph)
    constants = dict(graph.constants)
    for place, name in enumerate(last.inputs):
        if name in constants and place > 0:
            constants[name] = renew(last, name, place == 1)
    for node in behind:
        for name in node.inputs:  # a bias that is added on its own
            if name in constants:
                constants[name] = renew(node, name, False)
    after = {node.name for node in behind}

    def corrected(node: Node) -> Mapping[str, Attribute]:
        if node.operator != "Reshape" or node.name not in after:
            return node.attributes
        target = tuple(classes if length == had else length for length in integers(node, "shape"))
        return {**node.attributes, "shape": target}

    return _inferred(graph, constants, graph.values[graph.inputs[0]].shape, corrected)


def _last_layer(graph: Graph) -> tuple[Node, list[Node]]:
    """Return the layer that makes the logits and the nodes between it and the output. Raises NetworkError."""
    behind: list[Node] = []
    name = graph.outputs[0]
    while (node := graph.producer(name)) is not None:
        if node.operator in ("Conv", "Gemm", "MatMul") and node.inputs[1] in graph.constants:
            if node.attributes.get("group", 1) == 1 and not node.attributes.get("transA", 0):
                return node, behind
            break
        made = [each for each in node.inputs if each not in graph.constants]
        if node.operator not in CLASSWISE or len(made) != 1:
            break
        behind.append(node)
        name = made[0]
    raise NetworkError(
        f"{graph.name}: expected a fully connected layer or a convolution that makes the classes, got "
        f"{'nothing' if node is None else node.operator} before the output; train it with as many classes as it has"
    )


def _class_axis(graph: Graph, node: Node, name: str, had: int, weights: bool) -> int:
    """Return which axis of a constant of the last layer counts the classes. Raises NetworkError when none does."""
    shape = graph.constants[name].shape
    axes = [axis for axis, length in enumerate(shape) if length == had]
    if not axes:
        raise NetworkError(f"{graph.name}: expected {name!r} to hold {had} classes, got shape {shape}")
    columns = node.operator == "MatMul" or (node.operator == "Gemm" and not node.attributes["transB"])
    return axes[0] if weights and not columns else axes[-1]


def _ordered(graph: Graph, node: Node, name: str, weights: bool, order: list[int]) -> np.ndarray:
    """Return a tensor of the last layer with its classes in this order."""
    return np.take(graph.constants[name], order, _class_axis(graph, node, name, len(order), weights))


def _drawn(graph: Graph, node: Node, name: str, weights: bool, had: int, classes: int, seed: int) -> np.ndarray:
    """Return a new tensor of the last layer: the network's own rule where there is one, else variance 1 / inputs."""
    old, axis = graph.constants[name], _class_axis(graph, node, name, had, weights)
    shape = tuple(classes if place == axis else length for place, length in enumerate(old.shape))
    if not weights:
        return np.zeros(shape, old.dtype)
    inputs_first = (shape[axis], *(length for place, length in enumerate(shape) if place != axis))
    random, rule = generator(seed, name), RULES.get(graph.name)
    if rule is not None and axis == 0:
        return rule(random, node.name, shape)[0].astype(old.dtype)
    return (random.standard_normal(shape) / math.sqrt(math.prod(inputs_first[1:]))).astype(old.dtype)


def _at_size(graph: Graph, size: int) -> Graph:
    shape = graph.values[graph.inputs[0]].shape
    if shape[2:] == (size, size):
        return graph
    try:
        return _inferred(graph, graph.constants, (*shape[:2], size, size), lambda node: node.attributes)
    except InvalidGraph as error:
        raise InputError(
            f"size: expected {shape[2]}, for which {graph.name} was made and which its layers need, got {size}: {error}"
        ) from error


def _inferred(
    graph: Graph,
    constants: Mapping[str, np.ndarray],
    shape: tuple[int, ...],
    attributes_of: Callable[[Node], Mapping[str, Attribute]],
) -> Graph:
    """Return the Graph with other constants and another input, every shape worked out again. Raises InvalidGraph."""
    data = graph.inputs[0]
    values = {data: Value(data, shape, graph.values[data].dtype)}
    for name, array in constants.items():
        array.flags.writeable = False
        values[name] = Value(name, array.shape, array.dtype)
    nodes = []
    for node in graph.nodes:
        known = [values[name] if name else None for name in node.inputs]
        made, outputs = make(node.operator, node.name, node.inputs, node.outputs, attributes_of(node), known)
        nodes.append(made)
        values.update({value.name: value for value in outputs})
    frozen = MappingProxyType(dict(constants)), MappingProxyType(values)
    result = Graph(graph.name, graph.inputs, graph.outputs, tuple(nodes), *frozen)
    check(result)
    return result
