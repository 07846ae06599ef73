"""Records of load tests: figures against plain arithmetic, the check against tampering, searches against a queue."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from perwatt.errors import RecordError
from perwatt.lab.load import claims, figures, pictures, terminal
from perwatt.lab.load.check import check
from perwatt.lab.load.generator import BROKEN, RIGHT, STRANGER, UNANSWERED, UNFINISHED, WRONG, Samples
from perwatt.lab.load.record import (
    LoadRecord,
    Run,
    RunFigures,
    Series,
    ShotFacts,
    Target,
    pack,
    pack_samples,
    unpack,
    unpack_samples,
)
from perwatt.lab.load.record_file import load, save, schema
from perwatt.lab.load.runs import Bench, Settings
from perwatt.lab.load.schedule import poisson
from perwatt.lab.load.search import RESOLUTION, find_max
from perwatt.lab.load.trend import slope
from perwatt.lab.record_file import load as load_bench
from perwatt.lab.terminal import console

MS = 1_000_000
SHOTS = (
    ShotFacts(name="cat.jpg", model="cat", bytes=1000, expects=(200,), behaviour="plain"),
    ShotFacts(name="dog.jpg", model="cat", bytes=1000, expects=(200,), behaviour="plain"),
    ShotFacts(name="broken.jpg", model="cat", bytes=10, expects=(400, 415, 422), behaviour="plain"),
)
TARGET = Target(
    name="server", url="http://127.0.0.1:8000", server="tiny 1", payload="photographs", options={}, shots=SHOTS
)


def samples(rate: float, settings: Settings, service_s: float = 0.001, **changes: Any) -> Samples:
    """Return what a server does that takes one request at a time, each for `service_s`."""
    schedule = poisson(rate, settings.seconds, (1.0,), settings.seed)
    due, count = schedule.due_ns, len(schedule.due_ns)
    # Each begins when it is due or when the one before is done (Lindley's recursion, unrolled).
    step = service_s * 1e9 * np.arange(count)
    done = np.maximum.accumulate(due - step) + step + service_s * 1e9
    made = Samples(
        due_ns=due,
        released_ns=due + 20_000,
        sent_ns=due + 30_000,
        done_ns=done.astype(np.int64) + 30_000,
        status=np.full(count, 200, np.int16),
        shot=(np.arange(count) % 2).astype(np.int32),
        verdict=np.full(count, RIGHT, np.int8),
    )
    return replace(made, **changes)


def run(made: Samples, settings: Settings, rate: float | None, **changes: Any) -> Run:
    whole = Run(
        label="open loop",
        target="server",
        mode="open" if rate is not None else "closed",
        rate=rate,
        concurrency=None if rate is not None else 4,
        seconds=settings.seconds,
        seed=settings.seed,
        deadline_s=settings.deadline_s,
        limit_s=settings.limit_s,
        timeout_s=10.0,
        connections_limit=1024,
        round=None,
        start_s=1.0,
        wall_s=max(settings.seconds, float(made.done_ns.max()) * 1e-9) + 0.1,
        processor_s=0.1,
        connections=3,
        stopped=False,
        gave_up=False,
        samples=pack_samples(made),
        figures=RunFigures.model_construct(),
    ).model_copy(update=changes)
    return whole.model_copy(update={"figures": figures.figures_of(whole, SHOTS)})


@pytest.fixture
def bench() -> Bench:
    return Bench(seed=1, report=lambda progress: None, targets=[TARGET])


SETTINGS = Settings(seconds=10.0, seed=5, limit_s=0.05)


@given(hnp.arrays(np.int64, st.integers(0, 50), elements=st.integers(-(2**62), 2**62)))
def test_columns_keep_their_numbers(values: np.ndarray) -> None:
    assert np.array_equal(unpack(pack(values)), values)


def test_samples_keep_their_microseconds_and_what_never_happened() -> None:
    made = Samples(
        due_ns=np.asarray([1_234_567, 5_000_999, 9_000_000, 9_500_000]),
        released_ns=np.asarray([1_300_000, 5_001_000, 9_000_500, -1]),
        sent_ns=np.asarray([1_400_000, -1, 9_100_000, -1]),
        done_ns=np.asarray([2_000_000, 9_000_000, -1, -1]),
        status=np.asarray([200, UNANSWERED, UNFINISHED, UNFINISHED], np.int16),
        shot=np.asarray([0, 1, 0, 1], np.int32),
        verdict=np.asarray([RIGHT, 0, 0, 0], np.int8),
    )
    kept = unpack_samples(pack_samples(made))
    for name in ("due_ns", "released_ns", "sent_ns", "done_ns"):
        wanted = getattr(made, name)
        assert np.array_equal(getattr(kept, name), np.where(wanted < 0, -1, wanted // 1000 * 1000)), name
    assert np.array_equal(kept.status, made.status)


def test_damaged_columns_are_refused() -> None:
    column = pack(np.arange(5))
    for broken in (
        column.model_copy(update={"count": 6}),
        column.model_copy(update={"count": -1}),
        column.model_copy(update={"data": "!!"}),
        column.model_copy(update={"data": column.data[:-8]}),
    ):
        with pytest.raises(RecordError):
            unpack(broken)


def test_outcomes_are_counted_once_and_by_the_expectation_of_each_shot() -> None:
    status = [200, 200, 200, 200, 429, 503, 504, 408, 404, 500, 302, UNANSWERED, BROKEN, 422, 200, 500]
    count = len(status)
    done = np.full(count, 10 * MS)
    done[1] = 80 * MS
    made = Samples(
        *(np.arange(count, dtype=np.int64) for _ in range(3)),
        done,
        np.asarray(status, np.int16),
        np.asarray([0] * 13 + [2, 2, 2], np.int32),
        np.asarray([RIGHT, RIGHT, WRONG, STRANGER] + [0] * 12, np.int8),
    )
    names = [figures.OUTCOMES[number] for number in figures.outcomes(made, SHOTS, 0.05)]
    assert names == [
        "good", "late", "wrong", "stranger", "refused", "unavailable", "expired", "expired", "rejected", "failed",
        "other", "unanswered", "broken", "hostile", "wrong", "failed",
    ]  # fmt: skip


def test_figures_follow_from_the_samples(bench: Bench) -> None:
    made = samples(300, SETTINGS)
    found = run(made, SETTINGS, 300).figures
    latency = np.sort((made.done_ns // 1000 - made.due_ns // 1000) * 1e-6)
    assert found.requests == len(latency) == found.outcomes["good"]
    assert found.latency_p50_s == pytest.approx(float(np.median(latency)))
    assert found.longest_s == pytest.approx(latency[-1])
    bounds = {each.percentile: each.latency_s for each in found.percentiles}
    assert set(bounds) == {90.0, 95.0, 99.0}  # 3000 requests do not carry a p99.9
    assert bounds[99.0] >= np.percentile(latency, 99)  # never a flattering one
    assert found.holds
    assert found.within_limit == 1
    rate = found.answers_per_s
    assert rate.value == pytest.approx(len(latency) / 10, rel=0.01)
    assert rate.low is not None and rate.high is not None and rate.low < 300 < rate.high  # noqa: PT018


@pytest.mark.parametrize(("failing", "holds"), [(0, True), (15, True), (29, False), (60, False)])
def test_failures_count_as_over_the_limit(failing: int, holds: bool) -> None:
    made = samples(300, SETTINGS)
    status = made.status.copy()
    status[np.random.RandomState(0).choice(len(status), failing, replace=False)] = 429
    assert run(replace(made, status=status), SETTINGS, 300).figures.holds is holds


def test_too_few_requests_show_nothing_and_many_failures_show_enough() -> None:
    short = Settings(seconds=1.0, seed=5, limit_s=0.05)
    made = samples(100, short)
    assert run(made, short, 100).figures.holds is None
    failing = replace(made, status=np.full(len(made.status), 503, np.int16))
    assert run(failing, short, 100).figures.holds is False


def test_nothing_is_concluded_when_the_generator_was_late() -> None:
    made = samples(300, SETTINGS)
    assert run(made, SETTINGS, 300).figures.kept_up
    shifted = (made.due_ns > 4e9) & (made.due_ns < 4.5e9)  # it stood still for half a second of ten
    late = np.where(shifted, int(4.5e9) - made.due_ns, 0)
    moved = replace(made, released_ns=made.released_ns + late, sent_ns=made.sent_ns + late, done_ns=made.done_ns + late)
    found = run(moved, SETTINGS, 300).figures
    assert not found.kept_up
    assert found.kept_up_reason is not None
    assert (found.holds, found.latency_p50_s, found.percentiles) == (None, None, ())
    # The same latencies, but requests were sent in time: the server's own fault.
    found = run(replace(made, done_ns=made.done_ns + late), SETTINGS, 300).figures
    assert found.kept_up
    assert found.holds is False
    busy = run(made, SETTINGS, 300, processor_s=9.9).figures
    assert not busy.kept_up


@pytest.fixture
def record(bench: Bench) -> LoadRecord:
    brief = replace(SETTINGS, seconds=3.0)
    bench.runs.append(run(samples(300, brief), brief, 300))
    times = tuple(float(second) for second in range(20))
    bench.series.append(Series(name="memory", unit="bytes", times_s=times, values=(1e8,) * 20, slope_per_s=None))
    bench.claims.append(claims.claim("memory stays flat", "growth in ten minutes", ["memory"], "<=", 0.02))
    bench.claims.append(claims.claim("fast enough", "answers per second", ["open loop"], ">=", 250))
    bench.claims.append(claims.claim("never so", "answers per second", ["no such run"], ">=", 250))
    return bench.record()


def test_a_record_is_valid_and_survives_its_file(record: LoadRecord, tmp_path: Path) -> None:
    assert check(record) == []
    path = save(record, tmp_path)
    assert load(path) == record
    assert [claim.met for claim in record.claims] == [True, True, None]
    assert json.loads(path.read_text())["kind"] == "loadtest"
    assert schema()["title"] == "LoadRecord"
    with pytest.raises(RecordError, match="perwatt check reads every kind"):
        load_bench(path)


def _leaves(value: Any, where: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, dict):
        return [leaf for key, inner in value.items() for leaf in _leaves(inner, (*where, key))]
    if isinstance(value, list):
        return [leaf for key, inner in enumerate(value) for leaf in _leaves(inner, (*where, key))]
    return [where]


def test_whatever_is_changed_is_found(record: LoadRecord) -> None:
    whole = record.model_dump(mode="json")
    changed = 0
    for where in _leaves(whole):
        fields = json.loads(json.dumps(whole))
        inner = fields
        for key in where[:-1]:
            inner = inner[key]
        value = inner[where[-1]]
        if where[-1] in ("data", "kind", "schema_version", "limited_by") or (isinstance(value, str) and len(where) > 2):
            continue  # damaged columns and words of the schema are refused when the file is read
        inner[where[-1]] = (
            not value if isinstance(value, bool) else value * 1.5 + 1 if isinstance(value, int | float)
            else f"{value}?"
        )  # fmt: skip
        if isinstance(value, int) and not isinstance(value, bool):
            inner[where[-1]] = int(inner[where[-1]])
        try:
            assert check(LoadRecord.model_validate(fields)), where
        except (ValueError, RecordError):
            continue
        finally:
            changed += 1
    assert changed > 60


def test_chosen_arrivals_and_impossible_times_are_found(record: LoadRecord) -> None:
    only = record.runs[0]
    made = unpack_samples(only.samples)
    kept = np.arange(len(made.due_ns)) % 50 != 0  # without those that were slow, say

    def tampered(changed: Samples) -> list[str]:
        changed_run = only.model_copy(update={"samples": pack_samples(changed)})
        changed_run = changed_run.model_copy(update={"figures": figures.figures_of(changed_run, SHOTS)})
        return [str(fault) for fault in check(figures.complete(record.model_copy(update={"runs": (changed_run,)})))]

    fewer = Samples(**{name: getattr(made, name)[kept] for name in made.__dataclass_fields__})
    assert "the seed draws" in tampered(fewer)[0]
    assert any("status" in fault for fault in tampered(replace(made, status=np.full(len(kept), 42, np.int16))))
    assert tampered(replace(made, done_ns=made.done_ns + int(1e11)))
    assert tampered(made) == []


@pytest.mark.slow
def test_a_search_finds_the_rate_of_a_known_queue(bench: Bench) -> None:
    service_s, limit_s = 0.01, 0.06
    # The truth, by the same queue for half an hour: the rate at which p99 reaches the limit.
    low, high = 10.0, 100.0
    for _ in range(12):
        middle = (low + high) / 2
        made = samples(middle, Settings(seconds=2000, seed=99), service_s)
        over = np.percentile((made.done_ns - made.due_ns) * 1e-9, 99) > limit_s
        low, high = (low, middle) if over else (middle, high)

    def send(settings: Settings, rate: float, label: str, _: Any) -> Run:
        bench.runs.append(run(samples(rate, settings, service_s), settings, rate, label=label))
        return bench.runs[-1]

    def saturate(settings: Settings, lanes: int) -> Run:
        closed = samples(1 / service_s, settings, service_s)
        bench.runs.append(run(closed, settings, None, label="saturation"))
        return bench.runs[-1]

    found = find_max(bench, "server", Settings(seconds=60, seed=1, limit_s=limit_s), send, saturate, rest_s=0)
    assert found.limited_by == "server"
    assert found.held is not None
    assert found.failed is not None
    assert found.failed <= found.held * (1 + RESOLUTION)
    # A bound at 99 % confidence errs downwards; a minute of a queue near its limit is noisy.
    assert 0.85 * low <= found.held <= 1.05 * low
    assert len(found.probes) <= 8
    record = bench.record()
    assert check(record) == []
    names = pictures.draw(record)
    assert set(names) == {"latency over time", "latency distribution", "rate against goodput"}


def test_a_generator_at_its_end_is_not_the_servers_limit(bench: Bench) -> None:
    def send(settings: Settings, rate: float, label: str, _: Any) -> Run:
        busy = 0.95 if rate > 400 else 0.3
        made = run(samples(rate, settings, 1e-4), settings, rate, label=label)
        made = made.model_copy(update={"processor_s": busy * made.wall_s})
        bench.runs.append(made.model_copy(update={"figures": figures.figures_of(made, SHOTS)}))
        return bench.runs[-1]

    def saturate(settings: Settings, lanes: int) -> Run:
        bench.runs.append(run(samples(300, settings, 1e-4), settings, None))
        return bench.runs[-1]

    found = find_max(bench, "server", Settings(seconds=4, seed=1, limit_s=0.05), send, saturate, rest_s=0)
    assert found.limited_by == "generator"
    assert found.failed is None
    assert found.held is not None
    assert 350 < found.held <= 400
    assert "generator could not keep up" in terminal.search_text(found)


def test_the_slope_of_a_leak_is_seen_and_noise_is_none() -> None:
    random = np.random.RandomState(3)
    times = np.arange(0, 600, 2.0)
    noise = random.normal(0, 1e5, len(times))
    grown = 1e8 + 2e4 * times + noise + 5e7 * np.exp(-times / 20)  # warming up is no leak
    leak = slope(times.tolist(), grown.tolist())
    assert leak is not None and leak.low is not None and leak.high is not None  # noqa: PT018
    assert leak.low < 2e4 < leak.high
    assert leak.low > 1e4
    flat = slope(times.tolist(), (1e8 + noise).tolist())
    assert flat is not None and flat.low is not None and flat.high is not None  # noqa: PT018
    assert flat.low < 0 < flat.high
    assert slope([0.0] * 5, [1.0] * 5) is None


def test_recovery_is_counted_from_the_end_of_the_overload(bench: Bench) -> None:
    overload = Settings(seconds=10, seed=1, limit_s=0.05)
    bench.runs.append(run(samples(300, overload), overload, 300, label="overload"))
    after = Settings(seconds=10, seed=2, limit_s=0.05)
    made = samples(100, after)
    slow = made.due_ns < 1.5e9  # for the first second and a half answers are still late
    made = replace(made, done_ns=made.done_ns + np.where(slow, 100 * MS, 0))
    bench.runs.append(run(made, after, 100, label="after", start_s=11.2))
    bench.claims.append(claims.claim("recovers", "recovery", ["overload", "after"], "<=", 2.0))
    (judged,) = bench.record().claims
    assert judged.value == pytest.approx(0.2 + 1.5, abs=0.05)
    assert judged.met


def test_paired_rounds_make_a_ratio_with_an_interval(bench: Bench) -> None:
    for number in range(6):
        for label, rate in (("ours", 200.0), ("theirs", 100.0)):
            settings = Settings(seconds=20, seed=number, round=number)
            made = run(samples(rate, settings), settings, rate, label=label, round=number)
            bench.runs.append(made)
    bench.claims.append(claims.claim("twice as fast", "ratio of rates", ["ours", "theirs"], ">=", 1.5))
    (judged,) = bench.record().claims
    assert judged.value == pytest.approx(2.0, rel=0.1)
    assert judged.low is not None
    assert 1.5 < judged.low < 2.0 < (judged.high or 0) < 2.6


def test_every_figure_can_be_shown(record: LoadRecord, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    terminal.show(record, console())
    told = capsys.readouterr().out
    assert "holds" in told
    assert "yes  memory stays flat: 0 (0 to 0), wanted at most 0.0200" in told
    assert max(map(len, told.splitlines())) <= 100
    json.dumps(terminal.as_json(record, None, ()), allow_nan=False)
    written = pictures.write(record, tmp_path / "a.json")
    assert {path.suffix for path in written} == {".svg", ".png"}
    assert all(path.stat().st_size > 1000 for path in written)


def test_nothing_infinite_reaches_a_record(bench: Bench) -> None:
    made = samples(300, SETTINGS)
    bench.runs.append(run(replace(made, status=np.full(len(made.status), BROKEN, np.int16)), SETTINGS, 300))
    record = bench.record()
    assert check(record) == []
    assert record.runs[0].figures.answers_per_s.value == 0
    assert not math.isinf(record.runs[0].figures.within_limit or 0.0)
