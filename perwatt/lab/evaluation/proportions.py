"""What may be said of shares: intervals of one, and of the difference of two that were counted on the same images."""

import math

from perwatt.lab.record import Estimate

Z = 1.959963984540054  # of a 95 % interval


def wilson(hits: int, count: int) -> Estimate | None:
    """Return a share with Wilson's score interval; None of nothing.

    E. B. Wilson, Journal of the American Statistical Association 22, 1927; it keeps its 95 % near 0 and 1 too, where
    the usual ± does not (Brown, Cai, DasGupta, Statistical Science 16, 2001).
    """
    if count < 1:
        return None
    share = hits / count
    centre = (share + Z * Z / (2 * count)) / (1 + Z * Z / count)
    half = Z / (1 + Z * Z / count) * math.sqrt(share * (1 - share) / count + Z * Z / (4 * count * count))
    # At the very ends the formula gives the end itself, but for rounding.
    low = 0.0 if hits == 0 else centre - half
    high = 1.0 if hits == count else centre + half
    return Estimate(value=share, low=min(low, share), high=max(high, share))


def paired_difference(both: int, only_first: int, only_second: int, neither: int) -> Estimate | None:
    """Return the second share less the first, counted on the same images, with its interval; None of nothing.

    The numbers are of images that are right in both, in one alone, in neither. Newcombe, Statistics in Medicine 17,
    1998, method 10: Wilson's intervals of the two shares, joined with regard to how the two go together. Simpler ones
    (Wald's, also with half an image more in each cell) held a loss of 1 % in 90 of 100 trials on 400 images.
    """
    count = both + only_first + only_second + neither
    first, second = wilson(both + only_first, count), wilson(both + only_second, count)
    if first is None or second is None:
        return None
    product = float(both * neither - only_first * only_second)
    if product > 0:
        product = max(product - count / 2, 0.0)
    spread = (both + only_first) * (only_second + neither) * (both + only_second) * (only_first + neither)
    together = product / math.sqrt(spread) if spread else 0.0
    value = second.value - first.value
    down = _joined(second.value - _end(second.low), _end(first.high) - first.value, together)
    up = _joined(_end(second.high) - second.value, first.value - _end(first.low), together)
    return Estimate(value=value, low=max(-1.0, value - down), high=min(1.0, value + up))


def _joined(one: float, other: float, together: float) -> float:
    return math.sqrt(max(0.0, one * one - 2 * together * one * other + other * other))


def _end(end: float | None) -> float:
    assert end is not None
    return end
