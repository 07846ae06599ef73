"""The simulated machines by name. Each has one trap that other tools are known to have fallen into, or several."""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from perwatt.lab.virtual import sensors
from perwatt.lab.virtual.sensors import FakeNvml, LogWriter
from perwatt.lab.virtual.trace import Level, Phase, make
from perwatt.lab.virtual.world import EPOCH_S, ZERO_NS, Content, World

INTEL_WRAP_J = 262143.328850
AMD_WRAP_J = 65532.610987
PLUG = "http://plug.local/status"
POWERCAP, HWMON = "sys/class/powercap", "sys/class/hwmon"
Build = Callable[[World], None]


@dataclass(frozen=True)
class VirtualMachine:
    """One machine: its name, what it shows, the power of its parts, and what puts its meters in place."""

    name: str
    about: str
    parts: dict[str, Level]
    build: Build


def _zone(world: World, folder: str, name: str, value: sensors.Value | None, wrap_j: float = INTEL_WRAP_J) -> None:
    """Put down one RAPL counter; without a value it is closed."""
    energy: Content = sensors.closed if value is None else sensors.text(value, 1e-6)
    world.add(
        {
            f"{POWERCAP}/{folder}/name": f"{name}\n",
            f"{POWERCAP}/{folder}/energy_uj": energy,
            f"{POWERCAP}/{folder}/max_energy_range_uj": f"{round(wrap_j * 1e6)}\n",
        }
    )


def _rapl(
    world: World, part: str, start_j: float, wrap_j: float = INTEL_WRAP_J, quantum_j: float = 61e-6
) -> sensors.Value:
    return sensors.counter(world, part, 0.000976, quantum_j, start_j, wrap_j)


def _processor(world: World, vendor: str) -> None:
    world.add({"proc/cpuinfo": f"vendor_id\t: {vendor}\nmodel name\t: simulated\n"})


def _intel_server(world: World) -> None:
    _processor(world, "GenuineIntel")
    for socket in (0, 1):
        start_j = world.generator.uniform(0, INTEL_WRAP_J)
        package = _rapl(world, f"cpu{socket}", start_j)
        _zone(world, f"intel-rapl:{socket}", f"package-{socket}", package)
        memory = _rapl(world, f"dram{socket}", world.generator.uniform(0, 65e3), AMD_WRAP_J, 15.3e-6)
        _zone(world, f"intel-rapl:{socket}:0", "dram", memory, AMD_WRAP_J)
        _zone(world, f"intel-rapl-mmio:{socket}", f"package-{socket}", package)


def _intel_laptop(world: World) -> None:
    _processor(world, "GenuineIntel")
    names = ("package-0", "core", "uncore")
    folders = ("intel-rapl:0", "intel-rapl:0:0", "intel-rapl:0:1")
    for folder, name, part in zip(folders, names, ("cpu0", "core0", "uncore0"), strict=True):
        _zone(world, folder, name, _rapl(world, part, world.generator.uniform(0, INTEL_WRAP_J)))
    _zone(world, "intel-rapl:1", "psys", _rapl(world, "system", world.generator.uniform(0, INTEL_WRAP_J)))


def _closed_laptop(world: World) -> None:
    _processor(world, "GenuineIntel")
    _zone(world, "intel-rapl:0", "package-0", None)
    _zone(world, "intel-rapl:0:0", "core", None)
    _battery(world)


def _battery(world: World, gone_after_s: float | None = None) -> None:
    folder = "sys/class/power_supply/BAT0"
    watts = sensors.power(world, "system", 1.5, 1.5, 0.01)

    def status() -> str:
        if gone_after_s is not None and world.now_s > gone_after_s:
            sensors.gone()
        return "Discharging\n"

    world.add(
        {
            f"{folder}/type": "Battery\n",
            f"{folder}/status": status,
            f"{folder}/power_now": sensors.text(watts, 1e-6),
            "sys/class/power_supply/hidpp_battery_0/type": "Battery\n",
            "sys/class/power_supply/hidpp_battery_0/scope": "Device\n",
            "sys/class/power_supply/hidpp_battery_0/status": "Discharging\n",
        }
    )


def _unplugged(world: World) -> None:
    _battery(world, gone_after_s=world.trace.amidst_work_s)


def _amd_desktop(world: World) -> None:
    """So close to the wrap that it comes within the first seconds of work."""
    _processor(world, "AuthenticAMD")
    start_j = AMD_WRAP_J - world.generator.uniform(200, 900)
    _zone(world, "intel-rapl:0", "package-0", _rapl(world, "cpu0", start_j, AMD_WRAP_J, 15.3e-6), AMD_WRAP_J)
    _zone(world, "intel-rapl:0:0", "core", _rapl(world, "core0", 40.0, AMD_WRAP_J, 15.3e-6), AMD_WRAP_J)


def _threadripper(world: World) -> None:
    _processor(world, "AuthenticAMD")
    package = _rapl(world, "cpu0", world.generator.uniform(0, AMD_WRAP_J), AMD_WRAP_J, 15.3e-6)
    for die in (0, 1):
        _zone(world, f"intel-rapl:{die}", f"package-0-die-{die}", package, AMD_WRAP_J)
        _zone(world, f"intel-rapl:{die}:0", "core", _rapl(world, "core0", 5e3 * die, AMD_WRAP_J, 15.3e-6), AMD_WRAP_J)


def _h100(world: World) -> None:
    _intel_server(world)
    energy = sensors.part_time_counter(world, "gpu0", 0.1, 0.25)
    power = sensors.power(world, "gpu0", 0.1, 0.1, 0.001, 0.25)
    world.libraries["pynvml"] = FakeNvml([("NVIDIA H100 80GB HBM3", 9, energy, power)])
    world.add({"proc/driver/nvidia/version": "simulated\n"})


def _two_gpus(world: World) -> None:
    """Whose energy counter stands still on one, and is missing on the other: power, the mean of a second, is left."""
    _processor(world, "AuthenticAMD")
    gpus = []
    for index in (0, 1):
        power = sensors.power(world, f"gpu{index}", 0.1, 1.0, 0.001)
        gpus.append(("NVIDIA GeForce RTX 3090", 7, (lambda: 1234.5) if index == 0 else None, power))
    world.libraries["pynvml"] = FakeNvml(gpus)
    world.add({"proc/driver/nvidia/version": "simulated\n"})


def _stepping_gpu(world: World) -> None:
    _processor(world, "AuthenticAMD")
    energy = sensors.counter(world, "gpu0", 0.1, 0.001, 5e6)
    power = sensors.power(world, "gpu0", 0.1, 1.0, 0.001)
    world.libraries["pynvml"] = FakeNvml([("NVIDIA L4", 8, energy, power)])
    world.add({"proc/driver/nvidia/version": "simulated\n"})


def _jetson(world: World) -> None:
    folder = f"{HWMON}/hwmon1"
    tree: dict[str, Content] = {f"{folder}/name": "ina3221\n", f"{folder}/update_interval": "20\n"}
    for channel, (label, part) in enumerate((("VDD_IN", "system"), ("VDD_CPU_GPU_CV", "cpu0"), ("VDD_SOC", "soc")), 1):
        amperes = sensors.power(world, part, 0.02, 0.02, 5.0 * 0.008, 1 / 6)
        tree |= {
            f"{folder}/in{channel}_label": f"{label}\n",
            f"{folder}/in{channel}_input": "5000\n",
            f"{folder}/in{channel}_enable": "1\n",
            f"{folder}/shunt{channel}_resistor": "5000\n",
            f"{folder}/curr{channel}_input": sensors.text(lambda amperes=amperes: amperes() / 5.0, 1e-3),  # type: ignore[misc]
        }
    tree |= {f"{folder}/in7_label": "sum of shunt voltages\n", f"{folder}/in7_input": "1\n"}
    world.add(tree)
    world.libraries["pynvml"] = FakeNvml([("Orin (nvgpu)", 7, None, None)])
    world.add({"proc/driver/nvidia/version": "simulated\n"})


def _still(world: World) -> None:
    _processor(world, "GenuineIntel")
    stop_s = world.trace.amidst_work_s
    running = _rapl(world, "cpu0", 100.0)
    _zone(world, "intel-rapl:0", "package-0", sensors.until(world, stop_s, running, sensors.standing_still(running)))


def _going_back(world: World) -> None:
    _processor(world, "GenuineIntel")
    reset_s = world.trace.amidst_work_s
    running = _rapl(world, "cpu0", 50_000.0)

    def after() -> float:
        return running() - 40_000

    _zone(world, "intel-rapl:0", "package-0", sensors.until(world, reset_s, running, after))


def _wall_log(world: World) -> None:
    path = world.root / "watts.csv"
    epoch_s = EPOCH_S + ZERO_NS * 1e-9
    LogWriter(world, path, "wall", 1.0, -3.0, epoch_s, 0.05)
    world.wanted = f"log:{path}"


def _plug(world: World, hangs: float = 0.02) -> None:
    watts = sensors.power(world, "wall", 1.0, 1.0, 0.1)

    def answer() -> bytes:
        world.sleep(world.generator.uniform(0.02, 0.08))
        if world.generator.random() < hangs:
            world.sleep(2.0)
            raise TimeoutError("timed out")
        return json.dumps({"meters": [{"power": watts()}]}).encode()

    world.pages[PLUG] = answer
    world.wanted = f"{PLUG}#meters.0.power"


def _hanging_plug(world: World) -> None:
    """Answers until the middle of the trace, and never again."""
    _plug(world, 0.0)
    healthy = world.pages[PLUG]

    def answer() -> bytes:
        if world.now_s < world.trace.amidst_work_s:
            return healthy()
        world.sleep(2.0)
        raise TimeoutError("timed out")

    world.pages[PLUG] = answer


def _cloud(world: World) -> None:
    _processor(world, "GenuineIntel")


_SERVER = {
    "cpu0": Level(45, 180),
    "cpu1": Level(42, 170),
    "dram0": Level(6, 22),
    "dram1": Level(6, 21),
    "gpu0": Level(70, 480),
}
_DESKTOP = {"cpu0": Level(30, 140), "core0": Level(5, 100), "gpu0": Level(25, 320), "gpu1": Level(22, 60)}
_LAPTOP = {"cpu0": Level(4, 28), "core0": Level(1, 20), "uncore0": Level(0.5, 2), "system": Level(9, 41)}
_BOARD = {"system": Level(6, 22), "cpu0": Level(1.5, 12), "soc": Level(1.6, 3)}
_HOME = {"wall": Level(48, 190)}

MACHINES: tuple[VirtualMachine, ...] = (
    VirtualMachine(
        "intel-server", "two sockets with memory, each package seen a second time through MMIO", _SERVER, _intel_server
    ),
    VirtualMachine("intel-laptop", "package, core and uncore below it, psys over all", _LAPTOP, _intel_laptop),
    VirtualMachine("closed-laptop", "RAPL only for root, and a battery", _LAPTOP, _closed_laptop),
    VirtualMachine("amd-desktop", "a counter that wraps every few minutes, and soon", _DESKTOP, _amd_desktop),
    VirtualMachine("threadripper", "two dies that show one counter", _DESKTOP, _threadripper),
    VirtualMachine("h100", "a GPU whose sensor sees a quarter of the time, in an Intel server", _SERVER, _h100),
    VirtualMachine("l4", "a GPU whose energy counter steps every 100 ms", _DESKTOP, _stepping_gpu),
    VirtualMachine(
        "two-3090", "two GPUs without a working energy counter; power is the mean of a second", _DESKTOP, _two_gpus
    ),
    VirtualMachine("jetson", "rails that hold each other; NVML is there and knows nothing", _BOARD, _jetson),
    VirtualMachine("wall-log", "a wall meter's file; its clock is 3 s off and rows are missing", _HOME, _wall_log),
    VirtualMachine("plug", "a smart plug that answers JSON, sometimes late", _HOME, _plug),
    VirtualMachine("still", "a counter that stops counting", _DESKTOP, _still),
    VirtualMachine("going-back", "a counter that goes back without a wrap", _DESKTOP, _going_back),
    VirtualMachine("unplugged", "a battery that is pulled out", _LAPTOP, _unplugged),
    VirtualMachine("hanging-plug", "a smart plug that stops answering", _HOME, _hanging_plug),
    VirtualMachine("cloud", "no meter at all", _DESKTOP, _cloud),
)


def machine(name: str) -> VirtualMachine | None:
    """Return the simulated machine of that name, or None."""
    return next((each for each in MACHINES if each.name == name), None)


def world_of(kind: VirtualMachine, root: Path, phases: Sequence[Phase], seed: int) -> World:
    """Return a simulated machine that goes through the phases; its files lie below the empty folder `root`."""
    world = World(root, make(kind.parts, phases, seed), seed, generator=random.Random(seed))
    kind.build(world)
    return world
