"""A front with a made-up network behind it: called as plain ASGI, or behind real sockets in a thread of its own."""

import asyncio
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from perwatt.errors import InputError, Refused
from perwatt.package.preprocessing import Preprocessing
from perwatt.serve.app import application, end_second
from perwatt.serve.front import Front
from perwatt.serve.limits import HttpLimits
from perwatt.serve.messages import Subject
from perwatt.serve.photos import Decoder
from perwatt.serve.repository import Deployed, Repository
from perwatt.serve.server import HttpServer, http_config
from perwatt.serve.service import Answer, TensorFacts

SIZE = (6, 5)
LABELS = ("class 0", "class 1", "class 2", "class 3", "naïve café")
FLOAT = np.dtype("<f4")
HOW = Preprocessing(SIZE, 6, "bilinear", "rgb", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@dataclass(eq=False)
class Sums:
    """A network whose five values tell which image it saw: 0, 1, ... 3 times the mean, and the version last."""

    version: float = 1.0
    pause_s: float = 0.0
    refusal: Refused | None = None
    unwelcome: Refused | None = None  # what photographs are told before they are decoded
    ready: bool = True
    queued_images: int = 0
    engine_s: float = 0.0
    closed: bool = False
    cancelled: int = 0
    running: int = 0
    seen: list[dict[str, Any]] = field(default_factory=list)
    inputs: tuple[TensorFacts, ...] = (TensorFacts("pixels", FLOAT, (3, *SIZE)),)
    outputs: tuple[TensorFacts, ...] = (TensorFacts("sums", FLOAT, (5,)), TensorFacts("first", FLOAT, ()))

    def turns_away(self, images: int, *, deadline: float | None = None, priority: int = 0) -> Refused | None:
        return self.unwelcome

    @contextmanager
    def expecting(self, images: int, *, deadline: float | None = None, priority: int = 0) -> Iterator[None]:
        if self.unwelcome is not None:
            raise self.unwelcome
        yield

    async def infer(self, images: np.ndarray, *, deadline: float | None = None, priority: int = 0) -> Answer:
        if self.closed:
            raise Refused("closed", reason="draining", status=503)
        if self.refusal is not None:
            raise self.refusal
        assert images.dtype == np.float32
        assert images.shape[1:] == (3, *SIZE)
        self.seen.append({"images": len(images), "deadline": deadline, "priority": priority})
        self.running += 1
        try:
            await asyncio.sleep(self.pause_s)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        return Answer(expected(images, self.version), 0.001, 0.002, len(images))

    async def close(self, drain_s: float) -> None:
        until = time.monotonic() + drain_s
        while self.running and time.monotonic() < until:
            await asyncio.sleep(0.005)
        self.closed = True


def expected(images: np.ndarray, version: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Return what Sums answers."""
    means = images.reshape(len(images), -1).mean(axis=1, dtype=np.float32)
    columns = [means * index for index in range(4)] + [np.full_like(means, version)]
    return np.stack(columns, axis=1), np.ascontiguousarray(images.reshape(len(images), -1)[:, 0])


def deployed(service: Any, name: str = "sums", version: str = "1", photos: bool = True) -> Deployed:
    """Return a made-up package."""
    subject = Subject(service.inputs[0], service.outputs, takes_photos=photos)
    return Deployed(name, version, service, subject, HOW if photos else None, LABELS, "test", {})


@dataclass
class Bench:
    """A front and what stands behind it; `openings` gives what each load of a name opens, in turn."""

    front: Front
    service: Sums
    openings: dict[str, Iterator[Deployed]]

    def call(self, method: str, path: str, body: bytes | Sequence[bytes] = b"", **headers: str) -> "Reply":
        """Ask the application as plain ASGI; header names have _ for -."""
        return asyncio.run(self.acall(method, path, body, **headers))

    async def acall(self, method: str, path: str, body: bytes | Sequence[bytes] = b"", **headers: str) -> "Reply":
        return await asyncio.wait_for(ask(application(self.front), method, path, body, headers), 20)


def bench(limits: HttpLimits | None = None, token: str | None = None, deadline_s: float | None = None) -> Bench:
    """Return a front with one package "sums" loaded and "spare" to be loaded."""
    kept = limits or HttpLimits()
    service = Sums()
    openings: dict[str, Iterator[Deployed]] = {}

    async def opener(source: str) -> Deployed:
        try:
            found = next(openings[source])
        except (KeyError, StopIteration):
            raise InputError(f"{source}: expected a package, got nothing; try again") from None
        await asyncio.sleep(0.01)
        return found

    repository = Repository({"sums": "sums.perwatt", "spare": "spare.perwatt"}, opener)
    front = Front(repository, Decoder(kept, 2, queue=8), kept, token, deadline_s)
    openings["sums.perwatt"] = iter([deployed(service)])
    asyncio.run(repository.load("sums", 1.0))
    openings["sums.perwatt"] = iter(deployed(Sums(float(n)), version=str(n)) for n in range(2, 1000))
    openings["spare.perwatt"] = iter([deployed(Sums(7.0), "spare")])
    return Bench(front, service, openings)


@dataclass(frozen=True)
class Reply:
    """An answer as it went over the wire."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


async def ask(app: Any, method: str, path: str, body: bytes | Sequence[bytes], headers: dict[str, str]) -> Reply:
    """Call an ASGI application once; the client stays until it has its answer."""
    parts = [body] if isinstance(body, bytes) else list(body)
    path, _, query = path.partition("?")
    pairs = [(name.replace("_", "-").lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    pairs.append((b"host", b"127.0.0.1:8000"))
    if isinstance(body, bytes) and not any(name == b"content-length" for name, _ in pairs):
        pairs.append((b"content-length", str(len(body)).encode()))
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "path": path,
        "raw_path": path.encode(), "root_path": "", "scheme": "http", "query_string": query.encode(),
        "headers": pairs, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8000),
    }  # fmt: skip
    sent: list[dict[str, Any]] = []
    waiting = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if not parts:
            await waiting.wait()
            return {"type": "http.disconnect"}
        part = parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(parts)}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app(scope, receive, send)
    start, *rest = sent
    found = {name.decode(): value.decode("latin-1") for name, value in start["headers"]}
    return Reply(start["status"], found, b"".join(part.get("body", b"") for part in rest))


def tensors(count: int = 1, seed: int = 0) -> np.ndarray:
    """Return images as the network reads them."""
    return np.random.default_rng(seed).standard_normal((count, 3, *SIZE), dtype=np.float32)


def photo(width: int = 40, height: int = 30, kind: str = "PNG", seed: int = 0, noisy: bool = True) -> bytes:
    """Return an encoded photograph."""
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    pixels = pixels if noisy else np.full_like(pixels, 99)
    stored = BytesIO()
    Image.fromarray(pixels).save(stored, kind)
    return stored.getvalue()


def json_body(images: np.ndarray, **more: Any) -> bytes:
    """Return an infer request all in JSON."""
    named = {"name": "pixels", "shape": list(images.shape), "datatype": "FP32", "data": images.ravel().tolist()}
    return json.dumps({"inputs": [named], **more}).encode()


def binary_body(images: np.ndarray, **more: Any) -> tuple[bytes, dict[str, str]]:
    """Return an infer request with its tensor behind the JSON, and the header that goes with it."""
    named = {"name": "pixels", "shape": list(images.shape), "datatype": "FP32"}
    head = json.dumps({"inputs": [{**named, "parameters": {"binary_data_size": images.nbytes}}], **more}).encode()
    return head + images.tobytes(), {"inference_header_content_length": str(len(head))}


class Sockets:
    """A front behind real sockets; `on_loop` runs a function on its event loop and returns what it returns."""

    def __init__(self, made: Bench, loop: asyncio.AbstractEventLoop, server: HttpServer, port: int) -> None:
        self.bench, self.loop, self.server, self.port = made, loop, server, port

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def client(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)

    def on_loop(self, function: Callable[[], Any]) -> Any:
        async def run() -> Any:
            found = function()
            return await found if asyncio.iscoroutine(found) else found

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(20)

    def tick(self) -> None:
        self.on_loop(lambda: end_second(self.bench.front, len(self.server.server_state.connections)))


@contextmanager
def sockets(
    made: Bench, make_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
) -> Iterator[Sockets]:
    """Serve a front on a free port of loopback, in a thread, until the block ends."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = HttpServer(http_config(made.front))
    loop = make_loop()
    thread = threading.Thread(target=lambda: loop.run_until_complete(server.serve([listener])), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    try:
        yield Sockets(made, loop, server, listener.getsockname()[1])
    finally:
        loop.call_soon_threadsafe(made.front.traffic.wake)
        server.should_exit = server.force_exit = True
        thread.join(20)
        loop.close()
        assert not thread.is_alive()


def received(connection: socket.socket) -> bytes:
    """Return everything until the server closes."""
    found = b""
    while part := connection.recv(65536):
        found += part
    return found
