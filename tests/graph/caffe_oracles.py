"""Independent judges of imported Caffe networks: OpenCV's own Caffe reader, and how far two may round apart."""

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
from caffe_files import Net
from onnx_oracles import EPSILON, run_onnxruntime

from perwatt.graph import Graph, write


def run_opencv(
    prototxt: Path, caffemodel: Path, feeds: Mapping[str, np.ndarray], outputs: list[str]
) -> list[np.ndarray]:
    """Run Caffe's files in OpenCV; `outputs` are names of layers."""
    cv2.setNumThreads(2)
    net = cv2.dnn.readNetFromCaffe(str(prototxt), str(caffemodel))
    net.setPreferableBackend(cv2.dnn.DNN_BACKEND_OPENCV)
    net.enableWinograd(False)
    for name, array in feeds.items():
        net.setInput(array, name)
    return [np.asarray(array) for array in net.forward(outputs)]


def pictures(net: Net, seed: int = 3, spread: float = 60.0) -> dict[str, np.ndarray]:
    """Return inputs with the spread of pixels around their mean: small ones would let a wrong LRN pass."""
    random = np.random.default_rng(seed)
    return {name: (random.standard_normal(shape) * spread).astype(np.float32) for name, shape in net.inputs.items()}


def run_graph(graph: Graph, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Run a Graph in ONNX Runtime, as ONNX."""
    return run_onnxruntime(write(graph), feeds)


def tolerance(graph: Graph) -> float:
    """Return the relative error by which two FP32 runs may differ.

    A sum of K products rounds by about sqrt(K) half units in the last place; layers' errors are independent, and four
    standard deviations are allowed. What is no sum rounds by a few units in all.
    """
    lengths = []
    for node in graph.nodes:
        if node.operator in ("Conv", "Gemm", "MatMul", "ConvTranspose"):
            shape = graph.values[node.inputs[1]].shape
            lengths.append(float(np.prod(shape[1:])) if node.operator != "MatMul" else float(shape[0]))
        elif node.operator in ("AveragePool", "GlobalAveragePool", "LRN", "BatchNormalization", "Sum"):
            lengths.append(16.0)
    return 4 * EPSILON / 2 * float(np.sqrt(16 + np.sum(lengths)))


def difference(got: np.ndarray, wanted: np.ndarray) -> float:
    """Return the largest difference over the largest expected number."""
    assert got.shape == wanted.shape, f"shape {got.shape}, expected {wanted.shape}"
    assert np.isfinite(wanted).all()
    return float(np.abs(got.astype(np.float64) - wanted).max() / np.abs(wanted).max())
