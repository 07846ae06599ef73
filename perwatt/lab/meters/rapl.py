"""Energy counters of Intel and AMD processors below /sys/class/powercap (RAPL), told apart by name.

A package counts cores, cache and built-in graphics, not memory; dram is apart; psys is what the maker calls the
platform and holds the package. The gain tolerance is what studies against wall meters leave open: about 3 % for Intel's
measured counters (Khan et al. 2018, "RAPL in Action"), 10 % for AMD's, which are modelled (Schöne et al. 2021, "Energy
Efficiency Aspects of the AMD Zen 2 Architecture").
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from perwatt.errors import MeterError
from perwatt.lab.meters.meter import Found, Host, Meter, Offset, Reading, Scope

UDEV_RULE = (
    """echo 'SUBSYSTEM=="powercap", ACTION=="add", RUN+="/bin/chmod a+r /sys%p/energy_uj"' """
    "| sudo tee /etc/udev/rules.d/70-powercap.rules && sudo udevadm control --reload "
    "&& sudo udevadm trigger --action=add --subsystem-match=powercap"
)
# Two counters of one machine that show the same to this many joules are one: theirs began at different loads.
MIRROR_J = 20.0
_PERIOD_S = 0.001
_ZONE = re.compile(r"(?P<control>intel-rapl(?:-mmio)?|amd-rapl):(?P<zone>\d+)(?::(?P<part>\d+))?$")
_PACKAGE = re.compile(r"package-(?P<package>\d+)(?:-die-(?P<die>\d+))?$")


@dataclass(frozen=True)
class _Zone:
    """One folder: its control type, number and name, the number of the package above it, and what it shows now."""

    folder: Path
    mmio: bool
    name: str
    package: str
    number: tuple[int, int]
    energy_j: float | None
    fault: str | None
    wrap_j: float | None


def find(host: Host) -> Sequence[Found]:
    """Return a meter for each counter that is no second view of another."""
    zones = _zones(host)
    vendor = _vendor(host)
    own = {(zone.name, zone.package) for zone in zones if not zone.mmio}
    kept: list[_Zone] = []
    mirrors: dict[str, list[str]] = {}
    for zone in zones:
        if zone.mmio and (zone.name, zone.package) in own:
            continue
        twin = next((each for each in kept if _mirrors(zone, each)), None)
        if twin is None:
            kept.append(zone)
        else:
            mirrors.setdefault(twin.name, []).append(zone.name)
    return [_found(zone, vendor, mirrors.get(zone.name, []), host) for zone in kept]


def _zones(host: Host) -> list[_Zone]:
    found: list[_Zone] = []
    names: dict[str, str] = {}
    folders = sorted((host.root / "sys/class/powercap").glob("*-rapl*:*"), key=lambda path: path.name.split(":"))
    for folder in folders:
        match = _ZONE.fullmatch(folder.name)
        name = _text(host, folder / "name")
        if match is None or name is None:
            continue
        above = f"{match['control']}:{match['zone']}"
        names.setdefault(folder.name, name)
        package = names.get(above, name)
        energy, fault = None, None
        try:
            energy = int(host.read(folder / "energy_uj")) * 1e-6
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            fault = error.strerror or str(error) if isinstance(error, OSError) else f"expected a number, got {error}"
        wrap = _text(host, folder / "max_energy_range_uj")
        found.append(
            _Zone(
                folder=folder,
                mmio="mmio" in match["control"],
                name=name,
                package=package,
                number=(int(match["zone"]), -1 if match["part"] is None else int(match["part"])),
                energy_j=energy,
                fault=fault,
                wrap_j=int(wrap) * 1e-6 if wrap is not None and wrap.isdecimal() else None,
            )
        )
    return found


def _mirrors(zone: _Zone, other: _Zone) -> bool:
    """Return whether a die shows the counter of another die of its package."""
    one, two = _PACKAGE.match(zone.package), _PACKAGE.match(other.package)
    if one is None or two is None or one["die"] is None or one["package"] != two["package"]:
        return False
    if zone.package == other.package or (zone.name != zone.package) != (other.name != other.package):
        return False
    if zone.name != zone.package and zone.name != other.name:
        return False
    if zone.energy_j is None or other.energy_j is None:
        return False
    return abs(zone.energy_j - other.energy_j) <= MIRROR_J


def _found(zone: _Zone, vendor: str, mirrors: Sequence[str], host: Host) -> Found:
    match = _PACKAGE.match(zone.package)
    package = match["package"] if match else str(zone.number[0])
    die = f"/die{match['die']}" if match and match["die"] and not mirrors else ""
    scope: Scope = "part"
    if zone.name == "psys":
        scope, covers, name = "psys", "system", "psys"
    elif zone.name == "dram":
        scope, covers, name = "dram", f"system/dram{package}{die}", f"dram-{package}{die.replace('/die', '-die-')}"
    elif zone.name == zone.package:
        scope, covers, name = "package", f"system/cpu{package}{die}", zone.name
    else:
        covers, name = f"system/cpu{package}{die}/{zone.name}", f"{zone.name}-{package}{die.replace('/die', '-die-')}"
    notes = []
    if mirrors:
        notes.append(f"{', '.join(mirrors)} show the same counter")
    if zone.mmio:
        notes.append("read through MMIO")
    meter = Meter(
        name=f"rapl:{name}",
        family="rapl",
        scope=scope,
        covers=(covers,),
        unit="J",
        quantum=61e-6 if vendor == "Intel" else 15.3e-6,  # 2^-14 J, or 2^-16 J on AMD; some server memory is finer
        update_period_s=_PERIOD_S,
        gain=0.03 if vendor == "Intel" else 0.1,
        wrap_j=zone.wrap_j,
        settle_s=0.01,
        poll_s=0.1,
        readers="root" if zone.fault else "everyone",
        note="; ".join(notes),
    )
    if zone.fault is not None:
        reason = f"{zone.folder / 'energy_uj'}: {zone.fault}; only root reads it since Linux 5.10 (CVE-2020-8694)"
        return Found(meter, reason=reason, remedy=UDEV_RULE)
    path = zone.folder / "energy_uj"
    # Python reads of root's own processes say nothing of who else may.
    return Found(replace(meter, readers=_readers(path)), open=lambda: CounterFile(meter.name, path, 1e-6, host))


def _readers(path: Path) -> str:
    try:
        mode = path.stat().st_mode
    except OSError:
        return "this user"
    return "everyone" if mode & 0o004 else "root"


def _vendor(host: Host) -> str:
    return "AMD" if "AuthenticAMD" in (_text(host, host.root / "proc/cpuinfo") or "") else "Intel"


def _text(host: Host, path: Path) -> str | None:
    try:
        return host.read(path).strip()
    except OSError:
        return None


class CounterFile:
    """A file with one whole number: a counter of energy, or a power, in units of `unit` joules or watts."""

    def __init__(self, name: str, path: Path, unit: float, host: Host) -> None:
        self.name = name
        self.path = path
        self.unit = unit
        self.host = host

    def read(self, now_ns: int) -> Sequence[Reading]:
        """Return the number of now. Raises MeterError when the file is gone, closed or holds something else."""
        try:
            text = self.host.read(self.path).strip()
            return (Reading(now_ns, int(text) * self.unit),)
        except OSError as error:
            raise MeterError(f"{self.path}: {error.strerror or error}") from None
        except ValueError:
            raise MeterError(f"{self.path}: expected a whole number, got {text[:40]!r}") from None

    def offset(self) -> Offset | None:
        """Return None: the readings are of the lab's clock."""
        return None

    def notes(self) -> tuple[str, ...]:
        """Return nothing."""
        return ()

    def close(self) -> None:
        """Do nothing: the file is opened for each reading."""
