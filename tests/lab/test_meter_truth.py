"""On simulated machines whose true joules are known the figure is near the truth and the stated interval holds it."""

import json
from functools import cache
from pathlib import Path

import pytest

from perwatt.lab.virtual.trials import CASES, Case, Outcome, run, trial

SEEDS = range(7)
# The seeds are fixed, so nothing flickers. Of 7 intervals that hold the truth in 95 of 100 trials fewer than 5 do so
# once in 250 runs; the promise of 90 of 100 is held over all cases together, and by the published trials.
FEWEST = 5
MEASURED = [case for case in CASES if not case.refuses and case.window_s[0] < 500]
# What the best estimator of each kind comes to, with room: median of the error that the meter's gain does not explain.
MOST_TIMING_ERROR = {
    "two packages and memory": 0.001,
    "the same, between readings": 0.01,
    "package below psys": 0.001,
    "psys": 0.001,
    "wrap-around": 0.001,
    "mirrored dies": 0.001,
    "100 ms steps": 0.01,
    "25 % sampling": 0.02,
    "mean of the last second": 0.01,
    "rails that hold each other": 0.015,
    "battery beside closed RAPL": 0.03,
    "wall log, clock 3 s off": 0.01,
    "smart plug that is late": 0.02,
}


@cache
def outcome_of(case: Case) -> Outcome:
    return run(case, SEEDS)


@pytest.mark.parametrize("case", MEASURED, ids=lambda case: case.name)
def test_the_interval_holds_the_truth(case: Case) -> None:
    outcome = outcome_of(case)
    assert outcome.refused == 0, outcome.reasons
    assert outcome.covered >= FEWEST
    assert outcome.timing_covered >= FEWEST
    assert outcome.timing_median_error is not None
    assert outcome.timing_median_error < MOST_TIMING_ERROR[case.name]
    assert outcome.timing_median_half_width is not None
    assert outcome.timing_median_half_width < 0.06, "an interval that holds everything says nothing"


def test_nine_of_ten_intervals_hold_the_truth_over_all_cases() -> None:
    outcomes = [outcome_of(case) for case in MEASURED]
    trials = sum(outcome.trials for outcome in outcomes)
    assert sum(outcome.covered for outcome in outcomes) >= 0.9 * trials
    assert sum(outcome.timing_covered for outcome in outcomes) >= 0.9 * trials


@pytest.mark.parametrize("case", [case for case in CASES if case.refuses], ids=lambda case: case.name)
def test_a_meter_that_fails_in_mid_window_gives_a_reason_and_no_figure(case: Case) -> None:
    outcome = run(case, range(3))
    assert outcome.refused == outcome.trials
    assert outcome.reasons


def test_a_counter_is_followed_through_several_wraps() -> None:
    case = next(case for case in CASES if case.name == "several wrap-arounds")
    found = trial(case, 3)
    assert found.true_j > 2 * 65532
    assert found.timing_error == pytest.approx(0, abs=1e-4)


def test_a_trial_is_the_same_each_time() -> None:
    assert trial(MEASURED[0], 1) == trial(MEASURED[0], 1)


def test_the_published_trials_keep_the_promise() -> None:
    published = json.loads((Path(__file__).parents[2] / "benchmarks/results/meter_trials.json").read_text())
    assert published["trials"] >= 100
    rows = {row["case"]: row for row in published["results"]}
    assert set(rows) == {case.name for case in CASES}
    for case in CASES:
        row = rows[case.name]
        if case.refuses:
            assert row["refused"] == published["trials"]
        else:
            assert row["refused"] == 0
            assert min(row["covered"], row["timing_covered"]) >= 0.9 * published["trials"]
