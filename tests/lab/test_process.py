"""A worker process answers, or becomes the right error, whatever the engine in it does."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from perwatt.errors import EngineCrashed, EngineError, EngineMissing, EngineRefused, EngineTimeout, InputError
from perwatt.lab.engine import Job
from perwatt.lab.process import BlockRequest, Worker

pytestmark = pytest.mark.alone  # processor time, time-outs and signals of processes

HERE = Path(__file__).parent
SHAPE = (2, 3, 4, 5)
BATCHES = 3
POSIX = pytest.mark.skipif(os.name != "posix", reason="signals")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    return np.random.default_rng(7).normal(size=(BATCHES, *SHAPE)).astype(np.float32)


@pytest.fixture(scope="module")
def inputs_path(inputs: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inputs") / "inputs.npy"
    np.save(path, inputs)
    return path


def lying(name: str, inputs_path: Path, **options: object) -> Worker:
    job = Job("none.onnx", "image", SHAPE, "mean", "fp32", 1)
    return Worker(f"module:lying_engines:{name}", job, inputs_path, module_path=HERE, **options)  # type: ignore[arg-type]


def expected(inputs: np.ndarray, index: int) -> np.ndarray:
    return inputs[index].mean(axis=(2, 3), dtype=np.float64).astype(np.float32)


def request(runs: int = 5, first_input: int = 0, keep: tuple[int, ...] = (), warmup_runs: int = 0) -> BlockRequest:
    return BlockRequest(0.0, runs, runs, first_input, keep, warmup_runs)


def test_a_block_cycles_through_the_inputs_and_returns_the_outputs_asked_for(
    inputs: np.ndarray, inputs_path: Path
) -> None:
    with lying("Overwriting", inputs_path) as worker:
        started = worker.start(60)
        assert started.loaded.version == "0"
        assert started.load_s > 0
        assert started.first_run_s > 0
        result = worker.block(request(7, first_input=2, keep=(0, 1, 3, -1, 99), warmup_runs=2))
        peak = worker.peak_memory_bytes()
    assert len(result.durations_ns) == 7
    assert all(duration > 0 for duration in result.durations_ns)
    assert sum(result.durations_ns) <= result.end_ns - result.start_ns
    assert result.inputs == {0: 2, 1: 0, 3: 2, 6: 2}
    for run, index in result.inputs.items():
        np.testing.assert_array_equal(result.outputs[run], expected(inputs, index))
    assert peak is not None
    assert peak > 1 << 20


def test_a_block_stops_by_time_between_its_limits(inputs_path: Path) -> None:
    with lying("Mean", inputs_path) as worker:
        worker.start(60)
        before = time.perf_counter_ns()
        result = worker.block(BlockRequest(0.2, 1, 10**9, 0, (), 0))
        assert before < result.start_ns < result.end_ns < time.perf_counter_ns()
        assert 0.2e9 <= result.end_ns - result.start_ns < 5e9
        assert len(worker.block(BlockRequest(0.0, 4, 10, 0, (), 0)).durations_ns) == 4
        assert len(worker.block(BlockRequest(60.0, 1, 6, 0, (), 0)).durations_ns) == 6


@POSIX
def test_a_segmentation_fault_is_named_and_other_workers_go_on(inputs: np.ndarray, inputs_path: Path) -> None:
    with lying("Mean", inputs_path) as other, lying("CrashInRun", inputs_path) as worker:
        other.start(60)
        worker.start(60)
        with pytest.raises(EngineCrashed, match="died of SIGSEGV"):
            worker.block(request(10))
        with pytest.raises(EngineCrashed):  # and it stays dead
            worker.block(request(1))
        result = other.block(request(1, keep=(0,)))
    np.testing.assert_array_equal(result.outputs[0], expected(inputs, 0))


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        pytest.param("CrashInLoad", EngineCrashed, "SIGSEGV.*about to read address zero", marks=POSIX),
        ("Exits", EngineCrashed, "exit code 3.*leaving"),
        ("Raises", EngineCrashed, "ValueError: no such kernel"),
        ("Refuses", EngineRefused, "batch 2 is not supported"),
        ("WrongType", EngineRefused, "expected a float32 array.*float64"),
        pytest.param("HangInLoadDeaf", EngineTimeout, "within 1.5 s", marks=POSIX),
    ],
)
def test_whatever_goes_wrong_at_the_start_becomes_one_error_of_one_line(
    name: str, kind: type[EngineError], words: str, inputs_path: Path
) -> None:
    worker = lying(name, inputs_path)
    with pytest.raises(kind, match=words) as caught:
        worker.start(1.5 if kind is EngineTimeout else 60)
    assert "\n" not in str(caught.value)
    worker.close()
    worker.close()


def test_an_engine_that_hangs_in_a_block_is_killed(inputs_path: Path) -> None:
    with lying("HangInRun", inputs_path) as worker:
        process = psutil.Process(int(worker.start(60).loaded.options["pid"]))
        before = time.monotonic()
        with pytest.raises(EngineTimeout, match="block"):
            worker.block(request(2), timeout_s=0.3)
        assert time.monotonic() - before < 5
        assert not process.is_running()


def test_noise_on_standard_output_does_not_reach_the_protocol(inputs: np.ndarray, inputs_path: Path) -> None:
    with lying("Noisy", inputs_path) as worker:
        worker.start(60)
        result = worker.block(request(3, keep=(2,)))
    np.testing.assert_array_equal(result.outputs[2], expected(inputs, 2))


@pytest.mark.parametrize("name", ["Stale", "Zeros", "Permuted"])
def test_outputs_of_a_lying_engine_arrive_as_they_were_given(name: str, inputs: np.ndarray, inputs_path: Path) -> None:
    with lying(name, inputs_path) as worker:
        worker.start(60)
        result = worker.block(request(4, first_input=1, keep=(1,)))
    truth = expected(inputs, result.inputs[1])
    lie = {"Stale": expected(inputs, 1), "Zeros": 0 * truth, "Permuted": truth[::-1]}[name]
    np.testing.assert_array_equal(result.outputs[1], lie)
    assert not np.allclose(lie, truth)


def test_processor_time_grows_while_a_pool_spins_and_then_stands_still(inputs_path: Path) -> None:
    with lying("Spinning", inputs_path) as worker:
        worker.start(60)
        worker.block(request(1))
        before = worker.cpu_seconds()
        deadline = time.monotonic() + 30
        time.sleep(0.05)
        grown = worker.cpu_seconds() - before
        still = 1.0
        while still > 0.001 and time.monotonic() < deadline:
            last = worker.cpu_seconds()
            time.sleep(0.05)
            still = worker.cpu_seconds() - last
    assert grown > 0.005
    assert still <= 0.001


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no processor affinity")
def test_a_worker_stays_on_the_processors_it_was_given(inputs_path: Path) -> None:
    chosen = max(os.sched_getaffinity(0))
    with lying("Mean", inputs_path, cpus=(chosen,)) as worker:
        pid = int(worker.start(60).loaded.options["pid"])
        assert os.sched_getaffinity(pid) == {chosen}


@POSIX
@pytest.mark.slow
def test_a_worker_dies_with_its_parent_and_ignores_the_terminals_interrupt(inputs_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from perwatt.lab.engine import Job; "
        "from perwatt.lab.process import Worker\n"
        f"job = Job('none.onnx', 'image', {SHAPE}, 'mean', 'fp32', 1)\n"
        f"w = Worker('module:lying_engines:Mean', job, Path({str(inputs_path)!r}), module_path=Path({str(HERE)!r}))\n"
        "print(w.start(60).loaded.options['pid'], flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    child.send_signal(signal.SIGINT)
    time.sleep(0.2)
    assert child.is_running()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    psutil.wait_procs([child], timeout=10)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_a_worker_outlives_the_thread_that_started_it(inputs_path: Path) -> None:
    with lying("Mean", inputs_path) as worker:
        thread = threading.Thread(target=worker.start)
        thread.start()
        thread.join()
        time.sleep(0.2)
        assert len(worker.block(request(2)).durations_ns) == 2


def test_a_library_that_cannot_be_imported_is_missing(inputs_path: Path, tmp_path: Path) -> None:
    (tmp_path / "onnx.py").write_text("raise ImportError('no library here')")
    job = Job("none.onnx", "image", SHAPE, "mean", "fp32", 1)
    with (
        Worker("null", job, inputs_path, module_path=tmp_path) as worker,
        pytest.raises(EngineMissing, match="no libr"),
    ):
        worker.start(60)


@pytest.mark.parametrize("name", ["nul", "module:lying_engines:Mean", ""])
def test_an_unknown_engine_is_refused_before_anything_starts(name: str, inputs_path: Path) -> None:
    with pytest.raises(InputError, match="expected one of"):
        Worker(name, Job("none.onnx", "image", SHAPE, "mean", "fp32", 1), inputs_path)
