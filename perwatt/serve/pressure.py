"""Overload: how fast images are offered, and which batch size then answers the most of them in time.

Under overload somebody has to be refused. A request with just enough time for a small batch makes the batch that
carries it small, and so costs the answers of several others; with more offered than can be answered it is better to
refuse that one. For relative deadlines of D seconds, batches of B images in t(B) and images offered at a rate, those
that come in the D - t(B) before a batch begins leave it time enough, so that batches of B answer
min(B, rate * min(t(B), D - t(B))) / t(B) images a second.

And the more is offered, the shorter a queue keeps the engine busy: at twice what can be answered, those that come while
one batch runs are more than enough for the next. Who would have to wait longer than that is refused although the
deadline would allow it, so that what is left of it covers batches that take longer than any before.
"""

from math import exp, inf

from perwatt.serve.latency import LatencyTable

# How quickly the offered rate and the deadlines asked for are forgotten.
MEMORY_S = 0.5
# Offered above answerable by this much counts as overload; less is chance.
_CLEARLY = 1.05
# The smallest size that answers nearly as many as the best leaves the most time for the unforeseen.
_NEARLY = 0.95
_FRESH_S = 0.02


class Pressure:
    """What is offered, against what batches of each size could answer. Times are on the batcher's clock."""

    __slots__ = ("_batch_s", "_deadline_s", "_excess", "_most", "_needed_s", "_rate", "_seen_s", "_table", "_weighed_s")

    def __init__(self, table: LatencyTable, most: int) -> None:
        self._table, self._most = table, most
        self._rate = 0.0
        self._deadline_s: float | None = None
        self._seen_s = -inf
        self._needed_s, self._weighed_s = 0.0, -inf
        self._batch_s = self._excess = 0.0

    def note(self, now_s: float, images: int, deadline_s: float) -> None:
        """Note what is offered: images, and their deadline in seconds from now (infinite: none)."""
        gap_s = now_s - self._seen_s
        kept = exp(-gap_s / MEMORY_S)
        self._rate = self._rate * kept + images / MEMORY_S
        self._seen_s = now_s
        if deadline_s < inf:
            before = deadline_s if self._deadline_s is None else self._deadline_s
            # As slow as the rate: its memory holds about rate * MEMORY_S images.
            self._deadline_s = before + (deadline_s - before) / max(1.0, self._rate * MEMORY_S)

    def rate(self, now_s: float) -> float:
        """Return how many images are offered a second."""
        return self._rate * exp(-(now_s - self._seen_s) / MEMORY_S)

    def needed_s(self, now_s: float) -> float:
        """Return how much time a request has to leave the batch that carries it: 0 without overload."""
        if now_s - self._weighed_s > _FRESH_S:
            self._weighed_s = now_s
            self._needed_s = self._weigh(self.rate(now_s))
        return self._needed_s

    def spare_s(self, deadline_s: float) -> float:
        """Return how much time beyond that a request with so many seconds to its deadline has to leave.

        Called after `needed_s`. All of what two batches do not need at twice the pace of the engine, none at that pace;
        no more than what would be missing were both to take twice as long.
        """
        both_s = self._batch_s + self._needed_s
        return self._excess * min(max(0.0, deadline_s - both_s), both_s)

    def _weigh(self, rate: float) -> float:
        if self._deadline_s is None:
            return 0.0
        sizes = []
        for size in self._table.sizes:
            images = min(size, self._most)
            seconds, bound_s = self._table.expected_s(images), self._table.bound_s(images)
            window_s = min(seconds, self._deadline_s - bound_s)
            answered = min(images, rate * window_s) / seconds if window_s > 0 else 0.0
            sizes.append((answered, bound_s, seconds))
        best = max(answered for answered, _, _ in sizes)
        if not rate > _CLEARLY * best > 0:
            return 0.0
        self._excess = min(1.0, rate / best - 1)
        _, needed_s, self._batch_s = next(each for each in sizes if each[0] >= _NEARLY * best)
        return needed_s
