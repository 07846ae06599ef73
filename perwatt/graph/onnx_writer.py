"""The ONNX writer: a Graph becomes the bytes of an ONNX file that every runtime of today reads."""

import math
from collections.abc import Mapping

import numpy as np
import onnx
import onnx.version_converter
from onnx import helper, numpy_helper

from perwatt.errors import NetworkError, UnsupportedOperator
from perwatt.graph.attributes import integer, integers, number, numbers, text
from perwatt.graph.decompose import decomposed
from perwatt.graph.graph import Attribute, Graph, Node, Value
from perwatt.graph.operators import FOREIGN_DOMAIN, FOREIGN_OPSET, is_foreign
from perwatt.graph.shapes import element_type

# The first opset with every operator of the table and today's rule for pools in ceil mode, and its file format version.
OPSET, IR_VERSION = 22, 10
LARGEST_BYTES = 2**31 - 1  # a protobuf message cannot be larger

# Attributes of the table that ONNX passes as constant inputs, in the order of those inputs.
STEERING: Mapping[str, tuple[str, ...]] = {
    "Clip": ("min", "max"),
    "Reshape": ("shape",),
    "Squeeze": ("axes",),
    "Unsqueeze": ("axes",),
    "ReduceMean": ("axes",),
    "ReduceSum": ("axes",),
    "ReduceMax": ("axes",),
    "ReduceMin": ("axes",),
    "Slice": ("starts", "ends", "axes", "steps"),
    "Split": ("split",),
    "Pad": ("pads", "value"),
    "Resize": ("roi", "scales", "sizes"),
}


def write(graph: Graph, batch: str | None = None) -> bytes:
    """Return the Graph as an ONNX file; reading it gives a Graph of the same structure.

    `batch` is the name of a free batch dimension, for a file that runs at any batch; None keeps the Graph's own. Raises
    UnsupportedOperator for a node that keeps a form which the file's opset has no longer, and NetworkError when the
    file would be larger than the 2 GB that ONNX allows, or the batch cannot be free. Operators that ONNX does not have
    are spelt out in its own.
    """
    graph = decomposed(graph)
    if batch is not None:
        _check_free(graph)
    size = sum(array.nbytes for array in graph.constants.values())
    if size > LARGEST_BYTES:
        raise NetworkError(f"{graph.name}: expected weights below 2 GB, got {size} bytes; split the network")
    steered: dict[str, np.ndarray] = {}
    domains: dict[str, int] = {"": OPSET}
    taken = set(graph.values)
    nodes: list[onnx.NodeProto] = []
    for node in graph.nodes:
        if is_foreign(node):
            nodes.append(_foreign(node, domains, graph.values))
            continue
        steering = _steering(node, graph.values)
        if batch is not None and node.operator == "Reshape":
            steering = [("shape", np.array((0, *integers(node, "shape")[1:]), np.int64))]  # 0: as the input has it
        names = []
        for key, array in steering:
            names.append("" if array is None else _new(f"{node.name}/{key}", taken))
            if array is not None:
                steered[names[-1]] = array
        nodes.append(_node(node, names, graph.values))
    made = {name for node in graph.nodes for name in node.outputs if name}
    proto = helper.make_graph(
        nodes,
        graph.name,
        [_typed(graph.values[name], batch) for name in graph.inputs],
        [_typed(graph.values[name], batch) for name in graph.outputs],
        value_info=[_typed(graph.values[name]) for name in sorted(made - set(graph.outputs)) if batch is None],
    )
    opsets = [helper.make_opsetid(domain, version) for domain, version in domains.items()]
    model = helper.make_model(proto, opset_imports=opsets, ir_version=IR_VERSION, producer_name="perwatt")
    for name, array in (*graph.constants.items(), *steered.items()):  # one by one: weights may be half of the memory
        model.graph.initializer.add().CopyFrom(numpy_helper.from_array(np.asarray(array), name))
    return bytes(model.SerializeToString(deterministic=True))


def _typed(value: Value, batch: str | None = None) -> onnx.ValueInfoProto:
    shape = value.shape if batch is None else (batch, *value.shape[1:])
    return helper.make_tensor_value_info(value.name, helper.np_dtype_to_tensor_dtype(value.dtype), shape)


def _check_free(graph: Graph) -> None:
    """Raise NetworkError unless every node keeps images apart along axis 0, and no target fixes how many they are."""
    size = graph.values[graph.inputs[0]].shape[0]
    if any(graph.values[name].shape[:1] != (size,) for name in (*graph.inputs, *graph.outputs)):
        raise NetworkError(f"{graph.name}: expected inputs and outputs with the batch first, got others")
    for node in graph.nodes:
        if _fixes_batch(node, size, graph.values):
            raise NetworkError(
                f"{graph.name}: expected nodes that take any batch, got {node.operator} {node.name!r}, which fixes it; "
                f"write the network with its batch of {size}"
            )


def _fixes_batch(node: Node, size: int, values: Mapping[str, Value]) -> bool:
    rank = max(len(values[node.inputs[0]].shape), 1)
    if node.operator == "Reshape":
        target = integers(node, "shape")
        return target[:1] != (size,) or values[node.inputs[0]].shape[:1] != (size,) or 0 in target
    if node.operator == "Slice":
        return any(axis % rank == 0 for axis in integers(node, "axes"))
    if node.operator == "Split":
        return integer(node, "axis") % rank == 0
    return node.operator == "Resize"


def _new(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _steering(node: Node, values: Mapping[str, Value]) -> list[tuple[str, np.ndarray | None]]:
    """Return the constant inputs that ONNX wants behind the data inputs; None where one is left out."""
    arrays: list[tuple[str, np.ndarray | None]] = []
    for key in STEERING.get(node.operator, ()):
        array: np.ndarray | None
        if key in ("min", "max", "value"):
            bound = number(node, key)
            array = None if math.isinf(bound) and key != "value" else np.array(bound, values[node.inputs[0]].dtype)
        elif node.operator == "Resize":
            array = _resize_steering(node, key, values[node.inputs[0]].shape)
        else:
            array = np.array(integers(node, key), np.int64)
        arrays.append((key, array))
    while arrays and arrays[-1][1] is None:
        arrays.pop()
    return arrays


def _resize_steering(node: Node, key: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return sizes where they say it all, and scales where those are not size/input (they steer the sampling)."""
    sizes, scales = integers(node, "sizes"), numbers(node, "scales")
    plain = scales == tuple(float(np.float32(to / size)) for to, size in zip(sizes, shape, strict=True))
    if key == "sizes" and plain:
        return np.array(sizes, np.int64)
    if key == "scales" and not plain:
        return np.array(scales, np.float32)
    return None


def _node(node: Node, steering: list[str], values: Mapping[str, Value]) -> onnx.NodeProto:
    left = {
        key: value
        for key, value in node.attributes.items()
        if key not in STEERING.get(node.operator, ()) and value is not None
    }
    if node.operator == "Cast":
        left["to"] = helper.np_dtype_to_tensor_dtype(element_type(text(node, "to")))
    if node.operator.startswith("Reduce") and not integers(node, "axes"):
        left["noop_with_empty_axes"] = 1
    if node.operator == "Reshape" and 0 in integers(node, "shape"):
        left["allowzero"] = 1
    if node.operator == "MaxPool" and integer(node, "ceil_mode") == 0:
        del left["ceil_mode"]  # the default; some readers stumble over it
    data = list(node.inputs)
    if node.operator in ("Conv", "ConvTranspose", "Gemm") and data[-1] == "":
        data.pop()
    made = helper.make_node(node.operator, [*data, *steering], node.outputs, name=node.name)
    made.attribute.extend(_attribute(node.operator, key, value) for key, value in sorted(left.items()))
    return made


def _attribute(operator: str, key: str, value: Attribute, domain: str = "", opset: int = OPSET) -> onnx.AttributeProto:
    if isinstance(value, np.ndarray):
        return helper.make_attribute(key, numpy_helper.from_array(value))
    kind = None
    if isinstance(value, tuple) and not value:  # the schema alone knows what an empty list holds
        known = onnx.defs.get_schema(operator, opset, domain).attributes[key].type
        kind = onnx.AttributeProto.AttributeType.Value(known.name)
    return helper.make_attribute(key, value, attr_type=kind)


def _foreign(node: Node, domains: dict[str, int], values: Mapping[str, Value]) -> onnx.NodeProto:
    """Return a node as it stood in the file it came from, if its meaning there is its meaning in this file."""
    domain, opset = text(node, FOREIGN_DOMAIN), integer(node, FOREIGN_OPSET)
    written = domains.setdefault(domain, opset)
    made = helper.make_node(node.operator, node.inputs, node.outputs, name=node.name, domain=domain)
    for key, value in sorted(node.attributes.items()):
        if key not in (FOREIGN_DOMAIN, FOREIGN_OPSET):
            made.attribute.append(_attribute(node.operator, key, value, domain, opset))
    if opset == written or _since(node.operator, written, domain) == _since(node.operator, opset, domain):
        return made
    if domain == "" and _unchanged(made, opset, values):
        return made
    meant = f"an operator whose meaning in opset {opset} is that in opset {written}"
    raise UnsupportedOperator(
        f"{node.operator} node {node.name!r}: expected {meant}, got another; use the original file"
    )


def _unchanged(node: onnx.NodeProto, opset: int, values: Mapping[str, Value]) -> bool:
    """Return whether the operator's interface is the same in both opsets and ONNX's own converter leaves the node be.

    Both are asked because the converter overlooks some changes of meaning (Hardmax at opset 13, seen in onnx 1.23).
    """
    if _interface(node.op_type, opset) != _interface(node.op_type, OPSET):
        return False
    inputs = [_typed(values[name]) for name in dict.fromkeys(node.input) if name]
    outputs = [_typed(values[name]) for name in node.output if name]
    proto = helper.make_graph([node], "one", inputs, outputs)
    model = helper.make_model(proto, opset_imports=[helper.make_opsetid("", opset)], ir_version=IR_VERSION)
    try:
        converted = onnx.version_converter.convert_version(model, OPSET)
    except (RuntimeError, onnx.version_converter.ConvertError):
        return False
    return len(converted.graph.node) == 1 and _form(converted.graph.node[0]) == _form(node)


def _interface(operator: str, opset: int) -> tuple[object, ...] | None:
    if not onnx.defs.has(operator, opset, ""):
        return None
    schema = onnx.defs.get_schema(operator, opset, "")
    defaults = sorted((name, entry.default_value.SerializeToString()) for name, entry in schema.attributes.items())
    return defaults, [entry.name for entry in schema.inputs], [entry.name for entry in schema.outputs]


def _form(node: onnx.NodeProto) -> tuple[object, ...]:
    attributes = sorted(entry.SerializeToString(deterministic=True) for entry in node.attribute)
    return node.op_type, list(node.input), list(node.output), attributes


def _since(operator: str, opset: int, domain: str) -> int | None:
    """Return the opset that gave the operator the meaning it has in `opset`, None where it is not known there."""
    if not onnx.defs.has(operator, opset, domain):
        return None
    return int(onnx.defs.get_schema(operator, opset, domain).since_version)
