"""The machine around a block: load, clock, temperature, and whether the other engines have come to rest."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

POLL_S = 0.01
LONGEST_WAIT_S = 2.0
STILL_SHARE = 0.02  # of one processor; a pool that spins takes a whole one, a sleeping one nothing
_CPU_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "cpu-thermal", "soc_thermal", "acpitz")


@dataclass(frozen=True)
class Conditions:
    """What the machine shows at one moment; None where it does not show it."""

    load_average: float | None
    clock_mhz: float | None
    temperature_c: float | None


@dataclass(frozen=True)
class Rest:
    """How long was waited for the others, in seconds, and whether they were at rest in the end."""

    wait_s: float
    rested: bool


def now() -> Conditions:
    """Return the one-minute load average, the mean processor clock and the hottest processor sensor."""
    return Conditions(_load_average(), _clock_mhz(), _temperature_c())


def _load_average() -> float | None:
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):  # Windows has none
        return None


def _clock_mhz(cpuinfo: Path = Path("/proc/cpuinfo")) -> float | None:
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        lines = []
    clocks = [float(line.partition(":")[2]) for line in lines if line.startswith("cpu MHz")]
    if clocks:
        return sum(clocks) / len(clocks)
    try:
        frequency = psutil.cpu_freq()
    except (AttributeError, OSError, NotImplementedError):
        return None
    return float(frequency.current) if frequency is not None and frequency.current else None


def _temperature_c() -> float | None:
    try:
        sensors = psutil.sensors_temperatures()
    except (AttributeError, OSError):  # only Linux and FreeBSD have it
        return None
    for name in _CPU_SENSORS:
        values = [each.current for each in sensors.get(name, ()) if each.current]
        if values:
            return float(max(values))
    return None


def wait_for_rest(
    processor_seconds: Sequence[Callable[[], float]],
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Rest:
    """Wait until the processor time of every other engine stands still, two seconds at the longest.

    A rival's thread pool may go on spinning after its block and would rob the next one. Each callable returns the
    processor time its process has used so far, in seconds.
    """
    start = clock()
    if not processor_seconds:
        return Rest(0.0, True)
    before, seen = [read() for read in processor_seconds], start
    while True:
        sleep(POLL_S)
        after, moment = [read() for read in processor_seconds], clock()
        most = STILL_SHARE * (moment - seen)
        if all(late - early <= most for early, late in zip(before, after, strict=True)):
            return Rest(moment - start, True)
        if moment - start >= LONGEST_WAIT_S:
            return Rest(moment - start, False)
        before, seen = after, moment


def available_memory_bytes(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the memory that may still be taken: the machine's, or what the cgroup leaves if that is less."""
    available = int(psutil.virtual_memory().available)
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        if limit != "max":
            available = min(available, int(limit) - int((cgroup / "memory.current").read_text()))
    except (OSError, ValueError):  # no cgroup v2 here
        pass
    return max(0, available)
