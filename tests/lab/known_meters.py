"""Meters whose true joules are known, for the lab's tests: one that watches made-up engines, and every way to fail."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from unittest.mock import patch

import numpy as np
import onnx
from fake_engines import PROFILE, FakeLab, FakeWorker
from PIL import Image
from small_network import small_network

from perwatt.errors import MeterError
from perwatt.lab import conditions
from perwatt.lab.bench import BenchRequest, run_bench
from perwatt.lab.engine import Job
from perwatt.lab.metering import Opened, facts_of
from perwatt.lab.meters.meter import Energy, Meter
from perwatt.lab.process import BlockRequest, BlockResult
from perwatt.lab.record import Record

ENGINES = ("onnxruntime", "openvino", "ncnn")
IDLE_W = 20.0
WATTS = {"onnxruntime": 60.0, "openvino": 90.0, "ncnn": 40.0}  # above idle; openvino is fast and thirsty


def meter(**changes: Any) -> Meter:
    """Return a counter of a processor's package, fast enough for the made-up engines' blocks."""
    whole: dict[str, Any] = {
        "name": "virtual",
        "family": "virtual",
        "scope": "package",
        "covers": ("system/cpu0",),
        "unit": "J",
        "quantum": 1e-9,
        "update_period_s": 2e-5,
        "gain": 0.02,
    }
    return Meter(**{**whole, **changes})


@dataclass
class MeteredLab(FakeLab):
    """A FakeLab that remembers when which engine worked, and how long its blocks were to be."""

    work: list[tuple[int, int, str]] = field(default_factory=list)
    asked_s: list[float] = field(default_factory=list)

    def __call__(self, engine: str, job: Job, inputs_path: Path) -> FakeWorker:
        worker = super().__call__(engine, job, inputs_path)
        block = worker.block

        def watched(plan: BlockRequest, timeout_s: float | None = None) -> BlockResult:
            result = block(plan, timeout_s)
            self.work.append((result.start_ns, result.end_ns, engine))
            if engine in WATTS:
                self.asked_s.append(plan.seconds)
            return result

        worker.block = watched  # type: ignore[method-assign]
        return worker


@dataclass
class KnownMeter:
    """Counts what the lab's engines take: IDLE_W always, and an engine's WATTS while it works.

    `habit` says how it fails, after `healthy` windows that it answers.
    """

    lab: MeteredLab
    meter: Meter = field(default_factory=meter)
    habit: str = "honest"
    healthy: int = 12
    random_share: float = 0.01
    answered: int = 0
    closed: bool = False

    def mark(self) -> int:
        return time.perf_counter_ns()

    def energy(self, start_ns: int, end_ns: int) -> Energy:
        self.answered += 1
        failures: dict[str, Callable[[], Exception]] = {
            "vanishes": lambda: MeterError("virtual: it has vanished"),
            "goes back": lambda: MeterError("virtual: went from 12 J back to 3 J, which is no wrap"),
            "breaks": lambda: OSError("[Errno 5] Input/output error"),
        }
        seconds = (end_ns - start_ns) * 1e-9
        joules = IDLE_W * seconds
        for start, end, engine in self.lab.work:
            joules += WATTS.get(engine, 0.0) * max(0, min(end, end_ns) - max(start, start_ns)) * 1e-9
        if self.answered > self.healthy:
            if self.habit in failures:
                raise failures[self.habit]()
            if self.habit == "hangs":
                time.sleep(1.0)
            joules = {"stands still": 0.0, "negative": -joules, "nonsense": float("nan")}.get(self.habit, joules)
        return Energy(joules, self.random_share * joules, self.meter.gain, seconds)

    def watts(self) -> float | None:
        return None

    def close(self) -> None:
        self.closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def opened(*meters: KnownMeter, asked: str = "auto") -> Opened:
    """Return the meters as the lab gets them; without one, as a machine that has none."""
    if not meters:
        return Opened(asked, (), "this machine shows no meter", "sudo modprobe intel_rapl_msr")
    return Opened(asked, tuple((facts_of(each.meter), each) for each in meters), None, None)


def subject(folder: Path) -> Path:
    """Write the small network and a photograph of noise; return the network."""
    folder.mkdir(exist_ok=True)
    onnx.save(small_network(1), folder / "small.onnx")
    noise = np.random.default_rng(3).integers(0, 256, (60, 70, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "noise.png")
    return folder / "small.onnx"


def measured(folder: Path, lab: MeteredLab, *meters: KnownMeter, **changes: Any) -> Record:
    """Return the Record of a whole run with made-up engines and these meters."""
    progress = changes.pop("progress", lambda _: None)
    whole: dict[str, Any] = {
        "networks": (str(subject(folder)),),
        "batches": (4,),
        "engines": ENGINES,
        "photos": folder,
        "profile": PROFILE.model_copy(update={"minimum_rounds": 8}),
        "out": folder,
    }
    request = BenchRequest(**{**whole, **changes})
    with patch.object(conditions, "POLL_S", 0.0005):  # made-up engines rest at once
        return run_bench(request, progress, lab, lambda asked, device: opened(*meters, asked=asked))
