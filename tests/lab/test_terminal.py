"""What a person sees of a Record in the terminal: it fits, says why rows are empty, claims no more than it knows."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from perwatt.lab import terminal
from perwatt.lab.record import NO_FIGURES, Record, Reference, pack

Make = Callable[..., Record]


def printed(record: Record, width: int = 100, **paths: Path) -> str:
    stream = io.StringIO()
    terminal.show(record, Console(file=stream, width=width, highlight=False), **paths)
    return stream.getvalue()


def line_of(text: str, *words: str) -> str:
    return next(line for line in text.splitlines() if all(word in line for word in words))


def test_everything_fits_a_hundred_columns_without_losing_a_figure(make_record: Make) -> None:
    text = printed(make_record())
    assert max(len(line) for line in text.splitlines()) <= 100
    assert "…" not in text
    first = line_of(text, "alexnet", "openvino", "fp32")
    assert re.split(r"\s{1,}", first.strip()) == [
        *("alexnet", "1", "fp32", "openvino", "90.0", "±1.3", "11.1", "1.07", "(1.05–1.09)", "2e-06", "100%", "ok")
    ]


def test_a_long_name_wraps_and_the_figures_stay(make_record: Make) -> None:
    record = make_record()
    named = [row.model_copy(update={"network": "a-very-long-network-name-from-a-file"}) for row in record.rows]
    text = printed(record.model_copy(update={"rows": tuple(named)}))
    assert max(len(line) for line in text.splitlines()) <= 100
    assert "no difference seen" in text
    assert "90.0 ±1.3" in text


def test_rows_are_ordered_fastest_first_and_the_null_engine_is_none(make_record: Make) -> None:
    text = printed(make_record())
    engines = re.findall(r"(openvino|onnxruntime|torch|ncnn|null) ", text.split("bf16")[0])
    assert engines == ["openvino", "onnxruntime", "torch", "ncnn"]
    assert text.index("alexnet") < text.index("googlenet") < text.index("efficientnet-lite0")


def test_no_difference_is_said_where_the_interval_covers_one(make_record: Make) -> None:
    assert "no difference seen" in line_of(printed(make_record()), "onnxruntime", "83.0")


def test_an_invalid_row_shows_its_error_and_not_its_speed(make_record: Make) -> None:
    row = line_of(printed(make_record()), "ncnn", "invalid", "7e-01")
    assert "300" not in row
    assert "10%" in row


def test_every_empty_row_says_why_once(make_record: Make) -> None:
    text = printed(make_record())
    assert text.count("pip install tinyengine") == 1
    assert "onnxruntime refused (alexnet 1 bf16, alexnet 48 bf16 and 4 more): no bf16 kernels" in text
    assert "fragile crashed (googlenet 48 fp32): died of SIGSEGV <&> in block 3" in text
    assert "ncnn invalid (alexnet 1 fp32): relative error 0.7" in text
    assert "* torch (alexnet 1 fp32): drift of -8 %" in text


def test_footers_tell_how_sure_and_where(make_record: Make) -> None:
    text = printed(make_record(), record_path=Path("bench/a.json"), report_path=Path("bench/a.html"))
    for word in ("1.1 %", "-8.0 %", "9.5 µs", "Testium 9000, 2 cores", "3 min 21 s", "seed 7", "neighbour was busy"):
        assert word in text
    assert text.splitlines()[-2:] == [" record  bench/a.json", " report  bench/a.html"]


def test_a_partial_record_and_a_missing_noise_floor_are_said(make_record: Make) -> None:
    text = printed(make_record(partial=True, partial_reason="stopped by Ctrl-C", noise=None))
    assert "partial  stopped by Ctrl-C" in text
    assert "noise floor  unknown" in text


def test_reasons_with_brackets_are_printed_as_they_are(make_record: Make) -> None:
    record = make_record()
    row = record.rows[-2].model_copy(update={"reason": "[bold]KeyError[/bold]: [0]"})
    assert "[bold]KeyError[/bold]: [0]" in printed(record.model_copy(update={"rows": (row,)}))


def test_engines_that_share_a_reason_share_a_line(make_record: Make) -> None:
    record = make_record()
    stopped = {"status": "interrupted", "reason": "stopped by Ctrl-C before its first block", "figures": NO_FIGURES}
    rows = [row.model_copy(update=stopped) for row in record.rows[:4]]
    rows[1] = rows[1].model_copy(update={"reason": "onnxruntime: stopped by Ctrl-C before its first block"})
    text = printed(record.model_copy(update={"rows": tuple(rows)}))
    assert text.count("before its first block") == 1
    assert "openvino, onnxruntime, torch, ncnn stopped: stopped by Ctrl-C" in text


def test_a_trained_network_names_what_it_saw(make_record: Make) -> None:
    record = make_record()
    cat, cup = 282, 967  # tiger cat, espresso

    def reference(batch: int, which: int, classes: tuple[int, ...]) -> Reference:
        output = pack(np.zeros((0, 1000), np.float32))
        known = {"network": "efficientnet-lite0", "batch": batch, "input": which, "classes": classes}
        return Reference.model_construct(**known, images=(), output=output)

    references = (reference(1, 0, (5,)), reference(3, 0, (cat, cup, cat)), reference(3, 1, (cat, cup, 0)))
    built_in = [facts.model_copy(update={"source": "built-in"}) for facts in record.networks]
    seen = record.model_copy(update={"networks": tuple(built_in), "references": references})
    text = " ".join(printed(seen).split())
    assert "efficientnet-lite0 saw tiger cat 3, espresso 2, tench 1 (6 crops of the photographs)" in text
    assert "alexnet saw" not in text
    assert "saw" not in printed(record)  # a file of the same name is another network


def test_a_record_without_rows_is_still_shown(make_record: Make) -> None:
    assert "noise floor" in printed(make_record(rows=(), photographs=(), networks=()))


def test_colour_is_for_terminals_and_obeys_no_color(monkeypatch: pytest.MonkeyPatch, make_record: Make) -> None:
    def codes(**environment: str) -> bool:
        monkeypatch.delenv("NO_COLOR", raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        made = terminal.console()
        made.file = io.StringIO()
        terminal.show(make_record(), made)
        return "\x1b[3" in made.file.getvalue()

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr("sys.stdout.isatty", lambda: False)
    assert not codes()
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert codes()
    assert not codes(NO_COLOR="1")


def test_json_has_every_figure_and_no_raw_samples(make_record: Make) -> None:
    record = make_record()
    told = json.loads(json.dumps(terminal.as_json(record, Path("a.json"), None), allow_nan=False))
    assert told["record"] == "a.json"
    assert told["report"] is None
    assert told["noise_floor"] == 0.011
    assert len(told["rows"]) == len(record.rows) - 1
    assert told["rows"][0]["figures"]["images_per_s"]["value"] == 90.0
    assert "blocks" not in told["rows"][0]
