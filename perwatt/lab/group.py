"""Measure one network at one batch size: all engines and precisions alive at once, taking turns in short blocks."""

import random
import time
from collections.abc import Callable

import numpy as np

from perwatt.errors import EngineCrashed, EngineError
from perwatt.lab import conditions, figures, schedule, truth
from perwatt.lab.lane import NULL, NULL_BLOCK_S, OWN, EngineProcess, Group, Lane, Session, judge, references_of, row_of
from perwatt.lab.metering import IDLE_WINDOWS, When
from perwatt.lab.process import BlockRequest
from perwatt.lab.record import Block
from perwatt.lab.subject import Case

MOST_RUNS = 2000  # in one block; their durations are all kept
METERED_RUNS = 20_000  # of a block that has to last long enough for a meter
NULL_RUNS = 1000
METERED_SHARE = 0.6  # of a group's time, which the fewest rounds of lengthened blocks may take
SETTLING_S = 5.0  # at most, until a slow meter has told the energy of the last blocks
WARM_SHARE = 0.25  # a run shorter than this share of a block is made once untimed before it: that fills the caches
SLOW_LANE = 4.0  # a lane whose block takes this many times the median's takes part in every fourth pair of rounds only
PATIENCE = 0.2  # of the time that loading may take at the longest, an engine may plan to use
AUTO_PATIENCE = 0.6  # the same, for finding the numbers of precision auto: without them there is nothing to measure
LOADING_SHARE = 0.65  # of a group's time; what has not been loaded by then is skipped, or nothing would be measured
SHARES = 2  # of the time for loading that an engine may take for trying, where those that wait have one each
LONG_RUN_S = 1.0  # an engine whose first run took longer needs no second one apart to be warm
RESERVE_BYTES = 1 << 30
GROWTH = 1.3  # what another engine may need, in terms of the most that one of this group has needed


def measure(group: Group, case: Case, session: Session, deadline: float) -> None:
    """Measure every lane of the group until the intervals are narrow enough or `deadline` (of the session's clock).

    Engines that do not fit into memory together are measured in parts; the first engine that works takes part in each.
    """
    group.case = case
    try:
        _make_references(group, case, session)
        waiting, anchor, parts = list(group.lanes), None, 0
        while waiting:
            alive = _start(group, waiting, anchor, session, deadline)
            parts += 1
            if not any(lane.worker is not None for lane in alive if lane is not anchor):
                continue
            anchor = anchor or next((lane for lane in alive if lane.worker is not None and lane.engine != NULL), None)
            if waiting and parts == 1 and anchor is not None:
                session.notes.append(
                    f"{group.name}: memory does not hold all engines at once, so they were measured in parts; "
                    f"{anchor.engine} {anchor.precision} took part in each"
                )
            share = (deadline - session.clock()) * len(alive) / (len(alive) + len(waiting))
            _take_turns(group, alive, session, session.clock() + share)
            for lane in alive:
                if lane is not anchor or not waiting:
                    lane.close()
    finally:
        group.close()


def _make_references(group: Group, case: Case, session: Session) -> None:
    """Run the FP32 reference on every input; without it nothing can be judged, so its errors go up to the caller."""
    session.report(f"{group.name}: reference outputs")
    worker = session.make_worker(
        "reference", case.job("fp32", session.threads, "cpu", patience_s=0.0), case.inputs_path
    )
    try:
        started = worker.start(max(60.0, session.left_s()))
        every = tuple(range(case.inputs))
        timeout_s = 60 + 10 * case.inputs * started.first_run_s
        result = worker.block(BlockRequest(0.0, case.inputs, case.inputs, 0, every, 0), timeout_s)
    finally:
        worker.close()
    for run, output in result.outputs.items():
        flat = truth.by_image(output, case.batch)
        if flat is None or not np.all(np.isfinite(flat)):
            raise EngineCrashed(
                f"{group.name}: expected finite reference outputs with the batch first, got shape {output.shape}; "
                "give a network that is defined on photographs"
            )
        group.outputs[result.inputs[run]] = flat


def _start(group: Group, waiting: list[Lane], anchor: Lane | None, session: Session, deadline: float) -> list[Lane]:
    """Start lanes from the front of `waiting` while memory lasts; return those that take turns, the anchor first."""
    alive = [] if anchor is None or anchor.worker is None else [anchor]
    peak_bytes = max((_peak(lane) for lane in group.lanes), default=0)
    fresh = 0
    enough = session.clock() + LOADING_SHARE * (deadline - session.clock())
    while waiting:
        if fresh and conditions.available_memory_bytes() < RESERVE_BYTES + GROWTH * peak_bytes:
            break
        lane = waiting.pop(0)
        if lane.status is not None:
            continue
        if session.left_s() <= 0:
            lane.status, lane.reason = "skipped", over(session)
            continue
        if fresh > 1 and session.clock() > enough:
            lane.status, lane.reason = "skipped", "loading the other engines took too much of the time"
            continue
        session.report(f"{group.name}: load {lane.engine} {lane.precision}")
        patience_s = SHARES * max(0.0, enough - session.clock()) / (len(waiting) + SHARES)
        if _start_one(group, lane, session, patience_s):
            fresh += lane.engine != NULL
            alive.append(lane)
            peak_bytes = max(peak_bytes, _peak(lane))
            if group.twins and _may_have_twin(lane, group):
                group.twins = False
                twin = Lane(lane.engine, lane.precision, lane.device, lane.threads, twin=True)
                group.lanes.append(twin)
                if _start_one(group, twin, session, patience_s):
                    alive.append(twin)
    return alive


def _may_have_twin(lane: Lane, group: Group) -> bool:
    """Return whether the lane is of a rival, or perwatt's own in a group without rivals."""
    rivals = any(each.engine not in (NULL, OWN) and each.status is None for each in group.lanes)
    return lane.engine != NULL and (lane.engine != OWN or not rivals)


def _start_one(group: Group, lane: Lane, session: Session, patience_s: float) -> bool:
    """Start an engine, which may take `patience_s` to try what suits it; says whether it is there."""
    assert group.case is not None
    patience_s = min(patience_s, PATIENCE * session.profile.load_limit_s)
    if lane.precision == "auto":
        patience_s = AUTO_PATIENCE * session.profile.load_limit_s
    job = group.case.job(lane.precision, lane.threads, lane.device, patience_s)
    limit_s = max(1.0, min(session.profile.load_limit_s, session.left_s()))
    try:
        lane.worker = session.make_worker(lane.engine, job, group.case.inputs_path)
        lane.started = lane.worker.start(limit_s)
        # The first pass stands apart: it is no block. Its run tells how many runs a block will have.
        lane.run_s = lane.started.first_run_s
        if lane.run_s < LONG_RUN_S:
            result = lane.worker.block(BlockRequest(min(session.profile.block_s, 0.1), 1, 100, 0, (), 0))
            lane.run_s = float(np.median(result.durations_ns)) * 1e-9
    except EngineError as error:
        lane.fail(error)
        if lane.status == "timeout" and limit_s < session.profile.load_limit_s:
            lane.status, lane.reason = "skipped", f"{over(session)} while it loaded"
        return False
    return True


def over(session: Session) -> str:
    """Return, in words, that the time is over."""
    return f"the {session.profile.limit_s:.0f} s of the profile were over"


def _peak(lane: Lane) -> int:
    return (lane.started.peak_memory_bytes or 0) if lane.started is not None else 0


def _take_turns(group: Group, alive: list[Lane], session: Session, deadline: float) -> None:
    """Let the lanes take turns until precise enough or out of time."""
    seed = _seed(session.seed, group, group.rounds)
    length_s = _block_length_s(group, alive, session, deadline)
    window_s = session.metering.idle_s(length_s, deadline - session.clock())
    _read_idle(group, alive, session, "before", window_s)
    try:
        _rounds(group, alive, session, deadline - IDLE_WINDOWS * window_s, seed, length_s)
    finally:
        session.metering.settle(SETTLING_S)
    _read_idle(group, alive, session, "after", window_s)


def _block_length_s(group: Group, alive: list[Lane], session: Session, deadline: float) -> float:
    """Return how long blocks last: the profile's length, or longer for a slow meter where there is time for it."""
    lanes = sum(lane.engine != NULL for lane in alive if lane.worker is not None)
    most_s = METERED_SHARE * (deadline - session.clock()) / max(1, lanes * session.profile.minimum_rounds)
    length_s = session.metering.block_s(session.profile.block_s, most_s)
    note = session.metering.lengthened(session.profile.block_s, length_s)
    if note is not None:
        session.notes.append(f"{group.name}: {note}")
    return length_s


def _read_idle(group: Group, alive: list[Lane], session: Session, when: When, window_s: float) -> None:
    """Read the meters while every engine is loaded and none works."""
    workers = [lane.worker for lane in alive if lane.worker is not None]
    if not session.metering.is_on or not workers:
        return
    session.report(f"{group.name}: power at rest, {when} the blocks")
    rest = conditions.wait_for_rest([_processor_seconds(worker) for worker in workers])
    session.metering.rest(group.subject.facts.name, group.batch, when, rest.rested, window_s)


def _rounds(group: Group, alive: list[Lane], session: Session, deadline: float, seed: int, length_s: float) -> None:
    profile = session.profile
    for index, order in enumerate(schedule.rounds(range(len(alive)), seed)):
        running = [lane for lane in alive if lane.worker is not None]
        if not running or (index >= profile.minimum_rounds and all(lane.engine == NULL for lane in running)):
            return
        expected_s = sum(lane.block_s(length_s) for lane in running)
        if index and session.clock() + expected_s > deadline:
            return
        if index % 2 == 0 and index >= profile.minimum_rounds and _is_precise(group, alive, session):
            return
        middle_s = float(np.median([lane.block_s(length_s) for lane in running]))
        round_index, group.rounds = group.rounds, group.rounds + 1
        for place in order:
            lane = alive[place]
            if lane.worker is None or (lane.block_s(length_s) > SLOW_LANE * middle_s and index % 8 > 1):
                continue
            if session.left_s() < (lane.block_s(length_s) if index else 0.0):
                return
            session.report(f"{group.name}: round {index + 1}, {lane.engine} {lane.precision}")
            _one_block(group, lane, alive, round_index, session, length_s)


def _one_block(
    group: Group, lane: Lane, alive: list[Lane], round_index: int, session: Session, length_s: float
) -> None:
    """Wait until the others rest, then measure one block of the lane and judge what it kept."""
    assert lane.worker is not None
    assert group.case is not None
    metering = session.metering
    is_metered = metering.is_on and lane.engine != NULL
    others = [other.worker for other in alive if other is not lane and other.worker is not None]
    rest = conditions.wait_for_rest([_processor_seconds(worker) for worker in others])
    seen = conditions.now()
    generator = random.Random(_seed(session.seed, group, round_index) ^ _seed_of_lane(lane))
    seconds = NULL_BLOCK_S if lane.engine == NULL else length_s
    most_runs = METERED_RUNS if is_metered else MOST_RUNS
    keep: tuple[int, ...] = ()
    if lane.engine != NULL and not lane.twin and truth.is_sampled(len(lane.blocks), generator):
        keep = truth.sampled_runs(int(0.8 * min(most_runs, seconds / max(lane.run_s, 1e-6))), generator)
    request = BlockRequest(
        seconds=seconds,
        minimum_runs=1,
        maximum_runs=NULL_RUNS if lane.engine == NULL else most_runs,
        first_input=round_index % group.case.inputs,
        keep=keep,
        warmup_runs=1 if lane.run_s < WARM_SHARE * seconds else 0,
    )
    if is_metered:
        time.sleep(metering.offset_s(generator, length_s))
        metering.mark()
    try:
        result = lane.worker.block(request)
    except EngineError as error:
        lane.fail(error)
        return
    if is_metered:
        metering.mark()
    lane.run_s = float(np.median(result.durations_ns)) * 1e-9
    block = Block(
        sequence=session.blocks,
        round=round_index,
        start_s=(result.start_ns - session.zero_ns) * 1e-9,
        wait_s=rest.wait_s,
        rested=rest.rested,
        warmup_runs=request.warmup_runs,
        elapsed_s=(result.end_ns - result.start_ns) * 1e-9,
        durations_ns=result.durations_ns,
        load_average=seen.load_average,
        clock_mhz=seen.clock_mhz,
        temperature_c=seen.temperature_c,
    )
    session.blocks += 1
    lane.blocks.append(block)
    if is_metered:
        metering.owe(lane.blocks, result.start_ns, result.end_ns)
    for run in sorted(result.outputs):
        judge(group, lane, block.sequence, run, result.inputs[run], result.outputs[run], generator)


def _processor_seconds(worker: EngineProcess) -> Callable[[], float]:
    def read() -> float:
        try:
            return worker.cpu_seconds()
        except EngineError:  # it has died: it is at rest, and its own next block will say so
            return 0.0

    return read


def _is_precise(group: Group, alive: list[Lane], session: Session) -> bool:
    rows = [row_of(group, lane) for lane in alive if lane.blocks and not lane.twin]
    found = references_of(group)
    kept = figures.references_by_case(found)
    judged = [figures.with_judgement(row, kept.get((row.network, row.batch), {})) for row in rows]
    if not any(row.status == "ok" for row in judged if row.engine != NULL):
        return True  # wrong answers stay wrong: no interval is left that more rounds could narrow
    width = figures.widest_half_width(
        figures.with_figures(judged, kept, None, session.profile.half_width, session.seed)
    )
    return width is not None and width <= session.profile.half_width


def _seed(seed: int, group: Group, number: int) -> int:
    return random.Random(f"{seed}/{group.name}/{number}").getrandbits(32)


def _seed_of_lane(lane: Lane) -> int:
    return random.Random(f"{lane.engine}/{lane.precision}/{lane.device}").getrandbits(32)
