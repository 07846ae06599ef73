"""What a Caffe network is fed: the shapes of its inputs, and what its data layers did to pixels before."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from perwatt.errors import InputError, NetworkError
from perwatt.graph.builder import Builder
from perwatt.graph.caffe_layers import is_source
from perwatt.graph.caffe_upgrade import Layer

LARGEST_SIZE = 2**31 - 1
MOST_AXES = 32


@dataclass(frozen=True)
class Reading:
    """What a data layer did to pixels: (pixel - mean) · scale; None and () where the file does not say."""

    layer: str
    scale: float
    mean_values: tuple[float, ...]
    mean_file: str | None
    crop: int | None


def reading_of(layers: Sequence[Layer]) -> Reading | None:
    """Return what the first data layer that transforms pixels does, None where there is none (a deploy file)."""
    for layer in layers:
        if is_source(layer.type) and layer.parameters.HasField("transform_param"):
            given = layer.parameters.transform_param
            mean_file = given.mean_file or None
            return Reading(layer.name, given.scale, tuple(given.mean_value), mean_file, given.crop_size or None)
    return None


def declared_shape(layer: Layer, position: int) -> tuple[int, ...] | None:
    """Return the shape that a source layer itself gives to one of its tops, None where it gives none."""
    if layer.type == "Input":
        shapes = layer.parameters.input_param.shape
        if not shapes:
            return None
        if len(shapes) not in (1, len(layer.tops)):
            raise NetworkError(
                f"Input layer {layer.name!r}: expected one shape or {len(layer.tops)}, got {len(shapes)}"
            )
        return tuple(shapes[min(position, len(shapes) - 1)].dim)
    if layer.type == "MemoryData" and layer.parameters.HasField("memory_data_param") and position == 0:
        given = layer.parameters.memory_data_param
        return (given.batch_size, given.channels, given.height, given.width)
    if layer.type == "DummyData":
        given = layer.parameters.dummy_data_param
        if given.shape:
            return tuple(given.shape[min(position, len(given.shape) - 1)].dim)
        rows = [list(getattr(given, name)) for name in ("num", "channels", "height", "width")]
        return tuple(row[min(position, len(row) - 1)] for row in rows) if all(rows) else None
    return None


def read_shape(layer: Layer, channels: int | None) -> tuple[int, ...] | None:
    """Return [1, channels, height, width] of pictures that a data layer reads and crops, None if it does not tell."""
    given = layer.parameters.transform_param
    sizes = (given.crop_size, given.crop_size)
    if layer.type == "ImageData" and not given.crop_size:
        sizes = (layer.parameters.image_data_param.new_height, layer.parameters.image_data_param.new_width)
    if given.force_gray or (layer.type == "ImageData" and not layer.parameters.image_data_param.is_color):
        channels = 1
    elif given.force_color or len(given.mean_value) > 1:
        channels = 3
    return (1, channels, *sizes) if channels and min(sizes) > 0 else None


def checked_shape(
    name: str, shape: tuple[int, ...] | None, asked: tuple[int, ...] | None, batch: int | None
) -> tuple[int, ...]:
    """Return an input's shape with what the caller asks for: [channels, height, width] and the batch.

    Raises NetworkError when the file gives none and the caller neither, InputError when theirs cannot be used.
    """
    if asked is not None:
        if not 1 <= len(asked) <= 4:
            raise InputError(f"input: expected channels, height and width such as 3,227,227, got {asked}")
        shape = asked if len(asked) == 4 else (shape[0] if shape else 1, *asked)
    if shape is None:
        raise NetworkError(f"input {name!r}: expected a shape in the prototxt, got none; add --input 3,227,227")
    if batch is not None and len(shape) > 1:
        shape = (batch, *shape[1:])
    if min(shape, default=1) < 1 or math.prod(shape) > LARGEST_SIZE or len(shape) > MOST_AXES:
        raise NetworkError(
            f"input {name!r}: expected sizes from 1 up and at most {LARGEST_SIZE} numbers, got {shape}; correct them"
        )
    return tuple(int(size) for size in shape)


def subtract_mean(builder: Builder, data: str, mean: np.ndarray, scale: float) -> str:
    """Add (x - mean) · scale behind an input; a mean image larger than it is cut to its centre, as Caffe cuts both.

    mean: [channels] or [channels, height, width]. Raises NetworkError when it does not fit.
    """
    shape = builder.shape(data)
    if mean.ndim == 1:
        mean = mean[:, None, None]
    fits = len(shape) == 4 and mean.shape[0] == shape[1]
    if fits and mean.shape[1:] != (1, 1):
        top, left = ((have - want) // 2 for have, want in zip(mean.shape[1:], shape[2:], strict=True))
        fits = top >= 0 and left >= 0
        mean = mean[:, max(0, top) : max(0, top) + shape[2], max(0, left) : max(0, left) + shape[3]]
    if not fits:
        raise NetworkError(
            f"the mean: expected a mean image of at least {shape[1:]}, the input {data!r}, got "
            f"{mean.shape}; use --mean-as values, or another file"
        )
    centred = builder.add("Sub", (data, builder.constant(f"{data}.mean", mean[None])), name=f"{data}/mean")
    if scale != 1:
        by = builder.constant(f"{data}.scale", np.float32(scale))
        centred = builder.add("Mul", (str(centred), by), name=f"{data}/scale")
    return str(centred)
