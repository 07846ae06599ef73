"""The door: under overload, who would be refused anyway is refused before the body is received.

Receiving and parsing a body that nobody will answer costs the cores that compute. Where the last second saw a refusal,
a request is judged by what comes first of it: its headers and, where a priority or a timeout may stand there, the JSON
in front of its tensors. No place is held for the body: a slow sender keeps nobody out. Whatever is not plainly to be
refused for want of time or room goes the ordinary way, which judges it again.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from perwatt.errors import Refused
from perwatt.serve.datatypes import malformed
from perwatt.serve.exchange import (
    JSON_LENGTH,
    Headers,
    echoed_trace,
    headers_of,
    permitted,
    refusal,
    whole_number,
)
from perwatt.serve.front import Front, answered_by, count_refusal, enter, leave, priority_of
from perwatt.serve.inference import Route, asked_for, route_of
from perwatt.serve.messages import schedule

# A longer JSON in front of tensors holds values, not just their description; it is not waited for.
MOST_HEAD_BYTES = 1 << 14
OPEN_AFTER_S = 1.0


@dataclass(frozen=True, slots=True)
class Knock:
    """A request that can be judged by its headers and the first `head_bytes` of its body."""

    route: Route
    headers: Headers
    head_bytes: int


class Door:
    """Judges requests before their bodies are received; `knock` first, then `refusal` once the head has come."""

    def __init__(self, front: Front) -> None:
        self._front = front

    def knock(self, scope: Mapping[str, Any]) -> Knock | None:
        """Return what has to come before a request can be judged, None for one that goes the ordinary way."""
        front = self._front
        if scope["method"] != "POST" or time.monotonic() - front.pressed_s > OPEN_AFTER_S:
            return None
        route = route_of(scope["path"])
        if route is None:
            return None
        headers = headers_of(scope)
        try:
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
        return Knock(route, headers, head) if head <= min(MOST_HEAD_BYTES, length) else None

    def refusal(self, scope: Mapping[str, Any], knock: Knock, head: bytes, stays: bool) -> bytes | None:
        """Return the whole answer to a request that is refused, None for one that goes the ordinary way.

        stays: whether the connection does, after the answer.
        """
        front, route = self._front, knock.route
        try:
            permitted(front, scope, knock.headers)
            timeout_s, priority = asked_for(knock.headers, front.limits)
            if head:
                in_head_s, first = schedule(_parameters(head), front.limits)
                timeout_s = in_head_s or timeout_s
                priority = first or priority
            loaded = front.repository.lease(route.model, route.version).loaded
            leave(enter(front, route.action, route.model))
            deadline = answered_by(front, timeout_s, time.monotonic(), 0.0)
            with loaded.service.expecting(1, deadline=deadline, priority=priority_of(priority)):
                return None
        except Refused as refused:
            if refused.status != 429:
                return None
            count_refusal(front, route.model, refused)
            front.of(route.model).answered(route.action, refused.status)
            pairs, body = refusal(refused, echoed_trace(knock.headers))
            if not stays:
                pairs.append((b"connection", b"close"))
            lines = [STATUS_LINE[refused.status], *(b"%b: %b\r\n" % pair for pair in pairs)]
        return b"".join((*lines, b"content-length: %d\r\n\r\n" % len(body), body))


def _parameters(head: bytes) -> Mapping[str, Any]:
    """Return the parameters in the JSON in front of tensors. Raises Refused (400)."""
    try:
        found = orjson.loads(head)
    except orjson.JSONDecodeError as error:
        raise malformed("expected JSON in front of the tensors") from error
    parameters = found.get("parameters", {}) if isinstance(found, dict) else None
    if not isinstance(parameters, dict):
        raise malformed("expected parameters as an object")
    return parameters
