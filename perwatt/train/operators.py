"""The operator table in PyTorch: for each operator a function from tensors to a tensor, as training needs it.

Meaning is that of graph/operators.py; the batch may differ from the one the Graph was made with, so nothing here looks
at axis 0 of a recorded shape except to refuse what would mix images.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional

from perwatt.errors import NetworkError
from perwatt.graph import Graph, Node, integer, integers, number, text

# Tensors in (None where an optional one is left out), and whether the network is training; tensors out.
Run = Callable[[Sequence[Tensor | None], bool], Tensor | tuple[Tensor, ...]]
# What a running statistic keeps of its past is 1 - MOMENTUM at each step.
MOMENTUM = 0.1


def runner(node: Node, graph: Graph, dropout: float) -> Run:
    """Return what runs one node; `dropout` is the part of the elements that a Dropout leaves out in training.

    Raises NetworkError for an operator that cannot be trained here, or that mixes the images of a batch.
    """
    make = RUNNERS.get(node.operator)
    if make is None:
        raise NetworkError(
            f"{graph.name}: expected operators that can be trained ({', '.join(sorted(RUNNERS))}), got {node.operator} "
            f"at node {node.name!r}; train another network"
        )
    return _dropout(dropout) if node.operator == "Dropout" else make(node, graph)


def _dropout(part: float) -> Run:
    return lambda given, training: functional.dropout(_first(given), part, training)


def _first(given: Sequence[Tensor | None]) -> Tensor:
    assert given[0] is not None
    return given[0]


def _wide(data: Tensor) -> Tensor:
    """Return halves as FP32: squares and sums of activations leave the range of FP16 soon."""
    return data.float() if data.dtype in (torch.float16, torch.bfloat16) else data


def _all(given: Sequence[Tensor | None]) -> list[Tensor]:
    return [tensor for tensor in given if tensor is not None]


def _plain(function: Callable[[Tensor], Tensor]) -> Callable[[Node, Graph], Run]:
    return lambda node, graph: lambda given, training: function(_first(given))


def _both(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Node, Graph], Run]:
    return lambda node, graph: lambda given, training: function(*_all(given))


def _fold(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Node, Graph], Run]:
    def run(given: Sequence[Tensor | None], training: bool) -> Tensor:
        parts = _all(given)
        total = parts[0]
        for part in parts[1:]:
            total = function(total, part)
        return total

    return lambda node, graph: run


def _padding(node: Node, graph: Graph) -> tuple[tuple[int, int], list[int] | None]:
    """Return padding that PyTorch's windows take, and where it takes none the same for functional.pad.

    Raises NetworkError unless the window moves over two axes.
    """
    pads = integers(node, "pads")
    if len(pads) != 4:
        raise NetworkError(f"{graph.name}: expected windows over two axes, got {len(pads) // 2} at node {node.name!r}")
    top, left, bottom, right = pads
    if (top, left) == (bottom, right):
        return (top, left), None
    return (0, 0), [left, right, top, bottom]


def _conv(node: Node, graph: Graph) -> Run:
    padding, before = _padding(node, graph)
    strides, dilations, group = integers(node, "strides"), integers(node, "dilations"), integer(node, "group")

    def run(given: Sequence[Tensor | None], training: bool) -> Tensor:
        data, weights, bias = (*given, None)[:3]
        assert data is not None
        assert weights is not None
        if before is not None:
            data = functional.pad(data, before)
        return functional.conv2d(data, weights, bias, strides, padding, dilations, group)

    return run


def _gemm(node: Node, graph: Graph) -> Run:
    alpha, beta = number(node, "alpha"), number(node, "beta")
    left, right = integer(node, "transA"), integer(node, "transB")

    def run(given: Sequence[Tensor | None], training: bool) -> Tensor:
        one, other, bias = (*given, None)[:3]
        assert one is not None
        assert other is not None
        one = one.t() if left else one
        if right and alpha == 1.0 and (bias is None or (beta == 1.0 and bias.dim() == 1)):
            return functional.linear(one, other, bias)
        product = alpha * (one @ (other.t() if right else other))
        return product if bias is None else product + beta * bias

    return run


@dataclass(frozen=True)
class _Pool:
    """A pool as one over an image that is padded beforehand: PyTorch knows neither pads that differ nor wide ones, and
    lets a last window in ceil mode begin elsewhere when the padding is not its own.

    `around` is what is padded (left, right, top, bottom), `over` what hangs over the padded end (bottom, right), `made`
    the size of the result.
    """

    around: tuple[int, int, int, int]
    over: tuple[int, int]
    made: tuple[int, ...]

    def padded(self, data: Tensor, value: float) -> Tensor:
        left, right, top, bottom = self.around
        return functional.pad(data, [left, right + self.over[1], top, bottom + self.over[0]], value=value)

    def cut(self, pooled: Tensor) -> Tensor:
        return pooled[..., : self.made[0], : self.made[1]]


def _pool(node: Node, graph: Graph) -> _Pool:
    _padding(node, graph)
    top, left, bottom, right = integers(node, "pads")
    height, width = graph.values[node.inputs[0]].shape[2:]
    made = graph.values[node.outputs[0]].shape[2:]
    reach = [
        (count - 1) * stride + dilation * (size - 1) + 1
        for count, stride, dilation, size in zip(
            made,
            *(integers(node, key) for key in ("strides", "dilations", "kernel_shape")),
            strict=True,
        )
    ]
    over = max(0, reach[0] - (height + top + bottom)), max(0, reach[1] - (width + left + right))
    return _Pool((left, right, top, bottom), over, made)


def _max_pool(node: Node, graph: Graph) -> Run:
    kernel, strides, dilations = integers(node, "kernel_shape"), integers(node, "strides"), integers(node, "dilations")
    padding, unequal = _padding(node, graph)
    if unequal is None and all(2 * pad <= size for pad, size in zip(padding, kernel, strict=True)):
        ceil = bool(integer(node, "ceil_mode"))
        return lambda given, training: functional.max_pool2d(_first(given), kernel, strides, padding, dilations, ceil)
    pool = _pool(node, graph)

    def run(given: Sequence[Tensor | None], training: bool) -> Tensor:
        data = pool.padded(_first(given), -math.inf)
        return pool.cut(functional.max_pool2d(data, kernel, strides, 0, dilations))

    return run


def _average_pool(node: Node, graph: Graph) -> Run:
    """Averages are sums over windows divided by how many elements of the image (and its padding) each window holds."""
    kernel, strides = integers(node, "kernel_shape"), integers(node, "strides")
    if set(integers(node, "dilations")) != {1}:
        raise NetworkError(f"{graph.name}: expected average pooling without dilation, got one at node {node.name!r}")
    pool = _pool(node, graph)
    if not any((*pool.around, *pool.over)):
        return lambda given, training: functional.avg_pool2d(_first(given), kernel, strides)
    left, right, top, bottom = pool.around
    ones = torch.ones((1, 1, *graph.values[node.inputs[0]].shape[2:]), dtype=torch.float64)
    counted = functional.pad(ones, [left, right, top, bottom], value=float(integer(node, "count_include_pad")))
    # What hangs over the padded end in ceil mode counts for nothing.
    whole = functional.pad(counted, [0, pool.over[1], 0, pool.over[0]])
    counts = pool.cut(functional.avg_pool2d(whole, kernel, strides, divisor_override=1))

    def run(given: Sequence[Tensor | None], training: bool) -> Tensor:
        sums = functional.avg_pool2d(pool.padded(_wide(_first(given)), 0.0), kernel, strides, divisor_override=1)
        return pool.cut(sums) / counts.to(sums)

    return run


def _lrn(node: Node, graph: Graph) -> Run:
    size = integer(node, "size")
    alpha, beta, bias = number(node, "alpha"), number(node, "beta"), number(node, "bias")
    # ONNX: (size - 1) // 2 channels before, the rest behind.
    before = (size - 1) // 2

    def run(given: Sequence[Tensor | None], training: bool) -> Tensor:
        data = _wide(_first(given))
        squares = functional.pad(data * data, [0, 0, 0, 0, before, size - 1 - before])
        channels = data.shape[1]
        total = squares[:, :channels]
        for offset in range(1, size):
            total = total + squares[:, offset : offset + channels]
        return data * (bias + (alpha / size) * total) ** -beta

    return run


def _batch_normalization(node: Node, graph: Graph) -> Run:
    epsilon = number(node, "epsilon")

    def run(given: Sequence[Tensor | None], training: bool) -> Tensor:
        data, scale, shift, mean, variance = _all(given)
        return functional.batch_norm(data, mean, variance, scale, shift, training, MOMENTUM, epsilon)

    return run


def _clip(node: Node, graph: Graph) -> Run:
    low, high = number(node, "min"), number(node, "max")
    return lambda given, training: _first(given).clamp(low, high)


def _prelu(node: Node, graph: Graph) -> Run:
    def run(given: Sequence[Tensor | None], training: bool) -> Tensor:
        data, slope = _all(given)
        return torch.where(data >= 0, data, data * slope)

    return run


def _reduce(function: Callable[..., Tensor]) -> Callable[[Node, Graph], Run]:
    def make(node: Node, graph: Graph) -> Run:
        axes, keep = integers(node, "axes"), bool(integer(node, "keepdims"))
        rank = len(graph.values[node.inputs[0]].shape)
        axes = tuple(axis % rank for axis in axes)
        if 0 in axes:
            raise _mixes(node, graph)
        if not axes:
            return lambda given, training: _first(given)
        return lambda given, training: function(_first(given), dim=axes, keepdim=keep)

    return make


def _flatten(node: Node, graph: Graph) -> Run:
    axis = integer(node, "axis")
    if axis % len(graph.values[node.inputs[0]].shape) != 1:
        raise _mixes(node, graph)
    return lambda given, training: _first(given).flatten(1)


def _reshape(node: Node, graph: Graph) -> Run:
    shape = integers(node, "shape")
    if not shape or shape[0] != graph.values[node.inputs[0]].shape[0]:
        raise _mixes(node, graph)

    def run(given: Sequence[Tensor | None], training: bool) -> Tensor:
        data = _first(given)
        return data.reshape(data.shape[0], *shape[1:])

    return run


def _squeeze(node: Node, graph: Graph) -> Run:
    axes = integers(node, "axes")
    if 0 in axes:
        raise _mixes(node, graph)
    return lambda given, training: _first(given).squeeze(axes)


def _unsqueeze(node: Node, graph: Graph) -> Run:
    axes = sorted(integers(node, "axes"))
    if 0 in axes:
        raise _mixes(node, graph)

    def run(given: Sequence[Tensor | None], training: bool) -> Tensor:
        data = _first(given)
        for axis in axes:
            data = data.unsqueeze(axis)
        return data

    return run


def _pad(node: Node, graph: Graph) -> Run:
    pads, mode, value = integers(node, "pads"), text(node, "mode"), number(node, "value")
    rank = len(pads) // 2
    if pads[0] or pads[rank]:
        raise _mixes(node, graph)
    # PyTorch counts from the last axis: begin, end of each.
    order = [pads[axis + side * rank] for axis in reversed(range(rank)) for side in (0, 1)]
    if mode == "constant":
        return lambda given, training: functional.pad(_first(given), order, value=value)
    if any(order[4:]):
        raise NetworkError(f"{graph.name}: expected {mode} padding over two axes, got more at node {node.name!r}")
    name = {"edge": "replicate", "reflect": "reflect", "wrap": "circular"}[mode]
    return lambda given, training: functional.pad(_first(given), order[:4], mode=name)


def _slice(node: Node, graph: Graph) -> Run:
    parts = list(zip(*(integers(node, key) for key in ("starts", "ends", "axes", "steps")), strict=True))
    rank = len(graph.values[node.inputs[0]].shape)
    if any(step < 1 for *_, step in parts):
        raise NetworkError(f"{graph.name}: expected slices that go forward, got a step below 1 at node {node.name!r}")
    if any(axis % rank == 0 for _, _, axis, _ in parts):
        raise _mixes(node, graph)

    def run(given: Sequence[Tensor | None], training: bool) -> Tensor:
        data = _first(given)
        where = [slice(None)] * rank
        for start, end, axis, step in parts:
            where[axis % rank] = slice(start, end, step)
        return data[tuple(where)]

    return run


def _split(node: Node, graph: Graph) -> Run:
    axis, sizes = integer(node, "axis"), integers(node, "split")
    if axis % len(graph.values[node.inputs[0]].shape) == 0:
        raise _mixes(node, graph)

    def run(given: Sequence[Tensor | None], training: bool) -> Tensor | tuple[Tensor, ...]:
        parts = torch.split(_first(given), list(sizes), axis)
        return parts if len(parts) > 1 else parts[0]

    return run


def _concat(node: Node, graph: Graph) -> Run:
    axis = integer(node, "axis")
    if axis % len(graph.values[node.outputs[0]].shape) == 0:
        raise _mixes(node, graph)
    return lambda given, training: torch.cat(_all(given), axis)


def _softmax(function: Callable[[Tensor, int], Tensor]) -> Callable[[Node, Graph], Run]:
    def make(node: Node, graph: Graph) -> Run:
        axis = integer(node, "axis")
        if axis % len(graph.values[node.inputs[0]].shape) == 0:
            raise _mixes(node, graph)
        return lambda given, training: function(_first(given), axis)

    return make


def _transpose(node: Node, graph: Graph) -> Run:
    order = integers(node, "perm")
    if order[0] != 0:
        raise _mixes(node, graph)
    return lambda given, training: _first(given).permute(order)


def _parametric(function: Callable[..., Tensor], *names: str) -> Callable[[Node, Graph], Run]:
    def make(node: Node, graph: Graph) -> Run:
        values = [number(node, name) for name in names]
        return lambda given, training: function(_first(given), *values)

    return make


def _hard_sigmoid(data: Tensor, alpha: float, beta: float) -> Tensor:
    return (alpha * data + beta).clamp(0.0, 1.0)


def _selu(data: Tensor, alpha: float, gamma: float) -> Tensor:
    return gamma * functional.elu(data, alpha)


def _gelu(node: Node, graph: Graph) -> Run:
    how = text(node, "approximate")
    return lambda given, training: functional.gelu(_first(given), approximate=how)


def _mean(node: Node, graph: Graph) -> Run:
    return lambda given, training: sum(_all(given)[1:], _first(given)) / len(_all(given))


def _mixes(node: Node, graph: Graph) -> NetworkError:
    return NetworkError(
        f"{graph.name}: expected images that do not touch each other, so that they can be trained in any batch, got "
        f"{node.operator} {node.name!r} over the batch axis; train another network"
    )


RUNNERS: Mapping[str, Callable[[Node, Graph], Run]] = MappingProxyType(
    {
        "Conv": _conv,
        "Gemm": _gemm,
        "MatMul": _both(torch.matmul),
        "MaxPool": _max_pool,
        "AveragePool": _average_pool,
        "GlobalAveragePool": _plain(lambda data: functional.adaptive_avg_pool2d(data, 1)),
        "GlobalMaxPool": _plain(lambda data: functional.adaptive_max_pool2d(data, 1)),
        "LRN": _lrn,
        "BatchNormalization": _batch_normalization,
        "Softmax": _softmax(torch.softmax),
        "LogSoftmax": _softmax(torch.log_softmax),
        "Identity": _plain(lambda data: data),
        "Dropout": _plain(lambda data: data),
        "Relu": _plain(torch.relu),
        "Sigmoid": _plain(torch.sigmoid),
        "HardSwish": _plain(functional.hardswish),
        "Tanh": _plain(torch.tanh),
        "Softplus": _plain(functional.softplus),
        "Softsign": _plain(functional.softsign),
        "Mish": _plain(functional.mish),
        "Silu": _plain(functional.silu),
        "Exp": _plain(torch.exp),
        "Log": _plain(torch.log),
        "Sqrt": _plain(torch.sqrt),
        "Reciprocal": _plain(torch.reciprocal),
        "Erf": _plain(torch.erf),
        "Neg": _plain(torch.neg),
        "Abs": _plain(torch.abs),
        "Clip": _clip,
        "HardSigmoid": _parametric(_hard_sigmoid, "alpha", "beta"),
        "LeakyRelu": _parametric(functional.leaky_relu, "alpha"),
        "Elu": _parametric(functional.elu, "alpha"),
        "Selu": _parametric(_selu, "alpha", "gamma"),
        "Gelu": _gelu,
        "PRelu": _prelu,
        "Add": _both(torch.add),
        "Sub": _both(torch.sub),
        "Mul": _both(torch.mul),
        "Div": _both(torch.div),
        "Pow": _both(torch.pow),
        "Sum": _fold(torch.add),
        "Max": _fold(torch.maximum),
        "Min": _fold(torch.minimum),
        "Mean": _mean,
        "ReduceMean": _reduce(torch.mean),
        "ReduceSum": _reduce(torch.sum),
        "ReduceMax": _reduce(torch.amax),
        "ReduceMin": _reduce(torch.amin),
        "Concat": _concat,
        "Flatten": _flatten,
        "Reshape": _reshape,
        "Transpose": _transpose,
        "Squeeze": _squeeze,
        "Unsqueeze": _unsqueeze,
        "Pad": _pad,
        "Slice": _slice,
        "Split": _split,
    }
)
