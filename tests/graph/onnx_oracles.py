"""Independent judges for the tests of this room: ONNX's own inference and reference, and ONNX Runtime."""

import contextlib
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from perwatt.graph import Graph

EPSILON = float(np.finfo(np.float32).eps)


def run_onnxruntime(model: bytes, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Run an ONNX file in ONNX Runtime without its optimisations, on one thread."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return [np.asarray(array) for array in session.run(None, dict(feeds))]


class LRN(OpRun):
    """Local response normalisation in float64: onnx 1.23's own sums only as many channels as there are images."""

    op_domain = ""

    def _run(self, x: np.ndarray, alpha: float, beta: float, bias: float, size: int) -> tuple[np.ndarray]:
        squares = x.astype(np.float64) ** 2
        begins = [max(0, channel - (size - 1) // 2) for channel in range(x.shape[1])]
        ends = [channel + size // 2 + 1 for channel in range(x.shape[1])]
        sums = [squares[:, begin:end].sum(axis=1) for begin, end in zip(begins, ends, strict=True)]
        return ((x / (bias + alpha / size * np.stack(sums, axis=1)) ** beta).astype(x.dtype),)


class ConvTranspose(OpRun):
    """Transposed convolution in float64, number by number: onnx 1.23's own cannot take groups wider than a channel."""

    op_domain = ""

    def _run(
        self, x: np.ndarray, w: np.ndarray, b: np.ndarray | None = None, group: int = 1,
        strides: Sequence[int] = (), pads: Sequence[int] = (), dilations: Sequence[int] = (),
        output_padding: Sequence[int] = (), kernel_shape: Sequence[int] = (), **rest: object,
    ) -> tuple[np.ndarray]:  # fmt: skip
        rank, outputs, inputs = len(kernel_shape), w.shape[1], w.shape[0] // group
        full = [
            stride * (size - 1) + dilation * (kernel - 1) + 1 + padding
            for stride, size, dilation, kernel, padding in zip(
                strides, x.shape[2:], dilations, kernel_shape, output_padding, strict=True
            )
        ]
        made = np.zeros((x.shape[0], outputs * group, *full))
        for at in np.ndindex(*x.shape[2:]):
            for tap in np.ndindex(*kernel_shape):
                place = tuple(at[axis] * strides[axis] + tap[axis] * dilations[axis] for axis in range(rank))
                for part in range(group):
                    numbers = x[(slice(None), slice(part * inputs, (part + 1) * inputs), *at)].astype(np.float64)
                    weights = w[(slice(part * inputs, (part + 1) * inputs), slice(None), *tap)].astype(np.float64)
                    made[(slice(None), slice(part * outputs, (part + 1) * outputs), *place)] += numbers @ weights
        cut = tuple(slice(pads[axis], full[axis] - pads[axis + rank]) for axis in range(rank))
        made = made[(slice(None), slice(None), *cut)]
        return ((made + (0 if b is None else b.reshape(-1, *(1,) * rank))).astype(x.dtype),)


def run_reference(model: bytes, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Run an ONNX file in ONNX's reference implementation."""
    made = ReferenceEvaluator(onnx.load_from_string(model), new_ops=[LRN, ConvTranspose]).run(None, dict(feeds))
    return [np.asarray(array) for array in made]


def inferred(model: bytes) -> list[tuple[tuple[int, ...], np.dtype]]:
    """Return what ONNX infers for the outputs of a file from which all recorded shapes but the inputs' are erased."""
    proto = onnx.load_from_string(model)
    del proto.graph.value_info[:]
    for entry in proto.graph.output:
        entry.ClearField("type")
    seen = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    found = []
    for entry in seen.graph.output:
        kind = entry.type.tensor_type
        assert all(dim.HasField("dim_value") for dim in kind.shape.dim), f"ONNX leaves {entry.name} open"
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
        found.append((tuple(dim.dim_value for dim in kind.shape.dim), dtype))
    return found


def feeds_of(graph: Graph, seed: int = 0, low: float = -3.0, high: float = 3.0) -> dict[str, np.ndarray]:
    """Return seeded numbers between `low` and `high` for every input of a Graph."""
    random = np.random.default_rng(seed)
    feeds = {}
    for name in graph.inputs:
        value = graph.values[name]
        feeds[name] = random.uniform(low, high, value.shape).astype(value.dtype)
    return feeds


def one_node(
    operator: str,
    inputs: Sequence[tuple[int, ...] | np.ndarray | None],
    opset: int,
    outputs: int = 1,
    **attributes: object,
) -> bytes:
    """Return a file with one node: shapes become float inputs x0, x1, ..., arrays constants, None is left out."""
    names, feeds, constants = [], [], []
    for position, entry in enumerate(inputs):
        names.append("" if entry is None else f"x{position}")
        if isinstance(entry, np.ndarray):
            constants.append(numpy_helper.from_array(entry, names[-1]))
        elif entry is not None:
            feeds.append(helper.make_tensor_value_info(names[-1], onnx.TensorProto.FLOAT, entry))
    made = [f"y{position}" for position in range(outputs)]
    node = helper.make_node(operator, names, made, name="the_node", **attributes)
    return model_of([node], feeds, made, constants, opset)


def model_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[str],
    constants: Sequence[onnx.TensorProto] = (),
    opset: int = 17,
) -> bytes:
    """Return a file of these nodes; the outputs' shapes are left to inference."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        list(inputs),
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        initializer=list(constants),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    with contextlib.suppress(onnx.shape_inference.InferenceError):  # some files are meant to be broken
        model = onnx.shape_inference.infer_shapes(model)
    return bytes(model.SerializeToString())


def structure(graph: Graph) -> tuple[object, ...]:
    """Return everything about a Graph that two equal ones share, in a form that `==` compares."""
    nodes = [(node.operator, node.name, node.inputs, node.outputs, dict(node.attributes)) for node in graph.nodes]
    used = {name for node in graph.nodes for name in node.inputs}
    constants = {name: array.tobytes() for name, array in graph.constants.items() if name in used}
    return graph.inputs, graph.outputs, nodes, constants, dict(graph.values)
