"""Meters that are being read: one, or several that do not overlap as one sum."""

import math
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from perwatt.errors import MeterError
from perwatt.lab.meters.meter import NONE, Energy, Host, Meter, OpenMeter, Reading, Source
from perwatt.lab.meters.trail import Trail


class _With:
    """What makes an open meter usable in a `with`."""

    def close(self) -> None:
        """Do nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Running(_With):
    """One meter that is read every `poll_s` by a thread of its own, and at marks."""

    def __init__(self, meter: Meter, source: Source, host: Host) -> None:
        self.meter = meter
        self.source = source
        self.clock_ns = host.clock_ns
        self.trail = Trail(meter)
        self._reading = threading.Lock()
        self._changing = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        if meter.reads_at_marks:
            self.poll()
        if host.threads:
            self._thread = threading.Thread(target=self._run, name=f"meter {meter.name}", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(self.meter.poll_s):
            self.poll()

    def poll(self) -> int:
        """Read once and return the instant; a failure is kept for those who ask for energy."""
        with self._reading:
            before_ns = self.clock_ns()
            try:
                new: Sequence[Reading] = self.source.read(before_ns)
                failure = None
            except MeterError as error:
                new, failure = (), str(error)
            moment_ns = (before_ns + self.clock_ns()) // 2
            with self._changing:
                for reading in new:
                    # A reading of now was taken while the call lasted.
                    here = reading.time_ns == before_ns
                    self.trail.add(Reading(moment_ns, reading.value, reading.age_s) if here else reading)
                if failure is not None:
                    self.trail.fail(moment_ns - self._offset_ns(), failure)
        return moment_ns

    def _offset_ns(self) -> int:
        """Return what turns the meter's clock into the lab's, 0 while that is not known."""
        try:
            offset = self.source.offset()
        except MeterError:
            return 0
        return offset.add_ns if offset is not None else 0

    def mark(self) -> int:
        """Read once more, where that is quick, and return the instant."""
        return self.poll() if self.meter.reads_at_marks else self.clock_ns()

    def energy(self, start_ns: int, end_ns: int) -> Energy:
        """Return the joules between two instants. Raises MeterError when there is no figure."""
        with self._changing:
            found = self.trail.energy(start_ns, end_ns, self.source.offset())
            notes = self.source.notes()
        return Energy(found.joules, found.random_j, found.gain, found.seconds, (*found.notes, *notes))

    def watts(self) -> float | None:
        """Return the mean power of the last two seconds."""
        with self._changing:
            return self.trail.watts()

    def close(self) -> None:
        """Stop reading."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=3.0)
        self.source.close()


class Together(_With):
    """Several meters that do not overlap, as one whose joules are their sum."""

    def __init__(self, meters: Sequence[OpenMeter]) -> None:
        self.meters = tuple(meters)
        self.meter = sum_of([each.meter for each in meters])

    def mark(self) -> int:
        """Read all and return an instant amidst the readings."""
        marks = [each.mark() for each in self.meters]
        return sum(marks) // len(marks)

    def energy(self, start_ns: int, end_ns: int) -> Energy:
        """Return the sum of the joules between two instants. Raises MeterError when one meter has no figure."""
        parts = [each.energy(start_ns, end_ns) for each in self.meters]
        joules = math.fsum(part.joules for part in parts)
        return Energy(
            joules,
            math.hypot(*(part.random_j for part in parts)),
            # Meters of one kind err alike, so their common errors add up and do not average out.
            math.fsum(part.gain * part.joules for part in parts) / joules,
            parts[0].seconds,
            tuple(dict.fromkeys(note for part in parts for note in part.notes)),
        )

    def watts(self) -> float | None:
        """Return the sum of the powers, None while one is not known."""
        powers = [each.watts() for each in self.meters]
        known = [power for power in powers if power is not None]
        return math.fsum(known) if len(known) == len(powers) else None

    def close(self) -> None:
        """Stop reading."""
        for each in self.meters:
            each.close()


class NoMeter(_With):
    """No meter: every question for energy gets the reason as its answer."""

    meter: Meter = NONE

    def __init__(self, why: str, clock_ns: Callable[[], int]) -> None:
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


def sum_of(meters: Sequence[Meter]) -> Meter:
    """Return what is known of the sum of meters that do not overlap."""
    if len(meters) == 1:
        return meters[0]
    return Meter(
        name=",".join(each.name for each in meters),
        family="+".join(dict.fromkeys(each.family for each in meters)),
        scope=" + ".join(dict.fromkeys(each.scope for each in meters)),
        covers=tuple(path for each in meters for path in each.covers),
        unit="J",
        quantum=max(each.quantum for each in meters),
        update_period_s=max(each.update_period_s for each in meters),
        gain=max(each.gain for each in meters),
        averaging_s=max(each.averaging_s for each in meters),
        sampled_share=min(each.sampled_share for each in meters),
        settle_s=max(each.settle_s for each in meters),
        poll_s=min(each.poll_s for each in meters),
        readers="; ".join(dict.fromkeys(each.readers for each in meters)),
        note="; ".join(dict.fromkeys(each.note for each in meters if each.note)),
    )
