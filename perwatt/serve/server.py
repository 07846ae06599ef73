"""The life of a server: it listens, loads, gets ready, serves, drains and ends.

start    the port answers at once: live, not ready; a package that cannot be loaded ends the server with its reason
ready    when every package replayed its golden examples and ran warm
SIGTERM  (or Ctrl-C) ready turns 503, new requests are refused, those inside are finished within the drain time; exit 0
again    a second signal stops at once; exit 1
SIGHUP   packages whose files have changed are loaded again, beside those that serve, and take their place
"""

import asyncio
import contextlib
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn

from perwatt.errors import InputError, PerwattError
from perwatt.serve import connection
from perwatt.serve.app import application, every_second
from perwatt.serve.batcher import Limits
from perwatt.serve.dispatch import BatchReport
from perwatt.serve.door import Door
from perwatt.serve.energy import Joules
from perwatt.serve.front import Front, check_address
from perwatt.serve.limits import HttpLimits
from perwatt.serve.opening import EngineSettings, Opening, sources_of
from perwatt.serve.photos import Decoder
from perwatt.serve.repository import Repository

EXIT_DRAINED = 0
EXIT_STOPPED = 1
# How long uvicorn may take to end what has nothing more to say.
CLOSE_S = 2.0
BACKLOG = 2048


@dataclass(frozen=True)
class ServeRequest:
    """What to serve, where, and under which limits. Times in seconds; `grpc_port` None: no gRPC.

    `deadline_s` is given to requests that bring none of their own.
    """

    packages: tuple[Path, ...]
    nulls: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    port: int = 8000
    grpc_port: int | None = None
    token: str | None = None
    decode_threads: int = 2
    deadline_s: float | None = None
    drain_s: float = 30.0
    engine: EngineSettings = field(default_factory=EngineSettings)
    batching: Limits = field(default_factory=Limits)
    limits: HttpLimits = field(default_factory=HttpLimits)
    energy: Joules | None = None


class HttpServer(uvicorn.Server):
    """uvicorn without its signal handlers: there is one path for signals, and it is the Life's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Life:
    """One running server, on one event loop; `address` is where it listens."""

    def __init__(self, request: ServeRequest, tell: Callable[[str], None]) -> None:
        check_address(request.host, request.token)
        self.request, self.tell = request, tell
        self.opening = Opening(request.engine, request.batching, self._observe, tell, request.energy)
        self.front = Front(
            repository=Repository({}, self.opening.open),
            decoder=Decoder(request.limits, request.decode_threads),
            limits=request.limits,
            token=request.token,
            deadline_s=request.deadline_s,
            energy=request.energy,
        )
        self.address, self.grpc_port = "", request.grpc_port
        self._stop = asyncio.Event()
        self._hard = asyncio.Event()
        self._reload = asyncio.Event()
        self._stamps: dict[str, object] = {}

    def _observe(self, name: str, report: BatchReport) -> None:
        figures = self.front.of(name)
        figures.batch.observe(report.images)
        figures.prediction_error.observe(report.seconds - report.predicted_s)
        self.front.traffic.of(name).batches[report.images] += 1

    def signalled(self) -> None:
        """Drain at the first signal, stop at the second."""
        if self._stop.is_set():
            self._hard.set()
        self._stop.set()

    def reload(self) -> None:
        """Load again what has changed on disk."""
        self._reload.set()

    async def run(self) -> int:
        """Serve until a signal; return the exit code. Raises PerwattError when it cannot begin."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.signalled)
        loop.add_signal_handler(signal.SIGHUP, self.reload)
        try:
            listener = _listen(self.request.host, self.request.port)
        except PerwattError:
            self.opening.close()
            raise
        host, port = listener.getsockname()[:2]
        self.address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        server = HttpServer(http_config(self.front))
        serving = loop.create_task(server.serve([listener]))
        ticking = every_second(self.front, lambda: len(server.server_state.connections))
        stopping = loop.create_task(self._stop.wait())
        loading = loop.create_task(self._load())
        rpc = None
        try:
            rpc = await self._start_grpc()
            await asyncio.wait([loading, stopping], return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                await loading
                await self._serve(stopping)
            else:
                loading.cancel()
                await asyncio.wait([loading])
            return await self._drain()
        finally:
            self.front.draining = True
            for task in (stopping, loading):
                task.cancel()
            await self.front.repository.close(0.0)
            self.front.traffic.wake()  # streams end
            server.should_exit = True
            server.force_exit = self._hard.is_set()
            if rpc is not None:
                await rpc.stop(0.0 if self._hard.is_set() else CLOSE_S)
            await asyncio.wait([serving], timeout=2 * CLOSE_S)
            ticking.cancel()
            self.front.decoder.close()
            self.opening.close()

    async def _start_grpc(self) -> Any:
        """Start gRPC where it is wanted. Raises InputError when its library is missing or its port taken."""
        if self.request.grpc_port is None:
            return None
        try:
            from perwatt.serve import grpc_server
        except ImportError as error:
            raise InputError("grpc-port: expected grpcio, it is not installed; pip install 'perwatt[grpc]'") from error
        server, port = await grpc_server.start(self.front, self.request.host, self.request.grpc_port)
        self.grpc_port = port
        return server

    async def _load(self) -> None:
        begun = time.monotonic()
        request, repository = self.request, self.front.repository
        repository.expect(await asyncio.to_thread(sources_of, request.packages, request.nulls))
        for name, source in repository.sources.items():
            self._stamps[name] = _stamp(source)
            await repository.load(name, request.drain_s)
        names = ", ".join(f"{each.name} {each.version}" for each in repository)
        rpc = f", gRPC on port {self.grpc_port}" if self.grpc_port is not None else ""
        self.tell(f"ready in {time.monotonic() - begun:.1f} s: {names} at {self.address}{rpc}")

    async def _serve(self, stopping: "asyncio.Task[bool]") -> None:
        """Wait for the signal to stop; load changed packages at the signal for that."""
        while not stopping.done():
            reloading = asyncio.ensure_future(self._reload.wait())
            await asyncio.wait([stopping, reloading], return_when=asyncio.FIRST_COMPLETED)
            reloading.cancel()
            if self._reload.is_set() and not stopping.done():
                self._reload.clear()
                await asyncio.wait([stopping, asyncio.ensure_future(self._load_changed())],
                                   return_when=asyncio.FIRST_COMPLETED)  # fmt: skip

    async def _load_changed(self) -> None:
        repository = self.front.repository
        for name, source in repository.sources.items():
            stamp = _stamp(source)
            if stamp == self._stamps.get(name) and name in repository.held:
                continue
            try:
                loaded = await repository.load(name, self.request.drain_s)
            except PerwattError as error:
                self.tell(f"{name}: not replaced, the old one serves on: {error}")
                continue
            self._stamps[name] = stamp
            self.tell(f"{name}: version {loaded.version} serves now")

    async def _drain(self) -> int:
        front, until = self.front, time.monotonic() + self.request.drain_s
        front.draining = True
        front.traffic.wake()
        self.tell(
            f"draining: {front.requests} requests inside, at most {self.request.drain_s:g} s; again to stop at once"
        )
        while front.requests and time.monotonic() < until and not self._hard.is_set():
            await asyncio.sleep(0.01)
        left = front.requests
        if not self._hard.is_set():
            closing = asyncio.ensure_future(front.repository.close(max(0.0, until - time.monotonic())))
            hard = asyncio.ensure_future(self._hard.wait())
            await asyncio.wait([closing, hard], return_when=asyncio.FIRST_COMPLETED)
            hard.cancel()
            await asyncio.sleep(0)  # refusals of what was left are written
        if self._hard.is_set():
            self.tell("stopped")
            return EXIT_STOPPED
        self.tell("drained" if not left else f"drained, {left} requests refused")
        return EXIT_DRAINED


def http_config(front: Front) -> uvicorn.Config:
    """Return how uvicorn serves a front: plain ASGI, its own connections, and nothing that costs a request time."""
    limits = front.limits
    return uvicorn.Config(
        application(front),
        http=connection.under(limits, lambda status: front.of("").answered("connection", status), Door(front)),
        ws="none",
        lifespan="off",
        interface="asgi3",
        access_log=False,
        log_config=None,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=int(limits.idle_s),
        timeout_graceful_shutdown=int(CLOSE_S),
        backlog=BACKLOG,
    )


def serve(request: ServeRequest, tell: Callable[[str], None]) -> int:
    """Serve until SIGTERM or Ctrl-C and return the exit code; `tell` gets a line for whatever people should know.

    Raises PerwattError when it cannot begin: a package that is refused, an address without a token, a port in use.
    """

    async def live() -> int:
        return await Life(request, tell).run()

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(live())


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return what makes the event loop: uvloop where it is installed, else None, Python's own."""
    try:
        import uvloop
    except ImportError:
        return None
    found: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return found


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise InputError(
            f"port: expected a free one at {host}, got {port}: {error.strerror}; take another with --port"
        ) from error


def _stamp(source: str) -> object:
    """Return what changes when a file is replaced; None where there is no file."""
    try:
        facts = Path(source).stat()
    except OSError:
        return None
    return facts.st_ino, facts.st_size, facts.st_mtime_ns
