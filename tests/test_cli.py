"""The command line: exit codes, one line for each mistake, JSON alone on stdout, and a quick start."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from perwatt import __version__, cli
from perwatt.graph import total_cost
from perwatt.lab import bench, figures, report
from perwatt.lab.bench import BenchRequest, Progress
from perwatt.lab.record import Record
from perwatt.lab.record_file import load, save, to_text
from perwatt.networks import NETWORKS, build
from perwatt.networks.sizes import SIZES

Make = Callable[..., Record]


@pytest.fixture
def valid(make_record: Make, tmp_path: Path) -> Path:
    """Save a Record without samples that holds together: rows that say why they are empty."""
    record = make_record()
    rows = tuple(row for row in record.rows if row.status in ("refused", "missing"))
    return save(figures.complete(make_record(rows=rows, noise=None)), tmp_path)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, make_record: Make) -> list[BenchRequest]:
    """Let bench answer at once with the made Record, and return what it was asked."""
    requests: list[BenchRequest] = []

    def answer(request: BenchRequest, progress: Callable[[Progress], None]) -> Record:
        requests.append(request)
        progress(Progress("alexnet, batch 1: load openvino fp32", 0.25, 60.0))
        progress(Progress("alexnet, batch 1: round 7", 0.5, 30.0))
        return make_record()

    monkeypatch.setattr(bench, "run_bench", answer)
    monkeypatch.setattr(report, "draw", lambda record: {})
    return requests


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 2) -> str:
    """Run a command that must fail, and return its one line."""
    assert cli.run(list(arguments)) == code
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("perwatt: ")
    assert told.err.count("\n") == 1
    return told.err


@pytest.mark.parametrize(
    ("arguments", "expected", "remedy"),
    [
        (["bench", "alexnot"], "alexnet, caffenet", "did you mean alexnet?"),
        (["bench", "missing.onnx"], "expected an ONNX file or one of", "choose among them"),
        (["bench", "lenet", "--engines", "opnvino"], "expected one of", "did you mean openvino?"),
        (["bench", "lenet", "--precision", "fp23"], "fp32, bf16, fp16", "did you mean fp32?"),
        (["bench", "lenet", "--precision", "FP32"], "fp32, bf16, fp16", "did you mean fp32?"),
        (["bench", "lenet", "--batch", "0"], "whole numbers from 1", "for example 1,48"),
        (["bench", "lenet", "--batch", "1,"], "whole numbers from 1", "for example 1,48"),
        (["bench", "lenet", "--batch", "many"], "got 'many'", "for example 1,48"),
        (["bench", "lenet", "--profile", "quik"], "quick, standard, long", "did you mean quick?"),
        (["bench", "lenet", "--device", "gpu"], "cpu, cuda", "choose among them"),
        (["bench", "lenet", "--threads", "0"], "threads", "for example"),
        (["bench", "lenet", "--p99", "5"], "p99", "add it"),
        (["bench", "lenet", "--threads", "two"], "threads", "for example"),
        (["bench", "lenet", "--photos", "/no/such/folder"], "folder with photographs", "check the path"),
        (["bench"], "networks", "perwatt --help"),
        (["bench", "lenet", "--frobnicate"], "--frobnicate", "perwatt --help"),
        (["bnech"], "bnech", "perwatt --help"),
        (["check", "/no/such/record.json"], "readable Record", "check the path"),
        (["report", "/no/such/record.json"], "readable Record", "check the path"),
        (["compare", "/no/such/a.json", "/no/such/b.json"], "readable Record", "check the path"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], expected: str, remedy: str
) -> None:
    if arguments[0] == "bench":
        arguments = [*arguments, "--out", str(tmp_path / "out")]
    told = complaint(capsys, *arguments)
    assert expected in told
    assert remedy in told


def test_an_output_folder_that_cannot_be_written_is_refused_before_measuring(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    told = complaint(capsys, "bench", "lenet", "--engines", "null", "--out", str(tmp_path / "file" / "out"))
    assert "choose another folder" in told


def test_a_file_that_is_no_network_and_a_photograph_that_is_none_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "net.onnx").write_bytes(b"this is no network")
    out = ("--out", str(tmp_path / "out"), "--engines", "null", "--profile", "quick")
    assert "net.onnx" in complaint(capsys, "bench", str(tmp_path / "net.onnx"), *out)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"this is no photograph")
    command = (sys.executable, "-m", "perwatt", "bench", "lenet", "--photos", str(tmp_path / "photos"), *out)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("perwatt: ")
    assert "cat.jpg" in last
    assert not any((tmp_path / "out").iterdir())


def test_bench_passes_on_what_was_asked(asked: list[BenchRequest], tmp_path: Path) -> None:
    assert cli.run(["bench", "lenet", "alexnet", "--out", str(tmp_path)]) == 0
    usual = asked.pop()
    assert usual.networks == ("lenet", "alexnet")
    assert (usual.batches, usual.engines, usual.threads, usual.photos) == (None, None, None, None)
    assert (usual.precisions, usual.device, usual.profile) == (("fp32", "bf16"), "cpu", "standard")
    options = ["--batch", "1, 8,1", "--precision", "fp16", "--engines", "ncnn,torch", "--profile", "quick"]
    assert (usual.meter, usual.limits) == ("auto", None)
    more = ["--seed", "5", "--threads", "3", "--photos", "pictures", "--out", str(tmp_path)]
    assert cli.run(["bench", "lenet", *options, *more]) == 0
    chosen = asked.pop()
    assert (chosen.batches, chosen.precisions, chosen.engines) == ((1, 8), ("fp16",), ("ncnn", "torch"))
    assert (chosen.profile, chosen.seed, chosen.threads, chosen.photos) == ("quick", 5, (3,), Path("pictures"))
    assert cli.run(["bench", "lenet", "--device", "cuda", "--out", str(tmp_path)]) == 0
    assert asked.pop().precisions == ("fp32", "fp16")


def test_bench_keeps_the_record_and_the_report_and_names_both(
    asked: list[BenchRequest], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["bench", "alexnet", "--out", str(tmp_path)]) == 0
    told = capsys.readouterr()
    kept = {path.suffix: path for path in tmp_path.iterdir()}
    assert set(kept) == {".json", ".html"}
    assert kept[".json"].stem == kept[".html"].stem
    assert str(kept[".html"]) in told.out
    assert "90.0 ±1.3" in told.out
    assert "load openvino" in told.err
    assert "round 7" not in told.err  # rounds are too many for a log


def test_json_stands_alone_on_stdout(
    asked: list[BenchRequest], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["bench", "alexnet", "--json", "--out", str(tmp_path)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert load(Path(told["record"])).seed == 7
    assert told["rows"][0]["figures"]["images_per_s"] == {"value": 90.0, "low": 88.65, "high": 91.08}


def test_exit_codes_of_bench(
    asked: list[BenchRequest], tmp_path: Path, make_record: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answered(record: Record) -> int:
        monkeypatch.setattr(bench, "run_bench", lambda request, progress: record)
        return cli.run(["bench", "alexnet", "--out", str(tmp_path)])

    assert answered(make_record(partial=True, partial_reason="stopped by Ctrl-C")) == 3
    failed = tuple(row for row in make_record().rows if row.status in ("refused", "invalid") or row.engine == "null")
    assert answered(make_record(rows=failed)) == 1

    def interrupted(request: BenchRequest, progress: Callable[[Progress], None]) -> Record:
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "run_bench", interrupted)
    assert cli.run(["bench", "alexnet", "--out", str(tmp_path)]) == 130


def test_a_missing_matplotlib_costs_the_report_only(
    make_record: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "run_bench", lambda request, progress: make_record())
    monkeypatch.setitem(sys.modules, "perwatt.lab.pictures", None)
    monkeypatch.delattr("perwatt.lab.pictures", raising=False)
    assert cli.run(["bench", "alexnet", "--out", str(tmp_path)]) == 0
    told = capsys.readouterr()
    assert "matplotlib" in told.err
    assert " record  " in told.out
    assert " report  " not in told.out


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["torch", "safetensors"])
def test_a_missing_package_is_told_with_what_brings_it(missing: str) -> None:
    code = (
        f"import sys; sys.modules[{missing!r}] = None; from perwatt import cli; sys.exit(cli.run(['train', 'digits']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == cli.EXIT_USER
    assert done.stderr == f"perwatt: train: expected {missing}, it is not installed; pip install 'perwatt[train]'\n"


def test_check_tells_a_whole_record_from_a_doctored_one(valid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["check", str(valid)]) == 0
    assert capsys.readouterr().out.startswith("VALID")
    doctored = load(valid).model_copy(update={"duration_s": 1.0})
    valid.write_text(to_text(doctored))
    assert cli.run(["check", str(valid)]) == 1
    assert re.match(r"INVALID  digest: printed .+, recomputed ", capsys.readouterr().out)
    assert "INVALID" in complaint(capsys, "report", str(valid))
    assert "INVALID" in complaint(capsys, "compare", str(valid), str(valid))


def test_report_writes_beside_the_record_or_where_it_is_told(
    valid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["report", str(valid)]) == 0
    assert valid.with_suffix(".html").is_file()
    assert "no bf16 kernels" in capsys.readouterr().out
    assert cli.run(["report", str(valid), "--out", str(tmp_path / "pages" / "mine.html")]) == 0
    assert (tmp_path / "pages" / "mine.html").is_file()


def test_compare_says_what_differs_and_is_no_success_without_common_rows(
    valid: Path, make_record: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = load(valid).model_copy(update={"seed": 8, "machine_id": "another"})
    other = save(figures.complete(changed), tmp_path / "other")
    assert cli.run(["compare", str(valid), str(other)]) == 1
    told = capsys.readouterr().out
    assert "the machines are unlike" in told
    assert "seed: 7 → 8" in told
    assert cli.run(["compare", str(valid), str(other), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["same_machine"] is False


def test_networks_are_listed_with_their_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(SIZES) == set(NETWORKS)
    assert cli.run(["networks"]) == 0
    told = capsys.readouterr().out
    assert re.search(r"alexnet +61 M +724 M +3×227×227 +seeded", told)
    assert re.search(r"efficientnet-lite0 .*trained", told)
    assert max(len(line) for line in told.splitlines()) <= 100
    assert cli.run(["networks", "--json"]) == 0
    listed = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    assert listed["lenet"]["parameters"] == 431_080
    assert listed["lenet"]["input"] == [1, 28, 28]


@pytest.mark.parametrize("name", ["lenet", "squeezenet1.1", "googlenet", "efficientnet-lite0"])
def test_the_sizes_are_those_of_the_small_networks(name: str) -> None:
    check_size(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["alexnet", "caffenet", "vgg16", "resnet50"])
def test_the_sizes_are_those_of_the_large_networks(name: str) -> None:
    check_size(name)


def check_size(name: str) -> None:
    graph = build(name)
    floats = sum(array.size for array in graph.constants.values() if array.dtype.kind == "f")
    assert (SIZES[name].parameters, SIZES[name].multiply_adds) == (floats, total_cost(graph).multiply_adds)


def test_doctor_answers_people_and_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["doctor"]) == 0
    told = capsys.readouterr().out
    assert "engines" in told
    assert "meters" in told
    assert cli.run(["doctor", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {"kind", "name", "usable", "text", "remedy"} == set(told["findings"][0])


@pytest.mark.parametrize("arguments", [["version"], ["--version"]])
def test_the_version_is_told(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(arguments) == 0
    assert capsys.readouterr().out == f"perwatt {__version__}\n"


def test_help_lists_every_command_and_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--help"], ["-h"]):
        assert cli.run(arguments) == 0
        told = " ".join(capsys.readouterr().out.split())
        for word in ("bench", "networks", "doctor", "report", "check", "compare", "Exit codes: 0 done; 1", "130"):
            assert word in told


@pytest.mark.parametrize(
    "code",
    ["import perwatt", "import perwatt.cli", "from perwatt import cli; cli.run(['--help'])"],
)
def test_nothing_heavy_is_loaded_at_the_start(code: str) -> None:
    command = [sys.executable, "-c", f"import sys; {code}; print(*sys.modules, sep='\\n', file=sys.stderr)"]
    loaded = set(subprocess.run(command, capture_output=True, text=True, check=True).stderr.split())
    heavy = {"onnx", "llvmlite", "torch", "numpy", "pydantic", "PIL", "matplotlib", "onnxruntime", "psutil"}
    if code == "import perwatt":
        heavy |= {"typer", "rich", "perwatt.lab", "perwatt.graph"}
    assert not loaded & heavy


@pytest.mark.slow
def test_from_bench_to_check_report_and_compare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    short = bench.PROFILES["quick"].model_copy(
        update={"half_width": 10.0, "block_s": 0.02, "minimum_rounds": 2, "limit_s": 60.0}
    )
    monkeypatch.setattr(bench, "PROFILES", {"quick": short})
    options = ("--batch", "1,2", "--precision", "fp32", "--engines", "onnxruntime", "--profile", "quick", "--json")
    assert cli.run(["bench", "lenet", *options, "--out", str(tmp_path)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [(row["batch"], row["status"]) for row in told["rows"]] == [(1, "ok"), (2, "ok")]
    assert Path(told["report"]).is_file()
    assert (tmp_path / f"{Path(told['report']).stem}-bars.svg").is_file()
    assert cli.run(["check", told["record"]]) == 0
    assert cli.run(["report", told["record"], "--out", str(tmp_path / "again.html")]) == 0
    assert (tmp_path / "again.html").read_text() == Path(told["report"]).read_text()
    assert cli.run(["compare", told["record"], told["record"]]) == 0
    assert "no difference seen" in capsys.readouterr().out


def test_explain_prints_each_stage_and_times_steps(capsys: pytest.CaptureFixture[str]) -> None:
    wanted = {"graph": "Conv(", "passes": "FusedConv(", "plan": "not direct", "code": "convolution_"}
    for stage, word in wanted.items():
        assert cli.run(["explain", "lenet", "--stop", stage]) == cli.EXIT_OK
        assert word in capsys.readouterr().out
    assert cli.run(["explain", "lenet", "--stop", "assembly"]) == cli.EXIT_USER
    assert "expected one of graph, passes, plan, code" in capsys.readouterr().err


@pytest.mark.slow
def test_tune_keeps_results_that_the_next_start_uses(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PERWATT_CACHE", str(tmp_path))
    assert cli.run(["tune", "lenet", "--batch", "2", "--workspace", "64MiB"]) == cli.EXIT_OK
    assert "batch 2" in capsys.readouterr().out
    assert list((tmp_path / "tuning").glob("*.json"))
    assert cli.run(["explain", "lenet", "--batch", "2"]) == cli.EXIT_OK
    assert "measured" in capsys.readouterr().out
    assert cli.run(["explain", "lenet", "--time", "--json"]) == cli.EXIT_OK
    rows = json.loads(capsys.readouterr().out)
    assert {"seconds", "gflops", "peak_share", "bandwidth_share", "algorithm"} <= set(rows[0])
    assert sum(row["share"] for row in rows) == pytest.approx(1)


def test_a_workspace_limit_is_a_size(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["tune", "lenet", "--workspace", "many"]) == cli.EXIT_USER
    assert "such as 256MiB" in capsys.readouterr().err


def test_minutes_bound_a_profile(asked: list[BenchRequest], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.run(["bench", "lenet", "--profile", "quick", "--minutes", "1.5", "--out", str(tmp_path)]) in (0, 1)
    profile = asked[0].profile
    assert not isinstance(profile, str)
    assert (profile.name, profile.limit_s) == ("quick", 90)
    assert cli.run(["bench", "lenet", "--minutes", "0"]) == cli.EXIT_USER
    assert "minutes: expected a number" in capsys.readouterr().err
