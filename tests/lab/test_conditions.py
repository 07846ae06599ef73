"""Waiting for rest on a simulated clock, and what the machine shows read from files made by hand."""

from pathlib import Path

import pytest

from perwatt.lab import conditions


class Clock:
    """Time that passes only when somebody sleeps; a pool that spins until `spins_until`."""

    def __init__(self, spins_until: float) -> None:
        self.time = 0.0
        self.spins_until = spins_until

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds

    def processor_seconds(self) -> float:
        return min(self.time, self.spins_until)


@pytest.mark.parametrize(
    ("spins_until", "wait_s", "rested"), [(0.0, 0.01, True), (0.15, 0.16, True), (9.0, 2.0, False)]
)
def test_the_wait_ends_when_processor_time_stands_still_or_after_two_seconds(
    spins_until: float, wait_s: float, rested: bool
) -> None:
    clock = Clock(spins_until)
    rest = conditions.wait_for_rest([lambda: 3.0, clock.processor_seconds], clock=clock.now, sleep=clock.sleep)
    assert rest.rested is rested
    assert rest.wait_s == pytest.approx(wait_s, abs=0.011)


def test_alone_nobody_waits() -> None:
    assert conditions.wait_for_rest([]) == conditions.Rest(0.0, True)


def test_now_gives_numbers_or_none() -> None:
    seen = conditions.now()
    for value in (seen.load_average, seen.clock_mhz, seen.temperature_c):
        assert value is None or value >= 0


def test_the_clock_is_the_mean_of_what_proc_shows(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\ncpu MHz\t\t: 2000.0\nprocessor\t: 1\ncpu MHz\t\t: 3000.0\n")
    assert conditions._clock_mhz(cpuinfo) == 2500


def test_a_cgroup_limit_caps_the_memory_that_may_be_taken(tmp_path: Path) -> None:
    free = conditions.available_memory_bytes(tmp_path)  # no such files
    assert free > 0
    (tmp_path / "memory.max").write_text("max\n")
    assert conditions.available_memory_bytes(tmp_path) == pytest.approx(free, rel=0.5)
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("400000\n")
    assert conditions.available_memory_bytes(tmp_path) == 600_000
    (tmp_path / "memory.current").write_text("4000000\n")
    assert conditions.available_memory_bytes(tmp_path) == 0
