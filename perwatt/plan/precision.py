"""Precision: how numbers are stored and how products are computed, told apart, and what each costs in error.

Storage is what lies in memory: weights, and activations between steps. Arithmetic is what products are computed in;
their sums are FP32 for every kind but FP16 arithmetic, which widens short runs of sums. Storing weights in half the
bytes needs no instruction that computes on them: a kernel converts them as it loads them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import sqrt
from types import MappingProxyType
from typing import Literal

Element = Literal["fp32", "fp16", "bf16"]
ELEMENT_BYTES: dict[Element, int] = {"fp32": 4, "fp16": 2, "bf16": 2}
# RMS of the relative error of one rounding to nearest: with p bits behind the point it is 2^-p/√12 of a significand m
# that is spread evenly over [1, 2), where the mean of 1/m² is 1/2.
FRACTION_BITS: dict[Element, int] = {"fp32": 23, "fp16": 10, "bf16": 7}
ROUNDING: dict[Element, float] = {element: 2.0**-bits / sqrt(24) for element, bits in FRACTION_BITS.items()}
# The largest finite number, and the smallest that keeps all its digits.
LARGEST: dict[Element, float] = {"fp32": 3.4028235e38, "fp16": 65504.0, "bf16": 3.3895314e38}
SMALLEST_NORMAL: dict[Element, float] = {"fp32": 2.0**-126, "fp16": 2.0**-14, "bf16": 2.0**-126}


@dataclass(frozen=True)
class Allowance:
    """What a step may use besides FP32, which it always may: kinds of stored weights, kinds of arithmetic."""

    weights: tuple[Element, ...] = ()
    arithmetic: tuple[Element, ...] = ()

    def permits(self, weights: Element, arithmetic: Element) -> bool:
        """Return whether weights may be stored, and products computed, in these."""
        return (weights == "fp32" or weights in self.weights) and (
            arithmetic == "fp32" or arithmetic in self.arithmetic
        )

    @property
    def error(self) -> float:
        """RMS of the relative error that the coarsest permitted rounding gives a sum of products; 0 for FP32 alone."""
        weights = max((ROUNDING[each] for each in self.weights), default=0.0)
        inputs = max((ROUNDING[each] for each in self.arithmetic), default=0.0)
        return sqrt(weights**2 + inputs**2)


FP32_ONLY = Allowance()


@dataclass(frozen=True)
class Precision:
    """What a network may use: `allowed` for all steps but those named in `steps`.

    `storage` is how activations lie between steps, where those that write and read them can; those in `kept` stay FP32.
    """

    allowed: Allowance = FP32_ONLY
    steps: Mapping[str, Allowance] = field(default_factory=lambda: MappingProxyType({}))
    storage: Element = "fp32"
    kept: frozenset[str] = frozenset()

    def of(self, step: str) -> Allowance:
        """Return what a step may use."""
        return self.steps.get(step, self.allowed)


FP32_NETWORK = Precision()


def uniform(element: Element, storage: Element = "fp32") -> Precision:
    """Return the precision of a network all of whose steps may use one element."""
    allowed = FP32_ONLY if element == "fp32" else Allowance((element,), (element,))
    return Precision(allowed, storage=storage)


def rounding_error(weights: Element, inputs: Element) -> float:
    """Return the RMS error over RMS result of a sum of products whose factors were rounded to these; FP32 counts as 0.

    Errors of the terms are independent, so a sum's relative error is that of one term, whatever its length.
    """
    return sqrt(sum(ROUNDING[each] ** 2 for each in (weights, inputs) if each != "fp32"))
