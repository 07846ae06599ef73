"""Cores shared by time used: a simulation with packages whose batches take unlike times."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perwatt.errors import InputError
from perwatt.serve.fairness import Cores, Turn


class Package:
    """A package with so many batches left, each of so many seconds; `Machine` runs them."""

    def __init__(self, cores: Cores, name: str, seconds: float, weight: float = 1.0) -> None:
        self.seconds, self.left, self.ran = seconds, 0, 0
        self.turn: Turn = cores.join(name, self.go, weight)

    def go(self) -> bool:
        return self.left > 0

    def finish(self) -> None:
        self.left -= 1
        self.ran += 1
        self.turn.charge(self.seconds)
        self.turn.release(wants_more=self.left > 0)


def run(packages: list[Package], seconds: float) -> None:
    """Let batches run one after the other for so long."""
    spent = 0.0
    while spent < seconds:
        holding = [package for package in packages if package.turn.holds]
        assert len(holding) == 1, "one batch runs at a time, and none is forgotten"
        holding[0].finish()
        spent += holding[0].seconds


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.floats(0.001, 0.2), st.sampled_from([0.5, 1.0, 2.0])), min_size=1, max_size=5))
def test_time_is_shared_by_weight_whatever_a_batch_takes(kinds: list[tuple[float, float]]) -> None:
    cores = Cores()
    packages = [Package(cores, str(i), seconds, weight) for i, (seconds, weight) in enumerate(kinds)]
    for package in packages:
        package.left = 10**9
        package.turn.want()
    run(packages, 5.0)
    shares = [package.turn.used_s / package.turn.weight for package in packages]
    longest = max(package.seconds / package.turn.weight for package in packages)
    assert max(shares) - min(shares) <= 2 * longest, "no two differ by more than their longest batches"


def test_idle_time_is_no_credit() -> None:
    cores = Cores()
    busy, late = Package(cores, "busy", 0.01), Package(cores, "late", 0.01)
    busy.left = 10**9
    busy.turn.want()
    run([busy, late], 5.0)
    late.left = 10**9
    late.turn.want()
    before = busy.turn.used_s
    run([busy, late], 1.0)
    assert busy.turn.used_s - before == pytest.approx(late.turn.used_s, abs=0.021)


def test_a_package_alone_has_all_the_time_and_no_stretch() -> None:
    cores = Cores()
    one, other = Package(cores, "one", 0.01), Package(cores, "other", 0.01)
    one.left = 3
    one.turn.want()
    assert (one.turn.stretch, one.turn.alone) == (1.0, True)
    other.left = 1
    other.turn.want()
    assert (one.turn.stretch, one.turn.alone) == (2.0, False)
    one.finish()
    assert other.turn.holds
    other.turn.leave()
    assert one.turn.holds, "who leaves hands the cores on"
    assert one.turn.stretch == 1.0


def test_work_that_went_before_its_turn_came_gives_the_turn_to_the_next() -> None:
    cores = Cores()
    one, other, third = (Package(cores, name, 0.01) for name in ("one", "other", "third"))
    one.left = other.left = third.left = 1
    for package in (one, other, third):
        package.turn.want()
    other.left = 0  # cancelled
    one.finish()
    assert third.turn.holds
    third.finish()
    assert cores.holder is None


def test_a_weight_above_zero_is_expected() -> None:
    with pytest.raises(InputError, match="weight"):
        Cores().join("x", bool, 0.0)
