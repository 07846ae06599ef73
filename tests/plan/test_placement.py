"""Where tensors lie: nobody overwrites what is still to be read, views need no copies, imagewise parts repeat."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from plan_cases import check_memory, graph_of, machine, place_net
from small_graphs import NETS, Net, modules, perceptron, views

from perwatt.cpu.catalogue import KERNELS
from perwatt.cpu.kernels.pooling import MOST_COLUMNS
from perwatt.errors import UnsupportedOperator
from perwatt.graph import Builder, Graph
from perwatt.networks import NETWORKS, build
from perwatt.passes import apply
from perwatt.plan import Placement, make, place
from perwatt.plan import placement as placement_file
from perwatt.plan.layouts import WIDEST_POOL


def operators(placement: Placement) -> list[str]:
    return [step.operator for step in placement.steps]


@pytest.mark.parametrize("lanes", [16, 8, 4])
@pytest.mark.parametrize(("batch", "images"), [(1, ()), (3, ()), (6, (2,)), (4, (1,)), (12, (1, 2, 6))])
@pytest.mark.parametrize("write", NETS, ids=lambda write: write.__name__)
def test_every_reader_finds_what_was_written_for_it(
    write: Callable[[Net], Sequence[str]],
    batch: int,
    images: Sequence[int],
    lanes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(placement_file, "FITS_BYTES", 3000)  # such small networks would fit at any size
    check_memory(place_net(write, batch, lanes, images=images))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["googlenet", "resnet50"])
def test_also_in_whole_networks(name: str) -> None:
    graph = apply(NETWORKS[name].build(batch=2))
    check_memory(place(graph, machine(16), 2, (1,)))
    check_memory(place(graph, machine(8), 2))


@pytest.mark.parametrize("batch", [1, 3])
def test_concats_of_whole_vectors_copy_nothing(batch: int) -> None:
    placement = place_net(modules, batch)
    assert "Concat" not in operators(placement)
    graph = graph_of(modules, batch)
    concats = [node for node in graph.nodes if node.operator == "Concat"]
    assert len(concats) == 4
    for node in concats:
        whole, block = placement.places[node.outputs[0]], 0
        for name in node.inputs:
            part = placement.places[name]
            assert (part.buffer, part.offset) == (whole.buffer, whole.offset + block * 144 * 16)
            block += -(-graph.values[name].shape[1] // 16)
    # On a machine whose vectors a part does not fill, the part that has a tail in the middle must be copied.
    assert "Concat" not in operators(place_net(modules, batch, lanes=8))


def test_reshapes_move_nothing() -> None:
    net = Net(2)
    x = net.input(4, 3, 2)
    y = net.add("Reshape", net.add("Relu", net.add("Reshape", x, shape=(2, 6, 4))), shape=(12, 4))
    assert operators(place(apply(net.graph(y)), machine(), 1)) == ["Relu"]


def test_the_imagewise_part_ends_where_images_meet() -> None:
    placement = place_net(modules, 6, images=(2,))
    (level,) = placement.levels
    assert (level.images, placement.repeats(0), placement.repeats(level.end)) == (2, 3, 1)
    inside = operators(placement)[: level.end]
    assert "FusedConv" in inside
    assert "FusedGemm" not in inside
    assert all(t.shape[0] == 2 for step in placement.steps[: level.end] for t in step.outputs)
    whole = place_net(modules, 6)
    assert sum(placement.buffer_floats.values()) < sum(whole.buffer_floats.values())


def test_a_part_that_does_not_divide_the_batch_is_the_whole_batch() -> None:
    assert place_net(modules, 5, images=(2,)).levels == ()
    assert place_net(perceptron, 4, images=(2,)).levels == ()  # no imagewise part


def test_first_layers_read_the_callers_array() -> None:
    placement = place_net(modules, 2)
    assert operators(placement)[0] == "FusedConv"
    first = placement.steps[0].inputs[0]
    assert first is not None
    assert first.layout == "plain"
    assert placement.places[first.name].buffer == placement.inputs[0]


def test_pools_too_wide_for_registers_are_plain() -> None:
    assert WIDEST_POOL == MOST_COLUMNS, "plan and kernels must mean the same windows"
    net = Net(2)
    x = net.conv(net.input(3, 9, 40), 16, 3)
    for width, pads in ((11, 0), (13, 0), (25, 0), (3, 2)):
        net.add("MaxPool", x, kernel_shape=(1, width), pads=(0, pads, 0, 0), name=f"pool{width}")
    graph = net.graph("pool11", "pool13", "pool25", "pool3")
    for lanes, plain in ((16, {"pool25"}), (8, {"pool13", "pool25"})):
        steps = place(apply(graph), machine(lanes), 1).steps
        pools = [step for step in steps if step.operator == "MaxPool"]
        assert {step.name for step in pools if step.outputs[0].layout == "plain"} == plain
        make("net", place(apply(graph), machine(lanes), 1), KERNELS)


def test_every_output_has_an_array_of_its_own() -> None:
    placement = place_net(views, 2)
    assert len(placement.outputs) == 7
    assert len({placement.places[name].buffer for name in placement.outputs}) == 7
    assert not {placement.places[name].buffer for name in placement.outputs} & set(placement.inputs)


def foreign(dtype: type, shape: tuple[int, ...] = (1, 2)) -> Graph:
    b = Builder("net", seed=0)
    return b.finish([str(b.add("Add", [b.input("x", shape, dtype), b.input("y", shape, dtype)], name="sum"))])


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int64, np.uint8])
def test_other_types_are_refused_by_name(dtype: type) -> None:
    with pytest.raises(UnsupportedOperator, match=rf"Add \(node 'sum'\).*{np.dtype(dtype).name}.*float32"):
        place(foreign(dtype), machine(), 1)


def test_empty_tensors_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedOperator, match=r"'x' of shape \(0, 2\) is empty"):
        place(foreign(np.float32, (0, 2)), machine(), 1)


def test_placing_leaves_the_graph_alone() -> None:
    graph = graph_of(modules, 2)
    text = str(graph)
    one, other = (place(graph, machine(), 2) for _ in range(2))
    assert str(graph) == text
    assert one.places == other.places
    assert [s.name for s in one.steps] == [s.name for s in other.steps]
    assert build("lenet").nodes  # a built-in network is no special case
