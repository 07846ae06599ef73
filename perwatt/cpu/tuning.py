"""Tuning: time the candidates of every step where they will run, inside the whole network.

Each round builds the network with the next candidate of every step at once and times all steps at their barriers. So a
candidate meets the caches as they will be (weights that another layer has pushed out, input just written), and a whole
network is tuned in as many runs as its longest shortlist has entries. A first sweep looks at a tile or two of every
algorithm briefly, a second one at more tiles of the fastest algorithms, a third one at the best few again, because a
neighbour's burst may have hit the best.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from perwatt.cpu.build import PackedArrays, build
from perwatt.cpu.catalogue import KERNELS
from perwatt.cpu.team import Team
from perwatt.plan import Candidate, Considered, Placement, Timings, consider, deeper, make, shortlist, tile_key
from perwatt.plan.make import PURSUED, PURSUED_TILES

Key = tuple[int, str, tuple[tuple[str, int], ...]]
FIRST_REPEATS, SECOND_REPEATS = 3, 7
FINALISTS = 4
# Packed weights of all candidates that are kept from round to round.
MOST_PACKED_BYTES = 1 << 30


def measure(
    placement: Placement, team: Team, arrays: Mapping[str, np.ndarray], *, workspace_bytes: int | None = None,
    known: Timings | None = None, considered: Considered | None = None,
    limit_s: float = 12.0, every_step: bool = False, progress: Callable[[int, int], None] | None = None,
) -> dict[Key, float]:  # fmt: skip
    """Return seconds of the shortlisted candidates of each step: those `known`, and the others measured here.

    `every_step`: also those of steps with one candidate, which need no choice, for comparing placements as a whole.
    `arrays` are the caller's arrays for every graph input and output. After `limit_s` no new round begins. Progress is
    (rounds done, rounds in all).
    """
    # One passage of the imagewise part tells as much as all of them.
    if placement.levels:
        placement = replace(placement, batch=placement.levels[-1].images)
    if considered is None:
        considered = consider(placement, KERNELS, workspace_bytes)
    timings: dict[Key, float] = dict(known or {})
    unknown: list[list[Candidate]] = []
    for position, (found, _) in enumerate(considered):
        entries = shortlist(found)
        for candidate in entries:
            key = _key(position, candidate)
            if known is not None and key in known:
                timings[key] = known[key]
        fresh = [c for c in entries if _key(position, c) not in timings]
        # A step with one candidate, or with all of them known, needs no rounds of its own.
        unknown.append(fresh if len(entries) > 1 or every_step else [])
    rounds = max((len(entries) for entries in unknown), default=0)
    if not rounds:
        return timings
    packed: PackedArrays = {}
    stop = time.monotonic() + limit_s
    expected = rounds + PURSUED * PURSUED_TILES + FINALISTS
    done = 0

    def sweep(lists: Sequence[Sequence[Candidate]], repeats: int) -> None:
        nonlocal done
        for number in range(max(map(len, lists), default=0)):
            if done and time.monotonic() > stop:
                return
            _round(placement, team, arrays, lists, number, packed, repeats, timings, considered)
            done += 1
            if progress is not None:
                progress(min(done, expected), expected)

    def timed(position: int) -> dict[tuple[str, tuple[tuple[str, int], ...]], float]:
        return {(algorithm, tile): value for (p, algorithm, tile), value in timings.items() if p == position}

    sweep(unknown, FIRST_REPEATS)
    more = [
        deeper(found, timed(p)) if fresh else []
        for p, (fresh, (found, _)) in enumerate(zip(unknown, considered, strict=True))
    ]
    sweep(more, FIRST_REPEATS)
    finalists = [
        sorted([*fresh, *pursued], key=lambda c, p=position: timings.get(_key(p, c), float("inf")))[:FINALISTS]  # type: ignore[misc]
        for position, (fresh, pursued) in enumerate(zip(unknown, more, strict=True))
    ]
    sweep(finalists, SECOND_REPEATS)
    return timings


def _key(position: int, candidate: Candidate) -> Key:
    return position, candidate.algorithm, tile_key(candidate.tile)


def _round(
    placement: Placement, team: Team, arrays: Mapping[str, np.ndarray], lists: Sequence[Sequence[Candidate]],
    number: int, packed: PackedArrays, repeats: int, timings: dict[Key, float], considered: Considered,
) -> None:  # fmt: skip
    """Time every step with entry `number` of its list; with its best known candidate where the list is shorter."""

    def choose(position: int, found: list[Candidate]) -> Candidate:
        if number < len(lists[position]):
            return lists[position][number]
        timed = [c for c in found if _key(position, c) in timings]
        return min(timed, key=lambda c: timings[_key(position, c)]) if timed else found[0]

    plan = make("tuning", placement, KERNELS, considered=considered, choose=choose)
    code = build(plan, team, packed)
    code.bind({name: array.ctypes.data for name, array in arrays.items()})
    code.run()
    seconds = code.time_steps(repeats)
    if sum(array.nbytes for array in packed.values()) > MOST_PACKED_BYTES:
        packed.clear()  # packing again costs less than memory that may not be there
    # The lower quartile: neighbours on the machine only ever add time.
    for position, value in enumerate(np.quantile(seconds, 0.25, axis=0)):
        key = _key(position, plan.steps[position].choice)
        timings[key] = min(float(value), timings.get(key, float("inf")))
