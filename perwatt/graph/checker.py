"""The checker: whether a Graph keeps the rules that every room relies on."""

from collections.abc import Mapping

from perwatt.errors import InvalidGraph
from perwatt.graph.graph import Graph, Node, Value
from perwatt.graph.operators import OPERATORS, is_foreign


def check(graph: Graph) -> None:
    """Raise InvalidGraph unless the Graph is whole.

    That is: every name made once and before it is read, a Value for each, constants that match theirs, and for every
    node of the table exactly its attributes, in a form from which the recorded shapes follow.
    """
    known = set(graph.inputs) | set(graph.constants)
    _expect(len(set(graph.inputs)) == len(graph.inputs), graph, "inputs with different names", str(graph.inputs))
    both = set(graph.inputs) & set(graph.constants)
    _expect(not both, graph, "inputs that are no constants", str(sorted(both)))
    for name in sorted(known):
        _expect(name in graph.values, graph, f"a Value for {name!r}", "none")
    for name, value in graph.values.items():
        _expect(value.name == name, graph, f"the Value of {name!r} to bear its name", repr(value.name))
        _expect(all(size >= 0 for size in value.shape), graph, f"static sizes for {name!r}", str(value.shape))
    for name, array in graph.constants.items():
        value = graph.values[name]
        if value.shape != array.shape or value.dtype != array.dtype:  # spelling types out takes longer than checking
            _expect(False, graph, f"constant {name!r} as {value.dtype}{value.shape}", f"{array.dtype}{array.shape}")
    titles: set[str] = set()
    for node in graph.nodes:
        _expect(node.name not in titles, graph, "nodes with different names", repr(node.name))
        titles.add(node.name)
        for name in node.inputs:
            _expect(name == "" or name in known, graph, f"{name!r} made before {node.name!r} reads it", "it is not")
        for name in node.outputs:
            _expect(name not in known, graph, f"{name!r} made once", f"it is made again by {node.name!r}")
            _expect(name == "" or name in graph.values, graph, f"a Value for {name!r}", "none")
        known |= {name for name in node.outputs if name}
        if not is_foreign(node):
            _check_node(graph, node)
    _expect(bool(graph.outputs), graph, "at least one output", "none")
    for name in graph.outputs:
        _expect(name in known, graph, f"output {name!r} to be made", "it is not")
    stray = set(graph.values) - known
    _expect(not stray, graph, "Values of tensors that exist", str(sorted(stray)[:3]))


def _check_node(graph: Graph, node: Node) -> None:
    row = OPERATORS.get(node.operator)
    where = f"{node.operator} node {node.name!r}"
    if row is None:
        raise InvalidGraph(f"{where}: expected an operator of the table, got {node.operator!r}; see graph.OPERATORS")
    names = set(node.attributes)
    _expect(names == set(row.attributes), graph, f"{where} to have {sorted(row.attributes)}", str(sorted(names)))
    least, most = row.inputs
    _expect(least <= len(node.inputs) <= most, graph, f"{where} to have {least} inputs or more", str(node.inputs))
    _expect(all(node.inputs[:least]), graph, f"{where} to have {least} inputs that are not left out", str(node.inputs))
    known = inputs_of(node, graph.values)
    try:
        again = row.complete(dict(node.attributes), known)
        made = row.infer(node, known) if again == dict(node.attributes) else ()
    except InvalidGraph as error:
        if repr(node.name) in str(error):
            raise
        raise InvalidGraph(f"{where}: {error}") from error
    _expect(again == dict(node.attributes), graph, f"{where} with {again}", str(dict(node.attributes)))
    _expect(len(made) == len(node.outputs), graph, f"{where} to have {len(made)} outputs", str(node.outputs))
    for name, (shape, dtype) in zip(node.outputs, made, strict=True):
        value = graph.values[name]
        if value.shape != shape or value.dtype != dtype:
            _expect(False, graph, f"{name!r} of {where} as {dtype}{shape}", f"{value.dtype}{value.shape}")


def inputs_of(node: Node, values: Mapping[str, Value]) -> list[Value | None]:
    """Return the Value of each input, None for one that is left out."""
    return [values[name] if name else None for name in node.inputs]


def unsupported(graph: Graph) -> tuple[Node, ...]:
    """Return the nodes that the operator table cannot express: rivals may run them, perwatt's own engine cannot."""
    return tuple(node for node in graph.nodes if is_foreign(node))


def _expect(right: bool, graph: Graph, expected: str, got: str) -> None:
    if not right:
        fault = f"graph {graph.name!r}: expected {expected}, got {got}"
        raise InvalidGraph(f"{fault}; correct the pass, builder or file that made it")
