"""What the README says is so: its table follows from a committed Record, its commands and settings exist."""

import re
from collections.abc import Callable
from pathlib import Path

import typer.main

from perwatt import cli
from perwatt.lab.check import check
from perwatt.lab.load import record_file as load_records
from perwatt.lab.markdown import markdown
from perwatt.lab.record import Record
from perwatt.lab.record_file import load
from perwatt.settings import SETTINGS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SECTION = re.compile(r"<!-- table(?: of (?P<record>\S+))? -->\n(?P<table>.*?)<!-- end of table -->\n", re.DOTALL)


def test_the_table_follows_from_a_committed_record() -> None:
    sections = list(SECTION.finditer(README))
    assert len(sections) == 1
    name, table = sections[0]["record"], sections[0]["table"]
    if name is None:  # before the first Record there is nothing to quote, and then nothing may be quoted
        assert not list((ROOT / "records").glob("perwatt-*"))
        assert table == "No Record is committed yet.\n"
        return
    record = load(ROOT / name)
    assert not check(record)
    assert table == markdown(record)


def test_the_ratios_on_another_machine_follow_from_the_record_named_beside_them() -> None:
    said = re.search(
        r"gave ([\d.]+) \((\S+) at\s+batch (\d+)\) to ([\d.]+) times \((\S+) at batch (\d+)\) the fastest other engine "
        r"\(`(records/\S+)`\)",
        README,
    )
    assert said
    record = load(ROOT / said[7])
    assert not check(record)
    ratios = {
        (row.network, str(row.batch)): row.figures.ratio_to_best.value
        for row in record.rows
        if row.engine == "perwatt" and row.figures is not None and row.figures.ratio_to_best is not None
    }
    assert len(ratios) == 12
    (low, least), (high, most) = ((pick(ratios.values()), pick(ratios, key=lambda k: ratios[k])) for pick in (min, max))
    assert (said[1], (said[2], said[3]), said[4], (said[5], said[6])) == (f"{low:.1f}", least, f"{high:.1f}", most)


def test_what_overload_leaves_follows_from_the_record_named_beside_it() -> None:
    said = re.search(
        r"(\d+)\s+images/s answered in time, ([\d.]+) of capacity, p99 of\s+those\s+let\s+in (\d+) ms "
        r"under a limit of (\d+)\s+\(`(records/\S+)`\)",
        README,
    )
    assert said
    record = load_records.load(ROOT / said[5])
    claims = {claim.rule: claim for claim in record.claims}
    (run,) = (run for run in record.runs if run.label == "overload")
    p99 = claims["p99 latency"]
    values = (run.figures.goodput_per_s.value, claims["ratio of goodput to rate"].value, 1000 * p99.value)
    assert tuple(said.groups()[:3]) == (f"{values[0]:.0f}", f"{values[1]:.2f}", f"{values[2]:.0f}")
    assert float(said[4]) == 1000 * p99.wanted
    other = re.search(r"disturbed it, it left ([\d.]+)\s+\(`(records/\S+)`\)", README)
    assert other
    (ratio,) = (c for c in load_records.load(ROOT / other[2]).claims if c.rule == "ratio of goodput to rate")
    assert other[1] == f"{ratio.value:.2f}"


def test_what_a_soak_left_follows_from_the_record_named_beside_it() -> None:
    said = re.search(
        r"([\d,]+) requests, none without .*?; ([\d,]+) answers, each\s+that of its own image; memory changed by "
        r"(\S+) %.*?`(records/\S+?)`",
        README,
        re.DOTALL,
    )
    assert said
    record = load_records.load(ROOT / said[4])
    (run,) = (run for run in record.runs if run.label == "soak")
    claims = {claim.text.split(",")[0]: claim for claim in record.claims}
    assert run.seconds >= 600
    assert all(claim.met for claim in record.claims)
    assert int(said[1].replace(",", "")) == run.figures.requests
    assert f"{100 * claims['growth of memory in ten minutes'].value:.1f}" == said[3]
    answers = sum(run.figures.outcomes.get(name, 0) for run in record.runs for name in ("good", "late"))
    assert answers <= int(said[2].replace(",", "")) <= sum(run.figures.requests for run in record.runs)


def test_what_a_fixed_window_holds_follows_from_the_record_named_beside_it() -> None:
    said = re.search(
        r"perwatt held ([\d.]+) requests/s at a p99 of (\d+) ms, ONNX Runtime behind\s+"
        r"LitServe ([\d.]+) with the best of three windows \(([\d, ]+) ms\).*?`(records/\S+?)`",
        README,
        re.DOTALL,
    )
    assert said
    record = load_records.load(ROOT / said[5])
    held = {search.target: search.held or 0.0 for search in record.searches}
    best = max(value for target, value in held.items() if target != "perwatt")
    assert (said[1], said[3]) == (f"{held['perwatt']:.3g}", f"{best:.3g}")
    assert {float(said[2])} == {1000 * search.limit_s for search in record.searches}
    assert {target for target in held if target != "perwatt"} == {f"litserve {each} ms" for each in said[4].split(", ")}


def test_markdown_says_what_the_rows_say(make_record: Callable[..., Record]) -> None:
    lines = markdown(make_record()).splitlines()
    heads = [cell.strip() for cell in lines[0].strip("|").split("|")]
    assert heads[3:] == ["openvino", "onnxruntime", "torch", "ncnn", "tinyengine", "fragile"]
    cases = {}
    for line in lines[2 : lines.index("")]:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert len(cells) == len(heads)
        cases[tuple(cells[:3])] = dict(zip(heads[3:], cells[3:], strict=True))
    assert len(cases) == 12
    first = cases["alexnet", "1", "FP32"]
    assert first == {
        "openvino": "**90.0 ±1.3**",
        "onnxruntime": "83.0 ±1.2",
        "torch": "70.0 ±1.0",
        "ncnn": "invalid",
        "tinyengine": "missing",
        "fragile": "–",
    }
    assert "Testium 9000, 2 cores" in lines[-1]
    assert "2026-03-04" in lines[-1]
    assert "noise floor 1.1 %" in lines[-1]


def test_the_commands_exist_and_are_all_named() -> None:
    command = typer.main.get_command(cli.app)
    known = set(command.commands)  # type: ignore[attr-defined]
    named = set(re.findall(r"`perwatt ([a-z]+)", README))
    assert named <= known
    assert known - {"version"} <= named
    options = {name for parameter in command.commands["bench"].params for name in parameter.opts}  # type: ignore[attr-defined]
    assert {name for name in options if name.startswith("--")} - {"--help"} == set(
        re.findall(r"--[a-z0-9]+", README[README.index("`bench` takes") : README.index("Without them")])
    )


def test_the_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z]+)", README)) <= targets


def test_the_settings_are_all_explained() -> None:
    listed = dict(re.findall(r"^\| `([A-Z_]+)` \| (.+) \|$", README, re.MULTILINE))
    assert listed == {setting.name: setting.help for setting in SETTINGS}


def test_the_exit_codes_are_those_of_the_command_line() -> None:
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", README, re.MULTILINE)}
    assert listed == {cli.EXIT_OK, cli.EXIT_FAULT, cli.EXIT_USER, cli.EXIT_PARTIAL, cli.EXIT_INTERRUPTED}


def test_the_map_names_rooms_that_exist() -> None:
    drawn = README[README.index("```\nperwatt/") :]
    rooms = re.findall(r"^  ([a-z]+)/ ", drawn[: drawn.index("\n```\n", 5)], re.MULTILINE)
    folders = {path.parent.name for path in (ROOT / "perwatt").glob("*/__init__.py")}
    assert set(rooms) <= folders
    assert len(rooms) == len(folders)


def test_the_first_screen_has_the_commands_the_table_and_the_map() -> None:
    head = README[: README.index("## Use")]
    assert head.index("make bench") < head.index("<!-- table") < head.index("perwatt/\n")
    assert len(head.splitlines()) <= 60
