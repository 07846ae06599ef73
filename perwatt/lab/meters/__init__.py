"""One file per meter the lab can read, in one table; `discover`, `choose` and `open_meters` are the way in."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

from perwatt.errors import InputError, MeterError
from perwatt.lab.meters.meter import NONE, Energy, Found, Host, Meter, OpenMeter, overlap

# What looks for the meters of one kind, by the name of the kind.
METERS: tuple[tuple[str, Callable[[Host], Sequence[Found]]], ...] = ()


@dataclass(frozen=True)
class Choice:
    """Which meters one run reads: their names, empty for none; `why` says why these, or why there is none.

    `remedy` is a command that would give a meter or a better one, where there is one.
    """

    names: tuple[str, ...]
    why: str
    remedy: str | None = None


def discover(host: Host | None = None) -> tuple[Found, ...]:
    """Return every meter of the machine, open or closed, with what it overlaps."""
    surroundings = host or Host()
    found = [each for _, find in METERS for each in find(surroundings)]
    return tuple(
        replace(
            each,
            overlaps=tuple(
                other.meter.name for other in found if other is not each and overlap(other.meter, each.meter)
            ),
        )
        for each in found
    )


def choose(found: Sequence[Found], wanted: str = "auto", device: str = "cpu") -> Choice:
    """Return the meters that `--meter wanted` means for rows of the device ("cpu" or "cuda").

    `wanted` is auto, none, or names of open meters with commas. Raises InputError for a name that is unknown or closed,
    and for meters that overlap.
    """
    if wanted == "none":
        return Choice((), "no meter was asked for")
    if wanted == "auto":
        return Choice((), "this machine shows no meter")
    raise InputError(
        f"meter: expected auto, none or a meter of this machine, got {wanted!r}; perwatt meters lists them"
    )


def open_meters(found: Sequence[Found], choice: Choice, host: Host | None = None) -> OpenMeter:
    """Return the chosen meters as one that is being read. Raises MeterError when one does not open."""
    return NoMeter(choice.why)


class NoMeter:
    """No meter: every question for energy gets the reason as its answer."""

    meter: Meter = NONE

    def __init__(self, why: str, clock_ns: Callable[[], int] = Host.clock_ns) -> None:
        self.why = why
        self.clock_ns = clock_ns

    def mark(self) -> int:
        """Return this instant."""
        return self.clock_ns()

    def energy(self, start_ns: int, end_ns: int) -> Energy:
        """Raise MeterError with the reason."""
        raise MeterError(f"no meter: {self.why}")

    def watts(self) -> float | None:
        """Return None."""
        return None

    def close(self) -> None:
        """Do nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
