"""Every operator that works element by element, as a function of vectors with ONNX's meaning."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from types import MappingProxyType

from perwatt.cpu.ir import Kernel, Vector
from perwatt.cpu.kernels import elementary
from perwatt.cpu.kernels.activation import Activation, activate, exponential
from perwatt.plan.algorithm import Step

Function = Callable[[Kernel, Sequence[Vector], Sequence[float]], Vector]


def minimum(k: Kernel, a: Vector, b: Vector) -> Vector:
    """Return the smaller of two, per lane; no number (NaN) stays no number."""
    return k.select(a.is_nan(), a, k.select(a < b, a, b))


def _activation(name: str) -> Function:
    def apply(k: Kernel, x: Sequence[Vector], numbers: Sequence[float]) -> Vector:
        return activate(k, x[0], Activation(name, *numbers))

    return apply


def _unary(function: Callable[[Kernel, Vector], Vector]) -> Function:
    return lambda k, x, numbers: function(k, x[0])


def _fold(function: Callable[[Kernel, Vector, Vector], Vector]) -> Function:
    return lambda k, x, numbers: reduce(lambda a, b: function(k, a, b), x)


def _expm1(k: Kernel, x: Vector) -> Vector:
    """Return e^x - 1 for x <= 0: a Taylor polynomial near zero, where the subtraction would cancel."""
    series = tuple(1 / math.factorial(n) for n in range(9, 0, -1))
    return k.select(x > -0.5, elementary.polynomial(k, x, series) * x, exponential(k, x) - 1.0)


def _elu(k: Kernel, x: Sequence[Vector], numbers: Sequence[float]) -> Vector:
    return k.select(x[0] < 0.0, _expm1(k, x[0]) * numbers[0], x[0])


def _selu(k: Kernel, x: Sequence[Vector], numbers: Sequence[float]) -> Vector:
    alpha, gamma = numbers
    return k.select(x[0] < 0.0, _expm1(k, x[0]) * (alpha * gamma), x[0] * gamma)


def _gelu(k: Kernel, x: Sequence[Vector], numbers: Sequence[float]) -> Vector:
    return elementary.gelu_by_tanh(k, x[0]) if numbers[0] else elementary.gelu(k, x[0])


def _mean(k: Kernel, x: Sequence[Vector], numbers: Sequence[float]) -> Vector:
    return reduce(lambda a, b: a + b, x) * numbers[0]


def _prelu(k: Kernel, x: Sequence[Vector], numbers: Sequence[float]) -> Vector:
    return k.select(x[0] < 0.0, x[0] * x[1], x[0])


def _batch_normalization(k: Kernel, x: Sequence[Vector], numbers: Sequence[float]) -> Vector:
    value, scale, shift, mean, variance = x
    return k.fma((value - mean) / k.square_root(variance + numbers[0]), scale, shift)


def _scale_and_shift(k: Kernel, x: Sequence[Vector], numbers: Sequence[float]) -> Vector:
    return k.fma(x[0], x[1], x[2])


FUNCTIONS: Mapping[str, Function] = MappingProxyType(
    {
        "Identity": lambda k, x, numbers: x[0],
        **{name: _activation(name) for name in ("Relu", "Clip", "LeakyRelu", "Sigmoid", "Silu", "Tanh")},
        **{name: _activation(name) for name in ("HardSigmoid", "HardSwish")},
        "Elu": _elu,
        "Selu": _selu,
        "Gelu": _gelu,
        "Exp": _unary(exponential),
        "Log": _unary(elementary.logarithm),
        "Sqrt": _unary(lambda k, x: k.square_root(x)),
        "Abs": _unary(lambda k, x: k.absolute(x)),
        "Neg": _unary(lambda k, x: -x),
        "Floor": _unary(lambda k, x: k.floor(x)),
        "Ceil": _unary(lambda k, x: k.ceiling(x)),
        "Reciprocal": _unary(lambda k, x: 1.0 / x),
        "Softplus": _unary(elementary.softplus),
        "Softsign": _unary(lambda k, x: x / (k.absolute(x) + 1.0)),
        "Erf": _unary(elementary.error_function),
        "Mish": _unary(elementary.mish),
        "Add": _fold(lambda k, a, b: a + b),
        "Sum": _fold(lambda k, a, b: a + b),
        "Sub": _fold(lambda k, a, b: a - b),
        "Mul": _fold(lambda k, a, b: a * b),
        "Div": _fold(lambda k, a, b: a / b),
        "Max": _fold(lambda k, a, b: k.maximum(a, b)),
        "Min": _fold(minimum),
        "Mean": _mean,
        "Pow": _fold(elementary.power),
        "PRelu": _prelu,
        "BatchNormalization": _batch_normalization,
        "ScaleAndShift": _scale_and_shift,
        "ClipBetween": lambda k, x, numbers: minimum(k, k.maximum(x[0], x[1]), x[2]),
        "Scale": lambda k, x, numbers: x[0] * numbers[0],
        "WeightedSum": lambda k, x, numbers: k.fma(x[0], k.constant(numbers[0]), x[1] * numbers[1]),
    }
)
# Functions that are parts of other operators, or stand for several.
INTERNAL = ("Identity", "ScaleAndShift", "ClipBetween", "Scale", "WeightedSum")
# Operators that copy: in plain order a new shape moves nothing.
COPIES = ("Identity", "Dropout", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Cast")
_NUMBERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "Clip": ("min", "max"),
        "LeakyRelu": ("alpha",),
        "HardSigmoid": ("alpha", "beta"),
        "Elu": ("alpha",),
        "Selu": ("alpha", "gamma"),
        "BatchNormalization": ("epsilon",),
    }
)


def clips_between(step: Step) -> bool:
    """Return whether a step is a Clip in its ONNX form, whose bounds are inputs known only when the network runs."""
    return step.operator == "Clip" and "min" not in step.attributes


def function_of(step: Step) -> str:
    """Return the name of the function a step applies."""
    if step.operator in COPIES:
        return "Identity"
    if not clips_between(step):
        return step.operator
    low, high = (len(step.inputs) > i and step.inputs[i] is not None for i in (1, 2))
    return "ClipBetween" if low and high else "Max" if low else "Min" if high else "Identity"


def numbers(step: Step) -> tuple[float, ...]:
    """Return the attributes that steer the operator, as the numbers its function takes."""
    if clips_between(step):
        return ()
    if step.operator == "Gelu":
        return (float(step.attributes["approximate"] == "tanh"),)
    if step.operator == "Mean":
        return (1 / len(step.inputs),)
    found = [step.attributes[name] for name in _NUMBERS.get(step.operator, ())]
    return tuple(float(value) for value in found if isinstance(value, int | float))
