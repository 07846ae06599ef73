"""Apple silicon through zeus-apple-silicon (IOReport), which needs no root: CPU, GPU, neural engine and memory.

The counters are taken to be modelled, not measured, hence the wide gain. Clusters are left out: their totals and their
cores' do not agree, only the chip's CPU total is read.
"""

from collections.abc import Callable, Sequence
from typing import Any

from perwatt.errors import MeterError
from perwatt.lab.meters.meter import Found, Host, Meter, Offset, Reading, Scope

GAIN = 0.1
PERIOD_S = 0.1
# Field of the library, name, scope, what it covers.
_FIELDS: tuple[tuple[str, str, Scope, str], ...] = (
    ("cpu_total_mj", "cpu", "package", "system/cpu0"),
    ("gpu_mj", "gpu", "part", "system/gpu/apple"),
    ("ane_mj", "ane", "part", "system/ane"),
    ("dram_mj", "dram", "dram", "system/dram0"),
)
_INSTALL = "python -m pip install zeus-apple-silicon"


def find(host: Host) -> Sequence[Found]:
    """Return a meter for each part that this chip counts; none on other machines."""
    library: Any = host.library("zeus_apple_silicon")
    if library is None:
        if (host.root / "System/Library/Extensions/AppleARMPlatform.kext").exists():
            return [Found(_meter(*_FIELDS[0][1:]), reason="its library is not installed", remedy=_INSTALL)]
        return []
    try:
        monitor = library.AppleEnergyMonitor()
        shown = monitor.get_cumulative_energy()
    except (RuntimeError, OSError, ValueError) as error:
        return [Found(_meter(*_FIELDS[0][1:]), reason=f"zeus-apple-silicon: {error}")]
    return [
        Found(_meter(name, scope, covers), open=_opener(monitor, key))
        for key, name, scope, covers in _FIELDS
        if getattr(shown, key, None) is not None
    ]


def _opener(monitor: Any, key: str) -> Callable[[], "AppleCounter"]:
    return lambda: AppleCounter(monitor, key)


def _meter(name: str, scope: Scope, covers: str) -> Meter:
    return Meter(
        name=f"apple:{name}",
        family="apple",
        scope=scope,
        covers=(covers,),
        unit="J",
        quantum=1e-3,
        update_period_s=PERIOD_S,
        gain=GAIN,
        settle_s=5 * PERIOD_S,
        poll_s=PERIOD_S / 4,
        note="believed to be modelled, not measured",
    )


class AppleCounter:
    """One part's counter."""

    def __init__(self, monitor: Any, key: str) -> None:
        self.monitor = monitor
        self.key = key

    def read(self, now_ns: int) -> Sequence[Reading]:
        """Return the joules so far. Raises MeterError when the library does not answer."""
        try:
            shown = getattr(self.monitor.get_cumulative_energy(), self.key)
        except (RuntimeError, OSError, ValueError) as error:
            raise MeterError(f"zeus-apple-silicon: {error}") from None
        if shown is None:
            raise MeterError(f"zeus-apple-silicon: expected {self.key}, got nothing")
        return (Reading(now_ns, float(shown) * 1e-3),)

    def offset(self) -> Offset | None:
        """Return None: the readings are of the lab's clock."""
        return None

    def notes(self) -> tuple[str, ...]:
        """Return nothing."""
        return ()

    def close(self) -> None:
        """Do nothing."""
