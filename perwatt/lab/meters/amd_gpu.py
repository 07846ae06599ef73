"""AMD GPUs through amdsmi: the socket's energy counter where it agrees with the power shown, else power integrated.

The counter is known to be wrong on some GPUs and to stand still within a process on others (amdsmi#38,
rocm_smi_lib#180), so it is believed only after half a second in which it did what the power said.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from perwatt.errors import MeterError
from perwatt.lab.meters.meter import Found, Host, Meter, Offset, Reading

GAIN = 0.05
PERIOD_S = 0.01
CHECK_S = 0.5
AGREE = 2.0


def find(host: Host) -> Sequence[Found]:
    """Return a meter for each GPU; none without the library or without a GPU of this kind."""
    library: Any = host.library("amdsmi")
    if library is None:
        if (host.root / "sys/module/amdgpu").is_dir():
            meter = _meter("amd:0", "0", "J", "")
            remedy = "python -m pip install amdsmi"
            return [Found(meter, reason="AMD's driver is here, its Python library amdsmi is not", remedy=remedy)]
        return []
    failure = library.AmdSmiException
    try:
        library.amdsmi_init()
        handles = library.amdsmi_get_processor_handles()
    except failure as error:
        return [Found(_meter("amd:0", "0", "J", ""), reason=f"amdsmi does not start: {error}", remedy="amd-smi list")]
    return [_device(library, handle, index, host) for index, handle in enumerate(handles)]


def _device(library: Any, handle: Any, index: int, host: Host) -> Found:
    failure, name = library.AmdSmiException, f"amd:{index}"
    try:
        slot = str(library.amdsmi_get_gpu_device_bdf(handle))
    except failure:
        slot = str(index)

    def energy() -> float:
        count: Mapping[str, Any] = library.amdsmi_get_energy_count(handle)
        # The name of the field changed with ROCm 6.2.
        return float(count.get("energy_accumulator", count.get("power"))) * float(count["counter_resolution"]) * 1e-6

    def power() -> float:
        shown: Mapping[str, Any] = library.amdsmi_get_power_info(handle)
        for key in ("current_socket_power", "average_socket_power", "socket_power"):
            if isinstance(shown.get(key), int | float):
                return float(shown[key])
        raise MeterError(f"amdsmi: expected a socket power, got {dict(shown)}")

    failures = (failure, TypeError, KeyError, ValueError, MeterError)
    try:
        watts = power()
        before, before_ns = energy(), host.clock_ns()
        host.sleep(CHECK_S)
        counted = (energy() - before) / ((host.clock_ns() - before_ns) * 1e-9)
        watts = (watts + power()) / 2
        why = None
        if not watts / AGREE <= counted <= watts * AGREE:
            why = f"the counter says {counted:.3g} W where the power is {watts:.3g} W"
    except failures as error:
        why = str(error)
    if why is None:
        return Found(_meter(name, slot, "J", ""), open=lambda: AmdGpu(energy, failures))
    try:
        power()
    except failures as error:
        return Found(_meter(name, slot, "W", ""), reason=f"amdsmi gives neither energy ({why}) nor power ({error})")
    return Found(_meter(name, slot, "W", f"power integrated: {why}"), open=lambda: AmdGpu(power, failures))


def _meter(name: str, slot: str, unit: str, note: str) -> Meter:
    return Meter(
        name=name,
        family="amd",
        scope="gpu",
        covers=(f"system/gpu/{slot}",),
        unit="J" if unit == "J" else "W",
        quantum=15.3e-6 if unit == "J" else 1.0,
        update_period_s=PERIOD_S if unit == "J" else 0.1,
        gain=GAIN,
        averaging_s=0.0,
        settle_s=0.25,
        poll_s=0.025,
        note=note,
    )


class AmdGpu:
    """One number of one GPU: joules or watts."""

    def __init__(self, value: Callable[[], float], failures: tuple[type[Exception], ...]) -> None:
        self.value = value
        self.failures = failures

    def read(self, now_ns: int) -> Sequence[Reading]:
        """Return the number of now. Raises MeterError when the GPU or its driver does not answer."""
        try:
            return (Reading(now_ns, self.value()),)
        except self.failures as error:
            raise MeterError(f"amdsmi: {error}") from None

    def offset(self) -> Offset | None:
        """Return None: the readings are of the lab's clock."""
        return None

    def notes(self) -> tuple[str, ...]:
        """Return nothing."""
        return ()

    def close(self) -> None:
        """Do nothing: the driver stays loaded."""
