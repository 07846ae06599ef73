"""Normalise pools: one over the whole map is a GlobalAveragePool or GlobalMaxPool, however it was written.

y = ReduceMean(x) axes 2, 3; keepdims 1                  →    y = GlobalAveragePool(x)
y = ReduceMean(x) axes 2, 3; keepdims 0                  →    y = Reshape(GlobalAveragePool(x))
y = AveragePool(x) of which one window covers the map    →    y = GlobalAveragePool(x)
"""

from perwatt.graph import Graph, Node, integer, integers
from perwatt.passes.draft import Draft, rewrite

REDUCTIONS = {"ReduceMean": "GlobalAveragePool", "ReduceMax": "GlobalMaxPool"}
WINDOWS = {"AveragePool": "GlobalAveragePool", "MaxPool": "GlobalMaxPool"}


def normalise_pools(graph: Graph) -> Graph:
    """Return the Graph in which no pool or reduction over images [N, C, H, W] covers exactly the whole map."""
    return rewrite(graph, _reduction, _window)


def _reduction(draft: Draft, node: Node) -> bool:
    wanted = REDUCTIONS.get(node.operator)
    image = len(draft.shape(node.inputs[0])) == 4 and draft.value(node.inputs[0]).dtype.kind == "f"
    if wanted is None or not image or integers(node, "axes") != (2, 3):
        return False
    if integer(node, "keepdims"):
        draft.replace(node, wanted, node.inputs)
    else:
        pooled = draft.before(node, wanted, node.inputs)
        draft.replace(node, "Reshape", (pooled,), shape=draft.shape(node.outputs[0]))
    return True


def _window(draft: Draft, node: Node) -> bool:
    wanted = WINDOWS.get(node.operator)
    if wanted is None or set(draft.shape(node.outputs[0])[2:]) != {1}:
        return False
    sizes, kernel, pads = draft.shape(node.inputs[0])[2:], integers(node, "kernel_shape"), integers(node, "pads")
    # The one window starts `begin` before the map; it must reach the map's end without leaving elements out.
    covers = all(length - begin >= size for length, begin, size in zip(kernel, pads, sizes, strict=False))
    dense = set(integers(node, "dilations")) == {1}
    counted = node.operator == "AveragePool" and integer(node, "count_include_pad") == 1 and any(pads)
    # A window that hangs over the end (ceil_mode) divides by what it covers; runtimes differ, so it is left alone.
    exact = integer(node, "ceil_mode") == 0 or kernel == sizes
    if not (covers and dense and exact) or counted:
        return False
    draft.replace(node, wanted, node.inputs)
    return True
