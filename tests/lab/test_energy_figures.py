"""Energy figures against simulated truth, doctored by hand, and told without a digit too many."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from known_meters import KnownMeter, MeteredLab, measured, meter

from perwatt.lab import check, energy, figures, record_file
from perwatt.lab.metering import devices_of, facts_of
from perwatt.lab.notation import estimate_text
from perwatt.lab.record import Block, Energy, EnergyFigures, Estimate, IdleReading, Reading, Record

BATCH, IDLE_W, ACTIVE_W, SPEED = 8, 60.0, 240.0, 400.0


def simulated(make_record: Callable[..., Record], seed: int, period_s: float, quantum_j: float, gain: float) -> Record:
    """Return a Record whose one row was read by a counter that is wrong as it says: period, quantum, gain; seeded.

    Independent of the code under test: the true power is known, the counter is sampled at its own periods.
    """
    generator = np.random.default_rng(seed)
    factor = 1 + generator.normal(0, gain / 1.96)
    phase = generator.uniform(0, period_s)
    clock, true_j = [0.0], [0.0]

    def pass_time(seconds: float, watts: float) -> None:
        clock.append(clock[-1] + seconds)
        true_j.append(true_j[-1] + seconds * watts)

    def shown(time_s: float) -> float:
        updated = np.floor((time_s - phase) / period_s) * period_s + phase
        return float(np.floor(factor * np.interp(updated, clock, true_j) / quantum_j) * quantum_j)

    windows: list[tuple[str, float, float, float, float]] = []

    def window(kind: str, seconds: float, watts: float, speed: float = 0.0) -> None:
        pass_time(generator.uniform(0, 0.3), IDLE_W)
        start = clock[-1]
        pass_time(seconds, watts)
        windows.append((kind, start, clock[-1], watts, speed))

    for _ in range(3):
        window("before", 1.0, IDLE_W)
    for _ in range(10):
        # Power and speed vary from block to block, together: a faster clock takes more.
        swing = generator.normal(0, 0.02)
        window("block", 1.0, ACTIVE_W * np.exp(swing), SPEED * np.exp(0.5 * swing + generator.normal(0, 0.01)))
    for _ in range(3):
        window("after", 1.0, IDLE_W)
    pass_time(1.0, IDLE_W)

    def reading(start: float, end: float) -> Reading:
        start, end = start + period_s, end - period_s
        joules = shown(end) - shown(start)
        # Each edge is known to the last update: uniform over a period; and the quantum of either end.
        power = joules / (end - start)
        half = 1.96 * np.sqrt(2) * np.hypot(period_s * power, quantum_j) / np.sqrt(12)
        return Reading(
            meter="virtual", start_s=start, end_s=end, joules=joules, half_width_j=half, gain=gain, reason=None
        )

    blocks, idle = [], []
    for kind, start, end, _, speed in windows:
        if kind == "block":
            runs = round(speed * (end - start) / BATCH)
            blocks.append(
                Block(
                    sequence=len(blocks), round=len(blocks), start_s=start, wait_s=0.0, rested=True, warmup_runs=0,
                    elapsed_s=end - start, durations_ns=(round(1e9 * BATCH / speed),) * runs, load_average=None,
                    clock_mhz=None, temperature_c=None, energy=(reading(start, end),),
                )
            )  # fmt: skip
        else:
            kept = (reading(start, end),)
            idle.append(IdleReading(network="alexnet", batch=BATCH, when=kind, rested=True, readings=kept))
    facts = facts_of(meter(update_period_s=period_s, quantum=quantum_j, gain=gain))
    base = make_record()
    row = base.rows[0].model_copy(update={"batch": BATCH, "blocks": tuple(blocks), "samples": ()})
    found = Energy(asked="auto", meters=(facts,), reason=None, remedy=None, idle=tuple(idle))
    return base.model_copy(update={"rows": (row,), "energy": found, "noise": None})


def figures_of(record: Record) -> EnergyFigures:
    row = energy.with_energy(record.rows, record.energy, None, record.seed)[0]
    assert row.figures.energy is not None
    return row.figures.energy


@pytest.mark.parametrize(
    ("period_s", "quantum_j", "gain"),
    [(0.001, 6.1e-5, 0.02), (0.1, 1e-3, 0.05), (0.1, 20.0, 0.01), (0.2, 1.0, 0.02)],
    ids=["a fast counter", "steps of 100 ms", "a coarse quantum", "a slow counter"],
)
def test_intervals_cover_the_truth_in_ninety_of_a_hundred_runs(
    make_record: Callable[..., Record], period_s: float, quantum_j: float, gain: float
) -> None:
    hits = {"power_w": 0, "joules_per_image": 0, "images_per_joule": 0, "idle_w": 0, "above_idle_joules_per_image": 0}
    truth = {
        "power_w": ACTIVE_W,
        "joules_per_image": ACTIVE_W / SPEED,
        "images_per_joule": SPEED / ACTIVE_W,
        "idle_w": IDLE_W,
        "above_idle_joules_per_image": (ACTIVE_W - IDLE_W) / SPEED,
    }
    widths = []
    for seed in range(100):
        found = figures_of(simulated(make_record, seed, period_s, quantum_j, gain))
        for name, value in truth.items():
            estimate = getattr(found, name)
            hits[name] += estimate.low <= value <= estimate.high
        widths.append((found.power_w.high - found.power_w.low) / 2 / found.power_w.value)
    assert min(hits.values()) >= 90, hits
    assert float(np.median(widths)) < 2.5 * gain + 0.07, "an interval that covers everything says nothing"


def test_a_period_that_dwarfs_the_block_is_told_in_the_interval(make_record: Callable[..., Record]) -> None:
    fine = figures_of(simulated(make_record, 1, 0.001, 1e-4, 0.01)).power_w
    coarse = figures_of(simulated(make_record, 1, 0.24, 1e-4, 0.01))
    assert coarse.power_w.high - coarse.power_w.low > 3 * (fine.high - fine.low)
    assert any("only" in warning for warning in coarse.warnings)


def test_too_few_blocks_have_no_energy_rather_than_a_bare_number(make_record: Callable[..., Record]) -> None:
    record = simulated(make_record, 1, 0.001, 1e-4, 0.01)
    row = record.rows[0].model_copy(update={"blocks": record.rows[0].blocks[:2]})
    found = figures_of(record.model_copy(update={"rows": (row,)}))
    assert found.power_w is None
    assert "too few" in found.reason


def test_load_that_does_not_stand_out_of_idle_has_no_share_above_it(make_record: Callable[..., Record]) -> None:
    record = simulated(make_record, 1, 0.001, 1e-4, 0.01)
    hot = tuple(
        each.model_copy(
            update={"readings": tuple(r.model_copy(update={"joules": r.joules * 5}) for r in each.readings)}
        )
        for each in record.energy.idle
    )
    found = figures_of(record.model_copy(update={"energy": record.energy.model_copy(update={"idle": hot})}))
    assert found.above_idle_joules_per_image is None
    assert found.joules_per_image is not None
    assert "its power does not stand out of idle power" in found.warnings


@pytest.mark.parametrize(
    ("value", "low", "high", "text"),
    [(45.123, 43.1, 47.2, "45.1 ±2.1"), (0.004567, 0.0042, 0.0049, "0.0046 ±0.0004"), (163.7, 120.0, 210.0, "160 ±50"),
     (0.0123, -0.002, 0.027, "0.012 ±0.015")],
)  # fmt: skip
def test_no_digit_is_printed_that_the_interval_does_not_carry(value: float, low: float, high: float, text: str) -> None:
    assert estimate_text(Estimate(value=value, low=low, high=high)) == text


@pytest.mark.parametrize(
    ("scope", "devices"),
    [("gpu", ("cuda",)), ("package", ("cpu",)), ("package + dram", ("cpu",)), ("wall", ("cpu", "cuda")),
     ("psys", ("cpu",)), ("board", ("cpu", "cuda")), ("gpu + package", ("cpu", "cuda")), ("none", ())],
)  # fmt: skip
def test_a_scope_says_whose_work_it_holds(scope: str, devices: tuple[str, ...]) -> None:
    assert devices_of(scope) == devices


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    lab = MeteredLab()
    return measured(tmp_path_factory.mktemp("measured"), lab, KnownMeter(lab))


def doctored(record: Record, path: tuple[str | int, ...], value: Any) -> Record:
    content = json.loads(record_file.to_text(record))
    place = content
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value(place[path[-1]]) if callable(value) else value
    return Record.model_validate(content)


@pytest.mark.parametrize("name", ["power_w", "joules_per_image", "images_per_joule", "idle_w", "ratio_to_best"])
@pytest.mark.parametrize("part", ["value", "low", "high"])
def test_every_energy_figure_changed_by_hand_is_found(record: Record, name: str, part: str) -> None:
    path = ("rows", 0, "figures", "energy", name, part)
    found = check.check(doctored(record, path, lambda value: value * 1.001))
    assert [finding.where for finding in found] == [f"rows[0].figures.energy.{name}.{part}"]


@pytest.mark.parametrize(
    ("path", "value"),
    [(("rows", 0, "figures", "energy", "scope"), "wall"), (("rows", 0, "figures", "energy", "verdict"), "less"),
     (("rows", 0, "figures", "energy", "warnings"), ["fine"]),
     (("rows", 0, "figures", "energy", "above_idle_joules_per_image"), None),
     (("rows", 0, "blocks", 2, "energy", 0, "joules"), lambda value: value / 2),
     (("rows", 0, "blocks", 2, "energy", 0, "gain"), 0.5), (("energy", "meters", 0, "gain"), 0.001),
     (("noise", "energy_floor"), 1e-5), (("energy", "idle", 0, "readings", 0, "joules"), lambda value: value / 2)],
)  # fmt: skip
def test_any_other_edit_of_the_energy_is_found(record: Record, path: tuple[str | int, ...], value: Any) -> None:
    assert check.check(doctored(record, path, value))


def test_readings_that_contradict_the_blocks_are_named(record: Record) -> None:
    def first(path: tuple[str | int, ...], value: Any) -> str:
        return check.check(doctored(record, path, value))[0].where

    reading = ("rows", 0, "blocks", 1, "energy", 0)
    assert first((*reading, "start_s"), lambda value: value - 0.01) == "rows[0].blocks[1].energy[0].start_s"
    assert first((*reading, "end_s"), lambda value: value + 0.01) == "rows[0].blocks[1].energy[0].end_s"
    assert first((*reading, "joules"), 0.0) == "rows[0].blocks[1].energy[0].joules"
    assert first((*reading, "joules"), None) == "rows[0].blocks[1].energy[0].joules"
    assert first((*reading, "meter"), "another") == "rows[0].blocks[1].energy"
    assert first(("rows", 0, "blocks", 1, "energy"), []) == "rows[0].blocks[1].energy"
    assert first(("energy", "meters", 0, "devices"), ["cpu", "cuda"]) == "energy.meters[0].devices"
    assert first(("energy", "meters", 0, "overlaps"), ["virtual"]) == "energy.meters[0].name"
    assert first(("energy", "reason"), "none was there") == "energy.reason"
    block = record.rows[0].blocks[0]
    idle = {"start_s": block.start_s, "end_s": block.start_s + 1e-4}
    moved = doctored(record, ("energy", "idle", 0, "readings", 0), lambda value: {**value, **idle})
    assert check.check(moved)[0].where == "energy.idle[0].readings[0].start_s"
    assert first(("schema_version",), 1) == "schema_version"


def test_a_record_without_its_energy_is_not_the_same_record(record: Record) -> None:
    content = json.loads(record_file.to_text(record))
    content["energy"] = None
    assert check.check(Record.model_validate(content))


def test_leaving_the_energy_fields_out_leaves_the_digest(tmp_path: Path) -> None:
    old = json.loads((Path(__file__).parent / "record_of_version_1.json").read_text())
    assert "energy" not in old
    assert figures.digest(Record.model_validate(old)) == old["digest"]
