"""The child side of an engine: one process, one engine, the timed loop. Started by `process.py`, never by hand.

`python -m perwatt.lab.worker ENGINE` speaks frames over its standard input and output. Native libraries print to file
descriptor 1, so the protocol moves to private duplicates at once and descriptor 1 becomes standard error.
"""

import argparse
import ctypes
import gc
import importlib
import os
import queue
import signal
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

import numpy as np

from perwatt.errors import EngineError, EngineMissing, EngineRefused
from perwatt.lab.engine import Engine, Job
from perwatt.lab.engines import entry
from perwatt.lab.frames import read_frame, write_frame
from perwatt.settings import cache_folder

_ALIGNMENT_BYTES = 64
_PR_SET_PDEATHSIG = 1


def environment(threads: int, module_path: Path | None) -> dict[str, str]:
    """Return the environment a worker starts with: the caller's, with every thread pool's size set beforehand.

    Libraries read these once, when they are loaded, so they must be there before the worker's first import. NumPy's own
    pool is held to one thread: no engine computes with it. `module_path` is searched first for modules.
    """
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
    changed = dict.fromkeys(names, str(threads)) | {
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_DYNAMIC": "FALSE",
        # Compiling in the worker itself keeps helper processes out of the measurement.
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(cache_folder() / "torchinductor"),
    }
    if module_path is not None:
        changed["PYTHONPATH"] = os.pathsep.join(filter(None, (str(module_path), os.environ.get("PYTHONPATH", ""))))
    return {**os.environ, **changed}


def create(name: str) -> Engine:
    """Import the engine's module and return a fresh engine; `module:NAME:CLASS` names one that is not in the table.

    Raises EngineMissing, with the command that installs it, when its library is not there or cannot be imported.
    """
    known = entry(name)
    target = known.target if known else name.removeprefix("module:")
    module, _, attribute = target.partition(":")
    try:
        factory = getattr(importlib.import_module(module), attribute)
    except (ImportError, OSError) as error:  # OSError: a library that is there but does not load
        install = f"; install it with: {known.install}" if known and known.install else ""
        raise EngineMissing(f"{name}: its library cannot be imported ({_one_line(error)}){install}") from error
    engine: Engine = factory()
    return engine


def read_inputs(path: str) -> list[np.ndarray]:
    """Return the K input batches of a .npy file of shape (K, batch, ...) in memory, float32, 64-byte aligned."""
    stored = np.load(path, mmap_mode="r", allow_pickle=False)
    return [_aligned_copy(stored[index]) for index in range(len(stored))]


def timed_block(
    engine: Engine,
    inputs: list[np.ndarray],
    *,
    seconds: float,
    minimum_runs: int,
    maximum_runs: int,
    first_input: int,
    keep: frozenset[int],
    warmup_runs: int,
) -> tuple[list[int], int, int, dict[int, np.ndarray]]:
    """Run the engine until `seconds` have gone by, within the limits on the number of runs.

    Returns each run's duration in ns, the block's start and end on the monotonic clock in ns, and copies of the outputs
    of the runs in `keep` (-1: the last). Only `engine.run` lies between the two clock readings of a run; outputs are
    copied after the second. Python's garbage collector stands still meanwhile. Warm-up runs use the inputs that come
    before `first_input`, so that the first timed run does not find its input in the cache.
    """
    run, clock, count = engine.run, time.perf_counter_ns, len(inputs)
    for index in range(warmup_runs):
        run(inputs[(first_input - warmup_runs + index) % count])
    durations: list[int] = []
    kept: dict[int, np.ndarray] = {}
    output = np.empty(0, np.float32)
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        start = after = clock()
        deadline = start + int(seconds * 1e9)
        for index in range(maximum_runs):
            images = inputs[(first_input + index) % count]
            before = clock()
            output = run(images)
            after = clock()
            durations.append(after - before)
            if index in keep:
                kept[index] = np.array(output, np.float32)
            if after >= deadline and index + 1 >= minimum_runs:
                break
        if -1 in keep and durations:
            kept[len(durations) - 1] = np.array(output, np.float32)
    finally:
        gc.enable()
        gc.unfreeze()
    return durations, start, after, kept


def peak_memory_bytes() -> int | None:
    """Return the most memory this process has had resident so far, or None where the system does not say."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count the parent's size at fork as well
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class _Session:
    """What the worker holds between two requests; each method answers one kind of request."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.engine: Engine | None = None
        self.inputs: list[np.ndarray] = []

    def load(self, request: dict[str, Any]) -> tuple[dict[str, Any], list[np.ndarray]]:
        job = Job(**{**request["job"], "input_shape": tuple(request["job"]["input_shape"])})
        self.inputs = read_inputs(request["inputs_path"])
        before = time.perf_counter()
        self.engine = create(self.name)
        loaded = self.engine.load(job)
        ready = time.perf_counter()
        output = self.engine.run(self.inputs[0])
        after = time.perf_counter()
        if not isinstance(output, np.ndarray) or output.dtype != np.float32 or output.shape[:1] != job.input_shape[:1]:
            got = f"{output.dtype}{output.shape}" if isinstance(output, np.ndarray) else type(output).__name__
            raise EngineRefused(f"{self.name}: expected a float32 array for {job.input_shape[0]} images, got {got}")
        return {
            "version": loaded.version,
            "precision": loaded.precision,
            "options": loaded.options,
            "coarsest": loaded.coarsest,
            "load_s": ready - before,
            "first_run_s": after - ready,
            "peak_memory_bytes": peak_memory_bytes(),
        }, []

    def feed(self, request: dict[str, Any]) -> tuple[dict[str, Any], list[np.ndarray]]:
        self.inputs = read_inputs(request["inputs_path"])
        return {}, []

    def block(self, request: dict[str, Any]) -> tuple[dict[str, Any], list[np.ndarray]]:
        if self.engine is None:
            raise EngineRefused(f"{self.name}: asked to run before it was loaded; call start first")
        plan = {**request["plan"], "keep": frozenset(request["plan"]["keep"])}
        durations, start, end, kept = timed_block(self.engine, self.inputs, **plan)
        answer = {
            "durations_ns": durations,
            "start_ns": start,
            "end_ns": end,
            "kept": list(kept),
            "inputs": [(plan["first_input"] + run) % len(self.inputs) for run in kept],
        }
        return answer, list(kept.values())

    def memory(self, request: dict[str, Any]) -> tuple[dict[str, Any], list[np.ndarray]]:
        return {"peak_memory_bytes": peak_memory_bytes()}, []

    def close(self, request: dict[str, Any]) -> tuple[dict[str, Any], list[np.ndarray]]:
        if self.engine is not None:
            self.engine.close()
        return {}, []


def main() -> None:
    """Serve requests until the parent says close or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    parser = argparse.ArgumentParser()
    parser.add_argument("engine")
    parser.add_argument("--cpus", default="", help="comma-separated processors to stay on")
    parser.add_argument("--die-with-parent", action="store_true")
    arguments = parser.parse_args()
    requests, answers = _take_over_pipes()
    if arguments.die_with_parent and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if arguments.cpus and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(cpu) for cpu in arguments.cpus.split(",")})
    waiting: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(requests, waiting), daemon=True).start()
    session = _Session(arguments.engine)
    while True:
        request = waiting.get()
        try:
            answer, arrays = getattr(session, request["ask"])(request)
        except EngineError as error:
            answer, arrays = {"error": type(error).__name__, "message": str(error)}, []
        except Exception as error:  # noqa: BLE001 whatever an engine raises becomes the reason of its row
            answer, arrays = {"error": "EngineCrashed", "message": f"{arguments.engine}: {_one_line(error)}"}, []
        write_frame(answers, answer, arrays)
        if request["ask"] == "close":
            answers.close()
            sys.stderr.flush()
            os._exit(0)  # native libraries that crash while they are unloaded have nothing left to say


def _take_over_pipes() -> tuple[IO[bytes], IO[bytes]]:
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return requests, answers


def _listen(requests: IO[bytes], waiting: "queue.SimpleQueue[dict[str, Any]]") -> None:
    # A thread of its own, so that the end of the parent is noticed in the middle of a block as well.
    try:
        while True:
            waiting.put(read_frame(requests)[0])
    except (EOFError, OSError):
        os._exit(1)


def _aligned_copy(source: np.ndarray) -> np.ndarray:
    space = np.empty(source.size * 4 + _ALIGNMENT_BYTES, np.uint8)
    offset = -space.ctypes.data % _ALIGNMENT_BYTES
    copy = space[offset : offset + source.size * 4].view(np.float32).reshape(source.shape)
    copy[...] = source
    return copy


def _one_line(error: BaseException) -> str:
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words[:400]}" if words else type(error).__name__


if __name__ == "__main__":
    main()
