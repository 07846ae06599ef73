"""The short forms of the overload and the soak: nothing is lost or wrong, whatever the machine's speed today."""

import subprocess
import sys
from pathlib import Path

import pytest

from perwatt.lab.load.check import check
from perwatt.lab.load.claims import NOT_ANSWERED
from perwatt.lab.load.record import LoadRecord, Run
from perwatt.lab.load.record_file import load

pytestmark = pytest.mark.alone  # a server and its clients take both cores, and their speeds are compared

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "serving.py"


def measured(folder: Path, *words: str) -> LoadRecord:
    command = [sys.executable, str(SCRIPT), *words, "--quick", "--out", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    # 1: a claim about speed was not met, which a busy machine may do.
    assert done.returncode in (0, 1), done.stderr[-2000:]
    (path,) = folder.glob("*.json*")
    record = load(path)
    assert check(record) == []
    return record


def named(record: LoadRecord, label: str) -> Run:
    return next(run for run in record.runs if run.label == label)


def lost_or_wrong(run: Run) -> dict[str, int]:
    bad = (*NOT_ANSWERED, "wrong", "stranger", "rejected", "failed", "other")
    return {name: run.figures.outcomes[name] for name in bad if name in run.figures.outcomes}


@pytest.mark.slow
def test_three_times_capacity_loses_nothing(tmp_path: Path) -> None:
    # 5 ms an image: the server's limit is the engine's, not that of two shared cores.
    record = measured(tmp_path, "overload", "--network", "null:3x16x16@5", "--p99", "150")
    overload, after = named(record, "overload"), named(record, "after")
    assert lost_or_wrong(overload) == lost_or_wrong(after) == {}
    assert overload.rate is not None
    assert overload.rate > 2.5 * named(record, "capacity").figures.answers_per_s.value
    assert overload.figures.outcomes["refused"] > 0.3 * overload.figures.requests
    assert overload.figures.outcomes["good"] > 0
    assert after.figures.outcomes["good"] > 0.5 * after.figures.requests


@pytest.mark.slow
def test_hostile_and_clumsy_clients_get_what_they_deserve_and_others_their_own_answers(tmp_path: Path) -> None:
    record = measured(tmp_path, "soak", "--network", "lenet", "--p99", "2000", "--seconds", "6")
    soak = named(record, "soak")
    assert lost_or_wrong(soak) == {}, soak.figures.warnings
    assert soak.figures.outcomes["good"] > 20
    assert soak.figures.outcomes["hostile"] >= 5
    assert record.checking is not None
    assert record.checking.distinct >= record.checking.shots - 2
