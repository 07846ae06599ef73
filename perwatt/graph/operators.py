"""The table of operators: for each its inputs, its attributes with their defaults, its shape rule and its cost rule.

Names and meaning are those of ONNX's newest opset; a default of None follows from the inputs' shapes or must be given.
A new operator is a new row here.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from perwatt.errors import InvalidGraph
from perwatt.graph import attributes as canon
from perwatt.graph import fused_operators as fused
from perwatt.graph import shapes
from perwatt.graph.attributes import Attributes, Inputs
from perwatt.graph.graph import Attribute, Node, Value

MANY = 2**31  # as many inputs as one likes


@dataclass(frozen=True)
class Operator:
    """One row: `inputs` is the least and the greatest number of them; `complete` makes attributes canonical.

    `optional` names the attributes for which None is a value of its own.
    """

    name: str
    inputs: tuple[int, int]
    attributes: Mapping[str, Attribute]
    complete: Callable[[Attributes, Inputs], Attributes]
    infer: Callable[[Node, Inputs], shapes.Made]
    multiply_adds: Callable[[Node, Inputs, Sequence[Value]], int] = shapes.no_multiply_adds
    optional: frozenset[str] = frozenset()


def _row(
    name: str,
    inputs: tuple[int, int],
    infer: Callable[[Node, Inputs], shapes.Made],
    attributes: Mapping[str, Attribute] | None = None,
    complete: Callable[[Attributes, Inputs], Attributes] = canon.complete_nothing,
) -> Operator:
    defaults = MappingProxyType(canon.coerced(name, attributes or {}))
    cost = {
        "Conv": shapes.convolution_multiply_adds,
        "ConvTranspose": shapes.transposed_convolution_multiply_adds,
        "Gemm": shapes.gemm_multiply_adds,
        "MatMul": shapes.matmul_multiply_adds,
        "FusedConv": fused.fused_convolution_multiply_adds,
        "FusedGemm": fused.fused_gemm_multiply_adds,
    }.get(name, shapes.no_multiply_adds)
    return Operator(name, inputs, defaults, complete, infer, cost, frozenset({"activation", "splits"} & set(defaults)))


_WINDOW: dict[str, Attribute] = {"kernel_shape": None, "strides": None, "pads": None, "dilations": None}
_RESIZE: dict[str, Attribute] = {
    "sizes": None,
    "scales": None,
    "mode": "nearest",
    "coordinate_transformation_mode": "half_pixel",
    "nearest_mode": "round_prefer_floor",
    "cubic_coeff_a": -0.75,
    "exclude_outside": 0,
    "extrapolation_value": 0.0,
    "antialias": 0,
}
_SELU: dict[str, Attribute] = {"alpha": 1.67326319217681884765625, "gamma": 1.05070102214813232421875}
_SLICE: dict[str, Attribute] = {"starts": None, "ends": None, "axes": None, "steps": None}
_GEMM: dict[str, Attribute] = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}
_UNARY = ("Identity", "Dropout", "Relu", "Sigmoid", "HardSwish", "Tanh", "Softplus", "Softsign", "Mish")
_UNARY_MATHS = ("Exp", "Log", "Sqrt", "Reciprocal", "Erf", "Neg", "Abs", "Floor", "Ceil")
_ACTIVATION: dict[str, Attribute] = {"activation": None, "activation_alpha": 0.0, "activation_beta": 0.0}

_ROWS = (
    # convolutions and matrix products
    _row("Conv", (2, 3), shapes.infer_convolution, {**_WINDOW, "group": 1}, canon.complete_window),
    _row(
        *("ConvTranspose", (2, 3), shapes.infer_transposed_convolution),
        *({**_WINDOW, "group": 1, "output_padding": None}, canon.complete_transposed_window),
    ),
    _row("Gemm", (2, 3), shapes.infer_gemm, _GEMM),
    _row("MatMul", (2, 2), shapes.infer_matmul),
    # pooling and normalisation
    _row("MaxPool", (1, 1), shapes.infer_pool, {**_WINDOW, "ceil_mode": 0}, canon.complete_window),
    _row(
        *("AveragePool", (1, 1), shapes.infer_pool),
        *({**_WINDOW, "ceil_mode": 0, "count_include_pad": 0}, canon.complete_window),
    ),
    _row("GlobalAveragePool", (1, 1), shapes.infer_global_pool),
    _row("GlobalMaxPool", (1, 1), shapes.infer_global_pool),
    _row("LRN", (1, 1), shapes.infer_same, {"size": None, "alpha": 1e-4, "beta": 0.75, "bias": 1.0}),
    _row("BatchNormalization", (5, 5), shapes.infer_normalization, {"epsilon": 1e-5}),
    _row("Softmax", (1, 1), shapes.infer_same, {"axis": -1}, canon.complete_axis),
    _row("LogSoftmax", (1, 1), shapes.infer_same, {"axis": -1}, canon.complete_axis),
    # one tensor, element by element
    *(_row(name, (1, 1), shapes.infer_same) for name in (*_UNARY, *_UNARY_MATHS)),
    _row("Clip", (1, 1), shapes.infer_same, {"min": -math.inf, "max": math.inf}, canon.complete_clip),
    _row("HardSigmoid", (1, 1), shapes.infer_same, {"alpha": 0.2, "beta": 0.5}),
    _row("LeakyRelu", (1, 1), shapes.infer_same, {"alpha": 0.01}),
    _row("Elu", (1, 1), shapes.infer_same, {"alpha": 1.0}),
    _row("Selu", (1, 1), shapes.infer_same, _SELU),
    _row("Gelu", (1, 1), shapes.infer_same, {"approximate": "none"}),
    _row("Cast", (1, 1), shapes.infer_cast, {"to": None}, canon.complete_cast),
    # several tensors, element by element
    *(_row(name, (2, 2), shapes.infer_broadcast) for name in ("Add", "Sub", "Mul", "Div")),
    *(_row(name, (1, MANY), shapes.infer_broadcast) for name in ("Sum", "Max", "Min", "Mean")),
    _row("Pow", (2, 2), shapes.infer_power),
    _row("PRelu", (2, 2), shapes.infer_prelu),
    # reductions
    *(
        _row(name, (1, 1), shapes.infer_reduce, {"axes": None, "keepdims": 1}, canon.complete_reduce)
        for name in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin")
    ),
    *(
        _row(name, (1, 1), shapes.infer_place, {"axis": 0, "keepdims": 1, "select_last_index": 0}, canon.complete_axis)
        for name in ("ArgMax", "ArgMin")
    ),
    # form
    _row("Concat", (1, MANY), shapes.infer_concat, {"axis": None}, canon.complete_axis),
    _row("Flatten", (1, 1), shapes.infer_flatten, {"axis": 1}, canon.complete_flatten),
    _row("Reshape", (1, 1), shapes.infer_reshape, {"shape": None}, canon.complete_reshape),
    _row("Transpose", (1, 1), shapes.infer_transpose, {"perm": None}, canon.complete_transpose),
    _row("Squeeze", (1, 1), shapes.infer_squeeze, {"axes": None}, canon.complete_squeeze),
    _row("Unsqueeze", (1, 1), shapes.infer_unsqueeze, {"axes": None}, canon.complete_unsqueeze),
    _row("Pad", (1, 1), shapes.infer_pad, {"pads": None, "mode": "constant", "value": 0.0}, canon.complete_pad),
    _row("Slice", (1, 1), shapes.infer_slice, _SLICE, canon.complete_slice),
    _row("Split", (1, 1), shapes.infer_split, {"axis": 0, "split": None}, canon.complete_split),
    _row("Resize", (1, 1), shapes.infer_resize, _RESIZE, canon.complete_resize),
    # perwatt's own, made by passes
    _row(
        *("FusedConv", (2, 4), fused.infer_fused_convolution),
        *({**_WINDOW, "group": 1, **_ACTIVATION, "splits": None}, fused.complete_fused_convolution),
    ),
    _row("FusedGemm", (2, 4), fused.infer_fused_gemm, _ACTIVATION, fused.complete_activation),
    _row("Silu", (1, 1), shapes.infer_same),
)

OPERATORS: Mapping[str, Operator] = MappingProxyType({row.name: row for row in _ROWS})

# A node that the table cannot express keeps its ONNX form and carries the opset it means; see `is_foreign`.
FOREIGN_OPSET, FOREIGN_DOMAIN = "onnx_opset", "onnx_domain"


def is_foreign(node: Node) -> bool:
    """Return whether a node keeps its ONNX form because the table has no row, or no canonical form, for it."""
    return FOREIGN_OPSET in node.attributes


def make(
    operator: str, name: str, inputs: Sequence[str], outputs: Sequence[str], given: Mapping[str, object], known: Inputs
) -> tuple[Node, tuple[Value, ...]]:
    """Return a node with every attribute in canonical form, and the Values of its outputs.

    `known` holds a Value for each of `inputs`, None where one is left out. Raises InvalidGraph when the table has no
    such operator, or the inputs or attributes break its rule.
    """
    row = OPERATORS.get(operator)
    if row is None:
        raise InvalidGraph(f"node {name!r}: expected an operator of the table, got {operator!r}; see graph.OPERATORS")
    unknown = set(given) - set(row.attributes)
    if unknown:
        raise canon.refusal(operator, name, f"attributes among {sorted(row.attributes)}", str(sorted(unknown)))
    least, most = row.inputs
    if not least <= len(inputs) <= most or any(value is None for value in known[:least]):
        wanted = f"{least} inputs" if least == most else f"{least} inputs or more"
        raise canon.refusal(operator, name, wanted, str(list(inputs)))
    try:
        filled = {**row.attributes, **canon.coerced(operator, given)}
        completed = row.complete(filled, known).items()
        missing = [key for key, value in completed if value is None and key not in row.optional]
        if missing:
            raise canon.refusal(operator, "", f"attribute {missing[0]}", "none")
        node = Node(operator, name, tuple(inputs), tuple(outputs), MappingProxyType(row.complete(filled, known)))
        made = row.infer(node, known)
    except InvalidGraph as error:
        if repr(name) in str(error):
            raise
        raise InvalidGraph(f"{operator} node {name!r}: {error}") from error
    if len(made) != len(outputs):
        raise canon.refusal(operator, name, f"{len(made)} outputs", str(len(outputs)))
    values = (Value(output, shape, np.dtype(dtype)) for output, (shape, dtype) in zip(outputs, made, strict=True))
    return node, tuple(values)
