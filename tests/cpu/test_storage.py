"""FP16 and BF16 in memory: every pattern is read right, every rounding is to nearest even, on each vector unit."""

import ctypes
from dataclasses import replace

import numpy as np
import pytest
from kernel_runner import each_width, machine

from perwatt.cpu.ir import Module
from perwatt.cpu.jit import compile_module
from perwatt.cpu.kernels.storage import FP32, Stored, from_bf16, load, packed, store, stored, to_bf16
from perwatt.plan.precision import ROUNDING, Element, rounding_error

HALVES: tuple[Element, ...] = ("fp16", "bf16")


def convert(source: Stored, target: Stored, values: np.ndarray, made: np.ndarray, lanes: int) -> np.ndarray:
    """Copy numbers from one kind of storage to another with a kernel."""
    module = Module("convert", lanes)
    with module.kernel("convert") as k:
        first, last = k.share(k.argument(2))
        with k.loop(first, last) as over:
            value = load(k, source, k.pointer(0), over.index * source.words(lanes))
            store(k, target, value, k.pointer(1), over.index * target.words(lanes))
    code = compile_module(str(module), machine(lanes))
    words = np.array([values.ctypes.data, made.ctypes.data, values.size // lanes], np.int64)
    ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)(code.address("convert"))(
        words.ctypes.data, 0, 1, None
    )
    return made


def kinds(element: Element, lanes: int) -> list[Stored]:
    """Return the storage as this machine's instructions and as integer operations convert it."""
    return sorted({stored(element, machine(lanes)), Stored(element, False)}, key=lambda kind: kind.native)


@pytest.mark.parametrize("lanes", each_width())
@pytest.mark.parametrize("element", HALVES)
def test_every_pattern_is_read(element: Element, lanes: int) -> None:
    patterns = np.arange(1 << 16, dtype=np.uint16)
    wanted = from_bf16(patterns) if element == "bf16" else patterns.view(np.float16).astype(np.float32)
    for kind in kinds(element, lanes):
        got = convert(kind, FP32, patterns, np.zeros(1 << 16, np.float32), lanes)
        assert np.array_equal(got, wanted, equal_nan=True), kind


@pytest.mark.parametrize("lanes", each_width())
@pytest.mark.parametrize("element", HALVES)
def test_every_rounding_is_to_nearest_even(element: Element, lanes: int) -> None:
    random = np.random.default_rng(5)
    patterns = np.arange(1 << 16, dtype=np.uint16)
    exact = from_bf16(patterns) if element == "bf16" else patterns.view(np.float16).astype(np.float32)
    exact = np.sort(exact[np.isfinite(exact)])
    with np.errstate(over="ignore"):
        middle = (exact[1:].astype(np.float64) / 2 + exact[:-1].astype(np.float64) / 2).astype(np.float32)
    values = np.concatenate([
        exact, middle, np.nextafter(middle, np.float32(np.inf)), np.nextafter(middle, -np.float32(np.inf)),
        np.exp2(random.uniform(-30, 18, 20000)).astype(np.float32) * random.choice([-1, 1], 20000),
        np.float32([65519.9, 65520.0, 1e30, -1e30, np.inf, -np.inf, np.nan, 3e38, 0.0, -0.0, 1e-30]),
    ]).astype(np.float32)  # fmt: skip
    values = values[(abs(values) >= 2.0**-126) | (values == 0) | np.isnan(values)]  # FP32's subnormals may be flushed
    values = np.concatenate([values, np.ones(-values.size % 64, np.float32)])
    wanted = packed(values, element)
    for kind in kinds(element, lanes):
        got = convert(FP32, kind, values, np.zeros_like(wanted), lanes)
        numbers = ~np.isnan(values)
        different = got.view(np.uint16)[numbers] != wanted.view(np.uint16)[numbers]
        assert not different.any(), (kind, values[numbers][different][:5], got[numbers][different][:5])
        shown = from_bf16(got) if element == "bf16" else got
        assert np.isnan(shown[~numbers]).all()


def test_bf16_of_numpy() -> None:
    """The packing of weights, against the definition: cut the lower half off after adding just under half a unit."""
    values = np.random.default_rng(3).standard_normal(10001).astype(np.float32)
    near = from_bf16(to_bf16(values))
    step = np.exp2(np.floor(np.log2(abs(values.astype(np.float64)))) - 7)
    assert (abs(near - values) <= step / 2).all()
    assert np.isnan(from_bf16(to_bf16(np.float32([np.nan])))).all()


@pytest.mark.parametrize("element", HALVES)
def test_expected_rounding_errors(element: Element) -> None:
    """The figures plans are made with, against a sum of products whose factors were rounded."""
    random = np.random.default_rng(7)
    x, w = random.standard_normal((200, 500)), random.standard_normal((500, 60))
    assert x.size > 1

    def rounded(values: np.ndarray) -> np.ndarray:
        halves = packed(values.astype(np.float32), element)
        return (from_bf16(halves) if element == "bf16" else halves).astype(np.float64)

    exact = x @ w
    for inputs, made in (("fp32", x), (element, rounded(x))):
        error = np.sqrt(np.mean((made @ rounded(w) - exact) ** 2) / np.mean(exact**2))
        assert error == pytest.approx(rounding_error(element, inputs), rel=0.15)
    assert ROUNDING["bf16"] == 8 * ROUNDING["fp16"]


def test_a_machine_without_the_instructions_gets_none() -> None:
    here = replace(machine(16), features=())
    assert stored("bf16", here) == Stored("bf16", False)
