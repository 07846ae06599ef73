"""What this computer is: vector unit, caches, cores this process may use, memory, GPU; one frozen value.

Everything comes from files of the operating system (or `sysctl`); no library is loaded and nothing is guessed:
what a machine does not show is None. PERWATT_MACHINE masks the vector unit, so that code for a smaller one runs here.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, get_args

from perwatt import settings
from perwatt.errors import InputError

Isa = Literal["avx512", "avx2", "neon", "portable"]
VECTOR_FLOATS: Mapping[Isa, int] = {"avx512": 16, "avx2": 8, "neon": 4, "portable": 4}
# Kernel names of CPU features -> LLVM's names. The first two groups are what each vector unit needs.
_AVX2 = {"avx": "avx", "avx2": "avx2", "fma": "fma", "f16c": "f16c", "bmi1": "bmi", "bmi2": "bmi2"}
_AVX512 = {
    "avx512f": "avx512f",
    "avx512cd": "avx512cd",
    "avx512bw": "avx512bw",
    "avx512dq": "avx512dq",
    "avx512vl": "avx512vl",
}
_AVX2_MORE = {"avx_vnni": "avxvnni"}
_AVX512_MORE = {
    "avx512_bf16": "avx512bf16",
    "avx512_fp16": "avx512fp16",
    "avx512_vnni": "avx512vnni",
    "amx_tile": "amx-tile",
    "amx_bf16": "amx-bf16",
    "amx_int8": "amx-int8",
}
_ARM_MORE = {
    "asimdhp": "fullfp16",
    "asimddp": "dotprod",
    "bf16": "bf16",
    "i8mm": "i8mm",
    "sve": "sve",
    "sve2": "sve2",
}
# glibc's numbers of the cache sizes, for sandboxes that hide sysfs but not CPUID.
_GLIBC_CACHE_SIZES = {1: 188, 2: 191, 3: 194}
_WINDOWS_AVX2, _WINDOWS_AVX512 = 40, 41


@dataclass(frozen=True)
class Machine:
    """One computer as this process sees it.

    `features` are LLVM's names of what generated code may use beyond the architecture's minimum, after masking; `isa`
    and `vector_floats` (float32 lanes of one register) follow from them. `cores` are physical cores this process may
    keep busy: its affinity, one thread a core, cut to the cgroup's CPU quota; `cpus` are the logical CPUs of its
    affinity. Cache sizes are those of the instance that one core sees; `l3_shared_by` counts the logical CPUs on one
    L3. `memory_bytes` is what is built in, `memory_limit_bytes` the cgroup's limit. `host_id` names this computer
    without telling who it is.
    """

    system: str
    architecture: str
    cpu_model: str
    isa: Isa
    vector_floats: int
    features: tuple[str, ...]
    masked: bool
    cpus: tuple[int, ...]
    cores: int
    cpu_quota: float | None
    l1d_bytes: int | None
    l2_bytes: int | None
    l3_bytes: int | None
    l3_shared_by: int | None
    memory_bytes: int | None
    memory_limit_bytes: int | None
    virtual: bool | None
    gpu: str | None
    host_id: str

    def facts(self) -> dict[str, str]:
        """Return what a Record keeps of the machine, as text; what is not known is left out."""
        facts = {
            "system": self.system,
            "architecture": self.architecture,
            "cpu": self.cpu_model,
            "vector unit": f"{self.isa}, {self.vector_floats} floats" + (", masked" if self.masked else ""),
            "features": " ".join(self.features),
            "cores": str(self.cores),
            "logical cpus": str(len(self.cpus)),
        }
        sizes = {
            "cache l1d": self.l1d_bytes,
            "cache l2": self.l2_bytes,
            "cache l3": self.l3_bytes,
            "memory": self.memory_bytes,
            "memory limit": self.memory_limit_bytes,
        }
        facts |= {name: size_text(size) for name, size in sizes.items() if size is not None}
        if self.cpu_quota is not None:
            facts["cpu quota"] = f"{self.cpu_quota:g} cores"
        if self.virtual is not None:
            facts["virtual machine"] = "yes" if self.virtual else "no"
        if self.gpu is not None:
            facts["gpu"] = self.gpu
        return facts


def size_text(size_bytes: int) -> str:
    """Return a size in binary units, with at most one decimal."""
    power = min(max(size_bytes, 1).bit_length() - 1, 49) // 10
    return f"{size_bytes / (1 << 10 * power):.1f}".removesuffix(".0") + " " + ("B", "KiB", "MiB", "GiB", "TiB")[power]


def this_machine(root: Path = Path("/")) -> Machine:
    """Return the machine this process runs on, masked by PERWATT_MACHINE.

    `root` is where `/proc` and `/sys` are looked for; a test gives another. Raises InputError when PERWATT_MACHINE
    names a vector unit that is unknown or that this machine does not have.
    """
    system, architecture = platform.system(), _architecture()
    if system == "Darwin":
        model, flags, sizes, physical, memory = _macos(architecture)
    else:
        information = _cpu_information(root)
        model = _model_name(information, root)
        flags = frozenset((information.get("flags") or information.get("Features") or "").split())
        if system == "Windows":
            flags = _windows_flags()
        sizes, physical, memory = {}, None, _memory()
    features, isa = _vector_unit(architecture, flags)
    features, isa, masked = _masked(features, isa, settings.text("PERWATT_MACHINE"))
    cpus = _affinity()
    first = root / f"sys/devices/system/cpu/cpu{cpus[0]}"
    cores = physical if physical is not None else _physical_cores(root, cpus)
    quota = _cpu_quota(root)
    shared = _cache(first, 3)
    return Machine(
        system=f"{system} {platform.release()}",
        architecture=architecture,
        cpu_model=model,
        isa=isa,
        vector_floats=VECTOR_FLOATS[isa],
        features=features,
        masked=masked,
        cpus=cpus,
        # Part of a core is no core to a thread that spins, so a quota is rounded down.
        cores=cores if quota is None else max(1, min(cores, int(quota))),
        cpu_quota=quota,
        l1d_bytes=sizes.get(1) or _cache(first, 1)[0],
        l2_bytes=sizes.get(2) or _cache(first, 2)[0],
        l3_bytes=sizes.get(3) or shared[0],
        l3_shared_by=shared[1],
        memory_bytes=memory,
        memory_limit_bytes=_memory_limit(root, memory),
        virtual="hypervisor" in flags if flags and architecture == "x86_64" else None,
        gpu=_nvidia_gpu(root),
        host_id=_host_id(root, architecture, model),
    )


def _architecture() -> str:
    named = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(named, named)


def _read(path: Path) -> str | None:
    """Return a small system file's text, or None where this machine does not have or show it."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None


def _cpu_information(root: Path) -> dict[str, str]:
    """Return the first CPU's part of /proc/cpuinfo."""
    information: dict[str, str] = {}
    for line in (_read(root / "proc/cpuinfo") or "").splitlines():
        name, colon, value = line.partition(":")
        if colon:
            information.setdefault(name.strip(), value.strip())
    return information


def _model_name(information: Mapping[str, str], root: Path) -> str:
    board = (_read(root / "proc/device-tree/model") or "").strip("\0 ")
    part = information.get("CPU part")
    arm = f"ARM implementer {information.get('CPU implementer', '?')} part {part}" if part else ""
    return information.get("model name") or board or arm or platform.processor() or "unknown CPU"


def _vector_unit(architecture: str, flags: frozenset[str]) -> tuple[tuple[str, ...], Isa]:
    if architecture == "x86_64" and _AVX2.keys() <= flags:
        wanted = _AVX2 | _AVX2_MORE
        isa: Isa = "avx2"
        if _AVX512.keys() <= flags:
            wanted, isa = wanted | _AVX512 | _AVX512_MORE, "avx512"
        return tuple(name for flag, name in wanted.items() if flag in flags), isa
    if architecture == "aarch64":  # NEON belongs to the architecture's minimum
        return ("neon", *(name for flag, name in _ARM_MORE.items() if flag in flags)), "neon"
    return (), "portable"


def _masked(features: tuple[str, ...], isa: Isa, asked: str) -> tuple[tuple[str, ...], Isa, bool]:
    """Return features and vector unit after PERWATT_MACHINE, and whether that took something away."""
    if not asked or asked == isa:
        return features, isa, False
    here = {"avx512": ("avx512", "avx2", "portable"), "avx2": ("avx2", "portable"), "neon": ("neon", "portable")}
    possible = here.get(isa, ("portable",))
    if asked not in get_args(Isa) or asked not in possible:
        raise InputError(
            f"PERWATT_MACHINE: expected one of {', '.join(possible)} on this machine, got {asked!r}; "
            f"choose one of them or unset it"
        )
    if asked == "portable":
        return (), "portable", True
    kept = {*_AVX2.values(), *_AVX2_MORE.values()}
    return tuple(name for name in features if name in kept), "avx2", True


def _affinity() -> tuple[int, ...]:
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def _physical_cores(root: Path, cpus: tuple[int, ...]) -> int:
    """Count the cores below the logical CPUs; one whose siblings are not shown counts as a core."""
    siblings = {
        _read(root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in cpus
    }
    return len(siblings)


def _cache(cpu: Path, level: int) -> tuple[int | None, int | None]:
    """Return size in bytes and number of sharing logical CPUs of the data cache of one level."""
    for index in sorted((cpu / "cache").glob("index*")):
        if _read(index / "level") == str(level) and _read(index / "type") in ("Data", "Unified"):
            size, sharing = _read(index / "size"), _read(index / "shared_cpu_list")
            return _size(size), _count(sharing) if sharing else None
    if cpu.is_relative_to("/sys") and platform.libc_ver()[0] == "glibc":
        try:
            return os.sysconf(_GLIBC_CACHE_SIZES[level]) or None, None
        except (ValueError, OSError):
            return None, None
    return None, None


def _size(text: str | None) -> int | None:
    """Return '32K' or '2M' in bytes."""
    if not text or not text.rstrip("KMG").isdigit():
        return None
    return int(text.rstrip("KMG")) * {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1], 1)


def _count(cpu_list: str) -> int:
    """Return how many CPUs a list such as '0-3,8' names."""
    ends = [part.split("-") for part in cpu_list.split(",")]
    return sum(int(end[-1]) - int(end[0]) + 1 for end in ends)


def _control_groups(root: Path, controller: str) -> Iterator[tuple[int, Path]]:
    """Yield (1 or 2, folder) for every control group that holds this process, the innermost first."""
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if number == "0" and not names:
            version, top = 2, root / "sys/fs/cgroup"
            if (top / "unified").is_dir():  # beside groups of version 1
                top = top / "unified"
        elif controller in names.split(","):
            version, top = 1, root / "sys/fs/cgroup" / controller
        else:
            continue
        # Inside a container the path is often the host's and not to be seen from here; its top then is.
        inside = top / path.lstrip("/")
        yield from ((version, folder) for folder in (inside, *inside.parents) if folder.is_relative_to(top))


def _cpu_quota(root: Path) -> float | None:
    """Return the tightest CPU quota in cores, or None without one."""
    quotas = []
    for version, folder in _control_groups(root, "cpu"):
        if version == 2:
            parts = (_read(folder / "cpu.max") or "max").split()
        else:
            parts = [_read(folder / "cpu.cfs_quota_us") or "-1", _read(folder / "cpu.cfs_period_us") or "100000"]
        if len(parts) == 2 and parts[0].isdigit() and parts[1].isdigit() and int(parts[1]) > 0:
            quotas.append(int(parts[0]) / int(parts[1]))
    return min(quotas, default=None)


def _memory() -> int | None:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    pages = os.sysconf("SC_PHYS_PAGES")
    return pages * os.sysconf("SC_PAGE_SIZE") if pages > 0 else None


def _memory_limit(root: Path, memory_bytes: int | None) -> int | None:
    """Return the tightest memory limit in bytes, or None where there is none below what is built in."""
    limits = []
    for version, folder in _control_groups(root, "memory"):
        text = _read(folder / ("memory.max" if version == 2 else "memory.limit_in_bytes"))
        if text and text.isdigit() and (memory_bytes is None or int(text) < memory_bytes):
            limits.append(int(text))
    return min(limits, default=None)


def _nvidia_gpu(root: Path) -> str | None:
    """Return the names of the NVIDIA GPUs, from the driver's own files or from nvidia-smi."""
    names = []
    for path in sorted((root / "proc/driver/nvidia/gpus").glob("*/information")):
        lines = (_read(path) or "").splitlines()
        names += [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
    return ", ".join(names) or (_nvidia_smi() if root == Path("/") else None)


@cache  # a process asks a driver once: it may take a second to answer
def _nvidia_smi() -> str | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    answer = _answer([program, "--query-gpu=name", "--format=csv,noheader"])
    return ", ".join(answer.splitlines()) if answer else None


def _answer(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _host_id(root: Path, architecture: str, model: str) -> str:
    own = _read(root / "etc/machine-id") or platform.node()
    return hashlib.sha256(f"perwatt/{own}/{architecture}/{model}".encode()).hexdigest()[:16]


def _macos(architecture: str) -> tuple[str, frozenset[str], dict[int, int], int | None, int | None]:
    """Return model, flags by Linux's names, cache sizes by level, physical cores and memory from sysctl."""
    keys = ("machdep.cpu.brand_string", "hw.physicalcpu", "hw.memsize")
    named = {key: _answer(["sysctl", "-n", key]) for key in keys}
    # Apple's fast cores are perflevel0; slow ones would hold up every barrier.
    fast = _answer(["sysctl", "-n", "hw.perflevel0.physicalcpu"]) or named["hw.physicalcpu"]
    sizes = {}
    for level, name in ((1, "l1dcachesize"), (2, "l2cachesize"), (3, "l3cachesize")):
        size = _answer(["sysctl", "-n", f"hw.perflevel0.{name}"]) or _answer(["sysctl", "-n", f"hw.{name}"])
        if size and size.isdigit():
            sizes[level] = int(size)
    flags: set[str] = set()
    if architecture == "x86_64":
        listed = " ".join(
            _answer(["sysctl", "-n", key]) or "" for key in ("machdep.cpu.features", "machdep.cpu.leaf7_features")
        )
        flags = {flag.replace(".", "_") for flag in listed.lower().split()}
        flags |= {"avx"} & {flag.replace("avx1_0", "avx") for flag in flags}
    else:
        arm = {"FEAT_FP16": "asimdhp", "FEAT_DotProd": "asimddp", "FEAT_BF16": "bf16", "FEAT_I8MM": "i8mm"}
        flags = {flag for key, flag in arm.items() if _answer(["sysctl", "-n", f"hw.optional.arm.{key}"]) == "1"}
    model = named["machdep.cpu.brand_string"] or "unknown CPU"
    memory = named["hw.memsize"]
    return model, frozenset(flags), sizes, int(fast) if fast else None, int(memory) if memory else None


def _windows_flags() -> frozenset[str]:
    """Return the feature groups Windows reports; it has no name for FMA and F16C, which came with AVX2."""
    kernel = getattr(ctypes, "windll").kernel32  # noqa: B009 (the name exists on Windows only)
    flags: set[str] = set()
    if kernel.IsProcessorFeaturePresent(_WINDOWS_AVX2):
        flags |= _AVX2.keys()
        # All processors with AVX-512 that Windows runs on, Xeon Phi apart, have the five groups.
        if kernel.IsProcessorFeaturePresent(_WINDOWS_AVX512):
            flags |= _AVX512.keys()
    return frozenset(flags)
