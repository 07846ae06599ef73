"""A photograph: from a file's bytes, which may be hostile, to upright 8-bit RGB pixels, defined case by case.

format        those of FORMATS; told by the first bytes, never by the file's name
limits        bytes, then pixels as the header says, before anything of that size is allocated; then scans and frames
frames        the first; the further pictures that phones put behind a JPEG (MPO) are no frames
orientation   turned upright as EXIF says
colour        samples are taken as they are: embedded ICC profiles are ignored, as trainers do
CMYK          red = (255 - cyan) (255 - black) / 255, green and blue alike, rounded; inverted Adobe files are righted
palette       its entries; greyscale: the grey in all three channels; 1 bit: black and white
16 bits       the high byte of each sample, for colour and greyscale alike (PPM: sample * 255 / greatest, rounded)
transparency  composited over mid grey (128), which normalises to about zero, where black or white would be an edge;
              a single colour that a PNG of 16 bits declares transparent is taken as it is
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from perwatt.errors import InputError, PhotographRefused

# A decoded photograph; other rooms name it without importing Pillow.
Photo = Image.Image
# From a photograph's upright width and height to the part of its sides at which a JPEG may be decoded: 1, 2, 4 or 8.
Shrink = Callable[[int, int], int]
_ORIENTATION, _LYING = 0x0112, (5, 6, 7, 8)
# A closed list: Pillow's other readers include some that start outside programs (EPS) or are rarely tested.
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "PPM", "AVIF")
# What Pillow's decoders raise on damaged bytes, as found by flipping some.
DAMAGE = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    TypeError,
    RuntimeError,
    KeyError,
    IndexError,
    OverflowError,
    ZeroDivisionError,
    AttributeError,
    MemoryError,
    struct.error,
    Image.DecompressionBombError,
)
# A progressive JPEG comes in about ten scans. One of 40 bytes has the decoder walk over every pixel: a small file
# could keep it busy for hours. In a JPEG's data this pair of bytes begins a scan and is nothing else.
MOST_SCANS = 100
_SCAN = b"\xff\xda"
# Above this a file of a few kilobytes could ask for gigabytes of memory. Pillow itself warns from here on.
MOST_PIXELS = 89_000_000
BEHIND_TRANSPARENCY = (128, 128, 128, 255)


@dataclass(frozen=True)
class Limits:
    """The most of a photograph that is accepted; None: any number of frames, of which the first is taken."""

    formats: tuple[str, ...] = FORMATS
    most_bytes: int = 1 << 30
    most_pixels: int = MOST_PIXELS
    most_frames: int | None = None


@dataclass(frozen=True)
class Header:
    """What a photograph's header says: its format as in FORMATS, its size as stored, its frames."""

    format: str
    width: int
    height: int
    frames: int


LIMITS = Limits()


def image_header(content: bytes, limits: Limits = LIMITS, name: str = "photograph") -> Header:
    """Return a photograph's header without decoding its pixels.

    Raises PhotographRefused when it is none of the formats, damaged, or beyond a limit.
    """
    image, frames = _opened(content, limits, name, count=True)
    return Header("JPEG" if image.format == "MPO" else str(image.format), image.width, image.height, frames)


def decode(
    photo: Photo | bytes | Path, name: str | None = None, limits: Limits = LIMITS, shrink: Shrink | None = None
) -> Photo:
    """Return a photograph upright and as 8-bit RGB.

    `name` stands in messages for a photograph that has no path. With `shrink` a JPEG is decoded at a half, a quarter or
    an eighth of its sides, rounded up, from fewer coefficients of its cosine transform: other pixels than those of the
    definition, and several times as fast. Only what cuts parts out at random may ask for that. Raises InputError when
    there is no such file, PhotographRefused when it is no image, damaged, beyond a limit or of a pixel format without a
    known range.
    """
    if name is None:
        name = str(photo) if isinstance(photo, Path) else "photograph"
    if isinstance(photo, Image.Image):
        image = photo
        _check_pixels(*image.size, limits, name)
    else:
        image, _ = _opened(_content(photo, name), limits, name, count=limits.most_frames is not None)
    try:
        if any(";16" in str(tile) for tile in getattr(image, "tile", ())):
            # Pillow keeps the high byte of the pixels and compares it with the low byte of the transparent colour.
            image.info.pop("transparency", None)
        if shrink is not None and image.format in ("JPEG", "MPO"):
            turn = image.getexif().get(_ORIENTATION, 1)
            part = shrink(*(image.size[::-1] if turn in _LYING else image.size))
            # The last pixel may stand for a part of the others' width; turned to the front it would shift them all.
            while turn != 1 and (image.width % part or image.height % part):
                part //= 2
            image.draft(None, (max(1, image.width // part), max(1, image.height // part)))
        return _rgb(ImageOps.exif_transpose(image), name)
    except DAMAGE as error:
        raise _damaged(name, error) from error


def image_format(content: bytes) -> str:
    """Return the usual ending for an image's bytes, by their beginning: jpeg, png, ...; "bin" for anything else."""
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "webp"
    if content[4:12] in (b"ftypavif", b"ftypavis"):
        return "avif"
    for magic, ending in _MAGIC:
        if content.startswith(magic):
            return ending
    return "bin"


_MAGIC = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
    (b"II*\x00", "tiff"),
    (b"MM\x00*", "tiff"),
    *((b"P" + digit, "ppm") for digit in (b"1", b"2", b"3", b"4", b"5", b"6")),
)


def _content(photo: bytes | Path, name: str) -> bytes:
    if isinstance(photo, bytes):
        return photo
    try:
        return photo.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{name}: expected a photograph, there is no such file; check the path") from error
    except OSError as error:
        raise InputError(f"{name}: expected a readable photograph, got: {error.strerror}; check the file") from error


def _opened(content: bytes, limits: Limits, name: str, count: bool) -> tuple[Photo, int]:
    """Return an image that is not decoded yet, and its frames if they are to be counted, which reads the whole file."""
    if len(content) > limits.most_bytes:
        raise PhotographRefused(
            f"{name}: expected a photograph of at most {limits.most_bytes:,} bytes, got {len(content):,}; "
            f"make it smaller",
            "bytes",
        )
    canvas = _webp_canvas(content)
    if canvas is not None:  # the WebP decoder allocates its canvas as soon as a file is opened
        _check_pixels(*canvas, limits, name)
    try:
        image = Image.open(BytesIO(content), formats=limits.formats)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PhotographRefused(
            f"{name}: expected a photograph of at most {limits.most_pixels:,} pixels: {_first_line(error)}", "pixels"
        ) from error
    except UnidentifiedImageError as error:
        known = image_format(content).upper()
        read = ", ".join(limits.formats)
        got = f"{known}, which is not read here" if known in FORMATS and known not in limits.formats else None
        if got is None and known in limits.formats:
            raise _damaged(name, error) from error
        raise PhotographRefused(
            f"{name}: expected a photograph ({read}), got {got or 'no image format recognised'}; convert or remove it",
            "format",
        ) from error
    except DAMAGE as error:
        raise _damaged(name, error) from error
    _check_pixels(*image.size, limits, name)
    if image.format in ("JPEG", "MPO") and (scans := content.count(_SCAN)) > MOST_SCANS:
        raise PhotographRefused(
            f"{name}: expected a JPEG of at most {MOST_SCANS} scans, got {scans}; store it anew", "scans"
        )
    try:
        frames = int(getattr(image, "n_frames", 1)) if count and image.format != "MPO" else 1
        image.seek(0)
    except DAMAGE as error:
        raise _damaged(name, error) from error
    if limits.most_frames is not None and frames > limits.most_frames:
        raise PhotographRefused(
            f"{name}: expected at most {limits.most_frames} frames, got {frames}; give single pictures", "frames"
        )
    return image, frames


def _webp_canvas(content: bytes) -> tuple[int, int] | None:
    """Return the size that a WebP file's first chunk states (RFC 9649), None when it is none or too short."""
    if image_format(content) != "webp" or len(content) < 30:
        return None
    chunk, body = content[12:16], content[20:30]
    if chunk == b"VP8X":
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if chunk == b"VP8 ":
        return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF
    if chunk == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return None


def _check_pixels(width: int, height: int, limits: Limits, name: str) -> None:
    if width * height > limits.most_pixels:
        raise PhotographRefused(
            f"{name}: expected a photograph of at most {limits.most_pixels:,} pixels, got {width}x{height}; "
            f"make it smaller",
            "pixels",
        )


def _damaged(name: str, error: BaseException) -> PhotographRefused:
    return PhotographRefused(
        f"{name}: expected a photograph (JPEG, PNG, WebP, AVIF, TIFF, GIF, BMP, PPM), got a file that "
        f"cannot be decoded: {_first_line(error)}; convert or remove it",
        "damaged",
    )


def _first_line(error: BaseException) -> str:
    # Pillow names a memory address when nothing recognises the bytes; that tells a person nothing.
    text = (str(error).splitlines() or [type(error).__name__])[0]
    return "no image format recognised" if "BytesIO object" in text else text


def _rgb(image: Photo, name: str) -> Photo:
    if image.mode.startswith("I"):  # 16 bits a pixel, whether Pillow holds them in 16 or in 32
        deep = np.asarray(image).astype(np.int64)
        if deep.min() < 0 or deep.max() > 65535:
            raise PhotographRefused(
                f"{name}: expected 8 or 16 bits a channel, got values from {deep.min()} to {deep.max()}; convert it",
                "format",
            )
        return Image.fromarray((deep >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise PhotographRefused(
            f"{name}: expected 8 or 16 bits a channel, got floats whose range is unknown; convert it", "format"
        )
    if "transparency" in image.info or image.mode in ("RGBA", "RGBa", "LA", "La", "PA"):
        seen = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", seen.size, BEHIND_TRANSPARENCY), seen).convert("RGB")
    converted = image.convert("RGB")
    converted.load()
    return converted
