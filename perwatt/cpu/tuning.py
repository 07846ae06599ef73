"""Tuning: time the candidates of every step where they will run, inside the whole network.

Each round builds the network with the next candidate of every step at once and times all steps at their barriers. So a
candidate meets the caches as they will be (weights that another layer has pushed out, input just written), and a whole
network is tuned in as many runs as its longest shortlist has entries.
"""

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from perwatt.cpu.build import PackedArrays, build
from perwatt.cpu.catalogue import KERNELS
from perwatt.cpu.team import Team
from perwatt.plan import Candidate, Placement, candidates, make, shortlist, tile_key

Key = tuple[int, str, tuple[tuple[str, int], ...]]


def measure(
    placement: Placement, team: Team, arrays: Mapping[str, np.ndarray], *, workspace_bytes: int | None = None,
    limit_s: float = 10.0, repeats: int = 7, progress: Callable[[int, int], None] | None = None,
) -> dict[Key, float]:  # fmt: skip
    """Return measured seconds of the shortlisted candidates of each step, until `limit_s` is over.

    `arrays` are the caller's arrays for every graph input and output. Progress is (rounds done, rounds in all).
    """
    lists: list[list[Candidate]] = []
    for step in placement.steps:
        found, _ = candidates(step, KERNELS, workspace_bytes)
        lists.append(shortlist(found))
    rounds = max((len(entries) for entries in lists), default=0)
    timings: dict[Key, float] = {}
    packed: PackedArrays = {}
    started = time.monotonic()
    for number in range(rounds):
        if number and time.monotonic() - started > limit_s:
            break
        _round(placement, team, arrays, lists, number, packed, repeats, timings, workspace_bytes)
        if progress is not None:
            progress(number + 1, rounds)
    return timings


def _round(
    placement: Placement, team: Team, arrays: Mapping[str, np.ndarray], lists: Sequence[Sequence[Candidate]],
    number: int, packed: PackedArrays, repeats: int, timings: dict[Key, float], workspace_bytes: int | None,
) -> None:  # fmt: skip
    """Time every step with its candidate `number` (its first where it has no such)."""

    def choose(position: int, _: list[Candidate]) -> Candidate:
        entries = lists[position]
        return entries[number] if number < len(entries) else entries[0]

    plan = make("tuning", placement, KERNELS, workspace_bytes=workspace_bytes, choose=choose)
    code = build(plan, team, packed)
    code.bind({name: array.ctypes.data for name, array in arrays.items()})
    code.run()
    seconds = code.time_steps(repeats)
    # The lower quartile: neighbours on the machine only ever add time.
    for position, value in enumerate(np.quantile(seconds, 0.25, axis=0)):
        candidate = choose(position, [])
        key = (position, candidate.algorithm, tile_key(candidate.tile))
        timings[key] = min(float(value), timings.get(key, float("inf")))
