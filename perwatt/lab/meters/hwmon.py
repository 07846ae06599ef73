"""Sensors of boards through hwmon: rails of INA chips (Jetson and others), power supplies, graphics cards.

Anything that has power*_input, power*_average or energy*_input, or voltages with currents.

A board's input rail holds the others, so they overlap. The gain is that of the chips with the shunts that boards use
(Texas Instruments' data sheets of INA3221, INA226, INA238: up to 1 %, shunt 1 %); for chips not known here 5 %.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from perwatt.errors import MeterError
from perwatt.lab.meters.meter import Found, Host, Meter, Offset, Reading, Scope
from perwatt.lab.meters.rapl import CounterFile

# Rails that hold a whole board.
INPUTS = ("VDD_IN", "POM_5V_IN", "VDD_5V_IN", "VIN")
# Rails that feed other rails: this one holds that one.
_WITHIN = {"VDDQ_VDD2_1V8AO": "VIN_SYS_5V0"}
_BUS_CHANNELS = (1, 2, 3)  # of an INA3221; its further channels are shunt voltages and their sum
# What a chip sees of the time: its converter takes turns over channels, voltages and currents.
_SHARES = {"ina3221": 1 / 6, "ina226": 0.5, "ina2xx": 0.5, "ina238": 0.5}
_KNOWN_GAIN, _OTHER_GAIN = 0.02, 0.05
_USUAL_PERIOD_S = {"ina3221": 0.01, "ina226": 0.01, "ina238": 0.01, "amdgpu": 0.1}
_OTHER_PERIOD_S = 1.0
_SHUNT_STEP_V = 40e-6
_POWER = re.compile(r"power(?P<channel>\d+)_(?P<kind>input|average)$")
_ENERGY = re.compile(r"energy(?P<channel>\d+)_input$")


def find(host: Host) -> Sequence[Found]:
    """Return a meter for every rail, power and energy input; unconnected ones are left out."""
    found: list[Found] = []
    batteries = {path.name for path in (host.root / "sys/class/power_supply").glob("*")}
    for folder in sorted((host.root / "sys/class/hwmon").glob("hwmon*"), key=lambda path: (len(path.name), path.name)):
        chip = _text(folder / "name", host)
        if not chip or chip in batteries:  # a battery is read by its own file
            continue
        files = {path.name for path in folder.iterdir()}
        if "power1_input" not in files and "curr1_input" in files and "in1_input" in files:
            found += _voltage_times_current(folder, chip, files, host)
        found += _powers(folder, chip, files, host)
        found += _energies(folder, chip, files, host)
    return _with_distinct_names(found)


def _voltage_times_current(folder: Path, chip: str, files: set[str], host: Host) -> list[Found]:
    found = []
    for channel in _BUS_CHANNELS:
        voltage, current = f"in{channel}_input", f"curr{channel}_input"
        if not {voltage, current} <= files or _text(folder / f"in{channel}_enable", host) == "0":
            continue
        label = _text(folder / f"in{channel}_label", host) or f"channel {channel}"
        if label == "NC":
            continue
        shunt = _text(folder / f"shunt{channel}_resistor", host)
        step_a = _SHUNT_STEP_V / (int(shunt) * 1e-6) if shunt.isdecimal() and int(shunt) else 0.008
        meter = _meter(folder, chip, label, "W", 5.0 * step_a, host)
        found.append(_found(meter, Rail(folder / voltage, folder / current, host), folder / current))
    return found


def _powers(folder: Path, chip: str, files: set[str], host: Host) -> list[Found]:
    found = []
    matches = [match for name in sorted(files) if (match := _POWER.fullmatch(name))]
    averages = {match["channel"] for match in matches if match["kind"] == "average"}
    for match in matches:
        if match["kind"] == "input" and match["channel"] in averages:
            continue
        label = _text(folder / f"power{match['channel']}_label", host) or _label(folder, chip, match["channel"], host)
        if label == "NC" or _text(folder / f"power{match['channel']}_enable", host) == "0":
            continue
        meter = _meter(folder, chip, label, "W", 1e-3, host, match["channel"] if match["kind"] == "average" else None)
        path = folder / match[0]
        found.append(_found(meter, CounterFile(meter.name, path, 1e-6, host), path))
    return found


def _energies(folder: Path, chip: str, files: set[str], host: Host) -> list[Found]:
    found = []
    for name in sorted(files):
        match = _ENERGY.fullmatch(name)
        if match is None:
            continue
        label = _text(folder / f"energy{match['channel']}_label", host) or f"energy {match['channel']}"
        meter = _meter(folder, chip, label, "J", 1e-6, host)
        found.append(_found(meter, CounterFile(meter.name, folder / name, 1e-6, host), folder / name))
    return found


def _label(folder: Path, chip: str, channel: str, host: Host) -> str:
    own = _text(folder / "label", host)
    return own or (f"power {channel}" if channel != "1" else "power")


def _found(meter: Meter, source: "Rail | CounterFile", path: Path) -> Found:
    try:
        source.read(0)
    except MeterError as error:
        # Asked for now, so that a chip that does not answer is not listed as one that does.
        return Found(meter, reason=str(error), remedy=f"sudo chmod a+r {path}")
    return Found(meter, open=lambda: source)


def _meter(
    folder: Path, chip: str, label: str, unit: str, quantum: float, host: Host, average: str | None = None
) -> Meter:
    interval = _text(folder / "update_interval", host)
    period_s = int(interval) * 1e-3 if interval.isdecimal() and int(interval) else _USUAL_PERIOD_S.get(chip)
    period_s = period_s if period_s is not None else _OTHER_PERIOD_S
    if unit == "J":
        period_s = 0.1 if chip == "amd_energy" else min(period_s, 0.1)
    averaging_s = period_s
    if average is not None:
        shown = _text(folder / f"power{average}_average_interval", host)
        averaging_s = int(shown) * 1e-3 if shown.isdecimal() and int(shown) else period_s
    scope, covers = _coverage(folder, chip, label)
    return Meter(
        name=f"hwmon:{chip}:{label.replace(' ', '-').replace(',', '-')}",
        family="hwmon",
        scope=scope,
        covers=(covers,),
        unit="J" if unit == "J" else "W",
        quantum=quantum,
        update_period_s=period_s,
        gain=_KNOWN_GAIN if chip in _SHARES else _OTHER_GAIN,
        averaging_s=0.0 if unit == "J" else averaging_s,
        sampled_share=_SHARES.get(chip, 1.0),
        settle_s=2.5 * max(period_s, 0.02),
        poll_s=min(max(period_s / 4, 0.02), 0.25),
        note=f"sees 1/{round(1 / _SHARES[chip])} of the time" if chip in _SHARES else "",
    )


def _coverage(folder: Path, chip: str, label: str) -> tuple[Scope, str]:
    """Return scope and path of what a label stands for."""
    lowered = label.lower()
    if label in INPUTS:
        return "board", "system"
    if chip in ("amdgpu", "i915", "xe", "nouveau"):
        try:
            slot = (folder / "device").resolve().name
        except OSError:
            slot = chip
        return "gpu", f"system/gpu/{slot}"
    if chip == "power_meter":  # ACPI 4.0, section 10.4: the input of the whole machine
        return "system", "system"
    if lowered.startswith("pin") or "input power" in lowered:
        return "wall", "system"
    if lowered in ("power total", "pout", "pout1"):
        return "system", "system"
    if chip == "amd_energy":
        number = "".join(each for each in label if each.isdecimal()).lstrip("0") or "0"
        socket = "socket" in lowered
        return ("package", f"system/cpu{number}") if socket else ("part", f"system/cpu0/core{number}")
    within = f"{_WITHIN[label]}/" if label in _WITHIN else ""
    return "rail", f"system/rail/{within}{label}"


def _with_distinct_names(found: Sequence[Found]) -> list[Found]:
    """Number the meters that would have one name."""
    seen: dict[str, int] = {}
    distinct = []
    for each in found:
        name = each.meter.name
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1:
            number = seen[name]
            covers = (
                each.meter.covers
                if each.meter.scope in ("board", "wall", "system")
                else (f"{each.meter.covers[0]}-{number}",)
            )
            each = replace(each, meter=replace(each.meter, name=f"{name}-{number}", covers=covers))
        distinct.append(each)
    return distinct


def _text(path: Path, host: Host) -> str:
    try:
        return host.read(path).strip()
    except OSError:
        return ""


class Rail:
    """A rail whose power is its voltage (mV) times its current (mA)."""

    def __init__(self, voltage: Path, current: Path, host: Host) -> None:
        self.voltage = voltage
        self.current = current
        self.host = host

    def read(self, now_ns: int) -> Sequence[Reading]:
        """Return the watts of now. Raises MeterError when a file is gone, closed or holds no number."""
        values = []
        for path in (self.voltage, self.current):
            try:
                text = self.host.read(path).strip()
                values.append(int(text))
            except OSError as error:
                raise MeterError(f"{path}: {error.strerror or error}") from None
            except ValueError:
                raise MeterError(f"{path}: expected a whole number, got {text[:40]!r}") from None
        # A rail through which nothing flows may show a few milliamperes backwards.
        return (Reading(now_ns, max(values[0] * values[1] * 1e-6, 0.0)),)

    def offset(self) -> Offset | None:
        """Return None: the readings are of the lab's clock."""
        return None

    def notes(self) -> tuple[str, ...]:
        """Return nothing."""
        return ()

    def close(self) -> None:
        """Do nothing: the files are opened for each reading."""
