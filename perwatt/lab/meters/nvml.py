"""NVIDIA GPUs through NVML: the energy counter where it moves, else power whose averaging is known; each a whole board.

Both are right to about 5 % (NVML's reference on the power reading). On Ampere and later, but not GA100, power is the
mean of the last second; on GA100 and what came before it is an instant (NVML's reference). On A100 and H100 the sensor
sees a quarter of the time (Yang, Adamek, Armour 2024, "Part-time Power Measurements", arXiv:2312.02741), and chips of
their kind are taken to do the same.
"""

from collections.abc import Callable, Sequence
from typing import Any

from perwatt.errors import MeterError
from perwatt.lab.meters.meter import Found, Host, Meter, Offset, Reading

GAIN = 0.05
PERIOD_S = 0.1
MOVES_WITHIN_S = 0.5
_PARTIAL = ("A100", "A800", "A30", "H100", "H200", "H800", "H20", "GH200")
_INSTANT = ("A100", "A800", "A30")
_AMPERE = 7
_INSTALL = "python -m pip install 'perwatt[bench]'"


def find(host: Host) -> Sequence[Found]:
    """Return a meter for each GPU, closed where NVML does not answer for it; none without a driver."""
    library: Any = host.library("pynvml")
    if library is None:
        if (host.root / "proc/driver/nvidia/version").exists():
            meter = _meter("nvml:0", "gpu0", "J", "")
            return [Found(meter, reason="NVIDIA's driver is here, its Python library is not", remedy=_INSTALL)]
        return []
    try:
        library.nvmlInit()
        count = library.nvmlDeviceGetCount()
    except library.NVMLError as error:
        if not (host.root / "proc/driver/nvidia/version").exists():
            return []  # no driver, no GPU of this kind
        return [Found(_meter("nvml:0", "gpu0", "J", ""), reason=f"NVML does not start: {error}", remedy="nvidia-smi")]
    return [_device(library, index, host) for index in range(count)]


def _device(library: Any, index: int, host: Host) -> Found:
    try:
        handle = library.nvmlDeviceGetHandleByIndex(index)
        product, uuid = _words(library.nvmlDeviceGetName(handle)), _words(library.nvmlDeviceGetUUID(handle))
    except library.NVMLError as error:
        return Found(_meter(f"nvml:{index}", f"gpu{index}", "J", ""), reason=f"NVML: {error}", remedy="nvidia-smi")
    name = f"nvml:{index}"

    def energy() -> float:
        return float(library.nvmlDeviceGetTotalEnergyConsumption(handle)) * 1e-3

    def power() -> float:
        return float(library.nvmlDeviceGetPowerUsage(handle)) * 1e-3

    why = _moves(energy, library.NVMLError, host)
    if why is None:
        return Found(_meter(name, uuid, "J", product), open=lambda: Gpu(name, energy, library.NVMLError))
    try:
        power()
    except library.NVMLError as error:
        reason = f"{product}: NVML gives neither energy ({why}) nor power ({error})"
        # On a Jetson NVML starts and answers neither.
        remedy = "use the board's rails" if "nvgpu" in product.lower() or "orin" in product.lower() else None
        return Found(_meter(name, uuid, "W", product), reason=reason, remedy=remedy)
    try:
        architecture = int(library.nvmlDeviceGetArchitecture(handle))
    except library.NVMLError:
        architecture = 0
    averaging_s = 1.0 if architecture >= _AMPERE and not any(word in product for word in _INSTANT) else 0.0
    meter = _meter(name, uuid, "W", product, averaging_s, f"power integrated: the energy counter {why}")
    return Found(meter, open=lambda: Gpu(name, power, library.NVMLError))


def _moves(energy: Callable[[], float], failure: type[Exception], host: Host) -> str | None:
    """Return None when the energy counter moves forward within half a second, else what it does."""
    try:
        before = energy()
        for _ in range(10):
            host.sleep(MOVES_WITHIN_S / 10)
            after = energy()
            if after != before:
                return None if after > before else "goes back"
    except failure as error:
        return f"says {error}"
    return "stands still"


def _meter(name: str, gpu: str, unit: str, product: str, averaging_s: float = 0.0, note: str = "") -> Meter:
    words = product.replace("-", " ").split()
    partial = any(word in words for word in _PARTIAL)
    notes = [product, note, "its sensor sees a quarter of the time" if partial else ""]
    return Meter(
        name=name,
        family="nvml",
        scope="gpu",
        covers=(f"system/gpu/{gpu}",),
        unit="J" if unit == "J" else "W",
        quantum=1e-3,
        update_period_s=PERIOD_S,
        gain=GAIN,
        averaging_s=averaging_s,
        sampled_share=0.25 if partial else 1.0,
        settle_s=5 * PERIOD_S,
        poll_s=PERIOD_S / 4,
        note="; ".join(each for each in notes if each),
    )


def _words(text: str | bytes) -> str:
    return text.decode(errors="replace") if isinstance(text, bytes) else text


class Gpu:
    """One number of one GPU: joules or watts."""

    def __init__(self, name: str, value: Callable[[], float], failure: type[Exception]) -> None:
        self.name = name
        self.value = value
        self.failure = failure

    def read(self, now_ns: int) -> Sequence[Reading]:
        """Return the number of now. Raises MeterError when the GPU has fallen off or its driver does not answer."""
        try:
            return (Reading(now_ns, self.value()),)
        except self.failure as error:
            raise MeterError(f"NVML: {error}") from None

    def offset(self) -> Offset | None:
        """Return None: the readings are of the lab's clock."""
        return None

    def notes(self) -> tuple[str, ...]:
        """Return nothing."""
        return ()

    def close(self) -> None:
        """Do nothing: the driver stays loaded, other meters of this process may need it."""
