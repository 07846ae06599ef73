"""A wall meter that another program reads: a CSV file that grows, or a pipe, of timestamps and watts.

`log:PATH`. A row is `timestamp,watts`; the timestamp is seconds since 1970 or ISO 8601; one line of headings may come
first. The meter's clock need not be right: each row is seen to arrive, the rows that arrived soonest after their time
tell the offset between its clock and this machine's, and how much they differ tells how sure that is.
"""

import math
import os
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

from perwatt.errors import MeterError
from perwatt.lab.meters.meter import Found, Host, Meter, Offset, Reading

GAIN = 0.02
USUAL_PERIOD_S = 1.0
POLL_S = 0.05
MOST_BYTES = 1 << 20  # taken up at once
MOST_W = 1e5
MINIMUM_ROWS = 5  # that arrived, for an offset


def find(name: str, host: Host) -> Found:
    """Return the meter `log:PATH`; it is closed when there is no such file, or its first rows are no rows."""
    path = Path(name.removeprefix("log:"))
    period_s = USUAL_PERIOD_S
    try:
        if path.is_file():
            rows = [row for row in _rows(path.read_text(errors="replace").splitlines()[:200], str(path)) if row]
            times = [row[0] for row in rows]
            if len(times) > 2:
                period_s = statistics.median(b - a for a, b in pairwise(times)) * 1e-9
        elif not path.exists():
            reason = f"{path}: expected a file or pipe that another program writes, there is none"
            return Found(_meter(name, period_s), reason=reason, remedy=f"start the program that writes {path}")
    except (OSError, MeterError) as error:
        return Found(_meter(name, period_s), reason=str(error), remedy="give a file with rows of timestamp,watts")
    meter = _meter(name, period_s)
    return Found(meter, open=lambda: Log(name, path, host))


def _meter(name: str, period_s: float) -> Meter:
    return Meter(
        name=name,
        family="log",
        scope="wall",
        covers=("system",),
        unit="W",
        quantum=0.01,
        update_period_s=period_s,
        gain=GAIN,
        averaging_s=period_s,
        settle_s=3 * period_s,
        poll_s=POLL_S,
        note="taken to be at the wall, right to 2 %, each row the mean since the one before",
    )


def _rows(lines: Sequence[str], where: str, first: int = 1) -> list[tuple[int, float] | None]:
    """Return time in ns and watts of each line, None for headings and blank lines.

    Raises MeterError with the line's number when a row is none, has no time, or is not later than the one before.
    """
    rows: list[tuple[int, float] | None] = []
    before = -math.inf
    for number, line in enumerate(lines, first):
        parts = [part.strip() for part in line.replace(";", ",").replace("\t", ",").split(",")]
        if not line.strip() or (number == 1 and not any(each.isdecimal() for each in line)):
            rows.append(None)
            continue
        if len(parts) < 2 or not parts[0]:
            raise MeterError(f"{where}: line {number}: expected timestamp,watts, got {line.strip()[:60]!r}")
        time_ns = _time_ns(parts[0])
        try:
            watts = float(parts[1])
        except ValueError:
            watts = math.nan
        if time_ns is None or not 0 <= watts <= MOST_W:
            what = "a timestamp" if time_ns is None else f"watts from 0 to {MOST_W:.0f}"
            raise MeterError(f"{where}: line {number}: expected {what}, got {line.strip()[:60]!r}")
        if time_ns <= before:
            raise MeterError(f"{where}: line {number}: expected a later time than the line before, got {parts[0]!r}")
        before = time_ns
        rows.append((time_ns, watts))
    return rows


def _time_ns(text: str) -> int | None:
    try:
        seconds = float(text)
    except ValueError:
        try:
            when = datetime.fromisoformat(text)
        except ValueError:
            return None
        seconds = (when if when.tzinfo is not None else when.replace(tzinfo=UTC)).timestamp()
    return round(seconds * 1e9) if math.isfinite(seconds) else None


class Log:
    """The rows of a file or pipe as they arrive; its readings are of the log's own clock."""

    def __init__(self, name: str, path: Path, host: Host) -> None:
        self.name = name
        self.path = path
        self.host = host
        self.rest = b""
        self.line = 0
        self.last_ns = 0
        self.delays_ns: list[int] = []
        self.fault: str | None = None
        try:
            # A pipe is opened without waiting for its writer.
            self.file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        except OSError as error:
            raise MeterError(f"{path}: {error.strerror or error}") from None
        self._take(0, arrived=False)

    def read(self, now_ns: int) -> Sequence[Reading]:
        """Return the rows that have come. Raises MeterError for a row that is none; nothing after it is believed."""
        return self._take(now_ns, arrived=True)

    def _take(self, now_ns: int, *, arrived: bool) -> Sequence[Reading]:
        if self.fault is not None:
            raise MeterError(self.fault)
        try:
            data = self.rest + os.read(self.file, MOST_BYTES)
        except BlockingIOError:
            return ()
        except OSError as error:
            raise MeterError(f"{self.path}: {error.strerror or error}") from None
        complete, _, self.rest = data.rpartition(b"\n")
        if not complete:
            return ()
        lines = complete.decode(errors="replace").splitlines()
        try:
            rows = [row for row in _rows(lines, str(self.path), self.line + 1) if row is not None]
            if rows and rows[0][0] <= self.last_ns:
                raise MeterError(
                    f"{self.path}: line {self.line + 1}: expected a later time than the line before, got an earlier one"
                )
        except MeterError as error:
            if arrived:
                self.fault = str(error)
            raise
        self.line += len(lines)
        if not rows:
            return ()
        self.last_ns = rows[-1][0]
        if arrived:  # the last row has waited least
            self.delays_ns.append(now_ns - rows[-1][0])
        return tuple(Reading(time_ns, watts, 0.0) for time_ns, watts in rows) if arrived else ()

    def offset(self) -> Offset | None:
        """Return what turns the log's times into the lab's. Raises MeterError before enough rows have arrived."""
        if len(self.delays_ns) < MINIMUM_ROWS:
            raise MeterError(
                f"{self.name}: {len(self.delays_ns)} batches of rows have arrived, {MINIMUM_ROWS} are needed to know "
                "its clock"
            )
        ordered = sorted(self.delays_ns)
        # The soonest few bound the delay that all rows have from above and below.
        spread = max(ordered[min(len(ordered) - 1, 2 + len(ordered) // 10)] - ordered[0], int(POLL_S * 1e9) // 2)
        return Offset(ordered[0] - spread // 2, spread)

    def notes(self) -> tuple[str, ...]:
        """Return the offset of its clock against this machine's time of day, in words."""
        offset = self.offset()
        assert offset is not None
        ahead_s = (self.host.epoch_ns() - self.host.clock_ns() + offset.add_ns) * -1e-9
        side = "behind" if ahead_s > 0 else "ahead of"
        return (
            f"{self.name}: this machine's clock is {abs(ahead_s):.2f} s {side} the meter's "
            f"(±{offset.spread_ns * 1e-9:.2f} s), as its rows arrived; corrected",
        )

    def close(self) -> None:
        """Close the file."""
        os.close(self.file)
