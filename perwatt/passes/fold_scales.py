"""Fold what scales and shifts each channel (BatchNormalization, and arithmetic with constants) into convolutions.

    c = Conv(x, w, b); y = BatchNormalization(c)    →    y = Conv(x, w·scale, b·scale + shift)      c not read elsewhere
    c = Conv(x, w, b); y = Mul(c, scale)            →    y = Conv(x, w·scale, b·scale)              Add, Sub, Div too
    c = Mul(x, scale); y = Conv(c, w, b)            →    y = Conv(x, scale·w, b)                    c not read elsewhere
    c = Add(x, shift); y = Conv(c, w, b)            →    y = Conv(x, w, b + Σ w·shift)              no pads (they are 0)
    y = BatchNormalization(x), x [N, C, H, W]       →    y = Conv(x, scale, shift) depthwise 1x1    where nothing fits
    y = Add(Mul(x, scale), shift)                   →    y = Conv(x, scale, shift) depthwise 1x1

All the same for Gemm [outputs, inputs]. Sums are made in float64 and rounded once. Formula of BatchNormalization at
inference: (x - mean) / √(var + epsilon) · scale + B (ONNX operator specification).
"""

from dataclasses import dataclass

import numpy as np

from perwatt.graph import Graph, Node, integer, integers, number
from perwatt.passes.draft import Draft, rewrite
from perwatt.passes.normalise_gemm import is_normal

ARITHMETIC = ("Add", "Sub", "Mul", "Div")


@dataclass(frozen=True)
class Affine:
    """source · scale + shift, with float64 numbers for each channel."""

    source: str
    scale: np.ndarray
    shift: np.ndarray


def fold_scales(graph: Graph) -> Graph:
    """Return the Graph with the scales and shifts next to a Conv or Gemm of constant weights inside of these."""
    return rewrite(graph, _into_product_before, _into_product_behind)


def scales_to_convolutions(graph: Graph) -> Graph:
    """Return the Graph with each remaining BatchNormalization, and each run of scales and shifts, as one Conv.

    Over matrices [N, C] a BatchNormalization becomes Mul and Add.
    """
    return rewrite(graph, _into_product_before, _to_depthwise, _to_arithmetic)


def _affine(draft: Draft, node: Node) -> Affine | None:
    """Read a node as a scale and a shift of each channel; None when it is anything else."""
    if len(node.outputs) != 1 or draft.value(node.outputs[0]).dtype.kind != "f":
        return None
    if node.operator == "BatchNormalization":
        return _normalization(draft, node)
    if node.operator not in ARITHMETIC:
        return None
    for data, other in ((0, 1), (1, 0)):
        numbers = _per_channel(draft, node.inputs[other], node.inputs[data])
        if numbers is None or draft.shape(node.inputs[data]) != draft.shape(node.outputs[0]):
            continue
        ones, zeros = np.ones_like(numbers), np.zeros_like(numbers)
        if node.operator == "Add":
            return Affine(node.inputs[data], ones, numbers)
        if node.operator == "Sub":
            return Affine(node.inputs[data], ones if data == 0 else -ones, -numbers if data == 0 else numbers)
        if node.operator == "Mul":
            return Affine(node.inputs[data], numbers, zeros)
        if data == 0 and np.all(numbers != 0):
            return Affine(node.inputs[data], 1 / numbers, zeros)
    return None


def _normalization(draft: Draft, node: Node) -> Affine | None:
    arrays = [draft.constant(name) for name in node.inputs[1:]]
    scale, shift, mean, variance = (array.astype(np.float64) if array is not None else None for array in arrays)
    if scale is None or shift is None or mean is None or variance is None:
        return None
    with np.errstate(all="ignore"):  # a negative variance gives what it gave before: not a number
        factor = scale / np.sqrt(variance + number(node, "epsilon"))
        return Affine(node.inputs[0], factor, shift - mean * factor)


def _per_channel(draft: Draft, name: str, data: str) -> np.ndarray | None:
    """Return a constant as float64 numbers [C] if it has one for each channel of `data`, or one for all."""
    array, shape = draft.constant(name), draft.shape(data)
    if array is None or array.ndim > len(shape) or len(shape) < 2:
        return None
    aligned = (1,) * (len(shape) - array.ndim) + array.shape
    if any(size != 1 for axis, size in enumerate(aligned) if axis != 1) or aligned[1] not in (1, shape[1]):
        return None
    return np.broadcast_to(array.astype(np.float64).reshape(-1), shape[1:2])


def _is_product(draft: Draft, node: Node | None) -> bool:
    """Return whether a node is a Conv or Gemm with constant weights and bias."""
    if node is None:
        return False
    if node.operator == "Gemm":
        return is_normal(draft, node)
    constants = all(draft.constant(name) is not None for name in node.inputs[1:] if name)
    return node.operator == "Conv" and constants and draft.value(node.inputs[1]).dtype.kind == "f"


def _parameters(draft: Draft, node: Node) -> tuple[np.ndarray, np.ndarray]:
    """Return weights and bias of a product in float64."""
    weights = draft.constant(node.inputs[1])
    bias = draft.constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else None
    assert weights is not None
    return weights.astype(np.float64), np.zeros(weights.shape[0]) if bias is None else bias.astype(np.float64)


def _keep(draft: Draft, node: Node, weights: np.ndarray, bias: np.ndarray) -> tuple[str, str]:
    """Keep new weights and bias in the precision of the old ones; returns their names."""
    dtype = draft.value(node.inputs[1]).dtype
    named = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2] else f"{node.name}/bias"
    with np.errstate(over="ignore"):
        return draft.keep(node.inputs[1], weights.astype(dtype)), draft.keep(named, bias.astype(dtype))


def _into_product_before(draft: Draft, node: Node) -> bool:
    affine = _affine(draft, node)
    product = draft.producer(affine.source, "Conv", "Gemm") if affine is not None else None
    if affine is None or product is None or not _is_product(draft, product) or not draft.sole(affine.source):
        return False
    weights, bias = _parameters(draft, product)
    rows = affine.scale.reshape(-1, *(1,) * (weights.ndim - 1))
    kept = _keep(draft, product, weights * rows, bias * affine.scale + affine.shift)
    draft.replace(node, product.operator, (product.inputs[0], *kept), **product.attributes)
    return True


def _into_product_behind(draft: Draft, node: Node) -> bool:
    if not _is_product(draft, node) or not draft.sole(node.inputs[0]):
        return False
    maker = draft.producer(node.inputs[0], "BatchNormalization", *ARITHMETIC)
    affine = _affine(draft, maker) if maker is not None else None
    if affine is None or (node.operator == "Conv" and any(integers(node, "pads")) and np.any(affine.shift != 0)):
        return False
    weights, bias = _parameters(draft, node)
    group = integer(node, "group") if node.operator == "Conv" else 1
    outputs, inputs = weights.shape[:2]
    # Filter o reads the channels of group o // (outputs / group), one after the other.
    channels = (np.arange(outputs) // (outputs // group))[:, None] * inputs + np.arange(inputs)
    spatial = (1,) * (weights.ndim - 2)
    scale = affine.scale[channels].reshape(outputs, inputs, *spatial)
    shift = affine.shift[channels].reshape(outputs, inputs, *spatial)
    added = (weights * shift).sum(axis=tuple(range(1, weights.ndim)))
    kept = _keep(draft, node, weights * scale, bias + added)
    draft.replace(node, node.operator, (affine.source, *kept), **node.attributes)
    return True


def _to_depthwise(draft: Draft, node: Node) -> bool:
    affine = _affine(draft, node)
    if affine is None or len(draft.shape(affine.source)) != 4:
        return False
    if node.operator != "BatchNormalization":
        # One scale or one shift alone stays what it is; with another before it, a Conv saves a pass over the tensor.
        before = draft.producer(affine.source, *ARITHMETIC)
        inner = _affine(draft, before) if before is not None and draft.sole(affine.source) else None
        if inner is None:
            return False
        affine = Affine(inner.source, inner.scale * affine.scale, inner.shift * affine.scale + affine.shift)
    dtype = draft.value(affine.source).dtype
    channels = affine.scale.size
    weights = draft.keep(f"{node.name}/scale", affine.scale.reshape(channels, 1, 1, 1).astype(dtype))
    bias = draft.keep(f"{node.name}/shift", affine.shift.astype(dtype))
    draft.replace(node, "Conv", (affine.source, weights, bias), group=channels, kernel_shape=(1, 1))
    return True


def _to_arithmetic(draft: Draft, node: Node) -> bool:
    affine = _affine(draft, node) if node.operator == "BatchNormalization" else None
    if affine is None or len(draft.shape(affine.source)) != 2:
        return False
    dtype = draft.value(affine.source).dtype
    scale = draft.keep(f"{node.name}/scale", affine.scale.astype(dtype))
    shift = draft.keep(f"{node.name}/shift", affine.shift.astype(dtype))
    scaled = draft.before(node, "Mul", (affine.source, scale))
    draft.replace(node, "Add", (scaled, shift))
    return True
