"""Activation functions on vectors, for use at the end of other kernels and on their own."""

import struct
from dataclasses import dataclass

from perwatt.cpu.ir import Kernel, Vector

# Cody and Waite's split of ln 2, and a minimax polynomial of exp on [-ln2/2, ln2/2] (relative error below 1e-7).
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)


@dataclass(frozen=True)
class Activation:
    """What is applied to a result before it is stored: an ONNX operator's name, or None, and its two parameters."""

    name: str | None = None
    alpha: float = 0.0
    beta: float = 0.0

    @property
    def label(self) -> str:
        """The activation with its parameters' bits, as part of a function's name."""
        if self.name is None:
            return "plain"
        return f"{self.name.lower()}_{struct.pack('<ff', self.alpha, self.beta).hex()}"


NO_ACTIVATION = Activation()


def exponential(k: Kernel, x: Vector) -> Vector:
    """Return e^x; below -87.3 the result is 0, above 88.7 infinity; NaN stays.

    Source: Cephes' expf, range reduction by Cody and Waite.
    """
    limited = k.at_most(k.at_least(x, -87.33654), 88.72283)
    whole = k.floor(k.fma(limited, k.constant(1.44269504088896341), k.constant(0.5)))
    rest = k.fma(whole, k.constant(-_LN2_HIGH), limited)
    rest = k.fma(whole, k.constant(-_LN2_LOW), rest)
    value = k.constant(_EXP[0])
    for coefficient in _EXP[1:]:
        value = k.fma(value, rest, k.constant(coefficient))
    value = k.fma(value, rest * rest, rest + 1.0)
    # Two factors, because 2^128 and 2^-126's neighbours leave float32's range in one.
    half = k.floor(whole * 0.5)
    scaled = value * k.power_of_two(half) * k.power_of_two(whole - half)
    scaled = k.select(x > 88.72283, float("inf"), scaled)
    return k.select(x < -87.33654, 0.0, scaled)


def sigmoid(k: Kernel, x: Vector) -> Vector:
    """Return 1 / (1 + e^-x)."""
    return 1.0 / (exponential(k, -x) + 1.0)


def hyperbolic_tangent(k: Kernel, x: Vector) -> Vector:
    """Return tanh x = sign(x)·(1 - 2 / (e^2|x| + 1)); small x through an odd polynomial, which cancels nothing."""
    size = k.absolute(x)
    large = 1.0 - 2.0 / (exponential(k, size * 2.0) + 1.0)
    square = x * x
    # Cephes' tanhf polynomial for |x| < 0.625.
    small = k.constant(-5.70498872745e-3)
    for coefficient in (2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1):
        small = k.fma(small, square, k.constant(coefficient))
    small = k.fma(small * square, x, x)
    signed = k.select(x < 0.0, -large, large)
    return k.select(x.is_nan(), x, k.select(size < 0.625, small, signed))


def activate(k: Kernel, x: Vector, what: Activation) -> Vector:
    """Return activation(x) with ONNX's meaning of the operator `what.name`."""
    match what.name:
        case None:
            return x
        case "Relu":
            return k.at_least(x, 0.0)
        case "Clip":
            return k.at_most(k.at_least(x, what.alpha), what.beta)
        case "LeakyRelu" | "PRelu":
            return k.select(x < 0.0, x * what.alpha, x)
        case "Sigmoid":
            return sigmoid(k, x)
        case "Silu":
            return x * sigmoid(k, x)
        case "Tanh":
            return hyperbolic_tangent(k, x)
        case "HardSigmoid":
            return k.at_most(k.at_least(k.fma(x, k.constant(what.alpha), k.constant(what.beta)), 0.0), 1.0)
        case "HardSwish":
            return x * k.at_most(k.at_least(k.fma(x, k.constant(1 / 6), k.constant(0.5)), 0.0), 1.0)
        case "Elu":
            return k.select(x < 0.0, (exponential(k, k.at_most(x, 0.0)) - 1.0) * what.alpha, x)
        case _:
            raise KeyError(f"no kernel for the activation {what.name}")
