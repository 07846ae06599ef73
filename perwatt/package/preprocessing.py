"""From a photograph to a network's input: the one implementation that bench, run, serve and train share.

The definition, in order:
  1. decode (Pillow, first frame), turn upright by its EXIF orientation, ignore colour profiles as trainers do;
  2. to 8-bit RGB: 16-bit samples are divided by 257 and rounded, transparent parts show mid grey (128), which
     normalises to about zero, where black or white would be a strong edge;
  3. resize with antialiasing (Pillow's filters, whose support grows with the reduction) so that the short side
     is `resize_to` and the long side is cut down to whole pixels; then take the centre, rounding half to even.
     A given crop is instead resized straight to `size`;
  4. order the channels, subtract `mean`, multiply by `scale`: float32, channels first.
"""

import struct
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from PIL import Image, ImageOps

from perwatt.errors import InputError

Interpolation = Literal["nearest", "box", "bilinear", "bicubic", "lanczos"]
ChannelOrder = Literal["rgb", "bgr", "grey"]
# A decoded photograph; other rooms name it without importing Pillow.
Photo = Image.Image
Crop = tuple[float, float, float, float]
FILTERS = {name: Image.Resampling[name.upper()] for name in get_args(Interpolation)}
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
    struct.error,
    Image.DecompressionBombError,
)
# Above this a file of a few kilobytes could ask for gigabytes of memory.
MOST_PIXELS = 100_000_000
BEHIND_TRANSPARENCY = (128, 128, 128, 255)


@dataclass(frozen=True)
class Preprocessing:
    """How a photograph becomes an input of one network.

    `size` is (height, width) of the input; `resize_to` is the length that the photograph's short side gets before the
    centre is cut out. The input is (pixel - mean) * scale for pixels 0..255, per channel in `channel_order`.
    Raises InputError when the parts contradict each other.
    """

    size: tuple[int, int]
    resize_to: int
    interpolation: Interpolation
    channel_order: ChannelOrder
    mean: tuple[float, ...]
    scale: tuple[float, ...]

    def __post_init__(self) -> None:
        if min(self.size) < 1 or self.resize_to < min(self.size):
            raise InputError(
                f"preprocessing: expected resize_to of at least the input's short side, got resize_to "
                f"{self.resize_to} for an input of {self.size[0]}x{self.size[1]}; enlarge resize_to"
            )
        if self.interpolation not in FILTERS:
            raise InputError(f"preprocessing: expected one of {', '.join(FILTERS)}, got {self.interpolation!r}")
        if self.channel_order not in get_args(ChannelOrder):
            raise InputError(f"preprocessing: expected rgb, bgr or grey, got {self.channel_order!r}")
        if len(self.mean) != self.channels or len(self.scale) != self.channels:
            raise InputError(
                f"preprocessing: expected {self.channels} means and scales for {self.channel_order}, "
                f"got {len(self.mean)} and {len(self.scale)}"
            )

    @property
    def channels(self) -> int:
        """The number of channels of the input."""
        return 1 if self.channel_order == "grey" else 3


def preprocess(photo: Photo | bytes | Path, how: Preprocessing, crop: Crop | None = None) -> np.ndarray:
    """Return the input made from one photograph: float32 [channels, height, width], contiguous.

    `crop` is (left, top, right, bottom) in pixels of the upright photograph; without it the centre is taken.
    Raises InputError when the photograph cannot be decoded or the crop leaves it.
    """
    image = photo if isinstance(photo, Image.Image) and photo.mode == "RGB" else decode(photo)
    pixels = np.asarray(_resized(image, how, crop), dtype=np.float32)
    if how.channel_order == "grey":
        pixels = pixels[:, :, np.newaxis]
    elif how.channel_order == "bgr":
        pixels = pixels[:, :, ::-1]
    mean = np.asarray(how.mean, dtype=np.float32)
    scale = np.asarray(how.scale, dtype=np.float32)
    return np.ascontiguousarray(((pixels - mean) * scale).transpose(2, 0, 1))


def decode(photo: Photo | bytes | Path, name: str | None = None) -> Photo:
    """Return a photograph upright and as 8-bit RGB.

    `name` stands in messages for a photograph that has no path. Raises InputError when it is no image, is damaged,
    is larger than MOST_PIXELS or has a pixel format without a known range.
    """
    if name is None:
        name = str(photo) if isinstance(photo, Path) else "photograph"
    try:
        image = photo if isinstance(photo, Image.Image) else Image.open(BytesIO(_content(photo)), formats=FORMATS)
        width, height = image.size
        if width * height > MOST_PIXELS:
            raise InputError(
                f"{name}: expected a photograph of at most {MOST_PIXELS:,} pixels, got {width}x{height}; "
                f"make it smaller"
            )
        return _rgb(ImageOps.exif_transpose(image), name)
    except FileNotFoundError as error:
        raise InputError(f"{name}: expected a photograph, there is no such file; check the path") from error
    except DAMAGE as error:
        raise InputError(
            f"{name}: expected a photograph (JPEG, PNG, WebP, AVIF, TIFF, GIF, BMP, PPM), got a file that "
            f"cannot be decoded: {_first_line(error)}; convert or remove it"
        ) from error


def _content(photo: bytes | Path) -> bytes:
    return photo.read_bytes() if isinstance(photo, Path) else photo


def _first_line(error: BaseException) -> str:
    # Pillow names a memory address when nothing recognises the bytes; that tells a person nothing.
    text = (str(error).splitlines() or [type(error).__name__])[0]
    return "no image format recognised" if "BytesIO object" in text else text


def _rgb(image: Photo, name: str) -> Photo:
    if image.mode.startswith("I"):  # 16 bits a pixel, whether Pillow holds them in 16 or in 32
        deep = np.asarray(image).astype(np.int64)
        if deep.min() < 0 or deep.max() > 65535:
            raise InputError(f"{name}: expected 8 or 16 bits a channel, got values up to {deep.max()}; convert it")
        return Image.fromarray(((deep + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise InputError(f"{name}: expected 8 or 16 bits a channel, got floats whose range is unknown; convert it")
    if "transparency" in image.info or image.mode in ("RGBA", "RGBa", "LA", "La", "PA"):
        seen = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", seen.size, BEHIND_TRANSPARENCY), seen).convert("RGB")
    converted = image.convert("RGB")
    converted.load()
    return converted


def _resized(image: Photo, how: Preprocessing, crop: Crop | None) -> Photo:
    height, width = how.size
    if crop is None:
        image = _centre(image, how)
    else:
        left, top, right, bottom = crop
        if not (0 <= left < right <= image.width and 0 <= top < bottom <= image.height):
            raise InputError(
                f"crop: expected left < right <= {image.width} and top < bottom <= {image.height}, got {crop}"
            )
        image = image.resize((width, height), FILTERS[how.interpolation], box=crop)
    return image.convert("L") if how.channel_order == "grey" else image


def _centre(image: Photo, how: Preprocessing) -> Photo:
    height, width = how.size
    # An input that is not square needs each side covered; for a square one this is the short side's rule.
    need_width = how.resize_to * width / min(how.size)
    need_height = how.resize_to * height / min(how.size)
    if need_width * image.height >= need_height * image.width:
        # Integer arithmetic where the input is square: a float's rounding must not cost a pixel.
        whole = (round(need_width), int(round(need_width) * image.height / image.width))
    else:
        whole = (int(round(need_height) * image.width / image.height), round(need_height))
    resized = image if image.size == whole else image.resize(whole, FILTERS[how.interpolation])
    left = round((whole[0] - width) / 2)
    top = round((whole[1] - height) / 2)
    return resized.crop((left, top, left + width, top + height))
