"""A simulated machine: a clock that jumps, files and libraries that show its trace as real meters would."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from perwatt.errors import InputError
from perwatt.lab.meters.meter import Host, OpenMeter
from perwatt.lab.meters.running import Running, Together
from perwatt.lab.virtual.trace import Trace

Content = str | Callable[[], str]
EPOCH_S = 1_800_000_000
ZERO_NS = 5_000_000_000_000  # no clock starts at 0, and neither does this one
_LATE_S = 0.004  # a thread wakes up to so much after its time


@dataclass
class World:
    """One simulated machine below the folder `root`, at the time `now_s` of its trace."""

    root: Path
    trace: Trace
    seed: int
    now_s: float = 0.0
    files: dict[Path, Callable[[], str]] = field(default_factory=dict)
    libraries: dict[str, object] = field(default_factory=dict)
    pages: dict[str, Callable[[], bytes]] = field(default_factory=dict)
    wanted: str = "auto"
    advanced: list[Callable[[], None]] = field(default_factory=list)
    generator: random.Random = field(default_factory=random.Random)

    def add(self, tree: Mapping[str, Content]) -> None:
        """Put files below the root; a callable is asked whenever its file is read, and may raise OSError."""
        for name, content in tree.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content if isinstance(content, str) else "")
            if not isinstance(content, str):
                self.files[path] = content

    def sleep(self, seconds: float) -> None:
        """Let simulated time pass."""
        self.now_s += seconds
        for notice in self.advanced:
            notice()

    def clock_ns(self) -> int:
        """Return the simulated monotonic clock."""
        return ZERO_NS + round(self.now_s * 1e9)

    def time_s(self, time_ns: int) -> float:
        """Return the time of the trace at an instant of the clock."""
        return (time_ns - ZERO_NS) * 1e-9

    def host(self) -> Host:
        """Return the machine as meters see it."""
        return Host(
            root=self.root,
            library=self.libraries.get,
            read=self._read,
            fetch=self._fetch,
            clock_ns=self.clock_ns,
            epoch_ns=lambda: EPOCH_S * 10**9 + self.clock_ns(),
            sleep=self.sleep,
            threads=False,
        )

    def _read(self, path: Path) -> str:
        content = self.files.get(path)
        return path.read_text() if content is None else content()

    def _fetch(self, url: str, timeout_s: float) -> bytes:
        if url not in self.pages:
            raise InputError(f"{url}: expected one of {', '.join(self.pages)}; a simulated machine has no others")
        return self.pages[url]()

    def pass_time(self, meter: OpenMeter, seconds: float) -> None:
        """Let so much time pass, reading the meter as its threads would."""
        self.run_until(meter, self.now_s + seconds)

    def run_until(self, meter: OpenMeter, end_s: float) -> None:
        """Let time pass to `end_s`, reading the meter as its threads would."""
        running = _parts(meter)
        due = {index: self.now_s + each.meter.poll_s for index, each in enumerate(running)}
        while due:
            index = min(due, key=lambda each: due[each])
            if due[index] >= end_s:
                break
            self.sleep(max(0.0, due[index] + self.generator.uniform(0, _LATE_S) - self.now_s))
            running[index].poll()
            due[index] = max(due[index] + running[index].meter.poll_s, self.now_s)
        self.sleep(max(0.0, end_s - self.now_s))


def _parts(meter: OpenMeter) -> list[Running]:
    if isinstance(meter, Together):
        return [part for each in meter.meters for part in _parts(each)]
    return [meter] if isinstance(meter, Running) else []
