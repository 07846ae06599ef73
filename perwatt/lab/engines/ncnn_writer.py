"""Write a Graph as ncnn's two files: text that lists the layers, and the weights in a row.

ncnn has no reader for ONNX, and its converter needs a build of its own. What the converter and its optimiser do is
done here as well, so that ncnn runs as it should: batch normalisation goes into the weights, activations into the layer
before them, and every tensor's shape is written down, because ncnn chooses its convolution algorithm by it.

A tensor of a batch becomes one ncnn Mat per image, or, for matrices, one Mat with an image per row: a fully connected
layer then reads its weights once for many images. Formats: ncnn's operator and parameter documentation.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from perwatt.errors import EngineRefused
from perwatt.graph import Graph, Node, integer, integers, number, text

_MAGIC = "7767517"
_WEIGHT_TAG = np.zeros(1, np.uint32).tobytes()  # float32 follows
_SHAPE_HINT, _ACTIVATION, _ACTIVATION_PARAMETERS = 30, 9, 10
_LARGEST = float(np.finfo(np.float32).max)
Number = int | float | Sequence[int] | Sequence[float]
Maker = Callable[["_Writer", Node], None]


@dataclass(frozen=True)
class Section:
    """One ncnn network: its parameter text, its weights, and the names of its input and output blobs."""

    parameters: str
    weights: bytes
    input: str
    output: str
    first_layer: str


def sections(graph: Graph, output: str) -> tuple[Section, ...]:
    """Return the network as one Section that takes images one by one, or as two: the second takes a batch as rows.

    It is cut where the maps are flattened, if all that follows works on matrices.
    Raises EngineRefused naming an operator, or a use of one, that ncnn cannot be told of.
    """
    nodes = [node for node in graph.nodes if node.operator not in _NOTHING]
    cut = next((at for at, node in enumerate(nodes) if _flattens(graph, node)), None)
    if cut is not None and _is_chain(graph, nodes, cut) and len(nodes) > cut + 1:
        flat = nodes[cut].outputs[0]
        head = _Writer(graph, nodes[: cut + 1], graph.inputs[0], flat, rows=False)
        tail = _Writer(graph, nodes[cut + 1 :], flat, output, rows=True)
        return head.section(), tail.section()
    return (_Writer(graph, nodes, graph.inputs[0], output, rows=False).section(),)


def _flattens(graph: Graph, node: Node) -> bool:
    before, after = graph.values[node.inputs[0]].shape, graph.values[node.outputs[0]].shape
    return node.operator in _RESHAPES and len(before) > 2 and len(after) == 2 and before[0] == after[0]


def _is_chain(graph: Graph, nodes: list[Node], cut: int) -> bool:
    flat = nodes[cut].outputs[0]
    made = {output for node in nodes[: cut + 1] for output in node.outputs} | set(graph.inputs)
    tail = nodes[cut + 1 :]
    crossing = {name for node in tail for name in node.inputs if name in made}
    return (
        crossing == {flat}
        and all(node.operator in _ON_ROWS for node in tail)
        and all(len(graph.values[output].shape) == 2 for node in tail for output in node.outputs)
    )


class _Writer:
    def __init__(self, graph: Graph, nodes: list[Node], source: str, output: str, *, rows: bool) -> None:
        self.graph, self.nodes, self.source, self.output, self.rows = graph, nodes, source, output, rows
        self.batch = graph.values[graph.inputs[0]].shape[0]
        self.lines: list[str] = []
        self.blobs = 0
        self.weights: list[bytes] = []
        # Names that mean the same tensor: nodes that change nothing, and what was fused into the layer before.
        self.alias = {node.outputs[0]: node.inputs[0] for node in graph.nodes if node.operator in _NOTHING}
        self.readers = Counter(self.real(name) for node in nodes for name in node.inputs if self.is_data(name))
        self.readers[self.real(output)] += 1
        self.parts: dict[str, list[str]] = {}
        self.done: set[str] = set()

    def section(self) -> Section:
        self.layer("Input", [], [self.source], _extent_parameters(self.image_shape(self.source)))
        for node in self.nodes:
            if node.outputs[0] not in self.done:
                maker = _MAKERS.get(node.operator)
                if maker is None:
                    raise EngineRefused(f"ncnn: no layer for operator {node.operator} (node {node.name!r})")
                maker(self, node)
        first = self.lines[1].split()[0] if len(self.lines) > 1 else ""
        header = f"{_MAGIC}\n{len(self.lines)} {self.blobs}\n"
        last = self.take(self.output)
        return Section(header + "\n".join(self.lines) + "\n", b"".join(self.weights), _blob(self.source), last, first)

    def real(self, name: str) -> str:
        while name in self.alias:
            name = self.alias[name]
        return name

    def is_data(self, name: str) -> bool:
        return bool(name) and name not in self.graph.constants

    def constant(self, name: str) -> np.ndarray:
        return np.asarray(self.graph.constants[name], np.float32)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.graph.values[name].shape

    def image_shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape as ncnn sees it; the batch is either a loop outside or the rows of a matrix."""
        shape = self.shape(name)
        if self.rows:
            return shape
        if not shape or shape[0] != self.batch:
            raise EngineRefused(f"ncnn: expected the batch of {self.batch} first, tensor {name!r} has shape {shape}")
        return shape[1:]

    def take(self, name: str) -> str:
        """Return the blob to read a tensor from; ncnn allows one reader per blob, so copies were made beforehand."""
        name = self.real(name)
        return self.parts[name].pop() if name in self.parts else _blob(name)

    def layer(self, kind: str, inputs: Sequence[str], outputs: Sequence[str], parameters: dict[int, Number]) -> None:
        """Write a layer that reads blobs and makes tensors, and a Split after it for a tensor with several readers."""
        blobs = [_blob(name) for name in outputs]
        hints = [number for name in outputs for number in _hint(self.image_shape(name))]
        self._line(kind, inputs, blobs, parameters | ({_SHAPE_HINT: hints} if hints else {}))
        for name, blob in zip(outputs, blobs, strict=True):
            if self.readers[name] > 1:
                self.parts[name] = [f"{blob}_{part}" for part in range(self.readers[name])]
                self._line("Split", [blob], self.parts[name], {_SHAPE_HINT: hints * self.readers[name]})

    def inner(self, kind: str, source: str, blob: str, parameters: dict[int, Number]) -> str:
        """Write a layer whose result only the next line reads; returns its blob."""
        self._line(kind, [source], [blob], parameters)
        return blob

    def _line(self, kind: str, inputs: Sequence[str], outputs: Sequence[str], parameters: dict[int, Number]) -> None:
        written = " ".join(_parameter(key, value) for key, value in parameters.items())
        name = f"{kind.lower()}_{len(self.lines)}"
        counts = f"{len(inputs)} {len(outputs)}"
        self.lines.append(" ".join((kind, name, counts, *inputs, *outputs, written)).rstrip())
        self.blobs += len(outputs)

    def store(self, array: np.ndarray, *, tagged: bool) -> None:
        self.weights.append((_WEIGHT_TAG if tagged else b"") + np.ascontiguousarray(array, "<f4").tobytes())

    def only_reader(self, name: str, operators: Sequence[str]) -> Node | None:
        """Return the one node that reads a tensor, if it is one of these operators and the tensor is no output."""
        if self.readers[name] != 1 or self.real(self.output) == name:
            return None
        for node in self.nodes:
            if any(self.real(other) == name for other in node.inputs if self.is_data(other)):
                return node if node.operator in operators else None
        return None

    def fuse(self, node: Node) -> None:
        self.done.add(node.outputs[0])

    def refuse(self, node: Node, what: str) -> EngineRefused:
        return EngineRefused(f"ncnn: {node.operator} with {what} has no ncnn layer (node {node.name!r})")


def _convolution(writer: _Writer, node: Node) -> None:
    weights = writer.constant(node.inputs[1]) if node.inputs[1] in writer.graph.constants else None
    if weights is None or weights.ndim != 4:
        raise writer.refuse(node, "computed or not two-dimensional weights")
    bias = writer.constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else None
    weights, bias, result, activation = _followers(writer, node, weights, bias)
    group = integer(node, "group")
    top, left, bottom, right = integers(node, "pads")
    parameters: dict[int, Number] = {
        0: weights.shape[0],
        1: weights.shape[3],
        11: weights.shape[2],
        6: weights.size,
        2: integers(node, "dilations")[1],
        12: integers(node, "dilations")[0],
        3: integers(node, "strides")[1],
        13: integers(node, "strides")[0],
        4: left,
        15: right,
        14: top,
        16: bottom,
        5: int(bias is not None),
        **({7: group} if group > 1 else {}),
        **activation,
    }
    kind = "ConvolutionDepthWise" if group > 1 else "Convolution"
    writer.layer(kind, [writer.take(node.inputs[0])], [result], parameters)
    writer.store(weights, tagged=True)
    if bias is not None:
        writer.store(bias, tagged=False)


def _product(writer: _Writer, node: Node) -> None:
    if node.inputs[1] not in writer.graph.constants or len(writer.shape(node.inputs[0])) != 2:
        raise writer.refuse(node, "a computed second matrix or stacked matrices")
    weights = writer.constant(node.inputs[1])
    bias: np.ndarray | None = None
    if node.operator == "Gemm":
        if integer(node, "transA"):
            raise writer.refuse(node, "transA")
        weights = weights * np.float32(number(node, "alpha"))
        weights = weights if integer(node, "transB") else weights.T
        if len(node.inputs) > 2 and node.inputs[2]:
            if node.inputs[2] not in writer.graph.constants or writer.constant(node.inputs[2]).shape[:-1] not in (
                *((), (1,)),
            ):
                raise writer.refuse(node, "a C that differs between images")
            bias = np.broadcast_to(writer.constant(node.inputs[2]).reshape(-1), (weights.shape[0],))
            bias = bias * np.float32(number(node, "beta"))
    else:
        weights = weights.T
    weights, bias, result, activation = _followers(writer, node, weights, bias)
    parameters: dict[int, Number] = {0: weights.shape[0], 1: int(bias is not None), 2: weights.size, **activation}
    writer.layer("InnerProduct", [writer.take(node.inputs[0])], [result], parameters)
    writer.store(weights, tagged=True)
    if bias is not None:
        writer.store(bias, tagged=False)


def _followers(
    writer: _Writer, node: Node, weights: np.ndarray, bias: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None, str, dict[int, Number]]:
    """Fold a batch normalisation and an activation that follow into this layer, as ncnn's optimiser does."""
    result = node.outputs[0]
    follower = writer.only_reader(result, ("BatchNormalization",))
    if follower is not None:
        scale, shift = _scale_and_shift(writer, follower)
        weights = (weights * scale.reshape(-1, *(1,) * (weights.ndim - 1))).astype(np.float32)
        bias = ((0 if bias is None else bias) * scale + shift).astype(np.float32)
        writer.fuse(follower)
        result = follower.outputs[0]
    follower = writer.only_reader(result, tuple(_FUSED))
    if follower is not None:
        writer.fuse(follower)
        kind, values = _FUSED[follower.operator](follower)
        parameters: dict[int, Number] = {_ACTIVATION: kind}
        if values:
            parameters[_ACTIVATION_PARAMETERS] = values
        return weights, bias, follower.outputs[0], parameters
    return weights, bias, result, {}


def _scale_and_shift(writer: _Writer, node: Node) -> tuple[np.ndarray, np.ndarray]:
    if any(name not in writer.graph.constants for name in node.inputs[1:]):
        raise writer.refuse(node, "computed parameters")
    scale, offset, mean, variance = (writer.constant(name).astype(np.float64) for name in node.inputs[1:])
    factor = scale / np.sqrt(variance + number(node, "epsilon"))
    return factor, offset - mean * factor


def _normalization(writer: _Writer, node: Node) -> None:
    scale, shift = _scale_and_shift(writer, node)
    writer.layer("Scale", [writer.take(node.inputs[0])], [node.outputs[0]], {0: scale.size, 1: 1})
    writer.store(scale, tagged=False)
    writer.store(shift, tagged=False)


def _pool(writer: _Writer, node: Node) -> None:
    if len(integers(node, "kernel_shape")) != 2 or any(step != 1 for step in integers(node, "dilations")):
        raise writer.refuse(node, "dilation or other than two axes")
    kernel, strides, pads = (integers(node, name) for name in ("kernel_shape", "strides", "pads"))
    sizes, made = writer.shape(node.inputs[0])[2:], writer.shape(node.outputs[0])[2:]
    # Rounding up is written as more padding behind, which ncnn leaves out of both maximum and mean.
    extra = [
        max(0, (made[axis] - 1) * strides[axis] + kernel[axis] - (sizes[axis] + pads[axis] + pads[axis + 2]))
        for axis in (0, 1)
    ]
    average = node.operator == "AveragePool"
    include = average and bool(integer(node, "count_include_pad"))
    if include and any(extra):
        raise writer.refuse(node, "ceil_mode and count_include_pad together")
    parameters: dict[int, Number] = {
        0: int(average),
        1: kernel[1],
        11: kernel[0],
        2: strides[1],
        12: strides[0],
        5: 1,
        6: int(include),
        3: pads[1],
        13: pads[0],
        14: pads[3] + extra[1],
        15: pads[2] + extra[0],
    }
    writer.layer("Pooling", [writer.take(node.inputs[0])], [node.outputs[0]], parameters)


def _global_pool(writer: _Writer, node: Node) -> None:
    if node.operator.startswith("Reduce") and integers(node, "axes") != (2, 3):
        raise writer.refuse(node, f"axes {integers(node, 'axes')}")
    if len(writer.shape(node.inputs[0])) != 4:
        raise writer.refuse(node, "other than two spatial axes")
    average = node.operator in ("GlobalAveragePool", "ReduceMean")
    parameters: dict[int, Number] = {0: int(average), 4: 1}
    result = node.outputs[0]
    shape = writer.image_shape(result)
    source = writer.take(node.inputs[0])
    flat = writer.only_reader(result, ("Flatten", "Reshape", "Squeeze", "Gemm"))
    if len(shape) == 1 or flat is not None:  # ncnn's global pooling makes a vector
        writer.layer("Pooling", [source], [result], parameters)
        return
    vector = writer.inner("Pooling", source, f"{_blob(result)}_vector", parameters)
    writer.layer("Reshape", [vector], [result], _extent_parameters(shape))


def _response(writer: _Writer, node: Node) -> None:
    if integer(node, "size") % 2 == 0:
        raise writer.refuse(node, "an even size")
    parameters: dict[int, Number] = {
        0: 0,
        1: integer(node, "size"),
        2: number(node, "alpha"),
        3: number(node, "beta"),
        4: number(node, "bias"),
    }
    writer.layer("LRN", [writer.take(node.inputs[0])], [node.outputs[0]], parameters)


def _simple(kind: str, parameters: Callable[[Node], dict[int, Number]] = lambda node: {}) -> Maker:
    def make(writer: _Writer, node: Node) -> None:
        writer.layer(kind, [writer.take(node.inputs[0])], [node.outputs[0]], parameters(node))

    return make


def _softmax(writer: _Writer, node: Node) -> None:
    axis = integer(node, "axis") - (0 if writer.rows else 1)
    if axis < 0 or (writer.rows and axis == 0):
        raise writer.refuse(node, "an axis over the batch")
    writer.layer("Softmax", [writer.take(node.inputs[0])], [node.outputs[0]], {0: axis, 1: 1})


def _concat(writer: _Writer, node: Node) -> None:
    axis = integer(node, "axis") - 1
    if axis < 0:
        raise writer.refuse(node, "an axis over the batch")
    if not all(writer.is_data(name) for name in node.inputs):
        raise writer.refuse(node, "a constant part")
    writer.layer("Concat", [writer.take(name) for name in node.inputs], [node.outputs[0]], {0: axis})


def _binary(writer: _Writer, node: Node) -> None:
    operation = {"Add": 0, "Sum": 0, "Sub": 1, "Mul": 2, "Div": 3, "Max": 4, "Min": 5}[node.operator]
    data = [name for name in node.inputs if writer.is_data(name)]
    result = node.outputs[0]
    if len(node.inputs) == 2 and len(data) == 2:
        writer.layer("BinaryOp", [writer.take(name) for name in node.inputs], [result], {0: operation})
        return
    if len(node.inputs) != 2 or len(data) != 1:
        raise writer.refuse(node, f"{len(node.inputs)} inputs, {len(data)} of them computed")
    first = node.inputs[0] == data[0]
    value = writer.constant(node.inputs[1 if first else 0])
    if value.size == 1:
        reverse = {1: 7, 3: 8}
        kind = operation if first else reverse.get(operation, operation)
        parameters: dict[int, Number] = {0: kind, 1: 1, 2: float(value.reshape(-1)[0])}
        writer.layer("BinaryOp", [writer.take(data[0])], [result], parameters)
        return
    channels = writer.shape(data[0])[1]
    per_channel = (1,) * (len(writer.shape(data[0])) - value.ndim) + value.shape
    if per_channel != (1, channels, *(1,) * (len(per_channel) - 2)) or (not first and operation not in (0, 2)):
        raise writer.refuse(node, f"a constant of shape {value.shape}")
    if operation > 3:
        raise writer.refuse(node, "a constant per channel")
    vector = value.reshape(-1)
    scale = {2: vector, 3: 1 / vector}.get(operation, np.ones_like(vector))
    shift = {0: vector, 1: -vector}.get(operation, np.zeros_like(vector))
    if len(writer.shape(data[0])) == 2 and writer.rows:
        raise writer.refuse(node, "a constant row")
    writer.layer("Scale", [writer.take(data[0])], [result], {0: channels, 1: 1})
    writer.store(scale, tagged=False)
    writer.store(shift, tagged=False)


def _reshape(writer: _Writer, node: Node) -> None:
    shape = writer.image_shape(node.outputs[0])
    source = writer.take(node.inputs[0])
    if len(shape) == 1:
        writer.layer("Flatten", [source], [node.outputs[0]], {})
    elif len(shape) <= 4:
        writer.layer("Reshape", [source], [node.outputs[0]], _extent_parameters(shape))
    else:
        raise writer.refuse(node, f"{len(shape)} axes")


def _pad(writer: _Writer, node: Node) -> None:
    pads, mode = integers(node, "pads"), {"constant": 0, "edge": 1, "reflect": 2}.get(text(node, "mode"))
    if len(pads) != 8 or pads[0] or pads[4] or min(pads) < 0 or mode is None or (mode and (pads[1] or pads[5])):
        raise writer.refuse(node, f"pads {pads}, mode {text(node, 'mode')}")
    parameters: dict[int, Number] = {
        0: pads[2],
        1: pads[6],
        2: pads[3],
        3: pads[7],
        4: mode,
        5: number(node, "value"),
        7: pads[1],
        8: pads[5],
    }
    writer.layer("Padding", [writer.take(node.inputs[0])], [node.outputs[0]], parameters)


def _split(writer: _Writer, node: Node) -> None:
    axis = integer(node, "axis") - 1
    if axis < 0:
        raise writer.refuse(node, "an axis over the batch")
    parameters: dict[int, Number] = {0: integers(node, "split"), 1: axis}
    writer.layer("Slice", [writer.take(node.inputs[0])], list(node.outputs), parameters)


def _leaky_slope(writer: _Writer, node: Node) -> None:
    slope = writer.constant(node.inputs[1]).reshape(-1) if node.inputs[1] in writer.graph.constants else None
    if slope is None or slope.size not in (1, writer.shape(node.inputs[0])[1]):
        raise writer.refuse(node, "a slope that is neither one number nor one per channel")
    writer.layer("PReLU", [writer.take(node.inputs[0])], [node.outputs[0]], {0: slope.size})
    writer.store(slope, tagged=False)


def _limits(node: Node) -> tuple[float, float]:
    low, high = number(node, "min"), number(node, "max")
    return max(low, -_LARGEST), min(high, _LARGEST)


def _parameter(key: int, value: Number) -> str:
    if isinstance(value, int | float):
        return f"{key}={_number(value)}"
    return f"{-23300 - key}={len(value)}," + ",".join(_number(each) for each in value)


def _number(value: int | float) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        value = math.copysign(_LARGEST, value)
    return str(int(value)) if isinstance(value, int) else f"{value:.9e}"  # ncnn tells reals by their point


def _blob(name: str) -> str:
    return "b_" + "".join(letter if letter.isalnum() else f"_{ord(letter):x}_" for letter in name)


def _extent_parameters(shape: Sequence[int]) -> dict[int, Number]:
    """Return width, height, channels (and depth) as the parameters of Input and Reshape."""
    keys = {1: (0,), 2: (1, 0), 3: (2, 1, 0), 4: (2, 11, 1, 0)}[len(shape)]
    return dict(zip(keys, shape, strict=True))


def _hint(shape: Sequence[int]) -> list[int]:
    if len(shape) > 3:
        return [-1, 0, 0, 0]  # no hint
    reversed_shape = list(shape)[::-1]
    return [len(shape), *reversed_shape, *(1,) * (3 - len(shape))]


_NOTHING = {"Identity", "Dropout"}
_RESHAPES = {"Flatten", "Reshape", "Squeeze"}
# Each activation's number in ncnn and its parameters, for layers that take one.
_FUSED: dict[str, Callable[[Node], tuple[int, tuple[float, ...]]]] = {
    "Relu": lambda node: (1, ()),
    "LeakyRelu": lambda node: (2, (number(node, "alpha"),)),
    "Clip": lambda node: (3, _limits(node)),
    "Sigmoid": lambda node: (4, ()),
    "Mish": lambda node: (5, ()),
    "HardSwish": lambda node: (6, (1 / 6, 0.5)),
}
_ON_ROWS = {"Gemm", "MatMul", "Relu", "LeakyRelu", "Clip", "Sigmoid", "Tanh", "HardSwish", "Mish", "Softmax"}
_MAKERS: dict[str, Maker] = {
    "Conv": _convolution,
    "Gemm": _product,
    "MatMul": _product,
    "BatchNormalization": _normalization,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "GlobalAveragePool": _global_pool,
    "GlobalMaxPool": _global_pool,
    "ReduceMean": _global_pool,
    "LRN": _response,
    "Softmax": _softmax,
    "Concat": _concat,
    "Flatten": _reshape,
    "Reshape": _reshape,
    "Squeeze": _reshape,
    "Unsqueeze": _reshape,
    "Pad": _pad,
    "Split": _split,
    "PRelu": _leaky_slope,
    **dict.fromkeys(("Add", "Sum", "Sub", "Mul", "Div", "Max", "Min"), _binary),
    "Relu": _simple("ReLU"),
    "LeakyRelu": _simple("ReLU", lambda node: {0: number(node, "alpha")}),
    "Clip": _simple("Clip", lambda node: dict(enumerate(_limits(node)))),
    "Sigmoid": _simple("Sigmoid"),
    "Tanh": _simple("TanH"),
    "Mish": _simple("Mish"),
    "Elu": _simple("ELU", lambda node: {0: number(node, "alpha")}),
    "HardSwish": _simple("HardSwish", lambda node: {0: 1 / 6, 1: 0.5}),
    "HardSigmoid": _simple("HardSigmoid", lambda node: {0: number(node, "alpha"), 1: number(node, "beta")}),
    "Gelu": _simple("GELU", lambda node: {0: int(text(node, "approximate") == "tanh")}),
}
