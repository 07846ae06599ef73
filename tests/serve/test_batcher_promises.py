"""What the batcher promises, in virtual time: who is let in is answered in time, and overload costs no goodput."""

import random

import pytest
from batcher_bench import serve
from hypothesis import given, settings
from hypothesis import strategies as st

from perwatt.serve.batcher import Limits
from perwatt.serve.latency import Objective
from perwatt.serve.ticket import Batch

SIZES = (1, 2, 4, 8)
curves = st.lists(st.floats(0.0, 0.05), min_size=4, max_size=4).map(
    lambda gaps: {size: 0.002 + sum(gaps[: i + 1]) for i, size in enumerate(SIZES)}
)
arrivals = st.lists(st.tuples(st.floats(0.0, 0.03), st.floats(0.001, 0.4)), min_size=1, max_size=40)


@settings(max_examples=100, deadline=None)
@given(
    curves,
    st.sampled_from(["latency", "throughput"]),
    st.floats(0.5, 6.0),
    st.floats(0.6, 12.0),
    st.sampled_from([0.0, 0.9]),
    st.integers(0, 2**32),
)
def test_as_long_as_the_table_is_right_everybody_let_in_is_answered_in_time(
    seconds: dict[int, float], objective: Objective, load: float, patience: float, unlike: float, seed: int
) -> None:
    """load: images offered over what the engine can do. patience: deadlines in batches of the largest size."""
    noise = random.Random(seed)
    rate = load * max(size / each for size, each in seconds.items())
    now, list_ = 0.0, []
    for _ in range(120):
        now += noise.expovariate(rate)
        list_.append((now, patience * seconds[8] * noise.uniform(1 - unlike, 1 + unlike), 0))
    outcome = serve(seconds, Limits(objective=objective), list_, lambda batch: seconds[batch.size])
    assert not outcome.expired
    for ticket in outcome.admitted:
        assert outcome.finished_s[ticket.number] <= ticket.deadline_s + 1e-9
    assert len(outcome.refused) + len(outcome.admitted) == len(list_)


@settings(max_examples=100, deadline=None)
@given(curves, arrivals)
def test_an_idle_engine_takes_whatever_it_alone_could_answer_in_time(
    seconds: dict[int, float], gaps: list[tuple[float, float]]
) -> None:
    far_apart = [(10.0 * number, deadline, 0) for number, (_, deadline) in enumerate(gaps)]
    outcome = serve(seconds, Limits(), far_apart, lambda batch: seconds[batch.size])
    possible = [deadline for _, deadline, _ in far_apart if deadline >= seconds[1] + 1e-9]
    assert len(outcome.admitted) >= len(possible)
    assert outcome.busy_s == pytest.approx(len(outcome.admitted) * seconds[1])


CPU = {1: 0.0105, 2: 0.020, 4: 0.038, 8: 0.072, 16: 0.140}  # a convolutional network: batches bring little
DENSE = {1: 0.013, 2: 0.015, 4: 0.019, 8: 0.028, 16: 0.050}  # an old one with large matrices: batches bring much


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [CPU, DENSE], ids=["small gain", "large gain"])
@pytest.mark.parametrize("objective", ["latency", "throughput"])
@pytest.mark.parametrize("limit_s", [0.05, 0.1, 0.2, 1.0])
@pytest.mark.parametrize(("spread", "worst"), [(0.02, 1.0), (0.15, 1.1)])
def test_three_times_the_capacity_costs_no_goodput(
    seconds: dict[int, float], objective: Objective, limit_s: float, spread: float, worst: float
) -> None:
    """Poisson arrivals at three times what the engine can do, batches that vary as on a shared machine.

    The capacity is that of the largest batch of which two fit the limit: who arrives finds one running. The table comes
    from a quiet warm-up, so with a wide spread the first batches of the run are later than it could know.
    """
    noise = random.Random(5)
    most = max(size / each for size, each in seconds.items() if 2 * each * (1 + 3 * spread) <= limit_s)
    duration = 20.0
    now, list_ = 0.0, []
    while now < duration:
        now += noise.expovariate(3 * most)
        list_.append((now, None, 0))
    outcome = serve(
        seconds,
        Limits(objective=objective, deadline_s=limit_s),
        list_,
        lambda batch: seconds[batch.size] * noise.lognormvariate(0.0, spread),
    )
    latencies = outcome.latencies_s
    good = sum(latency <= limit_s for latency in latencies)
    assert good >= 0.90 * most * duration, f"{good / duration:.1f} of {most:.1f} images/s"
    assert latencies[int(0.99 * len(latencies))] <= worst * limit_s, "the 99th percentile of those answered"
    assert len(outcome.expired) <= 0.01 * len(outcome.admitted)
    assert len(outcome.finished_s) + len(outcome.expired) == len(outcome.admitted)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [CPU, DENSE], ids=["small gain", "large gain"])
@pytest.mark.parametrize("limit_s", [0.1, 0.2])
@pytest.mark.parametrize("seed", [5, 6, 7])
def test_who_is_let_in_is_in_time_though_the_machine_is_now_and_then_half_as_fast(
    seconds: dict[int, float], limit_s: float, seed: int
) -> None:
    """Three times the capacity; durations vary by a fifth, and double for half a second in ten: others take cores."""
    noise = random.Random(seed)
    most = max(size / each for size, each in seconds.items() if 2 * each * 1.6 <= limit_s)
    duration, slow_s, every_s = 30.0, 0.5, 10.0
    begins = [100.0 + every_s * (number + noise.random()) for number in range(int(duration / every_s) + 1)]
    now, list_ = 0.0, []
    while now < duration:
        now += noise.expovariate(3 * most)
        list_.append((now, None, 0))

    def takes_s(batch: Batch) -> float:
        slow = any(begin <= batch.started_s < begin + slow_s for begin in begins)
        return seconds[batch.size] * noise.lognormvariate(0.0, 0.2) * (2.0 if slow else 1.0)

    outcome = serve(seconds, Limits(deadline_s=limit_s), list_, takes_s)
    latencies = outcome.latencies_s
    capacity = most * (1 - 0.5 * slow_s / every_s)
    good = sum(latency <= limit_s for latency in latencies)
    assert good >= 0.90 * capacity * duration, f"{good / duration:.1f} of {capacity:.1f} images/s"
    assert latencies[int(0.99 * len(latencies))] <= limit_s, "the 99th percentile of those answered"
    assert len(outcome.expired) <= 0.01 * len(outcome.admitted)


def test_one_batch_that_took_long_turns_nobody_away_from_an_idle_engine() -> None:
    """What one slow batch said of the machine is forgotten where no other comes to tell."""
    noise = iter([1.0, 6.0])
    list_ = [(number * 0.5, 0.03, 0) for number in range(10)]
    outcome = serve({1: 0.02}, Limits(), list_, lambda batch: 0.02 * next(noise, 1.0))
    assert len(outcome.admitted) == len(list_)


def test_after_overload_everybody_is_served_again_at_once() -> None:
    noise = random.Random(7)
    crowd = [(noise.uniform(0.0, 20.0), None, 0) for _ in range(6000)]
    calm = [(20.2 + 0.05 * number, None, 0) for number in range(100)]
    outcome = serve(DENSE, Limits(deadline_s=0.1), sorted(crowd) + calm, lambda batch: DENSE[batch.size])
    assert len([t for t in outcome.admitted if t.arrived_s >= 120.2]) == len(calm)


def test_batches_cost_no_latency_where_they_gain_nothing() -> None:
    """At half the capacity of a network whose batches bring nothing, answers come as if there were no batches."""
    seconds = {size: 0.01 * size for size in (1, 2, 4, 8)}
    noise = random.Random(3)
    now, list_ = 0.0, []
    for _ in range(4000):
        now += noise.expovariate(50.0)
        list_.append((now, None, 0))
    single = serve({1: 0.01}, Limits(), list_, lambda batch: 0.01)
    batched = serve(seconds, Limits(), list_, lambda batch: seconds[batch.size])
    # One batch in 16 may be of a size that is only measured again, a size at most once in 64 batches.
    assert sum(batched.latencies_s) <= 1.02 * sum(single.latencies_s)


def test_a_size_that_was_slow_at_warm_up_only_is_found_again() -> None:
    """The machine was busy while batches of 8 were timed; they are the best of all, and the server finds out."""
    told = {1: 0.010, 2: 0.018, 4: 0.034, 8: 0.072}
    true = {1: 0.010, 2: 0.018, 4: 0.034, 8: 0.040}
    list_ = [(0.006 * number, None, 0) for number in range(4000)]
    outcome = serve(told, Limits(objective="throughput", queue_images=200), list_, lambda batch: true[batch.size])
    sizes = [batch.size for batch in outcome.batches]
    assert sizes[:20].count(8) <= 2
    assert sizes[-100:].count(8) >= 80
