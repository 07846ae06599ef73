"""The application: the Open Inference Protocol v2 over REST, its repository extension, metrics and the status page."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib import resources
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route as Path

from perwatt import __version__
from perwatt.errors import PerwattError, Refused
from perwatt.serve import metrics
from perwatt.serve.datatypes import datatype
from perwatt.serve.energy import shared_out
from perwatt.serve.exchange import Receive, Scope, Send, echoed_trace, headers_of, permitted, refuse
from perwatt.serve.front import Front, count_refusal
from perwatt.serve.inference import infer, route_of
from perwatt.serve.repository import Deployed
from perwatt.serve.service import TensorFacts

EXTENSIONS = ("binary_tensor_data", "classification", "model_repository", "schedule_policy")
# What the repository routes may be sent.
MOST_COMMAND_BYTES = 64 * 1024
# How long a package that was replaced or unloaded may take to finish what it holds.
DRAIN_S = 30.0
# Nothing from elsewhere, no inline script or style: the page works offline, and injected text stays text.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' blob:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
PAGE_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
PAGE_FILES = {
    "page.js": "text/javascript; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
Endpoint = Callable[[Request], Awaitable[Response]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


def application(front: Front) -> Application:
    """Return the ASGI application of one server."""
    others = Starlette(
        routes=_paths(front),
        exception_handlers={
            Refused: _refused(front),
            PerwattError: _failed,
            HTTPException: _unknown,
            ClientDisconnect: _gone,
        },
    )

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            route = route_of(scope["path"])
            if route is not None:
                await infer(front, route, scope, receive, send)
                return
        await others(scope, receive, send)  # type: ignore[arg-type]

    return app


def end_second(front: Front, connections: int, joules: float | None = None) -> None:
    """Close a second of traffic and set the gauges; called once a second, with the meter's joules so far."""
    held, figures = front.repository.held, front.metrics
    energy = _energy(front, joules)
    states = {}
    for name, each in held.items():
        service = each.loaded.service
        front.of(name).queue.set(service.queued_images)
        states[name] = {"queue": service.queued_images, "ready": service.ready, "version": each.loaded.version}
        if energy is not None:
            front.traffic.of(name).joules += energy.get(name, 0.0)
    figures.set_ready((name, each.loaded.version, each.loaded.service.ready) for name, each in held.items())
    figures.connections.set(connections)
    whole = {
        "in_flight": front.requests,
        "held_bytes": front.held_bytes,
        "decoding": front.decoder.waiting,
        "connections": connections,
        "ready": front.repository.ready and not front.draining,
        "draining": front.draining,
        "joules": None if energy is None else sum(energy.values()),
    }
    front.traffic.end_second(states, whole)


def _energy(front: Front, joules: float | None) -> dict[str, float] | None:
    """Return the joules of each package since the last second, and count them; None where no meter says."""
    now = time.monotonic()
    engines = {name: each.loaded.service.engine_s for name, each in front.repository.held.items()}
    before, front.energy_before = front.energy_before, (now, joules, engines)
    if front.energy is None or joules is None or before is None or before[1] is None:
        return None
    # A package that was replaced begins to count anew.
    used = {name: max(0.0, seconds - before[2].get(name, 0.0)) for name, seconds in engines.items()}
    parts = shared_out(joules - before[1], now - before[0], used)
    for name, part in parts.items():
        front.metrics.joules.labels(name, front.energy.meter, front.energy.scope).inc(part)
    return parts


def _paths(front: Front) -> list[Path]:
    """Return every path but those that infer."""

    def guarded(endpoint: Endpoint) -> Endpoint:
        async def guard(request: Request) -> Response:
            permitted(front, request.scope, headers_of(request.scope))
            return await endpoint(request)

        return guard

    async def live(_: Request) -> Response:
        return _json({"live": True})

    async def ready(_: Request) -> Response:
        yes = front.repository.ready and not front.draining
        return _json({"live": True, "ready": yes}, 200 if yes else 503)

    async def server(_: Request) -> Response:
        return _json({"name": "perwatt", "version": __version__, "extensions": EXTENSIONS})

    async def model(request: Request) -> Response:
        return _json(model_facts(front.repository.lease(*_named(request)).loaded))

    async def model_ready(request: Request) -> Response:
        name, version = _named(request)
        yes = front.repository.model_ready(name, version) and not front.draining
        return _json({"name": name, "ready": yes}, 200 if yes else 503)

    async def index(request: Request) -> Response:
        asked = await _command(request)
        rows = front.repository.index()
        return _json([row for row in rows if row["state"] == "READY"] if asked.get("ready") is True else rows)

    async def load(request: Request) -> Response:
        managed(front)
        asked = await _command(request)
        if asked.get("parameters"):
            raise Refused("expected no parameters: a package is loaded as its file is", reason="unfitting", status=422)
        loaded = await front.repository.load(request.path_params["model"], DRAIN_S)
        return _json({"name": loaded.name, "version": loaded.version})

    async def unload(request: Request) -> Response:
        managed(front)
        await _command(request)
        await front.repository.unload(request.path_params["model"], DRAIN_S)
        return _json({"name": request.path_params["model"]})

    async def scrape(_: Request) -> Response:
        return Response(front.metrics.page(), media_type=metrics.CONTENT_TYPE)

    async def page(_: Request) -> Response:
        return _file("index.html", "text/html; charset=utf-8")

    async def file(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in PAGE_FILES:
            raise HTTPException(404)
        return _file(name, PAGE_FILES[name])

    async def figures(_: Request) -> Response:
        return _json({"about": _about(front), "seconds": front.traffic.since(0)})

    streams = 0

    async def events(request: Request) -> Response:
        nonlocal streams
        if streams >= front.limits.event_streams:
            raise Refused("too many pages watch; close one", reason="concurrency", status=429, retry_after_s=5.0)
        seen = request.headers.get("last-event-id", "0")

        async def stream() -> AsyncIterator[bytes]:
            nonlocal streams
            streams += 1
            try:
                yield _event("about", 0, _about(front))
                last = int(seen) if seen.isascii() and seen.isdigit() and len(seen) < 16 else 0
                while not front.draining:
                    for number, second in front.traffic.since(last):
                        yield _event("second", number, second)
                        last = number
                    await front.traffic.next_second()
                yield _event("draining", last, {})
            finally:
                streams -= 1

        headers = {"cache-control": "no-store", "x-accel-buffering": "no", "x-content-type-options": "nosniff"}
        return StreamingResponse(stream(), media_type="text/event-stream", headers=headers)

    one = "/v2/models/{model}"
    every: list[tuple[str, str, Endpoint]] = [
        ("GET", "/v2", server),
        ("GET", "/v2/", server),
        ("GET", one, model),
        ("GET", one + "/versions/{version}", model),
        ("GET", one + "/ready", model_ready),
        ("GET", one + "/versions/{version}/ready", model_ready),
        ("POST", "/v2/repository/index", index),
        ("POST", "/v2/repository/models/{model}/load", load),
        ("POST", "/v2/repository/models/{model}/unload", unload),
        ("GET", "/metrics", scrape),
        ("GET", "/", page),
        ("GET", "/status/figures", figures),
        ("GET", "/status/events", events),
        ("GET", "/status/{name}", file),
    ]
    # Probes come without a token.
    probes = [Path("/v2/health/live", live), Path("/v2/health/ready", ready)]
    return [*probes, *(Path(path, guarded(endpoint), methods=[method]) for method, path, endpoint in every)]


def model_facts(loaded: Deployed) -> dict[str, Any]:
    """Return the metadata of a model as the protocol wants it; -1 is the free number of images."""

    def tensor(facts: TensorFacts) -> dict[str, Any]:
        return {"name": facts.name, "datatype": datatype(facts.dtype), "shape": [-1, *facts.shape]}

    return {
        "name": loaded.name,
        "versions": [loaded.version],
        "platform": loaded.platform,
        "inputs": [tensor(loaded.subject.input)],
        "outputs": [tensor(facts) for facts in loaded.subject.outputs],
    }


def _about(front: Front) -> dict[str, Any]:
    """Return what the status page says of the server once."""
    now = time.monotonic()
    return {
        "version": __version__,
        "run": front.run,
        "meter": None if front.energy is None else f"{front.energy.scope}, {front.energy.meter}",
        "deadline_ms": None if front.deadline_s is None else 1e3 * front.deadline_s,
        "models": [
            {
                "name": loaded.name,
                "version": loaded.version,
                "input": [-1, *loaded.subject.input.shape],
                "photos": loaded.subject.takes_photos,
                "loaded_s": round(now - front.repository.loaded_at_s[loaded.name]),
                **loaded.about,
            }
            for loaded in front.repository
        ],
    }


def managed(front: Front) -> None:
    """Check that packages may be loaded and unloaded here. Raises Refused (403, 503)."""
    if front.token is None:
        raise Refused(
            "expected a server with a token: loading and unloading is off without one; restart it with --token",
            reason="forbidden",
            status=403,
        )
    if front.draining:
        raise Refused("the server is shutting down", reason="draining", status=503)


def _named(request: Request) -> tuple[str, str | None]:
    return request.path_params["model"], request.path_params.get("version")


async def _command(request: Request) -> dict[str, Any]:
    """Return the small JSON object of a command; an empty body is an empty one. Raises Refused (400, 413)."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MOST_COMMAND_BYTES:
            raise Refused(
                f"expected a body of at most {MOST_COMMAND_BYTES} bytes, got more", reason="too_large", status=413
            )
    try:
        found = orjson.loads(body) if body.strip() else {}
    except orjson.JSONDecodeError as error:
        raise Refused(f"expected JSON: {str(error)[:120]}", reason="malformed", status=400) from error
    if not isinstance(found, dict):
        raise Refused(f"expected a JSON object, got {type(found).__name__}", reason="malformed", status=400)
    return found


def _json(value: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(value), status, media_type="application/json")


def _file(name: str, media_type: str) -> Response:
    content = resources.files("perwatt.serve").joinpath("status", name).read_bytes()
    return Response(content, media_type=media_type, headers=PAGE_HEADERS)


def _event(kind: str, number: int, value: Any) -> bytes:
    head = f"event: {kind}\n" + (f"id: {number}\n" if number else "")
    return head.encode() + b"data: " + orjson.dumps(value) + b"\n\n"


def _refused(front: Front) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def handle(request: Request, error: Exception) -> Response:
        assert isinstance(error, Refused)
        count_refusal(front, request.path_params.get("model", ""), error)
        sent: list[Any] = []

        async def keep(message: Any) -> None:
            sent.append(message)

        await refuse(keep, error, echoed_trace(headers_of(request.scope)))
        response = Response(sent[1]["body"], sent[0]["status"])
        response.raw_headers = sent[0]["headers"]
        return response

    return handle


async def _failed(_: Request, error: Exception) -> Response:
    """Answer a command whose package could not be used."""
    return _json({"error": str(error)}, 422)


async def _unknown(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.scope["path"][:120]
    text = f"{request.method} is not allowed on {path}" if error.status_code == 405 else f"there is nothing at {path}"
    response = _json({"error": text if error.status_code in (404, 405) else error.detail}, error.status_code)
    response.headers.update(error.headers or {})
    return response


async def _gone(_: Request, __: Exception) -> Response:
    return Response(status_code=499)


def every_second(front: Front, connections: Callable[[], int]) -> asyncio.Task[None]:
    """Begin to close a second of traffic every second; cancel the task to end it."""

    async def tick() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            while True:
                await asyncio.sleep(1.0)
                # A meter may take its time to answer.
                joules = None if front.energy is None else await asyncio.to_thread(front.energy.read)
                end_second(front, connections(), joules)

    return asyncio.get_running_loop().create_task(tick())
