"""The training form of a network: a PyTorch module made from the Graph that is deployed, and the way back.

There is one description of every network, its Graph. The module runs the Graph's nodes, with what differs in training:
Dropout drops, batch normalisation takes the batch's own moments and keeps running ones, auxiliary classifiers answer
too, and the closing Softmax is left to the loss. Parameters bear the names of the Graph's constants, so a checkpoint, a
Graph and an ONNX file of one network speak of the same tensors, and nothing has to be converted to deploy.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor, nn

from perwatt.errors import NetworkError
from perwatt.graph import Graph, Node, check
from perwatt.networks.training import DROPOUT, initial_weights
from perwatt.train.operators import Run, runner

# Which inputs of an operator are learned. The mean and the variance of a batch normalisation follow the data instead.
LEARNED: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {"Conv": (1, 2), "Gemm": (1, 2), "MatMul": (0, 1), "PRelu": (1,), "BatchNormalization": (1, 2)}
)
FOLLOWING: Mapping[str, tuple[int, ...]] = MappingProxyType({"BatchNormalization": (3, 4)})
# An Add behind one of these adds a bias.
BEFORE_BIAS = ("Conv", "Gemm", "MatMul")
# What may stand between a closing Softmax and the output.
SHAPING = ("Flatten", "Reshape", "Squeeze", "Identity")
DROPOUT_OF_OTHERS = 0.5


@dataclass(frozen=True)
class _Step:
    """One node, what runs it, and the tensors that nobody reads after it."""

    node: Node
    run: Run
    finished: tuple[str, ...]


class TrainingForm(nn.Module):  # type: ignore[misc]  # PyTorch is read as untyped
    """A Graph that learns. `module(images)` takes float32 [batch, channels, height, width] of any batch.

    It returns the logits [batch, classes]: what goes into the Graph's closing Softmax, or its output when there is
    none. In training, a Graph with auxiliary classifiers makes it return a tuple of logits, the main ones first.
    `state_dict()` holds the learned tensors and running statistics under the names of the Graph's constants.
    Raises NetworkError for a Graph that is no image network or has operators that cannot be trained here.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        if len(graph.inputs) != 1:
            raise NetworkError(f"{graph.name}: expected one input, got {len(graph.inputs)}; only these can be trained")
        self.graph = graph
        self._answers = tuple(_logits(graph, output) for output in graph.outputs)
        self._every_step = _steps(graph, self._answers)
        self._main_steps = _steps(graph, self._answers[:1])
        self._deployed_steps = _steps(graph, graph.outputs[:1])
        self._places: dict[str, tuple[nn.Module, str]] = {}
        learned, following = _learned(graph), _inputs(graph, FOLLOWING)
        for name, array in graph.constants.items():
            tensor = torch.from_numpy(np.array(array))
            if name in learned and tensor.is_floating_point():
                self._keep(name, nn.Parameter(tensor))
            else:
                self._keep(name, tensor, persistent=name in following)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return the logits; in training a tuple of them where the Graph has auxiliary classifiers."""
        if not self.training:
            return self._run(images, self._main_steps, self._answers[:1])[0]
        answers = self._run(images, self._every_step, self._answers)
        return answers if len(answers) > 1 else answers[0]

    def answer(self, images: Tensor) -> Tensor:
        """Return what the deployed network returns for the images, [batch, values], with its closing Softmax if any."""
        mode = self.training
        self.eval()
        try:
            with torch.no_grad():
                return self._run(images, self._deployed_steps, self.graph.outputs[:1])[0]
        finally:
            self.train(mode)

    def constant(self, name: str) -> Tensor:
        """Return the tensor that stands for one of the Graph's constants. Raises KeyError for another name."""
        module, attribute = self._places[name]
        tensor = getattr(module, attribute)
        assert isinstance(tensor, Tensor)
        return tensor

    def __deepcopy__(self, memo: dict[int, object]) -> "TrainingForm":
        """Return a form with its own tensors, for averages of weights."""
        copied = TrainingForm(self.graph)
        memo[id(self)] = copied
        for name in self._places:
            module, attribute = copied._places[name]
            mine = self.constant(name)
            if isinstance(mine, nn.Parameter):
                kept = nn.Parameter(mine.detach().clone(), requires_grad=mine.requires_grad)
                module.register_parameter(attribute, kept)
            else:
                setattr(module, attribute, mine.detach().clone())
        copied.train(self.training)
        return copied

    def _run(self, images: Tensor, steps: tuple[_Step, ...], wanted: tuple[str, ...]) -> tuple[Tensor, ...]:
        tensors: dict[str, Tensor] = {self.graph.inputs[0]: images}
        for step in steps:
            given = [None if name == "" else self._tensor(name, tensors) for name in step.node.inputs]
            made = step.run(given, self.training)
            tensors.update(zip(step.node.outputs, made if isinstance(made, tuple) else (made,), strict=True))
            for name in step.finished:
                del tensors[name]
        return tuple(tensors[name].flatten(1) for name in wanted)

    def _tensor(self, name: str, made: Mapping[str, Tensor]) -> Tensor:
        return made[name] if name in made else self.constant(name)

    def _keep(self, name: str, tensor: Tensor, persistent: bool = True) -> None:
        """Register a tensor so that `state_dict` calls it by the constant's name: each dot opens a module."""
        module: nn.Module = self
        *outer, attribute = name.split(".")
        for part in outer:
            inner = module._modules.get(part)
            if inner is None:
                if not part or hasattr(module, part):
                    break
                inner = nn.Module()
                module.add_module(part, inner)
            module = inner
        else:
            if attribute and not hasattr(module, attribute):
                self._register(name, module, attribute, tensor, persistent)
                return
        # A name that PyTorch cannot have (an empty part, or one of nn.Module's own): only the checkpoint sees another.
        attribute = "tensor:" + name.replace(".", ":")
        while hasattr(self, attribute):
            attribute += "_"
        self._register(name, self, attribute, tensor, persistent)

    def _register(self, name: str, module: nn.Module, attribute: str, tensor: Tensor, persistent: bool) -> None:
        if isinstance(tensor, nn.Parameter):
            module.register_parameter(attribute, tensor)
        else:
            module.register_buffer(attribute, tensor, persistent=persistent)
        self._places[name] = (module, attribute)


def training_form(graph: Graph) -> TrainingForm:
    """Return the training form of a Graph, with the Graph's weights. Raises NetworkError (see TrainingForm)."""
    return TrainingForm(graph)


def initialise(module: TrainingForm, network: str, seed: int) -> None:
    """Give a training form of a built-in network the weights that its paper starts from.

    They are drawn from (seed, name of the tensor). Raises InputError when there is no rule for the network.
    """
    with torch.no_grad():
        for name, array in initial_weights(network, module.graph, seed).items():
            module.constant(name).copy_(torch.from_numpy(array))


def deployed(module: TrainingForm, graph: Graph | None = None) -> Graph:
    """Return the Graph that answers as the module does once training has ended: its own, without auxiliary classifiers.

    `graph` may be the same network at another batch. Every number is the module's, bit for bit; batch normalisations
    stay nodes with their running statistics, which engines fold into the convolutions. Raises NetworkError when a
    constant of `graph` is not among the module's tensors, or has another shape.
    """
    target = main_graph(module.graph if graph is None else graph)
    constants: dict[str, np.ndarray] = {}
    for name, array in target.constants.items():
        if name not in module.graph.constants:
            raise NetworkError(f"{target.name}: expected the network that was trained, got {name!r}, which it lacks")
        learned = module.constant(name).detach().cpu().contiguous().numpy().astype(array.dtype)
        if learned.shape != array.shape:
            raise NetworkError(f"{target.name}: expected {name!r} of shape {learned.shape}, got {array.shape}")
        learned.flags.writeable = False
        constants[name] = learned
    made = replace(target, constants=MappingProxyType(constants))
    check(made)
    return made


def main_graph(graph: Graph) -> Graph:
    """Return the Graph without every output but the first, and without what only they needed."""
    if len(graph.outputs) == 1:
        return graph
    nodes = _needed(graph, graph.outputs[:1])
    used = {name for node in nodes for name in (*node.inputs, *node.outputs)} | set(graph.inputs)
    return Graph(
        graph.name,
        graph.inputs,
        graph.outputs[:1],
        nodes,
        MappingProxyType({name: array for name, array in graph.constants.items() if name in used}),
        MappingProxyType({name: value for name, value in graph.values.items() if name in used}),
    )


def _needed(graph: Graph, wanted: tuple[str, ...]) -> tuple[Node, ...]:
    """Return the nodes without which the wanted tensors cannot be made, in order."""
    needed, kept = set(wanted), []
    for node in reversed(graph.nodes):
        if needed & set(node.outputs):
            kept.append(node)
            needed |= set(node.inputs)
    return tuple(reversed(kept))


def _steps(graph: Graph, wanted: tuple[str, ...]) -> tuple[_Step, ...]:
    nodes = _needed(graph, wanted)
    last = {name: position for position, node in enumerate(nodes) for name in node.inputs}
    made = {name for node in nodes for name in node.outputs} | set(graph.inputs)
    drops = DROPOUT.get(graph.name, {})
    return tuple(
        _Step(
            node,
            runner(node, graph, drops.get(node.name, DROPOUT_OF_OTHERS)),
            tuple(name for name in made if last.get(name) == position and name not in wanted),
        )
        for position, node in enumerate(nodes)
    )


def _logits(graph: Graph, output: str) -> str:
    """Return the tensor whose Softmax the output is; the output itself when it is none."""
    node = graph.producer(output)
    while node is not None and node.operator in SHAPING:
        node = graph.producer(node.inputs[0])
    return node.inputs[0] if node is not None and node.operator in ("Softmax", "LogSoftmax") else output


def _inputs(graph: Graph, which: Mapping[str, tuple[int, ...]]) -> set[str]:
    """Return the constants that the nodes read at these places."""
    return {
        node.inputs[place]
        for node in graph.nodes
        for place in which.get(node.operator, ())
        if place < len(node.inputs) and node.inputs[place] in graph.constants
    }


def _learned(graph: Graph) -> set[str]:
    made_by = {name: node.operator for node in graph.nodes for name in node.outputs}
    biases = {
        name
        for node in graph.nodes
        if node.operator == "Add" and any(made_by.get(other) in BEFORE_BIAS for other in node.inputs)
        for name in node.inputs
        if name in graph.constants
    }
    return _inputs(graph, LEARNED) | biases
