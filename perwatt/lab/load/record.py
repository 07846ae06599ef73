"""The Record of a load test: every request's times and outcome, and the figures that follow from them.

Raw parts (targets, samples, series) are measured once; `figures.complete` computes the rest and `check.check` computes
it again. Missing is None.

Format history
  1  first version
"""

import base64
import binascii
import zlib
from collections.abc import Mapping
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from perwatt.errors import RecordError
from perwatt.lab.load import generator
from perwatt.lab.record import Estimate, Percentile, Photograph

KIND = "loadtest"
READABLE_VERSIONS = (1,)
MOST_SAMPLES = 50_000_000
_US = 1000  # nanoseconds


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Column(_Part):
    """Whole numbers, one a request: little-endian int64, bytes of like weight together, zlib, base64."""

    count: int
    data: str


class SampleColumns(_Part):
    """The requests of a run in the order of their due times; times in whole microseconds.

    `due` is since the start of the run and is kept as differences from request to request, `released` as what it is
    after due, `sent` after released, `done` after sent; -1 stands for never, and what follows counts from the last time
    that is known. `status`: the HTTP status, or -1 no answer in time, -2 connection broken, -3 no connection, -4 the
    client left (on purpose), -5 stopped before its end. `shot` is an index of the run's shots, `verdict` is 0 not
    checked, 1 right, 2 wrong, 3 another request's answer.
    """

    due: Column
    released: Column
    sent: Column
    done: Column
    status: Column
    shot: Column
    verdict: Column


class ShotFacts(_Part):
    """One prepared request: what it asks about, whom, how large, which statuses are right, how its client behaves."""

    name: str
    model: str
    bytes: int
    expects: tuple[int, ...]
    behaviour: Literal["plain", "leave", "slow"]


class Target(_Part):
    """A server that was asked: where, what it says it is, and how it was set up as far as that is known."""

    name: str
    url: str
    server: str | None
    payload: Literal["photographs", "tensors"]
    options: dict[str, str]
    shots: tuple[ShotFacts, ...]


class Checking(_Part):
    """How answers were checked: where the expected ones came from, and how many shots they tell apart.

    Two answers agree when their numbers differ by at most `tolerance` of the largest; `distinct` counts shots whose
    expected answer agrees with no other's.
    """

    source: Literal["the server, asked alone", "the package's own run"]
    tolerance: float
    shots: int
    distinct: int


class RunFigures(_Part):
    """What is printed of a run; every field follows from its samples and settings.

    `outcomes` counts requests: good (right answer in time), late, wrong, stranger (another request's answer), refused
    (429), unavailable (503), expired (504, 408), rejected (other 4xx), failed (other 5xx), other (any other status),
    unanswered, broken, unconnected, left, unfinished, and hostile (a request that had to be refused, and was).
    `offered_per_s`, `answers_per_s` (right answers) and `goodput_per_s` (right and in time) are of the run's own
    window. Percentiles are of right answers from their due time; None where the samples do not carry them.
    `within_limit` is the share of all plain requests that were answered rightly within the p99 limit, and `holds`
    whether that limit is kept at 99 % confidence; None without a limit, with too few requests, or when the generator
    did not keep up (`kept_up`, with the reason). `lateness` is the generator's own: from due to taken up.
    """

    requests: int
    outcomes: dict[str, int]
    offered_per_s: float
    answers_per_s: Estimate
    goodput_per_s: Estimate
    latency_p50_s: float | None
    percentiles: tuple[Percentile, ...]
    longest_s: float | None
    within_limit: float | None
    holds: bool | None
    lateness_p50_s: float | None
    lateness_p99_s: float | None
    waited_for_connection: int
    generator_share: float
    generator_cost_s: float
    kept_up: bool
    kept_up_reason: str | None
    warnings: tuple[str, ...]


class Run(_Part):
    """One run against one target. Times are monotonic seconds, `start_s` since the Record's start.

    `mode` open: Poisson arrivals at `rate` for `seconds`; closed: `concurrency` lanes, each asking again when answered.
    A request is good when answered rightly within `deadline_s`, or without one within `limit_s`, the p99 limit that
    `holds` judges. `round` pairs
    runs that took turns. `wall_s` and `processor_s` are the generator's. `gave_up`: the rest was not sent, for the
    limit could no longer be kept.
    """

    label: str
    target: str
    mode: Literal["open", "closed"]
    rate: float | None
    concurrency: int | None
    seconds: float
    seed: int
    deadline_s: float | None
    limit_s: float | None
    timeout_s: float
    connections_limit: int
    round: int | None
    start_s: float
    wall_s: float
    processor_s: float
    connections: int
    stopped: bool
    gave_up: bool
    samples: SampleColumns
    figures: RunFigures


class Series(_Part):
    """A quantity followed over time: values at monotonic seconds since the Record's start.

    `slope_per_s` and its interval are of a straight line (Theil and Sen) through the later two thirds; None below eight
    values.
    """

    name: str
    unit: str
    times_s: tuple[float, ...]
    values: tuple[float, ...]
    slope_per_s: Estimate | None


class Search(_Part):
    """The highest rate of a target that keeps the p99 limit: it lies between `held` and `failed`.

    `probes` are indices of runs. `held` is the highest rate below every failed one at which the limit held, `failed`
    the lowest at which it did not; None where there was none. `limited_by` says what the upper end is of.
    """

    target: str
    limit_s: float
    resolution: float
    probes: tuple[int, ...]
    held: float | None
    failed: float | None
    limited_by: Literal["server", "generator", "ceiling", "nothing held"]


class Claim(_Part):
    """A sentence that the measurement supports or not: a rule of `claims.RULES` over some runs or series.

    `value` is compared with `wanted`; `met` is None where the samples carry no value.
    """

    text: str
    rule: str
    of: tuple[str, ...]
    relation: Literal[">=", "<="]
    wanted: float
    value: float | None
    low: float | None
    high: float | None
    met: bool | None


class LoadRecord(_Part):
    """One load test, whole or cut short. `digest` is the SHA-256 of all other fields."""

    kind: Literal["loadtest"]
    schema_version: Literal[1]
    created: str
    perwatt_version: str
    commit: str | None
    command: tuple[str, ...]
    seed: int
    machine: dict[str, str]
    machine_id: str
    shared_machine: bool
    partial: bool
    partial_reason: str | None
    notes: tuple[str, ...]
    duration_s: float
    photographs: tuple[Photograph, ...]
    targets: tuple[Target, ...]
    checking: Checking | None
    runs: tuple[Run, ...]
    series: tuple[Series, ...]
    searches: tuple[Search, ...]
    claims: tuple[Claim, ...]
    digest: str


def pack(values: np.ndarray) -> Column:
    """Return whole numbers as a Column."""
    whole = np.ascontiguousarray(values, dtype="<i8")
    shuffled = whole.view(np.uint8).reshape(-1, 8).T.tobytes()
    return Column(count=len(whole), data=base64.b64encode(zlib.compress(shuffled, 6)).decode("ascii"))


def unpack(column: Column) -> np.ndarray:
    """Return the int64 numbers of a Column. Raises RecordError when its bytes are not what its count says."""
    if not 0 <= column.count <= MOST_SAMPLES:
        raise RecordError(f"column: expected 0 to {MOST_SAMPLES:,} samples, got {column.count}; take the Record again")
    wanted = 8 * column.count
    try:
        packed = base64.b64decode(column.data, validate=True)
        data = zlib.decompressobj().decompress(packed, wanted + 1)  # bounded: a hostile Record cannot fill the memory
    except (binascii.Error, zlib.error, ValueError) as error:
        raise RecordError(f"column: expected base64 of zlib, got {error}; take the Record from its source again") from (
            None
        )
    if len(data) != wanted:
        raise RecordError(
            f"column: expected {wanted} bytes for {column.count} samples, got another number; "
            "take the Record from its source again"
        )
    return np.ascontiguousarray(np.frombuffer(data, np.uint8).reshape(8, -1).T).view("<i8").reshape(-1).astype(np.int64)


def pack_samples(samples: generator.Samples) -> SampleColumns:
    """Return the samples of a run as columns, times cut to whole microseconds."""
    due, released, sent, done = (
        np.where(times < 0, -1, times // _US)
        for times in (samples.due_ns, samples.released_ns, samples.sent_ns, samples.done_ns)
    )
    return SampleColumns(
        due=pack(np.diff(due, prepend=0)),
        released=pack(_after(released, due)),
        sent=pack(_after(sent, np.where(released < 0, due, released))),
        done=pack(_after(done, _last(sent, released, due))),
        status=pack(samples.status),
        shot=pack(samples.shot),
        verdict=pack(samples.verdict),
    )


def unpack_samples(columns: SampleColumns) -> generator.Samples:
    """Return the samples of a run. Raises RecordError when the columns are damaged or of different lengths."""
    names: Mapping[str, np.ndarray] = {name: unpack(getattr(columns, name)) for name in SampleColumns.model_fields}
    if len({len(values) for values in names.values()}) > 1:
        raise RecordError("samples: expected columns of one length, got several; take the Record from its source again")
    due = np.cumsum(names["due"])
    released = _since(names["released"], due)
    sent = _since(names["sent"], np.where(released < 0, due, released))
    done = _since(names["done"], _last(sent, released, due))
    return generator.Samples(
        due * _US,
        _nanoseconds(released),
        _nanoseconds(sent),
        _nanoseconds(done),
        names["status"].astype(np.int16),
        names["shot"].astype(np.int32),
        names["verdict"].astype(np.int8),
    )


def _nanoseconds(times_us: np.ndarray) -> np.ndarray:
    return np.where(times_us < 0, -1, times_us * _US)


def _last(sent: np.ndarray, released: np.ndarray, due: np.ndarray) -> np.ndarray:
    last: np.ndarray = np.where(sent >= 0, sent, np.where(released >= 0, released, due))
    return last


def _after(times: np.ndarray, before: np.ndarray) -> np.ndarray:
    return np.where(times < 0, -1, np.maximum(times - before, 0))


def _since(after: np.ndarray, before: np.ndarray) -> np.ndarray:
    return np.where(after < 0, -1, before + after)
