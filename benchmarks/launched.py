"""What the serving benchmarks start and watch: servers, the engine without a server, memory over time."""

import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from perwatt import package as packages
from perwatt import settings
from perwatt.lab.load.record import Series
from perwatt.lab.photographs import find_photographs

READY_S = 600.0
GOLDEN_PHOTOGRAPHS = 4
NICENESS = 5


@dataclass
class Launched:
    """A server in a process group of its own: its address, and everything it said."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path
    options: Mapping[str, str] = field(default_factory=dict)

    def members(self) -> list[psutil.Process]:
        """Return its processes."""
        try:
            first = psutil.Process(self.process.pid)
            return [first, *first.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


@contextmanager
def launched(command: Sequence[str], options: Mapping[str, str] | None = None) -> Iterator[Launched]:
    """Start a server that says `at http://...` on stderr once it is ready, and end it with SIGTERM.

    It runs at a lower priority than the load generator, which on another machine would not have to wait for it either.
    """
    with tempfile.TemporaryDirectory(prefix="perwatt-served-") as folder:
        log = Path(folder) / "log"
        with log.open("wb") as file:
            polite = ["nice", "-n", str(NICENESS), *command]
            process = subprocess.Popen(polite, stdout=file, stderr=file, start_new_session=True)
        told = {"priority": f"{NICENESS} below the generator's"}
        server = Launched(process, "", log, {**(options or {}), **told})
        try:
            server.url = _ready(server)
            yield server
        finally:
            _end(server)


def _ready(server: Launched) -> str:
    end = time.monotonic() + READY_S
    while time.monotonic() < end:
        said = server.log.read_text(errors="replace")
        found = re.search(r"\bat (http://[\w.:-]+)", said)
        if found:
            return found[1]
        if server.process.poll() is not None:
            raise RuntimeError(f"the server ended with {server.process.returncode}:\n{said}")
        time.sleep(0.1)
    raise RuntimeError(f"the server was not ready in {READY_S} s:\n{server.log.read_text(errors='replace')}")


def _end(server: Launched) -> None:
    """Ask it to end, and make sure that none of its processes is left to rob the next measurement."""
    members = server.members()
    if server.process.poll() is None:
        server.process.terminate()
        try:
            server.process.wait(60)
        except subprocess.TimeoutExpired:
            server.process.kill()
            server.process.wait()
    for member in members:
        with suppress(psutil.NoSuchProcess):
            member.kill()


def perwatt_serve(*arguments: str) -> list[str]:
    """Return the command that serves on a free port."""
    return [sys.executable, "-m", "perwatt", "serve", "--port", "0", *arguments]


def package_of(network: str) -> Path:
    """Return the package of a built-in network; it is made once and kept in perwatt's cache folder."""
    path = settings.cache_folder() / "benchmarks" / f"{network}.perwatt"
    if not path.exists():
        print(f"making the package of {network}", file=sys.stderr, flush=True)
        photos = [photo.read_bytes() for photo in find_photographs(None)[:GOLDEN_PHOTOGRAPHS]]
        packages.write(packages.built_in(network, photos), path)
    return path


class Watch:
    """Follows the memory, files and threads of a server from a thread, until it is stopped."""

    def __init__(self, server: Launched, now_s: Callable[[], float], every_s: float) -> None:
        self.server = server
        self.now_s = now_s
        self.every_s = every_s
        self.times: list[float] = []
        self.values: dict[str, list[float]] = {"memory": [], "open files": [], "threads": []}
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> "Watch":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()

    def _follow(self) -> None:
        while not self.over.wait(self.every_s):
            try:
                members = self.server.members()
                seen = (
                    sum(member.memory_info().rss for member in members),
                    sum(member.num_fds() for member in members),
                    sum(member.num_threads() for member in members),
                )
            except psutil.NoSuchProcess:  # one ended between listing and looking; the next look sees the rest
                continue
            self.times.append(self.now_s())
            for name, value in zip(self.values, seen, strict=True):
                self.values[name].append(float(value))

    def series(self, name: str) -> list[Series]:
        """Return what was seen, named after the server."""
        units = {"memory": "bytes", "open files": "files", "threads": "threads"}
        return [
            Series(name=f"{name}, {what}", unit=units[what], times_s=tuple(self.times), values=tuple(values),
                   slope_per_s=None)
            for what, values in self.values.items()
        ]  # fmt: skip


class InProcess:
    """The engine without a server, in a process of its own that rests until it is asked for its speed."""

    def __init__(self, package: Path, batches: Sequence[int], precision: str = "fp32") -> None:
        script = str(Path(__file__).with_name("in_process.py"))
        command = ["nice", "-n", str(NICENESS), sys.executable, script, str(package), precision]
        self.process = subprocess.Popen(
            [*command, *map(str, batches)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.speeds: dict[str, Any] = self._heard()

    def __enter__(self) -> "InProcess":
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)

    def images_per_s(self, seconds: float) -> float:
        """Return the engine's speed over so many seconds, at the batch size at which it is fastest."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{seconds}\n")
        self.process.stdin.flush()
        return float(self._heard()["images_per_s"])

    def _heard(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the engine's process ended with {self.process.wait()}")
        return dict(json.loads(line))
