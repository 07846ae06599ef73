"""The front: what HTTP and gRPC share. Admission, deadlines, decoding, the call of the service, and the counting."""

import base64
import binascii
import hmac
import ipaddress
import secrets
import time
from dataclasses import dataclass, field
from math import inf
from typing import NoReturn

from perwatt.errors import InputError, Refused
from perwatt.serve.connection import Client
from perwatt.serve.energy import Joules
from perwatt.serve.limits import HttpLimits
from perwatt.serve.messages import Question
from perwatt.serve.metrics import Metrics, ModelMetrics
from perwatt.serve.photos import Decoder
from perwatt.serve.repository import Deployed, Repository
from perwatt.serve.service import Answer
from perwatt.serve.traffic import Traffic, WayBack

# The protocol's priority 0 means the default; smaller numbers come first, so that 1 to 7 go before it.
DEFAULT_PRIORITY = 8
# Retry-After never asks for more: by then the queue is another one.
MOST_RETRY_S = 30.0
# The most of a request's time that its way to the server, and its answer's way back, is taken to need, each.
MOST_ON_THE_WAY = 0.1
# The status of a request whose client has gone: nobody reads it, but it is counted.
GONE = 499


@dataclass(eq=False)
class Front:
    """One server's shared state, on one event loop. `deadline_s` is given to requests that bring none."""

    repository: Repository
    decoder: Decoder
    limits: HttpLimits
    token: str | None
    deadline_s: float | None
    metrics: Metrics = field(default_factory=Metrics)
    traffic: Traffic = field(default_factory=Traffic)
    draining: bool = False
    requests: int = 0
    held_bytes: int = 0
    models: dict[str, ModelMetrics] = field(default_factory=dict)
    # Hosts that were found harmless, so that they are looked at once.
    hosts: set[bytes] = field(default_factory=set)
    energy: Joules | None = None
    # When the meter was last read, its joules, and the engine seconds of each package then.
    energy_before: tuple[float, float | None, dict[str, float]] | None = None
    # When somebody was last refused for want of time or room.
    pressed_s: float = -inf
    # How long answers take from the network to their client.
    way_back: WayBack = field(default_factory=WayBack)
    # Tells a server from the one that was here before it.
    run: str = field(default_factory=lambda: secrets.token_hex(8))

    def __post_init__(self) -> None:
        self.metrics.in_flight.set_function(lambda: self.requests)
        self.metrics.held.set_function(lambda: self.held_bytes)
        self.metrics.decoding.set_function(lambda: self.decoder.waiting)

    def of(self, model: str) -> ModelMetrics:
        """Return the metrics of one package."""
        found = self.models.get(model)
        if found is None:
            found = self.models[model] = ModelMetrics(self.metrics, model)
        return found


@dataclass(slots=True)
class Visit:
    """One request for inference on its way: what it holds, and where its time went (seconds; None: not that far)."""

    front: Front
    route: str
    model: str
    started_s: float
    held_bytes: int = 0
    received_s: float | None = None
    decoded_s: float | None = None
    answer: Answer | None = None

    def hold(self, size: int) -> None:
        """Count bytes of a body that is being received. Raises Refused (429) when all bodies together are too much."""
        front = self.front
        if front.held_bytes + size > front.limits.held_bytes:
            raise Refused(
                f"expected at most {front.limits.held_bytes} bytes of requests at once; come again later",
                reason="memory",
                status=429,
                retry_after_s=front.traffic.wait_s(front.requests),
            )
        self.held_bytes += size
        front.held_bytes += size


def enter(front: Front, route: str, model: str) -> Visit:
    """Let a request in, before its body is read; `leave` must follow. Raises Refused (429, 503)."""
    has_room(front)
    front.requests += 1
    return Visit(front, route, model, time.monotonic())


def has_room(front: Front) -> None:
    """Check that a request more may come in. Raises Refused (429, 503)."""
    if front.draining:
        raise Refused("the server is shutting down; ask another", reason="draining", status=503, retry_after_s=1.0)
    if front.requests >= front.limits.requests:
        raise Refused(
            f"expected at most {front.limits.requests} requests at once; come again later",
            reason="concurrency",
            status=429,
            retry_after_s=front.traffic.wait_s(front.requests),
        )


def answered(visit: Visit) -> None:
    """Note that an answer is written and about to be sent."""
    found = visit.answer
    if found is not None and found.done_s is not None:
        visit.front.way_back.observe(time.monotonic() - found.done_s)


def leave(visit: Visit) -> None:
    """End what `enter` began."""
    visit.front.requests -= 1
    visit.front.held_bytes -= visit.held_bytes
    visit.held_bytes = 0


def answered_by(front: Front, timeout_s: float | None, received_s: float, took_s: float) -> float | None:
    """Return when the network must have answered a request that was received at a time and took so long to come."""
    timeout_s = front.deadline_s if timeout_s is None else timeout_s
    if timeout_s is None:
        return None
    # A client counts from when it sent to when it sees the answer. The time of a body that came at once is part of
    # that, and so is the way back; a slow sender's is not, or it would be refused always.
    most_s = MOST_ON_THE_WAY * timeout_s
    return received_s + timeout_s - min(took_s, most_s) - min(front.way_back.p99_s, most_s)


def priority_of(asked: int) -> int:
    """Return the priority of a request by what it asked for, 0 for nothing."""
    return asked or DEFAULT_PRIORITY


async def answer(visit: Visit, loaded: Deployed, question: Question, client: Client) -> Answer:
    """Return the outputs for a question. Raises Refused for whatever cannot be answered, or not in time.

    The task that waits here is cancelled when the client goes, which takes its images out of the queue.
    """
    front, received_s = visit.front, time.monotonic()
    visit.received_s = received_s - visit.started_s
    deadline = answered_by(front, question.timeout_s, received_s, visit.received_s)
    priority = priority_of(question.priority)
    images = question.tensor
    if images is None:
        if loaded.preprocessing is None:
            raise Refused(f"model {loaded.name!r} takes tensors, not photographs", reason="unfitting", status=422)
        with loaded.service.expecting(len(question.photos), deadline=deadline, priority=priority):
            images = await front.decoder.decode(
                question.photos, loaded.preprocessing, deadline=deadline, gone=lambda: client.gone
            )
        visit.decoded_s = time.monotonic() - received_s
    visit.answer = found = await loaded.service.infer(images, deadline=deadline, priority=priority)
    figures, traffic = front.of(loaded.name), front.traffic.of(loaded.name)
    took_s, number = time.monotonic() - received_s, len(images)
    figures.images.inc(number)
    figures.took(visit.route, took_s)
    stages = figures.stages
    stages["receive"].observe(visit.received_s)
    if visit.decoded_s is not None:
        stages["decode"].observe(visit.decoded_s)
    stages["queue"].observe(found.queue_s)
    stages["infer"].observe(found.infer_s)
    traffic.requests += 1
    traffic.images += number
    traffic.durations_s.append(took_s)
    return found


def count_refusal(front: Front, model: str, refused: Refused) -> None:
    """Count a refusal under a package's name, or under '' where there is none of that name."""
    if refused.status == 429:
        front.pressed_s = time.monotonic()
    known = model if model in front.repository.held else ""
    front.of(known).refused(refused.reason)
    if known:
        front.traffic.of(known).refused[refused.reason] += 1


def retry_after_s(refused: Refused) -> float | None:
    """Return when to come again, at most MOST_RETRY_S."""
    return None if refused.retry_after_s is None else min(max(refused.retry_after_s, 0.0), MOST_RETRY_S)


def permit(front: Front, authorization: bytes | None, host: bytes | None, origin: bytes | None) -> None:
    """Let a client in by its token; without a token, only what no foreign web page can have sent.

    A page of another site can send a browser's requests here; its Origin gives it away, or, after the name of its own
    site was pointed at this machine, the Host. Raises Refused (401, 403).
    """
    if origin is not None and origin.partition(b"://")[2] != host:
        _forbid("cross_origin", f"expected no request from another site, got origin {origin[:80]!r}")
    if front.token is not None:
        if not _knows(front.token.encode(), authorization):
            raise Refused(
                "expected a token: Authorization: Bearer TOKEN (or as the password of Basic)",
                reason="unauthorized",
                status=401,
            )
    elif host is not None and host not in front.hosts:
        if not harmless(host):
            _forbid("foreign_host", f"expected an address or localhost as host, got {host[:80]!r}; set a token")
        if len(front.hosts) < 64:
            front.hosts.add(host)


def harmless(host: bytes) -> bool:
    """Return whether a Host header is an address or localhost: nobody's DNS can point those elsewhere."""
    text = host.decode("latin-1").lower()
    if text.startswith("["):
        name = text[1:].partition("]")[0]
    else:
        name = text.partition(":")[0]
    if name == "localhost":
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def check_address(host: str, token: str | None) -> None:
    """Check that an address other than loopback has a token. Raises InputError."""
    if token is not None and len(token) < 8:
        raise InputError("token: expected at least 8 characters, got fewer; make one with: openssl rand -hex 16")
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError as error:
        raise InputError(f"host: expected an address such as 127.0.0.1 or 0.0.0.0, got {host!r}") from error
    if not loopback and token is None:
        raise InputError(
            f"host: expected a token for {host}, which others can reach, got none; set PERWATT_TOKEN or give --token, "
            "or serve on 127.0.0.1"
        )


def _forbid(reason: str, message: str) -> NoReturn:
    raise Refused(message, reason=reason, status=403)


def _knows(token: bytes, authorization: bytes | None) -> bool:
    scheme, _, given = (authorization or b"").partition(b" ")
    if scheme.lower() == b"basic":  # what a browser can do by itself; the user's name does not matter
        try:
            given = base64.b64decode(given, validate=True).partition(b":")[2]
        except binascii.Error:
            return False
    elif scheme.lower() != b"bearer":
        return False
    return hmac.compare_digest(given.strip(), token)
