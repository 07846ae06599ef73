"""What a person sees of energy: table, footer, choice, report, comparison; and the GPU path with a made-up NVML."""

import io
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_engines import PROFILE
from known_meters import IDLE_W, KnownMeter, MeteredLab, measured, meter, opened, subject
from rich.console import Console

from perwatt import cli
from perwatt.lab import check, comparison, metering, report, terminal
from perwatt.lab.bench import BenchRequest, run_bench
from perwatt.lab.best import LEAST_LATENCY, MOST_PER_WATT, MOST_SPEED, best_of, obstacle
from perwatt.lab.compare import compare
from perwatt.lab.meters.meter import Host
from perwatt.lab.process import BlockRequest, BlockResult
from perwatt.lab.record import Limits, Percentile, Record
from perwatt.lab.virtual.sensors import FakeNvml

LIMITS = Limits(p99_s=None, top1_agreement=0.99)


def printed(record: Record) -> str:
    stream = io.StringIO()
    terminal.show(record, Console(file=stream, width=100, highlight=False))
    return stream.getvalue()


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    lab = MeteredLab()
    return measured(tmp_path_factory.mktemp("measured"), lab, KnownMeter(lab), batches=(1, 4), limits=LIMITS)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Record:
    return measured(tmp_path_factory.mktemp("bare"), MeteredLab(), limits=LIMITS)


def test_the_energy_table_fits_and_says_what_the_watts_are_of(record: Record) -> None:
    text = printed(record)
    assert max(len(line) for line in text.splitlines()) <= 100
    assert "…" not in text
    assert re.search(r"images/s +W +images/s/W +J/image +above idle", text)
    assert "watts of package, read by virtual in the same blocks" in text
    assert re.search(r"ncnn +[\d,.]+ ±[\d,.]+ +60.0 ±1.\d +[\d,.]+ ±[\d.]+ +0.0\d+ ±0.0\d+ +0.0\d+ ±0.0\d+", text)
    flat = " ".join(text.split())
    for words in ("meter virtual: package; power of the inside of each block", "not in these watts memory",
                  f"small 1: {IDLE_W:.1f} ±0.", "noise floor of images/s/W", "all readings alike: ±2 %"):  # fmt: skip
        assert words in flat


def test_without_a_meter_there_are_no_columns_but_a_reason_and_a_command(bare: Record) -> None:
    text = printed(bare)
    assert "images/s/W  " not in text
    flat = " ".join(text.split())
    assert "energy not measured: this machine shows no meter; to enable one: sudo modprobe intel_rapl_msr" in flat
    assert "most images/s/W: none: this machine shows no meter" in flat


def test_the_choice_names_a_setting_for_each_goal(record: Record) -> None:
    (best,) = best_of(record)
    picks = {pick.goal: pick for pick in best.picks}
    assert picks[MOST_SPEED].row.engine == "openvino"
    assert picks[MOST_SPEED].row.batch == 4
    soonest = picks[LEAST_LATENCY]  # the made-up engines take as long for four images as for one
    assert {(row.engine, row.batch) for row in (soonest.row, *soonest.tied)} == {("openvino", 1), ("openvino", 4)}
    assert picks[MOST_PER_WATT].row.engine == "onnxruntime"
    assert picks[MOST_PER_WATT].scope == "package"
    assert {row.engine for row in best.frontier} == {"openvino", "onnxruntime"}
    told = json.loads(json.dumps(terminal.as_json(record, None, None), allow_nan=False))
    assert [pick["goal"] for pick in told["best"][0]["picks"]] == [MOST_SPEED, LEAST_LATENCY, MOST_PER_WATT]
    assert told["energy"]["meters"][0]["scope"] == "package"
    assert "best settings for small (top-1 agreement at least 99 %)" in printed(record)


def test_limits_leave_out_what_does_not_show_that_it_keeps_them(record: Record) -> None:
    row = next(row for row in record.rows if row.engine == "ncnn")
    unlimited = Limits(p99_s=None, top1_agreement=None)
    assert obstacle(row, unlimited) is None
    assert "p99 not shown" in obstacle(row, Limits(p99_s=1.0, top1_agreement=None))
    assert "p99 above" in obstacle(row, Limits(p99_s=1e-5, top1_agreement=None))
    shown = row.figures.model_copy(update={"percentiles": (Percentile(percentile=99.0, latency_s=0.004),)})
    carried = row.model_copy(update={"figures": shown})
    assert obstacle(carried, Limits(p99_s=0.005, top1_agreement=None)) is None
    assert "p99 above 3.00 ms" in obstacle(carried, Limits(p99_s=0.003, top1_agreement=None))
    wrong = row.model_copy(update={"figures": row.figures.model_copy(update={"top1_agreement": 0.9})})
    assert "agreement below 95 %" in obstacle(wrong, Limits(p99_s=None, top1_agreement=0.95))
    nothing = record.model_copy(update={"limits": Limits(p99_s=1e-9, top1_agreement=None)})
    assert {pick.row for pick in best_of(nothing)[0].picks} == {None}


@pytest.mark.slow
def test_the_report_draws_energy_and_the_frontier(record: Record, bare: Record) -> None:
    drawn = report.draw(record)
    assert "frontier" in drawn
    assert "images/s/W (package)" in drawn["bars"][0]
    page = report.page(record, {name: vector for name, (vector, _) in drawn.items()})
    for words in ("<h2>Energy</h2>", "Images per joule against images per second", "The choice", "package",
                  "Only rows of one scope may be compared"):  # fmt: skip
        assert words in page
    assert "frontier" not in report.draw(bare)
    assert ">frontier<" in report.draw(bare)["latency"][0]
    assert "to enable one: sudo modprobe" in report.page(bare, {})


def test_published_watts_stand_beside_todays_as_not_comparable(record: Record) -> None:
    renamed = tuple(row.model_copy(update={"network": "alexnet"}) for row in record.rows)
    page = report.page(record.model_copy(update={"rows": renamed}), {})
    assert "images/s/W, then and now: not comparable" in page
    assert page.index("2015, Tegra X1") < page.index("today, openvino")
    assert "package (virtual)" in page


def test_records_of_one_scope_are_compared_and_of_unlike_scopes_never(record: Record, tmp_path: Path) -> None:
    def again(**changes: Any) -> Record:
        lab = MeteredLab()
        return measured(tmp_path / str(len(changes)), lab, KnownMeter(lab, meter(**changes)), batches=(1, 4))

    same = compare(record, again())
    assert {row.energy.verdict for row in same.rows} == {"no difference seen"}
    assert all(row.energy.ratio.value == pytest.approx(1, abs=0.05) for row in same.rows)
    other = compare(record, again(scope="wall", name="wall"))
    assert {row.energy.verdict for row in other.rows} == {"not comparable"}
    assert {row.energy.ratio for row in other.rows} == {None}
    assert "unlike scopes: virtual counts package, wall counts wall" in " ".join(comparison.remarks(other))
    assert all(row.ratio is not None for row in other.rows), "the speeds are compared all the same"
    stream = io.StringIO()
    comparison.show_comparison(other, Console(file=stream, width=100))
    assert "not comparable" in stream.getvalue()


def test_bench_passes_on_meter_and_limits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bare: Record) -> None:
    asked: list[BenchRequest] = []

    def bench(request: BenchRequest, progress: Callable[[Any], None]) -> Record:
        asked.append(request)
        return bare

    monkeypatch.setattr("perwatt.lab.bench.run_bench", bench)
    monkeypatch.setattr("perwatt.lab.report.write", lambda record, path: (path,))
    options = ["--meter", "none", "--best", "--p99", "7.5", "--agreement", "99", "--threads", "1,2"]
    assert cli.run(["bench", "lenet", "--out", str(tmp_path), *options]) == 0
    request = asked.pop()
    assert (request.meter, request.threads) == ("none", (1, 2))
    assert request.limits == Limits(p99_s=0.0075, top1_agreement=0.99)


def test_a_meter_that_is_not_there_is_one_line_before_anything_starts(tmp_path: Path) -> None:
    lab = MeteredLab()
    request = BenchRequest(networks=(str(subject(tmp_path)),), photos=tmp_path, out=tmp_path, meter="nvml:7")
    with pytest.raises(Exception, match="nvml:7"):
        run_bench(request, lambda _: None, lab, lambda asked, device: metering.open_for(asked, device, Host(tmp_path)))
    assert lab.workers == []
    assert opened(asked="none").meters == ()


class LongLab(MeteredLab):
    """A MeteredLab whose blocks last as long as they are asked to, as a real engine's do."""

    def __call__(self, engine: str, job: Any, inputs_path: Path) -> Any:
        worker = super().__call__(engine, job, inputs_path)
        block = worker.block

        def long(plan: BlockRequest, timeout_s: float | None = None) -> BlockResult:
            whole = block(plan, timeout_s)
            durations, end = list(whole.durations_ns), whole.end_ns
            while engine not in ("null", "reference") and (end - whole.start_ns) * 1e-9 < plan.seconds:
                more = block(BlockRequest(0.0, 4, 4, plan.first_input, (), 0), timeout_s)
                durations += more.durations_ns
                end = more.end_ns
            return BlockResult(tuple(durations), whole.start_ns, end, whole.outputs, whole.inputs)

        worker.block = long
        return worker


@pytest.mark.slow
def test_a_gpu_row_gets_its_watts_from_nvml_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole path of `--device cuda` but the GPU: NVML's counter, 100 ms steps, and a made-up engine."""
    monkeypatch.setattr("known_meters.WATTS", {"torch-cuda": 300.0})
    lab = LongLab()
    zero = time.perf_counter_ns()
    known = KnownMeter(lab)

    def counter() -> float:
        now = time.perf_counter_ns()
        updated = zero + (now - zero) // 100_000_000 * 100_000_000
        return 1e4 + known.energy(zero, updated).joules if updated > zero else 1e4

    host = Host(root=tmp_path / "root", library={"pynvml": FakeNvml([("NVIDIA L4", 8, counter, None)])}.get)
    profile = PROFILE.model_copy(update={"limit_s": 18.0, "minimum_rounds": 4})
    request = BenchRequest(
        networks=(str(subject(tmp_path)),), batches=(4,), engines=("torch-cuda",), photos=tmp_path, profile=profile,
        out=tmp_path, device="cuda", noise=False,
    )  # fmt: skip
    record = run_bench(request, lambda _: None, lab, lambda asked, device: metering.open_for(asked, device, host))
    assert check.check(record) == []
    (facts,) = record.energy.meters
    assert (facts.name, facts.scope, facts.devices) == ("nvml:0", "gpu", ("cuda",))
    assert "the host" in facts.leaves_out
    found = next(row for row in record.rows if row.engine == "torch-cuda").figures.energy
    assert found.reason is None
    busy = [end - start for start, end, engine in lab.work if engine == "torch-cuda"]
    assert busy
    assert found.power_w.low < IDLE_W + 300 < found.power_w.high
    assert found.idle_w.low < IDLE_W < found.idle_w.high
    assert any("to suit nvml:0" in note for note in record.notes)
