"""A Graph as a PyTorch module: one call of torch per node, weights as buffers, so that torch can optimise it."""

import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from perwatt.errors import EngineRefused
from perwatt.graph import Graph, Node, integer, integers, number, text

Call = Callable[..., Tensor | tuple[Tensor, ...]]
Maker = Callable[[Graph, Node], Call]


class GraphModule(torch.nn.Module):  # type: ignore[misc]  # torch is not type-checked here
    """Takes images of the graph's input shape, returns the tensor `output`.

    Raises EngineRefused, when it is made, for an operator or a use of one that is not translated.
    """

    def __init__(self, graph: Graph, output: str) -> None:
        super().__init__()
        self.source, self.output = graph.inputs[0], output
        used = {name for node in graph.nodes for name in node.inputs if name in graph.constants}
        self.names = {name: f"constant_{index}" for index, name in enumerate(sorted(used))}
        for name, attribute in self.names.items():
            self.register_buffer(attribute, torch.from_numpy(np.array(graph.constants[name])))
        self.steps = [(_translated(graph, node), node.inputs, node.outputs) for node in graph.nodes]
        last = {name: at for at, node in enumerate(graph.nodes) for name in node.inputs}
        self.finished = [
            [name for name in dict.fromkeys(node.inputs) if last[name] == at and name not in self.names]
            for at, node in enumerate(graph.nodes)
        ]

    def forward(self, images: Tensor) -> Tensor:
        values: dict[str, Tensor] = {self.source: images}
        for (call, inputs, outputs), finished in zip(self.steps, self.finished, strict=True):
            made = call(
                *(getattr(self, self.names[name]) if name in self.names else values[name] for name in inputs if name)
            )
            for name in finished:  # memory is given back as soon as the last reader has run
                if name and name != self.output:
                    del values[name]
            values.update(zip(outputs, made if isinstance(made, tuple) else (made,), strict=True))
        return values[self.output]


def channels_last(module: GraphModule) -> GraphModule:
    """Bring four-dimensional weights into the layout in which torch's convolutions are fastest; changes the module."""
    for name, buffer in module.named_buffers():
        if buffer.ndim == 4:
            setattr(module, name, buffer.to(memory_format=torch.channels_last))
    return module


def _translated(graph: Graph, node: Node) -> Call:
    maker = _MAKERS.get(node.operator)
    if maker is None:
        raise EngineRefused(f"torch: operator {node.operator} is not translated (node {node.name!r})")
    return maker(graph, node)


def _refuse(node: Node, what: str) -> EngineRefused:
    return EngineRefused(f"torch: {node.operator} with {what} is not translated (node {node.name!r})")


def _symmetric(node: Node) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return a window's pads as torch's symmetric padding and, where that cannot say it, as pads in front of the node.

    The second is in the order of torch.nn.functional.pad: last axis first, beginning and end.
    """
    pads = integers(node, "pads")
    begins, ends = pads[: len(pads) // 2], pads[len(pads) // 2 :]
    if begins == ends:
        return begins, ()
    return (0,) * len(begins), _backwards(begins, ends)


def _backwards(begins: tuple[int, ...], ends: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(pad for pair in zip(begins[::-1], ends[::-1], strict=True) for pad in pair)


def _convolution(graph: Graph, node: Node) -> Call:
    convolve = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}[len(integers(node, "kernel_shape"))]
    strides, dilations, group = integers(node, "strides"), integers(node, "dilations"), integer(node, "group")
    padding, before = _symmetric(node)

    def call(value: Tensor, weights: Tensor, bias: Tensor | None = None) -> Tensor:
        value = functional.pad(value, before) if before else value
        return convolve(value, weights, bias, strides, padding, dilations, group)

    return call


def _max_pool(graph: Graph, node: Node) -> Call:
    kernel, strides, dilations = (integers(node, name) for name in ("kernel_shape", "strides", "dilations"))
    if len(kernel) != 2:
        raise _refuse(node, "other than two axes")
    padding, before = _symmetric(node)
    ceil = bool(integer(node, "ceil_mode"))
    if any(pad > size // 2 for pad, size in zip(padding, kernel, strict=True)):
        padding, before = (0, 0), _backwards(padding, padding)
    if before and ceil:
        sizes, made = graph.values[node.inputs[0]].shape[2:], graph.values[node.outputs[0]].shape[2:]
        reach = [(made[axis] - 1) * strides[axis] + dilations[axis] * (kernel[axis] - 1) + 1 for axis in (0, 1)]
        begins = (before[2], before[0])
        before = _backwards(begins, tuple(max(0, reach[axis] - sizes[axis] - begins[axis]) for axis in (0, 1)))
        ceil = False

    def call(value: Tensor) -> Tensor:
        value = functional.pad(value, before, value=-torch.inf) if before else value
        return functional.max_pool2d(value, kernel, strides, padding, dilations, ceil)

    return call


def _average_pool(graph: Graph, node: Node) -> Call:
    kernel, strides = integers(node, "kernel_shape"), integers(node, "strides")
    padding, before = _symmetric(node)
    if len(kernel) != 2 or any(step != 1 for step in integers(node, "dilations")) or before:
        raise _refuse(node, "dilation, unequal pads or other than two axes")
    if any(pad > size // 2 for pad, size in zip(padding, kernel, strict=True)):
        raise _refuse(node, "pads of more than half the window")
    ceil, include = bool(integer(node, "ceil_mode")), bool(integer(node, "count_include_pad"))
    return lambda value: functional.avg_pool2d(value, kernel, strides, padding, ceil, include)


def _gemm(graph: Graph, node: Node) -> Call:
    alpha, beta = number(node, "alpha"), number(node, "beta")
    turn_first, turn_second = bool(integer(node, "transA")), bool(integer(node, "transB"))

    def call(first: Tensor, second: Tensor, third: Tensor | None = None) -> Tensor:
        first = first.t() if turn_first else first
        if alpha == 1 and turn_second and third is not None and third.ndim == 1 and beta == 1:
            return functional.linear(first, second, third)
        second = second.t() if turn_second else second
        if third is None:
            return alpha * (first @ second)
        return torch.addmm(third, first, second, beta=beta, alpha=alpha)

    return call


def _normalization(graph: Graph, node: Node) -> Call:
    epsilon = number(node, "epsilon")
    return lambda value, scale, offset, mean, variance: functional.batch_norm(
        value, mean, variance, scale, offset, False, 0.0, epsilon
    )


def _response(graph: Graph, node: Node) -> Call:
    size, alpha, beta, bias = integer(node, "size"), number(node, "alpha"), number(node, "beta"), number(node, "bias")
    if size % 2 == 0:
        raise _refuse(node, "an even size")

    def normalise(value: Tensor) -> Tensor:
        # PyTorch's own has no bfloat16 on CPUs: its average pool lacks it.
        whole = functional.local_response_norm(value.float(), size, alpha, beta, bias)
        return whole.to(value.dtype)

    return normalise


def _reduce(function: Callable[..., Tensor]) -> Maker:
    def make(graph: Graph, node: Node) -> Call:
        axes, keep = integers(node, "axes"), bool(integer(node, "keepdims"))
        return lambda value: function(value, dim=axes, keepdim=keep)

    return make


def _pad(graph: Graph, node: Node) -> Call:
    pads, mode = integers(node, "pads"), text(node, "mode")
    modes = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}
    if mode not in modes or (mode != "constant" and any((pads[0], pads[1], pads[4], pads[5]))):
        raise _refuse(node, f"mode {mode}")
    half = len(pads) // 2
    axes = slice(0, None) if mode == "constant" else slice(2, None)
    amounts = _backwards(pads[:half][axes], pads[half:][axes])
    if mode == "constant":
        fill = number(node, "value")
        return lambda value: functional.pad(value, amounts, value=fill)
    return lambda value: functional.pad(value, amounts, mode=modes[mode])


def _slice(graph: Graph, node: Node) -> Call:
    rows = list(zip(*(integers(node, name) for name in ("starts", "ends", "axes", "steps")), strict=True))
    if any(step < 1 for *_, step in rows):
        raise _refuse(node, "a negative step")
    keys = [slice(None)] * len(graph.values[node.inputs[0]].shape)
    for start, end, axis, step in rows:
        keys[axis] = slice(start, end, step)
    return lambda value: value[tuple(keys)]


def _split(graph: Graph, node: Node) -> Call:
    sizes, axis = integers(node, "split"), integer(node, "axis")
    return lambda value: torch.split(value, sizes, axis)


def _cast(graph: Graph, node: Node) -> Call:
    if text(node, "to") != "float32":
        raise _refuse(node, f"type {text(node, 'to')}")
    return lambda value: value


def _resize(graph: Graph, node: Node) -> Call:
    mode, where = text(node, "mode"), text(node, "coordinate_transformation_mode")
    sizes = integers(node, "sizes")
    if mode == "nearest" and where == "asymmetric" and text(node, "nearest_mode") == "floor":
        return lambda value: functional.interpolate(value, sizes[2:], mode="nearest")
    if mode == "linear" and where in ("half_pixel", "align_corners") and len(sizes) == 4:
        corners = where == "align_corners"
        return lambda value: functional.interpolate(value, sizes[2:], mode="bilinear", align_corners=corners)
    raise _refuse(node, f"mode {mode}, {where}")


def _calls(function: Callable[..., Tensor], keywords: Callable[[Node], dict[str, object]] | None = None) -> Maker:
    if keywords is None:
        return lambda graph, node: function
    return lambda graph, node: functools.partial(function, **keywords(node))


def _shapes(graph: Graph, node: Node) -> Call:
    shape = graph.values[node.outputs[0]].shape
    return lambda value: value.reshape(shape)


def _concat(graph: Graph, node: Node) -> Call:
    axis = integer(node, "axis")
    return lambda *values: torch.cat(values, axis)


def _fold(function: Callable[[Tensor, Tensor], Tensor]) -> Maker:
    return lambda graph, node: lambda *values: functools.reduce(function, values)


def _hard_sigmoid(graph: Graph, node: Node) -> Call:
    alpha, beta = number(node, "alpha"), number(node, "beta")
    return lambda value: torch.clamp(value * alpha + beta, 0, 1)


def _identity(value: Tensor) -> Tensor:
    return value


_MAKERS: dict[str, Maker] = {
    "Conv": _convolution,
    "Gemm": _gemm,
    "MatMul": _calls(torch.matmul),
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _calls(lambda value: functional.adaptive_avg_pool2d(value, 1)),
    "GlobalMaxPool": _calls(lambda value: functional.adaptive_max_pool2d(value, 1)),
    "LRN": _response,
    "BatchNormalization": _normalization,
    "Softmax": _calls(torch.softmax, lambda node: {"dim": integer(node, "axis")}),
    "LogSoftmax": _calls(torch.log_softmax, lambda node: {"dim": integer(node, "axis")}),
    "Identity": _calls(_identity),
    "Dropout": _calls(_identity),
    "Relu": _calls(functional.relu),
    "Sigmoid": _calls(torch.sigmoid),
    "Silu": _calls(functional.silu),
    "HardSwish": _calls(functional.hardswish),
    "Tanh": _calls(torch.tanh),
    "Softplus": _calls(functional.softplus),
    "Softsign": _calls(functional.softsign),
    "Mish": _calls(functional.mish),
    "Exp": _calls(torch.exp),
    "Log": _calls(torch.log),
    "Sqrt": _calls(torch.sqrt),
    "Reciprocal": _calls(torch.reciprocal),
    "Erf": _calls(torch.erf),
    "Neg": _calls(torch.neg),
    "Abs": _calls(torch.abs),
    "Floor": _calls(torch.floor),
    "Ceil": _calls(torch.ceil),
    "Clip": _calls(torch.clamp, lambda node: {"min": number(node, "min"), "max": number(node, "max")}),
    "HardSigmoid": _hard_sigmoid,
    "LeakyRelu": _calls(functional.leaky_relu, lambda node: {"negative_slope": number(node, "alpha")}),
    "Elu": _calls(functional.elu, lambda node: {"alpha": number(node, "alpha")}),
    "Gelu": _calls(functional.gelu, lambda node: {"approximate": text(node, "approximate")}),
    "Cast": _cast,
    "Add": _calls(torch.add),
    "Sub": _calls(torch.sub),
    "Mul": _calls(torch.mul),
    "Div": _calls(torch.div),
    "Pow": _calls(torch.pow),
    "PRelu": _calls(lambda value, slope: torch.where(value < 0, value * slope, value)),
    "Sum": _fold(torch.add),
    "Max": _fold(torch.maximum),
    "Min": _fold(torch.minimum),
    "ReduceMean": _reduce(torch.mean),
    "ReduceSum": _reduce(torch.sum),
    "ReduceMax": _reduce(torch.amax),
    "ReduceMin": _reduce(torch.amin),
    "Concat": _concat,
    "Flatten": _shapes,
    "Reshape": _shapes,
    "Squeeze": _shapes,
    "Unsqueeze": _shapes,
    "Transpose": _calls(torch.permute, lambda node: {"dims": integers(node, "perm")}),
    "Pad": _pad,
    "Slice": _slice,
    "Split": _split,
    "Resize": _resize,
}
