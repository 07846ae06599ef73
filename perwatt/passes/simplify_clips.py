"""Simplify limits: at most one Relu or Clip in a row, and none where the tensor keeps within it anyhow.

y = Min(Max(x, a), b)                       →    y = Clip(x) a..b        a, b constant everywhere
y = Clip(x) 0..inf                          →    y = Relu(x)
y = Clip(Relu(x)) -1..6                     →    y = Clip(x) 0..6
y = Relu(Sigmoid(x))                        →    y = Sigmoid(x)
"""

import math

from perwatt.graph import Graph, Node, number
from perwatt.passes.draft import Draft, rewrite

NEVER_NEGATIVE = ("Sigmoid", "HardSigmoid", "Softmax", "Exp", "Abs", "Sqrt", "Softplus")
KEEPS_SIGN = (
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "Concat",
    "Reshape",
    "Flatten",
    "Transpose",
)
DEPTH = 8  # how far back signs are followed


def simplify_clips(graph: Graph) -> Graph:
    """Return the Graph with every chain of limits as one Relu or Clip."""
    return rewrite(graph, _from_extremes, _chain, _needless)


def limits(node: Node | None) -> tuple[float, float] | None:
    """Return the least and the greatest value that a Relu or Clip lets through, None for any other node."""
    if node is None or node.operator not in ("Relu", "Clip"):
        return None
    low, high = (0.0, math.inf) if node.operator == "Relu" else (number(node, "min"), number(node, "max"))
    return (low, high) if low <= high else None


def never_negative(draft: Draft, name: str, depth: int = DEPTH) -> bool:
    """Return whether a tensor's elements are at least 0 (or not a number) whatever the network is fed."""
    node = draft.producer(name)
    if node is None or depth == 0:
        array = draft.constant(name)
        return array is not None and bool((array >= 0).all())
    within = limits(draft.producer(name, "Relu", "Clip"))
    if within is not None:
        return within[0] >= 0
    if draft.producer(name, *NEVER_NEGATIVE):
        return True
    kept = draft.producer(name, *KEEPS_SIGN) is not None
    return kept and all(never_negative(draft, source, depth - 1) for source in node.inputs)


def _from_extremes(draft: Draft, node: Node) -> bool:
    if node.operator not in ("Max", "Min") or len(node.inputs) != 2:
        return False
    for data, other in ((0, 1), (1, 0)):
        array = draft.constant(node.inputs[other])
        same = draft.shape(node.inputs[data]) == draft.shape(node.outputs[0])
        if array is not None and array.dtype.kind == "f" and same and array.size and (array == array.flat[0]).all():
            key = "min" if node.operator == "Max" else "max"
            draft.replace(node, "Clip", (node.inputs[data],), **{key: float(array.flat[0])})
            return True
    return False


def _chain(draft: Draft, node: Node) -> bool:
    within = limits(node)
    if within is None:
        return False
    source = node.inputs[0]
    before = draft.producer(source, "Relu", "Clip")
    inner = limits(before)
    if before is not None and inner is not None:
        source = before.inputs[0]
        within = tuple(min(max(bound, within[0]), within[1]) for bound in inner)  # type: ignore[assignment]
    wanted = "Relu" if within == (0.0, math.inf) else "Clip"
    if inner is None and wanted == node.operator:
        return False
    if wanted == "Relu":
        draft.replace(node, "Relu", (source,))
    else:
        draft.replace(node, "Clip", (source,), min=within[0], max=within[1])
    return True


def _needless(draft: Draft, node: Node) -> bool:
    if node.operator != "Relu" or not never_negative(draft, node.inputs[0]):
        return False
    return draft.forward(node.outputs[0], node.inputs[0])
