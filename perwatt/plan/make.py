"""Make a Plan: candidates for each step, a choice by time under a workspace limit, buffers by lifetime."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from perwatt.errors import PlanError, UnsupportedOperator
from perwatt.plan.algorithm import Algorithm, Step, Tile
from perwatt.plan.buffers import Lifetime, arrange
from perwatt.plan.placement import Placement
from perwatt.plan.plan import Candidate, Plan, PlannedStep

Catalogue = Sequence[Algorithm]
# Measured seconds of (position of the step, algorithm, tile as sorted pairs).
Timings = Mapping[tuple[int, str, tuple[tuple[str, int], ...]], float]
MOST_CANDIDATES = 12


def tile_key(tile: Tile) -> tuple[tuple[str, int], ...]:
    """Return a tile in a form that can be a key."""
    return tuple(sorted(tile.items()))


def candidates(
    step: Step, catalogue: Catalogue, workspace_bytes: int | None
) -> tuple[list[Candidate], list[tuple[str, str]]]:
    """Return (candidates, fastest estimate first; (algorithm, reason) for those that cannot do the step).

    Raises UnsupportedOperator when no algorithm knows the operator, PlanError when none fits the workspace.
    """
    able = [algorithm for algorithm in catalogue if step.operator in algorithm.operators]
    if not able:
        known = sorted(
            {name for algorithm in catalogue for name in algorithm.operators} - {"Reorder", "FlattenBlocked"}
        )
        raise UnsupportedOperator(
            f"{step.operator} (node {step.name!r}): perwatt's engine has no kernel for it; it has {', '.join(known)}"
        )
    found: list[Candidate] = []
    refused: list[tuple[str, str]] = []
    smallest: int | None = None
    for algorithm in able:
        reason = algorithm.accepts(step)
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
            found.append(Candidate(algorithm.name, tile, scratch, algorithm.seconds(step, tile)))
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


def shortlist(found: Sequence[Candidate], most: int = MOST_CANDIDATES) -> list[Candidate]:
    """Return the candidates worth timing: the best few of each algorithm, then the best of all."""
    best = found[0].estimated_s
    by_algorithm: dict[str, list[Candidate]] = {}
    for candidate in found:
        by_algorithm.setdefault(candidate.algorithm, []).append(candidate)
    picked: list[Candidate] = []
    for group in by_algorithm.values():
        if group[0].estimated_s < 3 * best:
            picked += group[:4]
    picked.sort(key=lambda candidate: candidate.estimated_s)
    return picked[:most]


def make(
    name: str, placement: Placement, catalogue: Catalogue, *, workspace_bytes: int | None = None,
    timings: Timings | None = None, choose: Callable[[int, list[Candidate]], Candidate] | None = None,
) -> Plan:  # fmt: skip
    """Return the Plan: for each step the fastest candidate, by timing where it was timed, else by estimate.

    `choose`, when given, picks from a step's candidates instead (tuning walks through them with it).
    Raises UnsupportedOperator and PlanError as `candidates` does.
    """
    planned = []
    for position, step in enumerate(placement.steps):
        found, refused = candidates(step, catalogue, workspace_bytes)
        if choose is not None:
            planned.append(PlannedStep(step, choose(position, found), "chosen by the caller", ()))
            continue
        timed = [
            replace(
                candidate, measured_s=(timings or {}).get((position, candidate.algorithm, tile_key(candidate.tile)))
            )
            for candidate in found
        ]
        measured = sorted((c for c in timed if c.measured_s is not None), key=lambda c: c.seconds)
        pool = measured or timed
        planned.append(PlannedStep(step, pool[0], _why(pool), (*_slower(pool), *refused)))
    offsets, total = arrange(_lifetimes(placement))
    scratch = max((p.choice.scratch_bytes for p in planned), default=0)
    threads = placement.steps[0].threads if placement.steps else 1
    return Plan(name, placement, tuple(planned), offsets, total, scratch, threads)


def _why(pool: Sequence[Candidate]) -> str:
    best = pool[0]
    how = "estimated" if best.measured_s is None else "measured"
    if len(pool) == 1:
        return f"{how} {best.seconds * 1e6:.0f} µs; the only candidate"
    return f"{how} {best.seconds * 1e6:.0f} µs, the least of {len(pool)} candidates"


def _slower(pool: Sequence[Candidate]) -> list[tuple[str, str]]:
    """Return, for each other algorithm, by how much its best candidate is slower."""
    best, seen = pool[0], {pool[0].algorithm}
    reasons = []
    for candidate in pool[1:]:
        if candidate.algorithm not in seen:
            seen.add(candidate.algorithm)
            how = "estimated" if candidate.measured_s is None else "measured"
            times = candidate.seconds / max(best.seconds, 1e-12)
            reasons.append((candidate.algorithm, f"{how} {candidate.seconds * 1e6:.0f} µs, {times:.2f} times as long"))
    return reasons


def _lifetimes(placement: Placement) -> dict[str, Lifetime]:
    """Return when each buffer of the arena is alive. What outlives the imagewise part lives from its first repeat."""
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
    if placement.repeats > 1:
        for buffer, end in last.items():
            if end >= placement.imagewise_steps and first[buffer] < placement.imagewise_steps:
                first[buffer] = 0
    return {
        buffer: Lifetime(placement.buffer_floats[buffer], first[buffer], last[buffer])
        for buffer in first
        if buffer not in caller
    }
