"""Record: one measurement with its raw samples, as a versioned JSON file.

Everything that is printed follows from the raw part (blocks, samples, references); `figures.py` computes it and
`check.py` computes it again. Missing is None.

Format history
  1  first version
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict

SCHEMA_VERSION = 1
Status = Literal["ok", "invalid", "missing", "refused", "crashed", "timeout", "interrupted"]


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


class Block(_Part):
    """One uninterrupted stretch of runs of one row. Times are monotonic seconds since the Record's start."""

    sequence: int
    round: int
    start_s: float
    wait_s: float
    warmup_runs: int
    durations_ns: tuple[int, ...]
    load_average: float | None
    clock_mhz: float | None
    temperature_c: float | None


class Sample(_Part):
    """The output of one timed run of a row: which block and run, which input batch, and what came out."""

    block: int
    run: int
    input: int
    output: Array


class Percentile(_Part):
    """A latency percentile that the number of runs carries (MLPerf's early-stopping bound), in seconds."""

    percentile: float
    latency_s: float


class Figures(_Part):
    """What is printed of a row. Every field follows from the row's blocks and samples and its peers'."""

    images_per_s: Estimate | None
    latency_p50_s: float | None
    percentiles: tuple[Percentile, ...]
    relative_error: float | None
    top1_agreement: float | None
    ratio_to_best: Estimate | None
    drift: float | None
    warnings: tuple[str, ...]


class Row(_Part):
    """One engine on one network at one batch and precision: what was asked, what happened, raw samples, figures."""

    network: str
    engine: str
    batch: int
    precision: Literal["fp32", "bf16", "fp16"]
    device: Literal["cpu", "cuda"]
    status: Status
    reason: str | None
    threads: int
    version: str | None
    precision_reported: str | None
    options: dict[str, str]
    load_s: float | None
    first_run_s: float | None
    peak_memory_bytes: int | None
    blocks: tuple[Block, ...]
    samples: tuple[Sample, ...]
    figures: Figures


class Reference(_Part):
    """The FP32 reference output for one input batch of one network (ONNX Runtime with optimisations off)."""

    network: str
    batch: int
    input: int
    output: Array


class NetworkFacts(_Part):
    """What was run: where it came from, its hash, its size, and how photographs became its input."""

    name: str
    source: str
    sha256: str
    parameters: int
    multiply_adds: int
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


class Noise(_Part):
    """The A/A pair of this run: the same engine in two workers; `floor` is the half width of the ratio's interval."""

    network: str
    engine: str
    batch: int
    ratio: Estimate
    floor: float


class Record(_Part):
    """One run of the lab, whole or cut short, with everything needed to compute its figures again."""

    schema_version: Literal[1]
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
    duration_s: float
    networks: tuple[NetworkFacts, ...]
    photographs: tuple[Photograph, ...]
    references: tuple[Reference, ...]
    rows: tuple[Row, ...]
    noise: Noise | None
    harness_cost_s: float | None
    digest: str
