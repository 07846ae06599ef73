"""Threads that live in native code and walk a step table together: one wake-up per inference.

A team of N is the caller (thread 0) and N - 1 Python threads, each inside one ctypes call that has released the
interpreter lock for good. They start at the first run, spin briefly between runs and then sleep in the kernel.
"""

import contextlib
import ctypes
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from perwatt import settings
from perwatt.cpu import team_code
from perwatt.cpu.claims import LINE_BYTES
from perwatt.cpu.compiler import host_target, machine_here
from perwatt.cpu.jit import NativeCode, compile_module
from perwatt.errors import EngineError

BARRIER = 1  # bit of a step's flags: all threads meet after this step
WORDS_PER_STEP = 4
# An idle worker spins alone for the common short wait only: who calls next may have been put on this very CPU, and a
# yield costs half a microsecond when nobody wants it. At a barrier a yield can cost a neighbour's whole time slice.
SPIN_NS = 5_000
BARRIER_SPIN_NS = 100_000
BARRIER_YIELD_NS = 500_000
_STOP_WAIT_S = 10.0

Table = NDArray[np.int64]


@cache
def _code(sleeping: str) -> NativeCode:
    architecture = host_target().triple.split("-")[0]
    source = team_code.source(architecture, sleeping or team_code.default_sleeping(architecture))
    return compile_module(source, name="team")


def usable_cpus() -> int:
    """Return how many threads can run at once here: the calling thread's affinity, cut to the cgroup's quota."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = machine_here().cpu_quota
    return cpus if quota is None else max(1, min(cpus, int(quota)))


class _Crew:
    """The part of a team that its worker threads use; it knows nothing of the Team, so that one can be collected."""

    def __init__(self, threads: int, cpus: tuple[int, ...], spin_ns: int, sleeping: str) -> None:
        self.size = threads
        self.cpus = cpus
        self.spin_ns = spin_ns
        self.code = _code(sleeping)
        self.memory = np.zeros(team_code.control_bytes(threads) + LINE_BYTES, np.uint8)
        self.control = -(-self.memory.ctypes.data // LINE_BYTES) * LINE_BYTES
        pointer, integer = ctypes.c_void_p, ctypes.c_int64
        self.native_run = ctypes.CFUNCTYPE(None, pointer, pointer, integer, pointer)(self.code.address("run"))
        self.native_serve = ctypes.CFUNCTYPE(None, pointer, integer)(self.code.address("serve"))
        self.native_stop = ctypes.CFUNCTYPE(None, pointer)(self.code.address("stop"))
        self.native_prepare = ctypes.CFUNCTYPE(None, pointer)(self.code.address("prepare"))
        self.forget()

    def forget(self) -> None:
        """Become a crew without threads: at first, and in the child of a fork, where the threads do not exist."""
        self.lock = threading.Lock()
        self.threads: list[threading.Thread] = []
        self.started = False
        self.closed = False

    def start(self) -> None:
        """Start the workers; raises EngineError when the system gives no more threads."""
        self.memory[:] = 0
        start = self.control - self.memory.ctypes.data + team_code.SETTINGS
        line = self.memory[start : start + LINE_BYTES]
        line[0:4].view(np.int32)[0] = self.size
        # More threads than CPUs: who waits must make room at once for who works.
        crowded = self.size > usable_cpus()
        spin = min(self.spin_ns, SPIN_NS)
        awake = int(settings.barrier_us() * 1000)
        barrier = min(BARRIER_SPIN_NS, awake)
        limits = (0, 0, 0) if crowded else (spin, self.spin_ns - spin, barrier)
        line[8:40].view(np.int64)[:] = (*limits, min(BARRIER_YIELD_NS, awake - barrier))
        self.native_prepare(self.control)
        try:
            for thread in range(1, self.size):
                worker = threading.Thread(target=self.work, args=(thread,), name=f"perwatt-{thread}", daemon=True)
                self.threads.append(worker)
                worker.start()
            self.started = True
        except RuntimeError as error:
            raise EngineError(
                f"expected {self.size} threads, the system gave fewer ({error}); ask for fewer"
            ) from error
        finally:
            if not self.started:  # no more threads, or Ctrl-C
                self.dismiss()

    def work(self, thread: int) -> None:
        """A worker's life, on its own thread."""
        if self.cpus and hasattr(os, "sched_setaffinity"):
            with contextlib.suppress(OSError):  # a CPU that went since; a worker that never served would hang the team
                os.sched_setaffinity(0, {self.cpus[thread % len(self.cpus)]})
        self.native_serve(self.control, thread)

    def dismiss(self) -> None:
        """Let the workers leave native code and wait for them."""
        self.native_stop(self.control)
        for worker in self.threads:
            if worker.ident is not None:
                worker.join(_STOP_WAIT_S)
        self.threads = []
        self.started = False

    def close(self) -> None:
        """Stop for good, after the run in progress; called at interpreter exit, before code is unloaded."""
        self.closed = True  # before waiting: who runs again and again might take the lock first, again and again
        lock = self.lock
        held = lock.acquire(timeout=_STOP_WAIT_S)
        try:
            if self.started:
                self.dismiss()
        finally:
            if held:
                lock.release()


_crews: "weakref.WeakSet[_Crew]" = weakref.WeakSet()
_shared: "dict[int, Team]" = {}
_shared_lock = threading.Lock()


def _after_fork() -> None:
    global _shared_lock
    _shared_lock = threading.Lock()
    for crew in list(_crews):
        closed = crew.closed
        crew.forget()
        crew.closed = closed


@cache
def _watch_forks() -> None:
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_after_fork)


class Team:
    """Threads that run step tables; one run at a time, a second caller waits.

    threads counts the caller too. cpus pins worker i to cpus[i % len(cpus)], and the caller to cpus[0] while a
    run lasts; None leaves placing to the system. spin_us: how long an idle worker stays awake before it sleeps,
    None: PERWATT_SPIN_US. sleeping: "futex" or "condition", empty: what the system has.
    Raises ValueError for fewer than one thread or a CPU that is not this process's, and, at the first run, EngineError
    when threads cannot be had.
    """

    def __init__(
        self, threads: int, cpus: Sequence[int] | None = None, *, spin_us: float | None = None, sleeping: str = ""
    ) -> None:
        if threads < 1:
            raise ValueError(f"a team has at least one thread, got {threads}")
        if cpus and hasattr(os, "sched_getaffinity") and not set(cpus) <= os.sched_getaffinity(0):
            raise ValueError(f"expected CPUs of {sorted(os.sched_getaffinity(0))}, got {list(cpus)}")
        _watch_forks()
        spin = settings.spin_us() if spin_us is None else spin_us
        self._crew = _Crew(threads, tuple(cpus or ()), int(spin * 1000), sleeping)
        _crews.add(self._crew)
        self.threads = threads
        self._closing = weakref.finalize(self, self._crew.close)  # runs at interpreter exit too

    def run(self, table: Table) -> None:
        """Run a step table on all threads and return when every one has finished.

        table: int64 [steps, 4], a row = function address, arguments address, flags, 0. Every thread calls
        function(arguments, thread, threads, claims) for each row in order; flags & BARRIER: all wait for all after
        the row. claims are counters at zero for who shares tasks by claiming them (claims.py), null in a team of one;
        the rows of those who do need the barrier.
        Denormals count as zero inside; the caller's floating-point mode is as before on return.
        Raises ValueError on a table of another shape or type, EngineError after close().
        """
        address, steps = _checked(table)
        self._run(address, steps, 0)

    def bind(self, table: Table) -> Callable[[], None]:
        """Return a function that runs this table without checking it again; it keeps the table alive."""
        address, steps = _checked(table)
        return partial(self._run, address, steps, 0, table)

    def time_steps(self, table: Table, repeats: int) -> NDArray[np.float64]:
        """Return the duration in ns of every step of every repeat, float64 [repeats, steps], as thread 0 saw it.

        A step with a barrier lasts until all have met, the last step until all have finished; a step without one counts
        thread 0's own work only. One run more, before the others, is not counted: it wakes the workers.
        """
        address, steps = _checked(table)
        self._run(address, steps, 0)
        times = np.zeros((repeats, steps + 1), np.int64)
        for row in times:
            self._run(address, steps, row.ctypes.data)
        return np.diff(times, axis=1).astype(np.float64)

    def close(self) -> None:
        """Stop the workers, after the run in progress; a closed team refuses to run."""
        self._closing()

    def _run(self, address: int, steps: int, times: int, table: Table | None = None) -> None:
        crew = self._crew
        with crew.lock:
            if crew.closed:
                raise EngineError("expected a running team, this one is closed; make another")
            if not crew.started:
                crew.start()
            allowed = os.sched_getaffinity(0) if crew.cpus and hasattr(os, "sched_getaffinity") else set()
            if crew.cpus and (len(allowed) == 1 or crew.cpus[0] not in allowed):
                allowed = set()  # the caller's own pinning stands
            if not allowed:
                crew.native_run(crew.control, address, steps, times)
                return
            # The caller keeps to its own CPU for the length of the run, so that no two of the team meet on one.
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, {crew.cpus[0]})
            try:
                crew.native_run(crew.control, address, steps, times)
            finally:
                with contextlib.suppress(OSError):
                    os.sched_setaffinity(0, allowed)


def _checked(table: Table) -> tuple[int, int]:
    if table.dtype != np.int64 or table.ndim != 2 or table.shape[1] != WORDS_PER_STEP or not table.flags.c_contiguous:
        raise ValueError(f"a step table is contiguous int64 [steps, {WORDS_PER_STEP}], got {table.dtype} {table.shape}")
    if not table[:, 0].all():
        raise ValueError(f"step {int(np.argmin(table[:, 0] != 0))} has no function")
    return table.ctypes.data, len(table)


def places(threads: int) -> tuple[int, ...]:
    """Return a CPU for each thread of a team that takes the whole machine, one on a core; empty: let the system place.

    On a busy machine the system puts threads that spin on one CPU as readily as on two. A team that leaves cores free
    is not pinned, or several of them would crowd the same ones.
    """
    if not hasattr(os, "sched_getaffinity"):
        return ()
    cores = one_cpu_of_each_core(sorted(os.sched_getaffinity(0)))
    return tuple(cores) if threads == len(cores) > 1 and machine_here().cpu_quota is None else ()


def one_cpu_of_each_core(cpus: Sequence[int], root: Path = Path("/sys/devices/system/cpu")) -> list[int]:
    """Return the first of each group of logical CPUs that share a core; all of them where the system does not tell."""
    first: dict[str, int] = {}
    for cpu in cpus:
        try:
            core = (root / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text().strip()
        except OSError:
            core = str(cpu)
        first.setdefault(core, cpu)
    return list(first.values())


def shared_team(threads: int) -> Team:
    """Return the team of this many threads that all Models of the process share."""
    with _shared_lock:
        team = _shared.get(threads)
        if team is None:
            team = _shared[threads] = Team(threads, places(threads))
        return team
