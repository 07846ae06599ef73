"""The batcher under a fake clock: whatever comes, nothing is lost, doubled, mixed up or out of order."""

from collections import Counter
from math import inf

import pytest
from batcher_bench import Clock, table_of
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from perwatt.errors import InputError
from perwatt.serve.batcher import Batcher, Limits, Refusal
from perwatt.serve.latency import LatencyTable
from perwatt.serve.ticket import Batch, Ticket

SECONDS = {1: 0.010, 2: 0.015, 4: 0.022, 8: 0.040}
EPSILON_S = 1e-9


class Machine(RuleBasedStateMachine):
    """Requests come, go, expire; batches end, fail, are lost. A model of its own counts what must be true."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.batcher = Batcher(table_of(SECONDS), self.clock, Limits(queue_images=40))
        self.tickets: list[Ticket] = []
        self.flight: list[Batch] = []
        self.answered: dict[int, Counter[int]] = {}
        self.ends: Counter[int] = Counter()
        self.bad: set[int] = set()
        self.retried: set[int] = set()

    @rule(
        images=st.integers(1, 12),
        deadline=st.one_of(st.none(), st.floats(0.001, 0.5)),
        priority=st.integers(0, 2),
        bad=st.booleans(),
    )
    def arrive(self, images: int, deadline: float | None, priority: int, bad: bool) -> None:
        waiting = self.batcher.queued_images
        at = None if deadline is None else self.clock.now_s + deadline
        ticket = self.batcher.submit(images, deadline_s=at, priority=priority)
        self.drop()
        if isinstance(ticket, Refusal):
            assert ticket.reason in ("queue_full", "deadline")
            if ticket.reason == "queue_full":
                assert waiting + images > 40
            else:
                assert at is not None
            return
        assert waiting + images <= 40 or self.batcher.queued_images <= 40
        self.tickets.append(ticket)
        self.answered[ticket.number] = Counter()
        if bad:
            self.bad.add(ticket.number)

    @rule(seconds=st.floats(0.0, 0.1))
    def wait(self, seconds: float) -> None:
        self.clock.now_s += seconds

    @rule(index=st.integers(0, 200))
    @precondition(lambda self: self.tickets)
    def cancel(self, index: int) -> None:
        ticket = self.tickets[index % len(self.tickets)]
        if self.batcher.cancel(ticket):
            self.end(ticket, "cancelled")

    @rule()
    @precondition(lambda self: len(self.flight) < 2)
    def take(self) -> None:
        queue = [(t, t.taken) for t in self.batcher.waiting()]
        retries = bool(self.batcher._retries)
        batch = self.batcher.take()
        self.drop()
        alive = [(t, taken) for t, taken in queue if t.state == "waiting"]
        if batch is None:
            assert not alive, "the engine is free, requests wait, and none is taken"
            assert not any(
                t.state == "waiting" and sum(self.answered[t.number].values()) < t.images and not self.flying(t)
                for t in self.tickets
            ), "a request was lost"
            return
        self.flight.append(batch)
        assert batch.images == sum(part.count for part in batch.parts)
        assert 1 <= batch.images <= batch.size
        assert batch.size in SECONDS
        assert len({part.ticket.number for part in batch.parts}) == len(batch.parts)
        for part in batch.parts:
            assert part.ticket.state == "waiting", "an ended request costs the engine nothing"
            assert part.ticket.deadline_s >= self.clock.now_s
            for image in range(part.first, part.first + part.count):
                assert not self.answered[part.ticket.number][image], "an image runs twice"
                assert 0 <= image < part.ticket.images
        if not retries:
            taken = [part.ticket for part in batch.parts]
            assert taken == [t for t, _ in alive][: len(taken)], "not in the order of priority, deadline, arrival"
            left = [t for t, _ in alive if t.taken < t.images]
            for ticket in taken:
                for other in left:
                    if other is not ticket and other.priority == ticket.priority:
                        assert ticket.deadline_s <= other.deadline_s
                    assert ticket.priority <= other.priority

    def drop(self) -> None:
        for ticket in self.batcher.dropped():
            assert self.clock.now_s + SECONDS[1] > ticket.deadline_s - EPSILON_S, "dropped though it could be kept"
            self.end(ticket, "expired")

    def flying(self, ticket: Ticket) -> bool:
        return any(part.ticket is ticket for batch in self.flight for part in batch.parts)

    def end(self, ticket: Ticket, state: str) -> None:
        assert ticket.state == state
        self.ends[ticket.number] += 1

    @rule(share=st.floats(0.5, 3.0))
    @precondition(lambda self: self.flight)
    def run(self, share: float) -> None:
        """The engine ends its first batch: with an error if a bad request is in it, else with answers."""
        batch = self.flight.pop(0)
        seconds = SECONDS[batch.size] * share
        self.clock.now_s += seconds
        if any(part.ticket.number in self.bad for part in batch.parts):
            for ticket in self.batcher.failed(batch):
                assert ticket.number in self.bad, "a neighbour failed by another's fault"
                assert len(batch.parts) == 1
                self.end(ticket, "failed")
            return
        for part in batch.parts:
            for image in range(part.first, part.first + part.count):
                self.answered[part.ticket.number][image] += 1
        for ticket in self.batcher.finished(batch, seconds):
            assert self.answered[ticket.number] == Counter(range(ticket.images)), "an answer is missing or doubled"
            self.end(ticket, "done")

    @rule()
    @precondition(lambda self: self.flight)
    def crash(self) -> None:
        flight, self.flight = self.flight, []
        for ticket in self.batcher.lost(flight[0]):
            assert any(part.ticket is ticket for part in flight[0].parts)
            self.end(ticket, "failed")
        for batch in flight[1:]:
            self.batcher.put_back(batch)

    @invariant()
    def every_request_is_in_one_place(self) -> None:
        for ticket in self.tickets:
            assert self.ends[ticket.number] == (ticket.state != "waiting"), "ended twice, or without a word"
        waiting = list(self.batcher.waiting())
        assert self.batcher.queued_images == sum(t.images - t.taken for t in waiting) <= 40
        assert all(t.state == "waiting" for t in waiting)
        keys = [(t.priority, t.deadline_s, t.number) for t in waiting]
        assert keys == sorted(keys)

    def teardown(self) -> None:
        """Without further arrivals everything ends, in time bounded by the work."""
        for _ in range(10_000):
            if not self.flight:
                self.take()
            if not self.flight:
                break
            self.run(1.0)
        assert not self.batcher.has_work
        assert self.batcher.idle
        assert all(ticket.state != "waiting" for ticket in self.tickets)


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)


def batcher_of(seconds: dict[int, float] | None = None, clock: Clock | None = None, **limits: object) -> Batcher:
    return Batcher(table_of(seconds or SECONDS), clock or Clock(), Limits(**limits))  # type: ignore[arg-type]


def admitted(answer: Ticket | Refusal) -> Ticket:
    assert isinstance(answer, Ticket), answer
    return answer


def refused(answer: Ticket | Refusal) -> Refusal:
    assert isinstance(answer, Refusal)
    return answer


def test_what_gathers_while_a_batch_runs_goes_together() -> None:
    batcher = batcher_of(objective="throughput")
    admitted(batcher.submit())
    first = batcher.take()
    assert first is not None
    assert first.images == 1, "an idle engine does not wait"
    for _ in range(7):
        admitted(batcher.submit())
    batcher.finished(first, 0.01)
    second = batcher.take()
    assert second is not None
    assert (second.images, second.size) == (7, 8)


def test_the_largest_batch_that_keeps_the_earliest_deadline() -> None:
    clock = Clock()
    batcher = batcher_of(clock=clock, objective="throughput")
    blocking = admitted(batcher.submit())
    running = batcher.take()
    assert running is not None
    assert running.parts[0].ticket is blocking
    for _ in range(8):
        admitted(batcher.submit(deadline_s=clock.now_s + 0.5))
    admitted(batcher.submit(deadline_s=clock.now_s + 0.010 + 0.023))
    clock.now_s += 0.010
    batcher.finished(running, 0.010)
    batch = batcher.take()
    assert batch is not None
    assert batch.images == 4, "a batch of 8 takes 40 ms and would miss the deadline 23 ms away"


def test_a_request_that_cannot_be_in_time_is_refused_at_once() -> None:
    clock = Clock()
    batcher = batcher_of(clock=clock)
    assert refused(batcher.submit(deadline_s=clock.now_s + 0.009)).reason == "deadline"
    admitted(batcher.submit(deadline_s=clock.now_s + 0.0101))
    assert batcher.take() is not None
    clock.now_s += 0.004
    hint = refused(batcher.submit(deadline_s=clock.now_s + 0.0155))
    assert (hint.reason, hint.retry_after_s) == ("deadline", None)
    admitted(batcher.submit(deadline_s=clock.now_s + 0.0165))


def test_a_request_that_would_make_another_late_is_refused_unless_its_priority_is_higher() -> None:
    clock = Clock()
    batcher = batcher_of({1: 0.010}, clock=clock)
    later = admitted(batcher.submit(deadline_s=clock.now_s + 0.0195, priority=1))
    assert refused(batcher.submit(deadline_s=clock.now_s + 0.011, priority=1)).reason == "deadline"
    admitted(batcher.submit(deadline_s=clock.now_s + 0.011, priority=0))
    batch = batcher.take()
    assert batch is not None
    assert batch.parts[0].ticket.priority == 0
    clock.now_s += 0.010
    batcher.finished(batch, 0.010)
    assert batcher.take() is None
    assert batcher.dropped() == [later], "it cannot be in time any more, and costs nothing"


def test_the_limit_shortens_deadlines_and_never_lengthens_them() -> None:
    clock = Clock()
    batcher = batcher_of(clock=clock, deadline_s=0.05)
    assert admitted(batcher.submit()).deadline_s == clock.now_s + 0.05
    assert admitted(batcher.submit(deadline_s=clock.now_s + 0.03)).deadline_s == clock.now_s + 0.03
    assert admitted(batcher.submit(deadline_s=clock.now_s + 3.0)).deadline_s == clock.now_s + 0.05
    assert admitted(batcher_of().submit()).deadline_s == inf


def test_a_full_queue_says_when_to_come_again_from_the_measured_pace() -> None:
    clock = Clock()
    batcher = batcher_of({1: 0.5}, clock=clock, queue_images=9)
    for _ in range(9):
        admitted(batcher.submit())
    assert refused(batcher.submit()).retry_after_s is None, "no pace was measured yet"
    batch = batcher.take()
    assert batch is not None
    clock.now_s += 0.5
    batcher.finished(batch, 0.5)
    admitted(batcher.submit())
    full = refused(batcher.submit())
    assert (full.reason, full.retry_after_s) == ("queue_full", 4.5), "nine images at two a second"
    fast = batcher_of({1: 0.01}, clock=clock, queue_images=9)
    admitted(fast.submit())
    batch = fast.take()
    assert batch is not None
    fast.finished(batch, 0.01)
    for _ in range(9):
        admitted(fast.submit())
    assert refused(fast.submit()).retry_after_s == pytest.approx(0.09)
    slow = batcher_of({1: 9.0}, clock=clock, queue_images=99)
    admitted(slow.submit())
    batch = slow.take()
    assert batch is not None
    slow.finished(batch, 9.0)
    for _ in range(99):
        admitted(slow.submit())
    assert refused(slow.submit()).retry_after_s == 30.0, "at most"


def test_who_would_be_late_is_told_when_to_come_again_unless_the_deadline_is_out_of_reach_at_any_time() -> None:
    clock = Clock()
    batcher = batcher_of({1: 0.5}, clock=clock)
    admitted(batcher.submit())
    batch = batcher.take()
    assert batch is not None
    clock.now_s += 0.5
    batcher.finished(batch, 0.5)
    admitted(batcher.submit())
    assert batcher.take() is not None
    late = refused(batcher.submit(deadline_s=clock.now_s + 0.6))
    assert (late.reason, late.retry_after_s) == ("deadline", 0.5)
    assert refused(batcher.submit(deadline_s=clock.now_s + 0.4)).retry_after_s is None


def test_what_would_be_refused_is_told_before_its_photograph_is_decoded_and_nobody_is_let_in_by_asking() -> None:
    clock = Clock()
    batcher = batcher_of({1: 0.1, 4: 0.2}, clock=clock)
    assert batcher.refusal(deadline_s=clock.now_s + 0.25) is None
    assert not batcher.has_work
    assert batcher.refusal(deadline_s=clock.now_s + 0.25, behind=3) is None
    behind_many = batcher.refusal(deadline_s=clock.now_s + 0.25, behind=4)
    assert behind_many is not None
    assert behind_many.reason == "deadline"
    full = batcher_of(queue_images=8).refusal(4, behind=5)
    assert full is not None
    assert full.reason == "queue_full"


def test_a_request_larger_than_the_queue_is_told_so() -> None:
    assert refused(batcher_of(queue_images=8).submit(9)).reason == "too_many_images"


def test_one_bad_request_of_eight_costs_its_neighbours_three_more_runs_and_nothing_else() -> None:
    batcher = batcher_of(objective="throughput")
    tickets = [admitted(batcher.submit()) for _ in range(8)]
    done, failed, runs = [], [], 0
    while (batch := batcher.take()) is not None:
        runs += 1
        if any(part.ticket is tickets[5] for part in batch.parts):
            failed += batcher.failed(batch)
        else:
            done += batcher.finished(batch, 0.01)
    assert failed == [tickets[5]]
    assert sorted(t.number for t in done) == [0, 1, 2, 3, 4, 6, 7]
    assert runs == 7, "8; 4+4; 2+2; 1+1"


def test_a_wrong_table_is_doubted_once_a_second_so_that_it_can_mend() -> None:
    clock = Clock()
    table = table_of({1: 0.050})
    table.observe(1, 0.010)  # the fastest run on record
    batcher = Batcher(table, clock, Limits(deadline_s=0.030))
    assert refused(batcher.submit()).reason == "deadline"
    clock.now_s += 1.01
    admitted(batcher.submit())
    assert refused(batcher.submit()).reason == "deadline", "one, not many"
    batch = batcher.take()
    assert batch is not None
    batcher.finished(batch, 0.012)
    assert refused(batcher.submit()).reason == "deadline"
    clock.now_s += 1.01
    admitted(batcher.submit())
    assert refused(batcher_of({1: 0.050}, clock=clock, deadline_s=0.030).submit()).reason == "deadline"


def test_a_free_engine_takes_what_is_expected_to_be_in_time_however_long_single_runs_took() -> None:
    """On a machine that others use, the 99th percentile may lie beyond the limit: that must not end the service."""
    table = LatencyTable([1])
    table.observe_all(1, [0.03] * 90 + [0.5] * 10)
    clock = Clock()
    batcher = Batcher(table, clock, Limits(deadline_s=0.1))
    assert table.bound_s(1) > 0.1
    for _ in range(20):
        admitted(batcher.submit())
        assert refused(batcher.submit()).reason == "deadline", "with another before it that is too bold"
        batch = batcher.take()
        assert batch is not None
        clock.now_s += 0.03
        assert len(batcher.finished(batch, 0.03)) == 1


def test_energy_waits_for_more_images_only_while_the_deadline_and_the_arrivals_allow_it() -> None:
    clock = Clock()
    table = table_of({1: 0.010, 2: 0.012, 4: 0.015})
    for size, joules in {1: 1.0, 2: 1.2, 4: 1.6}.items():
        table.observe_joules(size, joules)
    batcher = Batcher(table, clock, Limits(deadline_s=0.1, objective="energy"))
    admitted(batcher.submit())
    batch = batcher.take()
    assert batch is not None, "nothing is known of the arrivals yet: run"
    batcher.finished(batch, 0.010)
    for _ in range(20):  # arrivals every 20 ms become known
        clock.now_s += 0.020
        admitted(batcher.submit())
        batch = batcher.take()
        if batch is not None:
            batcher.finished(batch, 0.010)
    while (batch := batcher.take()) is not None:
        batcher.finished(batch, 0.010)
    wake = batcher.next_wake_s()
    if batcher.has_work:
        assert wake is not None
        clock.now_s = wake
        batch = batcher.take()
        assert batch is not None
        batcher.finished(batch, 0.010)
    first = admitted(batcher.submit())
    assert batcher.take() is None, "four at a time take 0.4 J each, one alone 1 J"
    wake = batcher.next_wake_s()
    assert wake == pytest.approx(first.deadline_s - 0.015)
    for _ in range(3):
        admitted(batcher.submit())
    batch = batcher.take()
    assert batch is not None
    assert batch.images == 4, "full: no reason to wait"
    batcher.finished(batch, 0.015)
    alone = admitted(batcher.submit())
    assert batcher.take() is None
    clock.now_s = alone.deadline_s - 0.015
    batch = batcher.take()
    assert batch is not None, "the deadline allows no more waiting"
    batcher.finished(batch, 0.010)
    clock.now_s += 60.0  # a silence: the next image will not come soon
    admitted(batcher.submit())
    assert batcher.take() is not None


@pytest.mark.parametrize("limits", [Limits(max_batch=9), Limits(max_batch=0), Limits(queue_images=4)])
def test_limits_that_contradict_the_table_are_refused(limits: Limits) -> None:
    with pytest.raises(InputError, match="max_batch"):
        Batcher(table_of(SECONDS), Clock(), limits)


@pytest.mark.parametrize(("images", "deadline"), [(0, None), (1, float("nan"))])
def test_what_is_no_request_is_refused(images: int, deadline: float | None) -> None:
    with pytest.raises(InputError, match="at least one image"):
        batcher_of().submit(images, deadline_s=deadline)
