"""Every type of Caffe layer by itself: against its formula in float64, and against OpenCV where it has the layer."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from caffe_files import Name, Net
from caffe_oracles import difference, pictures, run_graph, run_opencv
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_oracles import EPSILON

import perwatt
from perwatt.errors import NetworkError
from perwatt.graph import read, write
from perwatt.graph.caffe_layers import LAYERS
from perwatt.graph.caffe_reader import read_caffe

RANDOM = np.random.default_rng(11)
FLOAT_MAX = float(np.finfo(np.float32).max)
Blobs = list[np.ndarray]
Array = np.ndarray


@dataclass
class Case:
    """One layer: its parameters, its blobs, the shapes that it reads, and its formula in float64."""

    type: str
    formula: Callable[..., Any]  # of the bottoms and then the blobs
    parameters: dict[str, Any]
    shapes: tuple[tuple[int, ...], ...] = ((2, 6, 7, 5),)
    blobs: tuple[Array, ...] = ()
    tops: int = 1
    opencv: bool = True
    positive: bool = False
    spread: float = 3.0


def drawn(*shape: int) -> Array:
    return RANDOM.standard_normal(shape).astype(np.float32)


def convolved(x: Array, w: Array, b: Array | None = None, **how: Any) -> Array:
    bias = None if b is None else torch.from_numpy(b)
    function = torch.nn.functional.conv_transpose2d if how.pop("transposed", False) else torch.nn.functional.conv2d
    return function(torch.from_numpy(x), torch.from_numpy(w), bias, **how).numpy()


def pooled(
    x: Array, method: str, kernel: tuple[int, int], stride: tuple[int, int], pad: tuple[int, int] = (0, 0),
    floor: bool = False,
) -> Array:  # fmt: skip
    """Pool as Caffe's own source does: sizes rounded up and clipped, averages over the padded part of the window."""
    sizes = []
    for size, k, s, p in zip(x.shape[2:], kernel, stride, pad, strict=True):
        count = (math.floor if floor else math.ceil)((size + 2 * p - k) / s) + 1
        sizes.append(count - 1 if any(pad) and (count - 1) * s >= size + p else count)
    made = np.zeros((*x.shape[:2], *sizes))
    height, width = x.shape[2:]
    for h, w in np.ndindex(*sizes):
        top, left = h * stride[0] - pad[0], w * stride[1] - pad[1]
        if method == "MAX":
            bottom, right = min(top + kernel[0], height), min(left + kernel[1], width)
            window = x[:, :, max(top, 0) : bottom, max(left, 0) : right]
            made[:, :, h, w] = window.max(axis=(2, 3)) if window.size else -FLOAT_MAX
        else:
            bottom, right = min(top + kernel[0], height + pad[0]), min(left + kernel[1], width + pad[1])
            count = (bottom - top) * (right - left)
            window = x[:, :, max(top, 0) : min(bottom, height), max(left, 0) : min(right, width)]
            made[:, :, h, w] = window.sum(axis=(2, 3)) / count
    return made


def across(x: Array, size: int, alpha: float, beta: float, k: float) -> Array:
    made = np.empty_like(x)
    for channel in range(x.shape[1]):
        near = x[:, max(0, channel - size // 2) : channel + size // 2 + 1]
        made[:, channel] = x[:, channel] / (k + alpha / size * (near**2).sum(axis=1)) ** beta
    return made


def within(x: Array, size: int, alpha: float, beta: float) -> Array:
    padded = np.pad(x**2, ((0, 0), (0, 0), (size // 2,) * 2, (size // 2,) * 2))
    total = sum(padded[:, :, h : h + x.shape[2], w : w + x.shape[3]] for h, w in np.ndindex(size, size))
    return x * (1 + alpha * total / size**2) ** -beta


def normalised(x: Array, mean: Array, variance: Array, factor: Array, eps: float = 1e-5) -> Array:
    share = 0.0 if factor[0] == 0 else 1 / factor[0]
    wide = (1, -1, *(1,) * (x.ndim - 2))
    return (x - (mean * share).reshape(wide)) / np.sqrt((variance * share).reshape(wide) + eps)


def soft(x: Array, axis: int) -> Array:
    raised = np.exp(x - x.max(axis=axis, keepdims=True))
    return raised / raised.sum(axis=axis, keepdims=True)


def channels(blob: Array) -> Array:
    return blob.reshape(1, -1, 1, 1)


CONV = {"num_output": 4}
SUM, PROD, MAX = ({"eltwise_param": {"operation": Name(name)}} for name in ("SUM", "PROD", "MAX"))
FOUR = (2, 6, 7, 5)
CASES = {
    "convolution with sides": Case(
        "Convolution", lambda x, w, b: convolved(x, w, b, stride=(2, 1), padding=(0, 2)),
        {"convolution_param": {**CONV, "kernel_h": 3, "kernel_w": 2, "stride_h": 2, "stride_w": 1, "pad_w": 2,
                               "pad_h": 0}},
        blobs=(drawn(4, 6, 3, 2), drawn(4)),
    ),
    "convolution in groups, with holes": Case(
        "Convolution", lambda x, w: convolved(x, w, groups=2, padding=2, dilation=2),
        {"convolution_param": {**CONV, "kernel_size": 3, "pad": 2, "dilation": 2, "group": 2, "bias_term": False}},
        blobs=(drawn(4, 3, 3, 3),),
    ),
    "convolution, a size for each axis": Case(
        "Convolution", lambda x, w, b: convolved(x, w, b, stride=(1, 2), padding=(1, 0)),
        {"convolution_param": {**CONV, "kernel_size": [3, 1], "stride": [1, 2], "pad": [1, 0]}},
        blobs=(drawn(4, 6, 3, 1), drawn(4)),
    ),
    "depthwise": Case(
        "DepthwiseConvolution", lambda x, w, b: convolved(x, w, b, groups=6, padding=1),
        {"convolution_param": {"num_output": 6, "kernel_size": 3, "pad": 1, "group": 6}},
        blobs=(drawn(6, 1, 3, 3), drawn(6)), opencv=False,
    ),
    "deconvolution": Case(
        "Deconvolution", lambda x, w, b: convolved(x, w, b, transposed=True, stride=2, padding=1),
        {"convolution_param": {**CONV, "kernel_size": 4, "stride": 2, "pad": 1}}, blobs=(drawn(6, 4, 4, 4), drawn(4)),
    ),
    "deconvolution in groups": Case(
        "Deconvolution", lambda x, w: convolved(x, w, transposed=True, stride=(3, 2), groups=2),
        {"convolution_param": {**CONV, "kernel_h": 3, "kernel_w": 5, "stride_h": 3, "stride_w": 2, "group": 2,
                               "bias_term": False}},
        blobs=(drawn(6, 2, 3, 5),),
    ),
    "deconvolution with holes": Case(
        "Deconvolution", lambda x, w, b: convolved(x, w, b, transposed=True, dilation=2),
        {"convolution_param": {**CONV, "kernel_size": 3, "dilation": 2}}, blobs=(drawn(6, 4, 3, 3), drawn(4)),
        opencv=False,
    ),
    "norm across": Case(
        "LRN", lambda x: across(x, 5, 0.3, 0.6, 2.0),
        {"lrn_param": {"local_size": 5, "alpha": 0.3, "beta": 0.6, "k": 2.0}}, opencv=False,
    ),
    "norm across, three channels": Case(
        "LRN", lambda x: across(x, 3, 0.8, 0.7, 1.0), {"lrn_param": {"local_size": 3, "alpha": 0.8, "beta": 0.7}},
    ),
    # OpenCV takes another alpha where none is given
    "norm by default": Case("LRN", lambda x: across(x, 5, 1.0, 0.75, 1.0), {}, opencv=False),
    "norm within": Case(
        "LRN", lambda x: within(x, 5, 0.4, 0.75),
        {"lrn_param": {"local_size": 5, "alpha": 0.4, "norm_region": Name("WITHIN_CHANNEL"), "k": 3.0}}
    ),
    "norm within, small": Case(
        "LRN", lambda x: within(x, 3, 1.0, 0.5),
        {"lrn_param": {"local_size": 3, "beta": 0.5, "norm_region": Name("WITHIN_CHANNEL")}}, opencv=False,
    ),
    "inner product": Case(
        "InnerProduct", lambda x, w, b: x.reshape(2, -1) @ w.T + b, {"inner_product_param": {"num_output": 4}},
        blobs=(drawn(4, 210), drawn(4)),
    ),
    "inner product, transposed": Case(
        "InnerProduct", lambda x, w, b: x.reshape(2, -1) @ w + b,
        {"inner_product_param": {"num_output": 4, "transpose": True}}, blobs=(drawn(210, 4), drawn(4)), opencv=False,
    ),
    "inner product from axis 2": Case(
        "InnerProduct", lambda x, w: x.reshape(2, 6, -1) @ w.T,
        {"inner_product_param": {"num_output": 4, "axis": 2, "bias_term": False}}, blobs=(drawn(4, 35),)
    ),
    "inner product of the last axis": Case(
        "InnerProduct", lambda x, w, b: x @ w.T + b, {"inner_product_param": {"num_output": 4, "axis": -1}},
        blobs=(drawn(4, 5), drawn(4))
    ),
    "relu": Case("ReLU", lambda x: np.maximum(x, 0), {}),
    "relu with a slope": Case(
        "ReLU", lambda x: np.where(x > 0, x, 0.1 * x), {"relu_param": {"negative_slope": 0.1}},
    ),
    "prelu": Case("PReLU", lambda x, s: np.where(x > 0, x, channels(s) * x), {}, blobs=(drawn(6),)),
    "prelu shared": Case(
        "PReLU", lambda x, s: np.where(x > 0, x, s[0] * x),
        {"prelu_param": {"channel_shared": True}}, blobs=(drawn(1),)
    ),
    "prelu of vectors": Case(
        "PReLU", lambda x, s: np.where(x > 0, x, s * x), {}, shapes=((2, 9),), blobs=(drawn(9),)
    ),
    "dropout": Case("Dropout", lambda x: x, {"dropout_param": {"dropout_ratio": 0.3}}),
    "dropout that scales in tests": Case(
        "Dropout", lambda x: 0.75 * x, {"dropout_param": {"dropout_ratio": 0.25, "scale_train": False}}, opencv=False,
    ),
    "concat": Case(
        "Concat", lambda x, y, z: np.concatenate([x, y, z], 1), {}, shapes=((2, 3, 4, 5), (2, 1, 4, 5), (2, 6, 4, 5)),
    ),
    "concat of rows": Case(
        "Concat", lambda x, y: np.concatenate([x, y], 2), {"concat_param": {"axis": -2}},
        shapes=((2, 3, 4, 5), (2, 3, 1, 5)),
    ),
    "concat by its old name": Case(
        "Concat", lambda x, y: np.concatenate([x, y], 0), {"concat_param": {"concat_dim": 0}},
        shapes=((2, 3, 4, 5), (1, 3, 4, 5)), opencv=False,
    ),
    "concat of one": Case("Concat", lambda x: x, {}),
    "sum": Case("Eltwise", lambda x, y, z: x + y + z, SUM, shapes=(FOUR,) * 3),
    "sum is the default": Case("Eltwise", lambda x, y: x + y, {}, shapes=(FOUR,) * 2),
    "sum with coefficients": Case(
        "Eltwise", lambda x, y, z: 0.5 * x - y + 2 * z,
        {"eltwise_param": {"operation": Name("SUM"), "coeff": [0.5, -1.0, 2.0]}}, shapes=(FOUR,) * 3,
    ),
    "difference": Case(
        "Eltwise", lambda x, y: x - y, {"eltwise_param": {"coeff": [1, -1]}}, shapes=(FOUR,) * 2,
    ),
    "product": Case("Eltwise", lambda x, y, z: x * y * z, PROD, shapes=(FOUR,) * 3),
    "largest": Case("Eltwise", lambda x, y, z: np.maximum(np.maximum(x, y), z), MAX, shapes=(FOUR,) * 3),
    "batch norm": Case(
        "BatchNorm", lambda x, m, v, f: normalised(x, m, v, f, 1e-3), {"batch_norm_param": {"eps": 1e-3}},
        blobs=(drawn(6) * 50, np.abs(drawn(6)) * 50 + 5, np.array([50.0])),
    ),
    "batch norm without a factor": Case(
        "BatchNorm", normalised, {}, blobs=(drawn(6), np.abs(drawn(6)), np.array([0.0])), spread=1e-3, opencv=False,
    ),
    "batch norm of vectors": Case(
        "BatchNorm", normalised, {}, shapes=((3, 9),), blobs=(drawn(9), np.abs(drawn(9)), np.array([1.0])),
    ),
    "batch norm of nvidia": Case(
        "BatchNorm", lambda x, m, v, f, s, b: normalised(x, m, v, f) * channels(s) + channels(b), {},
        blobs=(drawn(6), np.abs(drawn(6)), np.array([1.0]), drawn(6), drawn(6)), opencv=False,
    ),
    "scale": Case("Scale", lambda x, s: x * channels(s), {}, blobs=(drawn(6),)),
    "scale and shift": Case(
        "Scale", lambda x, s, b: x * channels(s) + channels(b), {"scale_param": {"bias_term": True}},
        blobs=(drawn(6), drawn(6)),
    ),
    "scale over two axes": Case(
        "Scale", lambda x, s: x * s[None, :, :, None], {"scale_param": {"num_axes": 2}}, blobs=(drawn(6, 7),)
    ),
    "scale over the rest": Case(
        "Scale", lambda x, s, b: x * s + b, {"scale_param": {"axis": 2, "num_axes": -1, "bias_term": True}},
        blobs=(drawn(7, 5), drawn(7, 5))
    ),
    "scale by one number": Case(
        "Scale", lambda x, s: x * s, {"scale_param": {"num_axes": 0}}, blobs=(drawn(),), opencv=False,
    ),
    "scale by another blob": Case(
        "Scale", lambda x, s: x * s[:, :, None, None],
        {"scale_param": {"axis": 0}}, shapes=(FOUR, (2, 6))
    ),
    "scale by another blob, and shift": Case(
        "Scale", lambda x, s, b: x * s[None, :, :, None] + b[None, :, :, None], {"scale_param": {"bias_term": True}},
        shapes=(FOUR, (6, 7)), blobs=(drawn(6, 7),), opencv=False,
    ),
    "bias": Case("Bias", lambda x, b: x + channels(b), {}, blobs=(drawn(6),), opencv=False),
    "bias from another blob": Case(
        "Bias", lambda x, b: x + b, {"bias_param": {"axis": -2}}, shapes=(FOUR, (7, 5)), opencv=False,
    ),
    "softmax": Case("Softmax", lambda x: soft(x, 1), {}),
    "softmax of rows": Case("Softmax", lambda x: soft(x, 3), {"softmax_param": {"axis": -1}}),
    "reshape": Case(
        "Reshape", lambda x: x.reshape(2, 5, 42, 1), {"reshape_param": {"shape": {"dim": [0, 5, -1, 1]}}},
    ),
    "reshape of a part": Case(
        "Reshape", lambda x: x.reshape(2, 6, 5, 7), {"reshape_param": {"shape": {"dim": [5, -1]}, "axis": -3}},
        opencv=False,
    ),
    "reshape that inserts": Case(
        "Reshape", lambda x: x.reshape(2, 1, 6, 7, 5),
        {"reshape_param": {"shape": {"dim": 1}, "axis": 1, "num_axes": 0}},
        opencv=False,
    ),
    "reshape of the first two": Case(
        "Reshape", lambda x: x.reshape(12, 7, 5),
        {"reshape_param": {"shape": {"dim": -1}, "num_axes": 2}}
    ),
    "flatten": Case("Flatten", lambda x: x.reshape(2, -1), {}),
    "flatten to an end": Case(
        "Flatten", lambda x: x.reshape(2, 42, 5), {"flatten_param": {"axis": -3, "end_axis": 2}},
    ),
    "slice": Case(
        "Slice", lambda x: (x[:, :1], x[:, 1:5], x[:, 5:]), {"slice_param": {"slice_point": [1, 5]}}, tops=3,
    ),
    "slice in halves": Case(
        "Slice", lambda x: (x[:, :, :4], x[:, :, 4:]), {"slice_param": {"axis": 2}}, shapes=((2, 6, 8, 5),), tops=2,
        opencv=False,
    ),
    "slice by its old name": Case(
        "Slice", lambda x: (x[:1], x[1:]), {"slice_param": {"slice_dim": 0}}, tops=2, opencv=False,
    ),
    "split": Case("Split", lambda x: (x, x), {}, tops=2, opencv=False),  # OpenCV has one output for both
    "crop": Case(
        "Crop", lambda x, y: x[:, :, 2:6, 1:4], {"crop_param": {"offset": [2, 1]}}, shapes=(FOUR, (1, 1, 4, 3)),
    ),
    "crop from the channels": Case(
        "Crop", lambda x, y: x[:, 1:4, 1:5, 1:4], {"crop_param": {"axis": 1, "offset": 1}}, shapes=(FOUR, (2, 3, 4, 3)),
    ),
    "crop at the start": Case("Crop", lambda x, y: x[:, :, :4, :3], {}, shapes=(FOUR, (2, 9, 4, 3))),
    "permute": Case("Permute", lambda x: x.transpose(0, 2, 3, 1), {"permute_param": {"order": [0, 2, 3, 1]}}),
    "tile": Case("Tile", lambda x: np.tile(x, (1, 3, 1, 1)), {"tile_param": {"tiles": 3}}, opencv=False),
    "power": Case(
        "Power", lambda x: (0.5 + 2 * x) ** 1.5,
        {"power_param": {"power": 1.5, "scale": 2, "shift": 0.5}}, positive=True,
    ),
    "power is a line": Case("Power", lambda x: 3 - x, {"power_param": {"scale": -1, "shift": 3}}),
    "power of nothing": Case("Power", lambda x: x, {}),
    "square of negative numbers": Case("Power", lambda x: x**2, {"power_param": {"power": 2}}),
    "sigmoid": Case("Sigmoid", lambda x: 1 / (1 + np.exp(-x)), {}),
    "tanh": Case("TanH", np.tanh, {}),
    "elu": Case("ELU", lambda x: np.where(x > 0, x, 0.7 * np.expm1(x)), {"elu_param": {"alpha": 0.7}}),
    "elu, alpha 1": Case("ELU", lambda x: np.where(x > 0, x, np.expm1(x)), {}),
    "magnitude": Case("AbsVal", np.abs, {}),
    "exp": Case("Exp", lambda x: np.exp(x), {}),
    "exp of a base": Case(
        "Exp", lambda x: 2 ** (0.5 + 0.3 * x), {"exp_param": {"base": 2, "scale": 0.3, "shift": 0.5}}
    ),
    "log": Case("Log", np.log, {}, positive=True),
    "log of a base": Case(
        "Log", lambda x: np.log10(1.5 + 2 * x), {"log_param": {"base": 10, "scale": 2, "shift": 1.5}}, positive=True,
        opencv=False,
    ),
    "bnll": Case("BNLL", lambda x: np.logaddexp(0, x), {}),
    "threshold": Case(
        "Threshold", lambda x: (x > 0.25).astype(float), {"threshold_param": {"threshold": 0.25}}, opencv=False,
    ),
    "clip": Case("Clip", lambda x: np.clip(x, -1, 0.5), {"clip_param": {"min": -1, "max": 0.5}}, opencv=False),
    "relu6": Case("ReLU6", lambda x: np.clip(x, 0, 6), {}),
    "swish": Case("Swish", lambda x: x / (1 + np.exp(-2 * x)), {"swish_param": {"beta": 2}}, opencv=False),
    "swish, beta 1": Case("Swish", lambda x: x / (1 + np.exp(-x)), {}),
    "place of the largest": Case(
        "ArgMax", lambda x: x.reshape(2, -1).argmax(1).reshape(2, 1, 1).astype(float), {}, opencv=False,
    ),
    "place along the channels": Case(
        "ArgMax", lambda x: x.argmax(1)[:, None].astype(float), {"argmax_param": {"axis": 1}}, opencv=False,
    ),
    "mean and variance": Case(
        "MVN", lambda x: (x - x.mean((2, 3), keepdims=True)) / (x.std((2, 3), keepdims=True) + 1e-9), {}
    ),
    "mean of all channels": Case(
        "MVN", lambda x: x - x.mean((1, 2, 3), keepdims=True),
        {"mvn_param": {"normalize_variance": False, "across_channels": True}}
    ),
    "reduction": Case(
        "Reduction", lambda x: 0.5 * np.abs(x).sum((2, 3)),
        {"reduction_param": {"operation": Name("ASUM"), "axis": 2, "coeff": 0.5}}, opencv=False,
    ),
    "mean of squares": Case(
        "Reduction", lambda x: (x**2).sum((1, 2, 3)), {"reduction_param": {"operation": Name("SUMSQ"), "axis": 1}},
        opencv=False,
    ),
    "mean over axes": Case(
        "Reduction", lambda x: x.mean(3), {"reduction_param": {"operation": Name("MEAN"), "axis": -1}}, opencv=False,
    ),
    **{
        f"pool {method} {sizes}": Case(
            "Pooling", lambda x, m=method, s=sizes: pooled(x, m, *s),
            {"pooling_param": {"pool": Name(method), **dict(zip(
                ("kernel_h", "kernel_w", "stride_h", "stride_w", "pad_h", "pad_w"),
                (*sizes[0], *sizes[1], *sizes[2]), strict=True))}},
            shapes=((2, 3, 8, 7),), opencv=opencv,
        )
        for method in ("MAX", "AVE")
        for sizes, opencv in (
            (((3, 3), (2, 2), (0, 0)), True),  # hangs over below
            (((3, 3), (2, 2), (1, 1)), True),  # hangs over the padding below
            (((2, 2), (2, 2), (1, 1)), True),  # the last window would start in the padding
            (((3, 2), (1, 3), (2, 1)), True),
            (((8, 7), (1, 1), (0, 0)), True),
            (((5, 1), (4, 1), (2, 0)), True),
            (((7, 5), (8, 4), (6, 3)), True),  # one axis hangs over, the other leaves a window out
        )
    },
    "global pool": Case(
        "Pooling", lambda x: x.max((2, 3), keepdims=True),
        {"pooling_param": {"pool": Name("MAX"), "global_pooling": True}},
    ),
    "global pool by default": Case(
        "Pooling", lambda x: x.max((2, 3), keepdims=True), {"pooling_param": {"global_pooling": True}}, opencv=False,
    ),
    "global average": Case(
        "Pooling", lambda x: x.mean((2, 3), keepdims=True),
        {"pooling_param": {"pool": Name("AVE"), "global_pooling": True}},
    ),
    "pool rounded down": Case(
        "Pooling", lambda x: pooled(x, "AVE", (3, 3), (2, 2), (1, 1), floor=True),
        {"pooling_param": {"pool": Name("AVE"), "kernel_size": 3, "stride": 2, "pad": 1, "round_mode": Name("FLOOR")}},
        shapes=((2, 3, 8, 7),), opencv=False,
    ),
    "pool with a window behind the image": Case(
        "Pooling", lambda x: pooled(x, "MAX", (1, 1), (2, 2)), {"pooling_param": {"kernel_size": 1, "stride": 2}},
        shapes=((2, 3, 8, 6),), opencv=False,
    ),
    "pool with a window behind one side": Case(
        "Pooling", lambda x: pooled(x, "MAX", (2, 3), (4, 2)),
        {"pooling_param": {"kernel_h": 2, "kernel_w": 3, "stride_h": 4, "stride_w": 2}},
        shapes=((2, 3, 8, 6),), opencv=False,
    ),
}  # fmt: skip


def net_of(case: Case, top: str = "top") -> Net:
    net = Net("layer", inputs={f"data{at}": shape for at, shape in enumerate(case.shapes)})
    tops = [top] if case.tops == 1 else [f"{top}{at}" for at in range(case.tops)]
    net.add(case.type, "the_layer", list(net.inputs), tops, blobs=case.blobs, **case.parameters)
    return net


def feeds_of(case: Case, net: Net) -> dict[str, Array]:
    feeds = pictures(net, spread=case.spread)
    return {name: np.abs(array) + np.float32(0.25) for name, array in feeds.items()} if case.positive else feeds


def reach(case: Case) -> float:
    """Return how far FP32 may stray from the formula, relative to the largest number: sums of at most 210 products."""
    return EPSILON * (64 if case.type in ("Exp", "Power", "LRN", "BatchNorm", "MVN") else 16)


@pytest.mark.parametrize("name", CASES)
def test_a_layer_follows_its_formula(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    net = net_of(case)
    imported = read_caffe(*net.save(tmp_path), batch=None)
    feeds = feeds_of(case, net)
    used = {key: array for key, array in feeds.items() if key in imported.graph.inputs}
    got = run_graph(imported.graph, used)
    exact = [array.astype(np.float64) for array in feeds.values()]
    made = case.formula(*exact, *(blob.astype(np.float32).astype(np.float64) for blob in case.blobs))
    wanted = list(made) if isinstance(made, tuple) else [made]
    assert len(got) == len(wanted) == case.tops
    for one, other in zip(got, wanted, strict=True):
        assert difference(one, np.asarray(other)) <= reach(case)
    again = read(write(imported.graph))
    assert [node.operator for node in again.nodes] == [node.operator for node in imported.graph.nodes]


@pytest.mark.slow
@pytest.mark.parametrize("name", {case.type: name for name, case in CASES.items()}.values())
def test_perwatts_engine_runs_every_layer(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    net = net_of(case)
    graph = read_caffe(*net.save(tmp_path), batch=None).graph
    feeds = {key: array for key, array in feeds_of(case, net).items() if key in graph.inputs}
    model = perwatt.compile(graph, tune="estimate")
    for one, other in zip(model.run(feeds).values(), run_graph(graph, feeds), strict=True):
        assert difference(one, other) <= 4 * reach(case)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.opencv])
def test_a_layer_answers_as_in_opencv(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    net = net_of(case, "the_layer")  # OpenCV calls a convolution by its top
    prototxt, caffemodel = net.save(tmp_path)
    imported = read_caffe(prototxt, caffemodel, batch=None)
    feeds = feeds_of(case, net)
    got = run_graph(imported.graph, {key: array for key, array in feeds.items() if key in imported.graph.inputs})
    wanted = run_opencv(prototxt, caffemodel, feeds, [] if case.tops > 1 else ["the_layer"])
    assert len(wanted) == case.tops
    for one, other in zip(got, wanted, strict=True):
        assert difference(one, other.reshape(one.shape)) <= 2 * reach(case)


def test_the_readme_names_every_type() -> None:
    text = " ".join((Path(__file__).parent.parent.parent / "README.md").read_text(encoding="utf-8").split())
    named = text.split("It knows ", 1)[1].split(". perwatt", 1)[0].replace(" and ", ", ").split(", ")
    assert set(named) == set(LAYERS) - {"ConvolutionDepthwise", "DepthwiseConvolution"}  # forks' names


def test_every_type_has_a_case() -> None:
    beside = {"ConvolutionDepthwise"}  # another name of one that has
    assert set(LAYERS) - beside == {case.type for case in CASES.values()}


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_pools_have_caffes_sizes_and_numbers(data: st.DataObject) -> None:
    method = data.draw(st.sampled_from(["MAX", "AVE"]))
    height, width = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 12))
    kernel = (data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5)))
    stride = (data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5)))
    pad = (data.draw(st.integers(0, kernel[0] - 1)), data.draw(st.integers(0, kernel[1] - 1)))
    net = Net("pool", inputs={"data": (1, 2, height, width)})
    names = ("kernel_h", "kernel_w", "stride_h", "stride_w", "pad_h", "pad_w")
    net.pool("top", "data", method, **dict(zip(names, (*kernel, *stride, *pad), strict=True)))
    windows = list(zip((height, width), kernel, stride, pad, strict=True))
    with TemporaryDirectory() as folder:
        files = net.save(Path(folder))
        behind = not any(pad) and any(-(-(size - k) // s) * s >= size for size, k, s, _ in windows)
        if any(size + 2 * p < k for size, k, _, p in windows):
            with pytest.raises(NetworkError, match="is the input too small"):
                read_caffe(*files)
        elif behind and method == "AVE":
            with pytest.raises(NetworkError, match="an average over a window behind it"):
                read_caffe(*files)
        else:
            x = np.random.default_rng(5).standard_normal((1, 2, height, width)).astype(np.float32)
            got = run_graph(read_caffe(*files).graph, {"data": x})[0]
            wanted = pooled(x.astype(np.float64), method, kernel, stride, pad)
            assert difference(got, wanted) <= 8 * EPSILON


def test_another_rule_would_be_seen(tmp_path: Path) -> None:
    """Rules that others have for the same layers: each must give other numbers, or the tests above prove nothing."""
    x = np.random.default_rng(9).standard_normal((2, 6, 8, 7)) * 3
    alpha_undivided = across(x, 5, 0.3 * 5, 0.6, 2.0)
    assert difference(across(x, 5, 0.3, 0.6, 2.0), alpha_undivided) > 0.01
    assert difference(within(x, 5, 0.4, 0.75), across(x, 5, 0.4, 0.75, 1.0)) > 0.01
    assert pooled(x, "MAX", (3, 3), (2, 2)).shape != pooled(x, "MAX", (3, 3), (2, 2), floor=True).shape
    without_pads = torch.nn.functional.avg_pool2d(
        torch.from_numpy(x), 3, 2, 1, ceil_mode=True, count_include_pad=False
    ).numpy()
    assert difference(pooled(x, "AVE", (3, 3), (2, 2), (1, 1)), without_pads) > 0.01
    # counting what hangs over the padding as well
    whole = np.pad(x, ((0, 0), (0, 0), (1, 2), (1, 2)))
    counted = torch.nn.functional.avg_pool2d(torch.from_numpy(whole), 3, 2).numpy()
    assert difference(pooled(x, "AVE", (3, 3), (2, 2), (1, 1)), counted[:, :, :5, :4]) > 0.01
