"""The operators that ONNX does not have: convolution and matrix product with what follows them, and Silu.

Passes make them and perwatt's own engine runs them; `decompose.py` spells them out again for everybody else.

    FusedConv(x, weights, bias, residual) = activation(Conv(x, weights) + bias + residual)
    FusedGemm(x, weights, bias, residual) = activation(x · weightsᵀ + bias + residual)     weights [outputs, inputs]
    Silu(x)                               = x · Sigmoid(x)

Bias [M] and residual (the shape of the output) may be left out. `activation` is None or a name among ACTIVATIONS,
with its parameters in `activation_alpha` and `activation_beta` (0 where it has none). A FusedConv with `splits`
(channels per output, else None) has one output for each: several convolutions of one input, run as one.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from perwatt.errors import InvalidGraph
from perwatt.graph import shapes
from perwatt.graph.attributes import Attributes, Inputs, complete_window, first, refusal
from perwatt.graph.graph import Node, Value

# Each activation's own names for what `activation_alpha` and `activation_beta` hold.
ACTIVATIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "Relu": (),
        "Clip": ("min", "max"),
        "LeakyRelu": ("alpha",),
        "Elu": ("alpha",),
        "Sigmoid": (),
        "HardSigmoid": ("alpha", "beta"),
        "Tanh": (),
        "HardSwish": (),
        "Silu": (),
    }
)


def complete_fused_convolution(attributes: Attributes, inputs: Inputs) -> Attributes:
    """Complete the window as for Conv, and check the activation."""
    return complete_window(complete_activation(attributes, inputs), inputs)


def complete_activation(attributes: Attributes, inputs: Inputs) -> Attributes:
    """Check the activation's name; parameters that it does not have are 0."""
    name = attributes["activation"]
    if name is not None and name not in ACTIVATIONS:
        raise refusal("a fused operator", "", f"activation None or one of {sorted(ACTIVATIONS)}", repr(name))
    count = len(ACTIVATIONS[str(name)]) if name is not None else 0
    done = dict(attributes)
    for key in ("activation_alpha", "activation_beta")[count:]:
        done[key] = 0.0
    return done


def infer_fused_convolution(node: Node, inputs: Inputs) -> shapes.Made:
    """As Conv; with `splits` one output per part of the channels."""
    ((shape, dtype),) = shapes.infer_convolution(node, inputs[:3])
    splits = node.attributes["splits"]
    if splits is None:
        _check_residual(node, inputs, shape)
        return ((shape, dtype),)
    if not isinstance(splits, tuple) or not splits or sum(map(int, splits)) != shape[1] or min(map(int, splits)) < 1:
        raise refusal(node.operator, node.name, f"splits that add up to {shape[1]} channels", repr(splits))
    if len(inputs) > 3 and inputs[3] is not None:
        raise refusal(node.operator, node.name, "no residual beside splits", str(inputs[3].shape))
    return tuple(((shape[0], int(part), *shape[2:]), dtype) for part in splits)


def infer_fused_gemm(node: Node, inputs: Inputs) -> shapes.Made:
    """x [N, K] and weights [M, K] give [N, M]."""
    values = shapes.given(node, inputs)
    data, weights = values[0].shape, values[1].shape
    if len(data) != 2 or len(weights) != 2 or data[1] != weights[1]:
        raise refusal(node.operator, node.name, "x [N, K] and weights [M, K]", f"{data} and {weights}")
    bias = inputs[2] if len(inputs) > 2 else None
    if bias is not None and bias.shape != weights[:1]:
        raise refusal(node.operator, node.name, f"a bias of shape {weights[:1]}", str(bias.shape))
    shape = (data[0], weights[0])
    _check_residual(node, inputs, shape)
    return ((shape, values[0].dtype),)


def fused_convolution_multiply_adds(node: Node, inputs: Inputs, outputs: Sequence[Value]) -> int:
    """As Conv, over all outputs."""
    return sum(shapes.convolution_multiply_adds(node, inputs, (output,)) for output in outputs)


def fused_gemm_multiply_adds(node: Node, inputs: Inputs, outputs: Sequence[Value]) -> int:
    """N x M x K."""
    return shapes.matmul_multiply_adds(node, inputs, outputs)


def _check_residual(node: Node, inputs: Inputs, shape: tuple[int, ...]) -> None:
    residual = inputs[3] if len(inputs) > 3 else None
    if residual is None:
        return
    if residual.shape != shape or residual.dtype != first(inputs).dtype:
        got = f"{residual.dtype}{residual.shape}"
        raise InvalidGraph(f"{node.operator} node {node.name!r}: expected a residual of shape {shape}, got {got}")
