"""The parent side of an engine: start its process, ask it, and turn whatever happens to it into answer or error."""

import contextlib
import dataclasses
import os
import platform
import queue
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
import psutil

from perwatt import errors
from perwatt.errors import EngineCrashed, EngineRefused, EngineTimeout
from perwatt.lab import worker
from perwatt.lab.engine import Job, Loaded
from perwatt.lab.engines import ENGINES, entry
from perwatt.lab.frames import read_frame, write_frame

_LAST_WORDS_BYTES = 4096
_LAST_WORDS_LINES = 4


@dataclass(frozen=True)
class Started:
    """An engine that is ready: what it says of itself, and its cold start.

    `load_s` is from the import of its library to the end of `load`, `first_run_s` is the very first run (input 0).
    """

    loaded: Loaded
    load_s: float
    first_run_s: float
    peak_memory_bytes: int | None


@dataclass(frozen=True)
class BlockRequest:
    """One uninterrupted stretch of runs: stop after `seconds`, within the limits on the number of runs.

    Run i uses input batch (first_input + i) modulo the number of batches. `keep` lists the runs whose outputs are
    wanted; -1 means the last, indices that are not reached are left out.
    """

    seconds: float
    minimum_runs: int
    maximum_runs: int
    first_input: int
    keep: tuple[int, ...]
    warmup_runs: int


@dataclass(frozen=True)
class BlockResult:
    """What a block gave: every run's duration, start and end on the monotonic clock, and the outputs that were kept.

    `start_ns` and `end_ns` count from the same zero as the parent's `time.perf_counter_ns` on Linux, macOS and Windows.
    `outputs` and `inputs` map a kept run to its output (float32) and to the input batch it was given.
    """

    durations_ns: tuple[int, ...]
    start_ns: int
    end_ns: int
    outputs: dict[int, np.ndarray]
    inputs: dict[int, int]


class Worker:
    """One engine in a process of its own.

    `inputs_path` is a .npy file of shape (K, *job.input_shape), float32. `cpus` are the processors it must stay on.
    An engine that is not in the table is named `module:NAME:CLASS`, and accepted only with a `module_path` to find it.
    Every method raises EngineCrashed when the process has died and EngineTimeout when it gives no answer in time (it is
    killed then); what the engine itself raises as EngineMissing or EngineRefused arrives as that.
    """

    def __init__(
        self,
        engine: str,
        job: Job,
        inputs_path: Path,
        *,
        cpus: tuple[int, ...] | None = None,
        module_path: Path | None = None,
    ) -> None:
        if entry(engine) is None and not (engine.startswith("module:") and module_path is not None):
            known = ", ".join(each.name for each in ENGINES)
            raise errors.InputError(f"engine: expected one of {known}, got {engine!r}; choose one of them")
        self.engine = engine
        self.job = job
        self.inputs_path = inputs_path
        self.cpus = cpus
        self.module_path = module_path
        self._process: subprocess.Popen[bytes] | None = None
        self._answers: queue.SimpleQueue[tuple[dict[str, Any], list[np.ndarray]] | None] = queue.SimpleQueue()
        self._slowest_run_s = 0.0

    def start(self, timeout_s: float = 300.0) -> Started:
        """Start the process, load the network and make the first run."""
        command = [sys.executable, "-m", "perwatt.lab.worker", self.engine]
        if self.cpus:
            command += ["--cpus", ",".join(map(str, self.cpus))]
        if threading.current_thread() is threading.main_thread():
            # The signal is bound to the thread that starts the process, so only with one that lasts.
            command.append("--die-with-parent")
        # A file, not a pipe: nobody has to read it, and a noisy library cannot block on it.
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 it lives as long as the worker
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=worker.environment(self.job.threads, self.module_path),
            start_new_session=True,  # the terminal's Ctrl-C stays with the parent; children can be killed with it
        )
        threading.Thread(target=_collect, args=(self._process.stdout, self._answers), daemon=True).start()
        request = {"job": dataclasses.asdict(self.job), "inputs_path": str(self.inputs_path)}
        answer, _ = self._ask("load", request, timeout_s)
        self._slowest_run_s = answer["first_run_s"]
        loaded = Loaded(answer["version"], answer["precision"], answer["options"], answer["coarsest"])
        return Started(loaded, answer["load_s"], answer["first_run_s"], answer["peak_memory_bytes"])

    def feed(self, inputs_path: Path, timeout_s: float = 300.0) -> None:
        """Let the blocks that follow use other inputs: a .npy file as the first one, with any number of batches."""
        self._ask("feed", {"inputs_path": str(inputs_path)}, timeout_s)

    def block(self, plan: BlockRequest, timeout_s: float | None = None) -> BlockResult:
        """Run one block. Without `timeout_s` the limit is generous: what the block may take, four times, and 30 s."""
        if timeout_s is None:
            runs = plan.warmup_runs + plan.minimum_runs + 1
            timeout_s = 30 + 4 * (plan.seconds + runs * self._slowest_run_s)
        answer, arrays = self._ask("block", {"plan": dataclasses.asdict(plan)}, timeout_s)
        durations = tuple(answer["durations_ns"])
        self._slowest_run_s = max(durations, default=0) * 1e-9
        return BlockResult(
            durations,
            answer["start_ns"],
            answer["end_ns"],
            dict(zip(answer["kept"], arrays, strict=True)),
            dict(zip(answer["kept"], answer["inputs"], strict=True)),
        )

    def cpu_seconds(self) -> float:
        """Return the processor time the worker has used, all threads together, in seconds.

        It stands still when the worker's threads sleep; a thread pool that still spins makes it grow.
        """
        process = self._running()
        if platform.system() == "Linux":
            # The clock of another process (clock_getcpuclockid): nanoseconds, where /proc counts in 10 ms.
            try:
                return time.clock_gettime((~process.pid << 3) | 2)
            except OSError as error:
                raise self._died(process, "while idle") from error
        try:
            times = psutil.Process(process.pid).cpu_times()
        except psutil.Error as error:
            raise self._died(process, "while idle") from error
        return float(times.user + times.system)

    def peak_memory_bytes(self) -> int | None:
        """Return the most memory the worker has had resident so far, or None where the system does not say."""
        peak: int | None = self._ask("memory", {}, 30.0)[0]["peak_memory_bytes"]
        return peak

    def close(self) -> None:
        """End the process, by force if it does not go within two seconds; closing twice is harmless."""
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            # One that does not go by itself is killed below; its row is written already.
            with contextlib.suppress(errors.EngineError, subprocess.TimeoutExpired):
                self._ask("close", {}, 2.0)
                process.wait(2.0)
        self._kill()
        self._process = None
        self._stderr.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.returncode is not None:
            raise EngineCrashed(f"{self.engine}: its process is not running; start a new worker")
        return self._process

    def _ask(self, what: str, request: dict[str, Any], timeout_s: float) -> tuple[dict[str, Any], list[np.ndarray]]:
        process = self._running()
        assert process.stdin is not None
        try:
            write_frame(process.stdin, {"ask": what, **request})
            answer = self._answers.get(timeout=timeout_s)
        except OSError as error:
            raise self._died(process, f"before {what!r}") from error
        except queue.Empty as error:
            self._kill()
            raise EngineTimeout(
                f"{self.engine}: expected an answer to {what!r} within {timeout_s:.4g} s, got none; it was killed"
            ) from error
        except BaseException:
            self._kill()  # interrupted in the middle of a request: the answer would be taken for the next one's
            raise
        if answer is None:
            raise self._died(process, f"during {what!r}")
        if "error" in answer[0]:
            kinds = {"EngineMissing": errors.EngineMissing, "EngineRefused": EngineRefused}
            words = "" if answer[0]["error"] in kinds else self._last_words()
            self._kill()
            raise kinds.get(answer[0]["error"], EngineCrashed)(answer[0]["message"] + words)
        return answer

    def _died(self, process: subprocess.Popen[bytes], when: str) -> EngineCrashed:
        try:
            code = process.wait(5.0)
        except subprocess.TimeoutExpired:  # it closed its pipe and lives on
            self._kill()
            return EngineCrashed(f"{self.engine}: closed its pipe {when} and was killed{self._last_words()}")
        if code < 0:
            try:
                how = f"died of {signal.Signals(-code).name}"
            except ValueError:
                how = f"died of signal {-code}"
        else:
            how = f"ended with exit code {code}"
        self._kill()
        return EngineCrashed(f"{self.engine}: {how} {when}{self._last_words()}")

    def _last_words(self) -> str:
        if self._stderr.closed:
            return ""
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, size - _LAST_WORDS_BYTES))
        lines = [line.strip() for line in self._stderr.read().decode(errors="replace").splitlines() if line.strip()]
        return f"; its last words: {' | '.join(lines[-_LAST_WORDS_LINES:])}" if lines else ""

    def _kill(self) -> None:
        process = self._process
        if process is None:
            return
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError, PermissionError):  # already gone
                os.killpg(process.pid, signal.SIGKILL)  # with whatever it started itself
        else:
            process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # a request that could not be flushed any more
                    pipe.close()


def harness_cost_s(job: Job, inputs_path: Path, *, runs: int = 20_000) -> float:
    """Return what the harness itself costs per run in seconds: the wall time per run of the timed loop on `null`.

    It counts all that lies between two runs (clock readings, choice of the input, bookkeeping), and so is an upper
    bound of what is added to a measured duration. Median of five blocks.
    """
    request = BlockRequest(60.0, 1, runs, 0, (), 10)
    with Worker("null", job, inputs_path) as null:
        null.start(60.0)
        blocks = [null.block(request) for _ in range(5)]
    return statistics.median((block.end_ns - block.start_ns) * 1e-9 / len(block.durations_ns) for block in blocks)


def _collect(answers: IO[bytes], waiting: "queue.SimpleQueue[tuple[dict[str, Any], list[np.ndarray]] | None]") -> None:
    try:
        while True:
            waiting.put(read_frame(answers))
    except (EOFError, OSError, ValueError):
        waiting.put(None)
