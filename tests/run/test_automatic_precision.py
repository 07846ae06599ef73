"""Precision: what fp16 and bf16 give, and "auto", which must never hand out a network that fails its check."""

import json

import numpy as np
import pytest

from perwatt.errors import InputError
from perwatt.graph import Builder, Graph
from perwatt.networks import build
from perwatt.plan import Allowance, Precision
from perwatt.run import Model, automatic, compile, precision_file
from perwatt.run.automatic import Check, Range, answers, compare, summary, tune_precision

RANDOM = np.random.default_rng


def plain_network(batch: int = 4, scale: float = 1.0) -> Graph:
    """Return a small network whose ten classes lie apart by much more than rounding."""
    r, b = RANDOM(3), Builder("plain")

    def weights(name: str, *shape: int) -> str:
        return b.constant(name, (r.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32) * scale)

    x = b.add("Relu", [b.add("Conv", [b.input("x", (batch, 3, 16, 16)), weights("w1", 32, 3, 3, 3)], pads=(1,) * 4)])
    x = b.add("MaxPool", [x], kernel_shape=(2, 2), strides=(2, 2))
    x = b.add("Relu", [b.add("Conv", [x, weights("w2", 64, 32, 3, 3)], pads=(1,) * 4)])
    x = b.add("Relu", [b.add("Conv", [x, weights("w3", 48, 64, 1, 1)])])
    x = b.add("Flatten", [b.add("GlobalAveragePool", [x])])
    return b.finish([b.add("Gemm", [x, weights("w4", 10, 48)], transB=1)])


def overflowing_network(batch: int = 2) -> Graph:
    """Return a network in which every channel holds a huge part that all share and a small one that decides.

    The huge part is beyond FP16; BF16's rounding of it is larger than the small one. The last layer takes differences.
    """
    r, b = RANDOM(5), Builder("overflowing")
    eye = np.eye(32, dtype=np.float32)[:, :, None, None]
    x = b.add(
        "Conv", [b.input("x", (batch, 32, 4, 4)), b.constant("w1", eye), b.constant("up", np.full(32, 2e5, "f4"))]
    )
    x = b.add("Relu", [x])
    x = b.add("Relu", [b.add("Conv", [x, b.constant("w2", eye)])])
    x = b.add("Flatten", [b.add("GlobalMaxPool", [x])])
    last = r.standard_normal((10, 32)).astype(np.float32)
    last -= last.mean(axis=1, keepdims=True)
    return b.finish([b.add("Gemm", [x, b.constant("w3", last)], transB=1)])


def images(graph: Graph, count: int, scale: float = 1.0) -> np.ndarray:
    shape = graph.values[graph.inputs[0]].shape[1:]
    return (RANDOM(8).standard_normal((count, *shape)) * scale).astype(np.float32)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERWATT_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "allowed"), [("fp16", 2.0**-10), ("bf16", 2.0**-7)])
def test_one_precision_for_all(precision: str, allowed: float) -> None:
    """A few layers of roundings, each half a unit at most: within a few units of the storage type, and not FP32."""
    graph = plain_network()
    exact, half = (compile(graph, precision=p, tune="estimate") for p in ("fp32", precision))
    x = images(graph, 4)
    error = abs(half(x) - exact(x)).max() / abs(exact(x)).max()
    assert allowed / 1000 < error < 8 * allowed
    assert "numbers: " in str(half.plan)
    assert f"writes {precision}" in str(half.plan)
    assert "numbers: " not in str(exact.plan)
    # Winograd has FP16 weights, but BF16 ones only where products are BF16.
    assert half.weight_bytes < (0.8 if precision == "fp16" else 1.0) * exact.weight_bytes


def test_the_plan_tells_storage_and_arithmetic_apart() -> None:
    plan = str(compile(plain_network(), precision="fp16", tune="estimate").plan)
    assert "weights fp16, products fp32" in plan or "weights fp16, products fp16" in plan
    assert "expected error" in plan


@pytest.mark.slow
def test_a_machine_without_bf16_gets_fp32_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = plain_network()
    x = images(graph, 4)
    exact = compile(graph, tune="estimate")(x)
    for isa in ("avx2", "portable"):
        monkeypatch.setenv("PERWATT_MACHINE", isa)
        try:
            model = compile(graph, precision="bf16", tune="estimate")
        except InputError as reason:
            pytest.skip(str(reason))
        assert {p.choice.arithmetic for p in model.plan.steps} == {"fp32"}
        assert {p.choice.weights for p in model.plan.steps} == {"fp32", "bf16"}
        assert abs(model(x) - exact).max() < 8 * 2.0**-7 * abs(exact).max()


@pytest.mark.slow
def test_auto_keeps_the_agreement_and_tells_why() -> None:
    graph = plain_network()
    x = images(graph, 40)
    model, evidence = tune_precision(graph, None, x, agreement=0.95, tune="estimate")
    exact = answers(compile(graph, tune="estimate"), x)
    got = answers(model, x)
    share = float((got.argmax(1) == exact.argmax(1)).mean())
    assert evidence["agreement"]["share"] == pytest.approx(share)
    assert share >= 0.95
    low, high = evidence["agreement"]["interval_95"]
    assert low < share <= high
    assert evidence["largest_error"] == pytest.approx(compare(got, exact).largest_error)
    assert any(step["weights"] != "fp32" for step in evidence["steps"])
    assert all(step["answers_moved"] is not None for step in evidence["steps"] if step["weights"] != "fp32")
    json.dumps(evidence, allow_nan=False)
    again = compile(graph, precision="auto", tune="estimate")  # kept
    assert np.array_equal(answers(again, x), got)
    carried = compile(graph, precision=json.loads(json.dumps(evidence)), tune="estimate")
    assert np.array_equal(answers(carried, x), got)
    other_batch = compile(plain_network(2), precision="auto", tune="estimate")
    assert any(p.choice.weights != "fp32" for p in other_batch.plan.steps)


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["", "avx2"])
def test_a_network_that_overflows_fp16_stays_fp32(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if isa:
        monkeypatch.setenv("PERWATT_MACHINE", isa)
    graph = overflowing_network()
    x = images(graph, 24)
    try:
        model, evidence = tune_precision(graph, None, x, agreement=1.0, tune="estimate")
    except InputError as reason:
        pytest.skip(str(reason))
    exact = answers(compile(graph, tune="estimate"), x)
    assert (answers(model, x).argmax(1) == exact.argmax(1)).all()
    assert not any("fp16" in step["weights"] and step["step"].startswith("Gemm") for step in evidence["steps"])
    told = "\n".join(summary(evidence))
    assert "not stored in fp16" in told
    assert "ends at 6.55e+04" in told
    maps = [t for planned in model.plan.steps for t in planned.step.outputs if len(t.shape) == 4]
    assert maps
    assert {t.element for t in maps} == {"fp32"}


@pytest.mark.slow
def test_a_mixture_that_never_passes_becomes_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is wrong with a kernel in halves, auto hands out answers of FP32."""
    graph = plain_network()
    x = images(graph, 12)
    honest = automatic.answers

    def broken(model: Model, given: np.ndarray) -> np.ndarray:
        made = honest(model, given)
        halves = any(p.choice.weights != "fp32" or p.step.in_halves for p in model.plan.steps)
        return np.roll(made, 1, axis=1) if halves else made

    monkeypatch.setattr(automatic, "answers", broken)
    model, evidence = tune_precision(graph, None, x, tune="estimate")
    assert evidence["is_fp32"]
    assert {p.choice.weights for p in model.plan.steps} == {"fp32"}
    assert "FP32 throughout" in "\n".join(summary(evidence))


def test_auto_without_a_measurement_is_refused() -> None:
    with pytest.raises(InputError, match="perwatt tune"):
        compile(plain_network(), precision="auto", tune="estimate")
    with pytest.raises(InputError, match="expected one of fp32, fp16, bf16, auto"):
        compile(plain_network(), precision="int4", tune="estimate")
    with pytest.raises(InputError, match="expected images of shape"):
        tune_precision(plain_network(), None, np.zeros((3, 3, 8, 8), np.float32))
    with pytest.raises(InputError, match="agreement"):
        tune_precision(plain_network(), None, np.zeros((3, 3, 16, 16), np.float32), agreement=99.9)


@pytest.mark.parametrize("given", [{}, {"format": 2}, {"format": 1, "allowed": {"a": {"weights": ["int4"]}}}])
def test_objects_that_are_no_evidence_are_refused(given: dict[str, object]) -> None:
    with pytest.raises(InputError, match="precision: expected"):
        precision_file.from_json(given)


def test_precision_survives_json() -> None:
    allowed = {"a": Allowance(("fp16",), ()), "b": Allowance(("bf16", "fp16"), ("bf16",))}
    precision = Precision(steps=allowed, storage="bf16", kept=frozenset({"t", "u"}))
    assert precision_file.from_json(json.loads(json.dumps(precision_file.to_json(precision)))) == precision


def test_ranges() -> None:
    assert Range("t", 9000.0, 1.0).against("fp16") is not None
    assert Range("t", 8000.0, 1.0).against("fp16") is None
    assert Range("t", 1e-3, 1e-6).against("fp16") is not None
    assert Range("t", 1e9, 1.0).against("bf16") is None
    assert Range("t", float("inf"), 1.0).against("bf16") is not None


def test_wilson_interval() -> None:
    """Newcombe's table (Statistics in Medicine 17, 1998): 81 of 263 is 0.2553 to 0.3662, 0 of 20 is 0 to 0.1611."""
    assert Check(263, 81, 0.0).interval == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert Check(20, 0, 0.0).interval == pytest.approx((0.0, 0.1611), abs=5e-5)


def test_no_number_agrees_with_nothing() -> None:
    wanted = np.float32([[3, 1], [1, 3]])
    got = np.float32([[np.nan, 1], [1, 3]])
    found = compare(got, wanted)
    assert (found.images, found.agreeing, found.largest_error) == (2, 1, float("inf")) or found.largest_error > 1e30


@pytest.mark.slow
def test_alexnets_weights_in_fp16_take_at_most_six_tenths() -> None:
    """Its fully connected layers are 96 % of its weights, and hold half the bytes."""
    exact, half = (compile(build("alexnet", batch=1), precision=p, tune="estimate") for p in ("fp32", "fp16"))
    assert half.weight_bytes <= 0.6 * exact.weight_bytes
