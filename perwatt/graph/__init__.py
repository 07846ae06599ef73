"""What a network means: Graph, the operator table, the ONNX reader and writer, the checker."""

from perwatt.graph.attributes import integer, integers, number, numbers, text
from perwatt.graph.batch import with_batch
from perwatt.graph.builder import Builder
from perwatt.graph.checker import check, unsupported
from perwatt.graph.cost import Cost, cost, total_cost
from perwatt.graph.graph import Attribute, Graph, Node, Value
from perwatt.graph.onnx_file import self_contained
from perwatt.graph.onnx_reader import read
from perwatt.graph.onnx_writer import write
from perwatt.graph.operators import OPERATORS, Operator, is_foreign, make

__all__ = [
    "OPERATORS",
    "Attribute",
    "Builder",
    "Cost",
    "Graph",
    "Node",
    "Operator",
    "Value",
    "check",
    "cost",
    "integer",
    "integers",
    "is_foreign",
    "make",
    "number",
    "numbers",
    "read",
    "self_contained",
    "text",
    "total_cost",
    "unsupported",
    "with_batch",
    "write",
]
