"""Every type of Caffe layer that perwatt understands, in one table, and those that only training has.

Formulas are those of Caffe's layers; one that works number by number stands here, the others in the files beside.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from perwatt.graph import caffe_affine as affine
from perwatt.graph import caffe_forms as forms
from perwatt.graph import caffe_windows as windows
from perwatt.graph.caffe_format import ENUMS
from perwatt.graph.caffe_place import Place, Step

ELTWISE = {number: name for name, number in ENUMS["EltwiseOp"].items()}
REDUCTIONS = {number: name for name, number in ENUMS["ReductionOp"].items()}
MANY = 4096


@dataclass(frozen=True)
class Kind:
    """How a type of layer becomes nodes: `write` returns a tensor for each top; least and most bottoms and tops."""

    write: Callable[[Place], tuple[str, ...]]
    bottoms: tuple[int, int] = (1, 1)
    tops: tuple[int, int] = (1, 1)


def _unary(operator: str) -> Kind:
    return Kind(lambda place: (place.add(operator, place.inputs),))


def _relu(place: Place) -> tuple[str, ...]:
    slope = float(place.parameters("relu_param").negative_slope)
    if slope == 0.0:
        return (place.add("Relu", place.inputs),)
    return (place.add("LeakyRelu", place.inputs, alpha=slope),)


def _elu(place: Place) -> tuple[str, ...]:
    return (place.add("Elu", place.inputs, alpha=float(place.parameters("elu_param").alpha)),)


def _dropout(place: Place) -> tuple[str, ...]:
    """Nothing at inference; with scale_train false (some forks) the expectation is kept here: y = x · (1 - ratio)."""
    parameters = place.parameters("dropout_param")
    if not parameters.scale_train:
        return (place.chain(place.inputs[0], ("Mul", (1.0 - parameters.dropout_ratio,), {})),)
    return (place.add("Dropout", place.inputs),)


def _softmax(place: Place) -> tuple[str, ...]:
    return (place.add("Softmax", place.inputs[:1], axis=place.axis(place.parameters("softmax_param").axis)),)


def _line(scale: float, shift: float) -> list[Step]:
    """Return the steps of scale · x + shift that do something."""
    steps: list[Step] = []
    if scale != 1:
        steps.append(("Mul", (scale,), {}))
    if shift != 0:
        steps.append(("Add", (shift,), {}))
    return steps


def _power(place: Place) -> tuple[str, ...]:
    """y = (shift + scale · x)^power."""
    given = place.parameters("power_param")
    steps = _line(given.scale, given.shift)
    if given.power != 1:
        steps.append(("Pow", (given.power,), {}))
    return (place.chain(place.inputs[0], *steps),)


def _base(place: Place, base: float) -> float:
    """Return the natural logarithm of the base; -1 stands for e."""
    if base != -1 and (base <= 0 or (base == 1 and place.layer.type == "Log")):
        raise place.refusal("a base above 0 (a logarithm's is not 1), or -1 for e", str(base), "correct the prototxt")
    return 1.0 if base == -1 else math.log(base)


def _exp(place: Place) -> tuple[str, ...]:
    """y = base^(shift + scale · x)."""
    given = place.parameters("exp_param")
    rate = _base(place, given.base)
    return (place.chain(place.inputs[0], *_line(rate * given.scale, rate * given.shift), ("Exp", (), {})),)


def _log(place: Place) -> tuple[str, ...]:
    """y = log_base(shift + scale · x)."""
    given = place.parameters("log_param")
    steps = [*_line(given.scale, given.shift), ("Log", (), {})]
    return (place.chain(place.inputs[0], *steps, *_line(1 / _base(place, given.base), 0.0)),)


def _clip(place: Place) -> tuple[str, ...]:
    given = place.parameters("clip_param")
    if not given.HasField("min") or not given.HasField("max"):
        raise place.refusal("min and max", "one of them or none", "add both to clip_param")
    return (place.add("Clip", place.inputs, min=given.min, max=given.max),)


def _threshold(place: Place) -> tuple[str, ...]:
    """y = 1 above the threshold and 0 elsewhere: the part above it, cut at 1 and rounded up."""
    above = float(place.parameters("threshold_param").threshold)
    steps: tuple[Step, ...] = (("Sub", (above,), {}), ("Clip", (), {"min": 0.0, "max": 1.0}), ("Ceil", (), {}))
    return (place.chain(place.inputs[0], *steps),)


def _swish(place: Place) -> tuple[str, ...]:
    """y = x · sigmoid(beta · x)."""
    beta = float(place.parameters("swish_param").beta)
    gate = place.inputs[0]
    if beta != 1:
        gate = place.add("Mul", (gate, place.constant("beta", np.float32(beta))), "scaled")
    gate = place.add("Sigmoid", (gate,), "gate")
    return (place.add("Mul", (place.inputs[0], gate)),)


def _eltwise(place: Place) -> tuple[str, ...]:
    """The product, largest or sum of equally shaped tensors, each summand times its coefficient."""
    given, inputs = place.parameters("eltwise_param"), list(place.inputs)
    shapes = {place.shape(position) for position in range(len(inputs))}
    operation, coefficients = ELTWISE[given.operation], list(given.coeff)
    if len(shapes) != 1:
        raise place.refusal(
            "bottoms of one shape", " and ".join(map(str, sorted(shapes))), "is the input's size right?"
        )
    if coefficients and (operation != "SUM" or len(coefficients) != len(inputs)):
        raise place.refusal(
            f"operation SUM and {len(inputs)} coefficients",
            f"{operation} and {len(coefficients)}",
            "correct the prototxt",
        )
    if operation == "MAX":
        return (place.add("Max", inputs),)
    if operation == "PROD":
        return (place.chain(inputs[0], *(("Mul", (name,), {}) for name in inputs[1:])),)
    if coefficients == [1.0, -1.0]:
        return (place.add("Sub", inputs),)
    for position, coefficient in enumerate(coefficients):
        if coefficient != 1:
            by = place.constant(f"coefficient{position + 1}", np.float32(coefficient))
            inputs[position] = place.add("Mul", (inputs[position], by), f"part{position + 1}")
    return (place.add("Add" if len(inputs) == 2 else "Sum", inputs),)


def _argmax(place: Place) -> tuple[str, ...]:
    """The place of the largest along `axis`, or of the whole image without one, as a real number."""
    given = place.parameters("argmax_param")
    if given.top_k != 1 or given.out_max_val:
        raise place.refusal(
            "top_k 1 without out_max_val",
            f"top_k {given.top_k}, out_max_val {given.out_max_val}",
            "cut the network before it with --outputs",
        )
    data, axis = place.inputs[0], 1
    if given.HasField("axis"):
        axis = place.axis(given.axis)
    else:
        data = place.add("Flatten", (data,), "flat", axis=1)
    found = place.add("ArgMax", (data,), "place", axis=axis)
    if not given.HasField("axis"):
        found = place.add("Unsqueeze", (found,), "axes", axes=(2,))
    return (place.add("Cast", (found,), to="float32"),)


def _mean_variance(place: Place) -> tuple[str, ...]:
    """y = (x - mean) / (deviation + eps) over each map, or over each image with across_channels (MVN)."""
    given = place.parameters("mvn_param")
    rank = len(place.shape())
    axes = tuple(range(1 if given.across_channels else 2, rank))
    if rank != 4:
        raise place.refusal("four axes", f"shape {place.shape()}", "reshape it")
    mean = place.add("ReduceMean", place.inputs, "mean", axes=axes)
    if not given.normalize_variance:
        return (place.add("Sub", (place.inputs[0], mean)),)
    centred = place.add("Sub", (place.inputs[0], mean), "centred")
    square = place.add("Mul", (centred, centred), "square")
    variance = place.add("ReduceMean", (square,), "variance", axes=axes)
    deviation = place.add("Sqrt", (variance,), "deviation")
    divisor = place.add("Add", (deviation, place.constant("eps", np.float32(given.eps))), "divisor")
    return (place.add("Div", (centred, divisor)),)


def _reduction(place: Place) -> tuple[str, ...]:
    """The sum, sum of magnitudes, sum of squares or mean of all axes from `axis` on, times a coefficient."""
    given, data = place.parameters("reduction_param"), place.inputs[0]
    operation, axis = REDUCTIONS[given.operation], place.axis(given.axis)
    if operation == "ASUM":
        data = place.add("Abs", (data,), "magnitudes")
    elif operation == "SUMSQ":
        data = place.add("Mul", (data, data), "squares")
    axes = tuple(range(axis, len(place.shape())))
    steps: list[Step] = [("ReduceMean" if operation == "MEAN" else "ReduceSum", (), {"axes": axes, "keepdims": 0})]
    return (place.chain(data, *steps, *_line(given.coeff, 0.0)),)


LAYERS: Mapping[str, Kind] = MappingProxyType(
    {
        "AbsVal": _unary("Abs"),
        "ArgMax": Kind(_argmax),
        "BatchNorm": Kind(affine.batch_normalization),
        "Bias": Kind(affine.bias, bottoms=(1, 2)),
        "BNLL": _unary("Softplus"),  # log(1 + e^x)
        "Clip": Kind(_clip),
        "Concat": Kind(forms.concat, bottoms=(1, MANY)),
        "Convolution": Kind(windows.convolution),
        "ConvolutionDepthwise": Kind(windows.convolution),  # forks' names for a group of one channel
        "Crop": Kind(forms.crop, bottoms=(2, 2)),
        "Deconvolution": Kind(windows.deconvolution),
        "DepthwiseConvolution": Kind(windows.convolution),
        "Dropout": Kind(_dropout),
        "Eltwise": Kind(_eltwise, bottoms=(2, MANY)),
        "ELU": Kind(_elu),
        "Exp": Kind(_exp),
        "Flatten": Kind(forms.flatten),
        "InnerProduct": Kind(affine.inner_product),
        "Log": Kind(_log),
        "LRN": Kind(windows.local_response),
        "MVN": Kind(_mean_variance),
        "Permute": Kind(forms.permute),
        "Pooling": Kind(windows.pooling),
        "Power": Kind(_power),
        "PReLU": Kind(affine.prelu),
        "Reduction": Kind(_reduction),
        "ReLU": Kind(_relu),
        "ReLU6": Kind(lambda place: (place.add("Clip", place.inputs, min=0.0, max=6.0),)),
        "Reshape": Kind(forms.reshape),
        "Scale": Kind(affine.scale, bottoms=(1, 2)),
        "Sigmoid": _unary("Sigmoid"),
        "Slice": Kind(forms.slice_, tops=(1, MANY)),
        "Softmax": Kind(_softmax),
        "Split": Kind(forms.split, tops=(1, MANY)),
        "Swish": Kind(_swish),
        "TanH": _unary("Tanh"),
        "Threshold": Kind(_threshold),
        "Tile": Kind(forms.tile),
    }
)

# Types that have learned something (Scale and Bias only with one bottom).
WEIGHTED = frozenset(
    {"BatchNorm", "Bias", "Convolution", "ConvolutionDepthwise", "Deconvolution", "DepthwiseConvolution"}
    | {"InnerProduct", "PReLU", "Scale"}
)

# What only training and testing have. A loss that stands for an answer becomes that answer.
ANSWERS: Mapping[str, str] = MappingProxyType({"SoftmaxWithLoss": "Softmax", "SigmoidCrossEntropyLoss": "Sigmoid"})
SINKS = frozenset({"Accuracy", "Silence", "HDF5Output"})


def is_source(kind: str) -> bool:
    """Return whether layers of a type bring in pictures and labels, so that the caller's input takes their place."""
    return kind == "Input" or kind.endswith("Data")


def is_sink(kind: str) -> bool:
    """Return whether layers of a type only judge what others make."""
    return kind in SINKS or (kind.endswith("Loss") and kind not in ANSWERS)
