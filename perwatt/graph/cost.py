"""Cost: what a node asks of a machine, counted from shapes alone: multiply-adds and bytes."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from perwatt.graph.checker import inputs_of
from perwatt.graph.graph import Graph, Node, Value
from perwatt.graph.operators import OPERATORS, is_foreign


@dataclass(frozen=True)
class Cost:
    """Multiply-adds and bytes; multiply-adds are None where they are not known (an operator outside the table).

    `parameter_bytes` are constants read, `read_bytes` everything else read, `written_bytes` what is made: each tensor
    once, as if no cache lay between. Free operators (Reshape and its like) count as if they copied.
    """

    multiply_adds: int | None
    parameter_bytes: int
    read_bytes: int
    written_bytes: int


def cost(graph: Graph, node: Node) -> Cost:
    """Return what one node of the Graph costs.

    One multiply-add is one product added to a sum, in convolutions and matrix products; padding counts as data.
    """
    row = None if is_foreign(node) else OPERATORS.get(node.operator)
    outputs = [graph.values[name] for name in node.outputs if name]
    count = None if row is None else row.multiply_adds(node, inputs_of(node, graph.values), outputs)
    read = {name for name in node.inputs if name}
    return Cost(
        count,
        _bytes(graph.values[name] for name in read if name in graph.constants),
        _bytes(graph.values[name] for name in read if name not in graph.constants),
        _bytes(outputs),
    )


def total_cost(graph: Graph) -> Cost:
    """Return the sum over all nodes; a constant that several nodes read is counted once among the parameters."""
    costs = [cost(graph, node) for node in graph.nodes]
    counts = [one.multiply_adds for one in costs if one.multiply_adds is not None]
    used = {name for node in graph.nodes for name in node.inputs if name in graph.constants}
    return Cost(
        sum(counts) if len(counts) == len(costs) else None,
        _bytes(graph.values[name] for name in used),
        sum(one.read_bytes for one in costs),
        sum(one.written_bytes for one in costs),
    )


def _bytes(values: Iterable[Value]) -> int:
    return sum(math.prod(value.shape) * value.dtype.itemsize for value in values)
