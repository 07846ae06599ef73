"""Normalise matrix products with constant weights: Gemm with weights [outputs, inputs], a bias [outputs], nothing else.

y = MatMul(x, w); x [N, K]                          →    y = Gemm(x, wᵀ) transB 1
y = Gemm(x, w, c) alpha, beta, transA 1, transB 0   →    y = Gemm(Transpose(x), alpha·wᵀ, beta·c) transB 1
y = Gemm(x, w, c); c varies by row, or no constant  →    y = Add(Gemm(x, w), beta·c)
"""

import numpy as np

from perwatt.graph import Graph, Node, integer, number
from perwatt.passes.draft import Draft, rewrite


def normalise_gemm(graph: Graph) -> Graph:
    """Return the Graph in which each product of a matrix with constant weights is such a Gemm."""
    return rewrite(graph, _matmul, _gemm)


def is_normal(draft: Draft, node: Node) -> bool:
    """Return whether a node is a Gemm as this pass leaves it."""
    if node.operator != "Gemm" or draft.constant(node.inputs[1]) is None:
        return False
    bias = node.inputs[2] if len(node.inputs) > 2 else ""
    plain = (number(node, "alpha"), integer(node, "transA"), integer(node, "transB")) == (1.0, 0, 1)
    outputs = draft.shape(node.outputs[0])[1:]
    right = draft.constant(bias) is not None and draft.shape(bias) == outputs and number(node, "beta") == 1.0
    return plain and (not bias or right)


def _matmul(draft: Draft, node: Node) -> bool:
    if node.operator != "MatMul" or len(draft.shape(node.inputs[0])) != 2:
        return False
    weights = draft.constant(node.inputs[1])
    if weights is None or weights.ndim != 2 or weights.dtype.kind != "f" or draft.constant(node.inputs[0]) is not None:
        return False
    draft.replace(node, "Gemm", (node.inputs[0], draft.keep(node.inputs[1], weights.T)), transB=1)
    return True


def _gemm(draft: Draft, node: Node) -> bool:
    if node.operator != "Gemm" or is_normal(draft, node) or draft.constant(node.inputs[0]) is not None:
        return False
    weights = draft.constant(node.inputs[1])
    if weights is None or weights.dtype.kind != "f":
        return False
    data = node.inputs[0]
    if integer(node, "transA"):
        data = draft.before(node, "Transpose", (data,), perm=(1, 0))
    named = _weights(draft, node, weights)
    shift = node.inputs[2] if len(node.inputs) > 2 else ""
    beta = number(node, "beta")
    if not shift or beta == 0.0:
        draft.replace(node, "Gemm", (data, named), transB=1)
        return True
    array = draft.constant(shift)
    outputs = draft.shape(node.outputs[0])[1]
    if array is not None:
        array = (array.astype(np.float64) * beta).astype(array.dtype)
        if array.size == 1 or np.broadcast_shapes(array.shape, (1, outputs)) == (1, outputs):
            bias = draft.keep(shift, np.broadcast_to(array.reshape(-1), (outputs,)))
            draft.replace(node, "Gemm", (data, named, bias), transB=1)
            return True
        shift = draft.keep(shift, array)
    elif beta != 1.0:
        factor = draft.keep(f"{node.name}/beta", np.array(beta, draft.value(shift).dtype))
        shift = draft.before(node, "Mul", (shift, factor))
    product = draft.before(node, "Gemm", (data, named), transB=1)
    draft.replace(node, "Add", (product, shift))
    return True


def _weights(draft: Draft, node: Node, weights: np.ndarray) -> str:
    """Return the name of the weights as [outputs, inputs] with alpha multiplied in."""
    alpha = number(node, "alpha")
    turned = weights if integer(node, "transB") else weights.T
    if turned is weights and alpha == 1.0:
        return node.inputs[1]
    scaled = turned if alpha == 1.0 else (turned.astype(np.float64) * alpha).astype(weights.dtype)
    return draft.keep(node.inputs[1], scaled)
