"""Which layout a node wants its data in: blocks of channels where kernels have them, ONNX's own order elsewhere."""

from collections.abc import Sequence
from math import prod

import numpy as np

from perwatt.graph import Node, Value
from perwatt.plan.algorithm import Layout

# Operators with kernels for channel blocks whatever their operands.
BLOCKED = {"FusedConv", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LRN"}
# Operators that work on any order as long as their operands agree.
ELEMENTWISE = {
    "Abs", "Ceil", "Clip", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Neg",
    "Reciprocal", "Relu", "Sigmoid", "Silu", "Softplus", "Softsign", "Sqrt", "Tanh",
    "Add", "Div", "Max", "Min", "Mul", "PRelu", "Pow", "Sub", "Sum",
}  # fmt: skip


def layout_of(
    node: Node, inputs: Sequence[Value | None], constants: Sequence[bool], have: Layout, output: Value
) -> Layout:
    """Return the layout a node's data inputs and outputs should have.

    `constants` says which inputs are known in advance, `have` is the layout in which the first input exists already.
    """
    if inputs and inputs[0] is not None and inputs[0].dtype != np.float32:
        return "plain"
    rank = len(output.shape)
    if node.operator == "FusedGemm":
        return "blocked"
    if node.operator in BLOCKED:
        return "blocked" if rank == 4 else "plain"
    if node.operator == "Concat":
        return "blocked" if rank == 4 and node.attributes["axis"] == 1 else "plain"
    if node.operator in ELEMENTWISE and have == "blocked" and rank == 4:
        fitting = all(
            value is None or value.shape == output.shape or _by_channel(value.shape, output.shape, constant)
            for value, constant in zip(inputs, constants, strict=True)
        )
        return "blocked" if fitting else "plain"
    return "plain"


def _by_channel(shape: tuple[int, ...], whole: tuple[int, ...], constant: bool) -> bool:
    """Return whether an operand has one value per channel (or, if constant, one value) of the whole."""
    if constant and prod(shape) == 1:
        return True
    if len(shape) == 4 and shape[2:] == (1, 1) and shape[1] == whole[1]:
        return shape[0] == whole[0] or constant
    return constant and len(shape) == 3 and shape == (whole[1], 1, 1)
