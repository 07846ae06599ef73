"""A clock that only tests move, tables of known durations, and a whole server in virtual time around a Batcher."""

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from perwatt.serve.batcher import Batcher, Limits, Refusal
from perwatt.serve.latency import KEPT_SAMPLES, LatencyTable
from perwatt.serve.ticket import Batch, Ticket


class Clock:
    """Seconds that stand still until a test moves them."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def table_of(seconds: dict[int, float]) -> LatencyTable:
    """Return a table in which every run of a size took the same time, so that its tails are nothing."""
    table = LatencyTable(sorted(seconds))
    for size, each in seconds.items():
        table.observe_all(size, [each] * KEPT_SAMPLES)
    return table


@dataclass
class Outcome:
    """How a virtual run of the server went. Times are seconds of the virtual clock."""

    offered: int = 0
    refused: list[Refusal] = field(default_factory=list)
    admitted: list[Ticket] = field(default_factory=list)
    finished_s: dict[int, float] = field(default_factory=dict)
    expired: list[Ticket] = field(default_factory=list)
    batches: list[Batch] = field(default_factory=list)
    busy_s: float = 0.0

    @property
    def latencies_s(self) -> list[float]:
        """Return how long each answered request took, ascending."""
        return sorted(self.finished_s[t.number] - t.arrived_s for t in self.admitted if t.number in self.finished_s)


def serve(
    seconds: dict[int, float],
    limits: Limits,
    arrivals: Iterable[tuple[float, float | None, int]],
    takes_s: Callable[[Batch], float],
) -> Outcome:
    """Run a server in virtual time: one engine, the Batcher, arrivals (when, relative deadline, priority).

    seconds: what the table was told at warm-up. takes_s: what each batch really takes.
    """
    clock = Clock()
    batcher = Batcher(table_of(seconds), clock, limits)
    outcome = Outcome()
    events: list[tuple[float, int, str, object]] = []
    for order, arrival in enumerate(arrivals):
        heapq.heappush(events, (100.0 + arrival[0], order, "arrival", arrival))
    order = len(events)

    def start() -> None:
        nonlocal order
        batch = batcher.take()
        outcome.expired += batcher.dropped()
        if batch is not None:
            spent = takes_s(batch)
            outcome.batches.append(batch)
            outcome.busy_s += spent
            order += 1
            heapq.heappush(events, (clock.now_s + spent, order, "end", (batch, spent)))
        elif batcher.has_work:
            wake = batcher.next_wake_s()
            assert wake is not None, "nobody waits without a reason to wake up"
            order += 1
            heapq.heappush(events, (max(wake, clock.now_s) + 1e-6, order, "wake", None))

    while events:
        clock.now_s, _, what, content = heapq.heappop(events)
        if what == "arrival":
            _, deadline, priority = content  # type: ignore[misc]
            outcome.offered += 1
            ticket = batcher.submit(deadline_s=None if deadline is None else clock.now_s + deadline, priority=priority)
            if isinstance(ticket, Refusal):
                outcome.refused.append(ticket)
            else:
                outcome.admitted.append(ticket)
        elif what == "end":
            batch, spent = content  # type: ignore[misc]
            for ticket in batcher.finished(batch, spent):
                outcome.finished_s[ticket.number] = clock.now_s
        if batcher.idle:
            start()
    assert not batcher.has_work
    return outcome
