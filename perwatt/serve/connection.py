"""One HTTP connection: uvicorn's protocol with the limits it lacks, on header size, slow senders and connections.

uvicorn waits without end for a header or a body, and for a client that does not read; its own concurrency limit
counts connections and answers in plain text. All of it is timed here, per message, on the event loop's clock.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import httptools
import orjson
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from perwatt.serve.limits import HttpLimits

# Where the application finds the client of its request.
CLIENT = "perwatt.client"
# How long a closed connection may take to hand over what was written to it.
FLUSH_S = 10.0
# How long the rest of a refused request is thrown away.
LINGER_S = 2.0
# What is received of a body before the application is woken: the less, the more connections there are.
LEAST_PART, MOST_PART = 1 << 16, 1 << 20
# Bytes of chunk sizes and the like for each byte of a body: chunks of one byte need five. Beyond that, and a header's
# worth, it is padding without end: the parser would keep what follows the last chunk (trailers) in memory.
MOST_FRAMING = 8
# Where everything is received that is parsed or thrown away: small enough to stay in the processor's cache. With a
# header little is received at first, so that little of its body passes through the parser.
SCRATCH_BYTES, TO_PARSE_BYTES = 1 << 16, 1 << 14
END_OF_HEADER = b"\r\n\r\n"
# Less than this that is still to come is not worth another way.
LEAST_DIRECT = 1 << 12


class Knock(Protocol):
    """A request that can be judged by its headers and the first `head_bytes` of its body."""

    @property
    def length(self) -> int:
        """How long the body is."""

    @property
    def head_bytes(self) -> int:
        """How much of the body has to be there."""


class Door(Protocol):
    """Who judges requests before their bodies are received; see `perwatt.serve.door`."""

    def knock(self, scope: Any) -> Knock | None:
        """Return what has to come before a request can be judged, None for one that goes the ordinary way."""

    def refusal(self, knock: Any, head: bytes, stays: bool) -> bytes | None:
        """Return the whole answer to a request that is refused, None for one that goes the ordinary way.

        stays: whether the connection does, after the answer.
        """

    def remember(self, header: bytes, knock: Any) -> None:
        """Remember a header that was refused, from its method to its empty line, and that its connection stayed."""

    def known(self, header: bytes) -> Knock | None:
        """Return what was read from the very same header before, None where it goes the ordinary way."""


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


class Line:
    """A connection's transport that closes without losing what was written last.

    A connection closed while something still comes is reset, and then the client may never see its answer. So the
    client is told that nothing more will be written, and what it sends is thrown away until it closes, for a while.
    """

    __slots__ = ("_closing", "_loop", "_timers", "_transport", "_unread")

    def __init__(
        self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, unread: Callable[[], bool]
    ) -> None:
        self._transport, self._loop, self._unread = transport, loop, unread
        self._closing = False
        self._timers: list[asyncio.TimerHandle] = []

    def write(self, data: bytes) -> None:
        """Write, unless the line is closing."""
        if not self.is_closing():
            self._transport.write(data)

    def writelines(self, parts: Iterable[bytes]) -> None:
        """Write parts together, unless the line is closing."""
        if not self.is_closing():
            self._transport.writelines(parts)

    def close(self, linger_s: float = LINGER_S) -> None:
        """Write no more, and close: at once where nothing is under way, else when the client does or time is over."""
        if self._closing:
            return
        self._closing = True
        if self._transport.is_closing():
            return
        if self._unread():
            self._transport.resume_reading()
            try:
                self._transport.write_eof()
            except OSError:  # the client has reset it
                self._transport.abort()
                return
            self._timers.append(self._loop.call_later(linger_s, self._transport.close))
            self._timers.append(self._loop.call_later(linger_s + FLUSH_S, self._transport.abort))
        else:
            self._transport.close()
            self._timers.append(self._loop.call_later(FLUSH_S, self._transport.abort))

    def lost(self) -> None:
        """Let go of a connection that is closed: a timer would hold the transport until its time."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        self._unread = _nothing

    def abort(self) -> None:
        """Close at once, whatever is lost."""
        self._closing = True
        self._transport.abort()

    def is_closing(self) -> bool:
        """Whether the connection is closed or about to be."""
        return self._closing or self._transport.is_closing()

    def pause_reading(self) -> None:
        """Receive nothing for a while; what comes after the end is thrown away all the same."""
        if not self._closing:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Receive again."""
        if not self._closing:
            self._transport.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return what the transport knows about the connection."""
        return self._transport.get_extra_info(name, default)

    def get_write_buffer_size(self) -> int:
        """Return how many bytes were written and have not left."""
        return self._transport.get_write_buffer_size()


def _nothing() -> bool:
    return False


class OneWrite:
    """A transport for one response: its header waits for the first part of the body, and both leave in one packet.

    uvicorn writes them one after the other, which is two system calls here and often two wake-ups at the client.
    """

    __slots__ = ("_held", "_transport")

    def __init__(self, transport: Line) -> None:
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


class Receiver(asyncio.BufferedProtocol):
    """What a connection receives with: headers for the parser, but a body of known length straight into its place.

    Through the parser a body would be copied four times, on the cores that compute; one that was refused is not kept at
    all.
    """

    __slots__ = ("_body", "_connection", "_left", "_scratch")

    def __init__(self, connection: "Connection", scratch: memoryview) -> None:
        self._connection, self._scratch = connection, scratch
        self._body: memoryview | None = None
        self._left = 0

    def expect(self, left: int, body: memoryview | None) -> None:
        """Receive the next so many bytes into the end of a body, or throw them away; then tell the connection."""
        self._left, self._body = left, body

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where to receive; never more than the body, for the next request may follow it."""
        if not self._left:
            return self._scratch[:TO_PARSE_BYTES] if self._connection.in_header else self._scratch
        return self._scratch[: self._left] if self._body is None else self._body[-self._left :]

    def buffer_updated(self, nbytes: int) -> None:
        """Take what came."""
        if self._connection.transport.is_closing():
            return
        if not self._left:
            self._connection.data_received(bytes(self._scratch[:nbytes]))
            return
        self._left -= nbytes
        if not self._left:
            self._body = None
            self._connection.body_ended()

    def eof_received(self) -> None:
        """The client sends no more; the transport closes itself."""

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone: with it goes what came of a body, and the circle of the two that would hold it."""
        connection, self._body, self._left = self._connection, None, 0
        del self._connection
        connection.connection_lost(exc)

    def pause_writing(self) -> None:
        """The client does not read."""
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        """The client reads again."""
        self._connection.resume_writing()


class Connection(HttpToolsProtocol):
    """A connection under limits; `under` makes the kind that uvicorn is given."""

    limits = HttpLimits()
    on_refused: Callable[[int], None] = staticmethod(lambda status: None)
    door: Door | None = None
    transport: Line  # type: ignore[assignment]
    # One for all connections of a server, and so of an event loop: a second server may run in another thread.
    scratch = memoryview(bytearray(SCRATCH_BYTES))

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a connection, or refuse it when there are too many."""
        super().connection_made(Line(transport, self.loop, self._unread))  # type: ignore[arg-type]
        self._receiver = Receiver(self, self.scratch)
        transport.set_protocol(self._receiver)
        self._client = Client()
        self.in_header, self._header_bytes = True, 0
        self._body_bytes = self._framing_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._length, self._most_s = 0, 0.0
        self._at_the_door = False
        self._knock: Knock | None = None
        self._waiting: ASGI3Application | None = None
        self._turned_away = False
        self._between = True  # whether the parser waits for a message to begin
        self._begun = 0  # messages that began in what was received last
        self._refused: Knock | None = None  # the last of them that was refused at the door
        self._judged = False  # whether the door has let the message in that the parser is about to see
        if len(self.connections) > self.limits.connections:
            self._refuse(503, f"expected at most {self.limits.connections} connections; come again later")
            return
        self._watch(self.limits.header_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the request that is being answered that nobody waits for it."""
        self._client.leave()
        self._unwatch()
        self._reads()
        self._unset_keepalive_if_required()  # after a reset, too: its timer would hold the connection
        super().connection_lost(exc)
        # Nothing may hold this connection, and with it what was received, until cycles are looked for.
        self.transport.lost()
        self.cycle = None  # type: ignore[assignment]
        self.pipeline.clear()

    def pause_writing(self) -> None:
        """Give a client that does not read as long as one that sends slowly."""
        super().pause_writing()
        limits, size = self.limits, self.transport.get_write_buffer_size()
        self._reads()
        self._stalled = self.loop.call_later(limits.receive_s + size / limits.least_bytes_per_s, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on writing: the client reads."""
        self._reads()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        """Pass on what was received; refuse a header that grows too long."""
        if self.transport.is_closing():
            return
        while self._between:
            data = data.lstrip(b"\r\n")  # empty lines in front of a request are nothing (RFC 9112, 2.2)
            if not data:
                return
            if self.door is None:
                break
            rest = self._refused_again(self.door, data)
            if rest is None:
                break
            data = rest
        fresh, self._begun, self._refused = self._between, 0, None
        if self.in_header:
            if self._timer is None:
                self._watch(self.limits.header_s)
            self._header_bytes += len(data)
            super().data_received(data)
            if self.in_header and self._header_bytes > self.limits.header_bytes:
                self._refuse(431, f"expected a header of at most {self.limits.header_bytes} bytes")
            if fresh:
                self._remember(data)
        else:
            before, cycle = self._body_bytes, self.cycle
            super().data_received(data)
            if not self.in_header and self.cycle is cycle:  # else the next request has begun, and its counting with it
                self._framing_bytes += len(data) - (self._body_bytes - before)
                if self._framing_bytes > self.limits.header_bytes + MOST_FRAMING * self._body_bytes:
                    self._refuse(431, f"expected at most {self.limits.header_bytes} bytes around the chunks of a body")
        self._judged = False
        if self.in_header and not self._between and self._timer is None:  # it began behind a body, in the same piece
            self._header_bytes = max(self._header_bytes, 1)
            self._watch(self.limits.header_s)
        self._receive_directly()

    def _refused_again(self, door: Door, data: bytes) -> bytes | None:
        """Refuse a request by its header alone, if the very same was refused before and this one would be, too.

        Returns what was received behind it, None where it goes the ordinary way.
        """
        cycle = self.cycle
        if self.flow.write_paused or not (cycle is None or cycle.response_complete):
            return None
        end = data.find(END_OF_HEADER) + len(END_OF_HEADER)
        knock = door.known(data[:end]) if end >= len(END_OF_HEADER) else None
        if knock is None or len(data) - end < knock.head_bytes:
            return None
        answer = door.refusal(knock, data[end : end + knock.head_bytes], True)
        if answer is None:
            self._judged = True  # let in: once is enough
            return None
        self._unset_keepalive_if_required()
        self._unwatch()
        self.transport.write(answer)
        self.server_state.total_requests += 1
        left = end + knock.length - len(data)
        if left > 0:
            self.in_header = False
            self._most_s = self.limits.receive_s + knock.length / self.limits.least_bytes_per_s
            self._watch(self._most_s)
            self._receiver.expect(left, None)
            return b""
        self._wait_for_next()
        return data[end + knock.length :]

    def _remember(self, data: bytes) -> None:
        """Have the door remember the header of what was refused, if all that was received is it and some of its body.

        Where the parser saw the header end must be where the first empty line is; else a body could pass for a header.
        """
        knock = self._refused
        if knock is None or self.door is None or self._begun != 1 or not self.cycle.keep_alive:
            return
        end = data.find(END_OF_HEADER) + len(END_OF_HEADER)
        if end + self._body_bytes == len(data) and data.startswith(b"POST "):
            self.door.remember(data[:end], knock)

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._between, self._begun = False, self._begun + 1
        super().on_message_begin()
        self._unset_keepalive_if_required()  # one that was refused at the door, just before, may have begun to wait
        self.in_header = True
        self.scope[CLIENT] = self._client  # type: ignore[literal-required]

    def on_headers_complete(self) -> None:
        """Start the application, once the header is known to be within its limit; watch over the body's arrival."""
        length, size, hosts, chunked, wrong = 0, len(self.url), 0, False, ""
        for name, value in self.headers:
            size += len(name) + len(value) + 4
            if name == b"content-length":
                length = int(value)
            elif name == b"host":
                hosts += 1
            elif name == b"transfer-encoding":
                chunked = True
                if value.lower() != b"chunked":
                    wrong = "expected no transfer-encoding but chunked"
        if hosts != 1 and (hosts or self.parser.get_http_version() == "1.1"):  # RFC 9112, 3.2
            wrong = f"expected one Host header, got {hosts}"
        if self.parser.should_upgrade() and (length or chunked):  # the parser would take the body for a request
            wrong = "expected no Upgrade with a body; ask in plain HTTP/1.1"
        self.in_header, self._header_bytes = False, 0
        self._body_bytes = self._framing_bytes = 0
        self._unwatch()
        if self.transport.is_closing():  # what follows a refusal is not done
            return
        if size > self.limits.header_bytes:
            self._refuse(431, f"expected a header of at most {self.limits.header_bytes} bytes, got {size}")
            return
        if wrong:
            self._refuse(400, wrong)
            return
        limits = self.limits
        # A body beyond the limit is refused by its length; the refused rest is thrown away no longer than a whole one.
        self._most_s = limits.receive_s + min(length or limits.body_bytes, limits.body_bytes) / limits.least_bytes_per_s
        self._watch(self._most_s)
        self._length = length
        self._at_the_door = self.door is not None
        super().on_headers_complete()
        self._at_the_door = False
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
        if self._knock is not None:
            if len(cycle.body) >= self._knock.head_bytes:
                self._judge(self._knock)
            return
        if len(cycle.body) > self._most_part:
            self.flow.pause_reading()
            cycle.message_event.set()

    def on_message_complete(self) -> None:
        """Stop watching over the arrival of a request."""
        self._unwatch()
        self.in_header, self._header_bytes = True, 0
        self._turned_away, self._between = False, True
        if self.cycle is not None:
            super().on_message_complete()
            self._wait_for_next()  # the answer may have been there before the end of the body

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        """Let a request in, but not before it was judged at the door where there is one and it can be."""
        # Who does not read answers has to wait for his turn: those of the door are written without.
        if self._at_the_door and self.door is not None and not (self._judged or self.flow.write_paused):
            knock = self.door.knock(cycle.scope)
            if knock is not None:
                self._knock, self._waiting = knock, app
                if not knock.head_bytes:
                    self._judge(knock)
                return
        super()._start_asgi_task(cycle, app)

    def _judge(self, knock: Knock) -> None:
        """Refuse a request at the door, or let it in."""
        cycle, app, door = self.cycle, self._waiting, self.door
        self._knock = self._waiting = None
        assert app is not None
        assert door is not None
        answer = door.refusal(knock, bytes(cycle.body[: knock.head_bytes]), cycle.keep_alive)
        if answer is None:
            super()._start_asgi_task(cycle, app)
            return
        self.transport.write(answer)
        cycle.response_started = cycle.response_complete = True
        cycle.body = bytearray()
        self._turned_away, self._refused = True, knock
        if not cycle.keep_alive:
            self.transport.close(self._most_s)
        self.on_response_complete()

    @property
    def _most_part(self) -> int:
        """What may be received of a body before the application takes it."""
        share = self.limits.held_bytes // 4 // len(self.connections) if self.connections else LEAST_PART
        return min(max(share, LEAST_PART), MOST_PART)

    def _receive_directly(self) -> None:
        """Have the rest of a body of known length come past the parser, if it is refused or small enough to be held."""
        left, cycle = self._length - self._body_bytes, self.cycle
        if self.in_header or left < LEAST_DIRECT or self._knock is not None or self.transport.is_closing():
            return
        if cycle.response_complete:
            if self._turned_away:
                self._unset_keepalive_if_required()  # it may take as long as a body that is wanted
            self._receiver.expect(left, None)
        elif self._length <= self._most_part and len(cycle.body) == self._body_bytes:
            whole = bytearray(self._length)
            whole[: self._body_bytes] = cycle.body
            cycle.body = whole
            self._receiver.expect(left, memoryview(whole))

    def body_ended(self) -> None:
        """The whole of a body has come past the parser: the next request may."""
        waits = not self._between
        self.on_message_complete()
        if waits:  # the parser, for this body
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._wait_for_next()

    def _wait_for_next(self) -> None:
        """Let an idle connection wait for its next request, for a while."""
        if (self.cycle is None or self.cycle.response_complete) and self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def on_response_complete(self) -> None:
        """Go on with the connection, but not for long where it still sends what was refused, or does not read."""
        super().on_response_complete()
        going_on = not (self.transport.is_closing() or self.in_header or self._turned_away)
        if going_on and self.cycle.response_complete:
            self._watch(LINGER_S)  # it is this request's body that still comes

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

    def _unread(self) -> bool:
        """Whether a request has begun to come and has not ended."""
        return not self.in_header or self._header_bytes > 0

    def _reads(self) -> None:
        """The client reads, or has gone."""
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

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
        self._client.leave()
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()


def under(limits: HttpLimits, on_refused: Callable[[int], None], door: Door | None = None) -> type[Connection]:
    """Return the kind of connection that keeps these limits and tells the status of what it refuses by itself.

    door: who judges requests before their bodies are received.
    """
    attributes: dict[str, Any] = {"limits": limits, "on_refused": staticmethod(on_refused), "door": door}
    attributes["scratch"] = memoryview(bytearray(SCRATCH_BYTES))
    return type("LimitedConnection", (Connection,), attributes)
