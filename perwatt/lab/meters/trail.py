"""What a meter has shown so far, and the joules between two instants that follow from it.

Every kind of reading becomes one curve: joules since the first reading, known at knots. A knot is a moment at which the
meter took up a new value; a meter that was read more often than it updates gives it to within the time between two
reads, one read less often to within its update period. Between knots the curve is a straight line.

The uncertainty of a window has these parts, added as independent errors (JCGM 100:2008, 4.3.7 and 5.1.2: a bound a of
either sign counts as a/sqrt(3), the 95 % half width is 1.96 times the root of the sum of squares):
- at each edge, the moment of the nearest knot times the power there;
- at each edge, the distance to the nearest knot times the change of power around it;
- the quantum;
- of a sensor that sees a share f of the time: sqrt(1 - f) times the standard error of the mean of its readings, from
  the means of eight batches (as for correlated samples), or as if they were independent where they are few;
- of readings that are missing: half their time times the range of power around them.
"""

import math
from bisect import bisect_left, bisect_right
from collections import deque

import numpy as np

from perwatt.errors import MeterError
from perwatt.lab.meters.meter import Energy, Meter, Offset, Reading

MOST_W = 3000.0  # of one counter that wraps; a step that would need more is no wrap
NORMAL_95 = 1.96
GAP = 2.5  # update periods between two readings from which one is missing
MOST_MISSING = 0.5  # of a window
MOVING = 1.5  # an average over more update periods than this one is a moving one
FULL = 0.6  # a reading that is the mean over at least this share of its time stands for all of it
CLEAR = 10.0  # a slope is taken between knots this many times as far apart as their moments are unsure
PARTIAL = 0.03  # what a sensor that sees part of the time may miss of a load in step with it, of what it does not see
KEPT_KNOTS = 400_000
BATCHES = 8
STILL_S = 1.0  # for so long no machine takes less than a quantum
FEW_T = 2.36 / 1.96  # Student's t of eight batches over the normal's


class Trail:
    """The readings of one meter; `add` and `fail` come in the order of time. Raises MeterError only in `energy`."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.times_ns: list[int] = []
        self.spreads_s: list[float] = []
        self.joules: list[float] = []
        self.values: list[float] = []
        self.last: Reading | None = None
        self.breaks: list[tuple[int, int, str]] = []  # from, to, why
        self.stills: list[tuple[int, int]] = []  # a counter read from, to, and always the same
        self.failures: deque[tuple[int, str]] = deque(maxlen=100)

    def add(self, reading: Reading) -> None:
        """Take up one reading, not older than the one before."""
        if self.meter.unit == "J":
            self._add_joules(reading)
        else:
            self._add_watts(reading)
        self.last = reading
        if len(self.times_ns) > KEPT_KNOTS:
            for kept in (self.times_ns, self.spreads_s, self.joules, self.values):
                del kept[: KEPT_KNOTS // 2]

    def fail(self, time_ns: int, reason: str) -> None:
        """Note that a reading failed."""
        self.failures.append((time_ns, reason))

    def period_s(self) -> float | None:
        """Return the median time between the last knots, None before there are three."""
        times = self.times_ns[-100:]
        return float(np.median(np.diff(times))) * 1e-9 if len(times) > 2 else None

    def watts(self, seconds: float = 2.0) -> float | None:
        """Return the mean power of the last seconds that were seen, None before there is any."""
        if len(self.times_ns) < 2:
            return None
        first = min(bisect_left(self.times_ns, self.times_ns[-1] - int(seconds * 1e9)), len(self.times_ns) - 2)
        return self._slope(first, len(self.times_ns) - 1)

    def energy(self, start_ns: int, end_ns: int, offset: Offset | None = None) -> Energy:
        """Return the joules between two instants. Raises MeterError when the readings do not carry a figure."""
        seconds = (end_ns - start_ns) * 1e-9
        if seconds <= 0:
            raise MeterError(f"{self.meter.name}: expected a window that ends after it starts, got {seconds:.3g} s")
        if offset is not None:
            start_ns, end_ns = start_ns - offset.add_ns, end_ns - offset.add_ns
        for since, until, reason in self.breaks:
            if since < end_ns and until > start_ns:
                raise MeterError(f"{self.meter.name}: {reason}")
        if self.meter.averaging_s > MOVING * self.meter.update_period_s:
            found, variance, notes = self._moving(start_ns, end_ns)
        else:
            found, variance, notes = self._between(start_ns, end_ns, (offset or Offset()).spread_ns * 1e-9)
        if found <= 0:
            raise MeterError(f"{self.meter.name}: read {found:.3g} J in {seconds:.3g} s, which no machine can do")
        share = self.meter.sampled_share
        gain = math.hypot(self.meter.gain, PARTIAL * (1 - share)) if share < 1 else self.meter.gain
        return Energy(found, NORMAL_95 * math.sqrt(variance), gain, seconds, notes)

    def _knot(self, reading: Reading, earliest_ns: int, joules: float) -> None:
        """Put down a knot between `earliest_ns` and the reading's time, not before the last one."""
        moment = (earliest_ns + reading.time_ns) // 2
        self.times_ns.append(max(moment, self.times_ns[-1] + 1) if self.times_ns else moment)
        self.spreads_s.append((reading.time_ns - earliest_ns) * 0.5e-9)
        self.joules.append(joules)
        self.values.append(reading.value)

    def _age_ns(self, reading: Reading) -> int:
        return int(1e9 * (self.meter.update_period_s if reading.age_s is None else reading.age_s))

    def _add_joules(self, reading: Reading) -> None:
        oldest = reading.time_ns - self._age_ns(reading)
        if self.last is None:
            self._knot(reading, oldest, 0.0)
            return
        step, wait_s = reading.value - self.last.value, (reading.time_ns - self.last.time_ns) * 1e-9
        wrap_j, most_j = self.meter.wrap_j, MOST_W * (wait_s + self.meter.update_period_s)
        reason = None
        if wrap_j is not None and most_j >= wrap_j:
            reason = f"was not read for {wait_s:.1f} s, in which it may have wrapped around"
        elif step < 0:
            step += wrap_j or 0.0
            if wrap_j is None or not 0 <= step <= most_j:
                reason = f"the counter went back from {self.last.value:.6g} J to {reading.value:.6g} J without a wrap"
        elif wrap_j is not None and step > most_j:
            reason = f"the counter jumped by {step:.6g} J in {wait_s:.3g} s"
        if reason is not None:
            self.breaks.append((self.last.time_ns, reading.time_ns, reason))
            self._knot(reading, oldest, self.joules[-1])
        elif step > 0:
            self._knot(reading, max(self.last.time_ns, oldest), self.joules[-1] + step)
        elif self.stills and self.stills[-1][1] == self.last.time_ns:
            self.stills[-1] = (self.stills[-1][0], reading.time_ns)
        else:
            self.stills.append((self.last.time_ns, reading.time_ns))
        if len(self.stills) > 1 and self._is_short(self.stills[-2]):
            del self.stills[-2]

    def _is_short(self, still: tuple[int, int]) -> bool:
        return (still[1] - still[0]) * 1e-9 < max(10 * self.meter.update_period_s, STILL_S)

    def _add_watts(self, reading: Reading) -> None:
        oldest = reading.time_ns - self._age_ns(reading)
        if self.last is None or not self.times_ns:
            self._knot(reading, oldest, 0.0)
            return
        if reading.value != self.last.value or reading.age_s is not None:
            oldest = min(max(self.last.time_ns, oldest), reading.time_ns)
        elif oldest < self.times_ns[-1]:  # not known to be a new value
            return
        before_ns, before, joules = self.times_ns[-1], self.values[-1], self.joules[-1]
        self._knot(reading, oldest, joules)
        wait_s = (self.times_ns[-1] - before_ns) * 1e-9
        stands_for_all = FULL * wait_s <= self.meter.averaging_s
        self.joules[-1] += wait_s * (reading.value if stands_for_all else (before + reading.value) / 2)

    def _slope(self, first: int, last: int) -> float:
        return (self.joules[last] - self.joules[first]) / (1e-9 * (self.times_ns[last] - self.times_ns[first]))

    def _slopes(self, first: int, last: int) -> tuple[float | None, float | None, float]:
        """Return the power before the first of two neighbouring knots, after the last, and between them.

        The first two are None where nothing was read, or their neighbours are too near to say.
        """
        beside: list[float | None] = []
        for at, step in ((first, -1), (last, 1)):
            other, found = at + step, None
            while found is None and 0 <= other < len(self.times_ns):
                unsure_s = CLEAR * max(self.spreads_s[at], self.spreads_s[other])
                if abs(self.times_ns[other] - self.times_ns[at]) * 1e-9 >= unsure_s:
                    found = self._slope(min(at, other), max(at, other))
                other += step
            beside.append(found)
        return beside[0], beside[1], self._slope(first, last)

    def _silence(self, when_ns: int) -> MeterError:
        """Return why there is nothing about an instant."""
        name = self.meter.name
        near = [reason for time_ns, reason in self.failures if time_ns >= (self.times_ns or [0])[-1]]
        if self.failures and (near or not self.times_ns):
            return MeterError(f"{name}: {(near or [reason for _, reason in self.failures])[-1]}")
        if not self.times_ns:
            return MeterError(f"{name}: nothing was read")
        if when_ns < self.times_ns[0]:
            return MeterError(f"{name}: was not read before the window began")
        still_s = (when_ns - self.times_ns[-1]) * 1e-9
        if self.meter.unit == "J" and self.last is not None and self.last.time_ns >= when_ns - 1e9 * still_s / 2:
            return MeterError(f"{name}: the counter stands still, at {self.last.value:.6g} J for {still_s:.1f} s")
        return MeterError(f"{name}: no reading for the last {still_s:.1f} s of the window")

    def _edge(self, when_ns: int, clock_spread_s: float) -> tuple[float, float]:
        """Return the curve at one instant and the variance of its time."""
        count = len(self.times_ns)
        period_s = max(self.meter.update_period_s, self.period_s() or 0.0)
        if count < 2:
            raise self._silence(when_ns)
        at = bisect_right(self.times_ns, when_ns) - 1
        beyond_s = max((when_ns - self.times_ns[-1]) * 1e-9, (self.times_ns[0] - when_ns) * 1e-9)
        failed = bool(self.failures) and self.failures[-1][0] >= self.times_ns[-1]
        if beyond_s > 3 * period_s or (failed and when_ns > self.times_ns[-1]):
            raise self._silence(when_ns)
        first = min(max(at, 0), count - 2)
        last = first + 1
        before_w, after_w, here_w = self._slopes(first, last)
        clear = (self.times_ns[last] - self.times_ns[first]) * 1e-9 >= CLEAR * self.spreads_s[last]
        around = [each for each in (before_w, after_w) if each is not None]
        around += [here_w] if clear or not around else []
        nearest = first if abs(when_ns - self.times_ns[first]) <= abs(when_ns - self.times_ns[last]) else last
        away_s = (when_ns - self.times_ns[nearest]) * 1e-9
        if beyond_s > 0:
            value = self.joules[nearest] + float(np.mean(around)) * away_s
        else:
            value = self._bent(first, last, when_ns, before_w, after_w)
        # Past the last knot nothing holds the line, and beside it nothing is known of one side: the power may then be
        # any up to what was seen.
        known = beyond_s <= 0 and before_w is not None and after_w is not None
        change = max(around) - min(around) if known else max(map(abs, around))
        shift = max(map(abs, around)) * math.hypot(self.spreads_s[nearest], clock_spread_s)
        step = self.meter.quantum / 2 if self.meter.unit == "J" else 0.0
        return value, (shift**2 + (change * away_s) ** 2 + step**2) / 3

    def _bent(self, first: int, last: int, when_ns: int, before_w: float | None, after_w: float | None) -> float:
        """Return the curve between two knots, with one change of power where the joules between them say.

        Windows begin and end where the power changes, and there a straight line would favour the quieter side.
        """
        length_s = (self.times_ns[last] - self.times_ns[first]) * 1e-9
        here_s, step_j = (when_ns - self.times_ns[first]) * 1e-9, self.joules[last] - self.joules[first]
        if before_w is None or after_w is None or before_w == after_w:
            return self.joules[first] + step_j * here_s / length_s
        bend_s = min(max((after_w * length_s - step_j) / (after_w - before_w), 0.0), length_s)
        until_here = before_w * min(here_s, bend_s) + after_w * max(here_s - bend_s, 0.0)
        whole = before_w * bend_s + after_w * (length_s - bend_s)
        return self.joules[first] + step_j * (until_here / whole if whole > 0 else here_s / length_s)

    def _between(self, start_ns: int, end_ns: int, clock_spread_s: float) -> tuple[float, float, tuple[str, ...]]:
        """Return joules, variance and notes of a window, by the curve."""
        meter, seconds, notes = self.meter, (end_ns - start_ns) * 1e-9, []
        period_s = max(meter.update_period_s, self.period_s() or 0.0)
        if seconds < meter.update_period_s:
            raise MeterError(
                f"{meter.name}: a window of {seconds:.3g} s is shorter than the {meter.update_period_s:.3g} s in which "
                "the meter updates"
            )
        (start_j, start_variance), (end_j, end_variance) = (
            self._edge(when_ns, clock_spread_s) for when_ns in (start_ns, end_ns)
        )
        variance = start_variance + end_variance
        first = max(bisect_left(self.times_ns, start_ns) - 1, 0)
        last = min(bisect_right(self.times_ns, end_ns) + 1, len(self.times_ns))
        times_s = np.array(self.times_ns[first:last], np.float64) * 1e-9
        waits_s = np.diff(times_s)
        for since_ns, until_ns in self.stills:
            if since_ns < end_ns and until_ns > start_ns and not self._is_short((since_ns, until_ns)):
                still_s = (until_ns - since_ns) * 1e-9
                raise MeterError(f"{meter.name}: the counter stands still, for {still_s:.1f} s of it")
        if meter.unit == "W":
            values = np.array(self.values[first:last])
            covered_s = min(meter.averaging_s, float(np.mean(waits_s)))
            share = meter.sampled_share * covered_s / float(np.mean(waits_s))
            variance += (1 - share) * _variance_of_mean(values[1:]) * seconds**2
            variance += (meter.quantum * seconds) ** 2 / 12 / max(len(values), 1)
            missing_s = np.where(waits_s > GAP * period_s, waits_s - period_s, 0.0)
            lost_s = float(missing_s.sum())
            if lost_s > MOST_MISSING * seconds:
                told = [reason for time_ns, reason in self.failures if start_ns <= time_ns <= end_ns]
                why = f": {told[-1]}" if told else ""
                raise MeterError(
                    f"{meter.name}: {100 * min(lost_s / seconds, 1):.0f} % of the readings are missing{why}"
                )
            if lost_s > 0:
                notes.append(f"{meter.name}: {100 * lost_s / seconds:.0f} % of the readings are missing")
                variance += float((missing_s**2).sum()) * (float(np.ptp(values)) / 2) ** 2 / 3
        elif meter.sampled_share < 1 and len(waits_s) > 2:
            powers = np.diff(np.array(self.joules[first:last])) / waits_s
            variance += (1 - meter.sampled_share) * _variance_of_mean(powers[1:-1]) * seconds**2
        return end_j - start_j, variance, tuple(notes)

    def _moving(self, start_ns: int, end_ns: int) -> tuple[float, float, tuple[str, ...]]:
        """Return joules, variance and notes of a window of a meter that shows the mean of the last `averaging_s`.

        Such means, taken one after another without overlap, add up to the energy exactly, wherever the load began. Only
        what is left of the window, shorter than one mean, is taken to have the power of the mean at its end.
        """
        meter, seconds = self.meter, (end_ns - start_ns) * 1e-9
        whole = int(seconds / meter.averaging_s)
        if whole < 1:
            raise MeterError(
                f"{meter.name}: a window of {seconds:.3g} s is shorter than the {meter.averaging_s:.3g} s over which "
                "the meter averages"
            )
        left_s = seconds - whole * meter.averaging_s
        ends = [end_ns - int(1e9 * meter.averaging_s * index) for index in range(whole)]
        if (
            len(self.times_ns) < 3
            or ends[-1] < self.times_ns[0]
            or end_ns > self.times_ns[-1] + 3e9 * (meter.update_period_s)
        ):
            raise self._silence(end_ns)
        times = np.array(self.times_ns, np.float64)
        shown = np.interp(ends, times, self.values)
        nearest = [min(bisect_left(self.times_ns, end), len(self.times_ns) - 1) for end in ends]
        variance = 0.0
        for end, at in zip(ends, nearest, strict=True):
            before, after = max(at - 1, 0), min(at + 1, len(self.values) - 1)
            change = max(self.values[before : after + 1]) - min(self.values[before : after + 1])
            wait_s = max((self.times_ns[at] - self.times_ns[before]) * 1e-9, 1e-9)
            if wait_s > GAP * meter.update_period_s:
                raise MeterError(f"{meter.name}: no reading for {wait_s:.1f} s around a mean that the window needs")
            unsure_s = self.spreads_s[at] + min(abs(end - self.times_ns[at]) * 1e-9, wait_s / 2)
            variance += (meter.averaging_s * change * min(unsure_s / wait_s, 1.0)) ** 2 / 3
            variance += (meter.averaging_s * meter.quantum) ** 2 / 12
        first, last = bisect_left(self.times_ns, ends[-1]), bisect_right(self.times_ns, end_ns)
        inside = self.values[first:last] or [float(shown[0])]
        # The left-over begins the window; the means seen since tell how far its own power may be off.
        variance += float(np.var(inside)) * left_s * meter.averaging_s
        if meter.sampled_share < 1:
            variance += (1 - meter.sampled_share) * _variance_of_mean(shown) * seconds**2
        return float(shown.sum()) * meter.averaging_s + left_s * float(shown[-1]), variance, ()


def _variance_of_mean(values: np.ndarray) -> float:
    """Return the squared standard error of the mean of readings in the order of time."""
    if len(values) < 2:
        return float(values[0]) ** 2 if len(values) else 0.0  # one reading says nothing of its spread
    if len(values) < 3 * BATCHES:
        return float(np.var(values, ddof=1)) / len(values)
    means = [float(np.mean(part)) for part in np.array_split(values, BATCHES)]
    return float(np.var(means, ddof=1)) / BATCHES * FEW_T**2
