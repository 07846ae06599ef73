"""A laptop's batteries while they discharge, all summed: the system's power behind the power supply.

The gauge of a battery updates every second or so and is right to a few percent. While a charger is in, part of the
power comes from the wall and the figure would be wrong, so there is none.
"""

from collections.abc import Sequence
from pathlib import Path

from perwatt.errors import MeterError
from perwatt.lab.meters.meter import Found, Host, Meter, Offset, Reading

GAIN = 0.05
PERIOD_S = 1.0
METER = Meter(
    name="battery",
    family="battery",
    scope="system",
    covers=("system",),
    unit="W",
    quantum=0.01,
    update_period_s=PERIOD_S,
    gain=GAIN,
    averaging_s=PERIOD_S,
    sampled_share=0.5,  # gauges differ in how they average, and none says
    settle_s=2 * PERIOD_S,
    poll_s=0.1,
    note="behind the power supply; only while discharging",
)


def find(host: Host) -> Sequence[Found]:
    """Return one meter for all batteries that power the machine, closed while they are being charged."""
    folders = [path for path in sorted((host.root / "sys/class/power_supply").glob("*")) if _is_battery(path, host)]
    if not folders:
        return []
    batteries = Batteries(folders, host)
    try:
        batteries.read(0)
    except MeterError as error:
        charger = "wall's power" in str(error)
        return [Found(METER, reason=str(error), remedy="unplug the charger" if charger else None)]
    return [Found(METER, open=lambda: Batteries(folders, host))]


def _text(path: Path, host: Host) -> str:
    try:
        return host.read(path).strip()
    except OSError:
        return ""


def _is_battery(folder: Path, host: Host) -> bool:
    """Return whether it is a battery, and not one of a mouse or a headset."""
    return _text(folder / "type", host) == "Battery" and _text(folder / "scope", host) != "Device"


class Batteries:
    """The power that flows out of all batteries."""

    def __init__(self, folders: Sequence[Path], host: Host) -> None:
        self.folders = folders
        self.host = host

    def read(self, now_ns: int) -> Sequence[Reading]:
        """Return the watts of now. Raises MeterError when a battery is charged, gone, or shows no power."""
        watts, discharging = 0.0, False
        for folder in self.folders:
            status = _text(folder / "status", self.host)
            if not status:
                raise MeterError(f"battery {folder.name} is gone")
            if status == "Charging":
                raise MeterError(f"battery {folder.name} is being charged, the wall's power is not seen")
            discharging = discharging or status == "Discharging"
            watts += self._watts(folder) if status == "Discharging" else 0.0
        if not discharging:
            raise MeterError("the machine runs from its charger, the wall's power is not seen")
        return (Reading(now_ns, watts),)

    def _watts(self, folder: Path) -> float:
        shown = _text(folder / "power_now", self.host)
        if shown.lstrip("-").isdecimal():
            return abs(int(shown)) * 1e-6
        current, voltage = (_text(folder / name, self.host) for name in ("current_now", "voltage_now"))
        if not current.lstrip("-").isdecimal() or not voltage.isdecimal():
            raise MeterError(f"battery {folder.name}: expected power_now, or current_now and voltage_now, got neither")
        return abs(int(current)) * int(voltage) * 1e-12

    def offset(self) -> Offset | None:
        """Return None: the readings are of the lab's clock."""
        return None

    def notes(self) -> tuple[str, ...]:
        """Return nothing."""
        return ()

    def close(self) -> None:
        """Do nothing."""
