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


def paired_difference(only_first: int, only_second: int, count: int) -> Estimate | None:
    """Return the second share minus the first, counted on the same `count` images, with its interval; None of nothing.

    `only_first` images are right in the first alone, `only_second` in the second alone. Wald's interval after half an
    image is added to each of the four cells: Agresti and Min, Statistics in Medicine 24, 2005.
    """
    if count < 1:
        return None
    first, second, total = only_first + 0.5, only_second + 0.5, count + 2.0
    centre = (second - first) / total
    half = Z * math.sqrt(max(0.0, first + second - (second - first) ** 2 / total)) / total
    value = (only_second - only_first) / count
    return Estimate(value=value, low=max(-1.0, min(centre - half, value)), high=min(1.0, max(centre + half, value)))
