"""Two Records side by side: a change is found, noise is not, unlike machines and files are never compared."""

from collections.abc import Callable

import numpy as np
import pytest

from perwatt.lab.compare import compare
from perwatt.lab.record import Block, Estimate, Record, Row


def faster(record: Record, factor: float, seed: int) -> Record:
    """Return the Record as if measured again: fresh noise of 1 % per block, every speed times `factor`."""
    generator = np.random.default_rng(seed)

    def block(one: Block) -> Block:
        noise = generator.normal(1, 0.01)
        return one.model_copy(update={"durations_ns": tuple(round(each / factor * noise) for each in one.durations_ns)})

    rows = tuple(row.model_copy(update={"blocks": tuple(block(each) for each in row.blocks)}) for row in record.rows)
    return record.model_copy(update={"rows": rows})


def plain(make_record: Callable[..., Record]) -> Record:
    return faster(make_record(), 1.0, 1)


def test_a_tenth_more_speed_is_found_and_no_change_is_not(make_record: Callable[..., Record]) -> None:
    first = plain(make_record)
    more = compare(first, faster(make_record(), 1.1, 2))
    assert more.same_machine
    measured = [row for row in more.rows if row.ratio is not None]
    assert len(measured) > 20
    assert all(row.verdict == "faster" for row in measured)
    assert all(row.ratio.value == pytest.approx(1.1, rel=0.03) for row in measured if row.ratio)
    assert not any(row.engine == "null" for row in more.rows)
    same = compare(first, faster(make_record(), 1.0, 3))
    verdicts = [row.verdict for row in same.rows if row.ratio is not None]
    assert verdicts.count("no difference seen") >= 0.9 * len(verdicts)


def test_rows_without_a_valid_speed_are_not_compared_and_say_why(make_record: Callable[..., Record]) -> None:
    found = compare(plain(make_record), plain(make_record))
    unequal = [row for row in found.rows if row.ratio is None]
    assert {row.verdict for row in unequal} == {"not comparable"}
    assert any(row.note == "first: refused, second: refused" for row in unequal)
    assert any(row.note == "first: invalid, second: invalid" for row in unequal)


@pytest.mark.parametrize(
    "changes",
    [{"machine_id": "another"}, {"machine": {"cpu": "Testium 9001", "cores": "2"}}],
)
def test_across_unlike_machines_no_difference_is_called(make_record: Callable[..., Record], changes: dict) -> None:
    other = faster(make_record(), 3.0, 2).model_copy(update=changes)
    found = compare(plain(make_record), other)
    assert not found.same_machine
    assert {row.verdict for row in found.rows} == {"not comparable"}
    assert any(row.ratio is not None and row.note == "the machines are unlike" for row in found.rows)
    assert any("machine" in difference.what for difference in found.differences)


def test_another_file_under_the_same_name_is_not_compared(make_record: Callable[..., Record]) -> None:
    record = plain(make_record)
    networks = tuple(
        each.model_copy(update={"sha256": "00" * 32}) if each.name == "alexnet" else each for each in record.networks
    )
    found = compare(record, record.model_copy(update={"networks": networks}))
    assert {row.note for row in found.rows if row.network == "alexnet" and row.ratio} == {"the network files differ"}
    assert {row.verdict for row in found.rows if row.network == "googlenet" and row.ratio} == {"no difference seen"}


def test_what_differs_is_listed(make_record: Callable[..., Record]) -> None:
    first = plain(make_record)

    def changed(row: Row) -> Row:
        updates = {"version": "9.9", "threads": 1, "options": {**row.options, "hint": "THROUGHPUT"}}
        return row.model_copy(update=updates) if row.engine == "openvino" else row

    second = first.model_copy(
        update={
            "seed": 8,
            "photographs": (),
            "profile": first.profile.model_copy(update={"name": "long"}),
            "rows": tuple(changed(row) for row in first.rows),
        }
    )
    found = {each.what: (each.first, each.second) for each in compare(first, second).differences}
    assert found["seed"] == ("7", "8")
    assert found["profile: name"] == ("quick", "long")
    assert found["photographs"][1] == ""
    assert found["openvino: version"] == ("1.2.3", "9.9")
    assert found["openvino: threads"] == ("2", "1")
    assert found["openvino fp32 alexnet 1: hint"] == ("LATENCY", "THROUGHPUT")
    assert not any(what.startswith("onnxruntime") for what in found)
    assert compare(first, first).differences == ()


def test_rows_of_one_record_only_are_named(make_record: Callable[..., Record]) -> None:
    first = plain(make_record)
    second = first.model_copy(update={"rows": tuple(row for row in first.rows if row.engine != "ncnn")})
    found = compare(first, second)
    assert {name[3] for name in found.only_first} == {"ncnn"}
    assert found.only_second == ()
    assert not any(row.engine == "ncnn" for row in found.rows)


def test_twins_that_differ_widen_what_counts_as_a_difference(make_record: Callable[..., Record]) -> None:
    first, second = plain(make_record), faster(make_record(), 1.04, 5)
    assert first.noise is not None
    ratio = Estimate(value=1.1, low=1.09, high=1.11)
    shaky = first.model_copy(update={"noise": first.noise.model_copy(update={"ratio": ratio})})
    assert all(row.verdict == "no difference seen" for row in compare(shaky, second).rows if row.ratio)
