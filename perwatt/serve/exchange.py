"""One HTTP exchange in plain ASGI: headers, the body under limits, the reply; no middleware on the way."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from math import ceil
from typing import Any

import orjson

from perwatt.errors import Refused
from perwatt.serve.connection import CLIENT, Client
from perwatt.serve.front import GONE, Front, Visit, permit, retry_after_s

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
Headers = dict[bytes, bytes]
Pairs = list[tuple[bytes, bytes]]
JSON_TYPE = (b"content-type", b"application/json")
JSON_LENGTH = b"inference-header-content-length"


def headers_of(scope: Scope) -> Headers:
    """Return the headers by lower-case name; of several with one name the last."""
    return dict(scope["headers"])


def whole_number(headers: Headers, name: bytes) -> int | None:
    """Return a header that must be a whole number from 0, or None without it. Raises Refused (400)."""
    text = headers.get(name)
    if text is None:
        return None
    if not text.isdigit() or len(text) > 18:
        raise Refused(
            f"{name.decode()}: expected a whole number, got {text[:40].decode('latin-1')!r}",
            reason="malformed",
            status=400,
        )
    return int(text)


def permitted(front: Front, scope: Scope, headers: Headers) -> None:
    """Let a client in. Raises Refused (401, 403)."""
    origin = headers.get(b"origin") if scope["method"] not in ("GET", "HEAD") else None
    permit(front, headers.get(b"authorization"), headers.get(b"host"), origin)


async def body_of(visit: Visit, headers: Headers, receive: Receive) -> bytes:
    """Return a whole request body. Raises Refused: 413 when it is too large, 415 when it is packed, GONE without end.

    Its length is checked before it is read; how long it may take is the connection's matter.
    """
    most = visit.front.limits.body_bytes
    declared = whole_number(headers, b"content-length")
    if declared is not None and declared > most:
        raise _too_large(most, str(declared))
    coding = headers.get(b"content-encoding", b"identity")
    if coding.lower() != b"identity":
        raise Refused(
            f"expected a body as it is, got content-encoding {coding[:40].decode('latin-1')!r}; send it unpacked",
            reason="packed",
            status=415,
        )
    message = await receive()
    if message["type"] == "http.disconnect":
        raise Refused("the client has gone", reason="cancelled", status=GONE)
    first: bytes = message.get("body", b"")
    visit.hold(len(first))
    if not message.get("more_body", False):
        if len(first) > most:
            raise _too_large(most, str(len(first)))
        return first
    parts, size = [first], len(first)
    while message.get("more_body", False):
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused("the client has gone", reason="cancelled", status=GONE)
        part = message.get("body", b"")
        size += len(part)
        if size > most:
            raise _too_large(most, f"{size} and more")
        visit.hold(len(part))
        parts.append(part)
    # Joined once at the end: a growing buffer would be copied over and over.
    return b"".join(parts)


def client_of(scope: Scope, receive: Receive) -> tuple[Client, asyncio.Task[None] | None]:
    """Return the client, and the task that watches whether it goes where one is needed.

    Called once the body has been read. perwatt's own connections bring the client; others are listened to.
    """
    found: Client | None = scope.get(CLIENT)
    if found is not None:
        return found, None
    client = Client()

    async def listen() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        client.leave()

    return client, asyncio.ensure_future(listen())


async def reply(send: Send, status: int, body: bytes, headers: Pairs) -> None:
    """Send a whole answer."""
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [*headers, (b"content-length", str(len(body)).encode())],
        }
    )
    await send({"type": "http.response.body", "body": body})


def refusal(refused: Refused, echoed: Pairs) -> tuple[Pairs, bytes]:
    """Return headers and body of a refusal: {"error": ...}, and when to come again."""
    headers = [JSON_TYPE, *echoed]
    wait_s = retry_after_s(refused)
    if wait_s is not None:
        # HTTP counts whole seconds; those who can are told the milliseconds.
        headers.append((b"retry-after", str(max(1, ceil(wait_s))).encode()))
        headers.append((b"retry-after-ms", str(ceil(1e3 * wait_s)).encode()))
    if refused.status == 401:
        headers.append((b"www-authenticate", b'Bearer, Basic realm="perwatt", charset="UTF-8"'))
    if refused.status == 415:
        headers.append((b"accept-encoding", b"identity"))
    return headers, orjson.dumps({"error": str(refused)})


async def refuse(send: Send, refused: Refused, echoed: Pairs) -> None:
    """Send a refusal with its status."""
    headers, body = refusal(refused, echoed)
    await reply(send, refused.status, body, headers)


def echoed_trace(headers: Headers) -> Pairs:
    """Return the traceparent header to send back, if a valid one came (W3C Trace Context, version 00)."""
    given = headers.get(b"traceparent")
    if given is None:
        return []
    parts = given.split(b"-")
    lengths = [len(part) for part in parts[:4]]
    valid = (
        lengths == [2, 32, 16, 2]
        and (len(parts) == 4 or parts[0] not in (b"00", b"ff"))
        and parts[0] != b"ff"
        and all(part.strip(b"0123456789abcdef") == b"" for part in parts[:4])
        and parts[1].strip(b"0") != b""
        and parts[2].strip(b"0") != b""
    )
    return [(b"traceparent", given)] if valid else []


def server_timing(visit: Visit) -> tuple[bytes, bytes]:
    """Return the Server-Timing header: milliseconds of each stage the request went through."""
    answer = visit.answer
    stages = (
        ("receive", visit.received_s),
        ("decode", visit.decoded_s),
        ("queue", None if answer is None else answer.queue_s),
        ("infer", None if answer is None else answer.infer_s),
    )
    text = ", ".join(f"{name};dur={1e3 * seconds:.3f}" for name, seconds in stages if seconds is not None)
    return b"server-timing", text.encode()


def _too_large(most: int, got: str) -> Refused:
    return Refused(f"expected a body of at most {most} bytes, got {got}", reason="too_large", status=413)
