"""A lane: one row while it is being measured. A group: the lanes of one network at one batch size.

What was measured lives in the lanes from the moment it was measured, so that Ctrl-C, a crash or the end of the time
leave all of it.
"""

import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from perwatt.errors import EngineCrashed, EngineError, EngineMissing, EngineRefused, EngineTimeout
from perwatt.lab import conditions, truth
from perwatt.lab.engine import Device, Job, Precision
from perwatt.lab.metering import Metering
from perwatt.lab.process import BlockRequest, BlockResult, Started
from perwatt.lab.record import NO_FIGURES, Array, Block, Profile, Reference, Row, Sample, Status, pack, unpack
from perwatt.lab.subject import Case, Subject

NULL = "null"
OWN = "perwatt"
NULL_BLOCK_S = 0.02
KEPT_BYTES = 1 << 16  # of whole outputs per row, besides the worst image's
KEPT_IMAGES = 4  # of one sample
_FATES: tuple[tuple[type[EngineError], Status], ...] = (
    (EngineMissing, "missing"),
    (EngineRefused, "refused"),
    (EngineTimeout, "timeout"),
    (EngineCrashed, "crashed"),
)


class EngineProcess(Protocol):
    """What a group needs of a worker; `process.Worker` is one."""

    def start(self, timeout_s: float = ...) -> Started: ...

    def block(self, plan: BlockRequest, timeout_s: float | None = ...) -> BlockResult: ...

    def cpu_seconds(self) -> float: ...

    def close(self) -> None: ...


MakeWorker = Callable[[str, Job, Path], EngineProcess]


@dataclass
class Lane:
    """One row while it is being measured, or the twin of the A/A pair."""

    engine: str
    precision: Precision
    device: Device
    threads: int
    twin: bool = False
    worker: EngineProcess | None = None
    started: Started | None = None
    status: Status | None = None  # None: nothing went wrong
    reason: str | None = None
    run_s: float = 0.0
    blocks: list[Block] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    kept_bytes: int = 0
    worst: tuple[float, int, int, np.ndarray] | None = None  # error, sample, image, its output

    def fail(self, error: EngineError) -> None:
        """Note how the engine fell out, and end its process."""
        self.status = next((status for kind, status in _FATES if isinstance(error, kind)), "crashed")
        self.reason = str(error)
        self.close()

    def close(self) -> None:
        """End the process, if there is one."""
        if self.worker is not None:
            self.worker.close()
            self.worker = None

    def block_s(self, length_s: float) -> float:
        """Return about how long the lane's next block takes, where blocks are to last `length_s`."""
        wait_s = self.blocks[-1].wait_s if self.blocks else conditions.POLL_S
        return max(NULL_BLOCK_S if self.engine == NULL else length_s, self.run_s) + wait_s


@dataclass
class Session:
    """What the groups of one run of the lab share: its settings, its clock, its meters and its count of blocks.

    `threads` is the most that any lane has; references and guesses of time use it.
    """

    profile: Profile
    seed: int
    threads: int
    make_worker: MakeWorker
    report: Callable[[str], None]
    deadline: float
    metering: Metering
    zero_ns: int = field(default_factory=time.perf_counter_ns)
    clock: Callable[[], float] = time.monotonic
    blocks: int = 0
    notes: list[str] = field(default_factory=list)

    def left_s(self) -> float:
        """Return the seconds until the whole run must be over."""
        return self.deadline - self.clock()


@dataclass
class Group:
    """One network at one batch size: its lanes, and the reference outputs by input, shape (batch, values).

    `case` is None until its files are made. `twins`: the first engine that works gets a twin, the A/A pair.
    """

    subject: Subject
    batch: int
    lanes: list[Lane]
    case: Case | None = None
    twins: bool = False
    outputs: dict[int, np.ndarray] = field(default_factory=dict)
    rounds: int = 0

    @property
    def name(self) -> str:
        """The network and the batch, for people."""
        return f"{self.subject.facts.name}, batch {self.batch}"

    def close(self) -> None:
        """End every process of the group."""
        for lane in self.lanes:
            lane.close()


def judge(
    group: Group, lane: Lane, block: int, run: int, which: int, output: np.ndarray, generator: random.Random
) -> None:
    """Hold one output against the reference and keep what a later check needs of it."""
    others = [other for each, other in group.outputs.items() if each != which]
    stack = np.concatenate(others) if others else np.empty((0, group.outputs[which].shape[1]), np.float32)
    coarsest = lane.started.loaded.coarsest if lane.started is not None else None
    judgement = truth.judge(output, group.outputs[which], stack, truth.held_to(lane.precision, coarsest))
    flat = truth.by_image(output, group.batch)
    images: tuple[int, ...] = ()
    if flat is not None:
        size = flat[0].nbytes
        room = min(KEPT_IMAGES, group.batch, (KEPT_BYTES - lane.kept_bytes) // max(size, 1))
        if room > 0:
            images = tuple(sorted(generator.sample(range(group.batch), room)))
            lane.kept_bytes += room * size
        errors = [math.inf if error is None else error for error in judgement.relative_errors]
        worst = int(np.argmax(errors))
        if lane.worst is None or errors[worst] > lane.worst[0]:
            lane.worst = (errors[worst], len(lane.samples), worst, flat[worst].copy())
    lane.samples.append(
        Sample(
            block=block,
            run=run,
            input=which,
            relative_errors=judgement.relative_errors,
            classes=judgement.classes,
            strangers=judgement.strangers,
            hash=judgement.hash,
            images=images,
            output=pack(flat[list(images)]) if flat is not None and images else None,
        )
    )


def row_of(group: Group, lane: Lane) -> Row:
    """Return the lane as a row of the Record, its outputs not yet judged and its figures not yet computed.

    A lane to which nothing happened is ok with a block and was skipped without one.
    """
    started, reason = lane.started, lane.reason
    status: Status = lane.status or ("ok" if lane.blocks else "skipped")
    if lane.status is None and not lane.blocks:
        reason = "the time was over before its first block"
    return Row(
        network=group.subject.facts.name,
        engine=lane.engine,
        batch=group.batch,
        precision=lane.precision,
        device=lane.device,
        status=status,
        reason=reason,
        threads=lane.threads,
        version=started.loaded.version if started else None,
        precision_reported=started.loaded.precision if started else None,
        coarsest=started.loaded.coarsest if started else None,
        options=dict(started.loaded.options) if started else {},
        load_s=started.load_s if started else None,
        first_run_s=started.first_run_s if started else None,
        peak_memory_bytes=started.peak_memory_bytes if started else None,
        blocks=tuple(lane.blocks),
        samples=_samples_with_worst(lane),
        figures=NO_FIGURES,
    )


def _samples_with_worst(lane: Lane) -> tuple[Sample, ...]:
    samples = list(lane.samples)
    if lane.worst is not None:
        _, index, image, output = lane.worst
        sample = samples[index]
        if image not in sample.images:
            samples[index] = sample.model_copy(
                update={"images": (*sample.images, image), "output": _appended(sample.output, output)}
            )
    return tuple(samples)


def _appended(kept: Array | None, output: np.ndarray) -> Array:
    return pack(output[None] if kept is None else np.concatenate([unpack(kept), output[None]]))


def references_of(group: Group) -> tuple[Reference, ...]:
    """Return the references of the inputs that were sampled, whole for the images whose outputs are kept."""
    wanted: dict[int, set[int]] = {}
    for lane in group.lanes:
        for sample in _samples_with_worst(lane):
            wanted.setdefault(sample.input, set()).update(sample.images)
    return tuple(
        _reference(group, which, tuple(sorted(images)), group.outputs) for which, images in sorted(wanted.items())
    )


def _reference(group: Group, which: int, images: tuple[int, ...], outputs: Mapping[int, np.ndarray]) -> Reference:
    whole = outputs[which]
    return Reference(
        network=group.subject.facts.name,
        batch=group.batch,
        input=which,
        spread=truth.logit_spread(whole),
        classes=tuple(int(each) for each in whole.argmax(axis=1)),
        hash=truth.output_hash(whole),
        images=images,
        output=pack(whole[list(images)]),
    )
