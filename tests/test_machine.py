"""What a machine is, read from made-up /proc and /sys trees: quotas, siblings, caches, masks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from perwatt import machine
from perwatt.errors import InputError
from perwatt.machine import VECTOR_FLOATS, size_text, this_machine

AVX2 = "fpu sse2 avx f16c fma avx2 bmi1 bmi2"
AVX512 = AVX2 + " avx512f avx512dq avx512cd avx512bw avx512vl avx512_bf16 hypervisor"


@pytest.fixture
def linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(machine, "_affinity", lambda: (2, 3, 4, 5))
    monkeypatch.setattr(machine, "_memory", lambda: 16 << 30)
    monkeypatch.delenv("PERWATT_MACHINE", raising=False)


def tree(root: Path, flags: str = AVX512, **files: str) -> Path:
    write(root, "proc/cpuinfo", f"processor\t: 0\nmodel name\t: Testium 9000\nflags\t\t: {flags}\n\nflags : other\n")
    write(root, "proc/self/cgroup", "0::/outer/inner\n")
    for path, text in files.items():
        write(root, path, text)
    return root


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


@pytest.mark.usefixtures("linux")
class TestLinux:
    def test_an_empty_tree_is_a_machine_with_much_unknown(self, tmp_path: Path) -> None:
        got = this_machine(tmp_path)
        assert (got.isa, got.vector_floats, got.features) == ("portable", 4, ())
        assert got.cores == 4
        assert (got.l1d_bytes, got.l3_shared_by, got.cpu_quota, got.memory_limit_bytes, got.gpu) == (None,) * 5
        assert "None" not in str(got.facts())

    @pytest.mark.parametrize(("flags", "isa"), [(AVX512, "avx512"), (AVX2, "avx2"), ("sse2 avx", "portable")])
    def test_the_vector_unit_follows_from_the_flags(self, tmp_path: Path, flags: str, isa: str) -> None:
        got = this_machine(tree(tmp_path, flags))
        assert got.isa == isa
        assert got.cpu_model == "Testium 9000"
        assert ("avx512bf16" in got.features) is (isa == "avx512")
        assert got.virtual is ("hypervisor" in flags)

    def test_one_missing_group_of_avx512_makes_it_avx2(self, tmp_path: Path) -> None:
        assert this_machine(tree(tmp_path, AVX512.replace("avx512vl", ""))).isa == "avx2"

    @pytest.mark.parametrize(("mask", "isa"), [("avx2", "avx2"), ("portable", "portable"), ("avx512", "avx512")])
    def test_the_mask_takes_features_away(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mask: str, isa: str
    ) -> None:
        monkeypatch.setenv("PERWATT_MACHINE", mask)
        got = this_machine(tree(tmp_path))
        assert got.isa == isa
        assert got.vector_floats == VECTOR_FLOATS[got.isa]
        assert got.masked is (mask != "avx512")
        assert any("512" in name for name in got.features) is (mask == "avx512")
        assert ("avx2" in got.features) is (mask != "portable")

    @pytest.mark.parametrize("mask", ["neon", "avx1024", "avx512 "])
    def test_a_mask_that_cannot_be_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mask: str) -> None:
        monkeypatch.setenv("PERWATT_MACHINE", mask)
        with pytest.raises(InputError, match="avx512, avx2, portable"):
            this_machine(tree(tmp_path))

    def test_a_mask_never_gives_more_than_there_is(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PERWATT_MACHINE", "avx512")
        with pytest.raises(InputError, match="expected one of avx2, portable"):
            this_machine(tree(tmp_path, AVX2))

    @pytest.mark.parametrize(
        ("inner", "outer", "cores"), [("max 100000", "150000 100000", 1), ("300000 100000", "250000 100000", 2)]
    )
    def test_the_tightest_quota_of_all_groups_counts(self, tmp_path: Path, inner: str, outer: str, cores: int) -> None:
        root = tree(tmp_path, **{"sys/fs/cgroup/outer/inner/cpu.max": inner, "sys/fs/cgroup/outer/cpu.max": outer})
        got = this_machine(root)
        assert got.cores == cores
        assert got.cpu_quota == int(outer.split()[0]) / 100_000

    def test_a_quota_below_one_core_leaves_one(self, tmp_path: Path) -> None:
        got = this_machine(tree(tmp_path, **{"sys/fs/cgroup/cpu.max": "50000 100000"}))
        assert (got.cores, got.cpu_quota) == (1, 0.5)

    def test_groups_of_version_one_are_read_too(self, tmp_path: Path) -> None:
        root = tree(tmp_path)
        write(root, "proc/self/cgroup", "5:memory:/hidden\n4:cpu,cpuacct:/job\n1:name=systemd:/\n")
        write(root, "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us", "300000")
        write(root, "sys/fs/cgroup/cpu/job/cpu.cfs_period_us", "100000")
        write(root, "sys/fs/cgroup/memory/memory.limit_in_bytes", str(3 << 30))
        got = this_machine(root)
        assert (got.cores, got.cpu_quota, got.memory_limit_bytes) == (3, 3.0, 3 << 30)

    def test_unlimited_groups_limit_nothing(self, tmp_path: Path) -> None:
        files = {"sys/fs/cgroup/cpu.max": "max 100000", "sys/fs/cgroup/memory.max": "max"}
        got = this_machine(tree(tmp_path, **files))
        assert (got.cores, got.cpu_quota, got.memory_limit_bytes) == (4, None, None)
        write(tmp_path, "sys/fs/cgroup/memory.max", str(1 << 62))
        assert this_machine(tmp_path).memory_limit_bytes is None

    def test_siblings_are_one_core(self, tmp_path: Path) -> None:
        for cpu, siblings in ((2, "2-3"), (3, "2-3"), (4, "4-5"), (5, "4-5")):
            write(tmp_path, f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", f"{siblings}\n")
        got = this_machine(tmp_path)
        assert got.cores == 2
        assert got.cpus == (2, 3, 4, 5)

    def test_caches_are_those_of_the_first_usable_cpu(self, tmp_path: Path) -> None:
        caches = (("Data", 1, "48K", "2-3"), ("Instruction", 1, "32K", "2-3"), ("Unified", 2, "2M", "2-3"))
        for index, (kind, level, size, shared) in enumerate((*caches, ("Unified", 3, "36864K", "0-11,16"))):
            at = f"sys/devices/system/cpu/cpu2/cache/index{index}/"
            for name, text in (("type", kind), ("level", str(level)), ("size", size), ("shared_cpu_list", shared)):
                write(tmp_path, at + name, text + "\n")
        got = this_machine(tmp_path)
        assert (got.l1d_bytes, got.l2_bytes, got.l3_bytes) == (48 << 10, 2 << 20, 36 << 20)
        assert got.l3_shared_by == 13
        assert got.facts()["cache l3"] == "36 MiB"

    def test_a_gpu_is_named_by_the_drivers_files(self, tmp_path: Path) -> None:
        write(tmp_path, "proc/driver/nvidia/gpus/0000:01:00.0/information", "Model: \t NVIDIA Test\nIRQ: 7\n")
        assert this_machine(tmp_path).gpu == "NVIDIA Test"

    def test_the_host_id_is_stable_and_tells_nothing(self, tmp_path: Path) -> None:
        write(tmp_path, "etc/machine-id", "0123456789abcdef\n")
        first = this_machine(tmp_path).host_id
        assert first == this_machine(tmp_path).host_id
        assert "0123456789abcdef" not in first
        write(tmp_path, "etc/machine-id", "fedcba9876543210\n")
        assert this_machine(tmp_path).host_id != first


@pytest.mark.usefixtures("linux")
def test_arm_has_neon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    write(tmp_path, "proc/cpuinfo", "Features : fp asimd asimdhp asimddp\nCPU implementer : 0x41\nCPU part : 0xd0c\n")
    got = this_machine(tmp_path)
    assert (got.architecture, got.isa, got.vector_floats) == ("aarch64", "neon", 4)
    assert got.features == ("neon", "fullfp16", "dotprod")
    assert got.cpu_model == "ARM implementer 0x41 part 0xd0c"


def test_this_very_machine_is_described() -> None:
    got = this_machine()
    assert got.vector_floats == VECTOR_FLOATS[got.isa]
    assert 1 <= got.cores <= len(got.cpus) <= (os.cpu_count() or 1)
    assert got == this_machine()
    assert hash(got) == hash(this_machine())


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (32768, "32 KiB"), (25 << 29, "12.5 GiB"), (1 << 60, "1048576 TiB")],
)
def test_sizes_are_printed_in_binary_units(size: int, text: str) -> None:
    assert size_text(size) == text


def test_detection_loads_no_library() -> None:
    code = "import sys; from perwatt.machine import this_machine; this_machine(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"llvmlite", "torch", "numpy", "onnx", "psutil", "pynvml"} & set(loaded)
