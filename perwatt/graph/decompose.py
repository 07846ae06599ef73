"""Decompose: the operators that only perwatt has, spelt out in those of ONNX."""

from types import MappingProxyType

from perwatt.graph.attributes import integers
from perwatt.graph.fused_operators import ACTIVATIONS
from perwatt.graph.graph import Attribute, Graph, Node, Value
from perwatt.graph.operators import make

WINDOW = ("kernel_shape", "strides", "pads", "dilations", "group")


def decomposed(graph: Graph) -> Graph:
    """Return the Graph without FusedConv, FusedGemm and Silu; the very same one when it has none.

    FusedConv → Conv → Add (residual) → activation → Split (splits), each only where needed; FusedGemm likewise.
    """
    if not any(node.operator in ("FusedConv", "FusedGemm", "Silu") for node in graph.nodes):
        return graph
    values = dict(graph.values)
    titles = {node.name for node in graph.nodes}
    nodes: list[Node] = []

    def emit(operator: str, inputs: tuple[str, ...], outputs: tuple[str, ...], **given: Attribute) -> str:
        title = _new(f"{outputs[0]}/{operator.lower()}", titles)
        known = [values[name] if name else None for name in inputs]
        node, made = make(operator, title, inputs, outputs, given, known)
        nodes.append(node)
        values.update({value.name: value for value in made})
        return outputs[0]

    def between(source: str, what: str) -> tuple[str]:
        return (_new(f"{source}/{what}", values),)

    def activate(node: Node, name: str, data: str, outputs: tuple[str, ...]) -> str:
        if name == "Silu":
            gate = emit("Sigmoid", (data,), between(outputs[0], "gate"))
            return emit("Mul", (data, gate), outputs)
        parameters = (node.attributes["activation_alpha"], node.attributes["activation_beta"])
        return emit(name, (data,), outputs, **dict(zip(ACTIVATIONS[name], parameters, strict=False)))

    def spell_out(node: Node) -> None:
        residual = node.inputs[3] if len(node.inputs) > 3 else ""
        activation, splits = node.attributes["activation"], node.attributes.get("splits")
        wanted = ["product", *(["sum"] * bool(residual)), *(["act"] * (activation is not None))]
        whole = node.outputs if splits is None else between(node.outputs[0], "whole")
        stages = [*(between(node.outputs[0], stage) for stage in wanted[:-1]), whole]
        data = tuple(node.inputs[:3]) if len(node.inputs) > 2 and node.inputs[2] else tuple(node.inputs[:2])
        if node.operator == "FusedConv":
            made = emit("Conv", data, stages.pop(0), **{key: node.attributes[key] for key in WINDOW})
        else:
            made = emit("Gemm", data, stages.pop(0), transB=1)
        if residual:
            made = emit("Add", (made, residual), stages.pop(0))
        if activation is not None:
            made = activate(node, str(activation), made, stages.pop(0))
        if splits is not None:
            emit("Split", (made,), node.outputs, axis=1, split=integers(node, "splits"))

    for node in graph.nodes:
        if node.operator in ("FusedConv", "FusedGemm"):
            spell_out(node)
        elif node.operator == "Silu":
            activate(node, "Silu", node.inputs[0], node.outputs)
        else:
            nodes.append(node)
    return Graph(graph.name, graph.inputs, graph.outputs, tuple(nodes), graph.constants, MappingProxyType(values))


def _new(name: str, taken: set[str] | dict[str, Value]) -> str:
    while name in taken:
        name += "_"
    if isinstance(taken, set):
        taken.add(name)
    return name
