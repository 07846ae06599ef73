"""Graph: a network in memory. Values, nodes, constants; immutable, printable, always with static shapes.

Operators keep ONNX's names and meaning. What ONNX passes as a constant input only to steer an operator (the
target of Reshape, the limits of Clip, the axes of Squeeze) is an attribute here, so that every remaining input is data.
`operators.py` lists each operator's attributes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

Attribute = int | float | str | tuple[int, ...] | tuple[float, ...] | tuple[str, ...] | np.ndarray | None


@dataclass(frozen=True)
class Value:
    """What is known of one tensor before the network runs: its name, shape and element type."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype


@dataclass(frozen=True)
class Node:
    """One operation. An empty string among `inputs` is an optional input that is left out."""

    operator: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Attribute] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True)
class Graph:
    """A network: nodes in an order in which they can run, the constants they read, and every tensor's shape.

    `inputs` are the names a caller feeds (constants are not among them), `outputs` those handed back. `values` holds a
    Value for every input, constant and node output.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    constants: Mapping[str, np.ndarray]
    values: Mapping[str, Value]

    def producer(self, name: str) -> Node | None:
        """Return the node that makes the tensor `name`, or None for an input or a constant."""
        return next((node for node in self.nodes if name in node.outputs), None)

    def consumers(self, name: str) -> tuple[Node, ...]:
        """Return the nodes that read the tensor `name`, in order."""
        return tuple(node for node in self.nodes if name in node.inputs)

    def lines(self) -> Iterator[str]:
        """Yield the Graph as text: one line for each input, node and output."""
        for name in self.inputs:
            yield f"input {_typed(self.values[name])}"
        for node in self.nodes:
            made = ", ".join(_typed(self.values[name]) for name in node.outputs if name)
            read = ", ".join(name or "-" for name in node.inputs)
            steering = "".join(f" {key}={_short(value)}" for key, value in sorted(node.attributes.items()))
            yield f"{made} = {node.operator}({read}){steering}"
        for name in self.outputs:
            yield f"output {_typed(self.values[name])}"

    def __str__(self) -> str:
        return "\n".join(self.lines())


def _typed(value: Value) -> str:
    return f"{value.name}:{value.dtype.name}[{'x'.join(map(str, value.shape))}]"


def _short(value: Attribute) -> str:
    if isinstance(value, np.ndarray):
        return f"array[{'x'.join(map(str, value.shape))}]"
    return str(value)
