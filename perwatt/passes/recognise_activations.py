"""Recognise activations that exporters write as several operators.

s = Sigmoid(x); y = Mul(x, s)                              →    y = Silu(x)
c = Clip(Add(x, 3)) 0..6; y = Div(c, 6)                    →    y = HardSigmoid(x) 1/6, 0.5
h = HardSigmoid(x) 1/6, 0.5; y = Mul(x, h)                 →    y = HardSwish(x)
c = Clip(Add(x, 3)) 0..6; y = Div(Mul(x, c), 6)            →    y = HardSwish(x)
y = PRelu(x, slope)                                        →    y = LeakyRelu(x)       one slope everywhere
y = Sum(a, b, c)                                           →    y = Add(Add(a, b), c)
"""

import numpy as np

from perwatt.graph import Graph, Node, number
from perwatt.passes.draft import Draft, rewrite


def recognise_activations(graph: Graph) -> Graph:
    """Return the Graph with Silu, HardSigmoid, HardSwish and LeakyRelu for what means the same, and Add for Sum."""
    return rewrite(graph, _hard_sigmoid, _hard_swish_late, _gate, _one_slope, _sum)


def constant_everywhere(draft: Draft, name: str) -> float | None:
    """Return the number that a constant holds in each element, None for any other tensor."""
    array = draft.constant(name)
    if array is None or array.size == 0 or array.dtype.kind != "f" or not (array == array.flat[0]).all():
        return None
    return float(array.flat[0])


def _close(one: float | None, other: float) -> bool:
    """Constants such as 1/6 pass through float32, or float16, on their way here."""
    return one is not None and abs(one - other) <= 1e-3 * abs(other)


def _times_a_sixth(draft: Draft, node: Node) -> str | None:
    """Return what a node divides by 6."""
    if node.operator == "Div":
        return node.inputs[0] if _close(constant_everywhere(draft, node.inputs[1]), 6.0) else None
    if node.operator == "Mul":
        for data, other in ((0, 1), (1, 0)):
            if _close(constant_everywhere(draft, node.inputs[other]), 1 / 6):
                return node.inputs[data]
    return None


def _six_step(draft: Draft, name: str) -> str | None:
    """Return x where the tensor is Clip(x + 3) 0..6."""
    clip = draft.producer(name, "Clip")
    if clip is None or (number(clip, "min"), number(clip, "max")) != (0.0, 6.0):
        return None
    add = draft.producer(clip.inputs[0], "Add")
    for data, other in ((0, 1), (1, 0)) if add is not None else ():
        assert add is not None
        if constant_everywhere(draft, add.inputs[other]) == 3.0 and draft.shape(add.inputs[data]) == draft.shape(name):
            return add.inputs[data]
    return None


def _hard_sigmoid(draft: Draft, node: Node) -> bool:
    step = _times_a_sixth(draft, node)
    source = _six_step(draft, step) if step is not None else None
    if source is None or draft.shape(source) != draft.shape(node.outputs[0]):
        return False
    draft.replace(node, "HardSigmoid", (source,), alpha=1 / 6, beta=0.5)
    return True


def _hard_swish_late(draft: Draft, node: Node) -> bool:
    scaled = _times_a_sixth(draft, node)
    product = draft.producer(scaled, "Mul") if scaled is not None else None
    if product is None or draft.shape(node.outputs[0]) != draft.shape(product.outputs[0]):
        return False
    for data, other in ((0, 1), (1, 0)):
        if _six_step(draft, product.inputs[other]) == product.inputs[data]:
            draft.replace(node, "HardSwish", (product.inputs[data],))
            return True
    return False


def _gate(draft: Draft, node: Node) -> bool:
    if node.operator != "Mul":
        return False
    for data, other in ((0, 1), (1, 0)):
        gate = draft.producer(node.inputs[other], "Sigmoid", "HardSigmoid")
        if gate is None or gate.inputs[0] != node.inputs[data]:
            continue
        if gate.operator == "Sigmoid":
            draft.replace(node, "Silu", (node.inputs[data],))
            return True
        if _close(number(gate, "alpha"), 1 / 6) and number(gate, "beta") == 0.5:
            draft.replace(node, "HardSwish", (node.inputs[data],))
            return True
    return False


def _one_slope(draft: Draft, node: Node) -> bool:
    slope = constant_everywhere(draft, node.inputs[1]) if node.operator == "PRelu" else None
    if slope is None or not np.isfinite(slope):
        return False
    draft.replace(node, "LeakyRelu", (node.inputs[0],), alpha=slope)
    return True


def _sum(draft: Draft, node: Node) -> bool:
    if node.operator != "Sum" or len(node.inputs) < 2:
        return False
    total = node.inputs[0]
    for name in node.inputs[1:-1]:
        total = draft.before(node, "Add", (total, name))
    draft.replace(node, "Add", (total, node.inputs[-1]))
    return True
