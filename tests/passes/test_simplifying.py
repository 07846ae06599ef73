"""Passes that remove, merge and shorten."""

import math

import numpy as np
import pytest

from perwatt.graph import Builder
from perwatt.passes.fold_constants import fold_constants
from perwatt.passes.merge_duplicates import merge_duplicates
from perwatt.passes.remove_no_ops import remove_no_ops
from perwatt.passes.remove_unused import remove_unused
from perwatt.passes.share_constants import share_constants
from perwatt.passes.simplify_clips import simplify_clips
from perwatt.passes.simplify_concats import simplify_concats
from perwatt.passes.simplify_reshapes import simplify_reshapes


def test_what_no_output_needs_is_removed(rewritten):
    def write(net):
        x = net.input(1, 3, 4, 4)
        net.input(2)  # stays: the caller feeds it
        net.conv(net.add("Exp", x), 5)
        return net.add("Relu", x)

    assert rewritten(write, remove_unused) == ["Relu"]


def test_unread_constants_go_and_a_graph_without_any_comes_back_itself():
    builder = Builder("b")
    x = builder.input("x", (2,))
    builder.constant("k", np.ones(2))
    graph = builder.finish([builder.add("Relu", [x])])
    cleaned = remove_unused(graph)
    assert not cleaned.constants
    assert set(cleaned.values) == {"x", "relu_0"}
    assert remove_unused(cleaned) is cleaned


CONSTANT_CASES = {
    "transpose": lambda net, k: net.add("Transpose", k, perm=(1, 0)),
    "sigmoid": lambda net, k: net.add("Sigmoid", k),
    "tanh": lambda net, k: net.add("Tanh", k),
    "exp, sqrt": lambda net, k: net.add("Sqrt", net.add("Exp", k)),
    "sub, div": lambda net, k: net.add("Div", net.add("Sub", k, net.weights(4)), net.positive(1, 4)),
    "relu": lambda net, k: net.add("Relu", k),
    "clip": lambda net, k: net.add("Clip", k, min=-0.5, max=0.25),
    "pow": lambda net, k: net.add("Pow", k, net.constant(2.0)),
    "sum": lambda net, k: net.add("Sum", k, net.weights(4), k),
    "mean over axis": lambda net, k: net.add("ReduceMean", k, axes=(0,), keepdims=1),
    "sum without axis": lambda net, k: net.add("ReduceSum", k, axes=(0,), keepdims=0),
    "largest": lambda net, k: net.add("ReduceMax", k, axes=(1,), keepdims=1),
    "reshape": lambda net, k: net.add("Reshape", k, shape=(1, 4, 4)),
    "unsqueeze, squeeze": lambda net, k: net.add("Squeeze", net.add("Unsqueeze", k, axes=(0, 2)), axes=(2,)),
    "flatten": lambda net, k: net.add("Flatten", k, axis=1),
    "slice backwards": lambda net, k: net.add("Slice", k, starts=(3,), ends=(-99,), axes=(1,), steps=(-1,)),
    "slice by twos": lambda net, k: net.add(
        "Concat", *[net.add("Slice", k, starts=(0,), ends=(4,), steps=(2,))] * 2, axis=0
    ),
    "product": lambda net, k: net.add("MatMul", k, net.weights(4, 4)),
}


@pytest.mark.parametrize("case", CONSTANT_CASES)
def test_constants_are_folded(rewritten, case):
    def write(net):
        return net.add("Mul", net.input(4, 4), CONSTANT_CASES[case](net, net.weights(4, 4)))

    rounded = np.float32 if case in ("sigmoid", "tanh") else None
    assert rewritten(write, fold_constants, rounded=rounded) == ["Mul"]


def test_a_split_of_a_constant_is_folded_and_an_output_that_is_constant_stays_computed(rewritten):
    def write(net):
        x, k = net.input(2, 3), net.weights(2, 6)
        left, right = net.add("Split", k, axis=1, split=(3, 3), outputs=2)
        return net.add("Add", net.add("Mul", x, left), right), net.add("Neg", k)

    assert rewritten(write, fold_constants) == ["Mul", "Add", "Neg"]


def test_a_broadcast_that_would_swell_the_package_is_not_folded():
    builder = Builder("b")
    one, other = builder.constant("a", np.ones((4096, 1))), builder.constant("b", np.ones((1, 4096)))
    x = builder.input("x", (1, 4096), np.float64)
    graph = builder.finish([builder.add("Add", [x, builder.add("Mul", [one, other])])])
    assert fold_constants(graph) is graph


NO_OPS = {
    "dropout": lambda net, x: net.add("Dropout", x),
    "identity": lambda net, x: net.add("Identity", x),
    "cast": lambda net, x: net.add("Cast", x, to=net.dtype.name),
    "reshape": lambda net, x: net.add("Reshape", x, shape=(2, 3, 4, 4)),
    "transpose": lambda net, x: net.add("Transpose", x, perm=(0, 1, 2, 3)),
    "concat": lambda net, x: net.add("Concat", x, axis=1),
    "split": lambda net, x: net.add("Split", x, axis=1, split=(3,)),
    "pad": lambda net, x: net.add("Pad", x, pads=(0,) * 8),
    "slice": lambda net, x: net.add("Slice", x, starts=(0,), ends=(9,), axes=(2,)),
    "pool": lambda net, x: net.add("MaxPool", x, kernel_shape=(1, 1)),
    "resize": lambda net, x: net.add("Resize", x, sizes=(2, 3, 4, 4), mode="linear"),
    "plus nothing": lambda net, x: net.add("Add", net.constant(np.zeros((3, 1, 1))), x),
    "times one": lambda net, x: net.add("Mul", x, net.constant(1)),
    "by one": lambda net, x: net.add("Div", x, net.constant(1)),
    "power one": lambda net, x: net.add("Pow", x, net.constant(1)),
    "no limit": lambda net, x: net.add("Clip", x),
    "sum of one": lambda net, x: net.add("Sum", x),
}


@pytest.mark.parametrize("case", NO_OPS)
def test_what_does_nothing_is_removed(rewritten, case):
    def write(net):
        return net.add("Sigmoid", NO_OPS[case](net, net.add("Tanh", net.input(2, 3, 4, 4))))

    assert rewritten(write, remove_no_ops) == ["Tanh", "Sigmoid"]


@pytest.mark.parametrize("case", NO_OPS)
def test_the_callers_name_survives_a_removal(rewritten, case):
    def write(net):
        inner = net.add("Tanh", net.input(2, 3, 4, 4))
        return NO_OPS[case](net, inner), net.add("Sigmoid", inner)

    assert rewritten(write, remove_no_ops) == ["Tanh", "Sigmoid"]


SOMETHING = {
    "output of an input": lambda net: net.add("Dropout", net.input(2, 3)),
    "growing shape": lambda net: net.add("Relu", net.add("Mul", net.input(2, 3), net.constant(np.ones((4, 2, 3))))),
    "backwards": lambda net: net.add("Relu", net.add("Slice", net.input(4), starts=(3,), ends=(-9,), steps=(-1,))),
    "one minus": lambda net: net.add("Relu", net.add("Sub", net.constant(0), net.input(4))),
    "one over": lambda net: net.add("Relu", net.add("Div", net.constant(1), net.add("Exp", net.input(4)))),
    "pool with stride": lambda net: net.add(
        "Exp", net.add("MaxPool", net.input(1, 2, 4, 4), kernel_shape=(1, 1), strides=(2, 2))
    ),
}


@pytest.mark.parametrize("case", SOMETHING)
def test_what_looks_like_nothing_but_does_something_stays(rewritten, case):
    counts = {"output of an input": 1, "one over": 3}
    assert len(rewritten(SOMETHING[case], remove_no_ops)) == counts.get(case, 2)


def test_two_outputs_of_the_caller_with_one_value_keep_both_names(rewritten):
    def write(net):
        inner = net.add("Tanh", net.input(2, 3))
        return inner, net.add("Dropout", inner)

    assert rewritten(write, remove_no_ops) == ["Tanh", "Dropout"]


def test_chains_of_reshapes_become_one(rewritten):
    def write(net):
        x = net.add("Tanh", net.input(2, 3, 4, 5))
        flat = net.add("Reshape", net.add("Unsqueeze", net.add("Reshape", x, shape=(2, 60)), axes=(1,)), shape=(2, 60))
        turned = net.add("Transpose", net.add("Transpose", x, perm=(0, 2, 3, 1)), perm=(0, 3, 1, 2))
        half = net.add("Transpose", net.add("Transpose", x, perm=(1, 0, 2, 3)), perm=(0, 2, 3, 1))
        back = net.add("Reshape", net.add("Flatten", x, axis=2), shape=(2, 3, 4, 5))
        return net.add("Exp", flat), net.add("Exp", turned), net.add("Exp", half), net.add("Neg", back)

    left = rewritten(write, simplify_reshapes)
    assert left == ["Tanh", "Flatten", "Transpose", "Exp", "Exp", "Exp", "Neg"]


def test_squeezing_an_image_of_one_pixel_is_a_flatten_and_moving_axes_of_one_a_reshape(rewritten):
    def write(net):
        x = net.add("GlobalAveragePool", net.input(2, 3, 4, 5))
        squeezed = net.add("Squeeze", x, axes=(2, 3))
        moved = net.add("Transpose", x, perm=(0, 2, 3, 1))
        return squeezed, moved, net.add("Unsqueeze", net.add("Exp", squeezed), axes=(2, 3))

    assert rewritten(write, simplify_reshapes) == ["GlobalAveragePool", "Flatten", "Reshape", "Exp", "Reshape"]


def test_nested_concats_are_flattened_unless_read_elsewhere(rewritten):
    def write(net):
        x, y, z = (net.input(2, 3, 2, 2) for _ in range(3))
        nested = net.add("Concat", net.add("Concat", x, y, axis=1), z, axis=1)
        shared = net.add("Concat", y, z, axis=1)
        other_axis = net.add("Concat", net.add("Concat", x, y, axis=2), net.add("Concat", y, z, axis=2), axis=1)
        return nested, net.add("Concat", shared, x, axis=1), net.add("Exp", shared), other_axis

    graphs = []

    def keep(graph):
        graphs.append(simplify_concats(graph))
        return graphs[-1]

    assert rewritten(write, keep).count("Concat") == 6
    widths = [len(node.inputs) for node in graphs[-1].nodes if node.operator == "Concat"]
    assert sorted(widths) == [2, 2, 2, 2, 2, 3]


def test_a_split_that_is_joined_again_vanishes(rewritten):
    def write(net):
        x, y = net.add("Tanh", net.input(2, 6)), net.input(2, 3)
        parts = net.add("Split", x, axis=1, split=(1, 2, 3), outputs=3)
        whole = net.add("Concat", *parts, axis=1)
        more = net.add("Concat", y, *parts, axis=1)
        return net.add("Exp", whole), more

    assert rewritten(write, simplify_concats) == ["Tanh", "Concat", "Exp"]


def test_a_split_that_is_joined_in_another_order_stays(rewritten):
    def write(net):
        a, b = net.add("Split", net.input(2, 6), axis=1, split=(3, 3), outputs=2)
        return net.add("Concat", b, a, axis=1), net.add("Concat", a, a, axis=1)

    assert rewritten(write, simplify_concats) == ["Split", "Concat", "Concat"]


def test_equal_nodes_and_constants_are_merged(rewritten):
    def write(net):
        x = net.input(1, 3, 4, 4)
        weights = np.random.default_rng(0).standard_normal((2, 3, 1, 1))
        one, same, other = (net.add("Conv", x, net.constant(weights + shift)) for shift in (0, 0, 1))
        relus = [net.add("Relu", made) for made in (one, same, other)]
        a, b = (net.add("Split", x, axis=1, split=(1, 2), outputs=2) for _ in range(2))
        return net.add("Sum", *relus), relus[1], net.add("Add", a[0], b[0]), net.add("Mul", a[1], b[1])

    left = rewritten(write, share_constants, merge_duplicates)
    assert left == ["Conv", "Conv", "Relu", "Relu", "Split", "Sum", "Add", "Mul"]


def test_two_equal_outputs_of_the_caller_are_not_merged(rewritten):
    def write(net):
        x = net.input(2, 2)
        return net.add("Exp", x), net.add("Exp", x)

    assert rewritten(write, merge_duplicates) == ["Exp", "Exp"]


def test_nodes_that_differ_in_an_attribute_are_not_merged(rewritten):
    def write(net):
        x = net.input(2, 2)
        return net.add("Add", net.add("LeakyRelu", x, alpha=0.25), net.add("LeakyRelu", x, alpha=0.5))

    assert rewritten(write, merge_duplicates) == ["LeakyRelu", "LeakyRelu", "Add"]


def test_constants_of_the_same_bytes_and_another_shape_are_not_shared():
    builder = Builder("b")
    x = builder.input("x", (2, 2))
    row, column = builder.constant("r", np.ones((1, 2), np.float32)), builder.constant("c", np.ones((2, 1), np.float32))
    graph = builder.finish([builder.add("Mul", [builder.add("Mul", [x, row]), column])])
    assert share_constants(graph) is graph


def test_zero_and_minus_zero_are_different_constants():
    builder = Builder("b")
    x = builder.input("x", (1,))
    made = [builder.add("Div", [x, builder.constant(f"k{sign}", np.float32([sign * 0.0]))]) for sign in (1, -1)]
    graph = builder.finish(made)
    assert share_constants(graph) is graph


CHAINS = {
    "two relus": (lambda net, x: net.add("Relu", net.add("Relu", x)), ["Relu"]),
    "relu6": (lambda net, x: net.add("Clip", net.add("Relu", x), min=-1, max=6), [("Clip", 0.0, 6.0)]),
    "clip, relu": (lambda net, x: net.add("Relu", net.add("Clip", x, min=-1, max=1)), [("Clip", 0.0, 1.0)]),
    "clip as relu": (lambda net, x: net.add("Clip", x, min=0), ["Relu"]),
    "extremes": (
        lambda net, x: net.add("Min", net.constant(0.5), net.add("Max", x, net.constant([[-0.5]]))),
        [("Clip", -0.5, 0.5)],
    ),
    "relu of sigmoid": (lambda net, x: net.add("Relu", net.add("Sigmoid", x)), ["Sigmoid"]),
    "per column": (lambda net, x: net.add("Max", x, net.constant([-0.5, 0, 0.5])), ["Max"]),
    "three": (lambda net, x: net.add("Max", x, net.constant(0), net.constant(0.25)), ["Max"]),
    "upside down": (
        lambda net, x: net.add("Exp", net.add("Add", x, net.add("Clip", net.add("Relu", x), min=2, max=1))),
        ["Relu", ("Clip", 2.0, 1.0), "Add", "Exp"],
    ),
}


@pytest.mark.parametrize("case", CHAINS)
def test_chains_of_limits_become_one(rewritten, case):
    write, wanted = CHAINS[case]
    graphs = []

    def keep(graph):
        graphs.append(simplify_clips(graph))
        return graphs[-1]

    left = rewritten(lambda net: write(net, net.input(4, 3)), keep)
    assert left == [item if isinstance(item, str) else item[0] for item in wanted]
    limits = [(node.attributes["min"], node.attributes["max"]) for node in graphs[-1].nodes if node.operator == "Clip"]
    assert limits == [item[1:] for item in wanted if not isinstance(item, str)]


def test_a_chain_of_limits_that_do_not_meet_gives_one_number(rewritten):
    def write(net):
        x = net.input(4, 3)
        return net.add("Add", x, net.add("Clip", net.add("Clip", x, min=-1, max=0.5), min=0.75, max=2))

    assert rewritten(write, simplify_clips) == ["Clip", "Add"]


def test_the_first_limit_stays_for_its_other_readers(rewritten):
    def write(net):
        inner = net.add("Relu", net.input(4, 3))
        return net.add("Clip", inner, min=-math.inf, max=1), net.add("Exp", inner)

    assert rewritten(write, simplify_clips) == ["Relu", "Clip", "Exp"]
