"""Merge Pad into what reads it, where that gives the very same numbers.

y = Pad(x) zeros; z = Conv(y) pads p             →    z = Conv(x) pads p + pad
y = Pad(x) zeros; z = MaxPool(y), x ≥ 0          →    z = MaxPool(x) pads p + pad       a window holds a pixel of x
y = Pad(x) -inf; z = MaxPool(y)                  →    z = MaxPool(x) pads p + pad
y = Pad(x) zeros; z = AveragePool(y)             →    z = AveragePool(x) pads p + pad, count_include_pad 1
"""

import math

import numpy as np

from perwatt.graph import Attribute, Graph, Node, integer, integers, number, text
from perwatt.passes.draft import Draft, rewrite
from perwatt.passes.simplify_clips import never_negative


def merge_pads(graph: Graph) -> Graph:
    """Return the Graph in which convolutions and pools pad themselves; other readers of a Pad keep it."""
    return rewrite(graph, _merge)


def _merge(draft: Draft, node: Node) -> bool:
    pad = draft.producer(node.inputs[0], "Pad") if node.inputs else None
    if pad is None or node.operator not in ("Conv", "MaxPool", "AveragePool"):
        return False
    pads, value = integers(pad, "pads"), number(pad, "value")
    rank = len(pads) // 2
    around = pads[2:rank] + pads[rank + 2 :]
    elsewhere = pads[:2] + pads[rank : rank + 2]
    if text(pad, "mode") != "constant" or any(elsewhere) or min(pads) < 0:
        return False
    changed: dict[str, Attribute] = {}
    if node.operator != "Conv" and not _window_reaches_in(node, around):
        return False
    if node.operator == "MaxPool":
        if not _ignores(draft, pad.inputs[0], value):
            return False
    elif value != 0.0:
        return False
    elif node.operator == "AveragePool":
        # Where the pool pads by itself without counting it, no setting means "count these pads, not those".
        if any(integers(node, "pads")) and not integer(node, "count_include_pad"):
            return False
        changed["count_include_pad"] = 1
    changed["pads"] = tuple(own + more for own, more in zip(integers(node, "pads"), around, strict=True))
    draft.replace(node, node.operator, (pad.inputs[0], *node.inputs[1:]), **{**node.attributes, **changed})
    return True


def _window_reaches_in(node: Node, around: tuple[int, ...]) -> bool:
    """ONNX wants a pool's pads below its kernel; then each window holds at least one pixel of the tensor itself."""
    kernel, own = integers(node, "kernel_shape"), integers(node, "pads")
    within = all(mine + more < length for mine, more, length in zip(own, around, kernel * 2, strict=True))
    return within and integer(node, "ceil_mode") == 0 and set(integers(node, "dilations")) == {1}


def _ignores(draft: Draft, source: str, value: float) -> bool:
    """Return whether this value among pixels of `source` never changes their maximum, as a pool's own pads never do."""
    kind = draft.value(source).dtype
    lowest = float(np.finfo(kind).min) if kind.kind == "f" else -math.inf
    return value <= lowest or (value == 0.0 and never_negative(draft, source))
