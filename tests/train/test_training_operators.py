"""Every operator of the training form means what ONNX Runtime means by it, at another batch than it was made with."""

import math

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from perwatt.errors import NetworkError
from perwatt.graph import Builder, Graph, write
from perwatt.train.module import deployed, training_form
from perwatt.train.operators import RUNNERS

FED = 3


def image(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def agree(graph: Graph, seed: int = 0, depth: int = 1) -> None:
    """Hold the module at batch FED against ONNX Runtime; `depth` is the longest sum of products."""
    module = training_form(graph).eval()
    images = image(seed, FED, *graph.values["data"].shape[1:])
    with torch.no_grad():
        got = module.answer(torch.from_numpy(images)).numpy()
    session = onnxruntime.InferenceSession(write(deployed(module), batch="batch"), providers=["CPUExecutionProvider"])
    wanted = session.run(None, {"data": images})[0].reshape(FED, -1)
    # Two sums of `depth` rounded products, in any order, and a few roundings of functions.
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(got, wanted, rtol=0, atol=scale * 2**-24 * (8 + 4 * math.sqrt(depth)))


def network(
    operator: str, sizes: tuple[int, ...], constants: tuple[np.ndarray, ...] = (), **attributes: object
) -> Graph:
    builder = Builder("one")
    data = builder.input("data", (2, *sizes))
    names = [builder.constant(f"c{place}.value", array) for place, array in enumerate(constants)]
    return builder.finish([builder.add(operator, [data, *names], name="made", outputs=1, **attributes)])


@settings(deadline=None, max_examples=25)
@given(
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilations=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    pads=st.tuples(*[st.integers(0, 2)] * 4),
    group=st.sampled_from([1, 2]),
    bias=st.booleans(),
)
def test_convolutions(
    kernel: tuple[int, int],
    strides: tuple[int, int],
    dilations: tuple[int, int],
    pads: tuple[int, int, int, int],
    group: int,
    bias: bool,
) -> None:
    constants = (image(1, 6, 4 // group, *kernel), *((image(2, 6),) if bias else ()))
    graph = network(
        *("Conv", (4, 9, 11), constants),
        kernel_shape=kernel, strides=strides, dilations=dilations, pads=pads, group=group,
    )  # fmt: skip
    agree(graph, depth=4 // group * math.prod(kernel))


@settings(deadline=None, max_examples=40)
@given(
    operator=st.sampled_from(["MaxPool", "AveragePool"]),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    share=st.tuples(*[st.floats(0, 0.99)] * 4),
    ceil=st.integers(0, 1),
    counted=st.integers(0, 1),
)
def test_pools(
    operator: str,
    kernel: tuple[int, int],
    strides: tuple[int, int],
    share: tuple[float, float, float, float],
    ceil: int,
    counted: int,
) -> None:
    pads = tuple(int(part * kernel[place % 2]) for place, part in enumerate(share))
    more = {"count_include_pad": counted} if operator == "AveragePool" else {}
    graph = network(operator, (3, 9, 10), kernel_shape=kernel, strides=strides, pads=pads, ceil_mode=ceil, **more)
    agree(graph, depth=math.prod(kernel))


@pytest.mark.parametrize("size", [1, 3, 5, 7])
def test_normalisation_across_channels(size: int) -> None:
    agree(network("LRN", (6, 3, 4), size=size, alpha=0.7, beta=0.6, bias=1.5), depth=size)


ONE = ("Relu", "Sigmoid", "HardSwish", "Tanh", "Softplus", "Softsign", "Mish", "Exp", "Erf", "Neg", "Abs", "Identity")
FOUR = (3, 4, 5)
CASES: list[tuple[str, tuple[int, ...], tuple[np.ndarray, ...], dict[str, object]]] = [
    *((operator, FOUR, (), {}) for operator in ONE),
    ("Silu", FOUR, (), {}),
    ("Dropout", FOUR, (), {}),
    ("Clip", FOUR, (), {"min": -0.5, "max": 0.7}),
    ("Clip", FOUR, (), {"min": -0.5}),
    ("HardSigmoid", FOUR, (), {"alpha": 0.3, "beta": 0.4}),
    ("LeakyRelu", FOUR, (), {"alpha": 0.2}),
    ("Elu", FOUR, (), {"alpha": 1.3}),
    ("Selu", FOUR, (), {}),
    ("Gelu", FOUR, (), {}),
    ("Gelu", FOUR, (), {"approximate": "tanh"}),
    ("PRelu", FOUR, (image(5, 3, 1, 1),), {}),
    ("GlobalAveragePool", FOUR, (), {}),
    ("GlobalMaxPool", FOUR, (), {}),
    ("Softmax", (7,), (), {"axis": 1}),
    ("LogSoftmax", (7, 3), (), {"axis": 1}),
    ("BatchNormalization", FOUR, (image(1, 3), image(2, 3), image(3, 3), np.abs(image(4, 3))), {"epsilon": 1e-3}),
    ("Gemm", (5,), (image(1, 4, 5), image(2, 4)), {"transB": 1}),
    ("Gemm", (5,), (image(1, 5, 4), image(2, 1, 4)), {"alpha": 0.5, "beta": 2.0}),
    ("MatMul", (5,), (image(1, 5, 4),), {}),
    ("Add", FOUR, (image(1, 3, 1, 1),), {}),
    ("Sub", FOUR, (image(1, 1, 5),), {}),
    ("Mul", FOUR, (image(1, 3, 1, 1),), {}),
    ("Div", FOUR, (np.abs(image(1, 3, 1, 1)) + 1,), {}),
    ("Sum", FOUR, (image(1, 3, 1, 1), image(2, 5)), {}),
    ("Max", FOUR, (image(1, 3, 1, 1),), {}),
    ("Min", FOUR, (image(1, 3, 1, 1),), {}),
    ("Mean", FOUR, (image(1, 3, 4, 5), image(2, 3, 4, 5)), {}),
    ("ReduceMean", FOUR, (), {"axes": (2, 3), "keepdims": 1}),
    ("ReduceSum", FOUR, (), {"axes": (1,), "keepdims": 0}),
    ("ReduceMax", FOUR, (), {"axes": (2, 3), "keepdims": 0}),
    ("ReduceMin", FOUR, (), {"axes": (3,), "keepdims": 1}),
    ("Flatten", FOUR, (), {"axis": 1}),
    ("Reshape", FOUR, (), {"shape": (2, 5, 12)}),
    ("Transpose", FOUR, (), {"perm": (0, 3, 1, 2)}),
    ("Squeeze", (3, 1, 5), (), {"axes": (2,)}),
    ("Unsqueeze", (3, 5), (), {"axes": (2, 4)}),
    ("Pad", FOUR, (), {"pads": (0, 1, 0, 2, 0, 0, 3, 1), "value": 0.25}),
    ("Pad", FOUR, (), {"pads": (0, 0, 1, 2, 0, 0, 3, 1), "mode": "reflect"}),
    ("Pad", FOUR, (), {"pads": (0, 0, 1, 2, 0, 0, 0, 1), "mode": "edge"}),
    ("Slice", FOUR, (), {"starts": (1, 0), "ends": (3, 5), "axes": (1, 3), "steps": (1, 2)}),
]


@pytest.mark.parametrize(("operator", "shape", "constants", "attributes"), CASES, ids=lambda part: str(part)[:20])
def test_an_operator(
    operator: str, shape: tuple[int, ...], constants: tuple[np.ndarray, ...], attributes: dict[str, object]
) -> None:
    agree(network(operator, shape, constants, **attributes), depth=60)


@pytest.mark.parametrize("operator", ["Log", "Sqrt", "Reciprocal"])
def test_an_operator_on_positive_numbers(operator: str) -> None:
    builder = Builder("positive")
    data = builder.input("data", (2, *FOUR))
    bounded = builder.add("Clip", [data], name="bounded", min=0.1, max=9.0)
    agree(builder.finish([builder.add(operator, [bounded], name="made")]), depth=4)


def test_power_concatenation_and_split() -> None:
    builder = Builder("parts")
    data = builder.input("data", (2, 6, 3, 3))
    exponent = builder.constant("exponent", np.array(2.0, np.float32))
    squares = builder.add("Pow", [data, exponent], name="squares")
    first, second = builder.add("Split", [squares], name="split", outputs=2, axis=1, split=(4, 2))
    agree(builder.finish([builder.add("Concat", [second, data, first], name="made", axis=1)]))


def test_every_operator_is_tried_here() -> None:
    tried = {operator for operator, *_ in CASES} | {"Conv", "MaxPool", "AveragePool", "LRN", "Log", "Sqrt"}
    assert set(RUNNERS) <= tried | {"Reciprocal", "Pow", "Concat", "Split"}


@pytest.mark.parametrize(
    ("operator", "attributes"),
    [
        ("Softmax", {"axis": 0}),
        ("Reshape", {"shape": (3, 2, 20)}),
        ("Transpose", {"perm": (1, 0, 2, 3)}),
        ("ReduceMean", {"axes": (0,), "keepdims": 1}),
    ],
)
def test_what_mixes_the_images_of_a_batch_is_refused(operator: str, attributes: dict[str, object]) -> None:
    with pytest.raises(NetworkError, match="over the batch axis"):
        training_form(network(operator, FOUR, **attributes))


def test_an_operator_without_a_training_form_is_refused_by_name() -> None:
    with pytest.raises(NetworkError, match="got Floor at node 'made'"):
        training_form(network("Floor", FOUR))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_halves_are_squared_and_summed_in_fp32(dtype: torch.dtype) -> None:
    """Activations of some hundreds, as pixels of 0 to 255 make them: their squares are beyond FP16."""
    x = (image(3, 2, 8, 6, 6) * 400).clip(-3000, 3000)
    for graph in (
        network("LRN", (8, 6, 6), size=5, alpha=1e-4, beta=0.75, bias=1.0),
        network("AveragePool", (8, 6, 6), kernel_shape=(3, 3), strides=(2, 2), pads=(1, 1, 1, 1)),
    ):
        module = training_form(graph)
        halves = torch.from_numpy(x).to(dtype)
        exact = module.answer(halves.double())
        got = module.answer(halves).double()
        assert torch.isfinite(got).all()
        # What is left is the rounding of FP32, of sums of at most nine numbers.
        torch.testing.assert_close(got, exact, rtol=16 * 2**-24, atol=float(exact.abs().max()) * 16 * 2**-24)
