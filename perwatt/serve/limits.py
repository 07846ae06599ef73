"""Everything the front refuses by size, number or time, in one frozen value."""

from dataclasses import dataclass

MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class HttpLimits:
    """What one client and all clients together may ask of the front.

    Sizes in bytes, times in seconds. `body_bytes` bounds a whole request, `json_bytes` its JSON part (which is parsed
    on the event loop), `image_bytes` and `pixels` one photograph; `held_bytes` bounds all bodies received and not yet
    answered, `requests` their number, `connections` open connections. A body must arrive within `receive_s` plus its
    length over `least_bytes_per_s`, a header within `header_s`; a connection without requests is closed after `idle_s`.
    """

    body_bytes: int = 64 * MEBIBYTE
    json_bytes: int = 16 * MEBIBYTE
    image_bytes: int = 20 * MEBIBYTE
    pixels: int = 25_000_000
    frames: int = 1
    formats: tuple[str, ...] = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "GIF", "PPM", "TIFF")
    header_bytes: int = 16 * 1024
    images_per_request: int = 128
    requests: int = 1024
    held_bytes: int = 1024 * MEBIBYTE
    connections: int = 4096
    event_streams: int = 32
    header_s: float = 10.0
    receive_s: float = 10.0
    least_bytes_per_s: float = 64 * 1024
    idle_s: float = 75.0
    longest_deadline_s: float = 60.0
