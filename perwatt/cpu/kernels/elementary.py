"""Elementary functions on vectors: logarithm, error function, power and what is made of them; a few ULP each.

NaN stays NaN, infinities and zeros as IEEE 754 and C's mathematical library have it.
"""

import struct
from math import factorial, inf, log, nan, pi, sqrt

from perwatt.cpu.ir import Kernel, Vector
from perwatt.cpu.kernels.activation import exponential

_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
# Cephes' logf: (ln(1 + x) - x + x²/2) / x³ on [sqrt(1/2) - 1, sqrt(2) - 1].
_LOG = (
    *(7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1),
    *(2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1),
)
# Minimax fits made for this file: erf(x)/x in x² on [0, 1] (error 1e-9), and exp(x²)·erfc(x) in 1/(1 + x/2) on
# [1, 10] (relative error 6e-9).
_ERF = (
    *(7.889226253610104e-05, -0.000802087364718318, 0.005189538933336735, -0.026854446157813072),
    *(0.11283600330352783, -0.3761262595653534, 1.1283791065216064),
)
_SCALED_ERFC = (
    *(0.08126871287822723, -0.18630550801753998, 0.02686946466565132, 0.10390228033065796, 0.15873827040195465),
    *(0.2527579069137573, 0.2810289263725281, 0.2821955680847168, -3.939509497286053e-06),
)
_SQRT_HALF_BITS = 0x3F3504F3
_SMALLEST_NORMAL = 1.17549435e-38


def polynomial(k: Kernel, x: Vector, coefficients: tuple[float, ...]) -> Vector:
    """Return the polynomial by Horner's rule; the highest power's coefficient comes first."""
    value = k.constant(coefficients[0])
    for coefficient in coefficients[1:]:
        value = k.fma(value, x, k.constant(coefficient))
    return value


def _split(k: Kernel, x: Vector) -> tuple[Vector, Vector]:
    """Return (e, m) with x = m·2^e and m in [sqrt(1/2), sqrt(2)), for positive normal numbers."""
    kind = f"<{k.lanes} x i32>"

    def every(number: int) -> str:
        return f"<{', '.join([f'i32 {number}'] * k.lanes)}>"

    bits = k.emit(f"bitcast {k.vector} {x.text} to {kind}")
    above = k.emit(f"sub {kind} {bits}, {every(_SQRT_HALF_BITS)}")
    exponent = k.emit(f"ashr {kind} {above}, {every(23)}")
    shifted = k.emit(f"shl {kind} {exponent}, {every(23)}")
    rest = k.emit(f"sub {kind} {bits}, {shifted}")
    return (
        Vector(k, k.emit(f"sitofp {kind} {exponent} to {k.vector}")),
        Vector(k, k.emit(f"bitcast {kind} {rest} to {k.vector}")),
    )


def logarithm(k: Kernel, x: Vector) -> Vector:
    """Return ln x; -infinity at 0, NaN below. Source of the method: Cephes' logf."""
    tiny = x < _SMALLEST_NORMAL
    exponent, mantissa = _split(k, k.select(tiny, x * 2.0**25, x))
    exponent = k.select(tiny, exponent - 25.0, exponent)
    y = mantissa - 1.0
    square = y * y
    value = k.fma(polynomial(k, y, _LOG) * y, square, exponent * _LN2_LOW)
    value = y + k.fma(square, k.constant(-0.5), value)
    value = k.fma(exponent, k.constant(_LN2_HIGH), value)
    value = k.select(x > 3.4028235e38, x, value)
    value = k.select(x > 0.0, value, k.select(x < 0.0, nan, -inf))
    return k.select(x.is_nan(), x, value)


def logarithm_of_one_plus(k: Kernel, x: Vector) -> Vector:
    """Return ln(1 + x) for x >= 0, accurate for small x too: the rounding error of 1 + x is put back."""
    sum_ = x + 1.0
    lost = x - (sum_ - 1.0)
    value = logarithm(k, sum_) + lost / sum_
    return k.select(x > 3.4028235e38, x, value)


def complementary_error(k: Kernel, size: Vector) -> Vector:
    """Return erfc of numbers that are not negative, accurate relative to the result."""
    inside = k.fma(polynomial(k, size * size, _ERF), -size, k.constant(1.0))
    t = k.at_most(size, 10.5)
    square = t * t
    lost = k.fma(t, t, -square)
    scaled = polynomial(k, 1.0 / k.fma(t, k.constant(0.5), k.constant(1.0)), _SCALED_ERFC)
    outside = exponential(k, -square) * scaled * (1.0 - lost)
    return k.select(size < 1.0, inside, outside)


def error_function(k: Kernel, x: Vector) -> Vector:
    """Return erf x."""
    size = k.absolute(x)
    near = polynomial(k, x * x, _ERF) * x
    far = k.with_sign(1.0 - complementary_error(k, size), x)
    return k.select(x.is_nan(), x, k.select(size < 1.0, near, far))


def gelu(k: Kernel, x: Vector) -> Vector:
    """Return x·Φ(x) = x/2·erfc(-x/√2), accurate in the left tail too."""
    tail = complementary_error(k, k.absolute(x) * sqrt(0.5))
    share = k.select(x < 0.0, tail, 2.0 - tail)
    return k.select(x < -14.5, 0.0, x * 0.5 * share)


def gelu_by_tanh(k: Kernel, x: Vector) -> Vector:
    """Return the approximation x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³))) = x / (1 + e^(-2·√(2/π)·(...)))."""
    inner = k.fma(x * x * x, k.constant(0.044715), x) * (-2 * sqrt(2 / pi))
    return k.select(x < -12.0, 0.0, x / (exponential(k, inner) + 1.0))


def softplus(k: Kernel, x: Vector) -> Vector:
    """Return ln(1 + e^x) = max(x, 0) + ln(1 + e^-|x|)."""
    value = k.at_least(x, 0.0) + logarithm_of_one_plus(k, exponential(k, -k.absolute(x)))
    return k.select(x.is_nan(), x, value)


def mish(k: Kernel, x: Vector) -> Vector:
    """Return x·tanh(ln(1 + e^x)) = x·n/(n + 2) with n = e^x·(e^x + 2)."""
    power = exponential(k, k.at_most(x, 30.0))
    n = power * (power + 2.0)
    return k.select(x > 30.0, x, x * (n / (n + 2.0)))


class Wide:
    """V doubles: what a result in float32 needs when an intermediate one must be more exact."""

    __slots__ = ("k", "kind", "text")

    def __init__(self, k: Kernel, text: str) -> None:
        self.k, self.text, self.kind = k, text, f"<{k.lanes} x double>"

    def plus(self, other: "Wide | float") -> "Wide":
        """Return the sum."""
        return self._with("fadd", other)

    def times(self, other: "Wide | float") -> "Wide":
        """Return the product."""
        return self._with("fmul", other)

    def over(self, other: "Wide") -> "Wide":
        """Return the quotient."""
        return self._with("fdiv", other)

    def limited(self, most: float) -> "Wide":
        """Return the number, or the nearer of -most and most where it lies outside; 0 for NaN."""
        value = self
        for predicate, bound in (("ogt", most), ("olt", -most), ("uno", 0.0)):
            limit = _every_double(self.k, bound)
            outside = self.k.emit(f"fcmp {predicate} {self.kind} {value.text}, {limit}")
            text = f"select <{self.k.lanes} x i1> {outside}, {self.kind} {limit}, {self.kind} {value.text}"
            value = Wide(self.k, self.k.emit(text))
        return value

    def series(self, coefficients: tuple[float, ...]) -> "Wide":
        """Return the polynomial by Horner's rule; the highest power's coefficient comes first."""
        value = self.times(coefficients[0]).plus(coefficients[1])
        for coefficient in coefficients[2:]:
            value = value.times(self).plus(coefficient)
        return value

    def narrow(self) -> Vector:
        """Return the nearest float32 numbers."""
        return Vector(self.k, self.k.emit(f"fptrunc {self.kind} {self.text} to {self.k.vector}"))

    def _with(self, operation: str, other: "Wide | float") -> "Wide":
        operand = other.text if isinstance(other, Wide) else _every_double(self.k, other)
        return Wide(self.k, self.k.emit(f"{operation} {self.kind} {self.text}, {operand}"))


def _every_double(k: Kernel, number: float) -> str:
    constant = f"double 0x{struct.unpack('<Q', struct.pack('<d', number))[0]:016X}"
    return f"<{', '.join([constant] * k.lanes)}>"


def widened(k: Kernel, x: Vector) -> Wide:
    """Return the same numbers as doubles."""
    return Wide(k, k.emit(f"fpext {k.vector} {x.text} to <{k.lanes} x double>"))


def power(k: Kernel, x: Vector, y: Vector) -> Vector:
    """Return x^y as C's pow has it: 1 for y = 0 and for x = 1, NaN for x < 0 unless y is whole.

    |x|^y = 2^(y·log2|x|) with the product in doubles, because its error counts up to 128 times.
    """
    size = k.absolute(x)
    tiny = size < _SMALLEST_NORMAL
    exponent, mantissa = _split(k, k.select(tiny, size * 2.0**25, size))
    exponent = k.select(tiny, exponent - 25.0, exponent)
    m = widened(k, mantissa)
    # log2 m = 2/ln 2 · artanh((m - 1)/(m + 1)); the quotient is below 0.172.
    s = m.plus(-1.0).over(m.plus(1.0))
    odd = s.times(s).series(tuple(2 / log(2) / n for n in range(15, 0, -2)))
    logarithm2 = s.times(odd).plus(widened(k, exponent))
    edge = k.select(size > 3.4028235e38, inf, k.select(size > 0.0, 0.0, -inf))
    product = widened(k, y).times(logarithm2.plus(widened(k, edge))).limited(300.0)
    whole = k.floor(product.narrow() + 0.5)
    rest = product.plus(widened(k, -whole))
    fraction = rest.series(tuple(log(2) ** n / factorial(n) for n in range(12, -1, -1))).narrow()
    half = k.floor(whole * 0.5)
    value = fraction * k.power_of_two(k.at_least(half, -126.0)) * k.power_of_two(k.at_least(whole - half, -126.0))
    value = k.select(whole > 140.0, inf, value)
    floored = k.floor(y)
    uneven = (y * 0.5 - k.floor(y * 0.5)) * 2.0  # 1 for odd whole numbers
    negative = k.select(k.equal(uneven, 1.0), k.with_sign(value, x), value)
    negative = k.select(k.equal(floored, y), negative, k.select(size > 3.4028235e38, value, nan))
    value = k.select(x < 0.0, negative, k.select(k.equal(uneven, 1.0), k.with_sign(value, x), value))
    value = k.select(x.is_nan(), x, k.select(y.is_nan(), y, value))
    return k.select(k.equal(y, 0.0), 1.0, k.select(k.equal(x, 1.0), 1.0, value))
