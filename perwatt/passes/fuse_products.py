"""Fuse: every Conv and Gemm with constant weights takes in what follows it.

y = Conv(x, w)                                     →    y = FusedConv(x, w, zeros)
y = Gemm(x, w, b) transB 1                         →    y = FusedGemm(x, w, b)
c = FusedConv(x, w, b); y = Add(c, r)              →    y = FusedConv(x, w, b, r)                   c not read elsewhere
c = FusedConv(x, w, b, r); y = Relu(c)             →    y = FusedConv(x, w, b, r) activation Relu   c not read elsewhere
"""

import numpy as np

from perwatt.graph import Attribute, Graph, Node
from perwatt.graph.fused_operators import ACTIVATIONS
from perwatt.passes.draft import Draft, rewrite
from perwatt.passes.normalise_gemm import is_normal

FUSED = ("FusedConv", "FusedGemm")


def to_fused(graph: Graph) -> Graph:
    """Return the Graph with FusedConv and FusedGemm, each with a bias, for Conv and Gemm with constant weights."""
    return rewrite(graph, _to_fused)


def fuse_followers(graph: Graph) -> Graph:
    """Return the Graph with residual sums and activations inside of FusedConv and FusedGemm."""
    return rewrite(graph, _take_residual, _take_activation)


def _to_fused(draft: Draft, node: Node) -> bool:
    if node.operator == "Gemm" and not is_normal(draft, node):
        return False
    if node.operator not in ("Conv", "Gemm") or any(draft.constant(name) is None for name in node.inputs[1:] if name):
        return False
    weights = node.inputs[1]
    if draft.value(weights).dtype.kind != "f":
        return False
    bias = node.inputs[2] if len(node.inputs) > 2 else ""
    if not bias:
        bias = draft.keep(f"{node.name}/bias", np.zeros(draft.shape(weights)[:1], draft.value(weights).dtype))
    window = dict(node.attributes) if node.operator == "Conv" else {}
    draft.replace(node, f"Fused{node.operator}", (node.inputs[0], weights, bias), **window)
    return True


def _open(draft: Draft, name: str) -> Node | None:
    """Return the fused node that makes a tensor, if it has no activation yet and nobody else reads its result."""
    node = draft.producer(name, *FUSED)
    if node is None or node.attributes["activation"] is not None or node.attributes.get("splits") is not None:
        return None
    return node if draft.sole(name) else None


def _take_residual(draft: Draft, node: Node) -> bool:
    if node.operator != "Add" or draft.shape(node.inputs[0]) != draft.shape(node.inputs[1]):
        return False
    chosen: Node | None = None
    residual = ""
    for product, other in ((node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])):
        found = _open(draft, product)
        if found is None or len(found.inputs) > 3 or draft.constant(other) is not None:
            continue
        # Of two, the one made later: the other's result exists by then, so one step reads it.
        if chosen is None or draft.follows(found, chosen):
            chosen, residual = found, other
    if chosen is None:
        return False
    draft.replace(node, chosen.operator, (*chosen.inputs, residual), **chosen.attributes)
    return True


def _take_activation(draft: Draft, node: Node) -> bool:
    product = _open(draft, node.inputs[0]) if node.operator in ACTIVATIONS else None
    if product is None:
        return False
    parameters = [node.attributes[name] for name in ACTIVATIONS[node.operator]]
    named = zip(("activation_alpha", "activation_beta"), parameters, strict=False)
    changed: dict[str, Attribute] = {"activation": node.operator, **dict(named)}
    draft.replace(node, product.operator, product.inputs, **{**product.attributes, **changed})
    return True
