"""Record: one measurement with its raw samples, as a versioned JSON file.

Raw parts (blocks, samples, references, what the engines said) are measured once; everything else follows from them:
`figures.complete` computes it and `check.check` computes it again. Missing is None.

Format history
  1  first version: blocks say whether the other engines had come to rest; samples carry every image's error and class,
     and the whole output of some images; the twin of the A/A pair is in `noise`; figures carry tolerance and verdict;
     the status `skipped` and the Record's `notes`
  2  energy: the Record's `energy` (meters, idle power, or why there is none), a block's `energy`, a row's
     `figures.energy`, the A/A pair's `energy_ratio` and `energy_floor`; `limits` of a choice; `threads` tells rows
     apart; precision auto, with a row's `coarsest`. Version 1 is read as a Record without these; the digest leaves out
     what a Record does not have.
"""

import base64
import binascii
import math
import zlib
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from perwatt.errors import RecordError
from perwatt.lab.engine import Numbers, Precision
from perwatt.lab.statistics import Verdict

READABLE_VERSIONS = (1, 2)
# What version 1 did not have; left out of the digest where it is absent, so that one rule holds for both versions.
LATER_FIELDS = frozenset({"energy", "energy_ratio", "energy_floor", "limits", "threads", "coarsest"})
Status = Literal["ok", "invalid", "missing", "refused", "crashed", "timeout", "skipped", "interrupted"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Estimate(_Part):
    """A figure with its 95 % interval; `low` and `high` are None where the samples cannot carry one."""

    value: float
    low: float | None
    high: float | None


class Array(_Part):
    """A float32 array: little-endian bytes, zlib, base64."""

    shape: tuple[int, ...]
    data: str


class Reading(_Part):
    """What one meter said of one stretch of time: the joules it counted from `start_s` to `end_s`, or why none.

    Times are monotonic seconds since the Record's start. `half_width_j` is half the 95 % interval of what may be wrong
    with this reading alone (quantum, update period, sampled fraction), `gain` of what is wrong with all readings of the
    meter in the same way, relative. `joules` and `reason`: exactly one of them is None. `notes`: what went less well.
    """

    meter: str
    start_s: float
    end_s: float
    joules: float | None
    half_width_j: float | None
    gain: float | None
    reason: str | None
    notes: tuple[str, ...] = ()


class IdleReading(_Part):
    """Readings of one stretch without work: the engines of this network and batch loaded, resting or not."""

    network: str
    batch: int
    when: Literal["before", "after"]
    rested: bool
    readings: tuple[Reading, ...]


class MeterFacts(_Part):
    """A meter that was read: what its watts cover, how finely and how often it tells, and how wrong it may be.

    Fields are those of `meters.meter.Meter`. `devices` are those whose rows it may judge, which follow from `scope`;
    `overlaps` names other meters that count some of the same joules, `leaves_out` what its scope does not hold.
    `gain`: half the 95 % interval of the relative error that all its readings share. `uncertainty`: how sure a reading
    is, in words.
    """

    name: str
    family: str
    scope: str
    devices: tuple[Literal["cpu", "cuda"], ...]
    unit: Literal["J", "W", "none"]
    quantum: float
    update_period_s: float
    averaging_s: float
    sampled_share: float
    gain: float
    overlaps: tuple[str, ...]
    leaves_out: str
    note: str
    uncertainty: str


class Energy(_Part):
    """How energy was measured, or why it was not.

    `asked` is what `--meter` said. Without `meters` there are `reason` and, where one command would help, `remedy`.
    """

    asked: str
    meters: tuple[MeterFacts, ...]
    reason: str | None
    remedy: str | None
    idle: tuple[IdleReading, ...]


class Block(_Part):
    """One uninterrupted stretch of timed runs of one row. Times are monotonic seconds since the Record's start.

    `sequence` counts every block of the Record in the order of time. Blocks of different rows of one network and batch
    with the same `round` were measured side by side and are paired. `wait_s` is how long the lab waited for the other
    engines' threads to rest, `rested` whether they did. `warmup_runs` ran before the timed runs, untimed. `elapsed_s`
    is from the first timed run's start to the last one's end: what it has above the sum of `durations_ns` is the
    harness. `energy` has a Reading of each of the Record's meters, of the inside of the block: an update period from
    its edges, where a meter mixes the block with the rest around it.
    """

    sequence: int
    round: int
    start_s: float
    wait_s: float
    rested: bool
    warmup_runs: int
    elapsed_s: float
    durations_ns: tuple[int, ...]
    load_average: float | None
    clock_mhz: float | None
    temperature_c: float | None
    energy: tuple[Reading, ...] = ()


class Sample(_Part):
    """What one timed run of a row returned: which block (its `sequence`) and run of it, and which input batch.

    Per image of the batch: the relative error against the reference (None: not a finite number) and the class chosen.
    `strangers` counts images whose output plainly is another image's reference. `hash` is of the whole output's bytes:
    the same for two inputs means a stale output. `images` are the positions in the batch whose whole output is kept
    (the worst image of the row is always among them), `output` is theirs, shape (len(images), values).
    """

    block: int
    run: int
    input: int
    relative_errors: tuple[float | None, ...]
    classes: tuple[int, ...]
    strangers: int
    hash: str
    images: tuple[int, ...]
    output: Array | None


class Percentile(_Part):
    """A latency percentile that the number of runs carries (MLPerf's early-stopping bound), in seconds."""

    percentile: float
    latency_s: float


class ScopedWatts(_Part):
    """Mean power during a row's blocks as another meter saw it: another scope, never added to the row's own."""

    meter: str
    scope: str
    power_w: Estimate


class EnergyFigures(_Part):
    """What a row's work took, by the one meter whose scope covers its device; all figures share that scope.

    Intervals join the spread from block to block, the meter's error of single readings and its gain. `power_w` and
    `joules_per_image` are gross; `images_per_joule` (images/s/W) is the gross one upside down. Above idle: what the
    engines at rest took in the same time is subtracted; None where load does not stand out of idle. `reason` says why a
    row has no figures: then all of them are None.

    `best_other` is the most frugal valid other engine on the same meter at the same network, batch, precision and
    threads; `ratio_to_best` is this row's images/J over that one's, paired by round, so that the meter's gain cancels.
    """

    meter: str | None
    scope: str | None
    power_w: Estimate | None
    joules_per_image: Estimate | None
    images_per_joule: Estimate | None
    idle_w: Estimate | None
    above_idle_joules_per_image: Estimate | None
    best_other: str | None
    ratio_to_best: Estimate | None
    verdict: Literal["more", "less", "no difference seen"] | None
    beside: tuple[ScopedWatts, ...]
    warnings: tuple[str, ...]
    reason: str | None


class Figures(_Part):
    """What is printed of a row; every field follows from the row's blocks and samples, its peers' and the A/A pair's.

    `images_per_s`: median over blocks, with its interval. `relative_error`: the worst image of all samples.
    `best_other`: the fastest valid other engine at the same network, batch and precision; `ratio_to_best` is this row's
    speed over that one's, paired by round, and `verdict` what may be said of it. `drift`: speed of the later half of
    the blocks over that of the earlier half, minus 1. `rounds_wanted`: rounds that the profile's half width would take.
    `energy` is None in a Record without meters.
    """

    images_per_s: Estimate | None
    latency_p50_s: float | None
    percentiles: tuple[Percentile, ...]
    relative_error: float | None
    tolerance: float | None
    top1_agreement: float | None
    best_other: str | None
    ratio_to_best: Estimate | None
    verdict: Verdict | None
    drift: float | None
    rounds: int
    rounds_wanted: int | None
    warnings: tuple[str, ...]
    energy: EnergyFigures | None = None


NO_FIGURES = Figures(
    images_per_s=None,
    latency_p50_s=None,
    percentiles=(),
    relative_error=None,
    tolerance=None,
    top1_agreement=None,
    best_other=None,
    ratio_to_best=None,
    verdict=None,
    drift=None,
    rounds=0,
    rounds_wanted=None,
    warnings=(),
)


class Row(_Part):
    """One engine on one network at one batch and precision: what was asked, what happened, raw samples, figures.

    The engine `null` runs nothing: its rows measure the lab's own cost and are judged by nobody. A row that failed
    midway keeps its blocks but has no figures. `coarsest`: in precision auto, the coarsest numbers that the engine says
    it uses, whose rounding its outputs are held to; what it uses for which step is in `options`.
    """

    network: str
    engine: str
    batch: int
    precision: Precision
    device: Literal["cpu", "cuda"]
    status: Status
    reason: str | None
    threads: int
    version: str | None
    precision_reported: str | None
    coarsest: Numbers | None = None
    options: dict[str, str]
    load_s: float | None
    first_run_s: float | None
    peak_memory_bytes: int | None
    blocks: tuple[Block, ...]
    samples: tuple[Sample, ...]
    figures: Figures


class Reference(_Part):
    """The FP32 reference (ONNX Runtime with optimisations off) for one input batch of one network.

    `classes` per image; `hash` of the whole output's bytes; `images` are the positions whose whole reference output is
    kept in `output`, shape (len(images), values). `spread`: of the logits behind a softmax, None for other outputs.
    """

    network: str
    batch: int
    input: int
    spread: float | None
    classes: tuple[int, ...]
    hash: str
    images: tuple[int, ...]
    output: Array


class NetworkFacts(_Part):
    """What was run: where it came from, its hash, its size, and how photographs became its input.

    Sizes are those of one image; `multiply_adds` is None for a network with operators that perwatt cannot count.
    """

    name: str
    source: str
    sha256: str
    parameters: int
    multiply_adds: int | None
    input_shape: tuple[int, ...]
    preprocessing: dict[str, str]


class Photograph(_Part):
    """One photograph that inputs were cropped from."""

    name: str
    sha256: str


class Profile(_Part):
    """How long to measure: stop when every interval is narrower than `half_width` of its value, or time is out."""

    name: str
    half_width: float
    block_s: float
    minimum_rounds: int
    limit_s: float
    load_limit_s: float


class Noise(_Part):
    """The A/A pair of this run: the same engine in two workers; `blocks` are the second worker's.

    `ratio` is the second worker's speed over the first's (the row of that name); `floor` is half the width of its
    interval, relative, None where the rounds carry no interval. `energy_ratio` and `energy_floor` are the same of
    images/J. `threads` is None in version 1, where all rows had the same number.
    """

    network: str
    engine: str
    batch: int
    precision: Precision
    blocks: tuple[Block, ...]
    ratio: Estimate | None
    floor: float | None
    threads: int | None = None
    energy_ratio: Estimate | None = None
    energy_floor: float | None = None


class Limits(_Part):
    """What a setting must keep to be chosen by `--best`: a bound of p99 latency, a least share of like classes."""

    p99_s: float | None
    top1_agreement: float | None


class Record(_Part):
    """One run of the lab, whole or cut short, with everything needed to compute its figures again.

    `harness_cost_s` is the wall time per run of the timed loop on the null engine, median of its blocks. `digest` is
    the SHA-256 of all other fields. `limits` are those of `--best`, None without it.
    """

    schema_version: Literal[1, 2]
    created: str
    perwatt_version: str
    commit: str | None
    command: tuple[str, ...]
    seed: int
    profile: Profile
    machine: dict[str, str]
    machine_id: str
    partial: bool
    partial_reason: str | None
    notes: tuple[str, ...]
    duration_s: float
    networks: tuple[NetworkFacts, ...]
    photographs: tuple[Photograph, ...]
    references: tuple[Reference, ...]
    rows: tuple[Row, ...]
    noise: Noise | None
    harness_cost_s: float | None
    digest: str
    energy: Energy | None = None
    limits: Limits | None = None


def pack(values: np.ndarray) -> Array:
    """Return a float32 copy of `values` as an Array."""
    data = np.ascontiguousarray(values, dtype="<f4")
    return Array(shape=data.shape, data=base64.b64encode(zlib.compress(data.tobytes(), 6)).decode("ascii"))


def unpack(array: Array) -> np.ndarray:
    """Return the float32 values of an Array. Raises RecordError when its bytes are not what its shape says."""
    wanted = 4 * math.prod(array.shape)
    try:
        packed = base64.b64decode(array.data, validate=True)
        data = zlib.decompressobj().decompress(packed, wanted + 1)  # bounded: a hostile Record cannot fill the memory
    except (binascii.Error, zlib.error, ValueError) as error:
        raise RecordError(
            f"array: expected base64 of zlib, got {error}; take the Record from its source again"
        ) from None
    if len(data) != wanted or any(length < 0 for length in array.shape):
        raise RecordError(
            f"array: expected {wanted} bytes for shape {array.shape}, got another number; "
            "take the Record from its source again"
        )
    return np.frombuffer(data, dtype="<f4").reshape(array.shape).astype(np.float32)
