"""What the tests of the passes share: small graphs over Builder, and the comparison of a Graph before and after.

Graphs are made twice: in float64, where onnx.reference runs both and a wrong fold cannot hide behind rounding, and in
float32, where ONNX Runtime (without its own rewrites) runs both.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import onnx
import onnxruntime
from onnx.reference import ReferenceEvaluator

from perwatt.graph import Builder, Graph, check, write


class Net:
    """A Graph being written down, in one element type, with seeded constants."""

    def __init__(self, dtype: type = np.float32, seed: int = 0) -> None:
        self.builder = Builder("net", seed=seed)
        self.dtype = np.dtype(dtype)
        self.count = 0

    def input(self, *shape: int) -> str:
        self.count += 1
        return self.builder.input(f"in{self.count}", shape, self.dtype)

    def constant(self, array: object) -> str:
        self.count += 1
        return self.builder.constant(f"k{self.count}", np.asarray(array, self.dtype))

    def weights(self, *shape: int) -> str:
        """Return normal numbers that keep the size of what they are multiplied with."""
        depth = max(math.prod(shape[1:]), 1)
        return self.constant(self.builder.random.standard_normal(shape) / math.sqrt(depth))

    def positive(self, *shape: int) -> str:
        return self.constant(self.builder.random.uniform(0.5, 1.5, shape))

    def add(self, operator: str, *inputs: str, **given: object) -> str:
        return self.builder.add(operator, inputs, **given)  # type: ignore[return-value, arg-type]

    def conv(
        self, x: str, channels: int, kernel: int = 1, *, bias: bool = True, group: int = 1, **given: object
    ) -> str:
        weights = self.weights(channels, self.shape(x)[1] // group, kernel, kernel)
        biases = [self.weights(channels)] * bias
        return self.add("Conv", x, weights, *biases, group=group, **given)

    def norm(self, x: str) -> str:
        channels = self.shape(x)[1]
        scale, variance = self.positive(channels), self.positive(channels)
        shift, mean = self.weights(channels), self.weights(channels)
        return self.add("BatchNormalization", x, scale, shift, mean, variance, epsilon=1e-3)

    def shape(self, x: str) -> tuple[int, ...]:
        return self.builder.shape(x)

    def graph(self, *outputs: str) -> Graph:
        return self.builder.finish(outputs)


Write = Callable[[Net], Sequence[str] | str]


def run(graph: Graph, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Run a Graph: ONNX Runtime for float32, which has no float64 convolution, onnx.reference for float64."""
    content = write(graph)
    if any(graph.values[name].dtype == np.float64 for name in graph.inputs):
        return ReferenceEvaluator(onnx.load_from_string(content)).run(None, feeds)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"]).run(None, feeds)


def longest_sum(graph: Graph) -> int:
    """Return the most products or terms that one element of a tensor is summed from."""
    lengths = [1]
    for node in graph.nodes:
        first = graph.values[node.inputs[0]].shape
        if node.operator in ("Conv", "FusedConv"):
            lengths.append(math.prod(graph.values[node.inputs[1]].shape[1:]))
        elif node.operator in ("Gemm", "FusedGemm", "MatMul"):
            lengths.append(max(first))
        elif "Pool" in node.operator or node.operator.startswith("Reduce") or "Softmax" in node.operator:
            lengths.append(math.prod(first[1:]))
    return max(lengths)


def compare(before: Graph, after: Graph, *, seed: int = 1, rounded: type | None = None, alive: bool = True) -> None:
    """Assert that two Graphs have the same face and give the same numbers.

    Tolerance: every node rounds each term of its sums once, so two ways of summing n terms over d nodes differ by at
    most about 2·n·d roundings; in practice far fewer, √n·d, of which 16 are allowed. `rounded` is the element type
    through which a constant passed that was not exact in the graph's own. An output that is the same number everywhere
    would hide mistakes, so it fails, unless the case was drawn (`alive` False).
    """
    check(after)
    assert after.inputs == before.inputs
    assert after.outputs == before.outputs
    assert [after.values[name] for name in after.outputs] == [before.values[name] for name in before.outputs]
    random = np.random.default_rng(seed)
    feeds = {
        name: random.standard_normal(before.values[name].shape).astype(before.values[name].dtype)
        for name in before.inputs
    }
    dtype = rounded or before.values[before.outputs[0]].dtype
    relative = 16 * float(np.finfo(dtype).eps) * math.sqrt(longest_sum(before)) * len(before.nodes)
    for name, one, other in zip(before.outputs, run(before, feeds), run(after, feeds), strict=True):
        assert np.isfinite(one).all(), f"{name}: the case itself overflows"
        assert one.size == 1 or np.ptp(one) > 0 or not alive, f"{name}: one number everywhere would hide anything"
        np.testing.assert_allclose(
            other, one, rtol=relative, atol=relative * float(np.abs(one).max(initial=0)), err_msg=name
        )
