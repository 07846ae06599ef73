"""What each operator makes: the shape and element type of its outputs, and the multiply-adds that takes.

Every function `infer_...` takes a node with canonical attributes and its input Values, and returns one (shape, dtype)
per output; it raises InvalidGraph when the inputs do not fit. Shapes follow the ONNX operator specification.
"""

import math
from collections.abc import Sequence

import ml_dtypes
import numpy as np

from perwatt.errors import InvalidGraph
from perwatt.graph.attributes import Inputs, first, integer, integers, refusal, text
from perwatt.graph.graph import Node, Value

Made = tuple[tuple[tuple[int, ...], np.dtype], ...]


def given(node: Node, inputs: Inputs) -> list[Value]:
    """Return the inputs that are not left out, after checking that all have one element type."""
    found = [value for value in inputs if value is not None]
    if len({value.dtype for value in found}) > 1:
        kinds = ", ".join(value.dtype.name for value in found)
        raise refusal(node.operator, node.name, "inputs of one element type", kinds)
    return found


def infer_same(node: Node, inputs: Inputs) -> Made:
    """One output like the first input."""
    value = first(inputs)
    return ((value.shape, value.dtype),)


def infer_broadcast(node: Node, inputs: Inputs) -> Made:
    """One output whose shape is the inputs broadcast together (NumPy's rule)."""
    values = given(node, inputs)
    return ((_broadcast(node, values), values[0].dtype),)


def _broadcast(node: Node, values: Sequence[Value]) -> tuple[int, ...]:
    try:
        return np.broadcast_shapes(*(value.shape for value in values))
    except ValueError:
        shapes = " and ".join(str(value.shape) for value in values)
        raise refusal(node.operator, node.name, "shapes that broadcast", shapes) from None


def infer_power(node: Node, inputs: Inputs) -> Made:
    """The two inputs broadcast; the element type is the base's, the exponent may have another."""
    values = [value for value in inputs if value is not None]
    return ((_broadcast(node, values), values[0].dtype),)


def infer_prelu(node: Node, inputs: Inputs) -> Made:
    """Like the first input; the slope must broadcast to it."""
    values = given(node, inputs)
    if _broadcast(node, values) != values[0].shape:
        raise refusal(node.operator, node.name, f"a slope that broadcasts to {values[0].shape}", str(values[1].shape))
    return ((values[0].shape, values[0].dtype),)


def infer_convolution(node: Node, inputs: Inputs) -> Made:
    """[N, C, ...] with weights [M, C/group, kernel...] and bias [M] gives [N, M, ...]."""
    values = given(node, inputs)
    value = values[0].shape
    channels = _checked_channels(node, values, read=1)
    return (((value[0], channels, *window_extents(node, value[2:])), values[0].dtype),)


def infer_transposed_convolution(node: Node, inputs: Inputs) -> Made:
    """[N, C, ...] with weights [C, M/group, kernel...] and bias [M] gives [N, M, ...].

    An axis becomes stride · (size - 1) + output_padding + dilation · (kernel - 1) + 1 - pads (ONNX ConvTranspose).
    """
    values = given(node, inputs)
    value, channels = values[0].shape, _checked_channels(node, values, read=0)
    kernel, strides, pads = integers(node, "kernel_shape"), integers(node, "strides"), integers(node, "pads")
    dilations, padding, rank = integers(node, "dilations"), integers(node, "output_padding"), len(value) - 2
    extents = []
    for axis, size in enumerate(value[2:]):
        whole = strides[axis] * (size - 1) + dilations[axis] * (kernel[axis] - 1) + 1
        extents.append(whole + padding[axis] - pads[axis] - pads[axis + rank])
    if min(extents) < 1:
        raise refusal(node.operator, node.name, "pads that leave something", f"pads {pads}: an output of {extents}")
    return (((value[0], channels, *extents), values[0].dtype),)


def _checked_channels(node: Node, values: Sequence[Value], read: int) -> int:
    """Return how many channels the weights make; the axis `read` of them (1, transposed 0) reads the input's.

    Axis 0 of the weights counts all groups, axis 1 one of them. Raises InvalidGraph when weights or bias do not fit.
    """
    value, weights, kernel = values[0].shape, values[1].shape, integers(node, "kernel_shape")
    group = integer(node, "group")
    if len(weights) != len(value) or weights[2:] != kernel:
        raise refusal(node.operator, node.name, f"weights with kernel {kernel}", f"shape {weights}")
    sizes = (weights[0], weights[1] * group)
    if group < 1 or value[1] != sizes[read] or weights[0] % group:
        wanted = f"weights for {value[1]} channels in {group} groups"
        raise refusal(node.operator, node.name, wanted, f"shape {weights}")
    made = sizes[1 - read]
    if len(values) > 2 and values[2].shape != (made,):
        raise refusal(node.operator, node.name, f"a bias of shape {(made,)}", str(values[2].shape))
    return made


def infer_pool(node: Node, inputs: Inputs) -> Made:
    """[N, C, ...] gives [N, C, ...] with smaller spatial axes."""
    value = first(inputs)
    return (((*value.shape[:2], *window_extents(node, value.shape[2:])), value.dtype),)


def window_extents(node: Node, sizes: Sequence[int]) -> tuple[int, ...]:
    """Return how many window positions fit along each spatial axis.

    With ceil_mode the last window may hang over the end, but none may start in the padding behind the image.
    """
    kernel, strides = integers(node, "kernel_shape"), integers(node, "strides")
    dilations, pads = integers(node, "dilations"), integers(node, "pads")
    ceil = node.attributes.get("ceil_mode", 0)
    extents = []
    for axis, size in enumerate(sizes):
        begin, end = pads[axis], pads[axis + len(sizes)]
        span = size + begin + end - (dilations[axis] * (kernel[axis] - 1) + 1)
        if span < 0:
            reach = f"a window no wider than the padded input {size}+{begin}+{end}"
            raise refusal(node.operator, node.name, reach, f"kernel {kernel[axis]}, dilation {dilations[axis]}")
        steps = span // strides[axis]
        if ceil:
            steps = -(-span // strides[axis])
            if steps * strides[axis] >= size + begin:
                steps -= 1
        extents.append(steps + 1)
    return tuple(extents)


def infer_global_pool(node: Node, inputs: Inputs) -> Made:
    """[N, C, ...] gives [N, C, 1, ...]."""
    value = first(inputs)
    if len(value.shape) < 3:
        raise refusal(node.operator, node.name, "an input of batch, channels and spatial axes", f"shape {value.shape}")
    return (((*value.shape[:2], *(1 for _ in value.shape[2:])), value.dtype),)


def infer_normalization(node: Node, inputs: Inputs) -> Made:
    """Like the first input; scale, B, mean and var are [C]. Their element types may differ from the input's."""
    value = first(inputs)
    channels = value.shape[1] if len(value.shape) > 1 else 1
    for parameter in inputs[1:]:
        if parameter is None or parameter.shape != (channels,):
            got = "none" if parameter is None else f"shape {parameter.shape}"
            raise refusal(node.operator, node.name, f"scale, B, mean and var of shape ({channels},)", got)
    return ((value.shape, value.dtype),)


def infer_gemm(node: Node, inputs: Inputs) -> Made:
    """A [M, K] times B [K, N], each perhaps transposed, plus C that broadcasts to [M, N]."""
    values = given(node, inputs)
    if len(values[0].shape) != 2 or len(values[1].shape) != 2:
        raise refusal(node.operator, node.name, "two matrices", f"{values[0].shape} and {values[1].shape}")
    rows, depth = values[0].shape[::-1] if integer(node, "transA") else values[0].shape
    other, columns = values[1].shape[::-1] if integer(node, "transB") else values[1].shape
    if depth != other:
        raise refusal(node.operator, node.name, "matrices that fit", f"{values[0].shape} and {values[1].shape}")
    if len(values) > 2 and np.broadcast_shapes(values[2].shape, (1, 1)) not in {
        *((rows, columns), (1, columns), (rows, 1), (1, 1)),
    }:
        raise refusal(node.operator, node.name, f"C that broadcasts to {(rows, columns)}", str(values[2].shape))
    return (((rows, columns), values[0].dtype),)


def infer_matmul(node: Node, inputs: Inputs) -> Made:
    """Matrix product by NumPy's rule: leading axes broadcast, vectors are rows or columns."""
    left, right = given(node, inputs)
    if not left.shape or not right.shape:
        raise refusal(node.operator, node.name, "vectors or matrices", f"{left.shape} and {right.shape}")
    rows = left.shape if len(left.shape) > 1 else (1, *left.shape)
    columns = right.shape if len(right.shape) > 1 else (*right.shape, 1)
    if rows[-1] != columns[-2]:
        raise refusal(node.operator, node.name, "matrices that fit", f"{left.shape} and {right.shape}")
    try:
        batch = np.broadcast_shapes(rows[:-2], columns[:-2])
    except ValueError:
        raise refusal(node.operator, node.name, "batches that broadcast", f"{left.shape}, {right.shape}") from None
    made = batch + (rows[-2],) * (len(left.shape) > 1) + (columns[-1],) * (len(right.shape) > 1)
    return ((made, left.dtype),)


def infer_concat(node: Node, inputs: Inputs) -> Made:
    """The inputs one behind the other along `axis`; all other axes agree."""
    values = given(node, inputs)
    axis = integer(node, "axis")
    rest = {(value.shape[:axis], value.shape[axis + 1 :], len(value.shape)) for value in values}
    if len(rest) != 1:
        shapes = ", ".join(str(value.shape) for value in values)
        raise refusal(node.operator, node.name, f"shapes that differ along axis {axis} only", shapes)
    shape = values[0].shape
    return (((*shape[:axis], sum(value.shape[axis] for value in values), *shape[axis + 1 :]), values[0].dtype),)


def infer_flatten(node: Node, inputs: Inputs) -> Made:
    """Two axes: everything before `axis`, everything from it on."""
    value, axis = first(inputs), integer(node, "axis")
    return (((math.prod(value.shape[:axis]), math.prod(value.shape[axis:])), value.dtype),)


def infer_reshape(node: Node, inputs: Inputs) -> Made:
    """The resolved target."""
    value, shape = first(inputs), integers(node, "shape")
    if math.prod(shape) != math.prod(value.shape):
        raise refusal(node.operator, node.name, f"a target that holds the elements of {value.shape}", str(shape))
    return ((shape, value.dtype),)


def infer_transpose(node: Node, inputs: Inputs) -> Made:
    """The axes in the order of `perm`."""
    value, perm = first(inputs), integers(node, "perm")
    return ((tuple(value.shape[axis] for axis in perm), value.dtype),)


def infer_squeeze(node: Node, inputs: Inputs) -> Made:
    """Without the axes named."""
    value, axes = first(inputs), integers(node, "axes")
    return ((tuple(size for axis, size in enumerate(value.shape) if axis not in axes), value.dtype),)


def infer_unsqueeze(node: Node, inputs: Inputs) -> Made:
    """With an axis of size 1 at each place named."""
    value, axes = first(inputs), integers(node, "axes")
    sizes = iter(value.shape)
    rank = len(value.shape) + len(axes)
    return ((tuple(1 if axis in axes else next(sizes) for axis in range(rank)), value.dtype),)


def infer_reduce(node: Node, inputs: Inputs) -> Made:
    """Without the axes named, or with size 1 there when `keepdims` is set."""
    value, axes, keep = first(inputs), integers(node, "axes"), integer(node, "keepdims")
    sizes = enumerate(value.shape)
    return ((tuple(1 if axis in axes else size for axis, size in sizes if keep or axis not in axes), value.dtype),)


def infer_place(node: Node, inputs: Inputs) -> Made:
    """The place of the largest (or smallest) along `axis`, in int64, with size 1 there when `keepdims` is set."""
    shape, axis = first(inputs).shape, integer(node, "axis")
    middle = (1,) if integer(node, "keepdims") else ()
    return (((*shape[:axis], *middle, *shape[axis + 1 :]), np.dtype(np.int64)),)


def infer_pad(node: Node, inputs: Inputs) -> Made:
    """Each axis grown (or cropped, where a pad is negative) at both ends."""
    value, pads = first(inputs), integers(node, "pads")
    rank = len(value.shape)
    shape = tuple(size + pads[axis] + pads[axis + rank] for axis, size in enumerate(value.shape))
    if any(size < 0 for size in shape):
        raise refusal(node.operator, node.name, f"pads that leave something of {value.shape}", str(pads))
    return ((shape, value.dtype),)


def infer_slice(node: Node, inputs: Inputs) -> Made:
    """The elements from each start towards each end, step by step."""
    value, shape = first(inputs), list(first(inputs).shape)
    columns = (integers(node, name) for name in ("starts", "ends", "axes", "steps"))
    for start, end, axis, step in zip(*columns, strict=True):
        stop = -1 if step < 0 and end < 0 else end
        shape[axis] = max(0, -((start - stop) // step))
    return ((tuple(shape), value.dtype),)


def infer_split(node: Node, inputs: Inputs) -> Made:
    """One output per part."""
    value, axis = first(inputs), integer(node, "axis")
    parts = integers(node, "split")
    return tuple(((*value.shape[:axis], part, *value.shape[axis + 1 :]), value.dtype) for part in parts)


def infer_resize(node: Node, inputs: Inputs) -> Made:
    """The sizes named."""
    return ((integers(node, "sizes"), first(inputs).dtype),)


def infer_cast(node: Node, inputs: Inputs) -> Made:
    """The same shape with the element type `to`."""
    return ((first(inputs).shape, element_type(text(node, "to"))),)


def element_type(name: str) -> np.dtype:
    """Return the NumPy element type of a name; bfloat16 and the float8 kinds come from ml_dtypes."""
    try:
        return np.dtype(getattr(ml_dtypes, name, name))
    except TypeError as error:
        raise InvalidGraph(f"element type: expected a NumPy name such as float32, got {name!r}; correct it") from error


def no_multiply_adds(node: Node, inputs: Inputs, outputs: Sequence[Value]) -> int:
    """Zero: only convolutions and matrix products count, as in the literature; other work shows in the bytes moved."""
    return 0


def convolution_multiply_adds(node: Node, inputs: Inputs, outputs: Sequence[Value]) -> int:
    """Every output element sums one product per weight of its filter; padding counts as if it were data."""
    weights = inputs[1]
    assert weights is not None
    return math.prod(outputs[0].shape) * math.prod(weights.shape[1:])


def transposed_convolution_multiply_adds(node: Node, inputs: Inputs, outputs: Sequence[Value]) -> int:
    """Every input element goes into one product per weight of its filter; what is cropped counts as if it were kept."""
    weights = inputs[1]
    assert weights is not None
    return math.prod(first(inputs).shape) * math.prod(weights.shape[1:])


def gemm_multiply_adds(node: Node, inputs: Inputs, outputs: Sequence[Value]) -> int:
    """M x N x K."""
    depth = first(inputs).shape[0 if integer(node, "transA") else 1]
    return math.prod(outputs[0].shape) * depth


def matmul_multiply_adds(node: Node, inputs: Inputs, outputs: Sequence[Value]) -> int:
    """Every output element sums one product per column of the left matrix."""
    return math.prod(outputs[0].shape) * first(inputs).shape[-1]
