"""Activations in halves are a permission: by measured times each buffer lies as it is faster, or all are in FP32."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from perwatt.graph import Builder, Graph
from perwatt.machine import this_machine
from perwatt.passes import apply
from perwatt.plan import Considered, Placement, Step, Timings, place, tile_key, uniform
from perwatt.run import compile, storage

HALVES = uniform("fp16", "fp16")


def chain() -> Graph:
    """Return five convolutions in a row, with four activations between them."""
    r, b = np.random.default_rng(4), Builder("chain")
    x = b.input("x", (2, 16, 12, 12))
    for number in range(5):
        weights = b.constant(f"w{number}", (r.standard_normal((16, 16, 3, 3)) / 12).astype(np.float32))
        x = b.add("Conv", [x, weights], name=f"conv{number}", pads=(1,) * 4)
    return b.finish([x])


def siblings() -> Graph:
    """Return three 1x1 convolutions on one input, which become one step of several outputs, and what follows them."""
    r, b = np.random.default_rng(4), Builder("siblings")
    x = b.input("x", (2, 16, 9, 9))
    x = b.add("Conv", [x, b.constant("w", (r.standard_normal((32, 16, 3, 3)) / 12).astype("f4"))], pads=(1,) * 4)
    parts = []
    for number, channels in enumerate((16, 24, 32)):
        first = b.constant(f"a{number}", (r.standard_normal((channels, 32, 1, 1)) / 6).astype(np.float32))
        then = b.constant(f"b{number}", (r.standard_normal((16, channels, 3, 3)) / 15).astype(np.float32))
        y = b.add("Conv", [x, first], name=f"narrow{number}")
        parts.append(b.add("Conv", [y, then], name=f"wide{number}", pads=(1,) * 4))
    y = b.add("Concat", parts, axis=1)
    return b.finish([b.add("Conv", [y, b.constant("last", (r.standard_normal((8, 48, 1, 1)) / 7).astype("f4"))])])


@pytest.mark.slow
@pytest.mark.parametrize("kept", [("narrow0",), ("narrow1",), ("narrow2", "wide1"), ("wide0",), ()], ids=str)
def test_outputs_of_one_step_are_stored_alike(kept: tuple[str, ...]) -> None:
    """One kernel writes them all: one of them alone kept in FP32 would be written as halves and read as FP32."""
    graph = siblings()
    precision = replace(HALVES, kept=frozenset(kept))
    placement = place(apply(graph), this_machine(), 2, (), precision)
    several = [step for step in placement.steps if len(step.outputs) > 1]
    assert several, "the convolutions were to be merged"
    for step in placement.steps:
        assert len({output.element for output in step.outputs}) == 1
        for output in step.outputs:
            assert output.element == "fp32" or output.name not in kept
    assert bool(storage.halved(placement)), "something still lies in halves"
    x = np.random.default_rng(1).standard_normal((2, 16, 9, 9)).astype(np.float32)
    exact = np.asarray(compile(graph, tune="estimate")(x))
    found = np.asarray(compile(graph, tune="estimate", precision=precision)(x))
    assert np.linalg.norm(found - exact) < 3e-3 * np.linalg.norm(exact)


def settled(seconds: Callable[[int, Step], float]) -> tuple[storage.Laid, list[Placement]]:
    """Return what is chosen where every candidate of a step takes so many seconds, and the placements compared."""
    tried: list[Placement] = []

    def times(placement: Placement, considered: Considered, share: float) -> Timings:
        tried.append(placement)
        return {
            (position, candidate.algorithm, tile_key(candidate.tile)): seconds(position, placement.steps[position])
            for position, (found, _) in enumerate(considered)
            for candidate in found
        }

    return storage.settle(apply(chain()), this_machine(), 1, (), HALVES, None, times), tried


def total(seconds: Callable[[int, Step], float], placement: Placement) -> float:
    return sum(seconds(p, step) * placement.repeats(p) for p, step in enumerate(placement.steps))


def test_halves_that_are_slower_everywhere_are_not_used() -> None:
    laid, tried = settled(lambda _, step: 2e-3 if step.in_halves else 1e-3)
    assert not storage.halved(laid.placement)
    assert len(tried) == 2
    assert laid.why is not None
    assert laid.why.startswith("activations in fp32;")


def test_halves_that_are_faster_everywhere_are_used_everywhere() -> None:
    laid, tried = settled(lambda _, step: 1e-3 if step.in_halves else 2e-3)
    assert storage.halved(laid.placement) == storage.halved(tried[0]) >= {f"conv{number}" for number in range(4)}
    assert laid.why is not None
    assert laid.why.startswith("activations in fp16 throughout;")


def test_a_gain_within_noise_keeps_fp32() -> None:
    laid, _ = settled(lambda _, step: 0.995e-3 if step.in_halves else 1e-3)
    assert not storage.halved(laid.placement)


@pytest.mark.parametrize("seed", range(8))
def test_each_buffer_lies_as_it_is_faster_and_never_slower_than_fp32(seed: int) -> None:
    """Times of steps drawn at random, with halves faster in some and slower in others."""
    drawn = np.random.default_rng(seed).uniform(0.2, 2.0, (12, 3)) * 1e-3

    def seconds(position: int, step: Step) -> float:
        halves = sum(t.element != "fp32" for t in (*step.inputs[:1], *step.outputs) if t is not None)
        return float(drawn[position, halves])

    laid, tried = settled(seconds)
    chosen, (halves, exact, *_) = total(seconds, laid.placement), (total(seconds, each) for each in tried)
    assert chosen <= exact
    assert chosen <= halves * (1 + storage.LEAST_GAIN) or not storage.halved(laid.placement)


def test_one_slow_step_leaves_the_others_in_halves() -> None:
    def seconds(position: int, step: Step) -> float:
        if not step.in_halves:
            return 2e-3
        return 9e-3 if step.name == "conv4" else 1e-3

    laid, tried = settled(seconds)
    mixed = storage.halved(laid.placement)
    assert mixed
    assert mixed < storage.halved(tried[0])
    assert laid.why is not None
    assert "activations in fp16 where that is faster;" in laid.why


def test_without_times_the_permission_is_used() -> None:
    laid = storage.settle(apply(chain()), this_machine(), 1, (), HALVES, None, lambda *_: {})
    assert storage.halved(laid.placement)
    assert laid.why is None


@pytest.mark.slow
def test_the_plan_tells_what_was_measured_and_the_choice_is_kept(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERWATT_CACHE", str(tmp_path_factory.mktemp("cache")))
    model = compile(chain(), precision="fp16", tune_limit_s=1.0)
    assert "measured for a batch: fp16 throughout" in str(model.plan)
    again = compile(chain(), precision="fp16", tune="estimate")
    assert [p.step.outputs for p in again.plan.steps] == [p.step.outputs for p in model.plan.steps]
    x = np.random.default_rng(1).standard_normal((2, 16, 12, 12)).astype(np.float32)
    exact = compile(chain(), tune="estimate")(x)
    # Five layers of roundings, half a unit of FP16 each at most.
    assert abs(model(x) - exact).max() < 8 * 2.0**-10 * abs(exact).max()
