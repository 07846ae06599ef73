"""Requests of clients that are broken, hostile or clumsy, with the answers that are right for each."""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from perwatt.lab.load.generator import BROKEN
from perwatt.lab.load.shot import Shot

REFUSED_IMAGE = frozenset({400, 413, 415, 422})
# A server may close a body that it will not read; its 413 can be lost in that.
REFUSED_SIZE = frozenset({413, BROKEN})
TOO_LARGE_BYTES = 70 << 20


def shots(like: Shot, good: Sequence[Shot], model: str, seed: int) -> tuple[Shot, ...]:
    """Return the bad requests, made after good ones: same path and host."""
    random = np.random.RandomState(seed)
    photo = like.data[like.body_at :]
    flipped = bytearray(photo)
    for place in random.randint(100, len(photo), 200):
        flipped[place] ^= 1 << random.randint(8)
    bodies = {
        "empty": b"",
        "words": b"this is no picture",
        "noise": random.bytes(20_000),
        "a cut photograph": photo[: len(photo) // 3],
        "a header alone": photo[:40],
        "a picture of 60000x60000": bomb(60_000, 60_000),
        "HTML": b"<!doctype html><script>alert(1)</script>" * 50,
        "a zip": b"PK\x03\x04" + random.bytes(4000),
    }
    bad = [with_body(like, body, name, REFUSED_IMAGE) for name, body in bodies.items()]
    # Flipped bits may still decode, to another picture: any answer but a wrong kind is right.
    bad.append(with_body(like, bytes(flipped), "flipped bits", REFUSED_IMAGE | {200}))
    bad.append(with_body(like, bytes(TOO_LARGE_BYTES), "a body of 70 MiB", REFUSED_SIZE))
    clumsy = [
        replace(shot, name=f"{shot.name}, {behaviour}", behaviour=behaviour, after_s=after_s)
        for shot, behaviour, after_s in (
            (good[0], "leave", 0.0),
            (good[1 % len(good)], "leave", 0.005),
            (good[2 % len(good)], "leave", 0.05),
            (good[3 % len(good)], "slow", 0.5),
            (good[4 % len(good)], "slow", 2.0),
        )
    ]
    return (*bad, *clumsy)


def original(all_shots: Sequence[Shot], number: int) -> int | None:
    """Return the number of the good shot with the same body, whose answer is right for this one; None without."""
    body = all_shots[number].data[all_shots[number].body_at :]
    return next((index for index, shot in enumerate(all_shots[:number]) if shot.data[shot.body_at :] == body), None)


def with_body(like: Shot, body: bytes, name: str, expects: frozenset[int]) -> Shot:
    """Return a shot with the headers of another and a body of its own."""
    lines = like.data[: like.body_at].split(b"\r\n")
    lines = [b"Content-Length: %d" % len(body) if line.lower().startswith(b"content-length") else line
             for line in lines]  # fmt: skip
    head = b"\r\n".join(lines)
    return Shot(name, like.model, head + body, len(head), expects)


def bomb(width: int, height: int) -> bytes:
    """Return a PNG of a few bytes that claims so many pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )
