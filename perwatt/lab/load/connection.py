"""A lean HTTP/1.1 client connection: prepared bytes go out, status and body come back, one request at a time.

The client shares the machine with the server that it measures, so its own cost per request is part of the answer. What
a general client does for comfort (header objects, redirects, cookies, compression) is left out.
"""

import asyncio
import re
from typing import Protocol, cast

RECEIVE_BYTES = 1 << 18
MOST_HEAD_BYTES = 1 << 16
MOST_BODY_BYTES = 1 << 28
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,18})[ \t]*\r\n", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[^\r]*\bchunked\b", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection:[^\r]*\bclose\b", re.IGNORECASE)
_WITHOUT_BODY = (204, 304)


class Owner(Protocol):
    """Who is told what happens on a connection."""

    def answered(self, connection: "Connection", status: int, head: bytes, body: bytes) -> None:
        """Take a whole answer; the connection may be used again when its `reusable` is true."""

    def lost(self, connection: "Connection") -> None:
        """Take it that the connection is closed; a request that waits for its answer will get none."""


class BadAnswer(ValueError):
    """Bytes that are no HTTP/1.1 answer."""


class Answer:
    """An answer as its bytes arrive: `take` them until `whole`."""

    __slots__ = ("body", "chunked", "close", "content", "head", "length", "status", "whole")

    def __init__(self) -> None:
        self.content = bytearray()
        self.head = b""
        self.body = b""
        self.status = 0
        self.length: int | None = None
        self.chunked = False
        self.close = False
        self.whole = False

    def take(self, part: bytes | memoryview) -> None:
        """Add received bytes. Raises BadAnswer; bytes after a whole answer are one, for nobody asked for them."""
        if self.whole:
            raise BadAnswer("expected nothing after the answer, got more bytes")
        self.content += part
        while not self.status:
            end = self.content.find(b"\r\n\r\n")
            if end < 0:
                if len(self.content) > MOST_HEAD_BYTES:
                    raise BadAnswer(f"expected at most {MOST_HEAD_BYTES} bytes of headers, got more")
                return
            self._read_head(bytes(self.content[: end + 2]))
            del self.content[: end + 4]
        if self.chunked:
            self._read_chunks()
        elif self.length is not None and len(self.content) >= self.length:
            if len(self.content) > self.length:
                raise BadAnswer(f"expected a body of {self.length} bytes, got more")
            self.body, self.whole = bytes(self.content), True
        elif len(self.content) > MOST_BODY_BYTES:
            raise BadAnswer(f"expected a body of at most {MOST_BODY_BYTES} bytes, got more")

    def ended(self) -> None:
        """Take the end of the stream: the end of an answer that did not tell its length."""
        if self.status and not self.whole and self.length is None and not self.chunked:
            self.body, self.whole, self.close = bytes(self.content), True, True

    def _read_head(self, head: bytes) -> None:
        if not head.startswith(b"HTTP/1.") or not head[9:12].isdigit():
            raise BadAnswer(f"expected an HTTP/1.1 answer, got {head[:40]!r}")
        status = int(head[9:12])
        if 100 <= status < 200:  # an interim answer; the real one follows
            return
        self.status, self.head = status, head
        self.close = _CLOSE.search(head) is not None or head.startswith(b"HTTP/1.0")
        self.chunked = _CHUNKED.search(head) is not None
        length = _LENGTH.search(head)
        if not self.chunked:
            self.length = 0 if status in _WITHOUT_BODY else int(length[1]) if length else None
            if self.length is not None and self.length > MOST_BODY_BYTES:
                raise BadAnswer(f"expected a body of at most {MOST_BODY_BYTES} bytes, {self.length} are announced")

    def _read_chunks(self) -> None:
        """Join the chunks once the last has come; answers are small, so starting again each time costs little."""
        parts: list[bytes] = []
        at = 0
        while True:
            line_end = self.content.find(b"\r\n", at)
            if line_end < 0:
                return
            try:
                size = int(bytes(self.content[at:line_end]).partition(b";")[0], 16)
            except ValueError:
                raise BadAnswer("expected the size of a chunk in hexadecimal, got something else") from None
            at = line_end + 2
            if size == 0:
                # The end: an empty line, after trailers if there are any.
                if self.content[at : at + 2] == b"\r\n" or self.content.find(b"\r\n\r\n", at) >= 0:
                    self.body, self.whole = b"".join(parts), True
                return
            if not 0 < size <= MOST_BODY_BYTES:
                raise BadAnswer(f"expected chunks of at most {MOST_BODY_BYTES} bytes, got one of {size}")
            if len(self.content) < at + size + 2:
                return
            parts.append(bytes(self.content[at : at + size]))
            at += size + 2


class Connection(asyncio.BufferedProtocol):
    """One connection of the load generator. Its owner writes to `transport` and is told of answers and losses.

    `sample` is the number of the request under way, -1 for none. All connections receive into one buffer, which is
    free again before the next one does.
    """

    __slots__ = ("_buffer", "_view", "answer", "idle_since_s", "owner", "reusable", "sample", "sent_ns", "transport")

    def __init__(self, owner: Owner, buffer: memoryview) -> None:
        self.owner = owner
        self.transport: asyncio.Transport | None = None
        self.answer: Answer | None = None
        self.reusable = False
        self.sample = -1
        self.sent_ns = 0
        self.idle_since_s = 0.0
        self._view = buffer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = cast("asyncio.Transport", transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where to receive."""
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        """Take received bytes, and tell the owner when the answer is whole."""
        answer = self.answer
        if answer is None:
            answer = self.answer = Answer()
        try:
            if self.sample < 0:
                raise BadAnswer("expected nothing without a request, got bytes")
            answer.take(self._view[:nbytes])
        except BadAnswer:
            self.abort()
            return
        if answer.whole:
            self._finish(answer)

    def eof_received(self) -> bool:
        """Take the end of the stream; the transport closes itself."""
        if self.answer is not None and self.sample >= 0:
            self.answer.ended()
            if self.answer.whole:
                self._finish(self.answer)
        return False

    def connection_lost(self, error: Exception | None) -> None:
        """Tell the owner."""
        self.transport = None
        self.reusable = False
        self.owner.lost(self)

    def abort(self) -> None:
        """Close at once, dropping what is not sent."""
        self.reusable = False
        if self.transport is not None:
            self.transport.abort()

    def _finish(self, answer: Answer) -> None:
        self.answer = None
        transport = self.transport
        # An answer before the whole request was sent (413) leaves a stream that nobody can follow.
        self.reusable = not answer.close and transport is not None and transport.get_write_buffer_size() == 0
        self.owner.answered(self, answer.status, answer.head, answer.body)
