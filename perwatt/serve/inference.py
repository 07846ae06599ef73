"""The routes that do the work, in plain ASGI: /infer in both forms of the protocol, /classify for a photograph."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal
from urllib.parse import parse_qs

import numpy as np
import orjson

from perwatt.errors import Refused
from perwatt.serve.connection import Client
from perwatt.serve.exchange import (
    JSON_LENGTH,
    JSON_TYPE,
    Headers,
    Pairs,
    Receive,
    Scope,
    Send,
    body_of,
    client_of,
    echoed_trace,
    headers_of,
    permitted,
    refuse,
    reply,
    server_timing,
    whole_number,
)
from perwatt.serve.front import GONE, Front, Visit, answer, answered, count_refusal, enter, leave
from perwatt.serve.limits import HttpLimits
from perwatt.serve.messages import Question, best, default_question, question, response
from perwatt.serve.repository import Deployed

Action = Literal["infer", "classify"]
OCTETS = (b"content-type", b"application/octet-stream")
TOP = 5
MOST_TOP = 1000


@dataclass(frozen=True)
class Route:
    """What a path asks for; version None: whichever is there."""

    action: Action
    model: str
    version: str | None


def route_of(path: str) -> Route | None:
    """Return the route of a path, or None when it is not one of these."""
    parts = path.split("/")
    if len(parts) == 5 and parts[0] == "" and parts[1:3] == ["v2", "models"]:
        name, version, action = parts[3], None, parts[4]
    elif len(parts) == 7 and parts[0] == "" and parts[1:3] == ["v2", "models"] and parts[4] == "versions":
        name, version, action = parts[3], parts[5], parts[6]
    else:
        return None
    if action == "infer":
        return Route("infer", name, version)
    return Route("classify", name, version) if action == "classify" else None


async def infer(front: Front, route: Route, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer one POST to /infer or /classify."""
    headers = headers_of(scope)
    echoed = echoed_trace(headers)
    visit: Visit | None = None
    client: Client | None = None
    watcher: asyncio.Task[None] | None = None
    status = 500
    try:
        permitted(front, scope, headers)
        visit = enter(front, route.action, route.model)
        with front.repository.lease(route.model, route.version) as loaded:
            read = _asked(front.limits, route.action, loaded, headers, scope)
            asked = read(await body_of(visit, headers, receive))
            client, watcher = client_of(scope, receive)
            client.task = asyncio.current_task()
            found = await answer(visit, loaded, asked, client)
            client.task = None
            if route.action == "classify":
                body, typed = _named(loaded, found.outputs[0], _top(scope)), [JSON_TYPE]
            else:
                body, typed = _written(loaded, asked, found.outputs)
            status = 200
            answered(visit)
            await reply(send, 200, body, [*typed, server_timing(visit), *echoed])
    except Refused as refused:
        status = refused.status
        count_refusal(front, route.model, refused)
        if client is not None:
            client.task = None  # whose client goes now has nothing left to be stopped
        if status != GONE:
            await refuse(send, refused, echoed)
    except asyncio.CancelledError:
        if client is None or not client.gone:
            raise  # it is the server that ends
        status = GONE
        count_refusal(front, route.model, Refused("the client has gone", reason="cancelled", status=GONE))
    finally:
        if client is not None:
            client.task = None
        if watcher is not None:
            watcher.cancel()
        if visit is not None:
            leave(visit)
        front.of(route.model if route.model in front.repository.held else "").answered(route.action, status)


def asked_for(headers: Headers, limits: HttpLimits) -> tuple[float | None, int]:
    """Return the timeout in seconds and the priority that the headers ask for; those of a body go before them.

    Raises Refused (400).
    """
    timeout_ms = whole_number(headers, b"x-request-timeout-ms")
    priority = whole_number(headers, b"x-request-priority") or 0
    if timeout_ms is not None and not 0 < timeout_ms <= 1e3 * limits.longest_deadline_s:
        raise Refused(
            f"x-request-timeout-ms: expected 1 to {1e3 * limits.longest_deadline_s:.0f}, got {timeout_ms}",
            reason="malformed",
            status=400,
        )
    return None if timeout_ms is None else timeout_ms / 1e3, priority


def _asked(
    limits: HttpLimits, action: Action, loaded: Deployed, headers: Headers, scope: Scope
) -> Callable[[bytes], Question]:
    """Return the function that reads the body, after what the headers alone can refuse is refused."""
    kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    timeout_s, priority = asked_for(headers, limits)
    if action == "classify":
        if kind.startswith(b"multipart/") or kind == b"application/json":
            raise Refused(
                f"expected a photograph as the whole body, got {kind[:40].decode('latin-1')}; "
                "send it with curl --data-binary @photo.jpg",
                reason="unsupported",
                status=415,
            )
        _top(scope)  # refuse a bad query before the body is received

        def read(body: bytes) -> Question:
            if not body:
                raise Refused("expected a photograph as the body, got nothing", reason="malformed", status=400)
            return default_question(loaded.subject, photos=(body,))

    else:
        length = whole_number(headers, JSON_LENGTH)
        if length is None and kind.startswith(b"image/"):
            length = 0

        def read(body: bytes) -> Question:
            return question(body, length, loaded.subject, limits, kind.startswith(b"image/"))

    def scheduled(body: bytes) -> Question:
        found = read(body)
        if timeout_s is not None and found.timeout_s is None:
            found = replace(found, timeout_s=timeout_s)
        if priority and not found.priority:
            found = replace(found, priority=priority)
        return found

    return scheduled if timeout_s is not None or priority else read


def _written(loaded: Deployed, asked: Question, outputs: tuple[np.ndarray, ...]) -> tuple[bytes, Pairs]:
    body, length = response((loaded.name, loaded.version), asked, loaded.subject, outputs, loaded.labels)
    if length is None:
        return body, [JSON_TYPE]
    return body, [OCTETS, (JSON_LENGTH, str(length).encode())]


def _named(loaded: Deployed, output: np.ndarray, top: int) -> bytes:
    """Return the best classes of one photograph as JSON."""
    values = output[0].ravel()
    labels = loaded.labels
    rows: list[dict[str, Any]] = [
        {
            "label": labels[index] if labels is not None and index < len(labels) else None,
            "index": index,
            "score": values[index],
        }
        for index in best(values, top)
    ]
    named = {"model_name": loaded.name, "model_version": loaded.version, "labels": rows}
    return orjson.dumps(named, option=orjson.OPT_SERIALIZE_NUMPY)


def _top(scope: Scope) -> int:
    query = scope.get("query_string", b"")
    if not query:
        return TOP
    texts = (
        parse_qs(query.decode("latin-1"), max_num_fields=16).get("top", [str(TOP)]) if query.count(b"&") < 16 else []
    )
    if len(texts) != 1 or not texts[0].isascii() or not texts[0].isdigit() or not 0 < int(texts[0][:9]) <= MOST_TOP:
        raise Refused(f"top: expected a number from 1 to {MOST_TOP}", reason="malformed", status=400)
    return int(texts[0])
