"""What real meters make of the true power: numbers that step, wrap, average, look away, stand still or vanish."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from perwatt.lab.virtual.world import World

Value = Callable[[], float]


def counter(
    world: World, part: str, period_s: float, quantum_j: float, start_j: float = 0.0, wrap_j: float | None = None
) -> Value:
    """Return an energy counter in joules that takes up the truth every period, in whole quanta, and may wrap."""
    phase_s = world.generator.uniform(0, period_s)

    def value() -> float:
        updated_s = math.floor((world.now_s - phase_s) / period_s) * period_s + phase_s
        joules = math.floor((start_j + world.trace.at(part, updated_s)) / quantum_j) * quantum_j
        return joules if wrap_j is None else joules % wrap_j

    return value


def part_time_counter(world: World, part: str, period_s: float, share: float) -> Value:
    """Return an energy counter whose sensor looks only during a share of each period."""
    phase_s = world.generator.uniform(0, period_s)
    sums = [1e6]

    def value() -> float:
        done = math.floor((world.now_s - phase_s) / period_s) + 1
        while len(sums) <= done:
            begin_s = (len(sums) - 1) * period_s + phase_s - period_s
            sums.append(sums[-1] + period_s * world.trace.mean_w(part, begin_s, begin_s + share * period_s))
        return math.floor(sums[max(done, 0)] * 1000) / 1000

    return value


def power(world: World, part: str, period_s: float, averaging_s: float, quantum_w: float, share: float = 1.0) -> Value:
    """Return a power that is new every period: the mean of the `averaging_s` before it, or of a share of that time."""
    phase_s = world.generator.uniform(0, period_s)

    def value() -> float:
        updated_s = math.floor((world.now_s - phase_s) / period_s) * period_s + phase_s
        begin_s = updated_s - averaging_s
        watts = world.trace.mean_w(part, begin_s, begin_s + averaging_s * share)
        return round(watts / quantum_w) * quantum_w

    return value


def until(world: World, end_s: float, value: Value, after: Value) -> Value:
    """Return one number up to a time of the trace and another after it."""
    return lambda: value() if world.now_s < end_s else after()


def standing_still(value: Value) -> Value:
    """Return a number that shows forever what it showed first."""
    first: list[float] = []

    def shown() -> float:
        first.append(value())
        return first[0]

    return shown


def text(value: Value, unit: float) -> Callable[[], str]:
    """Return a number as the text of a file that counts in `unit`."""
    return lambda: f"{round(value() / unit)}\n"


def closed() -> str:
    """Refuse, as a file that only root may read does."""
    raise PermissionError(13, "Permission denied")


def gone() -> float:
    """Refuse, as a file of a device that is no more does."""
    raise FileNotFoundError(2, "No such file or directory")


class LogWriter:
    """Another program with a wall meter of its own clock: appends a row a period to a file, drops some."""

    def __init__(
        self, world: World, path: Path, part: str, period_s: float, ahead_s: float, epoch_s: float, dropped: float
    ) -> None:
        self.world, self.path, self.part, self.period_s = world, path, part, period_s
        self.ahead_s, self.epoch_s, self.dropped = ahead_s, epoch_s, dropped
        self.next_s = world.generator.uniform(0, period_s)
        self.due: list[tuple[float, str]] = []
        path.write_text("time,watts\n")
        world.advanced.append(self)

    def __call__(self) -> None:
        """Write the rows that are due by now."""
        generator, trace = self.world.generator, self.world.trace
        while self.next_s <= self.world.now_s:
            if generator.random() >= self.dropped:
                stamp_s = self.epoch_s + self.next_s + self.ahead_s
                watts = trace.mean_w(self.part, self.next_s - self.period_s, self.next_s)
                self.due.append((self.next_s + generator.uniform(0.01, 0.08), f"{stamp_s:.3f},{watts:.2f}\n"))
            self.next_s += self.period_s
        ready = [row for when_s, row in self.due if when_s <= self.world.now_s]
        if ready:
            with self.path.open("a") as file:
                file.writelines(ready)
            self.due = self.due[len(ready) :]


class NvmlError(Exception):
    """What the fake NVML raises."""


class FakeNvml:
    """As much of NVML as the lab uses: for each GPU a name, an architecture, and energy and power or neither."""

    NVMLError = NvmlError

    def __init__(self, gpus: Sequence[tuple[str, int, Value | None, Value | None]]) -> None:
        self.gpus = gpus

    def nvmlInit(self) -> None:
        """Start."""

    def nvmlDeviceGetCount(self) -> int:
        """Return the number of GPUs."""
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        """Return a handle."""
        return index

    def nvmlDeviceGetName(self, handle: int) -> str:
        """Return the product's name."""
        return self.gpus[handle][0]

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        """Return an identity."""
        return f"GPU-{handle}"

    def nvmlDeviceGetArchitecture(self, handle: int) -> int:
        """Return the number of the architecture: 5 Volta, 7 Ampere, 9 Hopper."""
        return self.gpus[handle][1]

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:
        """Return millijoules."""
        return self._number(self.gpus[handle][2])

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        """Return milliwatts."""
        return self._number(self.gpus[handle][3])

    def _number(self, value: Value | None) -> int:
        if value is None:
            raise NvmlError("Not Supported")
        return int(value() * 1000)
