"""The door: under overload, who would be refused anyway is refused before the body is received.

Receiving and parsing a body that nobody will answer costs the cores that compute. Where the last second saw a refusal,
a request is judged by what comes first of it: its headers and, where a priority or a timeout may stand there, the JSON
in front of its tensors. No place is held for the body: a slow sender keeps nobody out. Whatever is not plainly to be
refused for want of time or room goes the ordinary way, which judges it again.

A client that comes again mostly sends the same header, byte for byte. Those that were refused are remembered, with what
was read from them, so that they need not be parsed again to be refused again.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from perwatt.errors import Refused
from perwatt.serve.datatypes import malformed
from perwatt.serve.exchange import (
    JSON_LENGTH,
    Pairs,
    echoed_trace,
    headers_of,
    permitted,
    refusal,
    whole_number,
)
from perwatt.serve.front import Front, answered_by, count_refusal, has_room, priority_of
from perwatt.serve.inference import Route, asked_for, route_of
from perwatt.serve.messages import schedule

# A longer JSON in front of tensors holds values, not just their description; it is not waited for.
MOST_HEAD_BYTES = 1 << 14
OPEN_AFTER_S = 1.0
# Headers that are remembered, and how long one may be: half a megabyte in all.
MOST_KNOWN, MOST_KNOWN_BYTES = 256, 2048
MOST_HEADS = 64


@dataclass(frozen=True, slots=True)
class Knock:
    """A request that can be judged by its headers and the first `head_bytes` of its body of `length` bytes."""

    route: Route
    length: int
    head_bytes: int
    timeout_s: float | None
    priority: int
    echoed: Pairs


class Door:
    """Judges requests before their bodies are received; `knock` or `known` first, then `refusal` with the head."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self._known: dict[bytes, Knock] = {}
        self._asked = lru_cache(MOST_HEADS)(self._read)

    @property
    def open(self) -> bool:
        """Whether nobody was refused for a while: then nobody is judged here."""
        return time.monotonic() - self._front.pressed_s > OPEN_AFTER_S

    def knock(self, scope: Mapping[str, Any]) -> Knock | None:
        """Return what has to come before a request can be judged, None for one that goes the ordinary way."""
        front = self._front
        if scope["method"] != "POST" or self.open:
            return None
        route = route_of(scope["path"])
        if route is None:
            return None
        headers = headers_of(scope)
        try:
            permitted(front, scope, headers)
            timeout_s, priority = asked_for(headers, front.limits)
            length = whole_number(headers, b"content-length")
            head = whole_number(headers, JSON_LENGTH) if route.action == "infer" else 0
        except Refused:
            return None
        if length is None or length > front.limits.body_bytes or b"content-encoding" in headers or b"expect" in headers:
            return None
        if head is None:  # all JSON, whose parameters may stand at its end; or a photograph, which has none
            if not headers.get(b"content-type", b"").startswith(b"image/"):
                return None
            head = 0
        if head > min(MOST_HEAD_BYTES, length):
            return None
        return Knock(route, length, head, timeout_s, priority, echoed_trace(headers))

    def remember(self, header: bytes, knock: Knock) -> None:
        """Remember a header that was refused, from its method to its empty line, and that its connection stayed."""
        if len(header) <= MOST_KNOWN_BYTES:
            while len(self._known) >= MOST_KNOWN:
                del self._known[next(iter(self._known))]
            self._known[header] = knock

    def known(self, header: bytes) -> Knock | None:
        """Return what was read from the very same header before, None where it goes the ordinary way."""
        return None if self.open else self._known.get(header)

    def refusal(self, knock: Knock, head: bytes, stays: bool) -> bytes | None:
        """Return the whole answer to a request that is refused, None for one that goes the ordinary way.

        stays: whether the connection does, after the answer.
        """
        front, route = self._front, knock.route
        try:
            images, timeout_s, priority = self._asked(head) if head else (1, None, 0)
            if images > front.limits.images_per_request:
                return None
            loaded = front.repository.lease(route.model, route.version).loaded
            has_room(front)
            deadline = answered_by(front, timeout_s or knock.timeout_s, time.monotonic(), 0.0)
            asked = priority_of(priority or knock.priority)
            refused = loaded.service.turns_away(images, deadline=deadline, priority=asked)
        except Refused as error:
            refused = error
        if refused is None or refused.status != 429:
            return None
        count_refusal(front, route.model, refused)
        front.of(route.model).answered(route.action, refused.status)
        pairs, body = refusal(refused, knock.echoed)
        if not stays:
            pairs.append((b"connection", b"close"))
        lines = [STATUS_LINE[refused.status], *(b"%b: %b\r\n" % pair for pair in pairs)]
        return b"".join((*lines, b"content-length: %d\r\n\r\n" % len(body), body))

    def _read(self, head: bytes) -> tuple[int, float | None, int]:
        """Return images, timeout and priority by the JSON in front of tensors. Raises Refused (400).

        Images are those of the first tensor, 1 where it does not say: whether it is one that fits is seen later.
        """
        try:
            found = orjson.loads(head)
        except orjson.JSONDecodeError as error:
            raise malformed("expected JSON in front of the tensors") from error
        parameters = found.get("parameters", {}) if isinstance(found, dict) else None
        if not isinstance(parameters, dict):
            raise malformed("expected parameters as an object")
        timeout_s, priority = schedule(parameters, self._front.limits)
        return _images(found), timeout_s, priority


def _images(found: dict[str, Any]) -> int:
    match found:
        case {"inputs": [{"shape": [int(images), *_]}, *_]} if images > 0:
            return images
    return 1
