"""What a network means: Graph, the operator table, the ONNX reader and writer, the checker."""

from perwatt.graph.graph import Attribute, Graph, Node, Value

__all__ = ["Attribute", "Graph", "Node", "Value"]
