"""One HTTP connection: uvicorn's protocol with the limits it lacks, on header size, slow senders and connections.

uvicorn waits without end for a header or a body, and for a client that does not read; its own concurrency limit
counts connections and answers in plain text. All of it is timed here, per message, on the event loop's clock.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from perwatt.serve.limits import HttpLimits

# Where the application finds the client of its request.
CLIENT = "perwatt.client"
# How long a closed connection may take to hand over what was written to it.
FLUSH_S = 10.0
# How long the rest of a refused body is thrown away: closing at once would reset the connection, and the client might
# never see why it was refused.
LINGER_S = 2.0
# What is received of a body before the application is woken: the less, the more connections there are.
LEAST_PART, MOST_PART = 1 << 16, 1 << 20
# Bytes of chunk sizes and the like for each byte of a body: chunks of one byte need five. Beyond that, and a header's
# worth, it is padding without end: the parser would keep what follows the last chunk (trailers) in memory.
MOST_FRAMING = 8


class Client:
    """Who waits for an answer. When it goes, `gone` is set and the task that works for it is cancelled."""

    __slots__ = ("gone", "task")

    def __init__(self) -> None:
        self.gone = False
        self.task: asyncio.Task[None] | None = None

    def leave(self) -> None:
        """The client has gone: stop working for it."""
        self.gone = True
        if self.task is not None:
            self.task.cancel()


class OneWrite:
    """A transport for one response: its header waits for the first part of the body, and both leave in one packet.

    uvicorn writes them one after the other, which is two system calls here and often two wake-ups at the client.
    """

    __slots__ = ("_held", "_transport")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._held: bytes | None = None

    def write(self, data: bytes) -> None:
        """Write a part, the first together with the second."""
        if self._held is not None:
            held, self._held = self._held, None
            self._transport.writelines((held, data) if data else (held,))
        elif data.startswith(b"HTTP/1.1 ") and not data.startswith(b"HTTP/1.1 1"):
            self._held = data
        else:
            self._transport.write(data)

    def close(self) -> None:
        """Close once everything is written."""
        if self._held is not None:
            self.write(b"")
        self._transport.close()

    def is_closing(self) -> bool:
        """Whether the connection is closed or about to be."""
        return self._transport.is_closing()


class Connection(HttpToolsProtocol):
    """A connection under limits; `under` makes the kind that uvicorn is given."""

    limits = HttpLimits()
    on_refused: Callable[[int], None] = staticmethod(lambda status: None)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a connection, or refuse it when there are too many."""
        super().connection_made(transport)
        self._client = Client()
        self._in_header, self._header_bytes = True, 0
        self._body_bytes = self._framing_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        if len(self.connections) > self.limits.connections:
            self._refuse(503, f"expected at most {self.limits.connections} connections; come again later")
            return
        self._watch(self.limits.header_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the request that is being answered that nobody waits for it."""
        self._client.leave()
        self._unwatch()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Pass on what was received; refuse a header that grows too long."""
        if self.transport.is_closing():
            return
        if self._in_header:
            if self._timer is None:
                self._watch(self.limits.header_s)
            self._header_bytes += len(data)
            super().data_received(data)
            if self._in_header and self._header_bytes > self.limits.header_bytes:
                self._refuse(431, f"expected a header of at most {self.limits.header_bytes} bytes")
            return
        before = self._body_bytes
        super().data_received(data)
        if not self._in_header:
            self._framing_bytes += len(data) - (self._body_bytes - before)
            if self._framing_bytes > self.limits.header_bytes + MOST_FRAMING * self._body_bytes:
                self._refuse(431, f"expected at most {self.limits.header_bytes} bytes around the chunks of a body")

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self._in_header = True
        self.scope[CLIENT] = self._client  # type: ignore[literal-required]

    def on_headers_complete(self) -> None:
        """Start the application, once the header is known to be within its limit; watch over the body's arrival."""
        length, size, hosts, wrong = 0, len(self.url), 0, ""
        for name, value in self.headers:
            size += len(name) + len(value) + 4
            if name == b"content-length":
                length = int(value)
            elif name == b"host":
                hosts += 1
            elif name == b"transfer-encoding" and value.lower() != b"chunked":
                wrong = "expected no transfer-encoding but chunked"
        if hosts != 1 and (hosts or self.parser.get_http_version() == "1.1"):  # RFC 9112, 3.2
            wrong = f"expected one Host header, got {hosts}"
        self._in_header, self._header_bytes = False, 0
        self._body_bytes = self._framing_bytes = 0
        self._unwatch()
        if size > self.limits.header_bytes:
            self._refuse(431, f"expected a header of at most {self.limits.header_bytes} bytes, got {size}")
            return
        if wrong:
            self._refuse(400, wrong)
            return
        limits = self.limits
        # A body beyond the limit is refused by its length; the refused rest is thrown away no longer than a whole one.
        self._watch(limits.receive_s + min(length or limits.body_bytes, limits.body_bytes) / limits.least_bytes_per_s)
        super().on_headers_complete()
        if self.scope["method"] != "HEAD":  # whose header is all there is
            self.cycle.transport = OneWrite(self.transport)  # type: ignore[assignment]

    def on_body(self, body: bytes) -> None:
        """Take a part of the body, and wake the application only for a whole one or a large part of one.

        uvicorn wakes it, and stops and starts reading, every 64 KiB: nine times for a tensor of 600 kB.
        """
        self._body_bytes += len(body)
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            return
        cycle.body += body
        share = self.limits.held_bytes // 4 // len(self.connections) if self.connections else LEAST_PART
        if len(cycle.body) > min(max(share, LEAST_PART), MOST_PART):
            self.flow.pause_reading()
            cycle.message_event.set()

    def on_message_complete(self) -> None:
        """Stop watching over the arrival of a request."""
        self._unwatch()
        self._in_header, self._header_bytes = True, 0
        if self.cycle is not None:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """Go on with the connection, but not for long where it still sends what was refused, or does not read."""
        super().on_response_complete()
        if self.transport.is_closing():
            self.loop.call_later(FLUSH_S, self.transport.abort)
        elif not self._in_header and self.cycle.response_complete:  # it is this request's body that still comes
            self._watch(LINGER_S)

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection that has been idle, even when its client does not read what was written to it."""
        super().timeout_keep_alive_handler()
        self.loop.call_later(FLUSH_S, self.transport.abort)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP, in JSON like everything else."""
        self._refuse(400, msg)

    def _watch(self, seconds: float) -> None:
        self._unwatch()
        self._timer = self.loop.call_later(seconds, self._too_slow)

    def _unwatch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        cycle = self.cycle
        if self.transport.is_closing():
            return
        if cycle is not None and not cycle.response_complete and cycle.response_started:
            self.transport.abort()
        elif self._header_bytes or (cycle is not None and not cycle.response_complete):
            self._refuse(408, "expected the whole request sooner; send it faster")
        else:  # nothing was asked, or the answer was given while the body still trickled in
            self.transport.close()
            self.loop.call_later(FLUSH_S, self.transport.abort)

    def _refuse(self, status: int, message: str) -> None:
        """Answer in place of the application and close."""
        self._unwatch()
        if self.transport.is_closing():
            return
        self.on_refused(status)
        body = orjson.dumps({"error": message})
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[status] + head + body)
        self.transport.close()
        self.loop.call_later(FLUSH_S, self.transport.abort)


def under(limits: HttpLimits, on_refused: Callable[[int], None]) -> type[Connection]:
    """Return the kind of connection that keeps these limits and tells the status of what it refuses by itself."""
    attributes: dict[str, Any] = {"limits": limits, "on_refused": staticmethod(on_refused)}
    return type("LimitedConnection", (Connection,), attributes)
