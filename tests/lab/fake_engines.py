"""Workers without processes for the lab's tests: a made-up network, made-up speeds, and every way to fail or lie."""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from perwatt.errors import EngineCrashed, EngineMissing, EngineRefused, EngineTimeout
from perwatt.lab.engine import Job, Loaded
from perwatt.lab.process import BlockRequest, BlockResult, Started
from perwatt.lab.record import Profile

PROFILE = Profile(name="trial", half_width=0.5, block_s=0.001, minimum_rounds=6, limit_s=30, load_limit_s=20)
SPEEDS = {"onnxruntime": 1.0, "openvino": 0.8, "ncnn": 1.6, "null": 0.001, "reference": 1.0}


def answer(images: np.ndarray) -> np.ndarray:
    """Return the made-up network's outputs: each image's first rows, as probabilities over 40 classes."""
    values = images.reshape(len(images), -1)[:, :40].astype(np.float64)
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)


@dataclass
class FakeLab:
    """Makes workers and remembers them; `habits` gives an engine's failing or lying by its name."""

    habits: dict[str, str] = field(default_factory=dict)
    workers: list["FakeWorker"] = field(default_factory=list)

    def __call__(self, engine: str, job: Job, inputs_path: Path) -> "FakeWorker":
        worker = FakeWorker(engine, job, np.load(inputs_path), self.habits.get(engine, "honest"))
        self.workers.append(worker)
        return worker

    def alive(self) -> list[str]:
        """Return the engines whose process was started and not ended."""
        return [worker.engine for worker in self.workers if worker.running]


class FakeWorker:
    """One engine that takes the time it should and answers as its habit is."""

    def __init__(self, engine: str, job: Job, inputs: np.ndarray, habit: str) -> None:
        self.engine, self.job, self.inputs, self.habit = engine, job, inputs, habit
        self.running = False
        self.blocks = 0
        self.last = answer(inputs[-1])
        self.noise = np.random.default_rng(len(engine))

    def start(self, timeout_s: float = 300.0) -> Started:
        self.running = True
        failures: dict[str, Callable[[], Exception]] = {
            "missing": lambda: EngineMissing("it is not installed; pip install it"),
            "refused": lambda: EngineRefused("it has no such precision"),
            "dies at once": lambda: EngineCrashed("died of SIGSEGV during 'load'"),
        }
        if self.habit in failures:
            self.running = False
            raise failures[self.habit]()
        precision = "bf16" if self.habit == "other precision" else self.job.precision
        coarsest = None if self.job.precision != "auto" else "fp32" if self.habit == "half" else "fp16"
        return Started(Loaded("1.0", precision, {"streams": "1"}, coarsest), 0.25, 0.002, 50_000_000)

    def run(self, images: np.ndarray) -> np.ndarray:
        """Return what the engine says the network says."""
        truth = answer(images)
        previous, self.last = self.last, truth
        lies = {
            "stale": previous,
            "zeros": np.zeros_like(truth),
            "permuted": np.roll(truth, 1, axis=0),
            "nan": np.full_like(truth, np.nan),
            "half": truth.astype(np.float16).astype(np.float32),
            "flat": truth[:, :-1],
        }
        return lies.get(self.habit, truth)

    def block(self, plan: BlockRequest, timeout_s: float | None = None) -> BlockResult:
        assert self.running, "asked after its end"
        self.blocks += 1
        if self.habit == "crashes" and self.blocks > 3:
            self.running = False
            raise EngineCrashed("died of SIGSEGV during 'block'")
        if self.habit == "hangs" and self.blocks > 4:
            self.running = False
            raise EngineTimeout("no answer within 3 s; it was killed")
        runs = max(plan.minimum_runs, 1 if self.engine == "null" else 4)
        durations = [
            max(100, int(2e5 * SPEEDS.get(self.engine, 1.0) * each)) for each in self.noise.normal(1, 0.02, runs)
        ]
        start = time.perf_counter_ns()
        kept, inputs = {}, {}
        for index in itertools.chain(range(-plan.warmup_runs, 0), range(runs)):
            which = (plan.first_input + index) % len(self.inputs)
            output = self.run(self.inputs[which])
            if index >= 0 and (index in plan.keep or (index == runs - 1 and -1 in plan.keep)):
                kept[index], inputs[index] = output, which
        time.sleep(max(0.0, sum(durations) * 1e-9 - (time.perf_counter_ns() - start) * 1e-9))
        end = max(time.perf_counter_ns(), start + sum(durations))
        return BlockResult(tuple(durations), start, end, kept, inputs)

    def cpu_seconds(self) -> float:
        if not self.running:
            raise EngineCrashed("its process is not running")
        return 1.0

    def close(self) -> None:
        self.running = False
