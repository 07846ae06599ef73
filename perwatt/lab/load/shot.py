"""One prepared request: its bytes, what it stands for, and how its client behaves."""

from dataclasses import dataclass
from typing import Literal

Behaviour = Literal["plain", "leave", "slow"]
OK = frozenset({200})


@dataclass(frozen=True)
class Shot:
    """A whole HTTP/1.1 request as bytes, ready to be sent again and again.

    `name` is the item that it asks about (a photograph, or a tensor made from one), `model` whom it asks. `expects`:
    statuses that are right for it; a hostile request is right when it is refused. `behaviour`: plain, leave (close the
    connection `after_s` seconds after sending without waiting for the answer), slow (send the body in `pieces` over
    `after_s` seconds). `body_at` is where the body begins in `data`.
    """

    name: str
    model: str
    data: bytes
    body_at: int
    expects: frozenset[int] = OK
    behaviour: Behaviour = "plain"
    after_s: float = 0.0
    pieces: int = 10


def post(
    path: str,
    host: str,
    body: bytes,
    *,
    name: str,
    model: str,
    content_type: str = "application/octet-stream",
    headers: tuple[tuple[str, str], ...] = (),
    expects: frozenset[int] = OK,
    behaviour: Behaviour = "plain",
    after_s: float = 0.0,
) -> Shot:
    """Return the Shot of a POST. `headers` are added as they are."""
    lines = [
        f"POST {path} HTTP/1.1",
        f"Host: {host}",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
        *(f"{key}: {value}" for key, value in headers),
    ]
    head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
    return Shot(name, model, head + body, len(head), expects, behaviour, after_s)
