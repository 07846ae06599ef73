"""Passes that fold scales into convolutions, fuse what follows them, and merge siblings."""

import numpy as np
import pytest

from perwatt.graph import Builder
from perwatt.passes import PASSES, apply, steps
from perwatt.passes.fold_scales import fold_scales, scales_to_convolutions
from perwatt.passes.fuse_products import fuse_followers, to_fused
from perwatt.passes.merge_siblings import merge_siblings
from perwatt.passes.normalise_gemm import normalise_gemm


def image(net):
    return net.input(2, 4, 5, 6)


def each(net, *shape):
    """A number for each channel of an image."""
    return net.positive(*shape or (4, 1, 1))


AFTER = {
    "normalisation": lambda net, c: net.norm(c),
    "normalisation, scale, shift": lambda net, c: net.add("Add", net.add("Mul", net.norm(c), each(net)), each(net)),
    "times": lambda net, c: net.add("Mul", each(net, 1, 4, 1, 1), c),
    "times one number": lambda net, c: net.add("Mul", c, net.constant(0.5)),
    "by": lambda net, c: net.add("Div", c, each(net)),
    "plus": lambda net, c: net.add("Add", each(net), c),
    "minus": lambda net, c: net.add("Sub", c, each(net)),
    "from": lambda net, c: net.add("Sub", each(net), c),
}


@pytest.mark.parametrize("case", AFTER)
@pytest.mark.parametrize("group", [1, 2])
def test_scales_behind_a_convolution_are_folded(rewritten, case, group):
    def write(net):
        return AFTER[case](net, net.conv(image(net), 4, 3, pads=(1, 0, 1, 0), group=group, bias=group == 1))

    assert rewritten(write, fold_scales) == ["Conv"]


@pytest.mark.parametrize("case", AFTER)
@pytest.mark.parametrize("group", [1, 2])
def test_scales_before_a_convolution_without_pads_are_folded(rewritten, case, group):
    def write(net):
        return net.conv(AFTER[case](net, image(net)), 6, 3, group=group, bias=group == 1)

    assert rewritten(write, fold_scales) == ["Conv"]


def test_before_a_padded_convolution_only_scales_are_folded(rewritten):
    def write(net):
        scaled = net.add("Mul", net.add("Sub", image(net), each(net)), each(net))
        normed = net.norm(image(net))
        return net.conv(scaled, 3, 3, pads=(1,) * 4), net.conv(normed, 3, 3, pads=(0, 0, 1, 1))

    left = rewritten(write, fold_scales)
    assert sorted(left) == ["BatchNormalization", "Conv", "Conv", "Sub"]


NOT_FOLDED = {
    "by pixel": (lambda net, c: net.add("Mul", c, net.positive(5, 6)), ["Conv", "Mul"]),
    "by image": (lambda net, c: net.add("Mul", c, net.positive(2, 1, 1, 1)), ["Conv", "Mul"]),
    "over": (lambda net, c: net.add("Div", net.constant(1), net.add("Exp", c)), ["Conv", "Exp", "Div"]),
    "grown": (lambda net, c: net.add("Mul", c, net.positive(1, 1, 4, 1, 1)), ["Conv", "Mul"]),
    "by input": (lambda net, c: net.add("Mul", c, net.input(4, 1, 1)), ["Conv", "Mul"]),
}


@pytest.mark.parametrize("case", NOT_FOLDED)
def test_what_is_no_scale_of_channels_is_not_folded(rewritten, case):
    write, wanted = NOT_FOLDED[case]
    assert rewritten(lambda net: write(net, net.conv(image(net), 4)), fold_scales, scales_to_convolutions) == wanted


def test_a_convolution_that_others_read_keeps_its_weights(rewritten):
    def write(net):
        one, other = net.conv(image(net), 4), net.conv(image(net), 4)
        return net.norm(one), net.add("Exp", one), net.norm(other), other

    left = rewritten(write, fold_scales)
    assert left.count("BatchNormalization") == 2


def test_weights_shared_by_two_convolutions_are_folded_apart(rewritten):
    def write(net):
        x, weights = image(net), net.weights(4, 4, 1, 1)
        return net.norm(net.add("Conv", x, weights)), net.norm(net.add("Conv", x, weights))

    assert rewritten(write, fold_scales) == ["Conv", "Conv"]


def test_scales_around_a_matrix_product_are_folded(rewritten):
    def write(net):
        x = net.norm(net.input(3, 5))
        return net.add("Add", net.norm(net.add("MatMul", x, net.weights(5, 7))), net.weights(7))

    assert rewritten(write, normalise_gemm, fold_scales) == ["Gemm"]


def test_a_normalisation_on_its_own_becomes_a_depthwise_convolution(rewritten):
    def write(net):
        joined = net.add("Concat", image(net), image(net), axis=1)
        scaled = net.add("Add", net.add("Mul", net.norm(joined), each(net, 8, 1, 1)), each(net, 8, 1, 1))
        chain = net.add("Mul", net.add("Sub", each(net), image(net)), each(net))
        lone = net.add("Mul", image(net), each(net))
        return net.add("Relu", scaled), chain, lone, net.norm(net.input(2, 3))

    left = rewritten(write, fold_scales, scales_to_convolutions)
    assert sorted(left) == ["Add", "Concat", "Conv", "Conv", "Mul", "Mul", "Relu"]


def test_folding_sums_in_float64():
    # 2²⁴ + 1 has no float32: a fold in float32 would lose the 1 that the mean takes away again.
    builder = Builder("b")
    x = builder.input("x", (1, 1, 1, 1))
    conv = builder.add(
        "Conv", [x, builder.constant("w", np.ones((1, 1, 1, 1), np.float32)), constant(builder, 2.0**24)]
    )
    parameters = [constant(builder, value) for value in (1, 1, 2.0**24, 1)]
    graph = fold_scales(builder.finish([builder.add("BatchNormalization", [conv, *parameters], epsilon=0.0)]))
    (node,) = graph.nodes
    assert graph.constants[node.inputs[2]] == 1.0


def constant(builder, value):
    return builder.constant(f"k{len(builder._values)}", np.array([value], np.float32))


FOLLOWERS = {
    "Relu": {},
    "Clip": {"min": 0, "max": 6},
    "LeakyRelu": {"alpha": 0.25},
    "Elu": {"alpha": 0.5},
    "Sigmoid": {},
    "HardSigmoid": {"alpha": 0.25, "beta": 0.5},
    "Tanh": {},
    "HardSwish": {},
    "Silu": {},
}


@pytest.mark.parametrize("operator", FOLLOWERS)
def test_activations_are_fused(rewritten, operator):
    def write(net):
        x = net.conv(image(net), 3, 3, strides=(2, 1), dilations=(1, 2), bias=False)
        y = net.add("Gemm", net.input(3, 5), net.weights(7, 5), net.weights(7), transB=1)
        return [net.add(operator, made, **FOLLOWERS[operator]) for made in (x, y)]

    rounded = np.float32 if operator == "HardSwish" else None
    assert rewritten(write, to_fused, fuse_followers, rounded=rounded) == ["FusedConv", "FusedGemm"]


def test_residual_and_activation_are_fused_and_every_product_has_a_bias(rewritten):
    graphs = []

    def keep(graph):
        graphs.append(fuse_followers(graph))
        return graphs[-1]

    def write(net):
        x = image(net)
        made = net.add("Relu", net.add("Add", x, net.conv(x, 4, 3, pads=(1,) * 4, bias=False)))
        matrix = net.input(3, 5)
        return made, net.add("Tanh", net.add("Add", net.add("Gemm", matrix, net.weights(5, 5), transB=1), matrix))

    assert rewritten(write, to_fused, keep) == ["FusedConv", "FusedGemm"]
    conv = graphs[-1].nodes[0]
    assert conv.inputs[3] == "in1"
    assert not graphs[-1].constants[conv.inputs[2]].any()
    assert conv.attributes["activation"] == "Relu"


def test_of_two_convolutions_the_later_takes_the_sum(rewritten):
    graphs = []

    def keep(graph):
        graphs.append(fuse_followers(graph))
        return graphs[-1]

    def write(net):
        x = image(net)
        shortcut = net.conv(x, 6)
        branch = net.conv(net.add("Relu", net.conv(x, 4)), 6)
        return net.add("Relu", net.add("Add", shortcut, branch))

    assert rewritten(write, to_fused, keep) == ["FusedConv", "FusedConv", "FusedConv"]
    first, _, last = graphs[-1].nodes
    assert last.inputs[3] == first.outputs[0]
    assert last.attributes["activation"] == "Relu"
    assert first.attributes["activation"] is None


APART = {
    "read twice": (
        lambda net, c, x: [net.add("Relu", c), net.add("Exp", c)],
        ["FusedConv", "Relu", "Exp"],
    ),
    "handed out": (lambda net, c, x: [net.add("Relu", c), c], ["FusedConv", "Relu"]),
    "added to itself": (lambda net, c, x: [net.add("Add", c, c)], ["FusedConv", "Add"]),
    "activated, then added": (
        lambda net, c, x: [net.add("Add", net.add("Relu", c), x)],
        ["FusedConv", "Add"],
    ),
    "activated twice": (lambda net, c, x: [net.add("Tanh", net.add("Relu", c))], ["FusedConv", "Tanh"]),
    "added twice": (lambda net, c, x: [net.add("Add", net.add("Add", c, x), x)], ["FusedConv", "Add"]),
    "added to what broadcasts": (lambda net, c, x: [net.add("Add", c, net.input(4, 1, 1))], ["FusedConv", "Add"]),
    "added to a constant": (lambda net, c, x: [net.add("Add", c, net.weights(2, 4, 5, 6))], ["FusedConv", "Add"]),
    "growing": (lambda net, c, x: [net.add("Add", c, net.input(1, 2, 4, 5, 6))], ["FusedConv", "Add"]),
    "another activation": (lambda net, c, x: [net.add("Softplus", c)], ["FusedConv", "Softplus"]),
    "slopes": (lambda net, c, x: [net.add("PRelu", c, net.positive(4, 1, 1))], ["FusedConv", "PRelu"]),
}


@pytest.mark.parametrize("case", APART)
def test_what_must_stay_apart_stays(rewritten, case):
    write, wanted = APART[case]

    def whole(net):
        x = image(net)
        return write(net, net.conv(x, 4), x)

    assert rewritten(whole, to_fused, fuse_followers) == wanted


def test_products_with_computed_weights_stay_as_they_are(rewritten):
    def write(net):
        x, weights = image(net), net.input(3, 4, 1, 1)
        made = net.add("Conv", x, weights)
        biased = net.add("Conv", x, net.weights(3, 4, 1, 1), net.input(3))
        return made, biased, net.add("Gemm", net.input(2, 3), net.input(3, 2))

    assert rewritten(write, to_fused, fuse_followers) == ["Conv", "Conv", "Gemm"]


def test_siblings_are_merged(rewritten):
    graphs = []

    def keep(graph):
        graphs.append(merge_siblings(graph))
        return graphs[-1]

    def write(net):
        x = image(net)
        one = net.add("Relu", net.conv(x, 3))
        three = net.conv(net.add("Relu", net.conv(x, 2)), 5, 3, pads=(1,) * 4)
        last = net.add("Relu", net.conv(x, 7))
        plain, strided, grouped = net.conv(x, 3), net.conv(x, 3, strides=(2, 2)), net.conv(x, 4, group=2)
        return net.add("Concat", one, three, last, axis=1), one, plain, strided, grouped

    left = rewritten(write, to_fused, fuse_followers, keep)
    assert left.count("FusedConv") == 5
    merged = graphs[-1].nodes[0]
    assert merged.attributes["splits"] == (3, 2, 7)
    assert len(merged.outputs) == 3


def test_a_convolution_with_a_residual_has_no_siblings(rewritten):
    def write(net):
        x = image(net)
        return net.conv(x, 4), net.add("Add", net.conv(x, 4), x)

    assert rewritten(write, to_fused, fuse_followers, merge_siblings) == ["FusedConv", "FusedConv"]


def test_the_trace_names_every_pass_and_counts_nodes():
    builder = Builder("b")
    x = builder.input("x", (1, 2, 3, 3))
    conv = builder.add("Conv", [x, builder.constant("w", np.ones((2, 2, 1, 1), np.float32))])
    graph = builder.finish([builder.add("Relu", [builder.add("Dropout", [conv])])])
    lines = [str(step) for step in steps(graph)]
    assert [line.split(":")[0] for line in lines] == [each.name for each in PASSES]
    assert "remove_no_ops: 3 → 2 nodes" in lines
    assert "fuse_followers: 2 → 1 nodes" in lines
    assert [node.operator for node in apply(graph).nodes] == ["FusedConv"]
    without = [each for each in PASSES if each.name != "fuse_followers"]
    assert [node.operator for node in apply(graph, without).nodes] == ["FusedConv", "Relu"]
