"""Making a Plan: the fastest that fits, the limit kept or the least that would do named, and every reason told."""

from collections.abc import Iterable
from dataclasses import replace
from math import sqrt

import numpy as np
import pytest
from plan_cases import graph_of, machine, place_net
from small_graphs import Net, chain, modules

from perwatt.cpu.catalogue import KERNELS
from perwatt.errors import PlanError, UnsupportedOperator
from perwatt.graph import Builder
from perwatt.plan import Algorithm, candidates, make, place, shortlist, tile_key, without_constants
from perwatt.plan.algorithm import allowed_error
from perwatt.plan.make import within_budget
from perwatt.plan.precision import Allowance, Precision
from perwatt.plan.rounding import error_shares

MIB = 1 << 20


def test_the_plan_says_why_and_why_not() -> None:
    placement = place_net(modules, 2)
    plan = make("net", placement, KERNELS)
    text = str(plan)
    assert text.startswith("plan of net: batch 2, 2 threads, arena ")
    for number, planned in enumerate(plan.steps, 1):
        assert f"{number:3} {planned.step.operator} {planned.step.name} -> " in text
        fp32 = [a for a in KERNELS if planned.step.allowed.permits(a.weights, a.arithmetic)]
        able = {a.name for a in fp32 if planned.step.operator in a.operators}
        told = {planned.choice.algorithm, *(name for name, _ in planned.why_not)}
        assert told == able, "every algorithm of the operator is chosen or has a reason against it"
        assert all(reason for _, reason in planned.why_not)
        assert planned.why
    assert "not winograd" in text
    assert "times as long" in text


def test_the_fastest_estimate_is_chosen_and_a_measurement_outweighs_it() -> None:
    placement = place_net(chain, 1)
    found, _ = candidates(placement.steps[1], KERNELS, None)
    assert [c.estimated_s for c in found] == sorted(c.estimated_s for c in found)
    loser = found[-1]
    key = (1, loser.algorithm, tile_key(loser.tile))
    plan = make("net", placement, KERNELS, timings={key: 1e-9}, error_budget=1e9)
    assert (plan.steps[1].choice.algorithm, plan.steps[1].choice.tile) == (loser.algorithm, loser.tile)
    assert "measured" in plan.steps[1].why
    assert plan.steps[1].choice.measured_s == 1e-9


def test_a_tie_goes_to_weights_in_half_the_bytes() -> None:
    placement = place(graph_of(chain), machine(), 2, (), Precision(Allowance(("fp16",))))
    found, _ = candidates(placement.steps[1], KERNELS, None)
    exact = next(c for c in found if c.weights == "fp32")
    half = next(c for c in found if c.weights == "fp16")
    for seconds, chosen in ((1.02, half), (1.05, exact)):
        timings = {
            (1, exact.algorithm, tile_key(exact.tile)): 1e-4,
            (1, half.algorithm, tile_key(half.tile)): seconds * 1e-4,
        }
        planned = make("net", placement, KERNELS, timings=timings, error_budget=1e9).steps[1]
        assert planned.choice.algorithm == chosen.algorithm
        assert ("half the bytes" in planned.why) == (chosen is half)
        other = dict(planned.why_not)[(exact if chosen is half else half).algorithm]
        assert "budget" not in other, "no error was over it"
        assert ("less than noise" in other) == (chosen is half)


def test_the_workspace_limit_is_kept_or_the_least_named() -> None:
    placement = place_net(chain, 4)
    free = make("net", placement, KERNELS)
    least = max(min(c.scratch_bytes for c in candidates(step, KERNELS, None)[0]) for step in placement.steps)
    assert 0 < least < free.scratch_bytes, "the case must have something to limit"
    for limit in (least, (least + free.scratch_bytes) // 2):
        plan = make("net", placement, KERNELS, workspace_bytes=limit)
        assert plan.scratch_bytes <= limit
        assert any("bytes of workspace" in reason for p in plan.steps for _, reason in p.why_not)
    with pytest.raises(PlanError, match=rf"at least {least:,} bytes.*limit is {least - 1:,}"):
        make("net", placement, KERNELS, workspace_bytes=least - 1)


def test_an_operator_without_a_kernel_is_named_with_what_there_is() -> None:
    placement = place_net(chain, 1)
    without = tuple(a for a in KERNELS if "FusedGemm" not in a.operators)
    with pytest.raises(UnsupportedOperator, match=r"FusedGemm \(node '.*'\).*it has .*FusedConv"):
        make("net", placement, without)


def test_a_form_that_no_kernel_takes_is_told_with_every_reason() -> None:
    def deep(net: Net) -> list[str]:
        return [net.add("Conv", net.input(2, 3, 4, 5), net.weights(4, 2, 1, 2, 3))]

    with pytest.raises(UnsupportedOperator, match=r"no kernel takes this form .*direct: .*; .*first layer: "):
        make("net", place_net(deep, 1), KERNELS)


def test_the_shortlist_holds_the_best_of_every_algorithm_worth_timing() -> None:
    found, _ = candidates(place_net(modules, 1).steps[0], KERNELS, None)
    picked = shortlist(found)
    assert picked[0] == found[0]
    assert len(picked) <= 12
    assert all(c.estimated_s <= found[-1].estimated_s for c in picked)
    assert {c.algorithm for c in found if c.estimated_s < 1.5 * found[0].estimated_s} <= {c.algorithm for c in picked}


def test_a_tight_error_budget_turns_to_exact_algorithms() -> None:
    placement = place_net(chain, 8)
    exact = make("net", placement, KERNELS, error_budget=1.0)
    loose = make("net", placement, KERNELS, error_budget=1e6)
    assert sum(p.choice.error**2 for p in exact.steps) <= sum(p.choice.error**2 for p in loose.steps)
    assert [p.choice for p in loose.steps] == [candidates(s, KERNELS, None)[0][0] for s in placement.steps]


def test_the_error_budget_is_kept_by_what_was_never_timed() -> None:
    placement = place_net(chain, 8)
    found = [candidates(step, KERNELS, None)[0] for step in placement.steps]
    coarsest = [max(each, key=lambda c: c.error) for each in found]
    timings = {(position, c.algorithm, tile_key(c.tile)): 1e-9 for position, c in enumerate(coarsest)}
    loose = make("net", placement, KERNELS, timings=timings, error_budget=1e6)
    assert [p.choice.error for p in loose.steps] == [c.error for c in coarsest]
    plan = make("net", placement, KERNELS, timings=timings, error_budget=2.0)
    shares = error_shares(placement)

    def reaching(errors: Iterable[float]) -> float:
        return sqrt(sum((share * error) ** 2 for share, error in zip(shares, errors, strict=True)))

    allowed = 2.0 * reaching(allowed_error(step) for step in placement.steps)
    assert reaching(c.error for c in coarsest) > allowed, "the case must have something to give up"
    assert reaching(p.choice.error for p in plan.steps) <= allowed


def test_the_error_budget_takes_from_who_loses_least_in_all_passages() -> None:
    placement = place_net(chain, 1)
    found, _ = candidates(placement.steps[1], KERNELS, None)
    step = placement.steps[1]
    loose, exact = (
        replace(found[0], estimated_s=seconds, error=error) for seconds, error in ((1e-3, 1.0), (2e-3, 0.0))
    )
    slower = replace(exact, estimated_s=2.5e-3)
    pools = [[loose, exact], [loose, slower]]
    budget = 1.2 / allowed_error(step) / sqrt(2)  # for one loose candidate of the two
    assert within_budget([step, step], pools, budget, [1, 1], [1.0, 1.0]) == [exact, loose]
    assert within_budget([step, step], pools, budget, [6, 1], [1.0, 1.0]) == [loose, slower], "the first runs six times"
    # Less of the second's error reaches the answers: what it gives up brings less, and both together break less.
    assert within_budget([step, step], pools, budget, [1, 2], [1.0, 0.9]) == [exact, loose]
    assert within_budget([step, step], pools, 1.4 * budget, [1, 1], [1.0, 0.1]) == [loose, loose]


def test_estimates_beside_measured_times_are_corrected_by_them() -> None:
    placement = place_net(chain, 1)
    found, _ = candidates(placement.steps[1], KERNELS, None)
    # Everything takes ten times as long as estimated; what was not timed must not look better for that.
    timings = {(1, c.algorithm, tile_key(c.tile)): 10 * c.estimated_s for c in found[:2]}
    planned = make("net", placement, KERNELS, timings=timings, error_budget=1e-9).steps[1]
    least = min(c.error for c in found)
    untimed = next(c for c in found if c.error == least and c not in found[:2])
    assert (planned.choice.algorithm, planned.choice.measured_s) == (untimed.algorithm, None)
    assert planned.choice.estimated_s == pytest.approx(10 * untimed.estimated_s)


def test_each_algorithm_offers_tiles_it_can_pay_for() -> None:
    for step in place_net(modules, 3).steps:
        for algorithm in KERNELS:
            if step.operator in algorithm.operators and algorithm.accepts(step) is None:
                tiles = list(algorithm.tiles(step))
                assert tiles, algorithm.name
                assert len({tile_key(t) for t in tiles}) == len(tiles), f"{algorithm.name} offers a tile twice"
                assert all(algorithm.seconds(step, t) > 0 and algorithm.scratch_bytes(step, t) >= 0 for t in tiles)


def test_catalogue_names_differ() -> None:
    assert len({a.name for a in KERNELS}) == len(KERNELS)


def test_a_plan_without_constants_prints_the_same() -> None:
    plan = make("net", place_net(chain, 1), KERNELS)
    bare = without_constants(plan)
    assert str(bare) == str(plan)
    assert not any(step.step.constants for step in bare.steps)
    assert not any(step.constants for step in bare.placement.steps)


def test_a_stub_catalogue_is_enough() -> None:
    """Plan knows nothing of kernels but these records."""
    b = Builder("net", seed=0)
    graph = b.finish([str(b.add("Relu", [b.input("x", (2, 3), np.float32)]))])
    stub = Algorithm("stub", ("Relu",), lambda s: None, lambda s: [{"n": 1}, {"n": 2}], lambda s, t: 1.0 / t["n"],
                     lambda s, t: ())  # fmt: skip
    placement = place(graph, replace(place_net(chain, 1).steps[0].machine), 1)
    assert make("net", placement, (stub,)).steps[0].choice.tile == {"n": 2}
