"""What a network means: Graph, the operator table, the ONNX reader and writer, the checker."""

from perwatt.graph.attributes import integer, integers, number, numbers, text
from perwatt.graph.builder import Builder
from perwatt.graph.checker import check, unsupported
from perwatt.graph.graph import Attribute, Graph, Node, Value
from perwatt.graph.onnx_writer import write
from perwatt.graph.operators import OPERATORS, Operator, is_foreign, make

__all__ = [
    "OPERATORS",
    "Attribute",
    "Builder",
    "Graph",
    "Node",
    "Operator",
    "Value",
    "check",
    "integer",
    "integers",
    "is_foreign",
    "make",
    "number",
    "numbers",
    "text",
    "unsupported",
    "write",
]
