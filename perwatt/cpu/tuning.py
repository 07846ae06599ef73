"""Tuning: time the candidates of every step where they will run, inside the whole network.

Each round builds the network with the next candidate of every step at once and times all steps at their barriers. So a
candidate meets the caches as they will be (weights that another layer has pushed out, input just written), and a whole
network is tuned in as many runs as its longest shortlist has entries. A first sweep looks at a tile or two of every
algorithm briefly, a second one at more tiles of the fastest algorithms. Minutes of a shared machine differ by more than
candidates do, so the best few, those known from earlier among them, meet in a final where they run in turns.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from perwatt.cpu.build import Code, PackedArrays, build
from perwatt.cpu.catalogue import KERNELS
from perwatt.cpu.team import Team
from perwatt.plan import Candidate, Considered, Placement, Plan, Timings, consider, deeper, make, shortlist, tile_key
from perwatt.plan.make import PURSUED, PURSUED_TILES

Key = tuple[int, str, tuple[tuple[str, int], ...]]
REPEATS = 3  # of a network; one of a network that takes long, whose steps no short disturbance changes
LONG_S = 0.2
FINALISTS = 4
TURNS = 4  # of each finalist, REPEATS runs each
SWEEPS_SHARE = 0.65  # of the time there is; the rest is the final's
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
    start = time.monotonic()
    expected = rounds + PURSUED * PURSUED_TILES + FINALISTS
    done = 0

    def progressed() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(min(done, expected), expected)

    def late(share: float) -> bool:
        return done > 0 and time.monotonic() > start + share * limit_s

    def sweep(lists: Sequence[Sequence[Candidate]]) -> None:
        for number in range(max(map(len, lists), default=0)):
            if late(SWEEPS_SHARE):
                return
            plan, code = _variant(placement, team, arrays, lists, number, packed, timings, considered)
            # The lower quartile: neighbours on the machine only ever add time.
            for key, value in zip(_keys(plan), np.quantile(_passages(plan, code), 0.25, axis=0), strict=True):
                timings[key] = min(float(value), timings.get(key, float("inf")))
            if _bytes(packed) > MOST_PACKED_BYTES:
                packed.clear()  # packing again costs less than memory that may not be there
            progressed()

    def timed(position: int) -> dict[tuple[str, tuple[tuple[str, int], ...]], float]:
        return {(algorithm, tile): value for (p, algorithm, tile), value in timings.items() if p == position}

    sweep(unknown)
    more = [
        deeper(found, timed(p)) if fresh else []
        for p, (fresh, (found, _)) in enumerate(zip(unknown, considered, strict=True))
    ]
    sweep(more)
    finalists = []
    for position, (fresh, (found, _)) in enumerate(zip(unknown, considered, strict=True)):
        times = timed(position)
        able = [c for c in found if (c.algorithm, tile_key(c.tile)) in times] if fresh else []
        finalists.append(sorted(able, key=lambda c, t=times: t[c.algorithm, tile_key(c.tile)])[:FINALISTS])  # type: ignore[misc]
    results: dict[Key, float] = {}
    variants: list[tuple[Plan, Code]] = []
    if _bytes(packed) > MOST_PACKED_BYTES / FINALISTS:
        packed.clear()  # what the sweeps packed must not part the finalists
    for number in range(max(map(len, finalists), default=0)):
        if late(1.0):
            break
        variants.append(_variant(placement, team, arrays, finalists, number, packed, timings, considered))
        if _bytes(packed) > MOST_PACKED_BYTES:
            results |= _in_turns(variants)
            variants.clear()
            packed.clear()
        progressed()
    results |= _in_turns(variants)  # also where time ran out: what is built needs little more of it
    # Steps that had nothing new to time keep the times they have.
    return _adjusted(timings, {key: seconds for key, seconds in results.items() if finalists[key[0]]})


def _bytes(packed: PackedArrays) -> int:
    return sum(array.nbytes for array in packed.values())


def _in_turns(variants: Sequence[tuple[Plan, Code]]) -> dict[Key, float]:
    """Return the seconds of every step in each variant of a network, the variants running in turns."""
    rows: list[list[np.ndarray]] = [[] for _ in variants]
    for _ in range(TURNS):
        for (plan, code), own in zip(variants, rows, strict=True):
            own.append(_passages(plan, code))  # its uncounted run is the one that finds another's weights in caches
    found: dict[Key, list[np.ndarray]] = {}
    for (plan, _), own in zip(variants, rows, strict=True):
        seconds = np.concatenate(own)
        for position, key in enumerate(_keys(plan)):
            found.setdefault(key, []).append(seconds[:, position])
    return {key: float(np.quantile(np.concatenate(each), 0.25)) for key, each in found.items()}


def _passages(plan: Plan, code: Code) -> np.ndarray:
    """Return the seconds of one passage of every step, float64 [repeats, steps], after a run that is not counted.

    Steps of inner levels run several times before those behind them run once; estimates, too, are of one passage.
    """
    passages = [plan.placement.repeats(position) for position in range(len(plan.steps))]
    seconds = code.time_steps(1)
    if seconds.sum() < LONG_S:
        seconds = np.concatenate((seconds, code.time_steps(REPEATS - 1)))
    return seconds / passages


def _adjusted(timings: Mapping[Key, float], results: Mapping[Key, float]) -> dict[Key, float]:
    """Return all times as they would have been during the final: others' by what the finalists' times changed."""
    changes: dict[int, list[float]] = {}
    for key, seconds in results.items():
        if key in timings and timings[key] > 0:
            changes.setdefault(key[0], []).append(seconds / timings[key])
    return {
        key: results.get(key, seconds * float(np.median(changes.get(key[0], [1.0]))))
        for key, seconds in {**timings, **results}.items()
    }


def _key(position: int, candidate: Candidate) -> Key:
    return position, candidate.algorithm, tile_key(candidate.tile)


def _keys(plan: Plan) -> list[Key]:
    return [_key(position, planned.choice) for position, planned in enumerate(plan.steps)]


def _variant(
    placement: Placement, team: Team, arrays: Mapping[str, np.ndarray], lists: Sequence[Sequence[Candidate]],
    number: int, packed: PackedArrays, timings: Mapping[Key, float], considered: Considered,
) -> tuple[Plan, Code]:  # fmt: skip
    """Return the network with entry `number` of every step's list; its best known candidate where that is shorter."""

    def choose(position: int, found: list[Candidate]) -> Candidate:
        if number < len(lists[position]):
            return lists[position][number]
        timed = [c for c in found if _key(position, c) in timings]
        return min(timed, key=lambda c: timings[_key(position, c)]) if timed else found[0]

    plan = make("tuning", placement, KERNELS, considered=considered, choose=choose)
    code = build(plan, team, packed)
    code.bind({name: array.ctypes.data for name, array in arrays.items()})
    return plan, code
