"""Networks drawn at random, through passes, plan and kernels: whatever the network, the answer is ONNX Runtime's."""

import random
from dataclasses import replace

import numpy as np
import pytest
from network_oracles import compare, feeds_of, run_onnxruntime
from small_graphs import Net

import perwatt
from perwatt.cpu.catalogue import KERNELS
from perwatt.graph import Graph
from perwatt.machine import this_machine
from perwatt.passes import apply
from perwatt.plan import place

ACTIVATIONS = ("Relu", "Sigmoid", "Tanh", "HardSwish", "LeakyRelu", "Elu", "HardSigmoid", "Softplus", "Abs", "Mish")
CHANNELS = (1, 3, 7, 8, 16, 16, 17, 32, 33, 48)
KINDS = (
    *("conv", "conv", "conv", "conv", "grouped", "depthwise", "pointwise", "pointwise", "siblings", "add", "add"),
    *("concat", "concat", "concat", "activation", "activation", "pool", "pool", "mean", "norm", "scale", "gate"),
    *("split", "slice", "pad", "transpose", "reshape", "excite", "maximum", "clip", "softmax", "lrn"),
)


def drawn(seed: int) -> Graph:
    """Return a network of up to 14 steps, with up to three outputs, which may be anything made on the way."""
    r = random.Random(seed)
    net = Net(r.choice([1, 1, 2, 3, 6]))
    height, width = r.choice([(5, 4), (1, 9), (8, 8), (13, 11), (1, 1)])
    inputs = [net.input(r.choice([3, 16, 5]), height, width)]
    if r.random() < 0.3:
        inputs.append(net.input(r.choice([3, 16, 33]), height, width))
    made = list(inputs)
    for _ in range(r.randrange(1, 15)):
        made.extend(_grow(net, r, r.choice(made[-4:] if r.random() < 0.8 else made), made))
    last = made[-1]
    if r.random() < 0.5:
        if r.random() < 0.5:
            last = net.add("GlobalAveragePool", last)
        last = net.dense(last, r.choice([1, 10, 33]))
        if r.random() < 0.5:
            last = net.add("Softmax", net.dense(net.add("Relu", last), 5), axis=1)
    others = r.sample(made, k=min(len(made), r.choice([0, 0, 1, 2])))
    return net.graph(*dict.fromkeys([last, *others]))


def _grow(net: Net, r: random.Random, x: str, made: list[str]) -> list[str]:
    _, channels, height, width = net.builder.shape(x)
    alike = [name for name in made if net.builder.shape(name) == net.builder.shape(x)]
    beside = [name for name in made if net.builder.shape(name)[2:] == (height, width)]
    outputs = r.choice(CHANNELS)
    match r.choice(KINDS):
        case "conv":
            kernel = (min(r.choice([1, 2, 3, 3, 3, 5]), height), min(r.choice([1, 2, 3, 3, 3, 5]), width))
            if r.random() < 0.4:
                kernel = (3, 3)
            weights = net.weights(outputs, channels, *kernel)
            pads = tuple(r.choice([k // 2, k // 2, k // 2, 0, k - 1]) for k in (*kernel, *kernel))
            if any(s + a + b < k for s, a, b, k in zip((height, width), pads, pads[2:], kernel, strict=False)):
                pads = (*(k - 1 for k in kernel), *(k - 1 for k in kernel))
            strides = (r.choice([1, 1, 1, 2, 3]), r.choice([1, 1, 1, 2]))
            return [net.add("Conv", x, weights, pads=pads, strides=strides)]
        case "grouped":
            groups = r.choice([g for g in (1, 2, 3, 4, 8, 16) if channels % g == 0])
            weights = net.weights(groups * r.choice([1, 2, 8]), channels // groups, 1, 1)
            return [net.add("Conv", x, weights, group=groups)]
        case "depthwise":
            pads = tuple(r.choice([1, 1, 2, 0]) for _ in range(4))
            pads = pads if height + pads[0] + pads[2] >= 3 and width + pads[1] + pads[3] >= 3 else (1, 1, 1, 1)
            stride = r.choice([1, 1, 2])
            weights = net.weights(channels, 1, 3, 3)
            return [net.add("Conv", x, weights, group=channels, pads=pads, strides=(stride, stride))]
        case "pointwise":
            return [net.conv(x, outputs)]
        case "siblings":
            return [net.add("Relu", net.conv(x, n)) for n in (outputs, r.choice(CHANNELS))]
        case "add":
            return [net.add("Add", x, r.choice(alike))]
        case "maximum":
            return [net.add("Max", x, r.choice(alike), r.choice(alike))]
        case "concat":
            return [net.add("Concat", x, *r.choices(beside, k=r.choice([1, 1, 2])), axis=1)]
        case "activation":
            return [net.add(r.choice(ACTIVATIONS), x)]
        case "clip":
            return [net.add("Clip", x, min=r.choice([-1.0, 0.0]), max=r.choice([0.5, 6.0]))]
        case "pool":
            kernel = (min(r.choice([2, 3]), height), min(r.choice([2, 3]), width))
            pads = tuple(r.choice([0, k // 2]) for k in (*kernel, *kernel))
            strides = (r.choice([1, 2]), r.choice([1, 2]))
            kind = r.choice(["MaxPool", "AveragePool"])
            include = {"count_include_pad": r.choice([0, 1])} if kind == "AveragePool" else {}
            return [net.add(kind, x, kernel_shape=kernel, pads=pads, strides=strides, **include)]
        case "mean":
            return [net.add("ReduceMean", x, axes=r.choice([(2, 3), (1,), (2,)]), keepdims=1)]
        case "norm":
            constants = [net.weights(channels) for _ in range(3)]
            return [net.add("BatchNormalization", x, *constants[:2], constants[2], _positive(net, channels))]
        case "scale":
            return [
                net.add(r.choice(["Mul", "Add", "Sub", "Div"]), x, _positive(net, *r.choice([(channels, 1, 1), ()])))
            ]
        case "gate":
            return [net.add("Mul", x, net.add("Sigmoid", x))]
        case "excite":
            small = net.add("Relu", net.conv(net.add("GlobalAveragePool", x), 4))
            return [net.add("Mul", x, net.add("Sigmoid", net.conv(small, channels)))]
        case "split" if channels > 1:
            first = r.randrange(1, channels)
            parts = net.builder.add("Split", [x], axis=1, split=(first, channels - first), outputs=2)
            return list(parts)
        case "slice" if channels > 1:
            first = r.randrange(channels - 1)
            return [net.add("Slice", x, starts=(first,), ends=(channels,), axes=(1,), steps=(1,))]
        case "pad":
            return [net.add("Pad", x, pads=(0, 0, r.randrange(2), r.randrange(3), 0, 0, r.randrange(3), 0))]
        case "transpose":
            turned = net.add("Transpose", x, perm=(0, 2, 3, 1))
            return [net.add("Transpose", net.add("Relu", turned), perm=(0, 3, 1, 2))]
        case "reshape":
            flat = net.add("Reshape", x, shape=(net.batch, channels * height * width))
            return [net.add("Reshape", flat, shape=(net.batch, channels * height, width, 1))]
        case "softmax":
            return [net.add("Softmax", x, axis=r.choice([1, 3]))]
        case "lrn":
            return [net.add("LRN", x, size=r.choice([3, 5]))]
    return []


def _positive(net: Net, *shape: int) -> str:
    return net.builder.constant(net.name(), net.builder.random.uniform(0.5, 1.5, shape).astype(np.float32))


def check_drawn(seed: int, **how: object) -> None:
    graph = drawn(seed)
    feeds = feeds_of(graph, seed)
    wanted = run_onnxruntime(graph, feeds)
    assert all(np.isfinite(array).all() for array in wanted.values()), "the case itself overflows"
    model = perwatt.compile(graph, **{"tune": "estimate", **how})  # type: ignore[arg-type]
    for _ in range(2):
        compare(graph, model.run(feeds), wanted)


@pytest.mark.parametrize("seed", range(6))
def test_a_few(seed: int) -> None:
    check_drawn(seed)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(100, 220, 20))
def test_many(first: int) -> None:
    for seed in range(first, first + 20):
        try:
            check_drawn(seed, threads=1 + seed % 3, images=1 if seed % 2 else None)
        except BaseException as error:
            raise AssertionError(f"seed {seed}: {error}\n{drawn(seed)}") from error


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["avx2", "portable"])
def test_many_with_narrower_vectors(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERWATT_MACHINE", isa)
    for seed in range(300, 330):
        try:
            check_drawn(seed, threads=1 + seed % 3)
        except BaseException as error:
            raise AssertionError(f"seed {seed}: {error}\n{drawn(seed)}") from error


@pytest.mark.parametrize("count", [8, pytest.param(120, marks=pytest.mark.slow)])
def test_one_name_one_code(count: int) -> None:
    """Compiled kernels are kept under their functions' names: what a name leaves out would run in another's place."""
    sources: dict[tuple[int, str], str] = {}
    for seed in range(500, 500 + count):
        graph = apply(drawn(seed))
        for isa, lanes in (("avx512", 16), ("avx2", 8)):
            machine = replace(this_machine(), isa=isa, vector_floats=lanes)
            for step in place(graph, machine, 2).steps:
                for algorithm in KERNELS:
                    if step.operator not in algorithm.operators or algorithm.accepts(step) is not None:
                        continue
                    for tile in list(algorithm.tiles(step))[:2]:
                        for call in algorithm.calls(step, tile):
                            text = call.source()
                            assert sources.setdefault((lanes, call.function), text) == text, call.function
                            assert f"@{call.function}(" in text
    assert len({name for _, name in sources}) == len(sources), "the width is part of the name"
