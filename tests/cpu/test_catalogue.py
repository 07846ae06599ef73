"""The catalogue covers the operator table, and its kernels agree on layouts inside whole networks."""

from typing import Any

import numpy as np
import onnxruntime
import pytest
from kernel_runner import LANES, each_width, lanes_here, machine

from perwatt.cpu.catalogue import KERNELS
from perwatt.errors import UnsupportedOperator
from perwatt.graph import OPERATORS, Builder, Graph, write
from perwatt.plan import place
from perwatt.plan.make import candidates
from perwatt.run.compile import compile

REWRITTEN = {"Conv"}  # passes make a FusedConv of it


def test_every_operator_has_an_algorithm() -> None:
    known = {operator for algorithm in KERNELS for operator in algorithm.operators}
    assert set(OPERATORS) - REWRITTEN - known == set()
    names = [algorithm.name for algorithm in KERNELS]
    assert len(set(names)) == len(names)


def test_what_has_no_algorithm_is_refused_by_name() -> None:
    b = Builder("refused")
    graph = b.finish([b.add("Softplus", [b.input("x", (1, 4))], name="smooth")])
    (s,) = place(graph, machine(lanes_here()[0]), 1).steps
    without = [algorithm for algorithm in KERNELS if "Softplus" not in algorithm.operators]
    with pytest.raises(UnsupportedOperator, match=r"Softplus.*'smooth'.*it has .*MaxPool"):
        candidates(s, without, None)


def mixed(channels: int, outputs: int, batch: int) -> Graph:
    """Return a network in which most kernels outside the dense ones follow one another, blocked and plain."""
    rng = np.random.default_rng(12)
    b = Builder("mixed")

    def convolution(x: str, made: int, kernel: int = 3, **more: Any) -> str:
        shape = (made, b.shape(x)[1] // more.get("group", 1), kernel, kernel)
        weights = rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))
        name = b.constant(f"w{rng.integers(1 << 40)}", weights.astype(np.float32))
        return b.add("Conv", [x, name], pads=(kernel // 2,) * 4, **more)

    x = convolution(b.input("x", (batch, 3, 24, 20)), channels)
    x = b.add("HardSwish", [convolution(x, channels, group=channels)])
    x = b.add("Pad", [x], pads=(0, 0, 1, 2, 0, 0, 2, 1), mode="reflect")
    x = b.add("MaxPool", [x], kernel_shape=(3, 3), strides=(2, 2), ceil_mode=1)
    halves = b.add("Split", [x], axis=1, split=(channels // 2, channels - channels // 2), outputs=2)
    x = b.add("Concat", [halves[1], b.add("Relu", [halves[0]])], axis=1)
    x = b.add("Resize", [convolution(x, outputs, 1)], mode="linear", sizes=(batch, outputs, 20, 17))
    x = b.add("Slice", [x], starts=(1, 0), ends=(19, 17), axes=(2, 3), steps=(2, 1))
    gate = b.add("Sigmoid", [b.add("GlobalAveragePool", [x])])
    gated = b.add("LRN", [b.add("Mul", [x, gate])], size=5)
    turned = b.add("Transpose", [b.add("Softmax", [gated], axis=1)], perm=(0, 2, 3, 1))
    mean = b.add("ReduceMean", [gated], axes=(2, 3), keepdims=0)
    shifted = b.add("Add", [mean, b.constant("shift", rng.normal(size=outputs).astype(np.float32))])
    return b.finish([turned, b.add("LogSoftmax", [shifted], axis=1), gated])


@pytest.mark.slow
@pytest.mark.parametrize("lanes", each_width())
@pytest.mark.parametrize(("channels", "outputs", "batch"), [(16, 32, 1), (17, 33, 2), (24, 20, 3), (3, 5, 1)])
def test_kernels_fit_together(
    channels: int, outputs: int, batch: int, lanes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERWATT_MACHINE", LANES[lanes])
    graph = mixed(channels, outputs, batch)
    x = np.random.default_rng(1).normal(size=(batch, 3, 24, 20)).astype(np.float32)
    session = onnxruntime.InferenceSession(write(graph), providers=["CPUExecutionProvider"])
    got = compile(graph, tune="estimate", threads=2).run({"x": x})
    for name, wanted in zip(graph.outputs, session.run(None, {"x": x}), strict=True):
        # Three convolutions and a dozen other steps, of a few roundings each.
        np.testing.assert_allclose(got[name], wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
