"""Remove nodes that hand on what they get.

y = Dropout(x); z = Relu(y)              →    z = Relu(x)
y = Mul(x, 1); z = Relu(y)               →    z = Relu(x)
y = AveragePool(x) kernel 1; z = Relu(y) →    z = Relu(x)
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from perwatt.graph import Graph, Node, integers, number
from perwatt.passes.draft import Draft, rewrite


def remove_no_ops(graph: Graph) -> Graph:
    """Return the Graph without them; one that stands between the caller's own names stays."""
    return rewrite(graph, _remove)


def _remove(draft: Draft, node: Node) -> bool:
    if len(node.outputs) != 1:
        return False
    source = NO_OPS.get(node.operator, _never)(draft, node)
    return source is not None and draft.forward(node.outputs[0], source)


Judge = Callable[[Draft, Node], str | None]  # the tensor that the node hands on, None when it does something


def _always(draft: Draft, node: Node) -> str | None:
    return node.inputs[0]


def _never(draft: Draft, node: Node) -> str | None:
    return None


def _same_shape(draft: Draft, node: Node) -> str | None:
    """These change the shape or the element type only; `forward` compares both."""
    return node.inputs[0]


def _one_input(draft: Draft, node: Node) -> str | None:
    return node.inputs[0] if len(node.inputs) == 1 else None


def _in_order(draft: Draft, node: Node) -> str | None:
    moved = [axis for axis in integers(node, "perm") if draft.shape(node.inputs[0])[axis] != 1]
    return node.inputs[0] if moved == sorted(moved) else None


def _no_pads(draft: Draft, node: Node) -> str | None:
    return node.inputs[0] if not any(integers(node, "pads")) else None


def _forward_slice(draft: Draft, node: Node) -> str | None:
    steps = zip(integers(node, "axes"), integers(node, "steps"), strict=True)
    return node.inputs[0] if all(step == 1 or draft.shape(node.inputs[0])[axis] == 1 for axis, step in steps) else None


def _resize(draft: Draft, node: Node) -> str | None:
    """Every way of sampling hits each pixel itself at scale 1, unless a crop is sampled."""
    plain = node.attributes["coordinate_transformation_mode"] != "tf_crop_and_resize"
    exact = node.attributes["scales"] == (1.0,) * len(draft.shape(node.inputs[0]))
    return node.inputs[0] if plain and exact else None


def _pool(draft: Draft, node: Node) -> str | None:
    """A window of one pixel; strides show in the shape, which `forward` compares."""
    return node.inputs[0] if set(integers(node, "kernel_shape")) == {1} and not any(integers(node, "pads")) else None


def _global_pool(draft: Draft, node: Node) -> str | None:
    return node.inputs[0] if set(draft.shape(node.inputs[0])[2:]) == {1} else None


def _reduce(draft: Draft, node: Node) -> str | None:
    return node.inputs[0] if all(draft.shape(node.inputs[0])[axis] == 1 for axis in integers(node, "axes")) else None


def _clip(draft: Draft, node: Node) -> str | None:
    return node.inputs[0] if (number(node, "min"), number(node, "max")) == (-np.inf, np.inf) else None


def _leaky(draft: Draft, node: Node) -> str | None:
    return node.inputs[0] if number(node, "alpha") == 1 else None


def _neutral(constant: float, commutes: bool) -> Judge:
    """Judge arithmetic with a constant that is this number everywhere."""

    def judge(draft: Draft, node: Node) -> str | None:
        for data, other in ((0, 1), (1, 0))[: 2 if commutes else 1]:
            array = draft.constant(node.inputs[other])
            if array is not None and bool(np.all(array == constant)):
                return node.inputs[data]
        return None

    return judge


NO_OPS: Mapping[str, Judge] = MappingProxyType(
    {
        "Identity": _always,
        "Dropout": _always,
        "Cast": _same_shape,
        "Reshape": _same_shape,
        "Flatten": _same_shape,
        "Squeeze": _same_shape,
        "Unsqueeze": _same_shape,
        "Transpose": _in_order,
        "Concat": _one_input,
        "Split": _always,
        "Sum": _one_input,
        "Mean": _one_input,
        "Max": _one_input,
        "Min": _one_input,
        "Pad": _no_pads,
        "Slice": _forward_slice,
        "Resize": _resize,
        "MaxPool": _pool,
        "AveragePool": _pool,
        "GlobalAveragePool": _global_pool,
        "GlobalMaxPool": _global_pool,
        "ReduceMean": _reduce,
        "ReduceSum": _reduce,
        "ReduceMax": _reduce,
        "ReduceMin": _reduce,
        "Clip": _clip,
        "LeakyRelu": _leaky,
        "Add": _neutral(0, True),
        "Sub": _neutral(0, False),
        "Mul": _neutral(1, True),
        "Div": _neutral(1, False),
        "Pow": _neutral(1, False),
    }
)
