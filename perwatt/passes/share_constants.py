"""Share constants: one where there were several that hold the same.

y = Add(x, a); z = Mul(y, b); a = b = [1, 2]    →    y = Add(x, a); z = Mul(y, a)
"""

from collections import defaultdict
from types import MappingProxyType

from perwatt.graph import Graph, Node


def share_constants(graph: Graph) -> Graph:
    """Return the Graph with one constant where there were several with the same bits."""
    groups: dict[tuple[tuple[int, ...], str], list[str]] = defaultdict(list)
    for name, array in graph.constants.items():
        if name not in graph.outputs:
            groups[array.shape, array.dtype.str].append(name)
    same: dict[str, str] = {}
    for names in groups.values():
        first: dict[bytes | int, str] = {}
        for name in names if len(names) > 1 else ():
            # Bits, not numbers: 0 and -0 are equal but not the same, and not-a-number is the same as itself.
            content = graph.constants[name].tobytes()
            kept = first.setdefault(hash(content), name)
            if kept != name and graph.constants[kept].tobytes() == content:
                same[name] = kept
    if not same:
        return graph
    nodes = tuple(
        Node(
            node.operator, node.name, tuple(same.get(name, name) for name in node.inputs), node.outputs, node.attributes
        )
        for node in graph.nodes
    )
    constants = {name: array for name, array in graph.constants.items() if name not in same}
    values = {name: value for name, value in graph.values.items() if name not in same}
    frozen = MappingProxyType(constants), MappingProxyType(values)
    return Graph(graph.name, graph.inputs, graph.outputs, nodes, *frozen)
