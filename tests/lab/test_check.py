"""Doctored Records: every printed figure changed by hand is found with its place; so is any other edit."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fake_engines import PROFILE, FakeLab
from PIL import Image
from small_network import small_network

from perwatt.errors import RecordError
from perwatt.lab import check, figures, record_file
from perwatt.lab.bench import BenchRequest, run_bench
from perwatt.lab.record import Record, pack, unpack


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    """Return a valid Record of two good engines, a lying one, a missing one and the null engine."""
    folder = tmp_path_factory.mktemp("measured")
    onnx.save(small_network(1), folder / "small.onnx")
    generator = np.random.default_rng(3)
    Image.fromarray(generator.integers(0, 256, (60, 70, 3), dtype=np.uint8)).save(folder / "noise.png")
    request = BenchRequest(
        networks=(str(folder / "small.onnx"),),
        batches=(4,),
        engines=("onnxruntime", "openvino", "ncnn", "torch"),
        photos=folder,
        profile=PROFILE.model_copy(update={"minimum_rounds": 12}),
        out=folder,
    )
    lab = FakeLab({"ncnn": "permuted", "torch": "missing"})
    made = run_bench(request, lambda _: None, lab)
    # One image off by a little, so that its error is a number to doctor.
    row = made.rows[0]
    sample = next(each for each in row.samples if each.images)
    output = unpack(sample.output)
    output[0] *= np.float32(1 + 2e-5)
    place = sample.images[0]
    errors = list(sample.relative_errors)
    whole = next(each for each in made.references if each.input == sample.input)
    wanted = unpack(whole.output)[whole.images.index(place)].astype(np.float64)
    errors[place] = float(np.linalg.norm(output[0] - wanted) / np.linalg.norm(wanted))
    changed = sample.model_copy(update={"output": pack(output), "relative_errors": tuple(errors)})
    samples = tuple(changed if each is sample else each for each in row.samples)
    rows = (row.model_copy(update={"samples": samples}), *made.rows[1:])
    return figures.complete(made.model_copy(update={"rows": rows}))


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the path of every number, text, truth value and None in JSON."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from leaves(inner, (*path, index))
    else:
        yield path


def doctored(record: Record, path: tuple[str | int, ...], value: Any) -> Record:
    content = json.loads(record_file.to_text(record))
    place = content
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return Record.model_validate(content)


def other(value: Any) -> Any:
    """Return something of the same type that a forger might write instead."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value * 1.001 + 1e-7
    return {"faster": "slower", "slower": "faster"}.get(value, "no difference seen" if value is None else value + "x")


def dotted(path: tuple[str | int, ...]) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")


def test_a_record_as_measured_is_valid(record: Record) -> None:
    assert check.check(record) == []
    assert check.is_valid(record)
    check.require_valid(record, "it")
    assert record.rows[0].figures.relative_error == pytest.approx(2e-5, rel=0.05)
    assert {row.status for row in record.rows} == {"ok", "invalid", "missing"}


@pytest.mark.slow
def test_every_printed_figure_changed_by_hand_is_found_with_its_place(record: Record) -> None:
    content = json.loads(record_file.to_text(record))
    printed = [path for path in leaves(content) if "figures" in path or path[0] == "harness_cost_s"]
    printed += [("noise", "floor"), ("noise", "ratio", "value"), ("noise", "ratio", "low"), ("noise", "ratio", "high")]
    assert len(printed) > 60
    # A check computes every interval again, so of the rows two that are unlike stand for all.
    liar = next(index for index, row in enumerate(record.rows) if row.status == "invalid")
    printed = [path for path in printed if path[0] != "rows" or path[1] in (0, liar)]
    for path in printed:
        value: Any = content
        for step in path:
            value = value[step]
        if value is None:
            continue
        forged = other(value)
        try:
            changed = doctored(record, path, forged)
        except ValueError:
            continue  # the schema refuses it already
        found = check.check(changed)
        assert [finding.where for finding in found] == [dotted(path)], path
        assert repr(forged) in found[0].printed or str(forged) in found[0].printed
        with pytest.raises(RecordError, match="INVALID"):
            check.require_valid(changed, "forged.json")


def test_a_figure_where_there_was_none_is_found(record: Record) -> None:
    missing = next(index for index, row in enumerate(record.rows) if row.status == "missing")
    estimate = {"value": 1e4, "low": None, "high": None}
    found = check.check(doctored(record, ("rows", missing, "figures", "images_per_s"), estimate))
    assert [finding.where for finding in found] == [f"rows[{missing}].figures.images_per_s"]


def test_a_lying_row_cannot_be_declared_good(record: Record) -> None:
    liar = next(index for index, row in enumerate(record.rows) if row.status == "invalid")
    changed = doctored(doctored(record, ("rows", liar, "status"), "ok"), ("rows", liar, "reason"), None)
    assert f"rows[{liar}].status" in [finding.where for finding in check.check(changed)]
    bare = doctored(record, ("rows", liar, "samples"), [])
    assert check.check(bare)


def test_raw_samples_changed_by_hand_are_found_in_what_follows_from_them(record: Record) -> None:
    duration = record.rows[0].blocks[2].durations_ns[0]
    changed = doctored(record, ("rows", 0, "blocks", 2, "durations_ns", 0), duration // 2)
    assert any(finding.where.startswith("rows[0].figures") for finding in check.check(changed))
    dropped = doctored(record, ("rows", 0, "blocks"), [each.model_dump() for each in record.rows[0].blocks[1:]])
    assert check.check(dropped)
    longer = doctored(record, ("rows", 0, "blocks", 2, "durations_ns", 0), 10**12)
    assert [finding.where for finding in check.check(longer)] == ["rows[0].blocks[2].elapsed_s"]


def test_an_output_an_error_or_a_class_changed_by_hand_is_found(record: Record) -> None:
    place = next(index for index, sample in enumerate(record.rows[0].samples) if sample.images)
    sample = record.rows[0].samples[place]
    at = ("rows", 0, "samples", place)
    output = unpack(sample.output)
    output[-1, 3] += 0.01
    moved = doctored(record, (*at, "output"), json.loads(pack(output).model_dump_json()))
    assert f"rows[0].samples[{place}].relative_errors[{sample.images[-1]}]" in [f.where for f in check.check(moved)]
    image = sample.images[-1]
    wrong = doctored(record, (*at, "relative_errors", image), 0.5)
    assert check.check(wrong)[0].where == f"rows[0].samples[{place}].relative_errors[{image}]"
    renamed = doctored(record, (*at, "classes", image), 39 - sample.classes[image])
    assert check.check(renamed)[0].where == f"rows[0].samples[{place}].classes[{image}]"


def test_hiding_the_worst_image_is_found(record: Record) -> None:
    samples = record.rows[0].samples
    worst = max(range(len(samples)), key=lambda index: max(samples[index].relative_errors))
    content = json.loads(record_file.to_text(record))
    content["rows"][0]["samples"][worst].update({"images": [], "output": None})
    found = [finding.where for finding in check.check(Record.model_validate(content))]
    assert "rows[0].samples" in found


@pytest.mark.parametrize(
    "path",
    [("seed",), ("machine", "cpu"), ("rows", 0, "version"), ("command",), ("photographs", 0, "sha256"),
     ("networks", 0, "parameters"), ("rows", 0, "load_s"), ("duration_s",), ("digest",)],
)  # fmt: skip
def test_an_edit_that_no_figure_shows_is_found_by_the_digest(record: Record, path: tuple[str | int, ...]) -> None:
    value: Any = json.loads(record_file.to_text(record))
    for step in path:
        value = value[step]
    forged = ["perwatt", "bench"] if isinstance(value, list) else other(value)
    found = check.check(doctored(record, path, forged))
    assert found
    if path != ("seed",):  # the seed of the resampling moves intervals as well
        assert [finding.where for finding in found] == ["digest"]


def test_contradictions_among_raw_samples_are_named(record: Record) -> None:
    def first(path: tuple[str | int, ...], value: Any) -> str:
        return check.check(doctored(record, path, value))[0].where

    late, sequence = len(record.rows[0].blocks) - 1, record.rows[1].blocks[0].sequence
    found = check.check(doctored(record, ("rows", 0, "blocks", late, "sequence"), sequence))
    assert any(finding.where.endswith("sequence") for finding in found)
    assert first(("rows", 0, "blocks", 0, "durations_ns"), []) == "rows[0].blocks[0].durations_ns"
    assert first(("rows", 0, "blocks", 0, "round"), record.rows[0].blocks[1].round) == "rows[0].blocks"
    assert first(("rows", 0, "samples", 0, "input"), 99) == "rows[0].samples[0].input"
    assert first(("rows", 0, "samples", 0, "run"), 99) == "rows[0].samples[0].run"
    assert first(("rows", 0, "samples", 0, "classes"), [1]) == "rows[0].samples[0].relative_errors"
    assert first(("references", 0, "classes"), [1]) == "references[0].classes"
    assert first(("partial",), True) == "partial_reason"
    assert first(("rows", 0, "reason"), "because") == "rows[0].reason"
    twice = [json.loads(row.model_dump_json()) for row in (record.rows[0], *record.rows)]
    found = check.check(doctored(record, ("rows",), twice))
    assert "rows[1]" in [finding.where for finding in found]


def test_a_record_file_edited_in_an_editor_is_refused(record: Record, tmp_path: Path) -> None:
    path = record_file.save(record, tmp_path)
    value = repr(record.rows[0].figures.images_per_s.value)
    text = record_file.to_text(record)
    assert text.count(value) >= 1
    edited = tmp_path / "edited.json"
    edited.write_text(text.replace(f'"value": {value}', '"value": 99999.0', 1))
    found = check.check(record_file.load(edited))
    assert str(found[0]) == f"rows[0].figures.images_per_s.value: printed 99999.0, recomputed {value}"
    assert check.check(record_file.load(path)) == []
