"""The load generator against servers that stall, refuse, hang, hang up and lie."""

import asyncio
import itertools
import socket
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_server import OK_BODY, Reply, serving

from perwatt.errors import InputError
from perwatt.lab.load.connection import Answer, BadAnswer
from perwatt.lab.load.generator import (
    BROKEN,
    LEFT,
    RIGHT,
    UNANSWERED,
    UNCONNECTED,
    UNFINISHED,
    WRONG,
    Client,
    Endpoint,
    Generator,
    Judge,
    Outcome,
    fine_loop,
)
from perwatt.lab.load.schedule import Schedule, poisson
from perwatt.lab.load.shot import Behaviour, Shot, post

pytestmark = pytest.mark.alone  # latencies of sent requests are held to the clock


def shot(body: bytes = b"picture", behaviour: Behaviour = "plain", after_s: float = 0.0) -> Shot:
    return post("/classify", "localhost", body, name="cat.jpg", model="cat", behaviour=behaviour, after_s=after_s)


def at(*due_s: float) -> Schedule:
    due = np.asarray(due_s, dtype=np.float64)
    return Schedule((due * 1e9).astype(np.int64), np.zeros(len(due), np.int32), float(due[-1]) + 0.01)


def send(
    port: int, schedule: Schedule, *shots: Shot, client: Client | None = None, judge: Judge | None = None
) -> Outcome:
    with asyncio.Runner(loop_factory=fine_loop) as runner:
        generator = Generator(Endpoint("127.0.0.1", port), shots or (shot(),), client, judge)
        return runner.run(generator.open_loop(schedule))


def latencies_s(outcome: Outcome) -> np.ndarray:
    return (outcome.samples.done_ns - outcome.samples.due_ns) * 1e-9


def test_a_stall_is_seen_by_every_request_that_was_due_in_it() -> None:
    # The server stands still once for 0.4 s; a client that waits for its answer would notice one slow request.
    stalled_until: list[float] = []

    def script(number: int, body: bytes) -> Reply:
        if number == 20 and body:
            stalled_until.append(time.monotonic() + 0.4)
        left_s = stalled_until[0] - time.monotonic() if stalled_until else 0.0
        return Reply(delay_s=max(0.0, left_s))

    with serving(script) as server:
        schedule = at(*np.arange(100) * 0.01)
        outcome = send(server.port, schedule)
    assert set(outcome.samples.status) == {200}
    slow = latencies_s(outcome)[20:60]
    wanted = 0.4 - 0.01 * np.arange(40)
    assert np.all(slow >= wanted - 0.05)
    assert int(np.sum(latencies_s(outcome) > 0.1)) >= 28


def test_latency_counts_from_the_due_time_when_no_connection_is_free() -> None:
    with serving(lambda number, body: Reply(delay_s=0.05)) as server:
        outcome = send(server.port, at(0.0, 0.0, 0.0, 0.0), client=Client(connections=1))
    assert set(outcome.samples.status) == {200}
    assert outcome.connections == 1
    ordered = np.sort(latencies_s(outcome))
    assert np.all(ordered >= 0.05 * np.arange(1, 5) - 0.005)
    assert np.all(np.diff(np.sort(outcome.samples.sent_ns)) > 0.04e9)


def test_connections_are_used_again() -> None:
    with serving(lambda number, body: Reply()) as server:
        outcome = send(server.port, at(*np.arange(50) * 0.01), client=Client(connections=2))
        assert server.requests == 50
        assert server.connections == outcome.connections == 2


@pytest.mark.parametrize("status", [200, 204, 400, 408, 413, 429, 500, 503, 504])
def test_a_status_is_kept_as_it_is(status: int) -> None:
    body = b"" if status == 204 else OK_BODY
    with serving(lambda number, _: Reply(status=status, body=body)) as server:
        assert send(server.port, at(0.0, 0.01)).samples.status.tolist() == [status] * 2


def test_no_answer_a_broken_connection_and_no_connection_are_told_apart() -> None:
    with serving(lambda number, body: Reply(hang=True)) as server:
        outcome = send(server.port, at(0.0, 0.1), client=Client(timeout_s=0.3))
    assert outcome.samples.status.tolist() == [UNANSWERED] * 2
    assert np.all(latencies_s(outcome) >= 0.3)
    with serving(lambda number, body: Reply(hang_up=True)) as server:
        assert send(server.port, at(0.0, 0.05)).samples.status.tolist() == [BROKEN] * 2
    with serving(lambda number, body: Reply(raw=b"SSH-2.0-OpenSSH_9\r\n\r\n")) as server:
        assert send(server.port, at(0.0)).samples.status.tolist() == [BROKEN]
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        assert send(port, at(0.0, 0.02)).samples.status.tolist() == [UNCONNECTED] * 2


def test_a_server_that_ends_every_connection_gets_new_ones() -> None:
    with serving(lambda number, body: Reply(headers=b"connection: close\r\n")) as server:
        outcome = send(server.port, at(*np.arange(10) * 0.02))
    assert outcome.samples.status.tolist() == [200] * 10
    assert outcome.connections >= 10


def test_an_answer_before_the_body_was_sent_counts() -> None:
    with serving(lambda number, body: Reply(status=413, early=True)) as server:
        outcome = send(server.port, at(0.0), shot(bytes(20_000_000)))
    assert outcome.samples.status.tolist() == [413]


def test_clients_that_leave_and_clients_that_are_slow() -> None:
    def script(number: int, body: bytes) -> Reply:
        return Reply(delay_s=0.3) if len(body) == 7 else Reply(body=body)

    with serving(script) as server:
        left = send(server.port, at(0.0), shot(behaviour="leave", after_s=0.05))
        assert left.samples.status.tolist() == [LEFT]
        assert latencies_s(left)[0] >= 0.05
        content = bytes(range(256)) * 40
        slow = send(
            server.port,
            at(0.0),
            shot(content, "slow", 0.2),
            judge=lambda number, head, body: RIGHT if body == content else WRONG,
        )
    assert slow.samples.status.tolist() == [200]
    assert slow.samples.verdict.tolist() == [RIGHT]  # every piece arrived, in order
    assert latencies_s(slow)[0] >= 0.2


def test_each_request_carries_its_own_shot() -> None:
    shots = [shot(f"picture {number}".encode()) for number in range(7)]
    with serving(lambda number, body: Reply(body=body, delay_s=0.01 * (len(body) % 2))) as server:
        outcome = send(
            server.port,
            poisson(200, 1, [1] * 7, 3),
            *shots,
            judge=lambda number, head, body: RIGHT if body == f"picture {number}".encode() else WRONG,
        )
    assert set(outcome.samples.verdict) == {RIGHT}
    assert set(outcome.samples.shot) == set(range(7))


def test_the_closed_loop_keeps_its_number_under_way() -> None:
    with serving(lambda number, body: Reply(delay_s=0.02)) as server:
        counter = itertools.count()
        generator = Generator(Endpoint("127.0.0.1", server.port), [shot()])
        with asyncio.Runner(loop_factory=fine_loop) as runner:
            outcome = runner.run(generator.closed_loop(4, 0.5, lambda: next(counter) * 0))
    samples = outcome.samples
    under_way = [int(np.sum((samples.sent_ns <= moment) & (samples.done_ns > moment))) for moment in samples.sent_ns]
    assert max(under_way) == 4
    assert 4 <= len(samples.due_ns) <= 104  # 4 lanes, at most 25 answers each and one more
    assert outcome.connections == 4


def test_being_stopped_keeps_what_was_sent() -> None:
    with serving(lambda number, body: Reply(hang=number > 5)) as server:
        generator = Generator(Endpoint("127.0.0.1", server.port), [shot()])

        async def main() -> Outcome:
            task = asyncio.current_task()
            assert task is not None
            asyncio.get_running_loop().call_later(0.3, task.cancel)
            return await generator.open_loop(at(*np.arange(100) * 0.02))

        with asyncio.Runner(loop_factory=fine_loop) as runner:
            outcome = runner.run(main())
    assert outcome.stopped
    assert 1 <= len(outcome.samples.due_ns) < 100
    assert set(outcome.samples.status) <= {200, UNFINISHED}
    assert np.all(outcome.samples.released_ns >= 0)


@pytest.mark.slow
def test_giving_up_waits_for_what_was_sent_and_for_connections_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(lambda number, body: Reply(delay_s=0.3)) as server:
        generator = Generator(Endpoint("127.0.0.1", server.port), [shot()])

        async def main() -> Outcome:
            loop = asyncio.get_running_loop()
            connect = loop.create_connection

            async def slowly(*arguments, **options):  # type: ignore[no-untyped-def]
                await asyncio.sleep(0.7)  # longer than until the first question whether to give up
                return await connect(*arguments, **options)

            monkeypatch.setattr(loop, "create_connection", slowly)
            schedule = at(*np.arange(100) * 0.03)
            return await asyncio.wait_for(generator.open_loop(schedule, give_up=lambda _: True), 60)

        with asyncio.Runner(loop_factory=fine_loop) as runner:
            outcome = runner.run(main())
    assert outcome.gave_up
    assert not outcome.stopped
    assert 1 <= len(outcome.samples.due_ns) < 100
    assert set(outcome.samples.status) == {200}


def test_nothing_to_send_is_refused() -> None:
    with pytest.raises(InputError, match="give photographs"):
        Generator(Endpoint("127.0.0.1", 1), [])


WHOLE = st.sampled_from(
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", 200, b"hello"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 429 No\r\ncontent-length:2\r\nretry-after: 1\r\n\r\nno", 429, b"no"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n", 200, b"abcde"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\ntrailer: 1\r\n\r\n", 200, b"a"),
        (b"HTTP/1.1 503 Later\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", 503, b""),
        (b"HTTP/1.1 204 None\r\n\r\n", 204, b""),
    ]
)


@given(WHOLE, st.lists(st.integers(1, 9), max_size=60))
def test_an_answer_may_come_in_any_pieces(whole: tuple[bytes, int, bytes], sizes: list[int]) -> None:
    content, status, body = whole
    answer, at_byte = Answer(), 0
    for size in sizes:
        if at_byte < len(content):
            assert not answer.whole or at_byte >= len(content)
            answer.take(content[at_byte : at_byte + size])
            at_byte += size
    if at_byte < len(content):
        answer.take(content[at_byte:])
    assert (answer.whole, answer.status, answer.body) == (True, status, body)
    with pytest.raises(BadAnswer):
        answer.take(b"more")


@given(st.binary(max_size=200), st.integers(1, 50))
def test_bytes_that_are_no_answer_do_no_harm(content: bytes, size: int) -> None:
    for start in (b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"):
        answer = Answer()
        try:
            for first in range(0, len(start + content), size):
                answer.take((start + content)[first : first + size])
        except BadAnswer:
            continue
        assert answer.whole in (True, False)


def test_arrivals_are_poisson_seeded_and_independent_of_the_weights() -> None:
    first, again = poisson(500, 20, [1, 3], 7), poisson(500, 20, [1, 3], 7)
    assert np.array_equal(first.due_ns, again.due_ns)
    assert np.array_equal(first.shots, again.shots)
    assert np.array_equal(first.due_ns, poisson(500, 20, [1], 7).due_ns)
    assert not np.array_equal(first.due_ns[:100], poisson(500, 20, [1, 3], 8).due_ns[:100])
    count = len(first.due_ns)
    assert abs(count - 10_000) < 4 * 100  # the deviation of a Poisson count is its root
    gaps_s = np.diff(first.due_ns) * 1e-9
    # Kolmogorov and Smirnov against the exponential distribution; 1.95 / sqrt(n) is passed once in a thousand.
    ordered = np.sort(gaps_s)
    above = np.abs(np.arange(1, len(ordered) + 1) / len(ordered) - (1 - np.exp(-500 * ordered))).max()
    assert above < 1.95 / np.sqrt(len(ordered))
    assert abs(np.corrcoef(gaps_s[:-1], gaps_s[1:])[0, 1]) < 4 / np.sqrt(count)
    share = float(np.mean(first.shots == 1))
    assert abs(share - 0.75) < 4 * np.sqrt(0.75 * 0.25 / count)


@pytest.mark.parametrize(
    ("rate", "seconds", "weights"),
    [(0, 1, [1]), (-1, 1, [1]), (float("nan"), 1, [1]), (1, 0, [1]), (1e6, 1e5, [1]), (1, 1, []), (1, 1, [0, 0]),
     (1, 1, [-1, 2])],
)  # fmt: skip
def test_impossible_schedules_are_refused(rate: float, seconds: float, weights: list[float]) -> None:
    with pytest.raises(InputError):
        poisson(rate, seconds, weights, 1)
