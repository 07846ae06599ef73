"""The schedule that admission promises by: the waiting requests in their order, cut into batches, with their times.

Each batch carries the most images, up to the size with the highest pace, that keeps the earliest deadline among them.
A request is let in only if this schedule keeps its deadline and everybody else's; as the batcher falls back to it
whenever another cut would make somebody late, what was promised is kept as long as the table is right.

The end of batch n is taken to be uncertain by the tails of n batches, which add up like independent errors: sqrt(n)
times the distance from the median to the 99th percentile.
"""

from math import inf, sqrt

from perwatt.serve.latency import LatencyTable


class Schedule:
    """Batches laid end to end from `begins_s` on; requests are added in order.

    full: images of a batch at most. stretch: how many times longer than alone everything takes; first_stretch: the same
    for the first batch. running: batches that have to end before, whose tails count too. cautious: hold ends to the
    99th percentile, else to the median.
    """

    __slots__ = (
        "_bound", "_cautious", "_earliest", "_expected", "_full", "_images", "_number", "_start_s", "_stretch",
        "_tails", "begins_s", "first", "later_stretch",
    )  # fmt: skip

    def __init__(
        self,
        table: LatencyTable,
        full: int,
        begins_s: float,
        stretch: float = 1.0,
        *,
        first_stretch: float | None = None,
        running: int = 0,
        cautious: bool = True,
    ) -> None:
        self.begins_s = begins_s
        self.first: int | None = None
        self.later_stretch = stretch
        expected, bound = table.curves
        self._expected, self._bound = expected, bound if cautious else expected
        self._full = full
        self._start_s, self._stretch = begins_s, stretch if first_stretch is None else first_stretch
        self._number = 1 + running
        self._tails = sqrt(self._number)
        self._images = 0
        self._earliest = inf
        self._cautious = True

    def add(self, images: int, deadline_s: float) -> bool:
        """Put a request of so many images behind all others; says whether it is answered in time.

        One that cannot be is scheduled all the same: held to what is expected, if that is in time, else to nothing.
        """
        if images == 1 and 0 < self._images < self._full:  # nearly always, and much the quickest
            earliest = deadline_s if deadline_s < self._earliest else self._earliest
            if self._end(self._images + 1) <= earliest:
                self._images += 1
                self._earliest = earliest
                return True
        in_time = True
        while images:
            if not self._images:
                count = self._most_that_fits(images, deadline_s)
                self._earliest = deadline_s
                if not count:
                    in_time = False
                    self._cautious = False  # held to the median: all that it can hope for
                    count = self._most_that_fits(images, deadline_s)
                if not count:
                    self._cautious, self._earliest = True, inf
                    count = min(images, self._full)
            else:
                count = self._most_that_fits(images, min(deadline_s, self._earliest))
                if count and deadline_s < self._earliest:
                    self._earliest = deadline_s
            if not count:
                self._close()
                continue
            self._images += count
            images -= count
        return in_time

    def copy(self) -> "Schedule":
        """Return another schedule that stands where this one does."""
        other = Schedule.__new__(Schedule)
        for name in Schedule.__slots__:
            setattr(other, name, getattr(self, name))
        return other

    def run_first(self, images: int) -> None:
        """Let a first batch of so many images run before anything is added."""
        self._images = images
        self._close()

    @property
    def last_begins_s(self) -> float:
        """When the batch with the request that was added last is expected to begin."""
        return self._start_s

    @property
    def first_images(self) -> int:
        """The images of the first batch."""
        return self._images if self.first is None else self.first

    def _end(self, images: int) -> float:
        seconds = self._expected[images]
        if self._cautious:
            seconds += (self._bound[images] - seconds) * self._tails
        return self._start_s + seconds * self._stretch

    def _most_that_fits(self, images: int, deadline_s: float) -> int:
        """Return how many more of so many images the batch can carry and still end before a deadline."""
        count = min(images, self._full - self._images)
        while count and self._end(self._images + count) > deadline_s:
            count -= 1
        return count

    def _close(self) -> None:
        if self.first is None:
            self.first = self._images
        self._start_s += self._expected[self._images] * self._stretch
        self._stretch = self.later_stretch
        self._number += 1
        self._tails = sqrt(self._number)
        self._images = 0
        self._earliest = inf
        self._cautious = True
