"""Every meter of a simulated machine is found with what it overlaps, and `auto` adds up no joule twice."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from perwatt.errors import InputError, MeterError
from perwatt.lab import meters
from perwatt.lab.meters.meter import SCOPES, Found, Host, overlap
from perwatt.lab.virtual.machines import MACHINES
from perwatt.lab.virtual.stage import stage
from perwatt.lab.virtual.world import World


@pytest.fixture
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    with stage(request.param) as made:
        made.sleep(0.5)
        yield made


def found_on(world: World) -> dict[str, Found]:
    return {each.meter.name: each for each in meters.discover(world.host(), world.wanted)}


def on(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("world", [name], indirect=True)


@pytest.mark.parametrize("world", [each.name for each in MACHINES], indirect=True)
def test_whatever_is_found_says_what_it_is(world: World) -> None:
    found = found_on(world)
    for name, each in found.items():
        assert each.meter.scope in SCOPES
        assert each.meter.covers
        assert each.meter.update_period_s > 0
        assert 0 < each.meter.gain < 0.2
        assert (each.open is None) == (each.reason is not None)
        assert all(name in found[other].overlaps for other in each.overlaps)
    choice = meters.choose(tuple(found.values()))
    chosen = [found[name] for name in choice.names]
    assert all(each.open is not None for each in chosen)
    assert not any(overlap(a.meter, b.meter) for a in chosen for b in chosen if a is not b)
    assert choice.names or choice.why


@on("intel-server")
def test_the_second_view_of_a_package_is_dropped_and_memory_is_apart(world: World) -> None:
    found = found_on(world)
    assert set(found) == {"rapl:package-0", "rapl:package-1", "rapl:dram-0", "rapl:dram-1"}
    assert not any(each.overlaps for each in found.values())
    assert set(meters.choose(tuple(found.values())).names) == set(found)


@on("intel-server")
def test_the_second_view_is_used_where_it_is_the_only_one(world: World) -> None:
    zone = world.root / "sys/class/powercap/intel-rapl:0"
    (zone / "energy_uj").unlink()
    world.files[zone / "energy_uj"] = lambda: zone.joinpath("energy_uj").read_text()
    found = found_on(world)
    assert "MMIO" in found["rapl:package-0"].meter.note


@on("intel-laptop")
def test_psys_overlaps_the_package_and_the_package_its_cores(world: World) -> None:
    found = found_on(world)
    assert set(found["rapl:psys"].overlaps) == {"rapl:package-0", "rapl:core-0", "rapl:uncore-0"}
    assert set(found["rapl:package-0"].overlaps) == {"rapl:psys", "rapl:core-0", "rapl:uncore-0"}
    assert "rapl:uncore-0" not in found["rapl:core-0"].overlaps
    everything = tuple(found.values())
    assert meters.choose(everything).names == ("rapl:package-0",)
    with pytest.raises(InputError, match="share no joules, but rapl:package-0 and rapl:psys do"):
        meters.choose(everything, "rapl:package-0,rapl:psys")


@on("threadripper")
def test_dies_that_mirror_each_other_count_once(world: World) -> None:
    found = found_on(world)
    packages = [each for each in found.values() if each.meter.scope == "package"]
    assert [each.meter.name for each in packages] == ["rapl:package-0-die-0"]
    assert "package-0-die-1" in packages[0].meter.note


@on("closed-laptop")
def test_a_closed_meter_comes_with_the_command_that_opens_it(world: World) -> None:
    found = found_on(world)
    package = found["rapl:package-0"]
    assert package.open is None
    assert "Permission denied" in (package.reason or "")
    assert "udevadm trigger" in (package.remedy or "")
    assert meters.choose(tuple(found.values())).names == ("battery",)
    with pytest.raises(InputError, match="udev"):
        meters.choose(tuple(found.values()), "rapl:package-0")
    without_battery = tuple(each for each in found.values() if each.meter.family == "rapl")
    choice = meters.choose(without_battery)
    assert choice.names == ()
    assert "closed" in choice.why
    assert "udev" in (choice.remedy or "")


@on("jetson")
def test_a_boards_input_is_not_added_to_what_it_feeds(world: World) -> None:
    found = found_on(world)
    rails = {name: each for name, each in found.items() if each.meter.family == "hwmon"}
    assert set(rails) == {f"hwmon:ina3221:{rail}" for rail in ("VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC")}
    assert set(rails["hwmon:ina3221:VDD_IN"].overlaps) >= {"hwmon:ina3221:VDD_CPU_GPU_CV", "hwmon:ina3221:VDD_SOC"}
    everything = tuple(found.values())
    for device in ("cpu", "cuda"):  # NVML is there, and knows nothing
        assert meters.choose(everything, device=device).names == ("hwmon:ina3221:VDD_IN",)
    assert "neither energy" in (found["nvml:0"].reason or "")


@on("two-3090")
def test_power_is_integrated_where_the_energy_counter_does_not_count(world: World) -> None:
    found = found_on(world)
    for name, why in (("nvml:0", "stands still"), ("nvml:1", "Not Supported")):
        meter = found[name].meter
        assert (meter.unit, meter.averaging_s, meter.scope) == ("W", 1.0, "gpu")
        assert why in meter.note
    assert meters.choose(tuple(found.values()), device="cuda", gpu=1).names == ("nvml:1",)
    assert meters.choose(tuple(found.values()), device="cpu").names == ()


@on("h100")
def test_a_gpu_that_is_seen_part_of_the_time_says_so(world: World) -> None:
    meter = found_on(world)["nvml:0"].meter
    assert (meter.unit, meter.sampled_share) == ("J", 0.25)


@on("cloud")
def test_without_a_meter_the_reason_says_how_to_get_one(world: World) -> None:
    choice = meters.choose(meters.discover(world.host()))
    assert choice.names == ()
    with (
        meters.open_meters((), choice, world.host()) as meter,
        pytest.raises(MeterError, match="no meter: this machine shows none; give a wall meter"),
    ):
        meter.energy(meter.mark(), meter.mark())


def test_a_name_that_is_no_meter_is_refused() -> None:
    with pytest.raises(InputError, match="expected one of auto, none, got 'rapl:package-7'"):
        meters.choose((), "rapl:package-7")
    assert meters.choose((), "none").names == ()


def test_other_sensors_of_a_board_are_found(tmp_path: Path) -> None:
    tree = {
        "sys/class/hwmon/hwmon0/name": "k10temp",
        "sys/class/hwmon/hwmon1/name": "ina226",
        "sys/class/hwmon/hwmon1/label": "5V rail",
        "sys/class/hwmon/hwmon1/power1_input": "2500000",
        "sys/class/hwmon/hwmon1/update_interval": "36",
        "sys/class/hwmon/hwmon2/name": "amdgpu",
        "sys/class/hwmon/hwmon2/power1_average": "31000000",
        "sys/class/hwmon/hwmon2/power1_input": "33000000",
        "sys/class/hwmon/hwmon2/power1_label": "PPT",
        "sys/class/hwmon/hwmon3/name": "power_meter",
        "sys/class/hwmon/hwmon3/power1_average": "210000000",
        "sys/class/hwmon/hwmon3/power1_average_interval": "1000",
        "sys/class/hwmon/hwmon4/name": "amd_energy",
        "sys/class/hwmon/hwmon4/energy1_label": "Ecore000",
        "sys/class/hwmon/hwmon4/energy1_input": "5000000",
        "sys/class/hwmon/hwmon4/energy2_label": "Esocket0",
        "sys/class/hwmon/hwmon4/energy2_input": "90000000",
        "sys/class/hwmon/hwmon5/name": "ina238",
        "sys/class/hwmon/hwmon5/label": "NC",
        "sys/class/hwmon/hwmon5/power1_input": "0",
        "sys/class/hwmon/hwmon6/name": "ina226",
        "sys/class/hwmon/hwmon6/label": "bad",
        "sys/class/hwmon/hwmon6/power1_input": "none",
        "sys/class/hwmon/hwmon7/name": "BAT0",
        "sys/class/hwmon/hwmon7/power1_input": "9000000",
        "sys/class/power_supply/BAT0/type": "Battery",
        "sys/class/power_supply/BAT0/status": "Charging",
        "sys/class/power_supply/BAT0/power_now": "9000000",
    }
    for name, text in tree.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    found = {each.meter.name: each for each in meters.discover(Host(root=tmp_path, library=lambda name: None))}
    assert found["hwmon:ina226:5V-rail"].meter.scope == "rail"
    assert found["hwmon:ina226:5V-rail"].meter.update_period_s == pytest.approx(0.036)
    assert found["hwmon:amdgpu:PPT"].meter.scope == "gpu"
    assert found["hwmon:power_meter:power"].meter.scope == "system"
    assert found["hwmon:amd_energy:Esocket0"].meter.unit == "J"
    assert "hwmon:amd_energy:Ecore000" in found["hwmon:amd_energy:Esocket0"].overlaps
    assert "expected a whole number" in (found["hwmon:ina226:bad"].reason or "")
    assert found["battery"].remedy == "unplug the charger"
    assert not any("NC" in name or "BAT0" in name or "k10temp" in name for name in found)
    assert meters.choose(tuple(found.values())).names == ("hwmon:amd_energy:Esocket0",)


class FakeAmd:
    """As much of amdsmi as the lab uses: one GPU of 100 W whose counter counts `rate` times the truth."""

    class AmdSmiException(Exception):
        """What it raises."""

    def __init__(self, world: World, rate: float) -> None:
        self.world, self.rate = world, rate

    def amdsmi_init(self) -> None:
        pass

    def amdsmi_get_processor_handles(self) -> list[int]:
        return [0]

    def amdsmi_get_gpu_device_bdf(self, handle: int) -> str:
        return "0000:03:00.0"

    def amdsmi_get_energy_count(self, handle: int) -> dict[str, float]:
        return {"energy_accumulator": int(self.rate * 100 * self.world.now_s / 15.3e-6), "counter_resolution": 15.3}

    def amdsmi_get_power_info(self, handle: int) -> dict[str, object]:
        return {"current_socket_power": "N/A", "average_socket_power": 100}


@on("cloud")
def test_an_amd_gpus_counter_is_believed_only_where_it_agrees_with_its_power(world: World) -> None:
    for rate, unit in ((1.0, "J"), (0.0, "W"), (5.0, "W")):
        world.libraries["amdsmi"] = FakeAmd(world, rate)
        found = found_on(world)["amd:0"]
        assert found.meter.unit == unit
        assert ("power integrated" in found.meter.note) == (unit == "W")
        assert found.open is not None
        reading = found.open().read(0)[0]
        assert reading.value == pytest.approx(100 * world.now_s if unit == "J" else 100, rel=1e-3)


class FakeApple:
    """As much of zeus-apple-silicon as the lab uses: a chip that counts everything but its neural engine."""

    class AppleEnergyMonitor:
        cpu_total_mj, gpu_mj, ane_mj, dram_mj = 5000, 700, None, 300

        def get_cumulative_energy(self) -> "FakeApple.AppleEnergyMonitor":
            return self


@on("cloud")
def test_an_apple_chips_parts_are_told_apart(world: World) -> None:
    world.libraries["zeus_apple_silicon"] = FakeApple
    found = found_on(world)
    assert set(found) == {"apple:cpu", "apple:gpu", "apple:dram"}
    assert meters.choose(tuple(found.values())).names == ("apple:cpu", "apple:dram")
    opened = found["apple:cpu"].open
    assert opened is not None
    assert opened().read(0)[0].value == 5.0
