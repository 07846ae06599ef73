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

import importlib
import math
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self

# From the widest to the narrowest. wall: with the power supply's loss; system: behind it, such as a battery; psys: what
# the processor's maker calls the platform; board: a board's input; gpu: a GPU's whole board with its memory.
Scope = Literal["wall", "system", "psys", "board", "gpu", "package", "dram", "rail", "part", "none"]
SCOPES: tuple[Scope, ...] = ("wall", "system", "psys", "board", "gpu", "package", "dram", "rail", "part", "none")
MOST_ANSWER_BYTES = 1 << 20
MINIMUM_SHARE = 0.02  # of a window's joules: what the meter's own random error should stay below


@dataclass(frozen=True)
class Meter:
    """One meter, or the sum of several that do not overlap, as it can be described before it is read.

    `name` is unique on this machine and what `--meter` takes. `scope` is one of SCOPES, for a sum several joined by
    " + ". `covers` are paths such as "system/cpu0/core": two meters overlap when a path of one begins with a path of
    the other. `quantum` is the smallest step, in `unit`. A reading appears every `update_period_s`; a reading of power
    is the mean of the `averaging_s` before it (0: an instant) and sees the share `sampled_share` of that time. `gain`
    is the relative error that all its readings have in common, as a 95 % half width. `wrap_j` is where a counter starts
    again. It is read every `poll_s`, and at marks where a reading does not take long. `settle_s` after a window's end
    its energy is known best. `readers` says who may read it, `note` what else to know.
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
    poll_s: float = 0.1
    reads_at_marks: bool = True
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
    """One reading: joules of a counter since some beginning, or watts.

    `time_ns` is of the clock of perf_counter_ns, or of the meter's own clock where its Source has an offset.
    `age_s` is how old the value may have been then; None: up to the update period.
    """

    time_ns: int
    value: float
    age_s: float | None = None


@dataclass(frozen=True)
class Offset:
    """What to add to the times of a meter's own clock to have the lab's, and how far off that may be, either way."""

    add_ns: int = 0
    spread_ns: int = 0


class Source(Protocol):
    """What reads a meter once. `read` returns what is new since the last call, mostly one Reading, its time `now_ns`.

    It raises MeterError when the meter has vanished or answers nonsense. `offset` is that of the meter's own clock, as
    far as it is known by now, None where times are the lab's; `notes` are other facts learned while reading.
    """

    def read(self, now_ns: int) -> Sequence[Reading]: ...

    def offset(self) -> Offset | None: ...

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


def _import(name: str) -> object | None:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _read(path: Path) -> str:
    return path.read_text(errors="replace")


def _fetch(url: str, timeout_s: float) -> bytes:
    with urllib.request.urlopen(url, timeout=timeout_s) as answer:
        return bytes(answer.read(MOST_ANSWER_BYTES))


@dataclass(frozen=True)
class Host:
    """Where meters are looked for, and how they are reached; a test or a demonstration gives another machine.

    `root` is above /sys and /proc. `library` gives a module by its name, None where it is not installed. `read` returns
    a small file's text or raises OSError, `fetch` what is at a URL or raises OSError. `clock_ns` is the clock of every
    Reading, `epoch_ns` the time of day, `sleep` lets time pass; without `threads` meters are read only when told to.
    """

    root: Path = Path("/")
    library: Callable[[str], object | None] = _import
    read: Callable[[Path], str] = _read
    fetch: Callable[[str, float], bytes] = _fetch
    clock_ns: Callable[[], int] = time.perf_counter_ns
    epoch_ns: Callable[[], int] = time.time_ns
    sleep: Callable[[float], None] = time.sleep
    threads: bool = True


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
