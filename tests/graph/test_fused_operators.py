"""The operators that ONNX does not have: their rules, their cost, and their spelling in ONNX's own."""

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from perwatt.errors import InvalidGraph
from perwatt.graph import OPERATORS, Builder, write
from perwatt.graph.checker import inputs_of
from perwatt.graph.decompose import decomposed


def started():
    builder = Builder("b", seed=1)
    x = builder.input("x", (2, 4, 5, 6), np.float64)
    weights = builder.constant("w", builder.random.standard_normal((6, 2, 3, 3)))
    bias = builder.constant("b", builder.random.standard_normal(6))
    return builder, x, weights, bias


def test_a_fused_convolution_is_activation_of_convolution_and_bias_and_residual():
    builder, x, weights, bias = started()
    residual = builder.input("r", (2, 6, 3, 4), np.float64)
    given = {"group": 2, "activation": "Clip", "activation_alpha": -0.5, "activation_beta": 2}
    graph = builder.finish([builder.add("FusedConv", [x, weights, bias, residual], name="y", **given)])
    random = np.random.default_rng(0)
    feeds = {name: random.standard_normal(graph.values[name].shape) for name in ("x", "r")}
    windows = np.lib.stride_tricks.sliding_window_view(feeds["x"], (3, 3), axis=(2, 3)).reshape(2, 2, 2, 3, 4, 3, 3)
    kernels = graph.constants["w"].reshape(2, 3, 2, 3, 3)
    sums = np.einsum("ngcyxij,gocij->ngoyx", windows, kernels).reshape(2, 6, 3, 4)
    wanted = np.clip(sums + graph.constants["b"][:, None, None] + feeds["r"], -0.5, 2)
    (got,) = ReferenceEvaluator(onnx.load_from_string(write(graph))).run(None, feeds)
    np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-12)
    (node,) = graph.nodes
    row = OPERATORS["FusedConv"]
    assert row.multiply_adds(node, inputs_of(node, graph.values), [graph.values["y"]]) == 2 * 6 * 3 * 4 * 2 * 9


def test_a_graph_of_onnx_operators_is_its_own_spelling():
    builder, x, *_ = started()
    graph = builder.finish([builder.add("Relu", [x])])
    assert decomposed(graph) is graph


def test_several_outputs_share_the_channels():
    builder, x, weights, _ = started()
    one, two = builder.add("FusedConv", [x, weights], name="y", outputs=2, group=2, splits=(1, 5))
    graph = builder.finish([one, two])
    assert [graph.values[name].shape[1] for name in graph.outputs] == [1, 5]
    (node,) = graph.nodes
    outputs = [graph.values[name] for name in node.outputs]
    assert OPERATORS["FusedConv"].multiply_adds(node, inputs_of(node, graph.values), outputs) == 2 * 6 * 12 * 18
    assert [node.operator for node in decomposed(graph).nodes] == ["Conv", "Split"]


BROKEN = {
    "unknown activation": ({"activation": "Softplus"}, 1, []),
    "parts too small": ({"splits": (2, 3)}, 2, []),
    "parts of nothing": ({"splits": (0, 6)}, 2, []),
    "residual of another shape": ({}, 1, [(2, 6, 1, 1)]),
    "residual beside parts": ({"splits": (2, 4)}, 2, [(2, 6, 3, 4)]),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_breaks_the_rule_is_refused(case):
    given, outputs, shapes = BROKEN[case]
    builder, x, weights, bias = started()
    residuals = [builder.input("r", shape, np.float64) for shape in shapes]
    with pytest.raises(InvalidGraph, match="expected"):
        builder.add("FusedConv", [x, weights, bias, *residuals], group=2, outputs=outputs, **given)


def test_a_fused_gemm_wants_weights_by_output():
    builder = Builder("b")
    x, bias = builder.input("x", (3, 5)), builder.input("b", (7,))
    weights, turned = builder.input("w", (7, 5)), builder.input("t", (5, 7))
    made = builder.add("FusedGemm", [x, weights, bias], activation="LeakyRelu", activation_alpha=0.5)
    assert builder.shape(made) == (3, 7)
    with pytest.raises(InvalidGraph, match="weights"):
        builder.add("FusedGemm", [x, turned, bias])
    with pytest.raises(InvalidGraph, match="bias"):
        builder.add("FusedGemm", [x, weights, x])
