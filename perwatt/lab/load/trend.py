"""The slope of a noisy series: does memory grow?"""

from collections.abc import Sequence

import numpy as np

from perwatt.lab.record import Estimate

FEWEST = 8
MOST = 400  # points, for all pairs are looked at
START_SHARE = 1 / 3  # of the time: caches and pools fill, which is no leak
_Z = 1.959964


def slope(times_s: Sequence[float], values: Sequence[float]) -> Estimate | None:
    """Return the slope per second with its 95 % interval over the later two thirds; None with too few values.

    The median of the slopes of all pairs (Theil 1950), the interval from the distribution of Kendall's statistic (Sen,
    Journal of the American Statistical Association 63, 1968). Neither jumps nor outliers move it much.
    """
    if len(times_s) < FEWEST or len(times_s) != len(values):
        return None
    times, points = np.asarray(times_s, dtype=np.float64), np.asarray(values, dtype=np.float64)
    late = times >= times[0] + START_SHARE * (times[-1] - times[0])
    times, points = times[late], points[late]
    if len(times) > MOST:
        chosen = np.linspace(0, len(times) - 1, MOST).astype(int)
        times, points = times[chosen], points[chosen]
    count = len(times)
    first, second = np.triu_indices(count, 1)
    apart = times[second] - times[first]
    slopes = np.sort((points[second] - points[first])[apart > 0] / apart[apart > 0])
    if not len(slopes) or count < FEWEST // 2:
        return None
    spread = _Z * np.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    low = int(np.clip((len(slopes) - spread) / 2, 0, len(slopes) - 1))
    high = int(np.clip((len(slopes) + spread) / 2, 0, len(slopes) - 1))
    return Estimate(value=float(np.median(slopes)), low=float(slopes[low]), high=float(slopes[high]))
