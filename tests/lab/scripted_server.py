"""A server in a thread that does what a test says with each request: answer late, refuse, hang, hang up, lie."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

OK_BODY = b'{"label":"cat"}'


@dataclass(frozen=True)
class Reply:
    """What to do with one request. `raw` replaces the whole answer; `hang` never answers; `hang_up` closes instead.

    `early`: answer as soon as the headers are there, and close, as a server does with a body that is too long.
    """

    delay_s: float = 0.0
    status: int = 200
    body: bytes = OK_BODY
    headers: bytes = b""
    raw: bytes | None = None
    hang: bool = False
    hang_up: bool = False
    early: bool = False


Script = Callable[[int, bytes], Reply]


class _Talk(asyncio.Protocol):
    def __init__(self, server: "Server") -> None:
        self.server = server
        self.content = b""
        self.need: int | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.server.connections += 1

    def data_received(self, data: bytes) -> None:
        self.content += data
        if self.need is None:
            end = self.content.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self.content[:end].lower()
            length = int(head.split(b"content-length:")[1].split(b"\r\n")[0]) if b"content-length:" in head else 0
            self.need = end + 4 + length
            reply = self.server.script(self.server.requests, b"")
            if reply.early:
                self.answer(reply)
                self.transport.close()
                return
        if len(self.content) < self.need:
            return
        head, _, body = self.content.partition(b"\r\n\r\n")
        self.content, self.need = b"", None
        told = self.server.told
        reply = self.server.script(self.server.requests, body) if told is None else told(head, body)
        self.server.requests += 1
        if reply.hang_up:
            self.transport.close()
        elif not reply.hang:
            asyncio.get_running_loop().call_later(reply.delay_s, self.answer, reply)

    def answer(self, reply: Reply) -> None:
        head = b"HTTP/1.1 %d Said\r\n%scontent-length: %d\r\n\r\n" % (reply.status, reply.headers, len(reply.body))
        self.transport.write(reply.raw if reply.raw is not None else head + reply.body)


class Server:
    """One running server: its port, and what it saw."""

    def __init__(self, script: Script, told: Callable[[bytes, bytes], Reply] | None = None) -> None:
        self.script = script
        self.told = told
        self.port = 0
        self.requests = 0
        self.connections = 0

    async def serve(self, ready: threading.Event, end: asyncio.Event) -> None:
        listening = await asyncio.get_running_loop().create_server(lambda: _Talk(self), "127.0.0.1", 0)
        self.port = listening.sockets[0].getsockname()[1]
        ready.set()
        await end.wait()
        listening.close()


@contextmanager
def serving(script: Script, told: Callable[[bytes, bytes], Reply] | None = None) -> Iterator[Server]:
    """Run a scripted server; `script` gets the number of the request and its body, `told` instead headers and body."""
    server, ready = Server(script, told), threading.Event()
    ends: list[asyncio.Event] = []
    loop = asyncio.new_event_loop()

    async def main() -> None:
        end = asyncio.Event()
        ends.append(end)
        await server.serve(ready, end)

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()), daemon=True)
    thread.start()
    assert ready.wait(30)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(ends[0].set)
        thread.join(30)
        loop.close()
