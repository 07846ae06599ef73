"""What follows from readings: joules between instants, and every way in which there are none."""

import pytest
from known_meters import meter

from perwatt.errors import MeterError
from perwatt.lab.meters.meter import Offset, Reading
from perwatt.lab.meters.trail import Trail

SECOND = 10**9


def counting(watts: float = 50.0, seconds: float = 10.0, step_s: float = 0.1, **facts: object) -> Trail:
    """Return the trail of a counter at a steady power, read every `step_s` from 0."""
    trail = Trail(meter(update_period_s=0.001, gain=0.02, **facts))
    for index in range(round(seconds / step_s) + 1):
        trail.add(Reading(round(index * step_s * SECOND), 100 + watts * index * step_s))
    return trail


def test_a_steady_counter_is_read_between_its_readings() -> None:
    energy = counting().energy(round(2.03 * SECOND), round(5.08 * SECOND))
    assert energy.joules == pytest.approx(50 * 3.05, rel=1e-6)
    assert energy.watts == pytest.approx(50)
    assert energy.gain == 0.02
    assert 0 < energy.random_j < 50 * 0.002
    assert energy.half_width_j == pytest.approx((energy.random_j**2 + (0.02 * energy.joules) ** 2) ** 0.5)


def test_windows_that_no_reading_covers_have_no_figure() -> None:
    trail = counting()
    for start_s, end_s, told in (
        (-5, 2, "was not read before the window began"),
        (8, 20, "no reading for the last 10.0 s"),
        (4, 4, "ends after it starts"),
        (4.0, 4.0005, "shorter than the 0.001 s in which the meter updates"),
    ):
        with pytest.raises(MeterError, match=told):
            trail.energy(round(start_s * SECOND), round(end_s * SECOND))
    with pytest.raises(MeterError, match="nothing was read"):
        Trail(meter()).energy(0, SECOND)


def test_a_failed_reading_is_the_reason_where_it_matters_only() -> None:
    trail = counting()
    trail.fail(12 * SECOND, "the file is gone")
    with pytest.raises(MeterError, match="the file is gone"):
        trail.energy(5 * SECOND, 12 * SECOND)
    assert trail.energy(2 * SECOND, 5 * SECOND).joules == pytest.approx(150)


def test_a_counter_wraps_and_a_reset_is_no_wrap() -> None:
    trail = Trail(meter(update_period_s=0.001, wrap_j=1e5))
    for index in range(101):
        trail.add(Reading(index * SECOND // 10, (99_900 + 5 * index) % 1e5))
    assert trail.energy(0, 10 * SECOND).joules == pytest.approx(500, rel=1e-3)
    trail.add(Reading(round(10.1 * SECOND), 3.0))
    for index in range(102, 140):
        trail.add(Reading(index * SECOND // 10, 3.0 + 5 * (index - 101)))
    with pytest.raises(MeterError, match="went back from 400 J to 3 J without a wrap"):
        trail.energy(9 * SECOND, 11 * SECOND)
    assert trail.energy(11 * SECOND, 13 * SECOND).joules == pytest.approx(100, rel=1e-3), "afterwards it counts again"


def test_a_counter_that_was_left_alone_for_too_long_is_not_believed() -> None:
    trail = Trail(meter(update_period_s=0.001, wrap_j=65_536.0))
    for time_s, joules in ((0, 10), (1, 20), (40, 400), (41, 410)):
        trail.add(Reading(time_s * SECOND, joules))
    with pytest.raises(MeterError, match=r"was not read for 39.0 s, in which it may have wrapped"):
        trail.energy(SECOND, 41 * SECOND)


def test_a_counter_without_a_wrap_never_goes_back() -> None:
    trail = Trail(meter(update_period_s=0.1))
    for index in range(50):
        trail.add(Reading(index * SECOND // 10, float(index if index < 25 else index - 25)))
    with pytest.raises(MeterError, match="without a wrap"):
        trail.energy(SECOND, 4 * SECOND)


def test_a_meter_that_shows_nothing_is_no_meter_of_nothing() -> None:
    trail = Trail(meter(unit="W", update_period_s=0.1, averaging_s=0.1))
    for index in range(50):
        trail.add(Reading(index * SECOND // 10, 0.0))
    with pytest.raises(MeterError, match="no machine can do"):
        trail.energy(SECOND, 4 * SECOND)


def test_missing_readings_widen_the_interval_until_there_are_too_few() -> None:
    def shown(missing: set[int]) -> Trail:
        trail = Trail(meter(unit="W", update_period_s=1.0, averaging_s=1.0, quantum=0.1))
        for index in range(40):
            if index not in missing:
                trail.add(Reading(index * SECOND, 50.0 + 10 * (index % 2), age_s=0.0))
        return trail

    whole, gap = (shown(missing).energy(5 * SECOND, 35 * SECOND) for missing in (set(), {10, 11, 12, 13}))
    assert gap.random_j > 2 * whole.random_j
    assert gap.joules == pytest.approx(whole.joules, abs=gap.random_j)
    assert "readings are missing" in gap.notes[0]
    with pytest.raises(MeterError, match="% of the readings are missing"):
        shown(set(range(8, 32))).energy(5 * SECOND, 35 * SECOND)


def test_means_of_a_second_add_up_to_the_energy_of_a_load_that_began_amidst() -> None:
    """Idle 10 W until 5.3 s, then 110 W: a mean that lags by a second must not lose what it saw late."""
    trail = Trail(meter(unit="W", update_period_s=0.1, averaging_s=1.0, quantum=1e-3, gain=0.05))
    for index in range(10, 151):
        time_s = index / 10
        trail.add(Reading(index * SECOND // 10, 10 + 100 * min(max(time_s - 5.3, 0.0), 1.0), age_s=0.0))
    energy = trail.energy(round(5.3 * SECOND), round(14.3 * SECOND))
    assert energy.joules == pytest.approx(9 * 110, rel=1e-3)
    with pytest.raises(MeterError, match="shorter than the 1 s over which the meter averages"):
        trail.energy(6 * SECOND, round(6.5 * SECOND))


def test_a_clock_of_its_own_is_corrected_and_what_is_not_known_of_it_is_stated() -> None:
    trail = counting()
    sure = trail.energy(12 * SECOND, 15 * SECOND, Offset(add_ns=10 * SECOND, spread_ns=0))
    unsure = trail.energy(12 * SECOND, 15 * SECOND, Offset(add_ns=10 * SECOND, spread_ns=SECOND // 10))
    assert sure.joules == unsure.joules == pytest.approx(150)
    assert unsure.random_j > 50 * 0.1 > sure.random_j
