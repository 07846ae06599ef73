"""Fold constants: a node all of whose inputs are constants is computed now.

t = Transpose(w); y = MatMul(x, t)    →    y = MatMul(x, t')        t' a constant
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from perwatt.graph import Graph, Node, integer, integers, number, text
from perwatt.graph.shapes import element_type
from perwatt.passes.draft import Draft, rewrite

Arrays = list[np.ndarray]
# A result may be larger than what it is made from (a broadcast), but not by more than this: it ends up in the package.
LARGEST_GROWTH_BYTES = 16 * 2**20


def fold_constants(graph: Graph) -> Graph:
    """Return the Graph without nodes that read constants only, as far as NumPy can compute them."""
    return rewrite(graph, _fold)


def _fold(draft: Draft, node: Node) -> bool:
    arrays = [array for array in map(draft.constant, node.inputs) if array is not None]
    compute = COMPUTE.get(node.operator)
    if compute is None or len(arrays) != len(node.inputs) or not arrays or draft.outputs & set(node.outputs):
        return False
    values = [draft.value(name) for name in node.outputs]
    grown = sum(int(np.prod(value.shape)) * value.dtype.itemsize for value in values) - sum(a.nbytes for a in arrays)
    if grown > LARGEST_GROWTH_BYTES or any(np.issubdtype(array.dtype, np.integer) for array in arrays):
        return False
    with np.errstate(all="ignore"):  # a network may hold an infinity or a division by zero, and means it
        results = compute(node, arrays)
    for name, value, result in zip(node.outputs, values, results, strict=True):
        assert result.shape == value.shape, f"{node.operator} {node.name}: {result.shape}, expected {value.shape}"
        draft.forward(name, draft.keep(f"{name}/folded", result.astype(value.dtype, copy=False)))
    return True


def _unary(function: Callable[[np.ndarray], np.ndarray]) -> Callable[[Node, Arrays], Arrays]:
    return lambda node, arrays: [function(arrays[0])]


def _binary(function: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Callable[[Node, Arrays], Arrays]:
    def fold(node: Node, arrays: Arrays) -> Arrays:
        result = arrays[0]
        for array in arrays[1:]:
            result = function(result, array)
        return [result]

    return fold


def _reduce(function: Callable[..., np.ndarray], **options: type) -> Callable[[Node, Arrays], Arrays]:
    def fold(node: Node, arrays: Arrays) -> Arrays:
        keep = bool(integer(node, "keepdims"))
        return [np.asarray(function(arrays[0], axis=integers(node, "axes"), keepdims=keep, **options))]

    return fold


def _reshape(node: Node, arrays: Arrays) -> Arrays:
    return [arrays[0].reshape(integers(node, "shape"))]


def _flatten(node: Node, arrays: Arrays) -> Arrays:
    return [arrays[0].reshape(int(np.prod(arrays[0].shape[: integer(node, "axis")])), -1)]


def _slice(node: Node, arrays: Arrays) -> Arrays:
    window = [slice(None)] * arrays[0].ndim
    columns = (integers(node, name) for name in ("starts", "ends", "axes", "steps"))
    for start, end, axis, step in zip(*columns, strict=True):
        window[axis] = slice(start, None if step < 0 and end < 0 else end, step)
    return [arrays[0][tuple(window)]]


def _split(node: Node, arrays: Arrays) -> Arrays:
    return list(np.split(arrays[0], np.cumsum(integers(node, "split"))[:-1], integer(node, "axis")))


def _sigmoid(array: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-array.astype(np.float64))))


COMPUTE: Mapping[str, Callable[[Node, Arrays], Arrays]] = MappingProxyType(
    {
        "Identity": _unary(lambda x: x),
        "Dropout": _unary(lambda x: x),
        "Neg": _unary(np.negative),
        "Abs": _unary(np.abs),
        "Sqrt": _unary(np.sqrt),
        "Exp": _unary(np.exp),
        "Log": _unary(np.log),
        "Reciprocal": _unary(np.reciprocal),
        "Floor": _unary(np.floor),
        "Ceil": _unary(np.ceil),
        "Tanh": _unary(np.tanh),
        "Sigmoid": _unary(_sigmoid),
        "Relu": _unary(lambda x: np.maximum(x, np.zeros((), x.dtype))),
        "Clip": lambda node, arrays: [np.clip(arrays[0], number(node, "min"), number(node, "max"))],
        "Cast": lambda node, arrays: [arrays[0].astype(element_type(text(node, "to")))],
        "Add": _binary(np.add),
        "Sub": _binary(np.subtract),
        "Mul": _binary(np.multiply),
        "Div": _binary(np.divide),
        "Pow": _binary(np.power),
        "Sum": _binary(np.add),
        "Max": _binary(np.maximum),
        "Min": _binary(np.minimum),
        "MatMul": lambda node, arrays: [np.matmul(*(array.astype(np.float64) for array in arrays))],
        "ReduceMean": _reduce(np.mean, dtype=np.float64),
        "ReduceSum": _reduce(np.sum, dtype=np.float64),
        "ReduceMax": _reduce(np.max),
        "ReduceMin": _reduce(np.min),
        "Reshape": _reshape,
        "Squeeze": lambda node, arrays: [np.squeeze(arrays[0], integers(node, "axes"))],
        "Unsqueeze": lambda node, arrays: [np.expand_dims(arrays[0], integers(node, "axes"))],
        "Flatten": _flatten,
        "Transpose": lambda node, arrays: [arrays[0].transpose(integers(node, "perm"))],
        "Concat": lambda node, arrays: [np.concatenate(arrays, integer(node, "axis"))],
        "Slice": _slice,
        "Split": _split,
    }
)
