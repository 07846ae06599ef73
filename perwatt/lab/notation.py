"""How figures are written, in the terminal, the report and the README alike: no digit that the samples do not carry."""

import math

from perwatt.lab.record import Estimate, Figures

ABSENT = "–"


def estimate_text(estimate: Estimate | None) -> str:
    """Return '128.4 ±1.3', rounded to the digits its 95 % interval carries; three digits where there is no interval."""
    if estimate is None:
        return ABSENT
    half = half_width(estimate)
    if half is None:
        return number_text(estimate.value)
    if half <= 0:
        return f"{number_text(estimate.value)} ±0"
    # An interval wider than the value must not round the value itself away.
    places = max(_places(half), -math.floor(math.log10(abs(estimate.value)))) if estimate.value else _places(half)
    return f"{_rounded(estimate.value, places)} ±{_rounded(half, places)}"


def half_width(estimate: Estimate) -> float | None:
    """Return the larger side of the interval, so that ± never promises more than the interval does."""
    if estimate.low is None or estimate.high is None:
        return None
    return max(estimate.high - estimate.value, estimate.value - estimate.low)


def ratio_text(figures: Figures) -> str:
    """Return '1.08 (1.05–1.10)', or 'no difference seen' where the interval covers 1 or is missing."""
    ratio = figures.ratio_to_best
    if ratio is None:
        return ABSENT
    if ratio.low is None or ratio.high is None or figures.verdict == "no difference seen":
        return "no difference seen"
    places = next((places for limit, places in ((0.1, 3), (10, 2), (100, 1)) if ratio.value < limit), 0)
    return f"{ratio.value:.{places}f} ({ratio.low:.{places}f}–{ratio.high:.{places}f})"


def number_text(value: float, digits: int = 3) -> str:
    """Return a number with that many significant digits, thousands separated, never in powers of ten."""
    if value == 0:
        return "0"
    return _rounded(value, digits - 1 - math.floor(math.log10(abs(value))))


def milliseconds_text(seconds: float | None) -> str:
    """Return a duration in milliseconds, three digits, without the unit."""
    return ABSENT if seconds is None else number_text(1000 * seconds)


def error_text(error: float | None) -> str:
    """Return a relative error with one digit: 2e-06."""
    return ABSENT if error is None else f"{error:.0e}" if error else "0"


def percent_text(part: float | None) -> str:
    """Return a share in percent; 100 % only when nothing is missing."""
    if part is None:
        return ABSENT
    text = f"{100 * part:.0f}%"
    return "99.9%" if text == "100%" and part < 1 else text


def count_text(count: int) -> str:
    """Return a large count with three digits and its unit: 61.0 M."""
    for limit, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if count >= limit:
            return f"{count / limit:.3g}{unit}"
    return str(count)


def duration_text(seconds: float) -> str:
    """Return a duration as people say it: '45 s', '3 min 20 s'."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _places(half: float) -> int:
    """Return the decimal places that an uncertainty leaves: two of its digits when it begins with 1 or 2, else one."""
    exponent = math.floor(math.log10(half))
    return -exponent + (1 if half / 10**exponent < 2.95 else 0)


def _rounded(value: float, places: int) -> str:
    return f"{round(value, places):,.{max(places, 0)}f}"
