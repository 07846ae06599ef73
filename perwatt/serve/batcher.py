"""The batcher: which waiting requests the engine runs next, and which are refused at once. Pure: a queue and a clock.

It is work-conserving: a free engine takes what is there, a busy one lets requests gather. The order is by priority (the
smaller number first), within it by earliest deadline, then by arrival. The next batch carries as many images as the
objective's plan of the latency table wants, fewer where that many would miss the earliest deadline, another number
where requests further back would miss theirs. A request that cannot be answered before its deadline is refused on
arrival, and so is one that would make another of its own priority late; a higher priority may push lower ones back.
Under overload those are refused first that would make batches small, and nobody is let in who would wait much longer
than one batch takes: the time left covers batches that take longer than any before (see `Pressure`). A batch that fails
is halved until the one bad request stands alone. Every request that was let in ends exactly once: done, failed, expired
or cancelled.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf
from typing import Any, Literal

from perwatt.errors import InputError
from perwatt.serve.latency import LatencyTable, Objective
from perwatt.serve.pressure import Pressure
from perwatt.serve.schedule import Schedule
from perwatt.serve.ticket import Batch, Part, State, Ticket

Reason = Literal["queue_full", "too_many_images", "deadline"]
MOST_RETRY_AFTER_S = 30.0
# A table that was not fed for so long is doubted: a free engine then takes one request that only the fastest run on
# record could answer in time. Without this, one bad measurement could refuse everything for ever.
DOUBT_AFTER_S = 1.0
# How quickly the measured pace of the engine follows a change: the share of the newest batch.
_PACE_SHARE = 0.1
# Waiting for more images must save at least this share of the joules of each.
_WORTH_WAITING = 0.05
# A batch that outlasts its bound says that the machine is slower than the table just now. What follows is taken to be
# as slow, by this share of the newest batch, at most so many times, and for so long where no batch comes to tell.
_DRAG_SHARE = 0.5
_MOST_DRAG = 4.0
_DRAG_S = 0.1
# Every so many batches a size that was not used for long is measured again, if enough images wait.
_TRY_EVERY = 16


@dataclass(frozen=True)
class Limits:
    """What the batcher keeps to.

    max_batch: images of a batch, at most the table's largest size (None: that size). queue_images: images that may
    wait. deadline_s: what every request is given that brings no nearer deadline, None: no limit. objective: what sizes
    of batches are preferred under the deadlines; with "energy" a free engine may wait for more images while the
    earliest deadline allows it, if the table says that it saves joules and images arrive fast enough.
    """

    max_batch: int | None = None
    queue_images: int = 1024
    deadline_s: float | None = None
    objective: Objective = "latency"


@dataclass(frozen=True)
class Refusal:
    """Why a request was not let in; retry_after_s is when there will be room, None where nothing says when."""

    reason: Reason
    message: str
    retry_after_s: float | None = None


class Batcher:
    """The queue in front of one engine. Not for several threads at once.

    latency: a table that is ready. clock: monotonic seconds. Raises InputError for limits that contradict the table.
    """

    def __init__(self, latency: LatencyTable, clock: Callable[[], float], limits: Limits) -> None:
        most = latency.largest if limits.max_batch is None else limits.max_batch
        if not latency.ready:
            raise InputError("expected a latency table with every batch size measured; run the warm-up first")
        if not 1 <= most <= latency.largest or limits.queue_images < most:
            raise InputError(
                f"expected max_batch from 1 to {latency.largest} and at most queue_images, got {most} and "
                f"{limits.queue_images}"
            )
        self.latency, self.limits, self._clock, self._most = latency, limits, clock, most
        # How many times longer than alone a batch takes while other packages share the cores.
        self.stretch = 1.0
        self._drag = 1.0
        self.queued_images = 0
        self._queue: list[tuple[int, float, int, Ticket]] = []
        self._retries: deque[tuple[Part, ...]] = deque()
        self._flight: deque[Batch] = deque()
        self._dropped: list[Ticket] = []
        self._schedule: Schedule | None = None
        self._next_number = self._taken = 0
        self._fed_s = clock()
        self._pace_images = self._pace_s = 0.0
        self.pressure = Pressure(latency, most)

    # -- arrival -------------------------------------------------------------------------------------------------------

    def submit(
        self, images: int = 1, *, deadline_s: float | None = None, priority: int = 0, payload: Any = None
    ) -> Ticket | Refusal:
        """Let a request of so many images in, or refuse it. deadline_s is on the batcher's clock."""
        asked = self._asked(images, deadline_s, priority, payload, 0)
        if isinstance(asked, Refusal):
            return asked
        ticket, place = asked
        self.pressure.note(ticket.arrived_s, images, ticket.deadline_s - ticket.arrived_s)
        if not self._in_time(ticket, place, ticket.arrived_s):
            return self._too_late(ticket)
        self._next_number += 1
        self._queue.insert(place, (*ticket.key, ticket))
        self.queued_images += images
        return ticket

    def refusal(
        self, images: int = 1, *, deadline_s: float | None = None, priority: int = 0, behind: int = 0
    ) -> Refusal | None:
        """Return what `submit` would refuse a request with by now, None if it would let it in; it is not let in here.

        behind: images that are expected before it and not here yet, as if they were part of it.
        """
        asked = self._asked(images, deadline_s, priority, None, behind)
        if isinstance(asked, Refusal):
            return asked
        ticket, place = asked
        if self._in_time(ticket, place, ticket.arrived_s):
            self._schedule = None  # it may hold this one, who does not wait here
            return None
        self.pressure.note(ticket.arrived_s, images, ticket.deadline_s - ticket.arrived_s)
        return self._too_late(ticket)

    def cancel(self, ticket: Ticket) -> bool:
        """Forget a request whose caller has gone; False when it had ended already. A batch in progress goes on."""
        if ticket.state != "waiting":
            return False
        self._end(ticket, "cancelled")
        return True

    # -- the engine ----------------------------------------------------------------------------------------------------

    def take(self) -> Batch | None:
        """Return the next batch, or None when there is nothing to run, or it pays to wait (energy; see `Limits`).

        With a batch in progress it forms the one after that: what arrives later has to wait for both.
        """
        now = self._clock()
        self._forget_drag(now)
        self._drop_late(now)
        parts = self._retry()
        if parts is None:
            if not self._queue or self._waits_for_more(now):
                return None
            count = self._how_many(now)
            while self.pressure.needed_s(now) and self._drop_missed(now, count):
                if not self._queue:
                    return None
                count = self._how_many(now)
            parts = self._first_parts(count)
        images = sum(part.count for part in parts)
        batch = Batch(parts, images, self.latency.size_of(images), now)
        batch.expected_s = self.latency.expected_s(images)
        batch.bound_s = self.latency.bound_s(images)
        self._flight.append(batch)
        self._schedule = None
        return batch

    def finished(self, batch: Batch, seconds: float) -> list[Ticket]:
        """Note that a batch was answered, after so many seconds of the engine; return the requests that are done."""
        self._leave(batch)
        self.latency.judge(batch.expected_s, batch.bound_s, seconds)
        self.latency.observe(batch.size, seconds)
        self._fed_s = self._clock()
        ratio = min(seconds / batch.expected_s, _MOST_DRAG)
        if seconds <= batch.bound_s:  # as much as chance explains
            ratio = min(ratio, self._drag)
        self._drag = max(1.0, self._drag + _DRAG_SHARE * (ratio - self._drag))
        fresh = _PACE_SHARE if self._pace_s else 1.0
        self._pace_images += fresh * (batch.images - self._pace_images)
        self._pace_s += fresh * (seconds - self._pace_s)
        done = []
        for part in batch.parts:
            ticket = part.ticket
            ticket.answered += part.count
            if ticket.answered == ticket.images and ticket.state == "waiting":
                ticket.state = "done"
                done.append(ticket)
        return done

    def failed(self, batch: Batch) -> list[Ticket]:
        """Note that a batch raised an error; return the requests that failed by it: one that was alone in its batch.

        Of several, both halves run again, each by itself and before anything else.
        """
        self._leave(batch)
        alive = tuple(part for part in batch.parts if part.ticket.state == "waiting")
        if len(alive) > 1:
            self._retries.extendleft((alive[len(alive) // 2 :], alive[: len(alive) // 2]))
            return []
        if len(batch.parts) > 1:  # the others went meanwhile: it may not be the bad one
            self._retries.extendleft([alive] if alive else [])
            return []
        return [self._end(part.ticket, "failed") for part in alive]

    def lost(self, batch: Batch) -> list[Ticket]:
        """Note that the engine died with a batch; return the requests that failed by it."""
        self._leave(batch)
        return [self._end(part.ticket, "failed") for part in batch.parts if part.ticket.state == "waiting"]

    def put_back(self, batch: Batch) -> None:
        """Note that a batch was never begun: it runs before anything else."""
        self._leave(batch)
        self._retries.appendleft(batch.parts)
        self._schedule = None

    # -- time ----------------------------------------------------------------------------------------------------------

    def dropped(self) -> list[Ticket]:
        """Return the requests that expired since the last call, now included."""
        self._drop_late(self._clock())
        dropped, self._dropped = self._dropped, []
        return dropped

    def abandon(self) -> list[Ticket]:
        """Fail every request that has not ended and return them: the server closes."""
        tickets = [entry[3] for entry in self._queue]
        tickets += [part.ticket for parts in self._retries for part in parts]
        tickets += [part.ticket for batch in self._flight for part in batch.parts]
        self._retries.clear()
        return [self._end(ticket, "failed") for ticket in tickets if ticket.state == "waiting"]

    def next_wake_s(self) -> float | None:
        """Return when something changes without an arrival or a finished batch: a request expires, a wait is over."""
        soonest = min((entry[1] for entry in self._heads()), default=inf)
        soonest = min([soonest, *(part.ticket.deadline_s for part in self._set_out())])
        if soonest == inf:
            return None
        wake = soonest - self.latency.fastest_s()
        if not self._flight and self.limits.objective == "energy":
            wake = min(wake, soonest - self.latency.bound_s(self._most) * self.stretch)
        return wake

    @property
    def idle(self) -> bool:
        """Whether nothing runs."""
        return not self._flight

    @property
    def in_flight_images(self) -> int:
        """The images of the batches that were taken and have not come back."""
        return sum(batch.images for batch in self._flight)

    @property
    def has_work(self) -> bool:
        """Whether requests wait; some of them may have expired by now."""
        return bool(self._queue or self._retries)

    def waiting(self) -> Iterator[Ticket]:
        """Yield the waiting requests in the order in which they will be taken."""
        return (entry[3] for entry in self._queue)

    def next_images(self) -> int:
        """Return about how many images the next batch will carry: what is worth laying ready for it."""
        return self._wanted(self._clock()) if self.queued_images else 0

    @property
    def full_images(self) -> int:
        """The images of a batch that more waiting would not make larger."""
        return min(self.latency.first_batch(2 * self.latency.largest, self.limits.objective), self._most)

    @property
    def _full(self) -> int:
        """The images of the batch with the highest pace."""
        return min(self.latency.first_batch(2 * self.latency.largest, "throughput"), self._most)

    # -- within --------------------------------------------------------------------------------------------------------

    def _asked(
        self, images: int, deadline_s: float | None, priority: int, payload: Any, behind: int
    ) -> tuple[Ticket, int] | Refusal:
        """Return a request's ticket and its place in the queue, or the refusal if there is no room for it."""
        if images < 1 or deadline_s != deadline_s:
            raise InputError(f"expected at least one image and a deadline that is a number, got {images}, {deadline_s}")
        now = self._clock()
        self._forget_drag(now)
        deadline = inf if deadline_s is None else deadline_s
        if self.limits.deadline_s is not None:
            deadline = min(deadline, now + self.limits.deadline_s)
        room = self.limits.queue_images
        if images > room:
            return Refusal(
                "too_many_images", f"expected at most {room} images in a request, got {images}; send fewer at once"
            )
        if self.queued_images + images + behind > room:
            self._drop_late(now)
            if self.queued_images + images + behind > room:
                return Refusal(
                    "queue_full",
                    f"expected at most {room} waiting images, {self.queued_images + behind} are; come again later",
                    self._retry_after_s(),
                )
        ticket = Ticket(self._next_number, images + behind, now, deadline, priority, payload)
        return ticket, self._place(ticket)

    def _too_late(self, ticket: Ticket) -> Refusal:
        """Return the refusal of a request that cannot be in time; coming again is worth it if waiting is the reason."""
        left_s = ticket.deadline_s - ticket.arrived_s
        alone = left_s >= self.latency.expected_s(min(ticket.images, self._most))
        return Refusal(
            "deadline",
            f"expected a deadline that can be kept, got one {left_s:.3g} s away with {self.queued_images} images "
            f"waiting; allow more time, or come again when there is less to do",
            self._retry_after_s() if alone else None,
        )

    @property
    def _slowness(self) -> float:
        """How many times longer than the table says batches take: others have their turn, the machine is slow."""
        return self.stretch * self._drag

    def _forget_drag(self, now: float) -> None:
        if self._drag > 1.0 and not self._flight and now - self._fed_s > _DRAG_S:
            self._drag = 1.0

    def _place(self, ticket: Ticket) -> int:
        if not self._queue or self._queue[-1][:3] < ticket.key:
            return len(self._queue)
        return bisect_left(self._queue, (*ticket.key, ticket))

    def _schedule_now(self, now: float) -> Schedule:
        """Return the schedule of all that waits; it stands until the queue changes or the engine is overdue."""
        schedule = self._schedule
        if schedule is None or now > schedule.begins_s or schedule.later_stretch != self._slowness:
            schedule = self._empty_schedule(now)
            for _, deadline, _, ticket in self._queue:
                schedule.add(ticket.images - ticket.taken, deadline)
            self._schedule = schedule
        return schedule

    def _empty_schedule(self, now: float) -> Schedule:
        begins_s = now + self._free_in_s(now)
        if self._retries:
            sizes = [sum(part.count for part in parts) for parts in self._retries]
            begins_s += sum(self.latency.expected_s(images) for images in sizes) * self._slowness
        before = len(self._flight) + len(self._retries)
        return Schedule(self.latency, self._full, begins_s, self._slowness, running=before)

    def _in_time(self, ticket: Ticket, place: int, now: float) -> bool:
        """Whether a request can be answered before its deadline, and none of its priority behind it becomes late.

        The schedule then holds it.
        """
        if ticket.deadline_s == inf:  # behind it, in its priority, nobody has a deadline either
            self._schedule = None
            return True
        if place == len(self._queue):
            schedule = self._schedule_now(now).copy()
            if schedule.add(ticket.images, ticket.deadline_s) and self._leaves_time(ticket, schedule, now):
                self._schedule = schedule
                return True
            return self._worth_a_try(ticket, now)
        before, after = self._empty_schedule(now), self._empty_schedule(now)
        self._schedule = None
        for position, (priority, deadline, _, other) in enumerate(self._queue):
            if position == place and not (
                after.add(ticket.images, ticket.deadline_s) and self._leaves_time(ticket, after, now)
            ):
                return False
            images = other.images - other.taken
            was, will = before.add(images, deadline), after.add(images, deadline)
            if was and not will and priority <= ticket.priority:
                return False
        self._schedule = after
        return True

    def _leaves_time(self, ticket: Ticket, schedule: Schedule, now: float) -> bool:
        """Whether a request, added last, leaves its batch the time that overload needs; see `Pressure`."""
        needed_s = self.pressure.needed_s(now)
        if not needed_s or not (self._queue or self._flight or self._retries):
            return True
        left_s = needed_s + self.pressure.spare_s(ticket.deadline_s - ticket.arrived_s)
        return ticket.deadline_s - schedule.last_begins_s >= left_s * self._slowness

    def _worth_a_try(self, ticket: Ticket, now: float) -> bool:
        """Whether a free engine takes a request that caution would refuse: refusing would make nobody else better off.

        What is expected to be in time goes, however long single runs took; else one that the fastest run on record
        would answer in time, after a while without news.
        """
        if self._queue or self._flight or self._retries:
            return False
        left_s = ticket.deadline_s - now
        if ticket.images <= self._most and self.latency.expected_s(ticket.images) * self.stretch <= left_s:
            return True
        old = now - self._fed_s >= DOUBT_AFTER_S
        return old and ticket.images <= self.latency.sizes[0] and self.latency.fastest_s() <= left_s

    def _free_in_s(self, now: float) -> float:
        """Return when the engine is expected to be free, in seconds from now."""
        total = 0.0
        for position, batch in enumerate(self._flight):
            left = batch.expected_s * self._drag
            if position == 0:
                elapsed = now - batch.started_s
                left -= elapsed
                if left < 0:  # overdue: it may go on to its bound, and beyond that nobody knows
                    left = max(batch.bound_s * self._drag - elapsed, 0.1 * batch.expected_s)
            total += left * self.stretch if position else left
        return total

    def _heads(self) -> Iterator[tuple[int, float, int, Ticket]]:
        """Yield the first entry of each priority."""
        place = 0
        while place < len(self._queue):
            yield self._queue[place]
            place = bisect_left(self._queue, self._queue[place][0] + 1, key=lambda entry: entry[0])

    def _set_out(self) -> list[Part]:
        """Return what has left the queue and has not begun: batches to run again, and those behind the running one."""
        if not self._retries and len(self._flight) < 2:
            return []
        behind = [batch.parts for batch in list(self._flight)[1:]]
        return [part for parts in (*self._retries, *behind) for part in parts if part.ticket.state == "waiting"]

    def _drop_late(self, now: float) -> None:
        """Drop what not even the fastest run on record could answer in time."""
        soonest = now + self.latency.fastest_s()
        late = [entry[3] for entry in self._heads() if entry[1] < soonest]
        late += [part.ticket for part in self._set_out() if part.ticket.deadline_s < soonest]
        while late:
            self._dropped += [self._end(ticket, "expired") for ticket in late if ticket.state == "waiting"]
            late = [entry[3] for entry in self._heads() if entry[1] < soonest]

    def _drop_missed(self, now: float, images: int) -> bool:
        """Drop those of the first so many images that the batch would answer too late; says whether there were any.

        Under overload only: their places are worth more to others. Without it, late may still be better than never.
        """
        end_s = now + self._free_in_s(now) + self.latency.expected_s(images) * self._drag
        missed = []
        for _, deadline, _, ticket in self._queue:
            if deadline < end_s:
                missed.append(ticket)
            images -= ticket.images - ticket.taken
            if images <= 0:
                break
        self._dropped += [self._end(ticket, "expired") for ticket in missed]
        return bool(missed)

    def _end(self, ticket: Ticket, state: State) -> Ticket:
        """Give a waiting request its end and take what is left of it out of the queue."""
        ticket.state = state
        if ticket.taken < ticket.images:
            place = self._place(ticket)
            del self._queue[place]
            self._schedule = None
            self.queued_images -= ticket.images - ticket.taken
        return ticket

    def _retry(self) -> tuple[Part, ...] | None:
        """Return the next batch that has to run again, without those that have ended meanwhile."""
        while self._retries:
            parts = tuple(part for part in self._retries.popleft() if part.ticket.state == "waiting")
            if parts:
                return parts
        return None

    def _first_parts(self, images: int) -> tuple[Part, ...]:
        """Take so many images off the front of the queue; a request's images may be spread over several batches."""
        parts, whole = [], 0
        for _, _, _, ticket in self._queue:
            count = min(images, ticket.images - ticket.taken)
            parts.append(Part(ticket, ticket.taken, count))
            ticket.taken += count
            self.queued_images -= count
            images -= count
            whole += ticket.taken == ticket.images
            if not images:
                break
        del self._queue[:whole]
        return tuple(parts)

    def _how_many(self, now: float) -> int:
        """Return how many images the next batch carries: as the objective wants, if nobody becomes late by it."""
        wanted = self._wanted(now)
        self._taken += 1
        if self._taken % _TRY_EVERY == 0:
            wanted = self.latency.stalest(min(self.queued_images, self._most)) or wanted
        if self._queue[0][1] == inf and self._queue[-1][0] == self._queue[0][0]:
            return wanted  # one priority, no deadlines
        start_s = now + self._free_in_s(now)
        if wanted == self._promised(start_s):
            return wanted
        promised, late = self._scheduled(start_s, None)
        if not late:
            return wanted if not self._scheduled(start_s, wanted)[1] else promised
        # Somebody will be late by the cautious estimate. By the plain one, is it better to keep the earliest deadline,
        # or to give it up for the others'?
        held, late_held = self._scheduled(start_s, None, cautious=False)
        most = min(self.latency.first_batch(self.queued_images, "throughput"), self._most)
        return held if late_held < self._scheduled(start_s, most, cautious=False)[1] else most

    def _promised(self, start_s: float) -> int:
        """Return the images of the first batch of the schedule of all that waits."""
        schedule = Schedule(self.latency, self._full, start_s, self._drag)
        for _, deadline, _, ticket in self._queue:
            schedule.add(ticket.images - ticket.taken, deadline)
            if schedule.first is not None:
                break
        return schedule.first_images

    def _wanted(self, now: float) -> int:
        """Return how many images the objective's plan puts into the next batch; under overload the pace is all."""
        objective = self.limits.objective
        if objective == "latency" and self.pressure.needed_s(now):
            objective = "throughput"
        return min(self.latency.first_batch(self.queued_images, objective), self._most)

    def _scheduled(self, start_s: float, first: int | None, cautious: bool = True) -> tuple[int, int]:
        """Return (images of the first batch, requests that would be late) of all that waits.

        first: images of the first batch, None: as many as keep the earliest deadline among them.
        """
        schedule = Schedule(
            self.latency, self._full, start_s, self._slowness, first_stretch=self._drag, cautious=cautious
        )  # fmt: skip
        late, left = 0, first or 0
        if first is not None:
            curves = self.latency.curves
            end_s = start_s + curves[1 if cautious else 0][first] * self._drag
            schedule.run_first(first)
        for _, deadline, _, ticket in self._queue:
            images = ticket.images - ticket.taken
            if left:
                carried = min(left, images)
                left -= carried
                images -= carried
                if end_s > deadline:
                    late += 1
                    deadline = inf
            if images and not schedule.add(images, deadline):
                late += 1
        return schedule.first_images, late

    def _earliest(self, images: int) -> float:
        """Return the earliest deadline among the first so many images."""
        earliest, covered = inf, 0
        for _, deadline, _, ticket in self._queue:
            earliest = min(earliest, deadline)
            covered += ticket.images - ticket.taken
            if covered >= images:
                break
        return earliest

    def _waits_for_more(self, now: float) -> bool:
        """Whether a free engine does better to let more images gather: only for energy, and only if it will pay."""
        if self.limits.objective != "energy" or self._flight or not self.latency.has_joules:
            return False
        waiting = self.queued_images
        slack = self._earliest(waiting) - now - self.latency.bound_s(self._most) * self.stretch
        if waiting >= self._most or not 0 < slack < inf:
            return False
        hoped = min(self._most, waiting + int(slack * self.pressure.rate(now)))
        alone, together = self.latency.joules_per_image(waiting), self.latency.joules_per_image(hoped)
        return alone is not None and together is not None and together <= (1 - _WORTH_WAITING) * alone

    def _retry_after_s(self) -> float | None:
        """Return in how many seconds the queue will have emptied at the measured pace; None before any was measured."""
        if not self._pace_images:
            return None
        seconds = (self.queued_images + self.in_flight_images) * self._pace_s / self._pace_images * self.stretch
        return min(seconds, MOST_RETRY_AFTER_S)

    def _leave(self, batch: Batch) -> None:
        """Take a batch out of flight; the one behind it begins now."""
        self._schedule = None
        first = self._flight[0] is batch
        self._flight.remove(batch)
        if first and self._flight:
            self._flight[0].started_s = self._clock()
