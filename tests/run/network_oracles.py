"""Networks run by others, and how far perwatt's answers may be from theirs."""

import math

import numpy as np
import onnxruntime

import perwatt
from perwatt.graph import Graph, write

EPSILON = float(np.finfo(np.float32).eps)


def feeds_of(graph: Graph, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {name: random.standard_normal(graph.values[name].shape).astype(np.float32) for name in graph.inputs}


def run_onnxruntime(graph: Graph, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run a Graph in ONNX Runtime, without its rewrites, on one thread."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(write(graph), options, providers=["CPUExecutionProvider"])
    return dict(zip(graph.outputs, session.run(list(graph.outputs), feeds), strict=True))


def tolerance(graph: Graph) -> float:
    """Return the relative error that two ways of rounding may differ by.

    Each of d nodes rounds sums of n terms, √n roundings in practice; Winograd, within its budget, three times as much;
    both add over the nodes in the worst case. Eight times that covers the largest of many outputs.
    """
    longest = 1
    for node in graph.nodes:
        if node.operator in ("Conv", "Gemm", "MatMul"):
            shape = graph.values[node.inputs[1]].shape
            longest = max(longest, math.prod(shape[1:]) if node.operator == "Conv" else max(shape))
        elif "Pool" in node.operator or node.operator.startswith("Reduce"):
            longest = max(longest, math.prod(graph.values[node.inputs[0]].shape[2:]))
    return 8 * 3 * EPSILON * math.sqrt(longest) * len(graph.nodes)


def compare(
    graph: Graph, got: dict[str, np.ndarray], wanted: dict[str, np.ndarray], relative: float | None = None
) -> None:
    """Assert that all outputs are there, of the right kind, and near."""
    relative = tolerance(graph) if relative is None else relative
    assert list(got) == list(dict.fromkeys(graph.outputs))
    for name, array in got.items():
        assert array.dtype == np.float32
        assert array.shape == wanted[name].shape
        size = max(float(abs(wanted[name]).max(initial=0)), 1e-6)
        error = float(abs(array.astype(np.float64) - wanted[name]).max(initial=0)) / size
        assert error <= relative, f"{name}: relative error {error:.2e}, tolerance {relative:.2e}"


def check(graph: Graph, seed: int = 0, **how: object) -> perwatt.Model:
    """Compile, run twice with different numbers, compare with ONNX Runtime; return the Model."""
    how.setdefault("tune", "estimate")
    model = perwatt.compile(graph, **how)  # type: ignore[arg-type]
    for again in (0, 1):
        feeds = feeds_of(graph, seed + again)
        compare(graph, model.run(feeds), run_onnxruntime(graph, feeds))
    return model
