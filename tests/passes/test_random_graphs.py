"""All passes over drawn graphs: whatever the network, its numbers stay, and a second round changes nothing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_nets import Net, compare

from perwatt.graph import Graph
from perwatt.passes import apply, steps

UNARY = ("Relu", "Sigmoid", "Tanh", "HardSwish", "Identity", "Dropout", "LeakyRelu", "Elu", "HardSigmoid")
KINDS = (
    *("conv", "conv", "conv", "one", "one", "depthwise", "norm", "norm", "add", "add", "add", "concat", "concat"),
    *("unary", "unary", "unary", "clip", "scale", "shift", "max", "mean", "pad", "gate", "split", "transpose", "sum"),
)
Step = tuple[str, int, int, int]
drawn_steps = st.lists(
    st.tuples(st.sampled_from(KINDS), st.integers(0, 30), st.integers(0, 30), st.integers(0, 30)),
    min_size=1,
    max_size=14,
)


def grown(steps: list[Step], dtype: type, ending: str, extra: int) -> Graph:
    """Build a graph: each step takes one or two of the tensors made so far."""
    net = Net(dtype)
    made = [net.input(2, 3, 5, 4), net.input(2, 4, 5, 4)]
    for kind, first, second, third in steps:
        made.extend(_grow(net, kind, made[-1 - first % len(made)], made, second, third))
    last = made[-1]
    if ending != "map":
        last = net.add("GlobalAveragePool", last) if ending == "pool" else last
        flat = net.add("Flatten", last, axis=1)
        last = net.add("Softmax", net.add("MatMul", flat, net.weights(net.shape(flat)[1], 3)), axis=1)
    outputs = dict.fromkeys([last, made[-1 - extra % len(made)]])
    return net.graph(*[name for name in outputs if name not in net.builder._inputs] or [net.add("Relu", last)])


def _grow(net: Net, kind: str, x: str, made: list[str], second: int, third: int) -> list[str]:
    _, channels, height, width = net.shape(x)
    alike = [name for name in made if net.shape(name) == net.shape(x)]
    joinable = [name for name in made if net.shape(name)[2:] == (height, width)]
    pads = tuple((second >> bit) & 1 for bit in range(4))
    match kind:
        case "conv":
            fits = height + pads[0] + pads[2] >= 3 and width + pads[1] + pads[3] >= 2
            kernel = (3, 2) if fits else (1, 1)
            weights = net.weights(1 + third % 5, channels, *kernel)
            return [net.add("Conv", x, weights, pads=pads if fits else (0,) * 4, strides=(1, 1 + third % 2))]
        case "one":
            return [net.conv(x, 1 + second % 5, bias=bool(third % 2))]
        case "depthwise":
            return [net.conv(x, 2 * channels, group=channels)]
        case "norm":
            return [net.norm(x)]
        case "add":
            return [net.add("Add", x, alike[second % len(alike)])]
        case "sum":
            return [net.add("Sum", x, *[alike[pick % len(alike)] for pick in (second, third)])]
        case "concat":
            return [net.add("Concat", x, joinable[second % len(joinable)], axis=1)]
        case "unary":
            return [net.add(UNARY[second % len(UNARY)], x)]
        case "clip":
            return [net.add("Clip", x, min=-1 + second % 2, max=[1, 6, np.inf][third % 3])]
        case "scale":
            return [net.add(("Mul", "Div")[second % 2], x, net.positive(*[(channels, 1, 1), ()][third % 2]))]
        case "shift":
            return [net.add(("Add", "Sub")[second % 2], x, net.positive(1, channels, 1, 1))]
        case "max":
            return [net.add("MaxPool", x, kernel_shape=(min(2, height),) * 2 if width > 1 else (1, 1))]
        case "mean":
            return [
                net.add("AveragePool", x, kernel_shape=(height, width))
                if second % 2
                else net.add("ReduceMean", x, axes=(2, 3))
            ]
        case "pad":
            return [net.add("Pad", x, pads=(0, 0, *pads[:2], 0, 0, *pads[2:]))]
        case "gate":
            return [net.add("Mul", x, net.add("Sigmoid", x))]
        case "split":
            return list(net.add("Split", x, axis=1, split=(1, channels - 1), outputs=2)) if channels > 1 else []
        case _:
            turned = net.add("Transpose", x, perm=(0, 2, 3, 1))
            return [net.add("Transpose", turned, perm=(0, 3, 1, 2))]


endings = st.sampled_from(["map", "flat", "pool"])


def check_drawn(drawn: list[Step], ending: str, extra: int, dtype: type) -> None:
    before = grown(drawn, dtype, ending, extra)
    for step in steps(before):
        after = step.graph
        names = {name for node in after.nodes for name in node.inputs} | set(after.outputs)
        assert set(after.constants) <= names, f"{step.name} leaves constants that nobody reads"
    compare(before, after, alive=False)
    assert apply(after) is after, "a second round changes something"


@settings(max_examples=25, deadline=None, derandomize=True)
@given(drawn_steps, endings, st.integers(0, 30))
def test_drawn_graphs_keep_their_numbers(drawn, ending, extra):
    check_drawn(drawn, ending, extra, np.float64)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_many_drawn_graphs_keep_their_numbers(dtype):
    @settings(max_examples=300, deadline=None)
    @given(drawn_steps, endings, st.integers(0, 30))
    def many(drawn, ending, extra):
        check_drawn(drawn, ending, extra, dtype)

    many()
