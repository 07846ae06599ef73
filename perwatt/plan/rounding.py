"""How much of each step's rounding error reaches the answers: the largest value of a window outgrows its error.

What a MaxPool lets pass are the largest of its values, with errors no larger than those of the others, so that the
error over the value shrinks with every pool on the way. For windows of independent normal values behind a ReLU it is

    before  E[error²; x > 0] / E[x²; x > 0]  =  e² / 1
    after   e² P(max > 0) / E[max²; max > 0],  max of n values

which is 0.78 in RMS for 2x2 and 0.62 for 3x3. Values that are alike gain less; but there Winograd's errors, which grow
with what differs within a tile, are smaller in turn (on smooth maps two thirds of those on noise, measured).
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from math import erf, exp, pi, prod, sqrt

from perwatt.plan.algorithm import Step, Tensor
from perwatt.plan.placement import Placement

# Where the integral over a normal value ends, and in how many pieces: the rest is below 1e-12.
_REACH, _PIECES = 8.0, 2000


def error_shares(placement: Placement) -> list[float]:
    """Return, for each step of a placement, how much of its relative error is left at the answers: 0 to 1.

    Where its result takes several ways, that which leaves most of it.
    """
    left = {placement.places[name].buffer: 1.0 for name in placement.outputs}
    found = [1.0] * len(placement.steps)
    for position, step in reversed(list(enumerate(placement.steps))):
        found[position] = max(left.get(buffer, 0.0) for buffer in _buffers(placement, step, step.outputs))
        passes = found[position] * _passes(step)
        for buffer in _buffers(placement, step, step.inputs):
            left[buffer] = max(passes, left.get(buffer, 0.0))
    return found


def _buffers(placement: Placement, step: Step, tensors: Sequence[Tensor | None]) -> Iterator[str]:
    """Yield where tensors lie: parts of a joined one in one buffer, so that its readers are theirs."""
    for tensor in tensors:
        if tensor is not None and tensor.name not in step.constants:
            yield placement.places[tensor.name].buffer


def _passes(step: Step) -> float:
    """Return how much of its input's relative error a step passes on."""
    window = step.attributes.get("kernel_shape")
    if step.operator != "MaxPool" or not isinstance(window, tuple):
        return 1.0
    return largest_of(prod(int(side) for side in window))


@lru_cache
def largest_of(values: int) -> float:
    """Return the relative error of the largest of so many values over that of one of them."""
    width = _REACH / _PIECES
    squares = 0.0
    for piece in range(_PIECES):
        x = (piece + 0.5) * width
        density = values * exp(-x * x / 2) / sqrt(2 * pi) * (0.5 * (1 + erf(x / sqrt(2)))) ** (values - 1)
        squares += x * x * density * width
    return sqrt((1 - 0.5**values) / squares)
