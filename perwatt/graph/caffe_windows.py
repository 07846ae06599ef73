"""Caffe's layers with windows: Convolution, Deconvolution, Pooling and LRN, with Caffe's own rules for the edges."""

from typing import Any

import numpy as np

from perwatt.graph.caffe_format import ENUMS
from perwatt.graph.caffe_place import Place, Step

POOL_METHODS = {number: name for name, number in ENUMS["PoolMethod"].items()}
LARGEST_WINDOW = 2**16


def convolution(place: Place) -> tuple[str, ...]:
    """y = Conv(x) + bias, weights [outputs, channels/group, kernel...]; the size is rounded down."""
    parameters, spatial = _convolution(place)
    outputs, group, channels = int(parameters.num_output), int(parameters.group), place.shape()[1]
    shape = (outputs, channels // group, *spatial["kernel_shape"])
    return (_with_weights(place, "Conv", shape, outputs, {**spatial, "group": group}, bool(parameters.bias_term)),)


def deconvolution(place: Place) -> tuple[str, ...]:
    """y = ConvTranspose(x) + bias, weights [channels, outputs/group, kernel...]: stride·(size-1) + kernel - 2·pad."""
    parameters, spatial = _convolution(place)
    outputs, group, channels = int(parameters.num_output), int(parameters.group), place.shape()[1]
    shape = (channels, outputs // group, *spatial["kernel_shape"])
    return (
        _with_weights(place, "ConvTranspose", shape, outputs, {**spatial, "group": group}, bool(parameters.bias_term)),
    )


def _convolution(place: Place) -> tuple[Any, dict[str, tuple[int, ...]]]:
    parameters = place.parameters("convolution_param")
    rank = len(place.shape()) - 2
    if rank < 1 or place.axis(parameters.axis) != 1:
        raise place.refusal(
            "an input of batch, channels and spatial axes, with axis 1 the channels",
            f"shape {place.shape()} and axis {parameters.axis}",
            "reshape it before this layer",
        )
    outputs, group, channels = parameters.num_output, parameters.group, place.shape()[1]
    if outputs < 1 or group < 1 or channels % group or outputs % group:
        got = f"num_output {outputs}, group {group} and {channels} input channels"
        raise place.refusal("num_output and channels that divide into the groups", got, "correct the prototxt")
    pads = _extents(place, parameters, "pad", rank, 0)
    return parameters, {
        "kernel_shape": _extents(place, parameters, "kernel", rank, None),
        "strides": _extents(place, parameters, "stride", rank, 1),
        "dilations": _extents(place, parameters, "dilation", rank, 1),
        "pads": pads * 2,
    }


def _with_weights(
    place: Place, operator: str, shape: tuple[int, ...], outputs: int, attributes: dict[str, Any], bias: bool
) -> str:
    inputs = [place.inputs[0], place.constant("weight", place.weights(0, shape, "from num_output, channels, kernel"))]
    if bias:
        inputs.append(place.constant("bias", place.weights(1, (outputs,), "the bias; bias_term: false if it has none")))
    return place.add(operator, inputs, **attributes)


def _extents(place: Place, parameters: Any, what: str, rank: int, default: int | None) -> tuple[int, ...]:
    """Return kernel, stride, pad or dilation for each spatial axis, from `what` or from what_h and what_w."""
    whole, high, wide = ("kernel_size" if what == "kernel" else what), f"{what}_h", f"{what}_w"
    given = getattr(parameters, whole)
    sizes = list(given) if hasattr(given, "append") else [given] if parameters.HasField(whole) else []
    sides = [name for name in (high, wide) if what != "dilation" and parameters.HasField(name)]
    if sides and sizes:
        raise place.refusal(f"{whole}, or {high} and {wide}", "all of them", "remove one form")
    if sides:
        if rank != 2 or (len(sides) != 2 and what != "pad"):
            raise place.refusal(
                f"{high} and {wide} of two spatial axes", f"{' and '.join(sides)}, {rank} axes", f"use {whole}"
            )
        sizes = [getattr(parameters, high), getattr(parameters, wide)]
    if not sizes:
        if default is None:
            raise place.refusal(f"a {whole}", "none", "add it to the prototxt")
        sizes = [default]
    sizes = sizes * rank if len(sizes) == 1 else sizes
    least = 0 if what == "pad" else 1
    if len(sizes) != rank or min(sizes) < least or max(sizes) > LARGEST_WINDOW:
        raise place.refusal(
            f"{whole} from {least} to {LARGEST_WINDOW}, one or {rank}", str(sizes), "correct the prototxt"
        )
    return tuple(int(size) for size in sizes)


def pooling(place: Place) -> tuple[str, ...]:
    """MaxPool or AveragePool with Caffe's sizes: rounded up, but no window starts in the padding behind the image.

    An average divides by the part of the window that lies within the padded image (Caffe's pooling layer).
    """
    parameters = place.parameters("pooling_param")
    method = POOL_METHODS.get(parameters.pool, str(parameters.pool))
    if method not in ("MAX", "AVE"):
        raise place.refusal("pool MAX or AVE", method, "train with one of these")
    if len(place.shape()) != 4:
        raise place.refusal("an input of batch, channels, height and width", f"shape {place.shape()}", "reshape it")
    if parameters.global_pooling:
        if any(parameters.HasField(name) for name in ("kernel_size", "kernel_h", "kernel_w")):
            raise place.refusal("global_pooling without a kernel", "both", "remove the kernel")
        return (place.add("GlobalMaxPool" if method == "MAX" else "GlobalAveragePool", place.inputs[:1]),)
    kernel = _extents(place, parameters, "kernel", 2, None)
    strides, pads = _extents(place, parameters, "stride", 2, 1), _extents(place, parameters, "pad", 2, 0)
    if any(pad >= size for pad, size in zip(pads, kernel, strict=True)):
        raise place.refusal("pads below the kernel", f"pad {pads}, kernel {kernel}", "correct the prototxt")
    floor = bool(parameters.round_mode)
    return (windows(place, place.inputs[0], method, kernel, strides, pads, floor=floor),)


def windows(
    place: Place,
    data: str,
    method: str,
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    pads: tuple[int, ...],
    *,
    floor: bool = False,
    part: str = "",
) -> str:
    """Add a pool over `data`; returns its output."""
    sizes = place.builder.shape(data)[2:]
    overhang = False  # beyond the padding behind the image
    behind = list(pads)  # padding behind the image with which the windows fit, but for what hangs over
    beyond = [0, 0]  # so many rows and columns that a window lies wholly behind the image
    for axis, (size, width, stride, pad) in enumerate(zip(sizes, kernel, strides, pads, strict=True)):
        span = size + 2 * pad - width
        if span < 0:
            raise place.refusal(f"windows within {size} + 2 x {pad}", f"kernel {width}", "is the input too small?")
        count = span // stride if floor else -(-span // stride)
        if any(pads) and count * stride >= size + pad:
            count -= 1
        if count * stride > span:
            overhang = True
        else:
            behind[axis] = count * stride + width - size - pad
        beyond[axis] = max(0, count * stride + 1 - size - pad)
    attributes: dict[str, object] = {"kernel_shape": kernel, "strides": strides}
    if any(beyond):
        # Only without padding, where the stride is larger than the kernel. Caffe's maximum of nothing is -FLT_MAX, its
        # average of nothing is no number.
        if method == "AVE":
            raise place.refusal(
                "windows that reach into the image",
                "an average over a window behind it",
                "round_mode: FLOOR in Caffe and here leaves it out",
            )
        lowest = float(np.finfo(np.float32).min)
        data = place.add("Pad", (data,), f"{part}pad", pads=(0, 0, 0, 0, 0, 0, *beyond), value=lowest)
        return place.add("MaxPool", (data,), part, **attributes, ceil_mode=1)
    if method == "MAX":
        return place.add("MaxPool", (data,), part, **attributes, pads=pads * 2, ceil_mode=int(overhang))
    if overhang and any(pads):
        # Runtimes differ on whether an average counts what hangs over the padding; padded before, none is in doubt.
        data = place.add("Pad", (data,), f"{part}pad", pads=(0, 0, *pads, 0, 0, *behind))
        return place.add("AveragePool", (data,), part, **attributes, ceil_mode=1)
    counted = int(any(pads))
    return place.add(
        "AveragePool", (data,), part, **attributes, pads=pads * 2, ceil_mode=int(overhang), count_include_pad=counted
    )


def local_response(place: Place) -> tuple[str, ...]:
    """Across channels y = x / (k + alpha/n · sum)^beta; within one y = x / (1 + alpha · mean)^beta, of squares both.

    The mean within a channel is over n x n pixels, the padding's zeros among them; `k` has no part in it.
    """
    parameters = place.parameters("lrn_param")
    size, alpha, beta = int(parameters.local_size), float(parameters.alpha), float(parameters.beta)
    if size % 2 == 0 or size > LARGEST_WINDOW or len(place.shape()) != 4:
        got = f"local_size {size}, an input of shape {place.shape()}"
        raise place.refusal("an odd local_size and four axes", got, "correct the prototxt")
    data = place.inputs[0]
    if parameters.norm_region == ENUMS["NormRegion"]["ACROSS_CHANNELS"]:
        return (place.add("LRN", (data,), size=size, alpha=alpha, beta=beta, bias=float(parameters.k)),)
    square = place.add("Mul", (data, data), "square")
    mean = windows(place, square, "AVE", (size, size), (1, 1), ((size - 1) // 2,) * 2, part="mean")
    steps: tuple[Step, ...] = (("Mul", (alpha,), {}), ("Add", (1.0,), {}), ("Pow", (-beta,), {}), ("Mul", (data,), {}))
    return (place.chain(mean, *steps),)
