"""Make a Plan: candidates for each step, a choice by time under a workspace limit, buffers by lifetime."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from perwatt.errors import PlanError, UnsupportedOperator
from perwatt.graph.operators import FOREIGN_OPSET
from perwatt.plan.algorithm import Algorithm, Step, Tile, allowed_error
from perwatt.plan.buffers import Lifetime, arrange
from perwatt.plan.placement import Placement
from perwatt.plan.plan import Candidate, Plan, PlannedStep
from perwatt.plan.rounding import error_shares

Catalogue = Sequence[Algorithm]
# Measured seconds of (position of the step, algorithm, tile as sorted pairs).
Timings = Mapping[tuple[int, str, tuple[tuple[str, int], ...]], float]
MOST_CANDIDATES = 12
# The second sweep times so many more tiles of so many algorithms.
PURSUED, PURSUED_TILES = 2, 3
# Weights in half the bytes may cost so much time where they are allowed: it is what one asks for who allows them, and
# less than timing can tell.
HALVES_TIE = 0.97
# How much larger the whole network's expected rounding error may be than that of direct FP32 arithmetic by usual
# kernels (algorithm.USUAL_RUN), as far as it reaches the answers (plan/rounding.py).
ERROR_BUDGET = 5.0


def tile_key(tile: Tile) -> tuple[tuple[str, int], ...]:
    """Return a tile in a form that can be a key."""
    return tuple(sorted(tile.items()))


def candidates(
    step: Step, catalogue: Catalogue, workspace_bytes: int | None
) -> tuple[list[Candidate], list[tuple[str, str]]]:
    """Return (candidates, fastest estimate first; (algorithm, reason) for those that cannot do the step).

    Raises UnsupportedOperator when no algorithm knows the operator, PlanError when none fits the workspace.
    """
    # What the operator table cannot express keeps its ONNX form: another operator, which kernels know or not.
    operator = f"onnx.{step.operator}" if FOREIGN_OPSET in step.attributes else step.operator
    able = [
        algorithm
        for algorithm in catalogue
        if operator in algorithm.operators and step.allowed.permits(algorithm.weights, algorithm.arithmetic)
    ]
    if not able:
        known = sorted(
            {name for algorithm in catalogue for name in algorithm.operators} - {"Reorder", "FlattenBlocked"}
        )
        raise UnsupportedOperator(
            f"{operator} (node {step.name!r}): perwatt's engine has no kernel for it; it has {', '.join(known)}"
        )
    found: list[Candidate] = []
    refused: list[tuple[str, str]] = []
    smallest: int | None = None
    for algorithm in able:
        reason = algorithm.accepts(step)
        if reason is None and not algorithm.halves and step.in_halves:
            reason = "reads and writes fp32 only"
        if reason is not None:
            refused.append((algorithm.name, reason))
            continue
        for tile in algorithm.tiles(step):
            scratch = algorithm.scratch_bytes(step, tile)
            smallest = scratch if smallest is None else min(smallest, scratch)
            if workspace_bytes is not None and scratch > workspace_bytes:
                entry = (algorithm.name, f"needs {scratch:,} bytes of workspace, the limit is {workspace_bytes:,}")
                if entry not in refused:
                    refused.append(entry)
                continue
            seconds, error = algorithm.seconds(step, tile), algorithm.error(step)
            found.append(
                Candidate(algorithm.name, tile, scratch, seconds, error, None, algorithm.weights, algorithm.arithmetic)
            )
    if not found and smallest is not None:
        raise PlanError(
            f"{step.operator} (node {step.name!r}) needs at least {smallest:,} bytes of workspace, the limit is "
            f"{workspace_bytes:,}; allow at least that"
        )
    if not found:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refused)
        raise UnsupportedOperator(f"{step.operator} (node {step.name!r}): no kernel takes this form ({reasons})")
    found.sort(key=lambda candidate: candidate.estimated_s)
    return found, refused


Considered = Sequence[tuple[list[Candidate], list[tuple[str, str]]]]


def consider(placement: Placement, catalogue: Catalogue, workspace_bytes: int | None) -> Considered:
    """Return `candidates` of every step of a placement, for tuning and making to share. Raises as that does."""
    return [candidates(step, catalogue, workspace_bytes) for step in placement.steps]


def shortlist(found: Sequence[Candidate], most: int = MOST_CANDIDATES) -> list[Candidate]:
    """Return the candidates worth timing first: the best of each algorithm, then the second best of each, and so on."""
    best = found[0].estimated_s
    by_algorithm: dict[str, list[Candidate]] = {}
    for candidate in found:
        by_algorithm.setdefault(candidate.algorithm, []).append(candidate)
    able = [group for group in by_algorithm.values() if group[0].estimated_s < 3 * best]
    turns = [group[rank] for rank in range(2) for group in able if rank < len(group)]
    return sorted(turns[:most], key=lambda candidate: candidate.estimated_s)


def deeper(
    found: Sequence[Candidate], timed: Mapping[tuple[str, tuple[tuple[str, int], ...]], float]
) -> list[Candidate]:
    """Return the candidates worth timing next: more tiles of the algorithms that were fastest in the first sweep.

    `timed`: seconds by algorithm and tile.
    """
    fastest: dict[str, float] = {}
    for (algorithm, _), seconds in timed.items():
        fastest[algorithm] = min(seconds, fastest.get(algorithm, seconds))
    picked: list[Candidate] = []
    for algorithm in sorted(fastest, key=lambda name: fastest[name])[:PURSUED]:
        more = [c for c in found if c.algorithm == algorithm and (algorithm, tile_key(c.tile)) not in timed]
        picked += more[:PURSUED_TILES]
    return picked


def make(
    name: str, placement: Placement, catalogue: Catalogue, *, workspace_bytes: int | None = None,
    timings: Timings | None = None, error_budget: float = ERROR_BUDGET,
    choose: Callable[[int, list[Candidate]], Candidate] | None = None, considered: Considered | None = None,
) -> Plan:  # fmt: skip
    """Return the Plan: for each step the fastest candidate of those that were timed, else by estimate.

    Steps give up speed, those first that lose least by it, until the network's expected error is within
    `error_budget` times that of direct arithmetic.

    `considered` are the candidates when they are known already.
    `choose`, when given, picks from a step's candidates instead (tuning walks through them with it).
    Raises UnsupportedOperator and PlanError as `candidates` does.
    """
    planned = []
    pools: list[list[Candidate]] = []
    refusals: list[list[tuple[str, str]]] = []
    if considered is None:
        considered = consider(placement, catalogue, workspace_bytes)
    for position, (found, refused) in enumerate(considered):
        refusals.append(refused)
        if choose is not None:
            pools.append([choose(position, found)])
            continue
        timed = [
            replace(
                candidate, measured_s=(timings or {}).get((position, candidate.algorithm, tile_key(candidate.tile)))
            )
            for candidate in found
        ]
        measured = sorted(
            (c for c in timed if c.measured_s is not None),
            key=lambda c: c.seconds * (1.0 if c.weights == "fp32" else HALVES_TIE),
        )
        # What was never timed comes behind: it is there for the error budget, which what was timed may not be able to
        # keep (a large network's tuning may end after its first round).
        pools.append(measured + _as_estimated_here(measured, [c for c in timed if c.measured_s is None]))
    passages = [placement.repeats(position) for position in range(len(pools))]
    chosen = within_budget(placement.steps, pools, error_budget, passages, error_shares(placement))
    for step, pool, refused, choice in zip(placement.steps, pools, refusals, chosen, strict=True):
        planned.append(PlannedStep(step, choice, _why(pool, choice), (*_others(pool, choice), *refused)))
    offsets, total = arrange(_lifetimes(placement))
    scratch = max((p.choice.scratch_bytes for p in planned), default=0)
    threads = placement.steps[0].threads if placement.steps else 1
    return Plan(name, placement, tuple(planned), offsets, total, scratch, threads)


def _as_estimated_here(measured: Sequence[Candidate], others: Sequence[Candidate]) -> list[Candidate]:
    """Return the candidates that were not timed, their estimates corrected by how those that were timed came out."""
    if not measured:
        return list(others)
    correction = float(np.median([c.seconds / c.estimated_s for c in measured if c.estimated_s > 0] or [1.0]))
    return [replace(candidate, estimated_s=candidate.estimated_s * correction) for candidate in others]


def within_budget(
    steps: Sequence[Step], pools: Sequence[Sequence[Candidate]], error_budget: float, passages: Sequence[int],
    shares: Sequence[float],
) -> list[Candidate]:  # fmt: skip
    """Return one candidate per step: the first of its pool, then more exact ones until the budget is kept.

    `passages`: how often each step runs for a batch, since what a slower candidate loses it loses every time. `shares`:
    how much of each step's error reaches the answers. What reaches them adds as squares. Where even the most exact
    candidates exceed the budget, they are what is returned.
    """
    chosen = [pool[0] for pool in pools]
    allowed = error_budget**2 * sum(
        (share * allowed_error(step)) ** 2 for share, step in zip(shares, steps, strict=True)
    )
    total = sum((share * candidate.error) ** 2 for share, candidate in zip(shares, chosen, strict=True))
    while total > allowed:
        swaps = []
        for position, (pool, now) in enumerate(zip(pools, chosen, strict=True)):
            better = next((c for c in pool if c.error < now.error), None)
            if better is not None:
                loss = max((better.seconds - now.seconds) * passages[position], 1e-9)
                gain = shares[position] ** 2 * (now.error**2 - better.error**2)
                swaps.append((gain / loss, position, better))
        if not swaps:
            break
        _, position, better = max(swaps, key=lambda swap: swap[0])
        total -= shares[position] ** 2 * (chosen[position].error ** 2 - better.error**2)
        chosen[position] = better
    return chosen


def _how(candidate: Candidate) -> str:
    return f"{'estimated' if candidate.measured_s is None else 'measured'} {candidate.seconds * 1e6:.0f} µs"


def _why(pool: Sequence[Candidate], choice: Candidate) -> str:
    if len(pool) == 1:
        return f"{_how(choice)}; the only candidate"
    if choice == pool[0]:
        if choice.measured_s is not None and any(c.measured_s and c.measured_s < choice.measured_s for c in pool):
            return f"{_how(choice)}, as fast as the fastest within noise, with weights in half the bytes"
        alike = sum((c.measured_s is None) == (choice.measured_s is None) for c in pool)
        return f"{_how(choice)}, the least of {alike} candidates"
    return f"{_how(choice)}, the least of those that keep the error budget"


def _others(pool: Sequence[Candidate], choice: Candidate) -> list[tuple[str, str]]:
    """Return, for each other algorithm, why its best candidate was not taken."""
    seen, place = {choice.algorithm}, pool.index(choice)
    reasons = []
    for rank, candidate in enumerate(pool):
        if candidate.algorithm in seen:
            continue
        seen.add(candidate.algorithm)
        times = candidate.seconds / max(choice.seconds, 1e-12)
        if candidate.measured_s is None and choice.measured_s is not None:
            reason = f"{_how(candidate)}, not timed"
        elif rank < place:
            reason = f"{_how(candidate)}, but an error of {candidate.error:.1e} is over the network's budget"
        elif candidate.seconds < choice.seconds:
            reason = f"{_how(candidate)}, faster by less than noise, with weights in twice the bytes"
        else:
            reason = f"{_how(candidate)}, {times:.2f} times as long"
        reasons.append((candidate.algorithm, reason))
    return reasons


def _lifetimes(placement: Placement) -> dict[str, Lifetime]:
    """Return when each buffer of the arena is alive. What outlives a level lives from the level's first repeat."""
    caller = {placement.places[n].buffer for n in (*placement.inputs, *placement.outputs)}
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for position, step in enumerate(placement.steps):
        for tensor in (*step.inputs, *step.outputs):
            if tensor is None or tensor.name in step.constants:
                continue
            buffer = placement.places[tensor.name].buffer
            first.setdefault(buffer, position)
            last[buffer] = position
    for level in placement.levels:
        for buffer, end in last.items():
            if first[buffer] < level.end <= end:
                first[buffer] = 0
    return {
        buffer: Lifetime(placement.buffer_floats[buffer], first[buffer], last[buffer])
        for buffer in first
        if buffer not in caller
    }
