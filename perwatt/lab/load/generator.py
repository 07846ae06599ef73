"""The load generator: sends prepared requests when they are due, whatever became of the ones before.

Open loop: a request's time is fixed beforehand and its latency counts from then, so that a server that stalls cannot
slow down the clients who would have shown it (coordinated omission; MLPerf Inference rules, scenario Server). One
thread, one event loop, no garbage collection while it runs; what it costs and how late it was are part of the result.
"""

import asyncio
import gc
import math
import select
import selectors
import ssl
import time
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from perwatt.errors import InputError
from perwatt.lab.load.connection import RECEIVE_BYTES, Connection
from perwatt.lab.load.schedule import Schedule
from perwatt.lab.load.shot import Shot

# In place of a status: what became of a request that got no answer.
UNANSWERED, BROKEN, UNCONNECTED, LEFT, UNFINISHED = -1, -2, -3, -4, -5
# What a judge says of an answer's body.
UNJUDGED, RIGHT, WRONG, STRANGER = 0, 1, 2, 3
SWEEP_S = 0.05
AFTER_REFUSAL_S = 0.05
# Servers close idle connections after some seconds (uvicorn: 5); a request sent into such a close would be lost.
IDLE_LIMIT_S = 2.0
COLLECT_ABOVE_NS = 100_000_000  # a run shorter than this makes no garbage worth the time
_NEVER = -1

Judge = Callable[[int, bytes, bytes], int]  # shot, head, body


@dataclass(frozen=True)
class Endpoint:
    """Where to send: host, port, and whether through TLS."""

    host: str
    port: int
    tls: bool = False


@dataclass(frozen=True)
class Client:
    """Limits of the client side: most connections at once, and how long a request may take from its due time."""

    connections: int = 1024
    timeout_s: float = 10.0


@dataclass(frozen=True)
class Samples:
    """What happened to each request, in the order of their due times; nanoseconds since the start, -1 for never.

    `released_ns` is when the generator took it up (later than due by the generator's own lateness), `sent_ns` when its
    first byte was written (later still when no connection was free), `done_ns` when its answer was whole or given up.
    `status` is the HTTP status or one of the negative numbers above; `shot` and `verdict` as the names say.
    """

    due_ns: np.ndarray
    released_ns: np.ndarray
    sent_ns: np.ndarray
    done_ns: np.ndarray
    status: np.ndarray
    shot: np.ndarray
    verdict: np.ndarray


@dataclass(frozen=True)
class Outcome:
    """The samples of one run and what the generator itself took: processor seconds, wall seconds, connections made.

    `stopped`: by Ctrl-C (cancellation) before its end, or early because `give_up` said so.
    """

    samples: Samples
    wall_s: float
    processor_s: float
    connections: int
    stopped: bool
    gave_up: bool


class Generator:
    """Sends shots to one endpoint; one run at a time."""

    def __init__(
        self, endpoint: Endpoint, shots: Sequence[Shot], client: Client | None = None, judge: Judge | None = None
    ) -> None:
        if not shots:
            raise InputError("load test: expected at least one request to send, got none; give photographs or a model")
        self.endpoint = endpoint
        self.shots = tuple(shots)
        self.client = client or Client()
        self.judge = judge
        self.plain = tuple(shot.behaviour == "plain" for shot in shots)
        self.tls = ssl.create_default_context() if endpoint.tls else None
        self._clear()

    def _clear(self) -> None:
        self.due, self.released, self.sent, self.done = (array("q") for _ in range(4))
        self.status, self.shot_of, self.verdict = array("h"), array("i"), array("b")
        self.idle: list[Connection] = []
        self.active: set[Connection] = set()
        self.waiting: deque[int] = deque()
        self.opening: set[asyncio.Task[None]] = set()
        self.opened = 0
        self.alive = 0
        self.outstanding = 0
        self.next = 0
        self.start_ns = 0
        self.given_up = False
        self.closing = False
        self.finished: asyncio.Future[None]
        self.buffer = memoryview(bytearray(RECEIVE_BYTES))
        self.draw: Callable[[], int] | None = None
        self.end_ns = 0

    # ---- the two kinds of run

    async def open_loop(
        self,
        schedule: Schedule,
        progress: Callable[[float], None] | None = None,
        give_up: Callable[["Generator"], bool] | None = None,
    ) -> Outcome:
        """Send each request of the schedule when it is due; return when all are answered or given up.

        `progress` gets the share of the schedule's time that is over, about twice a second. When `give_up` (asked
        as often) returns true, nothing more is sent.
        """
        self._clear()
        count = len(schedule.due_ns)
        self.due.frombytes(np.ascontiguousarray(schedule.due_ns, dtype=np.int64).tobytes())
        self.shot_of.frombytes(np.ascontiguousarray(schedule.shots, dtype=np.intc).tobytes())
        for column in (self.released, self.sent, self.done):
            column.frombytes(np.full(count, _NEVER, dtype=np.int64).tobytes())
        self.status.frombytes(np.full(count, UNFINISHED, dtype=np.int16).tobytes())
        self.verdict.frombytes(bytes(count))
        warm = min(self.client.connections, 32, 2 + math.ceil(0.05 * count / schedule.seconds))
        return await self._run(warm, self._release, round(schedule.seconds * 1e9), progress, give_up)

    async def closed_loop(
        self,
        concurrency: int,
        seconds: float,
        draw: Callable[[], int],
        progress: Callable[[float], None] | None = None,
    ) -> Outcome:
        """Keep `concurrency` requests under way for `seconds`, each due when the one before on its lane was answered.

        After a refusal it is due AFTER_REFUSAL_S later.

        The server sets the pace, so this measures its throughput and, with one lane, its bare cost; as a latency under
        load it would hide queueing. `draw` returns the number of the next shot.
        """
        self._clear()
        self.draw = draw

        def first() -> None:
            for _ in range(concurrency):
                self._next_of_lane()

        return await self._run(concurrency, first, round(seconds * 1e9), progress, None)

    async def _run(
        self,
        warm: int,
        begin: Callable[[], None],
        length_ns: int,
        progress: Callable[[float], None] | None,
        give_up: Callable[["Generator"], bool] | None,
    ) -> Outcome:
        loop = asyncio.get_running_loop()
        self.finished = loop.create_future()
        await asyncio.gather(*(self._open(None) for _ in range(warm)))
        collecting = gc.isenabled()
        if length_ns > COLLECT_ABOVE_NS:
            gc.collect()
        gc.disable()  # a collection among a million prepared objects takes longer than an answer
        processor_s = time.process_time()
        self.start_ns = time.monotonic_ns()
        self.end_ns = length_ns
        sweeper = loop.create_task(self._sweep(length_ns, progress, give_up))
        stopped = False
        try:
            begin()
            self._end_if_done()
            await self.finished
        except asyncio.CancelledError:
            stopped = True
            task = asyncio.current_task()
            if task is not None:
                task.uncancel()
        finally:
            wall_s = (time.monotonic_ns() - self.start_ns) * 1e-9
            processor_s = time.process_time() - processor_s
            if collecting:
                gc.enable()
            await self._close(sweeper)
        gave_up = not stopped and self.draw is None and self.next < len(self.due)
        return Outcome(self._samples(), wall_s, processor_s, self.opened, stopped, gave_up)

    # ---- sending

    def _release(self) -> None:
        """Send every request that is due, and come back when the next one is."""
        due, count = self.due, len(self.due)
        index, now = self.next, time.monotonic_ns() - self.start_ns
        while index < count and due[index] <= now and not self.given_up:
            self.next = index + 1
            self.released[index] = now
            self.outstanding += 1
            self._send(index)
            index, now = self.next, time.monotonic_ns() - self.start_ns
        if index < count and not self.given_up:
            asyncio.get_running_loop().call_at((self.start_ns + due[index]) * 1e-9, self._release)
        else:
            self._end_if_done()

    def _next_of_lane(self) -> None:
        now = time.monotonic_ns() - self.start_ns
        if self.closing or now >= self.end_ns or self.draw is None:
            self._end_if_done()
            return
        index = len(self.due)
        for column, value in ((self.due, now), (self.released, now), (self.sent, _NEVER), (self.done, _NEVER)):
            column.append(value)
        self.status.append(UNFINISHED)
        self.shot_of.append(self.draw())
        self.verdict.append(UNJUDGED)
        self.outstanding += 1
        self._send(index)

    def _send(self, index: int) -> None:
        idle = self.idle
        while idle:
            connection = idle.pop()
            if connection.transport is not None and not connection.transport.is_closing():
                self._write(connection, index)
                return
        if self.alive + len(self.opening) < self.client.connections:
            task = asyncio.get_running_loop().create_task(self._open(index))
            self.opening.add(task)
            task.add_done_callback(self.opening.discard)
        else:
            self.waiting.append(index)

    def _write(self, connection: Connection, index: int) -> None:
        transport = connection.transport
        assert transport is not None
        connection.sample = index
        self.active.add(connection)
        number = self.shot_of[index]
        self.sent[index] = time.monotonic_ns() - self.start_ns
        if self.plain[number]:
            transport.write(self.shots[number].data)
        else:
            self._misbehave(connection, self.shots[number], index)

    def _misbehave(self, connection: Connection, shot: Shot, index: int) -> None:
        loop = asyncio.get_running_loop()
        transport = connection.transport
        assert transport is not None
        if shot.behaviour == "leave":
            transport.write(shot.data)
            loop.call_later(shot.after_s, self._leave, connection, index)
            return
        transport.write(shot.data[: shot.body_at])
        body = memoryview(shot.data)[shot.body_at :]
        size = -(-len(body) // shot.pieces)
        for piece in range(shot.pieces):
            part = body[piece * size : (piece + 1) * size]
            loop.call_later(shot.after_s * (piece + 1) / shot.pieces, self._write_part, connection, index, part)

    def _write_part(self, connection: Connection, index: int, part: memoryview) -> None:
        if connection.sample == index and connection.transport is not None:
            connection.transport.write(part)

    def _leave(self, connection: Connection, index: int) -> None:
        if connection.sample == index:
            self._settle(connection, LEFT)
            connection.abort()

    async def _open(self, index: int | None) -> None:
        """Make a connection, for one request or for those to come."""
        loop = asyncio.get_running_loop()
        connection = Connection(self, self.buffer)
        try:
            async with asyncio.timeout(self.client.timeout_s):
                await loop.create_connection(
                    lambda: connection, self.endpoint.host, self.endpoint.port, ssl=self.tls
                )  # fmt: skip
        except (OSError, TimeoutError):
            if index is not None and not self.closing:
                self._settle_sample(index, UNCONNECTED)
            return
        self.opened += 1
        self.alive += 1
        if self.closing:
            connection.abort()
        elif connection.transport is None:  # closed again before this task went on
            if index is not None:
                self._settle_sample(index, BROKEN)
        elif index is not None and self.done[index] == _NEVER:
            self._write(connection, index)
        else:
            self._free(connection)

    def _free(self, connection: Connection) -> None:
        """Give the connection to the request that waits longest, or keep it."""
        while self.waiting:
            index = self.waiting.popleft()
            if self.done[index] == _NEVER:
                self._write(connection, index)
                return
        connection.idle_since_s = time.monotonic()
        self.idle.append(connection)

    # ---- what comes back

    def answered(self, connection: Connection, status: int, head: bytes, body: bytes) -> None:
        """Take an answer: note the time first, then judge it, then use the connection again."""
        index = connection.sample
        self.done[index] = time.monotonic_ns() - self.start_ns
        self.status[index] = status
        connection.sample = -1
        self.active.discard(connection)
        self.outstanding -= 1
        lane_over = self.draw is not None
        if connection.reusable and not self.closing:
            self._free(connection)
        else:
            connection.abort()
        if lane_over and status == 200:
            self._next_of_lane()
        elif lane_over:  # whoever is refused does not ask again at once
            asyncio.get_running_loop().call_later(AFTER_REFUSAL_S, self._next_of_lane)
        if self.judge is not None and status == 200:
            self.verdict[index] = self.judge(self.shot_of[index], head, body)
        if self.outstanding == 0:
            self._end_if_done()

    def lost(self, connection: Connection) -> None:
        """Take it that a connection is closed."""
        self.alive -= 1
        if connection in self.idle:
            self.idle.remove(connection)
        self._settle(connection, BROKEN)
        if self.waiting and not self.closing:
            self._send(self.waiting.popleft())

    def _settle(self, connection: Connection, status: int) -> None:
        index, connection.sample = connection.sample, -1
        self.active.discard(connection)
        if index >= 0:
            self._settle_sample(index, status)

    def _settle_sample(self, index: int, status: int) -> None:
        if self.done[index] != _NEVER:
            return
        self.done[index] = time.monotonic_ns() - self.start_ns
        self.status[index] = status
        self.outstanding -= 1
        if self.draw is not None:
            asyncio.get_running_loop().call_later(AFTER_REFUSAL_S, self._next_of_lane)
        self._end_if_done()

    def _end_if_done(self) -> None:
        now = time.monotonic_ns() - self.start_ns
        over = self.given_up or (now >= self.end_ns if self.draw is not None else self.next >= len(self.due))
        if over and self.outstanding == 0 and not self.finished.done():
            self.finished.set_result(None)

    # ---- beside it

    async def _sweep(
        self,
        length_ns: int,
        progress: Callable[[float], None] | None,
        give_up: Callable[["Generator"], bool] | None,
    ) -> None:
        """Give up requests that took too long, close connections that rest too long, tell how far the run is."""
        ticks = 0
        timeout_ns = round(self.client.timeout_s * 1e9)
        while True:
            await asyncio.sleep(SWEEP_S)
            ticks += 1
            now = time.monotonic_ns() - self.start_ns
            for connection in [each for each in self.active if now - self.due[each.sample] > timeout_ns]:
                self._settle(connection, UNANSWERED)
                connection.abort()
            while self.waiting and now - self.due[self.waiting[0]] > timeout_ns:
                self._settle_sample(self.waiting.popleft(), UNANSWERED)
            # The oldest stand first, for the last that came is used first.
            while self.idle and time.monotonic() - self.idle[0].idle_since_s > IDLE_LIMIT_S:
                self.idle.pop(0).abort()
            if ticks % 10 == 0:
                if progress is not None:
                    progress(min(1.0, now / length_ns))
                if give_up is not None and not self.given_up and give_up(self):
                    self.given_up = True
                    self._end_if_done()
            if self.draw is not None:
                self._end_if_done()

    async def _close(self, sweeper: asyncio.Task[None]) -> None:
        self.closing = self.given_up = True  # timers that still wait must send nothing
        sweeper.cancel()
        for task in tuple(self.opening):
            task.cancel()
        for connection in (*self.idle, *self.active):
            connection.sample = -1
            connection.abort()
        await asyncio.gather(sweeper, *self.opening, return_exceptions=True)
        await asyncio.sleep(0)  # lets the transports close

    def _samples(self) -> Samples:
        sent = self.next if self.draw is None else len(self.due)  # what was never released is no sample

        def column(values: "array[int]", kind: type[np.generic]) -> np.ndarray:
            return np.array(values[:sent], dtype=kind)

        return Samples(
            column(self.due, np.int64),
            column(self.released, np.int64),
            column(self.sent, np.int64),
            column(self.done, np.int64),
            column(self.status, np.int16),
            column(self.shot_of, np.int32),
            column(self.verdict, np.int8),
        )


class _FineSelector(selectors.EpollSelector if hasattr(selectors, "EpollSelector") else selectors.DefaultSelector):  # type: ignore[misc]
    """epoll whose timeout is not rounded up to whole milliseconds, which would send each request half of one late."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout > 0:
            select.select([self.fileno()], (), (), timeout)
            timeout = 0
        found: list[tuple[selectors.SelectorKey, int]] = super().select(timeout)
        return found


def fine_loop() -> asyncio.AbstractEventLoop:
    """Return an event loop with a fine timer."""
    selector = _FineSelector() if hasattr(selectors, "EpollSelector") else selectors.DefaultSelector()
    return asyncio.SelectorEventLoop(selector)
