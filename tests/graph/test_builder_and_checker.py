"""The Builder makes whole Graphs only, and the checker finds what a careless pass would break."""

from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from perwatt.errors import InvalidGraph
from perwatt.graph import Builder, Cost, Graph, Node, Value, check, read, total_cost, write


def small() -> Graph:
    builder = Builder("small")
    image = builder.input("image", (2, 3, 5, 5))
    weights = builder.constant("weights", builder.random.normal(size=(4, 3, 3, 3)).astype(np.float32))
    maps = str(builder.add("Conv", [image, weights, ""], name="maps"))
    return builder.finish([str(builder.add("Relu", [maps], name="active"))])


def test_the_same_calls_give_the_same_network_and_another_seed_another() -> None:
    np.testing.assert_array_equal(small().constants["weights"], small().constants["weights"])
    assert Builder("a", seed=1).random.normal() != Builder("a", seed=2).random.normal()


def test_a_graph_prints_and_is_counted() -> None:
    graph = small()
    assert str(graph).splitlines()[0] == "input image:float32[2x3x5x5]"
    assert str(graph).splitlines()[-1] == "output active:float32[2x4x3x3]"
    assert total_cost(graph) == Cost(
        multiply_adds=2 * 4 * 3 * 3 * 27, parameter_bytes=4 * 108, read_bytes=4 * (150 + 72), written_bytes=4 * 2 * 72
    )


def test_an_optional_input_left_out_is_dropped_from_the_file() -> None:
    assert read(write(small())).nodes[0].inputs == ("image", "weights")


def test_names_are_made_up_where_none_is_given() -> None:
    builder = Builder("names")
    builder.input("relu_1", (2,))
    first, second = builder.add("Relu", ["relu_1"]), builder.add("Relu", ["relu_1"])
    assert len({first, second, "relu_1"}) == 3
    assert builder.add("Split", ["relu_1"], name="s", outputs=2, split=(1, 1)) == ("s", "s:1")
    assert builder.shape("s:1") == (1,)


def test_constants_are_kept_read_only() -> None:
    builder = Builder("constants")
    builder.constant("c", np.ones((), np.float32))
    graph = builder.finish([str(builder.add("Mul", [builder.input("x", (2,)), "c"]))])
    assert graph.constants["c"].shape == ()
    with pytest.raises(ValueError, match="read-only"):
        graph.constants["c"][...] = 2


def test_the_builder_refuses_names_twice_and_inputs_from_nowhere() -> None:
    builder = Builder("faults")
    builder.input("x", (2,))
    with pytest.raises(InvalidGraph, match=r"'x'.*taken"):
        builder.constant("x", np.ones(2))
    with pytest.raises(InvalidGraph, match="'ghost'; add it first"):
        builder.add("Relu", ["ghost"])
    with pytest.raises(InvalidGraph, match="static shape"):
        builder.input("y", (-1, 2))
    with pytest.raises(InvalidGraph, match="at least one output"):
        builder.finish([])
    with pytest.raises(InvalidGraph, match="'ghost' to be made"):
        builder.finish(["ghost"])


def values(graph: Graph, **changed: Value | None) -> Graph:
    merged = {**graph.values, **changed}
    return replace(graph, values=MappingProxyType({name: value for name, value in merged.items() if value is not None}))


def node(graph: Graph, position: int, **changed: Any) -> Graph:
    nodes = list(graph.nodes)
    nodes[position] = replace(nodes[position], **changed)
    return replace(graph, nodes=tuple(nodes))


FLOAT = np.dtype(np.float32)
BREAKS = {
    "out of order": (lambda graph: replace(graph, nodes=graph.nodes[::-1]), "made before 'active' reads it"),
    "no Value": (lambda graph: values(graph, maps=None), "a Value for 'maps'"),
    "wrong shape": (lambda graph: values(graph, maps=Value("maps", (2, 4, 3, 2), FLOAT)), "'maps' of Conv node"),
    "wrong type": (lambda graph: values(graph, active=Value("active", (2, 4, 3, 3), np.dtype("f8"))), "'active'"),
    "misnamed": (lambda graph: values(graph, maps=Value("map", (2, 4, 3, 3), FLOAT)), "to bear its name"),
    "stray": (lambda graph: values(graph, lost=Value("lost", (2,), FLOAT)), "'lost'"),
    "no output": (lambda graph: replace(graph, outputs=("ghost",)), "'ghost' to be made"),
    "constant input": (lambda graph: replace(graph, inputs=("image", "weights")), "inputs that are no constants"),
    "twice": (lambda graph: node(graph, 1, outputs=("maps",)), "'maps' made once"),
    "same title": (lambda graph: node(graph, 1, name="maps"), "nodes with different names"),
    "unknown": (lambda graph: node(graph, 1, operator="Blur"), "an operator of the table"),
    "attribute missing": (lambda graph: node(graph, 0, attributes={"group": 1}), "to have ["),
    "attribute extra": (lambda graph: node(graph, 1, attributes={"alpha": 1.0}), "to have []"),
    "not canonical": (
        lambda graph: node(graph, 0, attributes={**graph.nodes[0].attributes, "kernel_shape": None}),
        "'kernel_shape': (3, 3)",
    ),
    "rule": (lambda graph: node(graph, 0, attributes={**graph.nodes[0].attributes, "group": 2}), "in 2 groups"),
    "constant shape": (
        lambda graph: replace(graph, constants={"weights": np.ones((4, 3, 3, 2), np.float32)}),
        "constant 'weights'",
    ),
}


@pytest.mark.parametrize("what", BREAKS)
def test_the_checker_finds_a_broken_rule(what: str) -> None:
    spoil, words = BREAKS[what]
    graph = small()
    check(graph)
    with pytest.raises(InvalidGraph) as caught:
        check(spoil(graph))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_node_needs_no_attributes_to_be_written_down() -> None:
    assert dict(Node("Relu", "r", ("x",), ("y",)).attributes) == {}
