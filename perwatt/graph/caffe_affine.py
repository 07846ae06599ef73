"""Caffe's layers that multiply and add: InnerProduct, BatchNorm, Scale, Bias and PReLU."""

import math

import numpy as np

from perwatt.graph.caffe_place import Place

NORMALIZATION_BLOBS = "mean, variance and their factor"


def inner_product(place: Place) -> tuple[str, ...]:
    """y = x · Wᵀ + bias over all axes from `axis` on; W is [outputs, inputs], with `transpose` [inputs, outputs]."""
    parameters = place.parameters("inner_product_param")
    outputs, axis, shape = int(parameters.num_output), place.axis(parameters.axis), place.shape()
    if outputs < 1 or axis < 1:
        raise place.refusal(
            "num_output from 1 up and an axis behind the batch", f"{outputs} and {axis}", "correct the prototxt"
        )
    inputs = math.prod(shape[axis:])
    stored = (inputs, outputs) if parameters.transpose else (outputs, inputs)
    weights = place.weights(0, stored, f"num_output and the {inputs} inputs")
    weights = weights.T if parameters.transpose else weights
    bias = place.weights(1, (outputs,), "the bias; bias_term: false if it has none") if parameters.bias_term else None
    data = place.inputs[0]
    if axis == 1:
        if len(shape) > 2:
            data = place.add("Flatten", (data,), "flat", axis=1)
        parts = [data, place.constant("weight", weights)]
        if bias is not None:
            parts.append(place.constant("bias", bias))
        return (place.add("Gemm", parts, transB=1),)
    if axis < len(shape) - 1:
        data = place.add("Reshape", (data,), "flat", shape=(*shape[:axis], inputs))
    matrix = place.constant("weight", weights.T)
    if bias is None:
        return (place.add("MatMul", (data, matrix)),)
    product = place.add("MatMul", (data, matrix), "product")
    return (place.add("Add", (product, place.constant("bias", bias))),)


def batch_normalization(place: Place) -> tuple[str, ...]:
    """y = (x - mean) / sqrt(variance + eps), and the Scale layer behind it, where there is one, in the same node.

    Mean and variance are stored times a factor, the third blob; where that is 0, both are 0 (Caffe's own rule).
    NVIDIA's fork keeps a scale and a shift of its own in a fourth and a fifth blob.
    """
    parameters = place.parameters("batch_norm_param")
    if not parameters.use_global_stats:
        raise place.refusal(
            "use_global_stats: true",
            "false, which answers by the other images of a batch",
            "remove it from the prototxt to use the mean and variance that training kept",
        )
    channels = place.shape()[1] if len(place.shape()) > 1 else 1
    factor = float(place.weights(2, (1,), NORMALIZATION_BLOBS)[0])
    share = 1 / factor if factor else 0.0
    mean, variance = (
        (place.weights(at, (channels,), NORMALIZATION_BLOBS).astype(np.float64) * share).astype(np.float32)
        for at in (0, 1)
    )
    scale, shift = np.ones(channels, np.float32), np.zeros(channels, np.float32)
    if place.blobs is not None and len(place.blobs) == 5:
        scale, shift = (place.weights(at, (channels,), "NVIDIA's scale and shift") for at in (3, 4))
    elif place.follower is not None:
        scale, shift = _scale_and_shift(place.follower, (channels,))
    parts = {"scale": scale, "bias": shift, "mean": mean, "variance": variance}
    names = [place.constant(name, array) for name, array in parts.items()]
    return (place.add("BatchNormalization", (place.inputs[0], *names), epsilon=float(parameters.eps)),)


def taken_in(place: Place) -> bool:
    """Return whether a Scale layer can become part of the BatchNorm before it: one number for each channel."""
    parameters = place.parameters("scale_param")
    return len(place.layer.bottoms) == 1 and parameters.axis == 1 and parameters.num_axes == 1


def _scale_and_shift(place: Place, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    scale = place.weights(0, shape, "the scale")
    if place.parameters("scale_param").bias_term:
        return scale, place.weights(1, shape, "the shift, from bias_term")
    return scale, np.zeros(shape, np.float32)


def scale(place: Place) -> tuple[str, ...]:
    """y = x · scale + shift, the scale being learned or the second bottom, spread over the axes behind its own."""
    parameters = place.parameters("scale_param")
    axis = place.axis(parameters.axis)
    data = place.inputs[0]
    if len(place.inputs) == 2:
        shape = place.shape(1)
        factor = spread(place, axis)
        shift = place.weights(0, shape, "the shift, from bias_term") if parameters.bias_term else None
    else:
        shape = _learned_shape(place, axis, parameters.num_axes)
        learned, moved = _scale_and_shift(place, shape)
        factor = place.constant("scale", _spread_array(place, axis, learned))
        shift = moved if parameters.bias_term else None
    if shift is None:
        return (place.add("Mul", (data, factor)),)
    product = place.add("Mul", (data, factor), "product")
    return (place.add("Add", (product, place.constant("bias", _spread_array(place, axis, shift)))),)


def bias(place: Place) -> tuple[str, ...]:
    """y = x + shift, the shift being learned or the second bottom, spread over the axes behind its own."""
    parameters = place.parameters("bias_param")
    axis = place.axis(parameters.axis)
    if len(place.inputs) == 2:
        return (place.add("Add", (place.inputs[0], spread(place, axis))),)
    learned = place.weights(0, _learned_shape(place, axis, parameters.num_axes), "the shift")
    return (place.add("Add", (place.inputs[0], place.constant("bias", _spread_array(place, axis, learned)))),)


def _learned_shape(place: Place, axis: int, count: int) -> tuple[int, ...]:
    shape = place.shape()
    if count < -1 or axis + count > len(shape):
        raise place.refusal(f"num_axes from -1 to {len(shape) - axis}", str(count), "correct the prototxt")
    return shape[axis:] if count == -1 else shape[axis : axis + count]


def _spread_array(place: Place, axis: int, array: np.ndarray) -> np.ndarray:
    """Return the array with an axis of size 1 for each axis of the input behind those that it covers."""
    return array.reshape(*array.shape, *(1,) * (len(place.shape()) - axis - array.ndim))


def spread(place: Place, axis: int) -> str:
    """Return the second bottom with an axis of size 1 for each axis of the first behind those that it covers."""
    whole, part = place.shape(), place.shape(1)
    if whole[axis : axis + len(part)] != part:
        raise place.refusal(
            f"a second bottom like the axes from {axis} of {whole}", f"shape {part}", "correct the axis"
        )
    missing = len(whole) - axis - len(part)
    if not missing:
        return place.inputs[1]
    axes = tuple(range(len(part), len(part) + missing))
    return place.add("Unsqueeze", place.inputs[1:2], "spread", axes=axes)


def prelu(place: Place) -> tuple[str, ...]:
    """y = x above 0 and slope · x below, one slope for each channel or for all."""
    channels = 1 if place.parameters("prelu_param").channel_shared else place.shape()[1]
    slope = place.weights(0, (channels,), "a slope for each channel, or one with channel_shared")
    shape = (channels, *(1,) * (len(place.shape()) - 2))
    return (place.add("PRelu", (place.inputs[0], place.constant("slope", slope.reshape(shape)))),)
