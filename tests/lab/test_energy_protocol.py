"""Energy from the same blocks as the speed, with made-up engines and meters whose true joules are known."""

from pathlib import Path

import pytest
from fake_engines import PROFILE
from known_meters import ENGINES, IDLE_W, WATTS, KnownMeter, MeteredLab, measured, meter

from perwatt.lab import check, figures, metering, record_file
from perwatt.lab.bench import Progress
from perwatt.lab.record import EnergyFigures, Record, Row


def row(record: Record, engine: str) -> Row:
    return next(each for each in record.rows if each.engine == engine)


def energy(record: Record, engine: str) -> EnergyFigures:
    found = row(record, engine).figures.energy
    assert found is not None
    return found


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    lab = MeteredLab()
    known = KnownMeter(lab)
    made = measured(tmp_path_factory.mktemp("measured"), lab, known)
    assert known.closed
    return made


def test_watts_and_joules_are_those_of_the_same_blocks(record: Record, tmp_path: Path) -> None:
    assert check.check(record) == []
    for engine in ENGINES:
        found, speed = energy(record, engine), row(record, engine).figures.images_per_s
        watts = IDLE_W + WATTS[engine]
        assert found.reason is None
        assert (found.meter, found.scope) == ("virtual", "package")
        assert found.power_w.value == pytest.approx(watts, rel=1e-6)
        assert found.joules_per_image.value == pytest.approx(watts / speed.value, rel=0.03)
        assert found.images_per_joule.value == pytest.approx(1 / found.joules_per_image.value, rel=1e-9)
        assert found.idle_w.value == pytest.approx(IDLE_W, rel=1e-6)
        assert found.above_idle_joules_per_image.value == pytest.approx(WATTS[engine] / speed.value, rel=0.03)
        for estimate in (found.power_w, found.joules_per_image, found.idle_w, found.above_idle_joules_per_image):
            half = (estimate.high - estimate.low) / 2 / estimate.value
            assert half > 0.0199, "never surer than the meter's gain"
            assert half < 0.12
    assert row(record, "null").figures.energy is None
    assert not any(block.energy for block in row(record, "null").blocks)
    loaded = record_file.load(record_file.save(record, tmp_path))
    assert loaded == record
    assert figures.complete(loaded) == record


def test_the_fastest_need_not_be_the_most_frugal(record: Record) -> None:
    # Per image: onnxruntime 80 W x 1.0, openvino 110 W x 0.8, ncnn 60 W x 1.6.
    assert row(record, "openvino").figures.verdict == "faster"
    best = energy(record, "onnxruntime")
    assert (best.best_other, best.verdict) == ("openvino", "more")
    assert best.ratio_to_best.value == pytest.approx(110 * 0.8 / 80, rel=0.03)
    assert energy(record, "openvino").verdict == "less"
    assert record.noise.energy_ratio.value == pytest.approx(1, abs=0.03)
    assert record.noise.energy_floor is not None


def test_idle_is_read_before_and_after_and_never_during_a_block(record: Record) -> None:
    idle = record.energy.idle
    assert [each.when for each in idle] == ["before"] * 3 + ["after"] * 3
    assert all(each.rested for each in idle)
    blocks = [block for each in record.rows for block in each.blocks if each.engine != "null"]
    assert max(each.readings[0].end_s for each in idle[:3]) < min(block.start_s for block in blocks)
    assert min(each.readings[0].start_s for each in idle[3:]) > max(block.start_s for block in blocks)


@pytest.mark.parametrize(
    ("habit", "reason"),
    [("vanishes", "vanished"), ("goes back", "no wrap"), ("breaks", "Input/output error"), ("hangs", "hung"),
     ("stands still", "did not move"), ("negative", "did not move"), ("nonsense", "did not move")],
)  # fmt: skip
def test_a_meter_that_fails_midway_leaves_the_speed_and_a_reason(
    tmp_path: Path, habit: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metering, "PATIENCE_S", 0.1)
    lab = MeteredLab()
    record = measured(tmp_path, lab, KnownMeter(lab, habit=habit))
    assert check.check(record) == []
    for engine in ENGINES:
        found = energy(record, engine)
        assert row(record, engine).status == "ok"
        assert row(record, engine).figures.images_per_s.low is not None
        assert reason in found.reason
        assert "block" in found.reason
        assert (found.power_w, found.joules_per_image, found.images_per_joule) == (None, None, None)
    readings = [reading for each in record.rows for block in each.blocks for reading in block.energy]
    assert any(reading.joules is not None for reading in readings), "what was read before is kept"
    assert not any(reading.joules == 0 for reading in readings)


def test_without_a_meter_the_reason_and_the_remedy_are_kept(tmp_path: Path) -> None:
    record = measured(tmp_path, MeteredLab())
    assert check.check(record) == []
    assert record.energy.meters == ()
    assert record.energy.reason == "this machine shows no meter"
    assert record.energy.remedy == "sudo modprobe intel_rapl_msr"
    assert {each.figures.energy for each in record.rows} == {None}
    assert record.energy.idle == ()


def test_a_gpu_board_says_nothing_of_a_processor_and_stands_beside_its_own_meter(tmp_path: Path) -> None:
    lab = MeteredLab()
    board = KnownMeter(lab, meter(name="nvml:0", scope="gpu", covers=("system/gpu0",)))
    record = measured(tmp_path / "one", lab, board)
    assert check.check(record) == []
    found = energy(record, "openvino")
    assert "does not cover work on the cpu" in found.reason
    assert found.power_w is None
    assert [each.meter for each in found.beside] == ["nvml:0"]
    lab = MeteredLab()
    board.lab = lab
    record = measured(tmp_path / "two", lab, board, KnownMeter(lab))
    assert check.check(record) == []
    found = energy(record, "openvino")
    assert found.meter == "virtual"
    assert [(each.meter, each.scope) for each in found.beside] == [("nvml:0", "gpu")]


def test_blocks_are_as_long_as_the_meter_wants_and_the_record_says_so(tmp_path: Path) -> None:
    lab = MeteredLab()
    slow = KnownMeter(lab, meter(update_period_s=1e-4))
    record = measured(tmp_path, lab, slow)
    wanted = slow.meter.window_s(metering.BLOCK_SHARE)
    assert wanted > PROFILE.block_s
    assert max(lab.asked_s) == pytest.approx(wanted)
    assert any(f"blocks of {wanted:.3g} s instead of 0.001 s" in note for note in record.notes)


def test_a_meter_too_slow_for_the_profile_is_said_to_be_so(tmp_path: Path) -> None:
    lab = MeteredLab()
    record = measured(tmp_path, lab, KnownMeter(lab, meter(update_period_s=60.0)))
    assert check.check(record) == []
    assert "too short" in energy(record, "openvino").reason
    assert row(record, "openvino").figures.images_per_s is not None
    assert any("take a longer profile" in note for note in record.notes)


def test_energy_that_comes_late_finds_its_block(tmp_path: Path) -> None:
    lab = MeteredLab()
    record = measured(tmp_path, lab, KnownMeter(lab, meter(settle_s=0.05)))
    assert check.check(record) == []
    assert energy(record, "ncnn").power_w.value == pytest.approx(IDLE_W + WATTS["ncnn"], rel=1e-6)


def test_ctrl_c_keeps_the_energy_of_what_was_measured(tmp_path: Path) -> None:
    lab = MeteredLab()
    known = KnownMeter(lab, meter(settle_s=0.02))

    def interrupt(progress: Progress) -> None:
        if "round 5" in progress.text:
            raise KeyboardInterrupt

    record = measured(tmp_path, lab, known, progress=interrupt)
    assert record.partial
    assert known.closed
    assert check.check(record) == []
    found = energy(record, "openvino")
    assert found.power_w.value == pytest.approx(IDLE_W + WATTS["openvino"], rel=1e-6)
    assert "idle power was read before the blocks only" in found.warnings


def test_a_sweep_of_threads_has_a_row_for_each(tmp_path: Path) -> None:
    lab = MeteredLab()
    record = measured(tmp_path, lab, KnownMeter(lab), threads=(1, 2))
    assert check.check(record) == []
    counts = sorted((each.engine, each.threads) for each in record.rows if each.engine != "null")
    assert counts == sorted((engine, count) for engine in ENGINES for count in (1, 2))
    assert sorted({worker.job.threads for worker in lab.workers if worker.engine == "ncnn"}) == [1, 2]
    assert record.noise.threads == 1
    assert {each.figures.energy.best_other for each in record.rows if each.engine == "ncnn"} == {"onnxruntime"}


def test_a_record_of_version_1_is_still_valid() -> None:
    record = record_file.load(Path(__file__).parent / "record_of_version_1.json")
    assert record.schema_version == 1
    assert record.energy is None
    assert check.check(record) == []
