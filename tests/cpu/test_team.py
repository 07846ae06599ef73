"""The thread team: all see what was written before a barrier, crowding ends, idle sleeps, fork, exit and Ctrl-C."""

import ctypes
import os
import platform
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from perwatt import settings
from perwatt.cpu import team as team_module
from perwatt.cpu.jit import NativeCode, compile_module
from perwatt.cpu.team import BARRIER, Team, one_cpu_of_each_core, places, shared_team
from perwatt.errors import EngineError, InputError

pytestmark = pytest.mark.alone  # spinning, sleeping and processor time of threads

# mark:      arguments = cells, step, failures; a thread writes the step's number into its own cell.
# slow_mark: as mark, but thread 0 counts to arguments[3] first.
# verify:    a thread counts into its own failures how many cells of the team do not hold the number.
KERNELS = """
define void @mark(ptr %arguments, i64 %thread, i64 %threads) {
  %at = getelementptr i64, ptr %arguments, i64 1
  %cells = load ptr, ptr %arguments
  %step = load i64, ptr %at
  %cell = getelementptr i64, ptr %cells, i64 %thread
  store i64 %step, ptr %cell
  ret void
}

define void @slow_mark(ptr %arguments, i64 %thread, i64 %threads) {
enter:
  %number = alloca i64
  %first = icmp eq i64 %thread, 0
  br i1 %first, label %count, label %leave
count:
  %at = getelementptr i64, ptr %arguments, i64 3
  %limit = load i64, ptr %at
  br label %loop
loop:
  %i = phi i64 [0, %count], [%j, %loop]
  %j = add i64 %i, 1
  store volatile i64 %j, ptr %number
  %more = icmp slt i64 %j, %limit
  br i1 %more, label %loop, label %leave
leave:
  call void @mark(ptr %arguments, i64 %thread, i64 %threads)
  ret void
}

define void @verify(ptr %arguments, i64 %thread, i64 %threads) {
enter:
  %step_at = getelementptr i64, ptr %arguments, i64 1
  %failures_at = getelementptr i64, ptr %arguments, i64 2
  %cells = load ptr, ptr %arguments
  %step = load i64, ptr %step_at
  %failures = load ptr, ptr %failures_at
  %own = getelementptr i64, ptr %failures, i64 %thread
  br label %loop
loop:
  %i = phi i64 [0, %enter], [%j, %loop]
  %cell = getelementptr i64, ptr %cells, i64 %i
  %value = load i64, ptr %cell
  %wrong = icmp ne i64 %value, %step
  %one = zext i1 %wrong to i64
  %before = load i64, ptr %own
  %after = add i64 %before, %one
  store i64 %after, ptr %own
  %j = add i64 %i, 1
  %more = icmp slt i64 %j, %threads
  br i1 %more, label %loop, label %leave
leave:
  ret void
}

define void @count(ptr %arguments, i64 %thread, i64 %threads) {
  %cell = getelementptr i64, ptr %arguments, i64 %thread
  %before = load i64, ptr %cell
  %after = add i64 %before, 1
  store i64 %after, ptr %cell
  ret void
}

define void @team_size(ptr %arguments, i64 %thread, i64 %threads) {
  %cell = getelementptr i64, ptr %arguments, i64 %thread
  store i64 %threads, ptr %cell
  ret void
}

define void @double(ptr %arguments, i64 %thread, i64 %threads) {
  %line = mul i64 %thread, 2
  %from = getelementptr float, ptr %arguments, i64 %line
  %to = getelementptr float, ptr %from, i64 1
  %x = load float, ptr %from
  %y = fadd float %x, %x
  store float %y, ptr %to
  ret void
}
"""
MXCSR = """
declare void @llvm.x86.sse.stmxcsr(ptr)
declare void @llvm.x86.sse.ldmxcsr(ptr)
define void @keep(ptr %arguments, i64 %thread, i64 %threads) {
  call void @llvm.x86.sse.stmxcsr(ptr %arguments)
  ret void
}
define void @put(ptr %arguments, i64 %thread, i64 %threads) {
  call void @llvm.x86.sse.ldmxcsr(ptr %arguments)
  ret void
}
"""
# What the scripts of the subprocess tests begin with: a table of ten counting steps, and one step of some 3 ms.
SCRIPT = f"""
import contextlib, os, signal, sys, threading, time
import numpy as np
from perwatt.cpu import team as team_module
from perwatt.cpu.jit import compile_module
from perwatt.cpu.team import Team, shared_team
from perwatt.errors import EngineError
CODE = compile_module('''{KERNELS}''')
cells = np.zeros(64, np.int64)
slow = np.array([cells.ctypes.data, 7, 0, 10_000_000], np.int64)
counting = np.array([[CODE.address("count"), cells.ctypes.data, 1, 0]] * 10, np.int64)
slowly = np.array([[CODE.address("slow_mark"), slow.ctypes.data, 1, 0]], np.int64)
"""


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERWATT_CACHE", str(tmp_path_factory.getbasetemp() / "team_cache"))


@pytest.fixture(name="code")
def _code() -> NativeCode:
    return compile_module(KERNELS, name="team_test")


def python(script: str, timeout_s: float = 20) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SCRIPT + script]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)


def counting_table(code: NativeCode, cells: np.ndarray) -> np.ndarray:
    return np.array([[code.address("count"), cells.ctypes.data, BARRIER, 0]], np.int64)


def marked_steps(code: NativeCode, pairs: int, flags: int, mark: str = "mark") -> tuple[np.ndarray, list[np.ndarray]]:
    """Return a table of mark and verify steps in turn, and the arrays it uses: cells, failures, arguments."""
    cells, failures = np.zeros(16, np.int64), np.zeros(16, np.int64)
    arguments = np.array([[cells.ctypes.data, i + 1, failures.ctypes.data, 200_000] for i in range(pairs)], np.int64)
    rows = []
    for line in arguments:
        rows.append([code.address(mark), line.ctypes.data, flags, 0])
        rows.append([code.address("verify"), line.ctypes.data, BARRIER, 0])
    return np.array(rows, np.int64), [cells, failures, arguments]


@pytest.mark.parametrize("sleeping", ["futex", "condition"])
@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_every_step_sees_all_writes_of_the_step_before(code: NativeCode, threads: int, sleeping: str) -> None:
    if sleeping == "futex" and sys.platform != "linux":
        pytest.skip("futex is Linux's")
    team = Team(threads, sleeping=sleeping)
    table, (cells, failures, _arguments) = marked_steps(code, 50, BARRIER)
    for _ in range(60 if threads < 3 else 20):
        team.run(table)
        assert cells[:threads].tolist() == [50] * threads
    assert failures.sum() == 0
    team.close()


def test_without_the_barrier_the_check_fails(code: NativeCode) -> None:
    team = Team(2)
    table, (cells, failures, _arguments) = marked_steps(code, 1, 0, mark="slow_mark")
    for _ in range(50):
        cells[:] = 0
        team.run(table)
        if failures.sum():
            break
    assert failures.sum() > 0
    team.close()


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_every_thread_runs_every_step_once(code: NativeCode, threads: int) -> None:
    team = Team(threads)
    cells, sizes = np.zeros(16, np.int64), np.zeros(16, np.int64)
    rows = [[code.address("count"), cells.ctypes.data, flags, 0] for flags in (0, 1, 0, 0, 1)]
    run = team.bind(np.array([*rows, [code.address("team_size"), sizes.ctypes.data, 0, 0]], np.int64))
    for _ in range(10):
        run()
    assert cells.tolist() == [50] * threads + [0] * (16 - threads)
    assert sizes.tolist() == [threads] * threads + [0] * (16 - threads)
    team.run(np.zeros((0, 4), np.int64))
    team.close()


def test_sleepers_wake_for_every_run(code: NativeCode) -> None:
    team = Team(3, spin_us=0)
    cells = np.zeros(16, np.int64)
    table = counting_table(code, cells)
    for i in range(20):
        time.sleep(0.003 * (i % 3))
        team.run(table)
    assert cells[:3].tolist() == [20, 20, 20]
    team.close()


@pytest.mark.parametrize("sleeping", ["futex", "condition"])
def test_no_wake_up_is_lost_when_every_wait_sleeps_at_once(
    code: NativeCode, sleeping: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if sleeping == "futex" and sys.platform != "linux":
        pytest.skip("futex is Linux's")
    monkeypatch.setattr(team_module, "BARRIER_YIELD_NS", 0)
    monkeypatch.setattr(team_module, "usable_cpus", lambda: 1)  # no spinning
    team = Team(3, sleeping=sleeping)
    table, (_cells, failures, _arguments) = marked_steps(code, 10, BARRIER)
    for _ in range(100):
        team.run(table)
    assert failures.sum() == 0
    team.close()


def test_how_long_a_barrier_waits_awake_can_be_set(code: NativeCode, monkeypatch: pytest.MonkeyPatch) -> None:
    table, (_cells, failures, _arguments) = marked_steps(code, 10, BARRIER)

    def waits_of(microseconds: str) -> list[int]:
        monkeypatch.setenv("PERWATT_BARRIER_US", microseconds)
        team = Team(2)
        for _ in range(50):
            team.run(table)
        crew = team._crew
        start = crew.control - crew.memory.ctypes.data + team_module.team_code.SETTINGS
        found = crew.memory[start + 24 : start + 40].view(np.int64).tolist()
        team.close()
        return [int(nanoseconds) for nanoseconds in found]

    monkeypatch.setattr(team_module, "usable_cpus", lambda: 2)
    assert waits_of("600") == [100_000, 500_000]  # spin, then yield
    assert waits_of("20") == [20_000, 0]
    assert waits_of("0") == [0, 0]
    assert waits_of("1000000") == [100_000, 500_000]
    assert failures.sum() == 0
    monkeypatch.setattr(settings, "_preferred", {})
    settings.prefer("PERWATT_BARRIER_US", "7")
    assert settings.barrier_us() == 1_000_000  # the environment goes first
    monkeypatch.delenv("PERWATT_BARRIER_US")
    assert settings.barrier_us() == 7
    monkeypatch.setenv("PERWATT_BARRIER_US", "long")
    with pytest.raises(InputError, match="PERWATT_BARRIER_US: expected a number"):
        Team(2).run(table)


def test_an_idle_team_uses_no_processor(code: NativeCode) -> None:
    team = Team(3)
    cells = np.zeros(16, np.int64)
    team.run(counting_table(code, cells))
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.02
    team.close()


def test_denormals_are_flushed_inside_only(code: NativeCode) -> None:
    if platform.machine().lower() not in ("x86_64", "amd64", "aarch64", "arm64"):
        pytest.skip("this processor's floating-point mode is left alone")
    team = Team(3)
    tiny = np.float32(1e-40)
    pairs = np.array([[tiny, -1]] * 3, np.float32)
    team.run(np.array([[code.address("double"), pairs.ctypes.data, 1, 0]], np.int64))
    assert pairs[:, 1].tolist() == [0, 0, 0]
    assert (np.array([tiny]) + np.array([tiny]))[0] > 0
    team.close()


@pytest.mark.parametrize("threads", [1, 2])
def test_the_callers_floating_point_mode_is_restored(code: NativeCode, threads: int) -> None:
    if platform.machine().lower() not in ("x86_64", "amd64"):
        pytest.skip("MXCSR is x86's")
    mode = compile_module(MXCSR, name="mode")
    team = Team(threads)
    inside = np.zeros(1, np.int32)
    Team(1).run(np.array([[mode.address("keep"), inside.ctypes.data, 0, 0]], np.int64))
    assert inside[0] & 0x8040 == 0x8040
    # Round down, with one flag raised: a run, in which denormals appear, brings it back bit for bit.
    kernel = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
    keep, put = kernel(mode.address("keep")), kernel(mode.address("put"))
    before, odd, after = (np.zeros(1, np.int32) for _ in range(3))
    pairs = np.array([[1e-40, 0], [1e-40, 0]], np.float32)
    run = team.bind(np.array([[code.address("double"), pairs.ctypes.data, 1, 0]], np.int64))
    keep(before.ctypes.data, 0, 1)
    odd[0] = before[0] & ~0x603F | 0x2020
    put(odd.ctypes.data, 0, 1)
    run()
    keep(after.ctypes.data, 0, 1)
    put(before.ctypes.data, 0, 1)
    assert hex(after[0]) == hex(odd[0])
    team.close()


def test_callers_on_many_python_threads_take_turns(code: NativeCode) -> None:
    team, other = shared_team(2), Team(3)
    assert shared_team(2) is team
    results = []

    def call(which: Team) -> None:
        table, (_cells, failures, _arguments) = marked_steps(code, 10, BARRIER)
        for _ in range(30):
            which.run(table)
        results.append(failures.sum())

    callers = [threading.Thread(target=call, args=(team if i % 2 else other,)) for i in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert results == [0] * 8
    other.close()


def test_pinned_workers_stay_where_they_were_put(code: NativeCode) -> None:
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("no affinity here")
    cpu = min(os.sched_getaffinity(0))
    others = {thread.native_id for thread in threading.enumerate()}
    team = Team(2, cpus=[cpu])
    team.run(counting_table(code, np.zeros(16, np.int64)))
    new = [thread.native_id for thread in threading.enumerate() if thread.native_id not in others]
    assert [os.sched_getaffinity(number) for number in new if number is not None] == [{cpu}]
    team.close()


def test_step_times_tell_the_slow_step(code: NativeCode) -> None:
    team = Team(2)
    table, (_cells, _failures, arguments) = marked_steps(code, 3, BARRIER)
    arguments[1, 3] = 5_000_000  # some 2 ms, more than a crowded machine's barrier
    table[2, 0] = code.address("slow_mark")
    times = team.time_steps(table, 5)
    assert times.shape == (5, 6)
    assert times.dtype == np.float64
    assert (times >= 0).all()
    assert np.median(times, axis=0).argmax() == 2
    start = time.perf_counter_ns()
    total = team.time_steps(table, 5).sum()
    assert 0 < total <= time.perf_counter_ns() - start
    team.close()


def test_a_run_allocates_nothing_that_stays(code: NativeCode) -> None:
    team = Team(2)
    cells = np.zeros(16, np.int64)
    run = team.bind(counting_table(code, cells))
    run()
    tracemalloc.start()
    try:
        run()
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(200):
            run()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 1000
    team.close()


def test_bad_tables_and_closed_teams_are_refused(code: NativeCode) -> None:
    team = Team(2)
    for table in (np.zeros((2, 3), np.int64), np.ones((2, 4), np.int32), np.ones((4, 8), np.int64)[:, ::2]):
        with pytest.raises(ValueError, match="step table"):
            team.run(table)
    with pytest.raises(ValueError, match="step 1 has no function"):
        team.run(np.array([[1, 0, 0, 0], [0, 0, 0, 0]], np.int64))
    with pytest.raises(ValueError, match="at least one"):
        Team(0)
    if hasattr(os, "sched_getaffinity"):
        with pytest.raises(ValueError, match="got \\[99999\\]"):
            Team(2, cpus=[99999])
    cells = np.zeros(16, np.int64)
    table = counting_table(code, cells)
    team.run(table)
    team.close()
    team.close()
    with pytest.raises(EngineError, match="closed"):
        team.run(table)


def test_a_forgotten_team_takes_its_threads_along(code: NativeCode) -> None:
    before = threading.active_count()
    team = Team(4)
    cells = np.zeros(16, np.int64)
    team.run(counting_table(code, cells))
    assert threading.active_count() == before + 3
    del team
    assert threading.active_count() == before


def test_too_many_threads_is_an_error_of_ours(code: NativeCode, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    start = threading.Thread.start

    def scarce(thread: threading.Thread) -> None:
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    team = Team(5)
    cells = np.zeros(16, np.int64)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", scarce)
        with pytest.raises(EngineError, match="expected 5 threads"):
            team.run(counting_table(code, cells))
    assert not any(thread.is_alive() for thread in started)
    team.run(counting_table(code, cells))
    assert cells[:5].tolist() == [1] * 5
    team.close()


def test_eight_threads_on_one_cpu_come_to_an_end() -> None:
    script = """
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
team = Team(8)
start = time.monotonic()
for _ in range(20):
    team.run(np.repeat(counting, 10, axis=0))
assert cells[:8].tolist() == [2000] * 8, cells
assert time.monotonic() - start < 5, time.monotonic() - start
print("ended")
"""
    done = python(script)
    assert (done.returncode, done.stdout) == (0, "ended\n"), done.stderr


@pytest.mark.slow
def test_a_team_that_loses_its_cpus_comes_to_an_end() -> None:
    if not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two CPUs to lose one")
    script = """
team = Team(2)
team.run(counting)
cpu = min(os.sched_getaffinity(0))
for thread in threading.enumerate():
    os.sched_setaffinity(thread.native_id, {cpu})
start = time.monotonic()
for _ in range(100):
    team.run(counting)
assert cells[:2].tolist() == [1010] * 2, cells
assert time.monotonic() - start < 5, time.monotonic() - start
print("ended")
"""
    done = python(script)
    assert (done.returncode, done.stdout) == (0, "ended\n"), done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_gets_threads_of_its_own() -> None:
    script = """
team = shared_team(3)
team.run(counting)
stop = threading.Event()
def busy():
    while not stop.is_set():
        team.run(slowly)
thread = threading.Thread(target=busy)
thread.start()
for i in range(5):
    time.sleep(0.007 * i)  # the fork falls into a run on the other thread
    child = os.fork()
    if child == 0:
        try:
            cells[:] = 0
            for _ in range(3):
                team.run(counting)
            assert shared_team(3) is team
            assert cells[:3].tolist() == [30] * 3
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(1)
        if i == 4:
            sys.exit(0)  # the long way out, past the exit handlers
        os._exit(0)
    end = time.monotonic() + 5
    while (state := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < end:
        time.sleep(0.005)
    if state == (0, 0):
        os.kill(child, signal.SIGKILL)
    assert state == (child, 0), (i, state)
stop.set()
thread.join()
team.run(counting)
print("ended")
"""
    done = python(script)
    assert (done.returncode, done.stdout) == (0, "ended\n"), done.stdout + done.stderr


@pytest.mark.parametrize(
    "script",
    [
        "team = shared_team(3); team.run(counting)",
        pytest.param(
            "team = Team(3); team.run(counting); team.self = team; sys.modules['x'] = team", marks=pytest.mark.slow
        ),
        "team = Team(3)\nrun = team.bind(slowly)\n"
        "threading.Thread(target=lambda: [run() for _ in range(10**6)], daemon=True).start()\ntime.sleep(0.1)",
        pytest.param(
            "team = Team(3, sleeping='condition'); team.run(counting); raise SystemExit(0)", marks=pytest.mark.slow
        ),
    ],
    ids=["shared", "cycle", "running", "condition"],
)
def test_the_interpreter_exits_beside_a_living_team(script: str) -> None:
    start = time.monotonic()
    done = python(script)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - start < 8


def test_a_team_that_runs_without_pause_closes_after_the_run_in_progress() -> None:
    done = python("""
def again():
    with contextlib.suppress(EngineError):
        while True: run()
for _ in range(8):
    team = Team(2)
    run = team.bind(slowly)
    threading.Thread(target=again).start()
    time.sleep(0.1)
    begun = time.monotonic()
    team.close()
    print(time.monotonic() - begun)
""")
    assert max(map(float, done.stdout.split())) < 1.0, done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT for one process")
def test_ctrl_c_arrives_after_the_run_and_the_team_lives_on() -> None:
    script = """
team = Team(3)
table = np.repeat(slowly, 5, axis=0)
try:
    team.run(counting)
    print("ready", flush=True)
    while True:
        team.run(table)
except KeyboardInterrupt:
    cells[:] = 0
    team.run(counting)
    assert cells[:3].tolist() == [10] * 3
    print("interrupted", flush=True)
"""
    command = [sys.executable, "-c", SCRIPT + script]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == "ready\n"
        time.sleep(0.1)
        child.send_signal(signal.SIGINT)
        start = time.monotonic()
        assert child.communicate(timeout=10)[0] == "interrupted\n"
        assert child.returncode == 0
        assert time.monotonic() - start < 3
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def test_a_team_of_the_whole_machine_has_a_core_for_each_thread(tmp_path: Path) -> None:
    for cpu, core in {0: "0,4", 1: "1", 4: "0,4", 5: "5-6", 6: "5-6"}.items():
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(core + "\n")
    assert one_cpu_of_each_core([0, 1, 4, 5, 6], tmp_path) == [0, 1, 5]
    assert one_cpu_of_each_core([2, 3], tmp_path) == [2, 3]
    assert places(10_000) == ()


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity on this system")
def test_the_callers_own_affinity_is_as_before(code: NativeCode) -> None:
    before = os.sched_getaffinity(0)
    cells = np.zeros(64, np.int64)
    team = Team(len(before), places(len(before)))
    team.run(counting_table(code, cells))
    assert os.sched_getaffinity(0) == before
    team.close()
