"""Passes that bring what means the same into one form: activations, pads, pools, Softmax, Gemm."""

import numpy as np
import pytest
from small_nets import Net

from perwatt.passes.merge_pads import merge_pads
from perwatt.passes.normalise_gemm import normalise_gemm
from perwatt.passes.normalise_pools import normalise_pools
from perwatt.passes.normalise_softmax import normalise_softmax
from perwatt.passes.recognise_activations import recognise_activations


def six_step(net, x):
    return net.add("Clip", net.add("Add", x, net.constant(3)), min=0, max=6)


ACTIVATIONS = {
    "silu": (lambda net, x: net.add("Mul", x, net.add("Sigmoid", x)), ["Silu"]),
    "silu turned": (lambda net, x: net.add("Mul", net.add("Sigmoid", x), x), ["Silu"]),
    "hard sigmoid": (lambda net, x: net.add("Div", six_step(net, x), net.constant(6)), ["HardSigmoid"]),
    "hard sigmoid by factor": (lambda net, x: net.add("Mul", net.constant(1 / 6), six_step(net, x)), ["HardSigmoid"]),
    "hard swish by gate": (
        lambda net, x: net.add("Mul", x, net.add("Div", six_step(net, x), net.constant([[[6]]]))),
        ["HardSwish"],
    ),
    "hard swish, divided late": (
        lambda net, x: net.add("Div", net.add("Mul", six_step(net, x), x), net.constant(6)),
        ["HardSwish"],
    ),
    "hard swish of HardSigmoid": (
        lambda net, x: net.add("Mul", x, net.add("HardSigmoid", x, alpha=1 / 6, beta=0.5)),
        ["HardSwish"],
    ),
    "another HardSigmoid": (lambda net, x: net.add("Mul", x, net.add("HardSigmoid", x)), ["HardSigmoid", "Mul"]),
    "gate of another tensor": (
        lambda net, x: net.add("Mul", net.add("Exp", x), net.add("Sigmoid", x)),
        ["Exp", "Sigmoid", "Mul"],
    ),
    "gate that squeezes": (
        lambda net, x: net.add("Mul", x, net.add("Sigmoid", net.add("GlobalAveragePool", x))),
        ["GlobalAveragePool", "Sigmoid", "Mul"],
    ),
    "another limit": (
        lambda net, x: net.add(
            "Div", net.add("Clip", net.add("Add", x, net.constant(3)), min=0, max=5), net.constant(6)
        ),
        ["Add", "Clip", "Div"],
    ),
    "one slope": (lambda net, x: net.add("PRelu", x, net.constant([[[0.25]], [[0.25]], [[0.25]]])), ["LeakyRelu"]),
    "slopes": (lambda net, x: net.add("PRelu", x, net.positive(3, 1, 1)), ["PRelu"]),
    "sum": (lambda net, x: net.add("Sum", x, net.positive(3, 1, 1), net.positive(4)), ["Add", "Add"]),
}


@pytest.mark.parametrize("case", ACTIVATIONS)
def test_activations_are_recognised(rewritten, case):
    write, wanted = ACTIVATIONS[case]
    # 1/6 goes through float32, as an attribute of ONNX.
    assert rewritten(lambda net: write(net, net.input(2, 3, 4, 4)), recognise_activations, rounded=np.float32) == wanted


def test_a_gate_that_others_read_stays(rewritten):
    def write(net):
        x = net.input(2, 3)
        gate = net.add("Sigmoid", x)
        return net.add("Mul", x, gate), gate

    assert rewritten(write, recognise_activations) == ["Sigmoid", "Silu"]


def pad(net, x, pads=(1, 2, 0, 1), value=0.0, mode="constant"):
    return net.add("Pad", x, pads=(0, 0, *pads[:2], 0, 0, *pads[2:]), value=value, mode=mode)


def relu(net):
    return net.add("Relu", net.input(2, 4, 6, 7))


POOL = {"kernel_shape": (3, 3), "strides": (2, 2)}
PADS = {
    "conv": (lambda net: net.conv(pad(net, net.input(2, 4, 6, 7)), 6, 3, pads=(0, 1, 0, 1)), ["Conv"]),
    "conv, wide": (
        lambda net: net.conv(pad(net, net.input(1, 2, 2, 2), (5, 5, 5, 5)), 2, 3, dilations=(2, 2)),
        ["Conv"],
    ),
    "conv, ones": (lambda net: net.conv(pad(net, net.input(2, 4, 6, 7), value=1), 6, 3), ["Pad", "Conv"]),
    "conv, mirror": (lambda net: net.conv(pad(net, net.input(2, 4, 6, 7), mode="reflect"), 6, 3), ["Pad", "Conv"]),
    "conv, channels": (
        lambda net: net.conv(net.add("Pad", net.input(2, 3, 4, 4), pads=(0, 1, 0, 0, 0, 0, 0, 0)), 2),
        ["Pad", "Conv"],
    ),
    "max of relu": (lambda net: net.add("MaxPool", pad(net, relu(net)), **POOL), ["Relu", "MaxPool"]),
    "max of relu's concat": (
        lambda net: net.add("MaxPool", pad(net, net.add("Concat", x := relu(net), net.add("Exp", x), axis=1)), **POOL),
        ["Relu", "Exp", "Concat", "MaxPool"],
    ),
    "max": (lambda net: net.add("MaxPool", pad(net, net.input(2, 4, 6, 7)), **POOL), ["Pad", "MaxPool"]),
    "max of lowest": (
        lambda net: net.add("MaxPool", pad(net, net.input(2, 4, 6, 7), value=-np.inf), **POOL, pads=(1, 0, 1, 0)),
        ["MaxPool"],
    ),
    "max, wider than window": (
        lambda net: net.add("MaxPool", pad(net, relu(net), (3, 0, 0, 0)), **POOL),
        ["Relu", "Pad", "MaxPool"],
    ),
    "mean": (lambda net: net.add("AveragePool", pad(net, net.input(2, 4, 6, 7)), **POOL), ["AveragePool"]),
    "mean, counted": (
        lambda net: net.add(
            "AveragePool", pad(net, net.input(2, 4, 6, 7)), **POOL, pads=(1, 0, 0, 0), count_include_pad=1
        ),
        ["AveragePool"],
    ),
    "mean, own pads not counted": (
        lambda net: net.add("AveragePool", pad(net, net.input(2, 4, 6, 7)), **POOL, pads=(1, 0, 0, 0)),
        ["Pad", "AveragePool"],
    ),
}


@pytest.mark.parametrize("case", PADS)
def test_pads_are_merged_where_the_numbers_stay(rewritten, case):
    write, wanted = PADS[case]
    assert rewritten(write, merge_pads) == wanted


def test_a_pad_that_crops_is_not_merged():
    net = Net()
    graph = net.graph(net.conv(pad(net, net.input(2, 4, 6, 7), (1, -1, 0, 0)), 6, 3))
    assert merge_pads(graph) is graph


def test_a_pad_stays_for_its_other_readers(rewritten):
    def write(net):
        padded = pad(net, net.input(2, 4, 6, 7))
        return net.conv(padded, 3, 3), net.add("Exp", padded)

    assert rewritten(write, merge_pads) == ["Pad", "Conv", "Exp"]


POOLS = {
    "mean": (lambda net, x: net.add("ReduceMean", x, axes=(-1, 2), keepdims=1), ["GlobalAveragePool"]),
    "mean, narrow": (
        lambda net, x: net.add("ReduceMean", x, axes=(2, 3), keepdims=0),
        ["GlobalAveragePool", "Reshape"],
    ),
    "largest": (lambda net, x: net.add("ReduceMax", x, axes=(2, 3)), ["GlobalMaxPool"]),
    "channels": (lambda net, x: net.add("ReduceMean", x, axes=(1, 2)), ["ReduceMean"]),
    "sum": (lambda net, x: net.add("ReduceSum", x, axes=(2, 3)), ["ReduceSum"]),
    "window": (lambda net, x: net.add("AveragePool", x, kernel_shape=(5, 6)), ["GlobalAveragePool"]),
    "window, strides": (
        lambda net, x: net.add("AveragePool", x, kernel_shape=(5, 6), strides=(3, 3), ceil_mode=1),
        ["GlobalAveragePool"],
    ),
    "window, padded": (
        lambda net, x: net.add("AveragePool", x, kernel_shape=(7, 7), pads=(1, 1, 1, 0)),
        ["GlobalAveragePool"],
    ),
    "window, padding counted": (
        lambda net, x: net.add("AveragePool", x, kernel_shape=(7, 7), pads=(1, 1, 1, 0), count_include_pad=1),
        ["AveragePool"],
    ),
    "window too small": (
        lambda net, x: net.add("AveragePool", x, kernel_shape=(4, 6), strides=(2, 1)),
        ["AveragePool"],
    ),
    "window shifted": (
        lambda net, x: net.add("MaxPool", x, kernel_shape=(5, 6), pads=(1, 0, 0, 0), strides=(2, 1)),
        ["MaxPool"],
    ),
    "window, spread": (
        lambda net, x: net.add("MaxPool", x, kernel_shape=(3, 6), dilations=(2, 1)),
        ["MaxPool"],
    ),
    "largest by window": (lambda net, x: net.add("MaxPool", x, kernel_shape=(5, 6)), ["GlobalMaxPool"]),
}


@pytest.mark.parametrize("case", POOLS)
def test_pools_over_the_whole_map_are_global(rewritten, case):
    write, wanted = POOLS[case]
    assert rewritten(lambda net: write(net, net.input(2, 3, 5, 6)), normalise_pools) == wanted


@pytest.mark.parametrize("operator", ["Softmax", "LogSoftmax"])
def test_softmax_runs_over_the_last_axis(rewritten, operator):
    def write(net):
        x, y = net.input(2, 5, 1, 1), net.input(2, 5, 1, 3)
        return net.add(operator, x, axis=1), net.add(operator, y, axis=1), net.add(operator, y, axis=-1)

    assert rewritten(write, normalise_softmax) == ["Reshape", operator, "Reshape", operator, operator]


def gemm(net, x, weights, *bias, **given):
    return net.add("Gemm", x, net.weights(*weights), *bias, **given)


PRODUCTS = {
    "matmul": (lambda net, x: net.add("MatMul", x, net.weights(5, 7)), ["Gemm"]),
    "stacked": (lambda net, x: net.add("MatMul", net.input(2, 3, 5), net.weights(5, 7)), ["MatMul"]),
    "of the left": (lambda net, x: net.add("MatMul", net.weights(2, 3), x), ["MatMul"]),
    "of two inputs": (lambda net, x: net.add("Gemm", x, net.input(5, 2), alpha=0.5), ["Gemm"]),
    "normal": (lambda net, x: gemm(net, x, (7, 5), net.weights(7), transB=1), ["Gemm"]),
    "row of bias": (lambda net, x: gemm(net, x, (5, 7), net.weights(1, 7), alpha=0.5, beta=2), ["Gemm"]),
    "one bias": (lambda net, x: gemm(net, x, (5, 7), net.weights(1)), ["Gemm"]),
    "scalar bias": (lambda net, x: gemm(net, x, (5, 7), net.constant(0.5)), ["Gemm"]),
    "column of bias": (lambda net, x: gemm(net, x, (5, 7), net.weights(3, 1), beta=0.5), ["Gemm", "Add"]),
    "bias fed": (lambda net, x: gemm(net, x, (5, 7), net.input(3, 7), beta=0.5), ["Gemm", "Mul", "Add"]),
    "bias unused": (lambda net, x: gemm(net, x, (5, 7), net.input(7), beta=0), ["Gemm"]),
    "turned": (lambda net, x: gemm(net, x, (3, 7), net.weights(7), transA=1), ["Transpose", "Gemm"]),
}


@pytest.mark.parametrize("case", PRODUCTS)
def test_products_with_constants_become_one_form(rewritten, case):
    write, wanted = PRODUCTS[case]
    assert sorted(rewritten(lambda net: write(net, net.input(3, 5)), normalise_gemm)) == sorted(wanted)
