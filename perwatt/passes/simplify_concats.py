"""Simplify concatenations, so that each tensor is written once, where its last concatenation wants it.

y = Concat(a, b); z = Concat(y, c)       →    z = Concat(a, b, c)       on one axis, y not read elsewhere
a, b = Split(x); y = Concat(c, a, b)     →    y = Concat(c, x)          on one axis, all parts in order
"""

from perwatt.graph import Graph, Node, integer
from perwatt.passes.draft import Draft, rewrite


def simplify_concats(graph: Graph) -> Graph:
    """Return the Graph without concatenations of concatenations or of a whole Split; one of one input is gone too."""
    return rewrite(graph, _flatten, _join_split, _single)


def _flatten(draft: Draft, node: Node) -> bool:
    if node.operator != "Concat":
        return False
    inputs: list[str] = []
    for name in node.inputs:
        inner = draft.producer(name, "Concat")
        merge = inner is not None and draft.sole(name) and integer(inner, "axis") == integer(node, "axis")
        inputs.extend(inner.inputs if merge and inner is not None else (name,))
    if len(inputs) == len(node.inputs):
        return False
    draft.replace(node, "Concat", inputs, axis=integer(node, "axis"))
    return True


def _join_split(draft: Draft, node: Node) -> bool:
    if node.operator != "Concat":
        return False
    for place, name in enumerate(node.inputs):
        split = draft.producer(name, "Split")
        if split is None or integer(split, "axis") != integer(node, "axis"):
            continue
        parts = len(split.outputs)
        if node.inputs[place : place + parts] == split.outputs:
            inputs = (*node.inputs[:place], split.inputs[0], *node.inputs[place + parts :])
            draft.replace(node, "Concat", inputs, axis=integer(node, "axis"))
            return True
    return False


def _single(draft: Draft, node: Node) -> bool:
    alone = node.operator == "Concat" and len(node.inputs) == 1
    return alone and draft.forward(node.outputs[0], node.inputs[0])
