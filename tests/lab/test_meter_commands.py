"""perwatt meters and doctor, on machines that do not exist."""

import json
from pathlib import Path

import pytest

from perwatt import cli
from perwatt.lab import meters_command
from perwatt.lab.virtual import stage as stages
from perwatt.lab.virtual.machines import MACHINES


@pytest.mark.parametrize("name", [each.name for each in MACHINES])
def test_every_simulated_machine_can_be_shown(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["meters", "--as", name]) == 0
    told = capsys.readouterr().out
    assert "--meter auto, CPU rows: reads" in told
    assert all(len(line) <= 100 for line in told.splitlines())


def test_the_list_says_scope_overlaps_and_what_opens_a_closed_meter(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["meters", "--as", "closed-laptop"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "rapl:package-0 is closed" in told
    assert told.count("udevadm trigger") == 1, "one command for all it opens"
    assert "reads battery: the whole system" in told
    assert cli.run(["meters", "--as", "intel-laptop", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    package = next(each for each in listed["meters"] if each["name"] == "rapl:package-0")
    assert package["scope"] == "package"
    assert "rapl:psys" in package["overlaps"]
    assert package["open"] is True
    assert listed["auto"]["cpu"]["names"] == ["rapl:package-0"]


def test_a_machine_without_meters_says_how_to_get_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["meters", "--as", "cloud"]) == 0
    assert "log:FILE" in capsys.readouterr().out
    assert cli.run(["meters", "--watch", "--as", "cloud"]) == 2
    assert "log:FILE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("intel-server", None),
        ("h100", None),
        ("jetson", None),
        ("wall-log", None),
        ("still", "stands still"),
        ("going-back", "without a wrap"),
        ("unplugged", "is gone"),
        ("hanging-plug", "no answer"),
    ],
)
def test_a_test_tells_good_meters_from_bad_ones(
    name: str, fault: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["meters", "--test", "30", "--as", name, "--json"]) == (1 if fault else 0)
    for each in json.loads(capsys.readouterr().out):
        if fault:
            assert fault in each["faults"][0]
            assert each["load_w"] is None, "nothing is 0 where nothing is known"
        else:
            assert each["faults"] == []
            assert each["moves"] is True
            assert each["load_w"] > each["idle_w"] > 0
            assert each["period_s"] is None or each["period_s"] <= 1.5 * each["claimed_period_s"] + 0.002


def test_a_test_is_a_table_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["meters", "--test", "20", "--as", "amd-desktop"]) == 0
    told = capsys.readouterr().out
    assert "wraps every" in told
    assert "good" in told
    assert cli.run(["meters", "--test", "20", "--as", "cloud"]) == 0
    assert "no meter is open" in capsys.readouterr().out


def test_watching_prints_a_line_a_second(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    naps: list[float] = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) > 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(meters_command.time, "sleep", nap)
    assert cli.run(["meters", "--watch", "--as", "intel-server"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert "rapl:package-0 4" in lines[-1]
    naps.clear()
    assert cli.run(["meters", "--watch", "--as", "jetson", "--json"]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["hwmon:ina3221:VDD_IN"] == pytest.approx(6, rel=0.2)


def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, told in (
        (["meters", "--as", "jetsn"], "did you mean jetson?"),
        (["doctor", "--as", "cray"], "expected one of intel-server"),
        (["meters", "--watch", "--test", "5"], "--watch or --test"),
        (["meters", "--test", "0"], "--test"),
    ):
        assert cli.run(arguments) == 2
        error = capsys.readouterr().err
        assert told in error
        assert error.count("\n") == 1


def test_doctor_shows_the_meters_of_a_simulated_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["doctor", "--as", "jetson", "--json"]) == 0
    found = {each["name"]: each for each in json.loads(capsys.readouterr().out)["findings"] if each["kind"] == "meter"}
    assert found["hwmon:ina3221:VDD_IN"]["usable"] is True
    assert found["nvml:0"]["usable"] is False


def test_nothing_is_left_of_a_simulated_machine() -> None:
    with stages.stage("jetson") as world:
        folder: Path = world.root
        assert folder.is_dir()
    assert not folder.exists()
