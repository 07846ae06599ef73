"""The slow twin: an ONNX file run node by node in NumPy, by its definition, in float64 or any other float type.

It reads the file itself, not perwatt's Graph, and shares no code with reader, passes or kernels, so that it can judge
them. Convolution, pooling and local normalisation are written here, one tap of the window after the other; every other
operator is onnx's own reference implementation.
"""

from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from perwatt.errors import NetworkError
from perwatt.graph.onnx_file import load
from perwatt.graph.onnx_walk import data_inputs

Change = Callable[[np.ndarray], np.ndarray]
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
DENSE = ("Conv", "Gemm", "MatMul", "ConvTranspose")


class Reference:
    """A network of one input and its first output, run one image at a time.

    `weights` is given every float weight of two or more dimensions, `results` every result of a dense operator (Conv,
    Gemm, MatMul, ConvTranspose); both return what is to take its place. Raises NetworkError when the file cannot be
    read or an operator cannot be run so.
    """

    def __init__(self, model: bytes, dtype: Any = np.float64, weights: Change | None = None) -> None:
        self._model = load(model)
        self._dtype = np.dtype(dtype)
        self._weights = weights
        graph = self._model.graph
        self._opsets = {entry.domain: entry.version for entry in self._model.opset_import}
        self._constants = {entry.name: self._constant(numpy_helper.to_array(entry)) for entry in graph.initializer}
        self._steps = [self._step(node) for node in graph.node]
        self._input = data_inputs(self._model)[0].name
        self._output = graph.output[0].name
        self._last = {name: place for place, node in enumerate(graph.node) for name in node.input}
        self._last[self._output] = len(graph.node)

    def __call__(self, images: np.ndarray, results: Change | None = None) -> np.ndarray:
        """Return the first output for images [count, ...], each run by itself: [count, values]."""
        return np.concatenate([self._run(image[np.newaxis], results).reshape(1, -1) for image in images])

    def _run(self, image: np.ndarray, results: Change | None) -> np.ndarray:
        values: dict[str, Any] = {self._input: image.astype(self._dtype), "": None}
        for place, (node, step) in enumerate(zip(self._model.graph.node, self._steps, strict=True)):
            inputs = [values[name] if name in values else self._constants[name] for name in node.input]
            try:
                with np.errstate(all="ignore"):
                    made = step(inputs)
            except Exception as error:  # onnx's implementations raise whatever their NumPy code raises
                raise NetworkError(
                    f"{node.op_type} node {node.name or node.output[0]!r}: expected a reference result, got "
                    f"{type(error).__name__}: {error}; give the expected answers yourself"
                ) from error
            for name, value in zip(node.output, made, strict=False):
                if results is not None and node.op_type in DENSE:
                    value = results(value)
                values[name] = value
            for name in node.input:
                if self._last.get(name) == place and name:
                    values.pop(name, None)
        return np.asarray(values[self._output])

    def _constant(self, array: np.ndarray) -> np.ndarray:
        if array.dtype.kind != "f":
            return array
        array = array.astype(self._dtype)
        return self._weights(array) if self._weights is not None and array.ndim > 1 else array

    def _step(self, node: onnx.NodeProto) -> Callable[[list[Any]], Any]:
        attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
        if node.op_type == "Constant" and "value" in attributes:
            value = self._constant(numpy_helper.to_array(attributes["value"]))
            return lambda inputs: (value,)
        own = OWN.get(node.op_type) if node.domain in ("", "ai.onnx") and len(node.output) == 1 else None
        evaluator = ReferenceEvaluator(self._in_this_type(node), opsets=self._opsets)

        def run(inputs: list[Any]) -> Any:
            if own is not None and inputs[0].ndim == 4:
                return (own(inputs, attributes),)
            return evaluator.run(None, dict(zip(node.input, inputs, strict=True)))

        return run

    def _in_this_type(self, node: onnx.NodeProto) -> onnx.NodeProto:
        """Return the node with the types that it names replaced: a cast to float32 would round."""
        copy = onnx.NodeProto.FromString(node.SerializeToString())
        wanted = helper.np_dtype_to_tensor_dtype(self._dtype)
        for entry in copy.attribute:
            if entry.name in ("to", "dtype") and entry.i in FLOATS:
                entry.i = wanted
            if entry.HasField("t") and entry.t.data_type in FLOATS:
                array = numpy_helper.to_array(entry.t).astype(self._dtype)
                entry.t.CopyFrom(numpy_helper.from_array(array, entry.t.name))
        return copy


def _window(shape: tuple[int, ...], kernel: tuple[int, ...], attributes: Mapping[str, Any]) -> Any:
    """Return strides, dilations, pads before, pads after and output sizes of the two axes, as the operators define."""
    strides = list(attributes.get("strides", (1, 1)))
    dilations = list(attributes.get("dilations", (1, 1)))
    pads = list(attributes.get("pads", (0, 0, 0, 0)))
    begins, ends, sizes = pads[:2], pads[2:], []
    mode = attributes.get("auto_pad", b"NOTSET").decode()
    for axis in (0, 1):
        size, reach = shape[axis], (kernel[axis] - 1) * dilations[axis] + 1
        if mode == "VALID":
            begins[axis] = ends[axis] = 0
        elif mode.startswith("SAME"):
            total = max((-(-size // strides[axis]) - 1) * strides[axis] + reach - size, 0)
            less, more = total // 2, total - total // 2
            begins[axis], ends[axis] = (less, more) if mode == "SAME_UPPER" else (more, less)
        room = size + begins[axis] + ends[axis] - reach
        count = room // strides[axis] + 1
        if attributes.get("ceil_mode") and room % strides[axis] and count * strides[axis] < size + begins[axis]:
            count += 1  # the last window may hang over the end, but must begin before it
        sizes.append(count)
    return strides, dilations, begins, ends, sizes


def _padded(x: np.ndarray, strides: Any, reach: Any, begins: Any, ends: Any, sizes: Any, value: float) -> np.ndarray:
    over = [
        max(ends[axis], (sizes[axis] - 1) * strides[axis] + reach[axis] - x.shape[2 + axis] - begins[axis])
        for axis in (0, 1)
    ]
    return np.pad(x, ((0, 0), (0, 0), (begins[0], over[0]), (begins[1], over[1])), constant_values=value)


def _taps(x: np.ndarray, kernel: Any, attributes: Mapping[str, Any], value: float) -> Any:
    """Yield (row, column) of the window with what the whole output sees there: [images, channels, rows, columns]."""
    strides, dilations, begins, ends, sizes = _window(x.shape[2:], kernel, attributes)
    reach = [(kernel[axis] - 1) * dilations[axis] + 1 for axis in (0, 1)]
    padded = _padded(x, strides, reach, begins, ends, sizes, value)
    for row, column in product(range(kernel[0]), range(kernel[1])):
        top, left = row * dilations[0], column * dilations[1]
        yield (
            row,
            column,
            padded[
                :, :, top : top + (sizes[0] - 1) * strides[0] + 1 : strides[0],
                left : left + (sizes[1] - 1) * strides[1] + 1 : strides[1],
            ],
        )  # fmt: skip


def _conv(inputs: list[Any], attributes: Mapping[str, Any]) -> np.ndarray:
    x, weights = inputs[:2]
    group = attributes.get("group", 1)
    filters, depth = weights.shape[:2]
    *_, sizes = _window(x.shape[2:], weights.shape[2:], attributes)
    total = np.zeros((len(x), filters, *sizes), dtype=x.dtype)
    part = np.empty_like(total)
    for row, column, seen in _taps(x, weights.shape[2:], attributes, 0.0):
        tap = np.ascontiguousarray(weights[:, :, row, column])  # BLAS takes no other
        if depth == 1:
            repeated = np.repeat(seen, filters // group, axis=1) if filters > group else seen
            np.multiply(repeated, tap.reshape(1, filters, 1, 1), out=part)
        else:
            grouped = np.ascontiguousarray(seen).reshape(len(x), group, depth, -1)
            np.matmul(
                tap.reshape(1, group, filters // group, depth),
                grouped,
                out=part.reshape(len(x), group, filters // group, -1),
            )
        total += part
    if len(inputs) > 2 and inputs[2] is not None:
        total += inputs[2].reshape(1, -1, 1, 1)
    return total


def _max_pool(inputs: list[Any], attributes: Mapping[str, Any]) -> np.ndarray:
    taps = _taps(inputs[0], attributes["kernel_shape"], attributes, -np.inf)
    result: Any = None
    for _, _, seen in taps:
        result = seen.copy() if result is None else np.maximum(result, seen)
    return np.asarray(result)


def _average_pool(inputs: list[Any], attributes: Mapping[str, Any]) -> np.ndarray:
    x, kernel = inputs[0], attributes["kernel_shape"]
    total = sum(seen for _, _, seen in _taps(x, kernel, attributes, 0.0))
    inside = np.ones((1, 1, *x.shape[2:]), dtype=x.dtype)
    if attributes.get("count_include_pad"):
        _, _, begins, ends, _ = _window(x.shape[2:], kernel, attributes)
        inside = np.ones((1, 1, x.shape[2] + begins[0] + ends[0], x.shape[3] + begins[1] + ends[1]), dtype=x.dtype)
        attributes = {**attributes, "pads": (0, 0, 0, 0), "auto_pad": b"NOTSET"}
    count = sum(seen for _, _, seen in _taps(inside, kernel, attributes, 0.0))
    return np.asarray(total / count)


def _lrn(inputs: list[Any], attributes: Mapping[str, Any]) -> np.ndarray:
    x, size = inputs[0], attributes["size"]
    before, after = (size - 1) // 2, size // 2
    squares = np.pad(x * x, ((0, 0), (before, after), (0, 0), (0, 0)))
    total = sum(squares[:, shift : shift + x.shape[1]] for shift in range(size))
    alpha, beta, bias = (
        attributes.get(key, default) for key, default in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0))
    )
    return np.asarray(x / (bias + alpha / size * total) ** beta)


OWN: Mapping[str, Callable[[list[Any], Mapping[str, Any]], np.ndarray]] = {
    "Conv": _conv,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "LRN": _lrn,
}
