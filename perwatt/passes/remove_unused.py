"""Remove nodes whose outputs nobody reads, and constants likewise.

y = Relu(x); z = Exp(x); output y    →    y = Relu(x); output y
"""

from perwatt.graph import Graph
from perwatt.passes.draft import Draft


def remove_unused(graph: Graph) -> Graph:
    """Return the Graph with only what its outputs depend on; all of its inputs stay."""
    draft = Draft(graph)
    draft.remove_unread()
    cleaned = draft.graph()
    same = len(cleaned.nodes) == len(graph.nodes) and len(cleaned.values) == len(graph.values)
    return graph if same else cleaned
