"""Tuning: what was timed in different minutes is not compared as it stands; the best few meet in turns."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from small_graphs import Net

from perwatt.cpu import tuning
from perwatt.cpu.catalogue import KERNELS
from perwatt.cpu.team import shared_team
from perwatt.machine import this_machine
from perwatt.passes import apply
from perwatt.plan import Candidate, consider, make, place

A, B, C, OTHER = (0, "a", ()), (0, "b", ()), (0, "c", ()), (1, "a", ())


def test_times_of_another_minute_are_moved_to_that_of_the_final() -> None:
    timed = {A: 1.0, B: 1.1, C: 1.5, OTHER: 7.0}
    # The machine runs at half the speed now, and b is the faster one.
    adjusted = tuning._adjusted(timed, {A: 2.4, B: 2.0})
    assert adjusted[A] == 2.4
    assert adjusted[B] == 2.0
    assert adjusted[C] == pytest.approx(1.5 * (2.4 + 2.0 / 1.1) / 2), "c did not get faster by sitting out"
    assert adjusted[OTHER] == 7.0
    assert min((A, B, C), key=lambda key: adjusted[key]) == B
    assert tuning._adjusted(timed, {}) == timed
    assert tuning._adjusted({}, {A: 3.0}) == {A: 3.0}


def test_variants_run_in_turns_and_equal_choices_share_their_times(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    class Variant:
        def __init__(self, name: str, seconds: Sequence[float]) -> None:
            self.name, self.seconds = name, seconds

        def time_steps(self, repeats: int) -> np.ndarray:
            order.append(self.name)
            return np.array([self.seconds] * repeats)

    monkeypatch.setattr(tuning, "_keys", lambda plan: plan)
    # Step 0 runs twice before step 1 runs once.
    monkeypatch.setattr(tuning, "_passages", lambda plan, code: code.time_steps(tuning.REPEATS) / (2, 1))
    variants: Any = [([A, OTHER], Variant("first", (6.0, 5.0))), ([B, OTHER], Variant("second", (4.0, 5.0)))]
    assert tuning._in_turns(variants) == {A: 3.0, B: 2.0, OTHER: 5.0}
    assert order == ["first", "second"] * tuning.TURNS


def test_times_are_of_one_passage_of_a_step() -> None:
    net = Net(8)
    graph = apply(net.graph(net.conv(net.conv(net.input(16, 12, 12), 16, 3), 16, 3)))
    placement = place(graph, this_machine(), 1, (2, 4))
    repeats = [placement.repeats(position) for position in range(len(placement.steps))]
    assert len(set(repeats)) > 1, repeats
    plan = make("net", placement, KERNELS)

    class Timed:
        def time_steps(self, count: int) -> np.ndarray:
            return np.array([[0.5 * r for r in repeats]] * count)

    code: Any = Timed()
    assert np.all(tuning._passages(plan, code) == 0.5)
    assert len(tuning._passages(plan, code)) == 1, "a run of seconds is one of few"


@pytest.mark.parametrize(
    ("met", "limit_s", "packed_bytes"),
    [("abc", 100.0, tuning.MOST_PACKED_BYTES // 4), ("ab", 4.5, 0)],
    ids=["much packed by the sweeps", "time runs out"],
)
def test_what_the_final_has_built_meets_in_turns(
    met: str, limit_s: float, packed_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, order = [0.0], []
    sweeps, final = {"a": 1.0, "b": 1.1, "c": 1.2}, {"a": 2.4, "b": 2.0, "c": 2.3}

    class Variant:
        def __init__(self, name: str) -> None:
            self.name = name

        def time_steps(self, repeats: int) -> np.ndarray:
            order.append(self.name)
            return np.full((repeats, 1), (sweeps if len(order) <= len(sweeps) else final)[self.name])

    def variant(placement: Any, team: Any, arrays: Any, lists: Any, number: int, packed: Any, *_: Any) -> Any:
        now[0] += 1
        chosen = lists[0][number]
        packed[int(now[0]), chosen.algorithm] = np.broadcast_to(np.int8(0), (packed_bytes,))
        return [(0, chosen.algorithm, ())], Variant(chosen.algorithm)

    monkeypatch.setattr(tuning, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(tuning, "_variant", variant)
    monkeypatch.setattr(tuning, "_keys", lambda plan: plan)
    monkeypatch.setattr(tuning, "_passages", lambda plan, code: code.time_steps(1))
    considered = [([Candidate(name, {}, 0, 1.0) for name in sweeps], [])]
    anything: Any = SimpleNamespace(levels=())
    found = tuning.measure(anything, anything, {}, considered=considered, limit_s=limit_s)
    assert order == [*sweeps, *met * tuning.TURNS]
    assert {name: found[0, name, ()] for name in met} == {name: final[name] for name in met}
    assert min(found, key=lambda key: found[key]) == B


@pytest.mark.slow
def test_a_slow_minute_during_the_final_hands_the_choice_to_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net(1)
    graph = apply(net.graph(net.conv(net.input(24, 14, 14), 40, 3)))
    placement = place(graph, this_machine(), 2, (1,))
    considered = consider(placement, KERNELS, None)
    team = shared_team(2)
    shapes = dict(zip(placement.outputs, graph.outputs, strict=True)) | {name: name for name in graph.inputs}
    arrays = {buffer: np.ones(graph.values[name].shape, np.float32) for buffer, name in shapes.items()}
    in_turns = tuning._in_turns
    finals: list[dict[Any, float]] = []

    def slowly(variants: Any) -> dict[Any, float]:
        finals.append({key: 50 * seconds for key, seconds in in_turns(variants).items()})
        return finals[-1]

    monkeypatch.setattr(tuning, "_in_turns", slowly)
    found = tuning.measure(placement, team, arrays, considered=considered, limit_s=20.0)
    met = {key: seconds for final in finals for key, seconds in final.items()}
    assert 2 <= len({key for key in met if key[1].startswith(("direct", "winograd"))}) <= tuning.FINALISTS
    for position, (step, _) in enumerate(considered):
        own = {key: seconds for key, seconds in found.items() if key[0] == position}
        if len(step) > 1 and any(key in met for key in own):
            assert min(own, key=lambda key: own[key]) in met
