"""The latency table: rising curves from measured durations, and the best cuts, held against brute force."""

from functools import cache
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perwatt.errors import InputError
from perwatt.serve.latency import KEPT_SAMPLES, MOST_TAIL, LatencyTable

SIZES = (1, 2, 4, 8)


def table_of(seconds: dict[int, float], samples: int = KEPT_SAMPLES) -> LatencyTable:
    """Return a table in which every run of a size took the same time, so that its tails are nothing."""
    table = LatencyTable(sorted(seconds))
    for size, each in seconds.items():
        table.observe_all(size, [each] * samples)
    return table


rising = st.lists(st.floats(1e-4, 1.0), min_size=4, max_size=4).map(lambda gaps: [sum(gaps[: i + 1]) for i in range(4)])


def test_a_machine_that_stood_still_once_turns_nobody_away_for_long() -> None:
    table = table_of({1: 0.01, 2: 0.015}, samples=20)
    table.observe(1, 5.0)
    assert table.expected_s(1) == pytest.approx(0.01)
    assert table.bound_s(1) <= MOST_TAIL * 0.01


@settings(deadline=None)
@given(rising)
def test_durations_that_rise_are_predicted_as_they_are(seconds: list[float]) -> None:
    table = table_of(dict(zip(SIZES, seconds, strict=True)))
    assert [table.expected_s(size) for size in SIZES] == pytest.approx(seconds)
    assert [table.bound_s(size) for size in SIZES] == pytest.approx(seconds)
    assert table.expected_s(3) == table.expected_s(4), "images in between run at the smallest size that holds them"


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(SIZES), st.floats(1e-6, 10.0)), min_size=1, max_size=300))
def test_curves_never_fall_and_bounds_lie_above(observed: list[tuple[int, float]]) -> None:
    table = LatencyTable(SIZES)
    for size, seconds in [*((size, 0.1) for size in SIZES), *observed]:
        table.observe(size, seconds)
    expected, bound = table.curves
    assert all(a <= b * (1 + 1e-12) for a, b in pairwise(expected))
    assert all(a <= b * (1 + 1e-12) for a, b in pairwise(bound))
    assert all(low <= high for low, high in zip(expected, bound, strict=True))
    slowest = max(0.1, *(seconds for _, seconds in observed))
    assert expected[-1] <= slowest, "no prediction of the median lies beyond all that was seen"


def test_an_old_pace_is_forgotten() -> None:
    table = table_of({1: 0.010, 2: 0.015})
    table.observe_all(2, [0.030] * KEPT_SAMPLES)
    assert table.expected_s(2) == pytest.approx(0.030)
    assert table.expected_s(1) == pytest.approx(0.010)


def test_the_99th_percentile_needs_100_samples() -> None:
    table = LatencyTable([1])
    table.observe_all(1, [0.010] * 99)
    assert table.rows()[0].p99_s is None
    table.observe(1, 0.030)
    assert table.rows()[0].p99_s == pytest.approx(0.010), "99 of 100 runs took no longer"
    table.observe(1, 0.030)
    assert table.rows()[0].p99_s == pytest.approx(0.030)


def test_one_bad_run_at_the_start_of_a_small_size_does_not_darken_the_large_ones() -> None:
    table = LatencyTable([1, 2])
    table.observe(1, 5.0)  # the machine was busy just then
    table.observe_all(2, [0.02] * 50)
    assert table.expected_s(2) < 0.04
    assert table.expected_s(1) <= table.expected_s(2)


@settings(deadline=None)
@given(rising, st.sampled_from(["throughput", "latency"]), st.integers(1, 16))
def test_cuts_are_as_good_as_the_best_of_all(seconds: list[float], objective: str, images: int) -> None:
    table = table_of(dict(zip(SIZES, seconds, strict=True)))

    @cache
    def best(left: int) -> float:
        if left <= 0:
            return 0.0
        return min(
            (left if objective == "latency" else 1) * each + best(left - size)
            for size, each in zip(SIZES, seconds, strict=True)
        )

    cost, left = 0.0, images
    while left:
        first = table.first_batch(left, objective)  # type: ignore[arg-type]
        assert 1 <= first <= left
        cost += (left if objective == "latency" else 1) * table.expected_s(first)
        left -= first
    assert cost <= best(images) * (1 + 1e-6)


def test_energy_prefers_the_size_with_the_fewest_joules_an_image() -> None:
    table = table_of({1: 0.01, 2: 0.02, 4: 0.04})
    assert not table.has_joules
    for size, joules in {1: 3.0, 2: 4.0, 4: 9.0}.items():
        table.observe_joules(size, joules)
    assert table.has_joules
    assert table.first_batch(8, "energy") == 2
    assert table.joules_per_image(2) == 2.0
    assert table.joules_per_image(3) == 3.0, "three images run at size four"


def test_where_batches_gain_nothing_latency_takes_single_images_and_throughput_large_batches() -> None:
    table = table_of({1: 0.01, 2: 0.02, 4: 0.04, 8: 0.08})
    assert table.first_batch(8, "latency") == 1
    steep = table_of({1: 0.01, 2: 0.011, 4: 0.012, 8: 0.013})
    assert steep.first_batch(8, "latency") == 8
    assert steep.first_batch(5, "throughput") == 5, "one padded batch of 8 is faster than 4 and 1"
    flat = table_of({1: 0.01, 2: 0.02, 4: 0.022, 8: 0.06})
    assert flat.first_batch(5, "throughput") == 4, "a split is faster than a padded batch of 8"


def test_prediction_errors_are_kept() -> None:
    table = table_of({1: 0.01})
    assert table.prediction_error.mean_s is None
    table.judge(0.010, 0.012, 0.013)
    table.judge(0.010, 0.012, 0.009)
    kept = table.prediction_error
    assert (kept.batches, kept.beyond_bound) == (2, 1)
    assert kept.mean_s == pytest.approx(0.001)
    assert kept.mean_absolute_s == pytest.approx(0.002)
    assert kept.worst_s == pytest.approx(0.003)


@pytest.mark.parametrize("sizes", [(), (0, 1), (2, 1), (1, 1)])
def test_sizes_that_are_none_are_refused(sizes: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="ascending"):
        LatencyTable(sizes)


@pytest.mark.parametrize(("size", "seconds"), [(3, 0.1), (1, -0.1), (1, float("nan")), (1, float("inf"))])
def test_what_is_no_duration_is_refused(size: int, seconds: float) -> None:
    with pytest.raises(InputError, match="duration"):
        LatencyTable([1, 2]).observe(size, seconds)
