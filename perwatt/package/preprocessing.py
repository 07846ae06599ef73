"""From a photograph to a network's input: the one implementation that bench, run, serve and train share.

The definition, in order:
  1. decode to upright 8-bit RGB (photograph.py defines every case);
  2. resize with antialiasing (Pillow's filters, whose support grows with the reduction) and cut out the centre, by
     one of three rules:
       "short-side"  both sides by one factor so that the short side is `resize_to`; the long side is cut down to
                     whole pixels; then the centre, rounding half to even
       "squash"      both sides to `resize_to`, whatever the photograph's shape, then the centre
       "crop"        the centre's box is cut from the photograph first, `size` / `resize_to` of the largest box of the
                     input's shape, in fractions of pixels; then resized straight to `size`
     For an input that is not square `resize_to` is the length of its short side's direction, and the other follows its
     shape. A given crop is instead resized straight to `size`;
  3. grey is 0.299 red + 0.587 green + 0.114 blue (ITU-R BT.601), rounded;
  4. order the channels, subtract `mean`, multiply by `scale`: float32, channels first.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from PIL import Image

from perwatt.errors import InputError, PhotographRefused
from perwatt.package.photograph import (
    FORMATS,
    LIMITS,
    MOST_PIXELS,
    Header,
    Limits,
    Photo,
    Shrink,
    decode,
    image_format,
    image_header,
)

__all__ = [
    "FORMATS",
    "LIMITS",
    "MOST_PIXELS",
    "ChannelOrder",
    "Crop",
    "Header",
    "Interpolation",
    "Limits",
    "Photo",
    "Preprocessing",
    "Resize",
    "Shrink",
    "decode",
    "image_format",
    "image_header",
    "preprocess",
]

Interpolation = Literal["nearest", "box", "bilinear", "bicubic", "lanczos"]
ChannelOrder = Literal["rgb", "bgr", "grey"]
Resize = Literal["short-side", "squash", "crop"]
Crop = tuple[float, float, float, float]
FILTERS = {name: Image.Resampling[name.upper()] for name in get_args(Interpolation)}
MOST_SIDE = 8192


@dataclass(frozen=True)
class Preprocessing:
    """How a photograph becomes an input of one network.

    `size` is (height, width) of the input; `resize_to` is the length that the photograph's short side gets before the
    centre is cut out; `resize` is the rule. The input is (pixel - mean) * scale for pixels 0..255, per channel in
    `channel_order`. Raises InputError when the parts contradict each other.
    """

    size: tuple[int, int]
    resize_to: int
    interpolation: Interpolation
    channel_order: ChannelOrder
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    resize: Resize = "short-side"

    def __post_init__(self) -> None:
        if min(self.size) < 1 or self.resize_to < min(self.size):
            raise InputError(
                f"preprocessing: expected resize_to of at least the input's short side, got resize_to "
                f"{self.resize_to} for an input of {self.size[0]}x{self.size[1]}; enlarge resize_to"
            )
        if max(*self.size, self.resize_to) > MOST_SIDE:
            raise InputError(
                f"preprocessing: expected sides of at most {MOST_SIDE}, got {self.size[0]}x{self.size[1]} and "
                f"resize_to {self.resize_to}; use a smaller input"
            )
        for what, given, known in (
            ("interpolation", self.interpolation, get_args(Interpolation)),
            ("channel_order", self.channel_order, get_args(ChannelOrder)),
            ("resize", self.resize, get_args(Resize)),
        ):
            if given not in known:
                raise InputError(f"preprocessing: {what}: expected one of {', '.join(known)}, got {given!r}")
        if len(self.mean) != self.channels or len(self.scale) != self.channels:
            raise InputError(
                f"preprocessing: expected {self.channels} means and scales for {self.channel_order}, "
                f"got {len(self.mean)} and {len(self.scale)}"
            )
        if not all(map(math.isfinite, (*self.mean, *self.scale))) or 0 in self.scale:
            raise InputError(
                f"preprocessing: expected finite means and scales that are not 0, got {self.mean} and {self.scale}"
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


def _resized(image: Photo, how: Preprocessing, crop: Crop | None) -> Photo:
    height, width = how.size
    if crop is not None:
        left, top, right, bottom = crop
        if not (0 <= left < right <= image.width and 0 <= top < bottom <= image.height):
            raise InputError(
                f"crop: expected left < right <= {image.width} and top < bottom <= {image.height}, got {crop}"
            )
        image = image.resize((width, height), FILTERS[how.interpolation], box=crop)
    elif how.resize == "crop":
        image = image.resize((width, height), FILTERS[how.interpolation], box=_centre_box(image, how))
    else:
        image = _centre(image, how)
    return image.convert("L") if how.channel_order == "grey" else image


def _centre_box(image: Photo, how: Preprocessing) -> Crop:
    """Return the box around the centre that rule "crop" takes, in the input's shape."""
    height, width = how.size
    part = min(image.width / width, image.height / height) * min(how.size) / how.resize_to
    across, down = min(part * width, image.width), min(part * height, image.height)
    left, top = (image.width - across) / 2, (image.height - down) / 2
    return max(left, 0.0), max(top, 0.0), min(left + across, image.width), min(top + down, image.height)


def _centre(image: Photo, how: Preprocessing) -> Photo:
    height, width = how.size
    # An input that is not square needs each side covered; for a square one this is the short side's rule.
    need_width = how.resize_to * width / min(how.size)
    need_height = how.resize_to * height / min(how.size)
    if how.resize == "squash":
        whole = (round(need_width), round(need_height))
    elif need_width * image.height >= need_height * image.width:
        # Integer arithmetic where the input is square: a float's rounding must not cost a pixel.
        whole = (round(need_width), int(round(need_width) * image.height / image.width))
    else:
        whole = (int(round(need_height) * image.width / image.height), round(need_height))
    if whole[0] * whole[1] > MOST_PIXELS:  # a sliver of few pixels would be blown up to gigabytes
        raise PhotographRefused(
            f"photograph: expected at most {MOST_PIXELS:,} pixels after resizing, got {image.width}x{image.height}, "
            f"which becomes {whole[0]}x{whole[1]}; cut it to a usual shape",
            "pixels",
        )
    resized = image if image.size == whole else image.resize(whole, FILTERS[how.interpolation])
    left = round((whole[0] - width) / 2)
    top = round((whole[1] - height) / 2)
    return resized.crop((left, top, left + width, top + height))
