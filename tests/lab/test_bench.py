"""The main job with made-up engines: whole Records, engines that fail or lie, Ctrl-C, little memory, bad requests."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from fake_engines import PROFILE, FakeLab
from PIL import Image
from small_network import small_network

from perwatt.errors import EngineError, InputError, NetworkError, OutputError
from perwatt.lab import check, conditions, figures, record_file, truth
from perwatt.lab.bench import PROFILES, BenchRequest, Progress, run_bench
from perwatt.lab.engine import Job
from perwatt.lab.process import Worker
from perwatt.lab.record import Profile, Record, Row

ENGINES = ("onnxruntime", "openvino", "ncnn")


@pytest.fixture
def request_for(tmp_path: Path):
    """Return a function that makes a request for the small network on photographs of noise."""
    onnx.save(small_network(1), tmp_path / "small.onnx")
    photos = tmp_path / "photos"
    photos.mkdir()
    generator = np.random.default_rng(3)
    for index in range(3):
        Image.fromarray(generator.integers(0, 256, (60, 70, 3), dtype=np.uint8)).save(photos / f"{index}.png")

    def make(**changes: object) -> BenchRequest:
        whole = {
            "networks": (str(tmp_path / "small.onnx"),),
            "batches": (1, 4),
            "engines": ENGINES,
            "photos": photos,
            "profile": PROFILE,
            "out": tmp_path / "out",
        }
        return BenchRequest(**{**whole, **changes})  # type: ignore[arg-type]

    return make


def silent(progress: Progress) -> None:
    assert 0 <= progress.done <= 1
    assert progress.left_s >= 0


def row(record: Record, engine: str, batch: int, precision: str = "fp32") -> Row:
    return next(r for r in record.rows if (r.engine, r.batch, r.precision) == (engine, batch, precision))


def test_a_whole_record_is_valid_and_says_what_the_engines_did(request_for, tmp_path: Path) -> None:
    lab = FakeLab()
    record = run_bench(request_for(), silent, lab)
    assert check.check(record) == []
    assert not record.partial
    assert lab.alive() == []
    for batch in (1, 4):
        fast, middle, slow = (row(record, engine, batch) for engine in ("openvino", "onnxruntime", "ncnn"))
        assert {each.status for each in (fast, middle, slow)} == {"ok"}
        assert fast.figures.images_per_s.value == pytest.approx(batch / 0.8 / 2e-4, rel=0.05)
        assert fast.figures.best_other == "onnxruntime"
        assert middle.figures.best_other == slow.figures.best_other == "openvino"
        assert fast.figures.ratio_to_best.value == pytest.approx(1.25, rel=0.05)
        assert (fast.figures.verdict, middle.figures.verdict, slow.figures.verdict) == ("faster", "slower", "slower")
        assert fast.figures.top1_agreement == 1
        assert fast.figures.relative_error == 0
        assert len(fast.blocks) == PROFILE.minimum_rounds
        assert len({sample.input for sample in fast.samples}) >= 3
        by_block: dict[int, set[int]] = {}
        for sample in fast.samples:
            by_block.setdefault(sample.block, set()).add(sample.run)
        assert any(run + 1 in runs for runs in by_block.values() for run in runs), "neighbouring runs"
    assert record.noise is not None
    assert record.noise.engine == "onnxruntime"
    assert record.noise.ratio is not None
    assert record.noise.ratio.value == pytest.approx(1, abs=0.05)
    assert record.harness_cost_s is not None
    assert [each.name for each in record.photographs] == ["0.png", "1.png", "2.png"]
    path = record_file.save(record, tmp_path / "out")
    assert record_file.load(path) == record
    assert figures.complete(record) == record


def test_blocks_alternate_and_mirror(request_for) -> None:
    record = run_bench(request_for(batches=(1,), noise=False), silent, FakeLab())
    turns = sorted((block.sequence, block.round, each.engine) for each in record.rows for block in each.blocks)
    rounds = [[engine for _, index, engine in turns if index == wanted] for wanted in range(PROFILE.minimum_rounds)]
    assert all(sorted(each) == sorted((*ENGINES, "null")) for each in rounds)
    assert all(odd == even[::-1] for even, odd in zip(rounds[::2], rounds[1::2], strict=True))


@pytest.mark.parametrize(
    ("habit", "status"),
    [("crashes", "crashed"), ("hangs", "timeout"), ("missing", "missing"), ("refused", "refused"),
     ("dies at once", "crashed")],
)  # fmt: skip
def test_an_engine_that_fails_is_a_row_and_the_others_are_whole(request_for, habit: str, status: str) -> None:
    lab = FakeLab({"openvino": habit})
    record = run_bench(request_for(batches=(1,)), silent, lab)
    assert check.check(record) == []
    assert not record.partial
    lost = row(record, "openvino", 1)
    assert lost.status == status
    assert lost.reason
    assert lost.figures.images_per_s is None
    assert bool(lost.blocks) == (habit in ("crashes", "hangs"))
    for engine in ("onnxruntime", "ncnn"):
        assert row(record, engine, 1).status == "ok"
        assert row(record, engine, 1).figures.rounds == PROFILE.minimum_rounds
        assert row(record, engine, 1).figures.best_other != "openvino"


def test_when_every_engine_fails_the_null_engine_does_not_run_out_the_time(request_for) -> None:
    lab = FakeLab(dict.fromkeys(ENGINES, "dies at once"))
    record = run_bench(request_for(batches=(1,)), silent, lab)
    assert record.duration_s < PROFILE.limit_s / 3
    assert {each.status for each in record.rows if each.engine != "null"} == {"crashed"}
    assert check.check(record) == []


@pytest.mark.parametrize(
    ("habit", "reason"),
    [("stale", "another image"), ("zeros", "the same output"), ("permuted", "another image"), ("nan", "finite"),
     ("half", "relative error"), ("flat", "shape"), ("other precision", "the engine ran bf16")],
)  # fmt: skip
def test_a_lying_engine_is_invalid_and_no_rival(request_for, habit: str, reason: str) -> None:
    record = run_bench(request_for(batches=(4,)), silent, FakeLab({"openvino": habit}))
    assert check.check(record) == []
    liar = row(record, "openvino", 4)
    assert liar.status == "invalid"
    assert reason in (liar.reason or "")
    assert liar.figures.ratio_to_best is None
    assert row(record, "ncnn", 4).figures.best_other == "onnxruntime"


def test_a_precision_an_engine_has_not_is_refused_without_starting_it(request_for) -> None:
    lab = FakeLab()
    record = run_bench(request_for(batches=(1,), precisions=("fp32", "bf16")), silent, lab)
    assert row(record, "onnxruntime", 1, "bf16").status == "refused"
    assert not any(each.engine == "onnxruntime" and each.job.precision == "bf16" for each in lab.workers)
    assert row(record, "openvino", 1, "bf16").status == "ok"
    assert check.check(record) == []


@pytest.mark.parametrize("moment", ["load ncnn", "round 3", "batch 4: load openvino"])
def test_ctrl_c_keeps_what_was_measured_as_a_valid_partial_record(request_for, moment: str) -> None:
    lab = FakeLab()

    def interrupt(progress: Progress) -> None:
        if moment in progress.text:
            raise KeyboardInterrupt

    record = run_bench(request_for(), interrupt, lab)
    assert record.partial
    assert record.partial_reason
    assert check.check(record) == []
    assert lab.alive() == []
    statuses = {(each.engine, each.batch): each.status for each in record.rows}
    assert statuses["ncnn", 4] == "interrupted"
    assert statuses["ncnn", 1] == ("interrupted" if moment == "load ncnn" else "ok")
    if moment == "round 3":
        assert row(record, "ncnn", 1).figures.rounds == 2


def test_ctrl_c_before_anything_is_ctrl_c(request_for) -> None:
    def interrupt(progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_bench(request_for(), interrupt, FakeLab())


def test_engines_that_do_not_fit_together_are_measured_in_parts(request_for, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditions, "available_memory_bytes", lambda: 0)
    lab = FakeLab()
    record = run_bench(request_for(batches=(1,), noise=False), silent, lab)
    assert check.check(record) == []
    assert any("measured in parts" in note for note in record.notes)
    common, second, third = (row(record, engine, 1) for engine in ENGINES)
    assert {each.status: each.reason for each in (common, second, third)} == {"ok": None}
    assert not {block.round for block in second.blocks} & {block.round for block in third.blocks}
    assert {block.round for block in second.blocks} < {block.round for block in common.blocks}
    assert any("not measured side by side" in warning for warning in third.figures.warnings)
    assert not any("not measured side by side" in warning for warning in second.figures.warnings)


def test_when_time_is_out_the_rest_is_skipped_and_says_so(request_for) -> None:
    short = PROFILE.model_copy(update={"limit_s": 0.0})
    record = run_bench(request_for(profile=short), silent, FakeLab())
    assert {each.status for each in record.rows} == {"skipped"}
    assert all(each.reason for each in record.rows)
    assert check.check(record) == []


@pytest.mark.alone
def test_a_network_that_is_too_large_for_the_time_still_gets_a_round(request_for) -> None:
    short = PROFILE.model_copy(update={"limit_s": 1.2, "half_width": 1e-6, "minimum_rounds": 2})
    record = run_bench(request_for(profile=short, batches=(1,)), silent, FakeLab())
    assert record.duration_s < 4
    assert all(each.figures.rounds > 2 for each in record.rows)  # it goes on until the time is out, not until precise


def test_without_a_reference_nothing_is_believed(request_for) -> None:
    record = run_bench(request_for(batches=(1,)), silent, FakeLab({"reference": "missing"}))
    assert {each.status for each in record.rows} == {"skipped"}
    assert all("no reference" in (each.reason or "") for each in record.rows)
    assert check.check(record) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"engines": ("onyx",)}, "onyx"), ({"engines": ("reference",)}, "reference"), ({"precisions": ("int3",)}, "int3"),
     ({"batches": (0,)}, "got 0"), ({"batches": ()}, "got 0"), ({"profile": "slow"}, "slow"),
     ({"networks": ()}, "none"),
     ({"networks": ("nowhere.onnx",)}, "nowhere.onnx"), ({"threads": 0}, "got 0"), ({"seed": -1}, "got -1"),
     ({"photos": Path("no-such-folder")}, "no-such-folder"), ({"device": "tpu"}, "tpu")],
)  # fmt: skip
def test_a_bad_request_is_one_line_before_anything_starts(request_for, changes, said: str) -> None:
    lab = FakeLab()
    with pytest.raises(InputError) as caught:
        run_bench(request_for(**changes), silent, lab)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert lab.workers == []


def test_a_file_that_is_no_network_is_named(request_for, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"not a network")
    with pytest.raises(NetworkError):
        run_bench(request_for(networks=(str(tmp_path / "bad.onnx"),)), silent, FakeLab())


def test_an_output_folder_that_cannot_be_written_stops_before_anything_starts(request_for, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    lab = FakeLab()
    with pytest.raises(OutputError, match="choose another folder"):
        run_bench(request_for(out=tmp_path / "file" / "out"), silent, lab)
    assert lab.workers == []


def test_the_profiles_are_ever_longer_and_quick_ends_within_five_minutes() -> None:
    quick, standard, long = (PROFILES[name] for name in ("quick", "standard", "long"))
    assert quick.limit_s < 300
    assert quick.limit_s < standard.limit_s < long.limit_s
    assert quick.half_width > standard.half_width > long.half_width


@pytest.mark.slow
def test_real_processes_that_lie_or_crash_are_caught_from_inside_the_timed_run(request_for) -> None:
    """The whole way: worker processes, timed blocks, outputs kept inside them, judgement, figures, check."""
    liars = {"openvino": "Stale", "ncnn": "Zeros", "torch": "Permuted", "perwatt": "CrashInRun"}

    def make(engine: str, job: Job, inputs_path: Path) -> Worker:
        if engine == "null":
            return Worker(engine, job, inputs_path)
        name = f"module:lying_engines:{liars.get(engine, 'Mean')}"
        return Worker(name, job, inputs_path, module_path=Path(__file__).parent)

    profile = Profile(name="trial", half_width=0.5, block_s=0.02, minimum_rounds=6, limit_s=90, load_limit_s=30)
    engines = ("onnxruntime", *liars)
    try:
        record = run_bench(request_for(batches=(4,), engines=engines, profile=profile), silent, make)
    except EngineError as error:
        pytest.fail(f"an engine's failure left its row: {error}")
    assert check.check(record) == []
    statuses = {each.engine: each.status for each in record.rows}
    assert statuses["onnxruntime"] == "ok"
    assert {statuses[engine] for engine in ("openvino", "ncnn", "torch")} == {"invalid"}
    assert statuses["perwatt"] == "crashed"
    assert record.noise is not None
    assert record.harness_cost_s is not None
    assert record.harness_cost_s < 1e-3


def test_auto_is_a_row_of_perwatts_own_and_held_to_its_coarsest_numbers(request_for) -> None:
    lab = FakeLab()
    asked = request_for(precisions=("fp32", "auto"), engines=("perwatt", "ncnn", "openvino"), batches=(1,))
    record = run_bench(asked, silent, lab)
    assert check.check(record) == []
    assert check.check(Record.model_validate_json(record.model_dump_json())) == []
    own = row(record, "perwatt", 1, "auto")
    assert (own.status, own.coarsest, row(record, "perwatt", 1).coarsest) == ("ok", "fp16", None)
    exact = row(record, "perwatt", 1).figures.tolerance
    assert own.figures.tolerance == pytest.approx(exact * truth.TOLERANCES["fp16"] / truth.TOLERANCES["fp32"])
    assert {row(record, rival, 1, "auto").reason for rival in ("ncnn", "openvino")} == {
        "auto is perwatt's own mixture of precisions"
    }
    paths = {each.job.precision: each.job.tuning_path for each in lab.workers}
    assert paths["fp32"] is None
    assert paths["auto"] is not None


def test_a_mixture_coarser_than_it_says_is_invalid(request_for) -> None:
    """Answers rounded to FP16 from an engine that says its mixture is all FP32."""
    asked = request_for(precisions=("auto",), engines=("perwatt",), batches=(1,))
    record = run_bench(asked, silent, FakeLab({"perwatt": "half"}))
    assert record.duration_s < PROFILE.limit_s / 3  # nothing is left that more rounds could make precise
    assert row(record, "perwatt", 1, "auto").status == "invalid"
    assert "the most that fp32 explains" in (row(record, "perwatt", 1, "auto").reason or "")
