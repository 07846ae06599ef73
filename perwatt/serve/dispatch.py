"""The driver: joins the batcher, the model process and the event loop, and keeps the engine busy.

While a batch runs, the images of the next are written into shared memory as they arrive. Just before the running batch
is expected to end, the next one is formed and handed over, so that the engine does not wait for the server to wake up.
A model process that dies fails the requests it was computing with 503 and is started again; those that were waiting
wait on, as long as their deadlines allow.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from math import ceil

import numpy as np

from perwatt.errors import EngineError, InputError, PerwattError, Refused
from perwatt.serve import channel
from perwatt.serve.batcher import Batcher, Limits, Refusal
from perwatt.serve.channel import Message
from perwatt.serve.fairness import Cores
from perwatt.serve.latency import LatencyTable
from perwatt.serve.process import ModelProcess, Source
from perwatt.serve.service import Answer, TensorFacts
from perwatt.serve.staging import Call, Staging, laid
from perwatt.serve.ticket import Batch, Ticket

# A batch is handed over so long before the running one should end: what a busy event loop may be late by.
LEAD_S = 0.003
# Images above this size are laid ready one a turn of the event loop, so that nobody waits for many copies.
LARGE_IMAGE_BYTES = 1 << 16
METERED_S = 0.5
_FIRST_PAUSE_S, _LONGEST_PAUSE_S, _STEADY_S = 0.1, 30.0, 10.0
_STATUS = {"queue_full": 429, "deadline": 429, "too_many_images": 413}


@dataclass(frozen=True, slots=True)
class BatchReport:
    """One batch as it went: images and compiled size, predicted seconds (median, 99th percentile), and what came.

    `seconds` is the time the batch held the engine as the server saw it, `engine_s` the model's own.
    """

    images: int
    size: int
    predicted_s: float
    bound_s: float
    seconds: float
    engine_s: float


@dataclass(slots=True)
class _Flying:
    """A batch on its way through the model process."""

    sequence: int
    batch: Batch
    staging: Staging
    places: list[list[int]]
    quiet_ticks: int = 0


class Dispatch:
    """A served network: the Service that the front of the server calls. Made by `open`; lives on one event loop."""

    def __init__(
        self,
        source: Source,
        process: ModelProcess,
        limits: Limits,
        cores: Cores,
        weight: float,
        observer: Callable[[BatchReport], None] | None,
        stall_s: float,
    ) -> None:
        self.name = process.name
        self.latency = LatencyTable(sorted(process.durations_s))
        for size, durations in process.durations_s.items():
            self.latency.observe_all(size, durations)
        self.batcher = Batcher(self.latency, time.monotonic, limits)
        self.restarts = 0
        self.notes = process.notes
        self._source, self._process, self._layout = source, process, process.layout
        self._observer, self._stall_s = observer, stall_s
        self._loop = asyncio.get_running_loop()
        self._turn = cores.join(self.name, self._begin, weight)
        self._flight: deque[_Flying] = deque()
        self._free = list(range(process.layout.buffers))
        self._staging = self._next_staging()
        self._sequence = 0
        self._large = self._layout.tensor_bytes(self._layout.input) // self._layout.images > LARGE_IMAGE_BYTES
        self._decoding = 0
        self._draining = False
        self._restarting: asyncio.Task[None] | None = None
        self._started_s, self._start_took_s = time.monotonic(), 0.0
        self._pause_s = 0.0
        self._wake: asyncio.TimerHandle | None = None
        self._commit: asyncio.TimerHandle | None = None
        self._staging_soon: asyncio.Handle | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._drained: asyncio.Future[None] | None = None
        self._listen(process)

    @classmethod
    async def open(
        cls,
        source: Source,
        *,
        name: str = "model",
        limits: Limits | None = None,
        cores: Cores | None = None,
        weight: float = 1.0,
        observer: Callable[[BatchReport], None] | None = None,
        joules: Callable[[], float] | None = None,
        progress: Callable[[str], None] | None = None,
        stall_s: float = 60.0,
    ) -> "Dispatch":
        """Start the model process and return the network once it is warm and, for energy, metered.

        cores: shared by the packages that are served side by side. observer: told of each batch. joules: a meter's
        joules so far. stall_s: a batch that takes longer (and 20 times its bound) means that the process hangs.
        Raises what ModelProcess.start raises, InputError for limits that do not fit or an energy objective without
        meter.
        """
        limits = Limits() if limits is None else limits
        if limits.objective == "energy" and joules is None:
            raise InputError("objective energy: expected a meter, there is none; see `perwatt meters`, or take latency")
        begun = time.monotonic()
        process = await ModelProcess.start(source, name=name, progress=progress)
        try:
            self = cls(source, process, limits, Cores() if cores is None else cores, weight, observer, stall_s)
            self._start_took_s = time.monotonic() - begun
            if joules is not None:
                await self._meter(joules, progress)
        except BaseException:
            await process.close()
            raise
        return self

    # -- the Service ---------------------------------------------------------------------------------------------------

    @property
    def inputs(self) -> tuple[TensorFacts, ...]:
        """The network's input, without the batch dimension."""
        return (self._layout.input,)

    @property
    def outputs(self) -> tuple[TensorFacts, ...]:
        """The network's outputs, without the batch dimension."""
        return self._layout.outputs

    @property
    def ready(self) -> bool:
        """Whether it can answer now."""
        return self._process.alive and not self._draining

    @property
    def queued_images(self) -> int:
        """The images that wait for the engine."""
        return self.batcher.queued_images

    @property
    def in_flight_images(self) -> int:
        """The images the engine has."""
        return self.batcher.in_flight_images

    @property
    def engine_s(self) -> float:
        """The engine time it has used, in seconds."""
        return self._turn.used_s

    def turns_away(self, images: int, *, deadline: float | None = None, priority: int = 0) -> Refused | None:
        """Return what `infer` would be refused with by now, None where it would be let in; nothing is kept for it."""
        if not self.ready:
            return self._unavailable()
        self.batcher.stretch = self._turn.stretch
        refusal = self.batcher.refusal(images, deadline_s=deadline, priority=priority, behind=self._decoding)
        return None if refusal is None else _refused(refusal)

    @contextlib.contextmanager
    def expecting(self, images: int, *, deadline: float | None = None, priority: int = 0) -> Iterator[None]:
        """Announce images that are being decoded, for as long as they are. Raises Refused as `infer` would by now.

        Decoding costs the cores that the network runs on: what would be refused afterwards is refused before.
        """
        refused = self.turns_away(images, deadline=deadline, priority=priority)
        if refused is not None:
            raise refused
        self._decoding += images
        try:
            yield
        finally:
            self._decoding -= images

    async def infer(self, images: np.ndarray, *, deadline: float | None = None, priority: int = 0) -> Answer:
        """Return the outputs of images, float32 [images, ...]; deadline in seconds of time.monotonic().

        The array may not change before the answer comes. A caller that has gone cancels the task that waits here.
        Smaller priorities go first. Raises InputError for another shape or type, Refused otherwise: queue_full and
        deadline (429), too_many_images (413), expired (504), failed (500: the network raised an error on these
        images), crashed, restarting and draining (503).
        """
        if not self.ready:
            raise self._unavailable()
        facts = self._layout.input
        if images.shape[1:] != facts.shape or images.dtype != facts.dtype or not len(images):
            raise InputError(
                f"input {facts.name!r}: expected {facts.dtype} [1 or more, {', '.join(map(str, facts.shape))}], got "
                f"{images.dtype} {list(images.shape)}"
            )
        call = Call(images, self._loop.create_future())
        self.batcher.stretch = self._turn.stretch
        ticket = self.batcher.submit(len(images), deadline_s=deadline, priority=priority, payload=call)
        if isinstance(ticket, Refusal):
            self._fail_dropped()
            raise _refused(ticket)
        self._pump()
        if ticket.state == "waiting" and not ticket.taken:
            self._stage(ticket)
        if not ticket.taken or len(self._flight) > 1:
            self._arm()
        try:
            return await call.future
        except asyncio.CancelledError:
            self._cancel(ticket)
            raise

    async def close(self, drain_s: float = 10.0) -> None:
        """Refuse what comes, finish what is queued within `drain_s`, fail the rest with 503, and end the process."""
        self._draining = True
        if self.batcher.has_work or self._flight:
            self._drained = self._loop.create_future()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._drained, drain_s)
        for ticket in self.batcher.abandon():
            self._fail(ticket, self._unavailable())
        if self._restarting is not None:
            self._restarting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._restarting
        for timer in (self._wake, self._commit, self._watch, self._staging_soon):
            if timer is not None:
                timer.cancel()
        self._turn.leave()
        await self._process.close()
        self._flight.clear()
        del self._staging  # it would keep the shared memory alive

    # -- batches -------------------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Something has come to run: begin it if the engine is free."""
        if not self._process.alive or not self.batcher.has_work:
            return
        if self._flight:
            self._commit_ahead(self._flight[0].batch)
        elif not self._turn.holds:
            self._turn.want()

    def _begin(self) -> bool:
        """Our turn at the cores: take a batch and send it off. Says whether there was one."""
        if not self._process.alive:
            return False
        began = self._send_next()
        self._fail_dropped()
        if not began:
            self._arm()
        return began

    def _send_next(self) -> bool:
        batch = self.batcher.take()
        if batch is None:
            return False
        staging = self._staging
        flying = _Flying(self._sequence, batch, staging, staging.settle(batch.parts, batch.images))
        self._sequence += 1
        self._flight.append(flying)
        self._process.run(flying.sequence, staging.number, batch.images, batch.size)
        self._staging = self._next_staging()
        for part in batch.parts:
            call: Call = part.ticket.payload
            if call.began_s is None:
                call.began_s, call.batch_images = batch.started_s, batch.images
        if len(self._flight) == 1:
            self._plan_commit(batch)
        if self._watch is None:
            self._watch = self._loop.call_later(1.0, self._watch_over)
        if self.batcher.queued_images:
            self._stage_soon()
        return True

    def _plan_commit(self, running: Batch) -> None:
        """See to it that the batch after this one is formed just before this one ends."""
        if self._commit is not None:
            self._commit.cancel()
            self._commit = None
        if running.expected_s > LEAD_S:
            when = running.started_s + running.expected_s - LEAD_S
            self._commit = self._loop.call_at(when, self._commit_now, running)
        elif self.batcher.has_work:
            self._commit_ahead(running)

    def _commit_now(self, running: Batch) -> None:
        self._commit = None
        if self._flight and self._flight[0].batch is running:
            self._commit_ahead(running)

    def _commit_ahead(self, running: Batch) -> None:
        """Hand over the next batch if the running one is about to end, and waiting could not make it larger by much."""
        if len(self._flight) != 1 or not self._process.alive or not self.batcher.has_work or not self._turn.alone:
            return
        left_s = running.started_s + running.expected_s - time.monotonic()
        if left_s > LEAD_S:
            return
        if running.expected_s >= 4 * LEAD_S or self.batcher.queued_images >= self.batcher.full_images:
            self._send_next()
            self._fail_dropped()

    def _done(self, message: Message) -> None:
        """A batch has come back."""
        flying = self._flight.popleft()
        if flying.sequence != message.sequence:
            raise AssertionError(f"expected the answer to batch {flying.sequence}, got {message.sequence}")
        batch = flying.batch
        seconds = max(message.seconds, time.monotonic() - batch.started_s)
        if message.kind == channel.ERROR:
            words = message.content
            ended = self.batcher.failed(batch)
            for ticket in ended:
                self._fail(ticket, Refused(f"the network failed on this request: {words}", reason="failed", status=500))
        else:
            for part, slots in zip(batch.parts, flying.places, strict=True):
                if part.ticket.state == "waiting":
                    call: Call = part.ticket.payload
                    call.collect(part, slots, flying.staging.buffer)
                    call.infer_s += message.seconds
            for ticket in self.batcher.finished(batch, seconds):
                self._answer(ticket)
        self._free.append(flying.staging.number)
        self._turn.charge(message.seconds)
        if self._flight:
            self._plan_commit(self._flight[0].batch)
        else:
            self._turn.release(wants_more=self.batcher.has_work)
        self._fail_dropped()
        if self._observer is not None and message.kind == channel.DONE:
            self._observer(
                BatchReport(batch.images, batch.size, batch.expected_s, batch.bound_s, seconds, message.seconds)
            )
        self._check_drained()

    def _answer(self, ticket: Ticket) -> None:
        call: Call = ticket.payload
        if not call.future.done():
            began = ticket.arrived_s if call.began_s is None else call.began_s
            call.future.set_result(
                Answer(
                    call.outputs,
                    max(0.0, began - ticket.arrived_s),
                    call.infer_s,
                    call.batch_images,
                    time.monotonic(),
                )
            )

    def _fail(self, ticket: Ticket, error: PerwattError) -> None:
        call: Call = ticket.payload
        if not call.future.done():
            call.future.set_exception(error)

    def _fail_dropped(self) -> None:
        for ticket in self.batcher.dropped():
            waited = time.monotonic() - ticket.arrived_s
            self._fail(
                ticket,
                Refused(
                    f"its deadline cannot be kept any more after {waited:.3g} s in the queue",
                    reason="expired",
                    status=504,
                ),
            )
        self._check_drained()

    def _check_drained(self) -> None:
        if self._drained is not None and not self._flight and not self.batcher.has_work and not self._drained.done():
            self._drained.set_result(None)

    def _cancel(self, ticket: Ticket) -> None:
        self.batcher.cancel(ticket)
        self._check_drained()

    # -- laying images ready -------------------------------------------------------------------------------------------

    def _next_staging(self) -> Staging:
        number = self._free.pop()
        return Staging(number, self._process.buffers[number])

    def _stage(self, ticket: Ticket) -> bool:
        staging = self._staging
        if ticket.images != 1 or not staging.room or staging.used >= self.batcher.next_images():
            return False
        staging.lay(ticket.payload)
        return True

    def _stage_soon(self) -> None:
        if self._staging_soon is None:
            self._staging_soon = self._loop.call_soon(self._stage_waiting)

    def _stage_waiting(self) -> None:
        """Lay ready what will be in the next batch: large images one a turn of the event loop."""
        self._staging_soon = None
        if not self._process.alive:
            return
        for ticket in islice(self.batcher.waiting(), self.batcher.next_images()):
            if not laid(ticket, self._staging) and self._stage(ticket) and self._large:
                self._stage_soon()
                return

    # -- time ----------------------------------------------------------------------------------------------------------

    def _arm(self) -> None:
        """Wake up when the next request expires, or when waiting for more images is over."""
        when = self.batcher.next_wake_s()
        if when is None or (self._wake is not None and self._wake.when() <= when):
            return
        if self._wake is not None:
            self._wake.cancel()
        self._wake = self._loop.call_at(when, self._woken)

    def _woken(self) -> None:
        self._wake = None
        self._fail_dropped()
        self._pump()
        if self.batcher.has_work:
            self._arm()

    def _watch_over(self) -> None:
        """Look, once a second, whether a batch hangs; counts ticks, because the server itself may have stood still."""
        self._watch = None
        if not self._flight:
            return
        flying = self._flight[0]
        flying.quiet_ticks += 1
        if flying.quiet_ticks > max(self._stall_s, 20 * flying.batch.bound_s):
            self._process.kill()
            return
        self._watch = self._loop.call_later(1.0, self._watch_over)

    # -- life ----------------------------------------------------------------------------------------------------------

    def _listen(self, process: ModelProcess) -> None:
        process.on_done, process.on_exit = self._done, self._died

    def _unavailable(self) -> Refused:
        if self._draining:
            return Refused(f"{self.name} is closing; ask another server", reason="draining", status=503)
        wait = ceil(self._start_took_s - (time.monotonic() - self._started_s))
        return Refused(
            f"{self.name} is being started again; come again soon",
            reason="restarting",
            status=503,
            retry_after_s=float(wait) if wait >= 1 else None,
        )

    def _died(self, reason: str) -> None:
        """The model process is gone: fail what it computed, keep what it had not begun, start another."""
        flight, self._flight = self._flight, deque()
        for position, flying in enumerate(flight):
            if position:
                self.batcher.put_back(flying.batch)
                continue
            for ticket in self.batcher.lost(flying.batch):
                self._fail(ticket, Refused(f"{reason} while it computed this request", reason="crashed", status=503))
        self._turn.release(wants_more=False)
        self._check_drained()
        self._restarting = self._loop.create_task(self._restart())

    async def _restart(self) -> None:
        lived_s = time.monotonic() - self._started_s
        self._pause_s = 0.0 if lived_s > _STEADY_S else min(max(_FIRST_PAUSE_S, 2 * self._pause_s), _LONGEST_PAUSE_S)
        while True:
            await asyncio.sleep(self._pause_s)
            self._started_s = time.monotonic()
            try:
                process = await ModelProcess.start(self._source, name=self.name)
                if process.layout != self._layout or set(process.durations_s) != set(self.latency.sizes):
                    await process.close()
                    raise EngineError(f"{self.name}: its package is another one now; load it again")
            except PerwattError as error:
                for ticket in self.batcher.abandon():  # nobody can say when it will be back
                    self._fail(ticket, Refused(str(error), reason="crashed", status=503))
                self._check_drained()
                self._pause_s = min(max(_FIRST_PAUSE_S, 2 * self._pause_s), _LONGEST_PAUSE_S)
                continue
            break
        self._start_took_s = time.monotonic() - self._started_s
        self._started_s = time.monotonic()
        self.restarts += 1
        self._process = process
        self._free = list(range(process.layout.buffers))
        self._staging = self._next_staging()
        self._listen(process)
        self._pump()

    async def _meter(self, joules: Callable[[], float], progress: Callable[[str], None] | None) -> None:
        """Measure the joules of each batch size: runs for a while, one size after the other."""
        for size in self.latency.sizes:
            if progress is not None:
                progress(f"measuring the energy of batch {size}")
            before = joules()
            runs = await self._process.repeat(size, METERED_S)
            self.latency.observe_joules(size, (joules() - before) / runs)


def _refused(refusal: Refusal) -> Refused:
    return Refused(
        refusal.message,
        reason=refusal.reason,
        status=_STATUS[refusal.reason],
        retry_after_s=refusal.retry_after_s,
    )
