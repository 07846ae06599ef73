"""What LLVM says of this processor, remembered: asking it again would load its library, which a start does not need
whose kernels are all on disk.

One small file for each processor and LLVM; one that cannot be read, or is not whole, counts as missing.
"""

import hashlib
import importlib.util
import json
import os
import platform
import tempfile
from pathlib import Path

from perwatt import settings

# What differs between cores alike, or from minute to minute.
PASSING = {
    "processor", "cpu MHz", "bogomips", "BogoMIPS", "core id", "apicid", "initial apicid", "physical id", "siblings",
    "cpu cores",
}  # fmt: skip


def load() -> dict[str, str] | None:
    """Return what was kept for this processor and LLVM, or None."""
    path = _path()
    if path is None:
        return None
    try:
        kept = json.loads(path.read_text())
        facts = kept["facts"]
        return {str(k): str(v) for k, v in facts.items()} if kept["digest"] == _digest(facts) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def keep(facts: dict[str, str]) -> None:
    """Keep what LLVM said; a folder that cannot be written is not an error."""
    path = _path()
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            whole = Path(folder) / path.name
            whole.write_text(json.dumps({"facts": facts, "digest": _digest(facts)}))
            os.replace(whole, path)
    except OSError:
        return


def _digest(facts: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _path() -> Path | None:
    """Return the file for this processor and LLVM; None where the system does not show what decides its name."""
    processor, library = _processor(), _library()
    if processor is None or library is None:
        return None
    name = hashlib.sha256("\0".join((platform.machine(), processor, library)).encode()).hexdigest()[:24]
    return settings.cache_folder() / "targets" / f"{name}.json"


def _processor() -> str | None:
    """Return all that the kernel tells of the kinds of cores here; None where it tells nothing (a masked /proc)."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return None
    kinds = {
        "\n".join(line for line in core.splitlines() if line.partition(":")[0].strip() not in PASSING)
        for core in text.strip().split("\n\n")
    }
    return "\n\n".join(sorted(kinds)) or None


def _library() -> str | None:
    """Return which build of LLVM would be loaded, without loading it."""
    found = importlib.util.find_spec("llvmlite")
    if found is None or not found.submodule_search_locations:
        return None
    libraries = sorted(Path(found.submodule_search_locations[0]).glob("binding/*llvmlite.*"))
    return " ".join(f"{path} {(s := path.stat()).st_size} {s.st_mtime_ns}" for path in libraries) or None
