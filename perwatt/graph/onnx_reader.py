"""The ONNX reader: a file becomes a Graph, whatever opset from 7 on it was written in."""

from pathlib import Path
from types import MappingProxyType

import numpy as np

from perwatt.graph.batch import at_batch
from perwatt.graph.checker import check
from perwatt.graph.graph import Graph


def read(source: str | Path | bytes, batch: int | None = None) -> Graph:
    """Return the network of an ONNX file, given as a path or as the file's bytes, as a checked Graph.

    `batch` None keeps the batch that the file fixes; one that it leaves free becomes 1. A node that the operator table
    cannot express stays as it is (see `unsupported`). Raises InputError when the batch is below 1, NetworkError when
    the file is missing, no ONNX, damaged, without its weights, of an opset before 7, has an operator that ONNX does not
    define, or a free dimension other than the batch.
    """
    model, walked = at_batch(source, batch)
    outputs = tuple(entry.name for entry in model.graph.output)
    used = {name for node in walked.nodes for name in node.inputs} | set(outputs)
    made = {name for node in walked.nodes for name in node.outputs if name}
    constants = {name: _kept(array) for name, array in walked.constants.items() if name in used}
    values = {
        name: value
        for name, value in walked.values.items()
        if name in made or name in constants or name in walked.inputs
    }
    graph = Graph(
        model.graph.name or "network",
        walked.inputs,
        outputs,
        walked.nodes,
        MappingProxyType(constants),
        MappingProxyType(values),
    )
    check(graph)
    return graph


def _kept(array: np.ndarray) -> np.ndarray:
    """Return the array in one piece and read-only: a folded constant may be a view of a single number."""
    kept = np.ascontiguousarray(array).reshape(array.shape).view()
    kept.flags.writeable = False
    return kept
