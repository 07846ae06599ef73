"""Lies that an engine could tell about its outputs, each caught; honest rounding, not."""

import random

import numpy as np
import pytest

from perwatt.lab import truth
from perwatt.lab.engine import Precision
from perwatt.lab.record import Reference, Sample, pack

BATCH, CLASSES, INPUTS = 6, 50, 3


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def wanted() -> np.ndarray:
    """Return reference outputs of three inputs, shape (inputs, batch, classes)."""
    generator = np.random.default_rng(8)
    return np.stack([softmax(generator.normal(size=(BATCH, CLASSES))) for _ in range(INPUTS)])


def references(wanted: np.ndarray) -> dict[int, Reference]:
    return {
        index: Reference(
            network="n",
            batch=BATCH,
            input=index,
            spread=truth.logit_spread(output),
            classes=tuple(int(each) for each in output.argmax(axis=1)),
            hash=truth.output_hash(output),
            images=tuple(range(BATCH)),
            output=pack(output),
        )
        for index, output in enumerate(wanted)
    }


def fault(outputs: dict[int, np.ndarray], wanted: np.ndarray, precision: Precision = "fp32") -> str | None:
    """Return what is found wrong with these outputs by input, sampled one run each."""
    samples = []
    for index, output in outputs.items():
        others = np.concatenate([other for each, other in enumerate(wanted) if each != index])
        judged = truth.judge(output, wanted[index], others, precision)
        samples.append(
            Sample(
                block=0,
                run=index,
                input=index,
                relative_errors=judged.relative_errors,
                classes=judged.classes,
                strangers=judged.strangers,
                hash=judged.hash,
                images=(),
                output=None,
            )
        )
    return truth.fault(samples, references(wanted), precision, precision)


def test_honest_outputs_pass_with_the_rounding_of_their_precision(wanted: np.ndarray) -> None:
    generator = np.random.default_rng(9)
    for precision, size in (("fp32", 1e-6), ("fp16", 5e-4), ("bf16", 4e-3)):
        noisy = {i: wanted[i] * (1 + size * generator.normal(size=wanted[i].shape)) for i in range(INPUTS)}
        assert fault(noisy, wanted, precision) is None  # type: ignore[arg-type]


def test_a_smaller_precision_behind_the_back_of_fp32_is_caught(wanted: np.ndarray) -> None:
    halves = {i: wanted[i].astype(np.float16).astype(np.float32) for i in range(INPUTS)}
    assert "relative error" in (fault(halves, wanted) or "")
    said = truth.fault([], references(wanted), "fp32", "bf16")
    assert said == "asked for fp32, the engine ran bf16"


def test_zeros_constants_and_the_previous_output_are_caught(wanted: np.ndarray) -> None:
    zeros = {i: np.zeros_like(wanted[i]) for i in range(INPUTS)}
    assert "stale: the same output" in (fault(zeros, wanted) or "")
    assert "relative error 1 " in (fault({0: np.zeros_like(wanted[0])}, wanted) or "")
    constant = dict.fromkeys(range(INPUTS), wanted[0])
    assert "stale: the same output" in (fault(constant, wanted) or "")
    previous = {i: wanted[i - 1] for i in range(INPUTS)}
    assert "another image" in (fault(previous, wanted) or "")


def test_the_previous_output_is_caught_even_where_images_look_alike(wanted: np.ndarray) -> None:
    """Outputs 2 % apart lie within what bf16 may err by; whose reference they are still shows."""
    alike = np.stack([wanted[0] * (1 + 0.02 * index) for index in range(INPUTS)]).astype(np.float32)
    assert fault({i: alike[i] for i in range(INPUTS)}, alike, "bf16") is None
    generator = np.random.default_rng(1)
    previous = {i: alike[i - 1] * (1 + 1e-3 * generator.normal(size=alike[i].shape)) for i in range(INPUTS)}
    assert "another image" in (fault(previous, alike, "bf16") or "")


def test_the_same_bits_are_no_lie_where_the_references_are_as_good_as_equal() -> None:
    saturated = np.zeros((2, BATCH, CLASSES), np.float32)
    saturated[:, :, 7] = 1
    saturated[1, :, 8] = 1e-30
    assert truth.output_hash(saturated[0]) != truth.output_hash(saturated[1])
    assert fault({0: saturated[0], 1: saturated[0]}, saturated) is None


def test_images_of_a_batch_in_another_order_are_caught(wanted: np.ndarray) -> None:
    rolled = {i: np.roll(wanted[i], 1, axis=0) for i in range(INPUTS)}
    assert "another image" in (fault(rolled, wanted) or "")
    swapped = {i: wanted[i][[1, 0, *range(2, BATCH)]] for i in range(INPUTS)}
    assert fault(swapped, wanted) is not None


def test_numbers_that_are_not_finite_and_other_shapes_are_caught(wanted: np.ndarray) -> None:
    broken = wanted[0].copy()
    broken[2, 3] = np.nan
    assert "not finite" in (fault({0: broken}, wanted) or "")
    assert "shape" in (fault({0: wanted[0][:, :-1]}, wanted) or "")
    assert "shape" in (fault({0: wanted[0].ravel()}, wanted) or "")
    assert truth.judge(np.float32(1.0), wanted[0], wanted[1], "fp32").relative_errors == (None,) * BATCH


def test_a_row_without_a_sample_is_not_believed(wanted: np.ndarray) -> None:
    assert "no output" in (truth.fault([], references(wanted), "fp32", "fp32") or "")


def test_one_wrong_image_of_many_is_caught(wanted: np.ndarray) -> None:
    almost = wanted[1].copy()
    almost[4] *= 1.01
    judged = truth.judge(almost, wanted[1], wanted[0], "fp32")
    assert [error is not None and error > 1e-3 for error in judged.relative_errors] == [False] * 4 + [True, False]
    assert "relative error" in (fault({1: almost}, wanted) or "")


def test_relative_error_agrees_with_float64_by_hand() -> None:
    assert truth.relative_error(np.float32([3, 4.5]), np.float32([3, 4])) == pytest.approx(0.1)
    assert truth.relative_error(np.zeros(2), np.zeros(2)) == 0
    assert truth.relative_error(np.ones(2), np.zeros(2)) is None


def test_the_tolerance_follows_the_spread_of_the_logits_and_no_further() -> None:
    generator = np.random.default_rng(2)
    for spread in (0.5, 3.0, 30.0):
        output = softmax(spread * generator.normal(size=(40, 1000)))[None]
        found = truth.logit_spread(output[0])
        assert found == pytest.approx(spread, rel=0.1) or spread > 10
        many = {0: references(output[:, :BATCH])[0].model_copy(update={"spread": found})}
        assert truth.tolerance("fp32", many) == pytest.approx(1e-4 * min(max(spread, 1), 10), rel=0.1)
    assert truth.logit_spread(generator.normal(size=(2, 5))) is None


def test_sampled_runs_are_neighbours_and_the_last_and_differ_from_seed_to_seed() -> None:
    drawn = {truth.sampled_runs(100, random.Random(seed)) for seed in range(50)}
    assert all(second == first + 1 and last == -1 and 0 <= first < 99 for first, second, last in drawn)
    assert len(drawn) > 20
    assert truth.sampled_runs(0, random.Random(1)) == (0, -1)
    assert all(truth.is_sampled(index, random.Random(3)) for index in range(4))


def test_a_single_image_may_err_more_in_bf16_but_the_median_may_not(wanted: np.ndarray) -> None:
    generator = np.random.default_rng(4)

    def off(share: float) -> np.ndarray:
        return (
            generator.normal(size=wanted[0].shape[1]) * share * np.linalg.norm(wanted[0][0]) / wanted[0].shape[1] ** 0.5
        )

    most = truth.tolerance("bf16", references(wanted))
    outputs = {i: wanted[i].copy() for i in range(INPUTS)}
    outputs[0][0] += off(2.5 * most)
    assert fault(outputs, wanted, "bf16") is None
    assert "relative error" in (fault(outputs, wanted) or "")  # fp32 has one bound for every image
    outputs[0][0] += off(12 * most)
    assert "relative error" in (fault(outputs, wanted, "bf16") or "")
    every = {i: wanted[i] + off(2.5 * most) for i in range(INPUTS)}
    assert "median" in (fault(every, wanted, "bf16") or "")


def test_a_mixture_is_held_to_its_coarsest_numbers() -> None:
    assert truth.held_to("bf16", None) == "bf16"
    assert truth.held_to("auto", "fp16") == "fp16"
    assert truth.held_to("auto", None) == "fp32"
