"""The built-in networks have the layers, shapes and multiply-adds of the networks that the onnx package ships."""

from collections import Counter
from collections.abc import Callable
from math import prod
from pathlib import Path

import onnx
import pytest
from onnx import helper, shape_inference

from perwatt.graph.graph import Graph, Node
from perwatt.graph.operators import OPERATORS
from perwatt.networks import NETWORKS

LIGHT = Path(onnx.__file__).parent / "backend/test/data/light"
# One layer: operator, kernel, strides, groups, output shape.
Layer = tuple[str, tuple[int, ...], tuple[int, ...], int, tuple[int, ...]]
# Operators that mean the same where these networks use them.
SAME = {"Reshape": "Flatten", "Sum": "Add"}


def light(file: str, size: int, round_up: bool) -> tuple[list[Layer], int]:
    """Return the layers of one of onnx's networks for another input size, and its multiply-adds.

    `round_up` undoes what the conversion from Caffe changed: Caffe rounds a pooled size up. Shapes are onnx's own.
    """
    model = onnx.load(LIGHT / f"light_{file}.onnx")
    model.opset_import[0].version = 11  # the first opset after 9 with ceil_mode and unchanged Softmax
    weights = {tensor.name for tensor in model.graph.initializer}
    (fed,) = (value for value in model.graph.input if value.name not in weights)
    for axis in (2, 3):
        fed.type.tensor_type.shape.dim[axis].dim_value = size
    for node in model.graph.node:
        if round_up and node.op_type == "MaxPool":
            node.attribute.append(helper.make_attribute("ceil_mode", 1))
        if round_up and node.op_type == "AveragePool":
            next(attribute for attribute in node.attribute if attribute.name == "pads").ints[:] = [0, 0, 0, 0]
    graph = shape_inference.infer_shapes(model, strict_mode=True).graph
    shapes = {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
    layers, multiply_adds = [], 0
    for node in graph.node:
        steering = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        shape = shapes[node.output[0]]
        if node.op_type == "Conv":
            multiply_adds += prod(shape) * prod(shapes[node.input[1]][1:])
        elif node.op_type == "Gemm":
            multiply_adds += prod(shape) * shapes[node.input[1]][1]
        # Weights are made by nodes in these files; they are no layers.
        if node.op_type != "ConstantOfShape" and shape[:1] == (1,):
            layers.append(
                (
                    SAME.get(node.op_type, node.op_type),
                    tuple(steering.get("kernel_shape", ())),
                    tuple(steering.get("strides", ())),
                    int(steering.get("group", 1)),
                    shape,
                )
            )
    return layers, multiply_adds


def built(graph: Graph) -> list[Layer]:
    return [built_layer(graph, node) for node in graph.nodes]


def built_layer(graph: Graph, node: Node) -> Layer:
    steering = node.attributes
    return (
        SAME.get(node.operator, node.operator),
        tuple(steering.get("kernel_shape", ())),  # type: ignore[arg-type]
        tuple(steering.get("strides", ())),  # type: ignore[arg-type]
        int(steering.get("group", 1)),  # type: ignore[arg-type]
        graph.values[node.outputs[0]].shape,
    )


def multiply_adds(graph: Graph) -> int:
    return sum(
        OPERATORS[node.operator].multiply_adds(
            node, [graph.values[name] for name in node.inputs], [graph.values[name] for name in node.outputs]
        )
        for node in graph.nodes
    )


@pytest.mark.slow
def test_alexnet_is_onnxs_alexnet_at_227(graph_of: Callable[[str], Graph]) -> None:
    layers, total = light("bvlc_alexnet", 227, round_up=False)
    graph = graph_of("alexnet")
    assert built(graph) == layers
    assert multiply_adds(graph) == total


@pytest.mark.slow
def test_caffenet_is_alexnet_with_pooling_before_normalisation(graph_of: Callable[[str], Graph]) -> None:
    layers, _ = light("bvlc_alexnet", 227, round_up=False)
    expected = [layer[0] for layer in layers]
    for norm in [position for position, name in enumerate(expected) if name == "LRN"]:
        expected[norm : norm + 2] = ["MaxPool", "LRN"]
    graph = graph_of("caffenet")
    assert [layer[0] for layer in built(graph)] == expected
    # Pooling first, the normalisation sees the pooled size; everything else has AlexNet's shapes.
    assert [layer[4] for layer in built(graph) if layer[0] == "LRN"] == [(1, 96, 27, 27), (1, 256, 13, 13)]
    assert Counter(layer for layer in built(graph) if layer[0] != "LRN") == Counter(
        layer for layer in layers if layer[0] != "LRN"
    )


def test_googlenet_is_onnxs_inception_v1_with_caffes_rounding(graph_of: Callable[[str], Graph]) -> None:
    layers, total = light("inception_v1", 224, round_up=True)
    graph = graph_of("googlenet")
    assert built(graph) == layers
    assert multiply_adds(graph) == total
    assert sum(layer[0] == "Conv" for layer in layers) == 57


def test_squeezenet_is_onnxs_squeezenet_with_caffes_rounding(graph_of: Callable[[str], Graph]) -> None:
    layers, total = light("squeezenet", 227, round_up=True)
    graph = graph_of("squeezenet1.1")
    flat = ("Flatten", (), (), 1, (1, 1000))
    # Ours flattens before Softmax; onnx's file gives [1, 1000, 1, 1].
    assert built(graph) == [*layers[:-1], flat, ("Softmax", (), (), 1, (1, 1000))]
    assert layers[-1] == ("Softmax", (), (), 1, (1, 1000, 1, 1))
    assert multiply_adds(graph) == total


def test_resnet50_is_onnxs_resnet50(graph_of: Callable[[str], Graph]) -> None:
    layers, total = light("resnet50", 224, round_up=False)
    graph = graph_of("resnet50")
    pooled = [
        ("GlobalAveragePool", (), (), 1, layer[4]) if layer[0] == "AveragePool" else layer  # a 7x7 window on 7x7
        for layer in layers
    ]
    assert built(graph) == pooled
    assert multiply_adds(graph) == total


@pytest.mark.slow
def test_vgg16_is_onnxs_vgg19_without_the_fourth_convolution_of_three_blocks(graph_of: Callable[[str], Graph]) -> None:
    layers, _ = light("vgg19", 224, round_up=False)
    fourth = [
        position
        for position in range(7, len(layers))
        if [layer[0] for layer in layers[position - 7 : position + 1]] == ["Conv", "Relu"] * 4
    ]
    assert len(fourth) == 3
    kept = [layer for position, layer in enumerate(layers) if not {position, position + 1} & set(fourth)]
    assert built(graph_of("vgg16")) == kept


# Parameters as published (trained values: means and variances of a batch normalisation are not among them), the number
# of convolutions, and multiply-adds in millions: widely published for GoogLeNet, ResNet-50, VGG-16 and AlexNet (1.58,
# 4.09, 15.5 and 0.72 G); of the others the figure follows from the layers' sizes at the input size used here.
PUBLISHED = {
    "alexnet": (60_965_224, 5, 724),
    "caffenet": (60_965_224, 5, 724),
    "googlenet": (6_998_552, 57, 1582),
    "squeezenet1.1": (1_235_496, 26, 388),
    "resnet50": (25_557_032, 53, 4089),
    "lenet": (431_080, 2, 2.3),
    "efficientnet-lite0": (4_652_008, 49, 385),
    "vgg16": (138_357_544, 13, 15_470),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in ("vgg16", "caffenet") else ()) for name in PUBLISHED]
)
def test_parameters_convolutions_and_multiply_adds_are_the_published_ones(
    name: str, graph_of: Callable[[str], Graph]
) -> None:
    graph = graph_of(name)
    parameters, convolutions, millions = PUBLISHED[name]
    trained = [array.size for key, array in graph.constants.items() if not key.endswith(("_mean", "_var"))]
    assert sum(trained) == parameters
    assert sum(node.operator == "Conv" for node in graph.nodes) == convolutions
    assert multiply_adds(graph) / 1e6 == pytest.approx(millions, rel=0.01)


def test_every_network_is_published() -> None:
    assert set(PUBLISHED) == set(NETWORKS)
