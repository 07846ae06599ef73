"""A small convolutional network with one of each thing that engines disagree about, built with onnx.helper alone."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

INPUT_SHAPE = (3, 19, 23)
CLASSES = 7


def small_network(batch: int) -> onnx.ModelProto:
    """Return a network with strided and grouped convolutions, LRN, ceil-mode pooling, concatenation, Gemm, softmax."""
    generator = np.random.default_rng(20)
    weights: list[onnx.TensorProto] = []

    def constant(name: str, *shape: int, scale: float | None = None) -> str:
        fan_in = int(np.prod(shape[1:])) or 1
        values = generator.normal(size=shape) * (scale if scale is not None else np.sqrt(2.0 / fan_in))
        weights.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def variance(name: str, size: int) -> str:
        weights.append(numpy_helper.from_array(generator.uniform(0.5, 2.0, size).astype(np.float32), name))
        return name

    node = helper.make_node
    nodes = [
        node("Conv", ["image", constant("w1", 32, 3, 5, 5), constant("b1", 32, scale=0.1)], ["c1"],
             kernel_shape=[5, 5], strides=[2, 2], pads=[2, 1, 2, 1]),
        node("Relu", ["c1"], ["r1"]),
        node("LRN", ["r1"], ["n1"], size=5, alpha=0.1, beta=0.75, bias=2.0),
        node("MaxPool", ["n1"], ["p1"], kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
        node("Conv", ["p1", constant("w2", 32, 16, 3, 3), constant("b2", 32, scale=0.1)], ["c2"],
             kernel_shape=[3, 3], pads=[1, 1, 1, 1], group=2),
        node("BatchNormalization",
             ["c2", variance("s2", 32), constant("o2", 32, scale=0.1), constant("m2", 32, scale=0.1),
              variance("v2", 32)], ["z2"]),
        node("Relu", ["z2"], ["r2"]),
        node("AveragePool", ["r2"], ["p2"], kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1]),
        node("Conv", ["r2", constant("w3", 32, 32, 3, 3)], ["c3"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("Add", ["c3", "p2"], ["a3"]),
        node("Clip", ["a3", "low", "high"], ["r3"]),
        node("Concat", ["p2", "r3", "r2"], ["k"], axis=1),
        node("MaxPool", ["k"], ["p3"], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
        node("Flatten", ["p3"], ["f"]),
        node("Gemm", ["f", constant("w4", 32, 864), constant("b4", 32, scale=0.1)], ["g4"], transB=1),
        node("Relu", ["g4"], ["r4"]),
        node("Dropout", ["r4"], ["d4"]),
        node("Gemm", ["d4", constant("w5", 32, CLASSES, scale=0.02), constant("b5", CLASSES, scale=0.1)], ["g5"]),
        node("Softmax", ["g5"], ["label"], axis=1),
    ]  # fmt: skip
    for name, value in (("low", 0.0), ("high", 6.0)):
        weights.append(numpy_helper.from_array(np.float32(value), name))
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, *INPUT_SHAPE])],
        [helper.make_tensor_value_info("label", TensorProto.FLOAT, [batch, CLASSES])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
