"""The server's side of a model process: start it, hand it batches in shared memory, notice when it dies.

One child process for each package. Batches are named by a message of a few bytes each way; the tensors lie in memory
that both sides map. A child that dies, or hangs and is killed, is reported once, after all that it had answered.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perwatt import errors
from perwatt.errors import EngineCrashed, EngineTimeout, InputError, PerwattError
from perwatt.serve import channel
from perwatt.serve.channel import Buffer, Layout, Message

SIZES = (1, 2, 4, 8, 16)
WAYS = 7
LAST_WORDS_S = 2.0
_RECEIVE_BYTES = 1 << 16


@dataclass(frozen=True)
class Source:
    """What a model process loads: the function `target` ("module:function") is called there with plain arguments.

    `module_path`: a folder that is searched first for the module.
    """

    target: str
    arguments: Mapping[str, Any]
    module_path: Path | None = None


def batch_sizes(largest: int) -> tuple[int, ...]:
    """Return the sizes to compile for batches up to `largest`: 1, 2, 4, ... and the largest itself."""
    if not isinstance(largest, int) or not 1 <= largest <= 1024:
        raise InputError(f"largest batch: expected a whole number from 1 to 1024, got {largest!r}")
    sizes = [1 << power for power in range(largest.bit_length()) if 1 << power < largest]
    return (*sizes, largest)


def package_source(
    path: Path,
    *,
    sizes: Sequence[int] = SIZES,
    precision: str = "fp32",
    threads: int | None = None,
    tune_limit_s: float = 6.0,
    unproven: bool = False,
) -> Source:
    """Return the Source of a package; see package_model.create for the arguments."""
    arguments = {
        "path": str(path.resolve()),
        "sizes": list(sizes),
        "precision": precision,
        "threads": threads,
        "tune_limit_s": tune_limit_s,
        "unproven": unproven,
    }
    return Source("perwatt.serve.package_model:create", arguments)


def null_source(
    shape: Sequence[int], *, sizes: Sequence[int] = SIZES, batch_s: float = 0.0, image_s: float = 0.0
) -> Source:
    """Return the Source of the network that does nothing; see null_model.create for the arguments."""
    arguments = {"shape": list(shape), "sizes": list(sizes), "batch_s": batch_s, "image_s": image_s}
    return Source("perwatt.serve.null_model:create", arguments)


class ModelProcess:
    """A running model process. Made by `start`; everything happens on the event loop that started it.

    `layout` and `buffers` say where tensors lie, `durations_s` holds the warm-up's seconds by batch size, there and
    back. `on_done` is called with each answer, in the order of the batches: DONE, or ERROR with its reason; `on_exit`
    once, with the reason, when the process has gone without being closed.
    """

    def __init__(self, process: "subprocess.Popen[bytes]", connection: socket.socket, memory: int, name: str) -> None:
        self.name = name
        self.layout: Layout
        self.buffers: tuple[Buffer, ...] = ()
        self.durations_s: dict[int, list[float]] = {}
        self.notes: tuple[str, ...] = ()
        self.on_done: Callable[[Message], None] = self._ignore
        self.on_exit: Callable[[str], None] = self._ignore
        self._process, self._connection, self._memory = process, connection, memory
        self._received = bytearray()
        self._loop = asyncio.get_running_loop()
        self._started: asyncio.Future[None] = self._loop.create_future()
        self._progress: Callable[[str], None] = self._ignore
        self._gone = False
        self._ending: asyncio.Task[None] | None = None

    @classmethod
    async def start(
        cls,
        source: Source,
        *,
        name: str = "model",
        progress: Callable[[str], None] | None = None,
        timeout_s: float = 900.0,
    ) -> "ModelProcess":
        """Start a process, load what the Source names, run it warm, and return it ready.

        progress is told what goes on. Raises what the loader raised (PerwattError), EngineCrashed when the process died
        before it was ready, EngineTimeout when it was not ready in time.
        """
        ours, theirs = socket.socketpair()
        memory = channel.new_memory()
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "perwatt.serve.model_worker", str(theirs.fileno()), str(memory)],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), memory),
                start_new_session=True,  # the terminal's Ctrl-C stays with the server
            )
        except OSError as error:
            ours.close()
            os.close(memory)
            raise EngineCrashed(
                f"{name}: its process could not be started ({error}); free memory or processes"
            ) from error
        finally:
            theirs.close()
        ours.setblocking(False)
        self = cls(process, ours, memory, name)
        if progress is not None:
            self._progress = progress
        self._loop.add_reader(ours.fileno(), self._readable)
        start = {"target": source.target, "arguments": dict(source.arguments)}
        if source.module_path is not None:
            start["module_path"] = str(source.module_path)
        self._send(Message(channel.START, text=json.dumps(start).encode()))
        try:
            await asyncio.wait_for(asyncio.shield(self._started), timeout_s)
            await asyncio.wait_for(self._time_the_way(), timeout_s)
        except TimeoutError as error:
            raise EngineTimeout(f"{name}: expected it to be ready within {timeout_s:.4g} s; it was stopped") from error
        finally:
            if not self._started.done() or self._started.cancelled() or self._started.exception() is not None:
                await self.close(0.0)
        return self

    @property
    def alive(self) -> bool:
        """Whether it is ready to run batches."""
        return not self._gone and self._started.done()

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    async def ask(self, message: Message) -> Message:
        """Send one request while nothing else runs, and wait for its answer; raises EngineCrashed when it dies."""
        before, answered = (self.on_done, self.on_exit), self._loop.create_future()

        def died(reason: str) -> None:
            answered.set_exception(EngineCrashed(reason))

        self.on_done, self.on_exit = answered.set_result, died
        try:
            self._send(message)
            answer: Message = await answered
            return answer
        finally:
            self.on_done, self.on_exit = before

    def run(self, sequence: int, buffer: int, images: int, size: int) -> None:
        """Have the first `images` images of a buffer run as a batch of `size`; `on_done` brings the answer."""
        self._send(Message(channel.RUN, buffer, images, size, sequence))

    async def repeat(self, size: int, seconds: float) -> int:
        """Have one size run again and again for so long and return the number of runs; raises as `ask` does."""
        return (await self.ask(Message(channel.REPEAT, size=size, seconds=seconds))).images

    def kill(self) -> None:
        """Kill the process, as for one that hangs; `on_exit` follows."""
        if self._process.returncode is None:
            self._process.kill()

    async def close(self, timeout_s: float = 2.0) -> None:
        """Let the process go, by force if it does not within the time; `on_exit` is not called. Twice is harmless."""
        self.on_exit = self._ignore
        self._hang_up()
        if self._ending is not None:
            await self._ending
        await _ended(self._process, timeout_s)
        self.on_done = self._ignore
        self.buffers = ()  # the memory goes with the last array that is a view of it

    @staticmethod
    def _ignore(_: object) -> None:
        pass

    async def _time_the_way(self) -> None:
        """Add to the warm-up's seconds what a batch takes on its way there and back."""
        size = min(self.durations_s)
        ways = []
        for _ in range(WAYS):
            before = time.perf_counter()
            answer = await self.ask(Message(channel.RUN, images=size, size=size))
            ways.append(time.perf_counter() - before - answer.seconds)
        way = max(0.0, statistics.median(ways))
        self.durations_s = {size: [each + way for each in seconds] for size, seconds in self.durations_s.items()}

    def _send(self, message: Message) -> None:
        if self._gone:
            return  # on_exit tells, or has told
        data = message.pack()
        try:
            sent = self._connection.send(data)
        except (BrokenPipeError, ConnectionResetError):
            return  # it has died; what it answered before is still to be read, and then the end
        except BlockingIOError:
            sent = 0
        if sent != len(data):  # a few batches of 40 bytes each never fill a socket: it does not read any more
            self.kill()

    def _readable(self) -> None:
        try:
            data = self._connection.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._lost()
            return
        self._received += data
        try:
            messages = channel.unpack(self._received)
        except ValueError:
            self.kill()
            return
        for message in messages:
            if message.kind in (channel.DONE, channel.ERROR):
                self.on_done(message)
            else:
                self._starting(message)

    def _starting(self, message: Message) -> None:
        if self._started.done():
            return
        if message.kind == channel.PROGRESS:
            self._progress(message.content)
        elif message.kind == channel.FAILED:
            kind, words = message.content
            known = getattr(errors, kind, EngineCrashed)
            try:
                self._started.set_exception(known(words))
            except TypeError:  # an error that is made of more than words
                self._started.set_exception(PerwattError(words))
        elif message.kind == channel.READY:
            content = message.content
            self.layout = channel.layout_from_json(content["layout"])
            self.durations_s = {int(size): seconds for size, seconds in content["durations_s"].items()}
            self.notes = tuple(content["notes"])
            self.buffers = channel.attach(self._memory, self.layout)
            self._started.set_result(None)

    def _hang_up(self) -> None:
        if self._gone:
            return
        self._gone = True
        self._loop.remove_reader(self._connection.fileno())
        self._connection.close()
        os.close(self._memory)

    def _lost(self) -> None:
        """The process closed its end: it died, or is about to."""
        if not self._gone:
            self._hang_up()
            self._ending = self._loop.create_task(self._report())

    async def _report(self) -> None:
        await _ended(self._process, LAST_WORDS_S)
        reason = f"{self.name}: its process {_how(self._process.returncode)}"
        if not self._started.done():
            self._started.set_exception(EngineCrashed(f"{reason} before it was ready"))
        self.on_exit(reason)


async def _ended(process: "subprocess.Popen[bytes]", timeout_s: float) -> None:
    """Wait for a process to end, and kill it when it does not in time."""
    if process.poll() is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(process.wait, timeout_s)
    if process.returncode is None:
        process.kill()
        await asyncio.to_thread(process.wait)


def _how(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"died of {signal.Signals(-code).name}"
    except ValueError:
        return f"died of signal {-code}"
