"""doctor tells what is here and what would add the rest, also of a machine it is only told about."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from perwatt.lab import doctor
from perwatt.machine import this_machine

MACHINE = replace(this_machine(), gpu=None, virtual=False)


def meters(root: Path, gpu: str | None = None) -> dict[str, doctor.Finding]:
    found = doctor.examine(replace(MACHINE, gpu=gpu), root)
    return {finding.name: finding for finding in found if finding.kind == "meter"}


def test_installed_engines_are_named_with_their_versions() -> None:
    engines = {finding.name: finding for finding in doctor.examine(MACHINE) if finding.kind == "engine"}
    assert engines["onnxruntime"].usable
    assert "onnxruntime 1." in engines["onnxruntime"].text
    assert "null" not in engines
    assert not engines["torch-cuda"].usable
    assert "no NVIDIA GPU" in engines["torch-cuda"].text


def test_a_missing_engine_comes_with_the_command_that_adds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_installed", lambda names: [] if not names else None)
    missing = [finding for finding in doctor.examine(MACHINE) if not finding.usable and finding.kind != "meter"]
    assert {"onnxruntime", "openvino", "ncnn", "torch", "matplotlib"} <= {finding.name for finding in missing}
    assert all(finding.remedy and "pip install" in finding.remedy for finding in missing)


def test_a_machine_without_meters_says_where_was_looked(tmp_path: Path) -> None:
    found = meters(tmp_path)
    assert set(found) == {"processor", "gpu", "board"}
    assert "/sys/class/powercap" in found["processor"].text
    assert "/sys/class/hwmon" in found["board"].text
    assert not any(finding.usable for finding in found.values())


def test_meters_are_found_and_closed_ones_come_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zone = tmp_path / "sys/class/powercap/intel-rapl:0"
    zone.mkdir(parents=True)
    (zone / "name").write_text("package-0\n")
    (zone / "energy_uj").write_text("123\n")
    other = tmp_path / "sys/class/powercap/intel-rapl:1"
    other.mkdir()
    (other / "name").write_text("psys\n")
    (other / "energy_uj").write_text("456\n")
    sensor = tmp_path / "sys/class/hwmon/hwmon3"
    sensor.mkdir(parents=True)
    (sensor / "name").write_text("ina3221\n")
    (sensor / "power1_input").write_text("1\n")
    found = meters(tmp_path, gpu="NVIDIA Test")
    assert found["processor"].text.startswith("1 package counters, readable")
    assert "ina3221" in found["board"].text
    assert "not used yet" in found["gpu"].text

    read = Path.read_text

    def closed(path: Path, *arguments: str, **named: str) -> str:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return read(path, *arguments, **named)

    monkeypatch.setattr(Path, "read_text", closed)
    remedy = meters(tmp_path)["processor"].remedy
    assert remedy is not None
    assert remedy.startswith("sudo chmod a+r")
    assert str(zone / "energy_uj") in remedy


def test_everything_is_printed() -> None:
    stream = io.StringIO()
    found = doctor.examine(MACHINE)
    doctor.show_findings(MACHINE, found, Console(file=stream, width=100))
    text = stream.getvalue()
    assert MACHINE.cpu_model in text
    assert all(finding.name in text for finding in found)
