"""The walk through an ONNX model in running order: each tensor's shape, the constants, the nodes in the table's form.

A constant is what the file holds and all that follows from constants and shapes alone. Each other node becomes one of
the table where the table can say it, and else stays as it is, with the shape that ONNX infers.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import onnx
from onnx import helper, numpy_helper

from perwatt.errors import NetworkError
from perwatt.graph.graph import Attribute, Node, Value
from perwatt.graph.onnx_file import domain_of, opset
from perwatt.graph.onnx_folding import array_of, folded
from perwatt.graph.onnx_forms import PLAIN, Sight, Step, canonical
from perwatt.graph.operators import FOREIGN_DOMAIN, FOREIGN_OPSET, make

STEERING_ELEMENTS = 4096  # constants larger than this are weights, which ONNX's inference does not look into


@dataclass(frozen=True)
class Walk:
    """What a walk found. `values` and `constants` hold more than the nodes read: everything that has a name."""

    inputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    constants: Mapping[str, np.ndarray]
    values: Mapping[str, Value]


def data_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Return the inputs a caller feeds: old files list their weights among the inputs too."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [entry for entry in model.graph.input if entry.name not in weights]


# Looks at a node before the walk does; may rewire it to a new constant, whose name and numbers it returns.
Amend = Callable[
    [onnx.NodeProto, Mapping[str, Value], Mapping[str, np.ndarray]],
    tuple[str, np.ndarray] | None,
]


def walk(model: onnx.ModelProto, amend: Amend | None = None, weights: Mapping[str, np.ndarray] | None = None) -> Walk:
    """Go through a model whose inputs all have static shapes; `weights` are those an earlier walk has unpacked.

    Raises NetworkError when a tensor is read before it is made, a node's inputs do not fit, a shape depends on numbers
    that only a run can give, or there is control flow.
    """
    going = _Going(model, weights or {})
    for node in model.graph.node:
        going.check_inputs(node)
        constant = amend(node, going.values, going.constants) if amend else None
        if constant:
            going.keep(*constant)
        going.visit(node)
    for entry in model.graph.output:
        if entry.name not in going.values:
            raise NetworkError(f"output {entry.name!r}: expected a node that makes it, got none; export it again")
    return Walk(tuple(entry.name for entry in data_inputs(model)), tuple(going.nodes), going.constants, going.values)


class _Going:
    """The state of a walk."""

    def __init__(self, model: onnx.ModelProto, weights: Mapping[str, np.ndarray]) -> None:
        self.opset = opset(model)
        self.domains = {entry.domain: int(entry.version) for entry in model.opset_import}
        self.nodes: list[Node] = []
        self.constants: dict[str, np.ndarray] = {}
        self.values: dict[str, Value] = {}
        self.titles: set[str] = set()
        self.taken = {name for node in model.graph.node for name in (*node.input, *node.output)}
        for tensor in model.graph.initializer:
            unpacked = weights.get(tensor.name)
            self.keep(tensor.name, array_of(tensor) if unpacked is None else unpacked)
        for entry in data_inputs(model):
            shape = tuple(int(dim.dim_value) for dim in entry.type.tensor_type.shape.dim)
            dtype = element_type_of(entry.type.tensor_type.elem_type, f"input {entry.name!r}")
            self.values[entry.name] = Value(entry.name, shape, dtype)
        self.taken |= set(self.values)
        self.read = {name for node in model.graph.node for name in node.input}
        self.read |= {entry.name for entry in model.graph.output}

    def check_inputs(self, node: onnx.NodeProto) -> None:
        for name in node.input:
            if name and name not in self.values:
                raise NetworkError(
                    f"{_where(node)}: expected inputs that exist, got {name!r}; export the network again"
                )

    def visit(self, node: onnx.NodeProto) -> None:
        where = _where(node)
        for name in node.output:
            if name in self.values:
                raise NetworkError(f"{where}: expected a new output, got {name!r} a second time; export it again")
        if not any(node.output) or self._fold(node):
            return
        node = self._without_unread_outputs(node)
        attributes = _attributes(node, where)
        steps = None
        if domain_of(node) == "":
            sight = Sight(node, self.opset, attributes, self.values, self.constants)
            try:
                steps = canonical(sight)
            except (ArithmeticError, IndexError, KeyError, TypeError, ValueError) as error:
                got = f"{list(node.input)} with {dict(attributes)}"
                raise NetworkError(f"{where}: expected what ONNX asks for, got {got}; export it again") from error
        if steps is None:
            self._stay(node, attributes, where)
        else:
            self._take(node, steps)

    def _without_unread_outputs(self, node: onnx.NodeProto) -> onnx.NodeProto:
        """Leave out second outputs that nobody reads, such as the mask of Dropout."""
        if len(node.output) == 1 or node.op_type == "Split":
            return node
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for position in range(1, len(node.output)):
            if node.output[position] not in self.read:
                copy.output[position] = ""
        while len(copy.output) > 1 and copy.output[-1] == "":
            copy.output.pop()
        return copy

    def keep(self, name: str, array: np.ndarray) -> None:
        self.constants[name] = array
        self.values[name] = Value(name, tuple(array.shape), array.dtype)

    def _fold(self, node: onnx.NodeProto) -> bool:
        """Make the outputs constants if they are known before the network runs; returns whether they are."""
        if domain_of(node) != "":
            return False
        if node.op_type in ("Shape", "Size"):
            shape = self.values[node.input[0]].shape
            given = {entry.name: entry.i for entry in node.attribute}
            cut = shape[given.get("start", 0) : given.get("end", len(shape))]
            count = np.array(shape, np.int64).prod(dtype=np.int64)
            self.keep(node.output[0], np.array(cut, np.int64) if node.op_type == "Shape" else count)
            return True
        if node.op_type == "CastLike" and node.input[0] in self.constants:  # of the other input only the type matters
            like = self.values[node.input[1]].dtype
            if like.name in PLAIN:
                self.keep(node.output[0], self.constants[node.input[0]].astype(like))
                return True
        if any(name and name not in self.constants for name in node.input):
            return False
        arrays = folded(node, [self.constants[name] if name else None for name in node.input], self.opset)
        if arrays is None:
            return False
        for name, array in zip(node.output, arrays, strict=True):
            if name:
                self.keep(name, array)
        return True

    def _title(self, wanted: str) -> str:
        title, count = wanted, 1
        while title in self.titles:
            title, count = f"{wanted}_{count}", count + 1
        self.titles.add(title)
        return title

    def _take(self, node: onnx.NodeProto, steps: Sequence[Step]) -> None:
        between: dict[str, str] = {}
        for position, step in enumerate(steps):
            for name in step.outputs:
                if name.startswith("?"):
                    fresh = f"{node.output[0]}/{name[1:]}"
                    while fresh in self.taken:
                        fresh += "_"
                    self.taken.add(fresh)
                    between[name] = fresh
            inputs = tuple(between.get(name, name) for name in step.inputs)
            outputs = tuple(between.get(name, name) for name in step.outputs)
            wanted = node.name or node.output[0] or outputs[0]
            last = position == len(steps) - 1
            title = self._title(wanted if last else f"{wanted}/{step.operator.lower()}")
            known = [self.values[name] if name else None for name in inputs]
            made, values = make(step.operator, title, inputs, outputs, step.attributes, known)
            self.nodes.append(made)
            self.values.update({value.name: value for value in values})

    def _stay(self, node: onnx.NodeProto, attributes: dict[str, Attribute], where: str) -> None:
        """Keep a node as it is, with the shapes that ONNX infers."""
        domain = domain_of(node)
        version = self.opset if domain == "" else self.domains.get(domain, 1)
        outputs = list(node.output)
        while outputs and outputs[-1] == "":
            outputs.pop()
        for name, kind in self._inferred(node, version, where).items():
            shape = tuple(int(dim.dim_value) for dim in kind.tensor_type.shape.dim)
            known = kind.tensor_type.HasField("shape") and all(
                dim.HasField("dim_value") for dim in kind.tensor_type.shape.dim
            )
            if not kind.HasField("tensor_type") or not known:
                raise NetworkError(
                    f"{where}: expected an output whose shape follows from the inputs' shapes, got {name!r}, which "
                    "only a run can tell; cut the network before it"
                )
            dtype = element_type_of(kind.tensor_type.elem_type, where)
            self.values[name] = Value(name, shape, dtype)
        kept = {**attributes, FOREIGN_DOMAIN: domain, FOREIGN_OPSET: version}
        title = self._title(node.name or node.output[0])
        inputs = list(node.input)
        while inputs and inputs[-1] == "":
            inputs.pop()
        self.nodes.append(Node(node.op_type, title, tuple(inputs), tuple(outputs), MappingProxyType(kept)))

    def _inferred(self, node: onnx.NodeProto, version: int, where: str) -> dict[str, onnx.TypeProto]:
        known = [self.values[name] for name in dict.fromkeys(node.input) if name]
        small = {
            value.name
            for value in known
            if value.name in self.constants and self.constants[value.name].size <= STEERING_ELEMENTS
        }
        graph = helper.make_graph(
            [node],
            "one",
            [_typed(value) for value in known if value.name not in small],
            [helper.make_empty_tensor_value_info(name) for name in node.output if name],
            initializer=[numpy_helper.from_array(np.asarray(self.constants[name]), name) for name in sorted(small)],
        )
        opsets = {"": self.opset, domain_of(node): version}
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid(*entry) for entry in opsets.items()])
        try:
            seen = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
        except onnx.shape_inference.InferenceError as error:
            reason = " ".join(str(error).split())
            raise NetworkError(
                f"{where}: expected inputs that fit, got {[value.shape for value in known]} ({reason}); correct this "
                "node in the network"
            ) from error
        return {entry.name: entry.type for entry in seen.graph.output}


def element_type_of(code: int, where: str) -> np.dtype:
    """Return the NumPy element type of ONNX's number for it; raises NetworkError when there is none."""
    try:
        found: np.dtype = np.dtype(helper.tensor_dtype_to_np_dtype(code))
    except (KeyError, ValueError) as error:
        raise NetworkError(f"{where}: expected a known element type, got number {code}; export it again") from error
    return found


def _typed(value: Value) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(value.name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)


def _where(node: onnx.NodeProto) -> str:
    return f"{node.op_type} node {node.name or (node.output[0] if node.output else '')!r}"


def _attributes(node: onnx.NodeProto, where: str) -> dict[str, Attribute]:
    found: dict[str, Attribute] = {}
    for entry in node.attribute:
        value = helper.get_attribute_value(entry)
        if isinstance(value, onnx.GraphProto) or entry.graphs:
            raise NetworkError(f"{where}: expected a network without control flow, got {entry.name}; export a trace")
        if isinstance(value, onnx.TensorProto):
            found[entry.name] = array_of(value)
        elif isinstance(value, bytes):
            found[entry.name] = value.decode("utf-8", "replace")
        elif isinstance(value, int | float | str):
            found[entry.name] = value
        elif entry.type in (onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS):
            found[entry.name] = tuple(value)
        elif entry.type == onnx.AttributeProto.STRINGS:
            found[entry.name] = tuple(item.decode("utf-8", "replace") for item in value)
        else:
            raise NetworkError(f"{where}: expected plain attributes, got {entry.name}; export the network again")
    return found
