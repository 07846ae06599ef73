"""Fourier transforms of real N x N tiles as unrolled vector code (each lane its own channel), and those of weights.

Along a row the input is real: N/2 + 1 columns of frequencies, the first and the last of them real. Along a column the
transform is complex, but for those two, whose transforms are again half as long. What remains of N² real inputs are N²
real numbers: 4 real frequencies and (N² - 4)/2 complex ones, each with the others' conjugates left out.

Butterflies e ± w·o take six fused multiply-adds: w = c·(1 + i·t) with the tangent or the cotangent, whichever is at
most 1, multiplied in first (Linzer and Feig, IEEE Trans. Signal Processing 41(1), 1993).
"""

from collections.abc import Sequence
from functools import cache
from math import cos, pi, sin
from typing import TypeVar

import numpy as np

from perwatt.cpu.ir import Kernel, Vector

Complex = tuple[Vector, Vector]
_Item = TypeVar("_Item")

# Planes of a transformed tile: the four real frequencies come first, then real and imaginary parts in turn.
REAL_PLANES = 4


@cache
def frequencies(size: int) -> tuple[tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]]:
    """Return the (down, across) of the real and of the complex frequencies of a tile, in the order of their planes.

    Complex ones: columns 1 .. N/2 - 1 whole, then the upper halves of the columns 0 and N/2.
    """
    half = size // 2
    real = ((0, 0), (half, 0), (0, half), (half, half))
    whole = [(down, across) for across in range(1, half) for down in range(size)]
    halves = [(down, across) for across in (0, half) for down in range(1, half)]
    return real, (*whole, *halves)


def transform_weights(size: int, kernels: np.ndarray) -> np.ndarray:
    """Return the planes [N²][K][C] of kernels (K, C, down, across), float64, such that products give correlations.

    That is the conjugate of the kernel's transform, over N² for the inverse transform that divides by nothing.
    """
    outputs, channels, *window = kernels.shape
    matrix = _weight_matrix(size, window[0], window[1])
    flat = matrix @ kernels.reshape(outputs * channels, -1).T.astype(np.float64)
    return np.asarray(flat.reshape(size * size, outputs, channels))


@cache
def _weight_matrix(size: int, rows: int, columns: int) -> np.ndarray:
    """Return the matrix (N², rows·columns) from a flat kernel to its planes."""
    real, complex_ones = frequencies(size)
    down, across = np.array(real + complex_ones).T
    phases = down[:, None, None] * np.arange(rows)[:, None] + across[:, None, None] * np.arange(columns)
    waves = np.exp(2j * pi / size * (phases % size)).reshape(len(down), -1) / (size * size)
    parts = np.stack([waves[len(real) :].real, waves[len(real) :].imag], axis=1).reshape(-1, rows * columns)
    return np.concatenate([waves[: len(real)].real, parts])


def real_transform(k: Kernel, values: Sequence[Vector]) -> tuple[Vector, list[Complex], Vector]:
    """Return frequencies 0, 1 .. n/2 - 1, and n/2 of n real values; the first and the last are real."""
    size = len(values)
    if size == 2:
        return values[0] + values[1], [], values[0] - values[1]
    even_first, even, even_last = real_transform(k, values[0::2])
    odd_first, odd, odd_last = real_transform(k, values[1::2])
    pairs = [_butterfly(k, e, o, i, size, -1, True) for i, (e, o) in enumerate(zip(even, odd, strict=True), start=1)]
    middle = (even_last, -odd_last)
    between = [plus for plus, _ in pairs] + [middle] + [minus for _, minus in reversed(pairs)]
    return even_first + odd_first, between, even_first - odd_first


def complex_transform(k: Kernel, values: Sequence[Complex], sign: int) -> list[Complex]:
    """Return the sums over j of values[j]·exp(sign·2πi·f·j/n) for every f; sign 1 is the inverse, not divided by n."""
    size = len(values)
    if size == 1:
        return list(values)
    even, odd = complex_transform(k, values[0::2], sign), complex_transform(k, values[1::2], sign)
    pairs = [_butterfly(k, e, o, i, size, sign, False) for i, (e, o) in enumerate(zip(even, odd, strict=True))]
    return [plus for plus, _ in pairs] + [minus for _, minus in pairs]


def inverse_real_transform(k: Kernel, first: Vector, between: Sequence[Complex], last: Vector) -> list[Vector]:
    """Return n real values from their frequencies 0, 1 .. n/2 - 1, n/2; not divided by n."""
    if not between:
        return [first + last, first - last]
    size = 2 * (len(between) + 1)
    quarter = size // 4
    even, odd = [], []
    for i in range(1, quarter):
        (a_real, a_imaginary), (b_real, b_imaginary) = between[i - 1], between[size // 2 - i - 1]
        even.append((a_real + b_real, a_imaginary - b_imaginary))
        real, imaginary = a_real - b_real, a_imaginary + b_imaginary
        c, s = k.constant(cos(2 * pi * i / size)), k.constant(sin(2 * pi * i / size))
        odd.append((k.multiply_add(-imaginary, s, real * c), k.multiply_add(imaginary, c, real * s)))
    middle_real, middle_imaginary = between[quarter - 1]
    evens = inverse_real_transform(k, first + last, even, middle_real + middle_real)
    odds = inverse_real_transform(k, first - last, odd, middle_imaginary * -2.0)
    return _interleaved(evens, odds)


def _interleaved(even: Sequence[_Item], odd: Sequence[_Item]) -> list[_Item]:
    return [value for pair in zip(even, odd, strict=True) for value in pair]


def _butterfly(
    k: Kernel, even: Complex, odd: Complex, position: int, size: int, sign: int, conjugate: bool
) -> tuple[Complex, Complex]:
    """Return even + w·odd and even - w·odd, w = exp(sign·2πi·position/size); the difference conjugated if asked."""
    if position == 0 or 4 * position == size:
        real, imaginary = odd
        if position:
            real, imaginary = (imaginary, -real) if sign < 0 else (-imaginary, real)
        plus = (even[0] + real, even[1] + imaginary)
        return plus, (even[0] - real, imaginary - even[1] if conjugate else even[1] - imaginary)
    angle = sign * 2 * pi * position / size
    c, s = cos(angle), sin(angle)
    if abs(c) >= abs(s):
        tangent = k.constant(s / c)
        real, imaginary = k.multiply_add(-odd[1], tangent, odd[0]), k.multiply_add(odd[0], tangent, odd[1])
        factors = k.constant(c), k.constant(c)
    else:  # w·odd = (-s)·(odd.imaginary - cotangent·odd.real) + i·s·(odd.real + cotangent·odd.imaginary)
        cotangent = k.constant(c / s)
        real, imaginary = k.multiply_add(-odd[0], cotangent, odd[1]), k.multiply_add(odd[1], cotangent, odd[0])
        factors = k.constant(-s), k.constant(s)
    plus = (k.multiply_add(real, factors[0], even[0]), k.multiply_add(imaginary, factors[1], even[1]))
    if conjugate:
        return plus, (k.multiply_add(-real, factors[0], even[0]), k.multiply_add(imaginary, factors[1], -even[1]))
    return plus, (k.multiply_add(-real, factors[0], even[0]), k.multiply_add(-imaginary, factors[1], even[1]))
