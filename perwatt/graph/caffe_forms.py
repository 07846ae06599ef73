"""Caffe's layers that only move numbers: Concat, Slice, Split, Flatten, Reshape, Crop, Permute and Tile."""

import math
from itertools import pairwise

from perwatt.graph.caffe_place import Place

MOST_TILES = 4096


def concat(place: Place) -> tuple[str, ...]:
    """Join along `axis`; old files call it concat_dim."""
    parameters = place.parameters("concat_param")
    axis = place.axis(parameters.concat_dim if parameters.HasField("concat_dim") else parameters.axis)
    if len(place.inputs) == 1:
        return place.inputs
    return (place.add("Concat", place.inputs, axis=axis),)


def slice_(place: Place) -> tuple[str, ...]:
    """Cut along `axis` (old: slice_dim) at the slice_points, or into equal parts where there are none."""
    parameters, count = place.parameters("slice_param"), len(place.layer.tops)
    axis = place.axis(parameters.slice_dim if parameters.HasField("slice_dim") else parameters.axis)
    size, points = place.shape()[axis], list(parameters.slice_point)
    if not points and size % count == 0:
        points = [size // count * part for part in range(1, count)]
    edges = [0, *points, size]
    parts = [end - begin for begin, end in pairwise(edges)]
    if len(parts) != count or min(parts) < 1:
        raise place.refusal(
            f"{count - 1} rising slice_points below {size}", str(list(parameters.slice_point)), "correct the prototxt"
        )
    if count == 1:
        return place.inputs
    made = place.builder.add("Split", place.inputs, name=place.new(), outputs=count, axis=axis, split=tuple(parts))
    assert isinstance(made, tuple)
    place.operators.append("Split")
    place.taken.update(made)
    return made


def split(place: Place) -> tuple[str, ...]:
    """The same tensor under several names."""
    return place.inputs * len(place.layer.tops)


def flatten(place: Place) -> tuple[str, ...]:
    """Join the axes from `axis` to `end_axis`."""
    parameters, shape = place.parameters("flatten_param"), place.shape()
    axis, end = place.axis(parameters.axis), place.axis(parameters.end_axis, "end_axis")
    if end < axis:
        raise place.refusal("end_axis from axis up", f"{axis} to {end}", "correct the prototxt")
    if axis == 1 and end == len(shape) - 1:
        return place.inputs if len(shape) == 2 else (place.add("Flatten", place.inputs, axis=1),)
    target = (*shape[:axis], math.prod(shape[axis : end + 1]), *shape[end + 1 :])
    return (place.add("Reshape", place.inputs, shape=target),)


def reshape(place: Place) -> tuple[str, ...]:
    """Give the axes from `axis` on (`num_axes` of them) a new shape: 0 copies a size, one -1 takes what is left."""
    parameters, shape = place.parameters("reshape_param"), place.shape()
    begin = place.axis(parameters.axis, end=True)
    end = len(shape) if parameters.num_axes == -1 else begin + parameters.num_axes
    if not begin <= end <= len(shape):
        raise place.refusal(
            f"num_axes from -1 to {len(shape) - begin}", str(parameters.num_axes), "correct the prototxt"
        )
    middle = list(parameters.shape.dim)
    for position, size in enumerate(middle):
        if size == 0:
            if begin + position >= len(shape):
                raise place.refusal(f"0 only where {shape} has an axis to copy", str(middle), "correct the prototxt")
            middle[position] = shape[begin + position]
    target = [*shape[:begin], *middle, *shape[end:]]
    known = math.prod(size for size in target if size != -1)
    if target.count(-1) == 1 and known > 0 and math.prod(shape) % known == 0:
        target[target.index(-1)] = math.prod(shape) // known
    if min(target, default=1) < 1 or math.prod(target) != math.prod(shape):
        raise place.refusal(
            f"a shape that holds the {math.prod(shape)} numbers of {shape}",
            str(target),
            "correct it, or import with the --batch that it was written for",
        )
    return (place.add("Reshape", place.inputs, shape=tuple(target)),)


def crop(place: Place) -> tuple[str, ...]:
    """Cut the first bottom to the second's sizes from `axis` on, beginning at the offsets."""
    parameters, shape, wanted = place.parameters("crop_param"), place.shape(), place.shape(1)
    axis, offsets = place.axis(parameters.axis), list(parameters.offset)
    count = len(shape) - axis
    offsets = offsets * count if len(offsets) == 1 else offsets or [0] * count
    if len(offsets) != count or len(wanted) != len(shape):
        raise place.refusal(
            f"one offset or {count}, and two bottoms of {len(shape)} axes",
            f"{offsets} and {wanted}",
            "correct the prototxt",
        )
    ends = [offset + size for offset, size in zip(offsets, wanted[axis:], strict=True)]
    if any(end > size for end, size in zip(ends, shape[axis:], strict=True)):
        raise place.refusal(f"a cut within {shape}", f"{wanted[axis:]} from {offsets}", "correct the offsets")
    axes = tuple(range(axis, len(shape)))
    return (place.add("Slice", place.inputs[:1], starts=tuple(offsets), ends=tuple(ends), axes=axes),)


def permute(place: Place) -> tuple[str, ...]:
    """Reorder the axes; those that are not named follow in their order."""
    rank, order = len(place.shape()), list(place.parameters("permute_param").order)
    order += [axis for axis in range(rank) if axis not in order]
    if sorted(order) != list(range(rank)):
        raise place.refusal(f"an order of {rank} axes, each once", str(order), "correct the prototxt")
    return (place.add("Transpose", place.inputs, perm=tuple(order)),)


def tile(place: Place) -> tuple[str, ...]:
    """Repeat along `axis`."""
    parameters = place.parameters("tile_param")
    axis, tiles = place.axis(parameters.axis), parameters.tiles
    if not 1 <= tiles <= MOST_TILES:
        raise place.refusal(f"tiles from 1 to {MOST_TILES}", str(tiles), "correct the prototxt")
    return (place.add("Concat", place.inputs * tiles, axis=axis),)
