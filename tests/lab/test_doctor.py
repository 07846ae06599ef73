"""doctor tells what is here and what would add the rest, also of a machine it is only told about."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from perwatt.lab import doctor
from perwatt.lab.meters.meter import Host
from perwatt.machine import this_machine

MACHINE = replace(this_machine(), gpu=None, virtual=False)


def meters(root: Path) -> dict[str, doctor.Finding]:
    found = doctor.examine(MACHINE, Host(root=root, library=lambda name: None))
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


def test_a_machine_without_meters_says_where_was_looked_and_how_to_get_one(tmp_path: Path) -> None:
    found = meters(tmp_path)
    assert set(found) == {"none"}
    assert "/sys/class/powercap" in found["none"].text
    assert "/sys/class/hwmon" in found["none"].text
    assert "log:FILE" in (found["none"].remedy or "")
    assert not found["none"].usable


def test_meters_are_found_and_closed_ones_come_with_the_command(tmp_path: Path) -> None:
    for folder, name in (("intel-rapl:0", "package-0"), ("intel-rapl:1", "psys")):
        zone = tmp_path / "sys/class/powercap" / folder
        zone.mkdir(parents=True)
        (zone / "name").write_text(f"{name}\n")
        (zone / "energy_uj").write_text("123\n")
    found = meters(tmp_path)
    assert found["rapl:package-0"].usable
    assert "overlaps rapl:psys" in found["rapl:package-0"].text

    def closed(path: Path) -> str:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return path.read_text()

    refused = doctor.examine(MACHINE, Host(root=tmp_path, read=closed, library=lambda name: None))
    package = next(finding for finding in refused if finding.name == "rapl:package-0")
    assert not package.usable
    assert "Permission denied" in package.text
    assert "udevadm" in (package.remedy or "")


def test_everything_is_printed() -> None:
    stream = io.StringIO()
    found = doctor.examine(MACHINE)
    doctor.show_findings(MACHINE, found, Console(file=stream, width=100))
    text = stream.getvalue()
    assert MACHINE.cpu_model in text
    assert all(finding.name in text for finding in found)
