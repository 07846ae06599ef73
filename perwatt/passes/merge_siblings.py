"""Merge 1x1 convolutions side by side on one input into one that writes several outputs.

    a = FusedConv(x, v, c); b = FusedConv(x, w, d)    →    a, b = FusedConv(x, [v; w], [c; d]) splits (A, B)

The input is read once, and a wide product keeps the arithmetic units busier than several narrow ones; each output is
still a tensor of its own, written where its reader wants it.
"""

import numpy as np

from perwatt.graph import Attribute, Graph, Node, integer, integers, number
from perwatt.passes.draft import Draft, rewrite

SAME = ("strides", "pads", "dilations", "activation", "activation_alpha", "activation_beta")


def merge_siblings(graph: Graph) -> Graph:
    """Return the Graph with one FusedConv for all 1x1 convolutions alike (stride, pads, activation) on each tensor."""
    return rewrite(graph, _merge)


def _fits(draft: Draft, node: Node) -> bool:
    if node.operator != "FusedConv" or node.attributes["splits"] is not None or len(node.inputs) != 3:
        return False
    if len(draft.shape(node.inputs[0])) != 4 or not _keeps_zero(node):
        return False
    constants = all(draft.constant(name) is not None for name in node.inputs[1:])
    return constants and integer(node, "group") == 1 and set(integers(node, "kernel_shape")) == {1}


def _keeps_zero(node: Node) -> bool:
    """Return whether 0 stays 0, so that what fills an output up to whole vectors stays nothing."""
    name = node.attributes["activation"]
    if name == "Clip":
        return number(node, "activation_alpha") <= 0.0 <= number(node, "activation_beta")
    return name in (None, "Relu", "LeakyRelu", "Silu", "Tanh", "HardSwish", "Elu")


def _key(node: Node) -> tuple[Attribute, ...]:
    return tuple(node.attributes[name] for name in SAME)


def _merge(draft: Draft, node: Node) -> bool:
    if not _fits(draft, node):
        return False
    siblings = [
        other
        for other in draft.readers(node.inputs[0])
        if _fits(draft, other) and other.inputs[0] == node.inputs[0] and _key(other) == _key(node)
    ]
    if len(siblings) < 2:
        return False
    kept = [
        draft.keep(siblings[0].inputs[place], np.concatenate([_array(draft, other, place) for other in siblings]))
        for place in (1, 2)
    ]
    splits = tuple(draft.shape(other.outputs[0])[1] for other in siblings)
    draft.join(siblings, "FusedConv", (node.inputs[0], *kept), **{**siblings[0].attributes, "splits": splits})
    return True


def _array(draft: Draft, node: Node, place: int) -> np.ndarray:
    array = draft.constant(node.inputs[place])
    assert array is not None
    return array
