"""Winograd's minimal filtering: the matrices of F(m, r), made from interpolation points, and their evaluation.

y = Aᵀ [(G g) ⊙ (Bᵀ d)] for one dimension: d has α = m + r - 1 inputs, g has r taps, y has m outputs; in two dimensions
every matrix is applied to columns and to rows. Construction: Cook and Toom's algorithm on α - 1 points and infinity
(Lavin and Gray, arXiv 1509.09308; Barabasz et al., arXiv 1803.10986). Points with small error at each size: for α = 6
{0, ±√½, ±√2}, whose rounding error is half that of {0, ±1, ±2}.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import sqrt

import numpy as np

from perwatt.cpu.ir import Kernel, Vector

_HALF, _TWO = sqrt(0.5), sqrt(2.0)
POINTS: dict[int, tuple[float, ...]] = {
    4: (0.0, 1.0, -1.0),
    5: (0.0, 1.0, -1.0, 2.0),
    6: (0.0, _HALF, -_HALF, _TWO, -_TWO),
    7: (0.0, 1.0, -1.0, 2.0, -2.0, 0.4),
    8: (0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5),
}
# RMS error over RMS result of F(outputs, taps) on these points in FP32, measured with filters transformed in FP64 on
# normal and on non-negative inputs of 16 to 512 channels: the transforms' part, and that of each channel, which the
# output transform magnifies (root of their sum).
ERRORS: dict[tuple[int, int], tuple[float, float]] = {
    (2, 3): (0.9e-7, 2.9e-8), (4, 3): (3.0e-7, 8.4e-8), (6, 3): (1.1e-6, 3.3e-7), (2, 5): (3.0e-7, 9.4e-8),
    (4, 5): (1.1e-6, 3.2e-7), (3, 4): (2.1e-7, 9.0e-8), (4, 4): (5.0e-7, 2.3e-7),
}  # fmt: skip


@dataclass(frozen=True)
class Transform:
    """The three matrices of F(outputs, taps), float64: input α x α, weights α x taps, output m x α."""

    outputs: int
    taps: int
    input: np.ndarray
    weights: np.ndarray
    output: np.ndarray

    @property
    def size(self) -> int:
        """α: how many inputs one tile reads along a dimension."""
        return self.outputs + self.taps - 1


@cache
def transform(outputs: int, taps: int) -> Transform:
    """Return the matrices of F(outputs, taps) on the points of its size."""
    size = outputs + taps - 1
    points = POINTS[size]
    weights, inputs, result = np.zeros((size, taps)), np.zeros((size, size)), np.zeros((outputs, size))
    for j, point in enumerate(points):
        others = [p for p in points if p != point]
        weights[j] = point ** np.arange(taps) / np.prod([point - p for p in others])
        inputs[j, : size - 1] = np.poly(others)[::-1]
        result[:, j] = point ** np.arange(outputs)
    weights[-1, taps - 1] = 1.0
    inputs[-1] = np.poly(points)[::-1]
    result[outputs - 1, -1] = 1.0
    return Transform(outputs, taps, np.where(abs(inputs) < 1e-12, 0.0, inputs), weights, result)


def apply(k: Kernel, matrix: np.ndarray, values: Sequence[Vector]) -> list[Vector]:
    """Return matrix · values, one Vector for each row, sharing what rows of opposite points have in common.

    Rows p and -p of Bᵀ have equal even and opposite odd coefficients (even + odd, even - odd); of Aᵀ the same holds for
    columns (sum and difference of two values).
    """
    pairs = _opposite_columns(matrix)
    if pairs:
        return _apply_by_columns(k, matrix, values, pairs)
    results: dict[int, Vector] = {}
    odd = np.arange(matrix.shape[1]) % 2 == 1
    for i, row in enumerate(matrix):
        if i in results:
            continue
        mirror = np.where(odd, -row, row)
        partner = next((j for j in range(i + 1, len(matrix)) if np.allclose(matrix[j], mirror, atol=1e-12)), None)
        if partner is None or not odd @ abs(row) or not ~odd @ abs(row):
            results[i] = _combine(k, row, values)
            continue
        even_part, odd_part = _combine(k, np.where(odd, 0, row), values), _combine(k, np.where(odd, row, 0), values)
        results[i], results[partner] = even_part + odd_part, even_part - odd_part
    return [results[i] for i in range(len(matrix))]


def _opposite_columns(matrix: np.ndarray) -> list[tuple[int, int]]:
    rows, columns = matrix.shape
    if rows >= columns:
        return []
    sign = np.where(np.arange(rows) % 2 == 1, -1.0, 1.0)
    return [
        (i, j)
        for i in range(columns)
        for j in range(i + 1, columns)
        if np.count_nonzero(matrix[:, i]) > 1 and np.allclose(matrix[:, j], sign * matrix[:, i], atol=1e-12)
    ]


def _apply_by_columns(
    k: Kernel, matrix: np.ndarray, values: Sequence[Vector], pairs: list[tuple[int, int]]
) -> list[Vector]:
    paired = {i for pair in pairs for i in pair}
    sums = [(matrix[:, i], values[i] + values[j], values[i] - values[j]) for i, j in pairs]
    results = []
    for row in range(len(matrix)):
        terms = [(float(matrix[row, i]), values[i]) for i in range(len(values)) if i not in paired]
        terms += [(float(column[row]), plus if row % 2 == 0 else minus) for column, plus, minus in sums]
        results.append(_sum_of_products(k, terms))
    return results


def _combine(k: Kernel, row: np.ndarray, values: Sequence[Vector]) -> Vector:
    return _sum_of_products(k, [(float(c), v) for c, v in zip(row, values, strict=True)])


def _sum_of_products(k: Kernel, terms: Sequence[tuple[float, Vector]]) -> Vector:
    """Return the sum of coefficient · value; terms of coefficient ±1 cost an addition, others a fused one."""
    kept = sorted(((c, v) for c, v in terms if c != 0.0), key=lambda term: abs(term[0]) != 1.0)
    first, value = kept[0]
    total = value if first == 1.0 else -value if first == -1.0 else value * first
    for coefficient, value in kept[1:]:
        if coefficient == 1.0:
            total = total + value
        elif coefficient == -1.0:
            total = total - value
        else:
            total = k.multiply_add(value, k.constant(coefficient), total)
    return total
