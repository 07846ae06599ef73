"""A figure is printed with the digits that it carries, and no others."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perwatt.lab.notation import (
    count_text,
    duration_text,
    error_text,
    estimate_text,
    milliseconds_text,
    number_text,
    percent_text,
    ratio_text,
)
from perwatt.lab.record import NO_FIGURES, Estimate


def around(value: float, half: float | None) -> Estimate:
    if half is None:
        return Estimate(value=value, low=None, high=None)
    return Estimate(value=value, low=value - half, high=value + half)


@pytest.mark.parametrize(
    ("value", "half", "text"),
    [
        (45.237, 2.04, "45.2 ±2.0"),
        (45.237, 3.04, "45 ±3"),
        (3216.4, 35.2, "3,220 ±40"),
        (3216.4, 12.2, "3,216 ±12"),
        (84.0137, 0.0263, "84.014 ±0.026"),
        (12345.6, 1512.0, "12,300 ±1,500"),
        (0.0123, 0.00051, "0.0123 ±0.0005"),
        (84.0137, None, "84.0"),
        (84.0, 0.0, "84.0 ±0"),
        (2.22, 400.0, "2 ±400"),
        (104.0, 9000.0, "100 ±9,000"),
    ],
)
def test_the_interval_decides_the_digits(value: float, half: float | None, text: str) -> None:
    assert estimate_text(around(value, half)) == text


def test_the_wider_side_is_printed() -> None:
    assert estimate_text(Estimate(value=100.0, low=95.0, high=101.0)) == "100 ±5"


@given(st.floats(1e-3, 1e6), st.floats(1e-4, 0.5))
def test_rounding_stays_within_the_uncertainty(value: float, share: float) -> None:
    shown, _, half = estimate_text(around(value, share * value)).replace(",", "").partition(" ±")
    assert abs(float(shown) - value) <= 0.55 * float(half)
    assert 0.8 <= float(half) / (share * value) <= 1.25


def test_ratios_say_no_difference_when_their_interval_covers_one() -> None:
    def told(value: float, low: float | None, high: float | None, verdict: str | None) -> str:
        ratio = Estimate(value=value, low=low, high=high)
        return ratio_text(NO_FIGURES.model_copy(update={"ratio_to_best": ratio, "verdict": verdict}))

    assert told(1.082, 1.051, 1.104, "faster") == "1.08 (1.05–1.10)"
    assert told(0.012, 0.0111, 0.0133, "slower") == "0.012 (0.011–0.013)"
    assert told(225.1, 198.06, 392.57, "faster") == "225 (198–393)"
    assert told(12.46, 4.27, 33.26, "faster") == "12.5 (4.3–33.3)"
    assert told(1.01, 0.99, 1.03, "no difference seen") == "no difference seen"
    assert told(1.5, None, None, None) == "no difference seen"
    assert ratio_text(NO_FIGURES) == "–"


def test_other_figures() -> None:
    assert [number_text(value) for value in (0, 0.18361, 1.0, 99.96, 1234.5)] == [
        "0",
        "0.184",
        "1.00",
        "100.0",
        "1,230",
    ]
    assert milliseconds_text(0.0123) == "12.3"
    assert [error_text(error) for error in (None, 0.0, 2.3e-6)] == ["–", "0", "2e-06"]
    assert [percent_text(part) for part in (None, 1.0, 0.9999, 0.5)] == ["–", "100%", "99.9%", "50%"]
    assert [count_text(count) for count in (12, 60_965_224, 1_583_000_000)] == ["12", "61 M", "1.58 G"]
    assert [duration_text(seconds) for seconds in (4.4, 200, 7300)] == ["4 s", "3 min 20 s", "2 h 1 min"]
