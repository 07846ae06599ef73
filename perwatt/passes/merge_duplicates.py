"""Merge nodes that compute the same from the same.

a = Relu(x); b = Relu(x); y = Add(a, b)    →    a = Relu(x); y = Add(a, a)
"""

import numpy as np

from perwatt.graph import Attribute, Graph, Node, is_foreign
from perwatt.passes.draft import Draft, rewrite


def merge_duplicates(graph: Graph) -> Graph:
    """Return the Graph with one node where there were several alike.

    Nodes outside the operator table stay: they may draw random numbers.
    """
    return rewrite(graph, _merge)


def _merge(draft: Draft, node: Node) -> bool:
    for other in draft.readers(node.inputs[0]) if node.inputs else ():
        if not draft.follows(node, other):
            return False
        if is_foreign(other) or (other.operator, other.inputs) != (node.operator, node.inputs):
            continue
        pairs = list(zip(node.outputs, other.outputs, strict=False))
        if _alike(node, other) and all(draft.can_forward(old, new) for old, new in pairs):
            for old, new in pairs:
                draft.forward(old, new)
            return True
    return False


def _alike(node: Node, other: Node) -> bool:
    if node.attributes.keys() != other.attributes.keys() or len(node.outputs) != len(other.outputs):
        return False
    return all(_equal(value, other.attributes[key]) for key, value in node.attributes.items())


def _equal(one: Attribute, other: Attribute) -> bool:
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return one is other
    return type(one) is type(other) and one == other
