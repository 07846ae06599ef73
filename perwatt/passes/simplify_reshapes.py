"""Simplify what only changes the shape: one Reshape or Flatten in place of chains of Reshape, Flatten, Squeeze, ...

y = Squeeze(x) axes 2, 3; x [N, C, 1, 1]             →    y = Flatten(x) axis 1
y = Unsqueeze(x) axes 2, 3                           →    y = Reshape(x)
y = Reshape(x); z = Flatten(y)                       →    z = Reshape(x), or Flatten where it is one
y = Transpose(x) NCHW → NHWC; z = Transpose(y) back  →    z = x
y = Transpose(x) that moves axes of size 1 only      →    y = Reshape(x)
"""

import math

from perwatt.graph import Graph, Node, integer, integers
from perwatt.passes.draft import Draft, rewrite

SHAPE_ONLY = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


def simplify_reshapes(graph: Graph) -> Graph:
    """Return the Graph in which Squeeze and Unsqueeze are gone, Flatten has axis 1, and no reshape reads a reshape."""
    return rewrite(graph, _reshape, _transpose)


def _reshape(draft: Draft, node: Node) -> bool:
    if node.operator not in SHAPE_ONLY:
        return False
    source, shape = node.inputs[0], draft.shape(node.outputs[0])
    before = draft.producer(source, *SHAPE_ONLY)
    if before is not None:
        source = before.inputs[0]
    if draft.shape(source) == shape and draft.forward(node.outputs[0], source):
        return True
    wanted = _form(draft.shape(source), shape)
    if before is None and node.operator == wanted and (wanted == "Reshape" or integer(node, "axis") == 1):
        return False
    if wanted == "Flatten":
        draft.replace(node, "Flatten", (source,), axis=1)
    else:
        draft.replace(node, "Reshape", (source,), shape=shape)
    return True


def _form(before: tuple[int, ...], after: tuple[int, ...]) -> str:
    """Name the operator: Flatten where batch stays and everything else becomes one axis."""
    flat = len(before) > 2 and after == (before[0], math.prod(before[1:]))
    return "Flatten" if flat else "Reshape"


def _transpose(draft: Draft, node: Node) -> bool:
    if node.operator != "Transpose":
        return False
    source, perm = node.inputs[0], integers(node, "perm")
    before = draft.producer(source, "Transpose")
    if before is not None:
        first = integers(before, "perm")
        both = tuple(first[axis] for axis in perm)
        if both == tuple(range(len(both))) and draft.forward(node.outputs[0], before.inputs[0]):
            return True
        draft.replace(node, "Transpose", before.inputs, perm=both)
        return True
    moved = [axis for axis in perm if draft.shape(source)[axis] != 1]
    if moved == sorted(moved):
        draft.replace(node, "Reshape", (source,), shape=draft.shape(node.outputs[0]))
        return True
    return False
