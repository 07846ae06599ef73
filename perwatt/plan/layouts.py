"""Which layout a node wants its data in: blocks of channels where kernels have them, ONNX's own order elsewhere."""

from collections.abc import Sequence
from math import isfinite, prod

import numpy as np

from perwatt.graph import Node, Value, integers, is_foreign, number, numbers
from perwatt.plan.algorithm import Layout

# Operators with kernels for channel blocks whatever their operands.
BLOCKED = {"FusedConv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LRN"}
# The widest pooling window for which kernels keep a row of blocks in registers, by floats in one.
WIDEST_POOL = {16: 24, 8: 11, 4: 24}
# Operators that work on any order as long as their operands agree.
ELEMENTWISE = {
    "Abs", "Ceil", "Clip", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Mish",
    "Neg", "Reciprocal", "Relu", "Selu", "Sigmoid", "Silu", "Softplus", "Softsign", "Sqrt", "Tanh",
    "Add", "Div", "Max", "Mean", "Min", "Mul", "PRelu", "Pow", "Sub", "Sum",
    "Cast", "Dropout",
}  # fmt: skip
# Operators with kernels for both orders, for some of their forms: they take what is there.
EITHER = {
    "BatchNormalization", "LogSoftmax", "Pad", "ReduceMax", "ReduceMean", "Resize", "Slice", "Softmax", "Split",
}  # fmt: skip


def layout_of(
    node: Node, inputs: Sequence[Value | None], constants: Sequence[bool], have: Layout, output: Value, lanes: int
) -> Layout:
    """Return the layout a node's data inputs and outputs should have.

    `constants` says which inputs are known in advance, `have` is the layout in which the first input exists already,
    `lanes` are the floats of one register.
    """
    if is_foreign(node) or (inputs and inputs[0] is not None and inputs[0].dtype != np.float32):
        return "plain"
    rank = len(output.shape)
    if node.operator == "FusedGemm":
        return "blocked"
    if node.operator in ("MaxPool", "AveragePool") and inputs[0] is not None and rank in (3, 4):
        return "blocked" if _pools_in_blocks(node, inputs[0].shape, output.shape, lanes) else "plain"
    if node.operator in BLOCKED:
        return "blocked" if rank in (3, 4) else "plain"
    if node.operator == "Concat":
        channels = node.attributes["axis"] == 1 or (have == "blocked" and node.attributes["axis"] != 0)
        return "blocked" if rank == 4 and channels and not any(constants) else "plain"
    if have != "blocked" or rank not in (2, 3, 4):
        return "plain"
    if node.operator in ELEMENTWISE:
        pairs = zip(inputs, constants, strict=True)
        fitting = all(value is None or _fits(value.shape, output.shape, constant) for value, constant in pairs)
        return "blocked" if fitting else "plain"
    if node.operator in EITHER and inputs[0] is not None:
        return "blocked" if _leaves_channels(node, inputs[0].shape, output.shape, constants) else "plain"
    return "plain"


def _fits(shape: tuple[int, ...], whole: tuple[int, ...], constant: bool) -> bool:
    """Return whether an element-wise kernel can broadcast an operand to blocks of the whole.

    Constants are packed for it; another operand has as many axes, and all pixels of the whole or one.
    """
    if constant:
        return len(shape) <= len(whole)
    if len(shape) != len(whole):
        return False
    leading = all(size in (1, full) for size, full in zip(shape[:2], whole[:2], strict=True))
    return leading and (shape[2:] == whole[2:] or prod(shape[2:]) == 1)


def _pools_in_blocks(node: Node, shape: tuple[int, ...], out: tuple[int, ...], lanes: int) -> bool:
    """Return whether a pooling window is narrow enough for blocks, and always holds some of the map."""
    kernel, strides, dilations = (integers(node, name) for name in ("kernel_shape", "strides", "dilations"))
    pads = integers(node, "pads")
    for axis in range(len(kernel)):
        start = np.arange(out[2 + axis])[:, None] * strides[axis] - pads[axis]
        taps = start + np.arange(kernel[axis]) * dilations[axis]
        if not ((taps >= 0) & (taps < shape[2 + axis])).any(axis=1).all():
            return False
    return kernel[-1] <= WIDEST_POOL[lanes]


def _leaves_channels(node: Node, shape: tuple[int, ...], out: tuple[int, ...], constants: Sequence[bool]) -> bool:
    """Return whether there is a kernel for blocks: most of these work along the pixels only."""
    match node.operator:
        case "BatchNormalization":
            return all(constants[1:])
        case "Softmax" | "LogSoftmax":
            return node.attributes["axis"] == 1
        case "Split":
            return len(shape) > 2 or node.attributes["axis"] == 1
        case "Slice":
            axes = integers(node, "axes")
            return (axes == (1,) and integers(node, "steps") == (1,)) or (len(shape) > 2 and 1 not in axes)
        case "ReduceMean" | "ReduceMax":
            return len(shape) > 2 and integers(node, "axes") == tuple(range(2, len(shape))) and len(out) >= 2
        case "Pad":
            pads = integers(node, "pads")
            return len(shape) > 2 and pads[1] == pads[1 + len(shape)] == 0 and isfinite(number(node, "value"))
        case _:  # Resize
            return len(shape) > 2 and shape[:2] == out[:2] and numbers(node, "scales")[:2] == (1, 1)
