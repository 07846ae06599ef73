"""The contract of a meter: what it covers, and the joules between two instants with the uncertainty of that figure.

Three things stand apart. A `Meter` is what is known of a meter before it is read. A `Source` is the few lines that read
it once, one kind a file of this folder. An `OpenMeter` is a Source that is being read, and what the lab holds:

    with open_meters(found, choice) as meter:
        start = meter.mark()
        ...
        end = meter.mark()
        energy = meter.energy(start, end)

Instants are `time.perf_counter_ns()`, which all processes of one machine share (Linux, macOS and Windows).
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self

# From the widest to the narrowest. wall: with the power supply's loss; system: behind it, such as a battery; psys: what
# the processor's maker calls the platform; board: a board's input; gpu: a GPU's whole board with its memory.
Scope = Literal["wall", "system", "psys", "board", "gpu", "package", "dram", "rail", "part", "none"]
SCOPES: tuple[Scope, ...] = ("wall", "system", "psys", "board", "gpu", "package", "dram", "rail", "part", "none")
MINIMUM_SHARE = 0.02  # of a window's joules: what the meter's own random error should stay below


@dataclass(frozen=True)
class Meter:
    """One meter, or the sum of several that do not overlap, as it can be described before it is read.

    `name` is unique on this machine and what `--meter` takes. `scope` is one of SCOPES, for a sum several joined by
    " + ". `covers` are paths such as "system/cpu0/core": two meters overlap when a path of one begins with a path of
    the other. `quantum` is the smallest step, in `unit`. A reading appears every `update_period_s`; a reading of power
    is the mean of the `averaging_s` before it (0: an instant) and sees the share `sampled_share` of the time. `gain` is
    the relative error that all its readings have in common, as a 95 % half width. `wrap_j` is where a counter starts
    again. `settle_s` after a window's end its energy can be asked for. `readers` says who may read it, `note` what else
    to know.
    """

    name: str
    family: str
    scope: str
    covers: tuple[str, ...]
    unit: Literal["J", "W", "none"]
    quantum: float
    update_period_s: float
    gain: float
    averaging_s: float = 0.0
    sampled_share: float = 1.0
    wrap_j: float | None = None
    settle_s: float = 0.0
    readers: str = "everyone"
    note: str = ""

    def window_s(self, share: float = MINIMUM_SHARE) -> float:
        """Return the length of a window from which the meter's timing errs by less than `share` at steady power."""
        # Each edge is uncertain by half a period, evenly: 1.96 * sqrt(2) * period / 2 / sqrt(3) = 0.8 periods.
        edges_s = 0.8 * (self.update_period_s + self.averaging_s) / share
        return edges_s if self.unit != "none" else 0.0


@dataclass(frozen=True)
class Energy:
    """The joules of one window of `seconds`, and how sure they are, as 95 % half widths.

    `random_j` (edges, quantum, what was not sampled) is independent from window to window and averages out over many;
    `gain` (relative) is common to all windows of this meter and does not. `notes` say what went less than well.
    """

    joules: float
    random_j: float
    gain: float
    seconds: float
    notes: tuple[str, ...] = ()

    @property
    def half_width_j(self) -> float:
        """Half the width of the 95 % interval of `joules`."""
        return math.hypot(self.random_j, self.gain * self.joules)

    @property
    def watts(self) -> float:
        """The mean power."""
        return self.joules / self.seconds


@dataclass(frozen=True)
class Reading:
    """One reading: joules of a counter since some beginning, or watts; `time_ns` is of the clock of perf_counter_ns.

    `spread_ns` is how far off the time may be, either way, where the meter has a clock of its own.
    """

    time_ns: int
    value: float
    spread_ns: int = 0


class Source(Protocol):
    """What reads a meter once. `read` returns what is new since the last call, mostly one Reading, its time `now_ns`.

    It raises MeterError when the meter has vanished or answers nonsense. `notes` are facts learned while reading, such
    as the offset of a clock.
    """

    def read(self, now_ns: int) -> Sequence[Reading]: ...

    def notes(self) -> tuple[str, ...]: ...

    def close(self) -> None: ...


class OpenMeter(Protocol):
    """A meter that is being read; a `with` closes it.

    `mark` reads once more, now, and returns the instant: a window between two marks costs no interpolation. It never
    raises. `energy` gives the joules between any two instants since opening, `meter.settle_s` after the later one; it
    raises MeterError, saying why there is no figure, and may be asked for other windows as well. `watts` is the mean
    power of the last second or two, None before there is any.
    """

    meter: Meter

    def mark(self) -> int: ...

    def energy(self, start_ns: int, end_ns: int) -> Energy: ...

    def watts(self) -> float | None: ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@dataclass(frozen=True)
class Found:
    """A meter of this machine, open or closed.

    `open` makes its Source; where the meter is closed that is None, `reason` says why, and `remedy` is the one command
    that opens it. `overlaps` names the other meters that count some of the same joules.
    """

    meter: Meter
    open: Callable[[], Source] | None = field(default=None, repr=False, compare=False)
    reason: str | None = None
    remedy: str | None = None
    overlaps: tuple[str, ...] = ()


@dataclass(frozen=True)
class Host:
    """Where meters are looked for; a test or a demonstration gives another machine.

    `root` is above /sys and /proc. `library` gives a module by its name, or None where it is not installed; left out,
    modules are imported. `clock_ns` is the clock of every Reading, `epoch_ns` the time of day beside it.
    """

    root: Path = Path("/")
    library: Callable[[str], object | None] | None = None
    clock_ns: Callable[[], int] = time.perf_counter_ns
    epoch_ns: Callable[[], int] = time.time_ns


NONE = Meter(
    name="none", family="none", scope="none", covers=(), unit="none", quantum=0.0, update_period_s=0.0, gain=0.0
)


def overlap(first: Meter, second: Meter) -> bool:
    """Return whether both count some of the same joules."""
    return any(
        f"{one}/".startswith(f"{other}/") or f"{other}/".startswith(f"{one}/")
        for one in first.covers
        for other in second.covers
    )
