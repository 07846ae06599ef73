"""Normalise Softmax: the axis is the last one, where all axes behind it have size 1.

y = Softmax(x) axis 1; x [N, C, 1, 1]    →    y = Reshape(Softmax(Reshape(x) [N, C]) axis 1)
"""

from perwatt.graph import Graph, Node, integer
from perwatt.passes.draft import Draft, rewrite


def normalise_softmax(graph: Graph) -> Graph:
    """Return the Graph in which Softmax and LogSoftmax have no axes of size 1 behind theirs; a reshape is free."""
    return rewrite(graph, _last_axis)


def _last_axis(draft: Draft, node: Node) -> bool:
    if node.operator not in ("Softmax", "LogSoftmax"):
        return False
    axis, shape = integer(node, "axis"), draft.shape(node.inputs[0])
    if axis + 1 >= len(shape) or set(shape[axis + 1 :]) != {1}:
        return False
    narrow = draft.before(node, "Reshape", node.inputs, shape=shape[: axis + 1])
    made = draft.before(node, node.operator, (narrow,), axis=axis)
    draft.replace(node, "Reshape", (made,), shape=shape)
    return True
