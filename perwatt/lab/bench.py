"""The lab's main job: networks × batch sizes × precisions × engines, measured side by side, as one Record."""

import datetime
import math
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar, get_args

import perwatt
from perwatt.errors import EngineError, InputError, OutputError, PerwattError
from perwatt.lab import figures, metering, record_file
from perwatt.lab.engine import PRECISIONS, Device, Precision
from perwatt.lab.engines import ENGINES, EngineEntry, entry, refusal
from perwatt.lab.group import measure, over
from perwatt.lab.lane import NULL, Group, Lane, MakeWorker, Session, references_of, row_of
from perwatt.lab.metering import Metering, OpenFor
from perwatt.lab.photographs import find_photographs
from perwatt.lab.process import Worker
from perwatt.lab.record import Energy, Limits, Noise, Photograph, Profile, Record
from perwatt.lab.subject import find, prepare
from perwatt.machine import this_machine

# Quick keeps the rest of its five minutes for importing libraries, the last block's end and the report.
PROFILES: Mapping[str, Profile] = MappingProxyType(
    {
        profile.name: profile
        for profile in (
            Profile(name="quick", half_width=0.03, block_s=0.1, minimum_rounds=6, limit_s=275, load_limit_s=40),
            Profile(name="standard", half_width=0.015, block_s=0.25, minimum_rounds=10, limit_s=1800, load_limit_s=450),
            Profile(name="long", half_width=0.0075, block_s=0.5, minimum_rounds=20, limit_s=14400, load_limit_s=1200),
        )
    }
)
LARGE_BATCH: Mapping[Device, int] = MappingProxyType({"cpu": 48, "cuda": 128})
MOST_BATCH = 4096
Item = TypeVar("Item")
_LOAD_S = 3.0  # about what starting an engine takes, to share out the time before anything is known
_LOAD_RUNS = 3
_GUESSED_RATE = 40e9  # multiply-adds and additions per second and thread, for the same purpose
_GUESSED_MULTIPLY_ADDS = 1_000_000_000
_IMAGES = 16  # at least this many distinct images per network and batch...
_TUNING_IMAGES = 256  # crops to find the numbers of precision auto on
_FEWEST_INPUTS = 3  # ... and this many distinct batches: two would hide an answer that is two runs old


@dataclass(frozen=True)
class BenchRequest:
    """What to measure: names of built-in networks or paths of ONNX files, and how.

    Without `batches`: 1 and the large batch of the device. Without `engines`: every engine of the device. `threads`
    without a number: the cores this process may keep busy; with several, every engine is measured with each. `noise`:
    measure an A/A pair. `meter`: auto, none, or the name of a meter. `limits`, which `--best` asks of a setting, and
    `command` are kept as they are.
    """

    networks: tuple[str, ...]
    batches: tuple[int, ...] | None = None
    precisions: tuple[Precision, ...] = ("fp32",)
    engines: tuple[str, ...] | None = None
    photos: Path | None = None
    profile: str | Profile = "standard"
    out: Path = Path()
    seed: int = 1
    threads: int | tuple[int, ...] | None = None
    device: Device = "cpu"
    noise: bool = True
    meter: str = "auto"
    limits: Limits | None = None
    command: tuple[str, ...] = ()


@dataclass(frozen=True)
class Progress:
    """Where a measurement stands: what it does now, the share that is done, and the time it may still take at most."""

    text: str
    done: float
    left_s: float


def run_bench(
    request: BenchRequest,
    progress: Callable[[Progress], None],
    make_worker: MakeWorker = Worker,
    open_meters: OpenFor = metering.open_for,
) -> Record:
    """Measure what was asked and return the Record, complete with its figures; nothing is written to `out` yet.

    Engines that are missing, refuse, hang or crash are rows that say so, and rows whose meter failed have no energy and
    say why. Ctrl-C returns what was measured, marked as partial. Raises InputError, NetworkError or OutputError before
    the first measurement when the request cannot be met.
    """
    profile, batches, engines = _checked(request)
    record_file.ensure_writable(request.out)
    machine = this_machine()
    threads = _threads(request, machine.cores)
    opened = open_meters(request.meter, request.device)
    start, zero_ns = time.monotonic(), time.perf_counter_ns()

    def report(text: str) -> None:
        passed_s = time.monotonic() - start
        progress(Progress(text, min(1.0, passed_s / max(profile.limit_s, 1e-9)), max(0.0, profile.limit_s - passed_s)))

    session = Session(
        profile=profile,
        seed=request.seed,
        threads=max(threads),
        make_worker=make_worker,
        report=report,
        deadline=start + profile.limit_s,
        metering=Metering(opened, zero_ns),
        zero_ns=zero_ns,
    )
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    groups: list[Group] = []
    photographs: dict[str, Photograph] = {}
    partial_reason = None
    try:
        photos = find_photographs(request.photos)
        report("read the networks")
        groups += _groups(request, batches, engines, threads)
        for index, group in enumerate(groups):
            share = _weight(group, session) / sum(_weight(each, session) for each in groups[index:])
            _one_group(group, photos, photographs, session, session.clock() + share * session.left_s(), index == 0)
    except KeyboardInterrupt:
        partial_reason = "stopped by Ctrl-C"
        for group in groups:
            group.close()
            for lane in group.lanes:
                if lane.status is None and not lane.blocks:
                    lane.status, lane.reason = "interrupted", "stopped by Ctrl-C before its first block"
    finally:
        session.metering.close()
    if not groups:
        raise KeyboardInterrupt  # nothing was measured: there is no Record to keep
    return figures.complete(
        Record(
            schema_version=2,
            created=created,
            perwatt_version=perwatt.__version__,
            commit=commit(),
            command=request.command,
            seed=request.seed,
            profile=profile,
            machine=machine.facts(),
            machine_id=machine.host_id,
            partial=partial_reason is not None,
            partial_reason=partial_reason,
            notes=tuple(session.notes),
            duration_s=time.monotonic() - start,
            networks=tuple({group.subject.facts.name: group.subject.facts for group in groups}.values()),
            photographs=tuple(sorted(photographs.values(), key=lambda photo: (photo.name, photo.sha256))),
            references=tuple(reference for group in groups for reference in references_of(group)),
            rows=tuple(row_of(group, lane) for group in groups for lane in _shown(group)),
            noise=_noise(groups),
            harness_cost_s=None,
            digest="",
            energy=Energy(
                asked=opened.asked,
                meters=tuple(facts for facts, _ in opened.meters),
                reason=opened.reason,
                remedy=opened.remedy,
                idle=tuple(session.metering.idle),
            ),
            limits=request.limits,
        )
    )


def _checked(request: BenchRequest) -> tuple[Profile, tuple[int, ...], tuple[EngineEntry, ...]]:
    """Return profile, batches and engines. Raises InputError with the first thing that is wrong with the request."""
    if not request.networks:
        raise InputError("networks: expected at least one, got none; name a built-in network or an ONNX file")
    if isinstance(request.profile, str) and request.profile not in PROFILES:
        raise InputError(f"profile: expected one of {', '.join(PROFILES)}, got {request.profile!r}; choose one")
    profile = PROFILES[request.profile] if isinstance(request.profile, str) else request.profile
    if request.device not in get_args(Device):
        raise InputError(f"device: expected cpu or cuda, got {request.device!r}; choose one")
    batches = _unique(request.batches if request.batches is not None else (1, LARGE_BATCH[request.device]))
    for batch in batches or (0,):
        if not 1 <= batch <= MOST_BATCH:
            raise InputError(f"batch: expected whole numbers from 1 to {MOST_BATCH}, got {batch}; choose another")
    for precision in request.precisions or ("none",):
        if precision not in PRECISIONS:
            raise InputError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}; choose one")
    for count in _threads(request, 1):
        if count < 1:
            raise InputError(f"threads: expected at least 1, got {count}; leave it out to use every core")
    if request.seed < 0:
        raise InputError(f"seed: expected a whole number from 0, got {request.seed}; choose another")
    known = [each for each in ENGINES if each.name != NULL]
    if request.engines is None:
        return profile, batches, tuple(each for each in known if each.device == request.device)
    chosen = []
    for name in _unique(request.engines):
        found = entry(name)
        if found is None or found.name == "reference":
            names = ", ".join(each.name for each in ENGINES)
            raise InputError(f"engine: expected one of {names}, got {name!r}; choose among them")
        chosen.append(found)
    return profile, batches, tuple(chosen)


def _threads(request: BenchRequest, cores: int) -> tuple[int, ...]:
    if isinstance(request.threads, int):
        return (request.threads,)
    return _unique(request.threads or (cores,))


def _unique(items: Iterable[Item]) -> tuple[Item, ...]:
    return tuple(dict.fromkeys(items))


def _groups(
    request: BenchRequest, batches: tuple[int, ...], engines: tuple[EngineEntry, ...], threads: tuple[int, ...]
) -> list[Group]:
    """Return the groups to measure, network by network; the first of each batch size has the null engine too."""
    subjects = [find(name) for name in _unique(request.networks)]
    names = [subject.facts.name for subject in subjects]
    if len(set(names)) != len(names):
        raise InputError(f"networks: expected different names, got {', '.join(names)}; rename one of the files")
    groups: list[Group] = []
    for number, subject in enumerate(subjects):
        for batch in batches:
            lanes = [_lane(each, precision, count) for precision in _unique(request.precisions) for count in threads
                     for each in engines if each.name != NULL]  # fmt: skip
            if number == 0:
                lanes.insert(0, Lane(NULL, "fp32", "cpu", threads[0]))
            groups.append(Group(subject, batch, lanes, twins=request.noise and not groups))
    return groups


def _lane(engine: EngineEntry, precision: Precision, threads: int) -> Lane:
    lane = Lane(engine.name, precision, engine.device, threads)
    if precision not in engine.precisions:
        lane.status, lane.reason = "refused", refusal(engine, precision)
    return lane


def _weight(group: Group, session: Session) -> float:
    """Return a group's share of the time: loading its engines, and the square root of what a round takes.

    Loading has a few runs in it, for engines try what suits them. The root gives short runs, which are many, more
    rounds than long ones without starving those.
    """
    rows = sum(lane.status is None for lane in group.lanes)
    multiply_adds = group.subject.facts.multiply_adds or _GUESSED_MULTIPLY_ADDS
    run_s = 2 * multiply_adds * group.batch / (_GUESSED_RATE * session.threads)
    return rows * (_LOAD_S + _LOAD_RUNS * run_s) + 8 * math.sqrt(rows * max(run_s, session.profile.block_s))


def _one_group(
    group: Group,
    photos: tuple[Path, ...],
    photographs: dict[str, Photograph],
    session: Session,
    deadline: float,
    is_first: bool,
) -> None:
    """Make the group's files and measure it; what goes wrong after the first group is a reason in its rows."""
    waiting = [lane for lane in group.lanes if lane.status is None]
    if session.left_s() <= 0:
        _skip(waiting, over(session))
        return
    if not waiting:
        return
    session.report(f"{group.name}: inputs from photographs")
    inputs = max(_FEWEST_INPUTS, _IMAGES // group.batch)
    tuning_images = _TUNING_IMAGES if any(lane.precision == "auto" for lane in waiting) else 0
    with tempfile.TemporaryDirectory(prefix="perwatt-") as folder:
        try:
            try:
                case, used = prepare(
                    group.subject, group.batch, inputs, photos, Path(folder), session.seed, tuning_images
                )  # fmt: skip
            except OSError as error:
                raise OutputError(
                    f"{folder}: expected room for a network and its inputs, got: {error.strerror or error}; "
                    "free some space"
                ) from error
            photographs.update({photo.sha256: photo for photo in used})
            measure(group, case, session, deadline)
        except EngineError as error:
            _skip(waiting, f"no reference to judge it by: {error}")
        except PerwattError as error:
            if is_first:
                raise
            _skip(waiting, str(error))


def _shown(group: Group) -> list[Lane]:
    """Return the lanes that are rows: without the twin, the null engine last though it started first."""
    return sorted((lane for lane in group.lanes if not lane.twin), key=lambda lane: lane.engine == NULL)


def _skip(lanes: list[Lane], reason: str) -> None:
    for lane in lanes:
        if lane.status is None and not lane.blocks:
            lane.status, lane.reason = "skipped", reason


def _noise(groups: list[Group]) -> Noise | None:
    for group in groups:
        for lane in group.lanes:
            if lane.twin and lane.blocks:
                return Noise(
                    network=group.subject.facts.name,
                    engine=lane.engine,
                    batch=group.batch,
                    precision=lane.precision,
                    blocks=tuple(lane.blocks),
                    ratio=None,
                    floor=None,
                    threads=lane.threads,
                )
    return None


def commit() -> str | None:
    """Return the commit of perwatt's own sources when they are a checkout, else None."""
    folder = Path(perwatt.__file__).parent.parent
    if not (folder / ".git").exists():
        return None
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None if answer.returncode == 0 else None
