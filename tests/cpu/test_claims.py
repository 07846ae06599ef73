"""Sharing tasks by claims: every task once, whoever is slow; and one's own tasks first."""

import numpy as np
import pytest

from perwatt.cpu.claims import MOST_OTHERS
from perwatt.cpu.ir import Module
from perwatt.cpu.jit import NativeCode, compile_module
from perwatt.cpu.team import BARRIER, Team


@pytest.fixture(scope="module")
def note() -> NativeCode:
    """The kernel note(counts, doers, tasks, slow thread, waste, rounds): marks each task once, and who did it."""
    module = Module("note", 4)
    with module.kernel("note") as k:
        counts, doers, tasks = k.pointer(0), k.pointer(1), k.argument(2)
        slow, waste = k.thread.equals(k.argument(3)), k.pointer(4)
        rounds = k.choose_index(slow, k.argument(5), 0)
        first, last = k.share(tasks)
        with k.loop(first, last) as over:
            here = over.index * 4
            with k.loop(0, rounds):
                k.store(k.load(waste, k.thread * 64) + 1.0, waste, k.thread * 64)
            k.store(k.load(counts, here) + 1.0, counts, here)
            with k.loop(0, k.thread):
                k.store(k.load(doers, here) + 1.0, doers, here)
    return compile_module(str(module), name="note")


def run(note: NativeCode, threads: int, tasks: int, slow: int = -1, rounds: int = 0, rows: int = 5) -> np.ndarray:
    """Return who did each task in each row of a table, [rows, tasks]; every one must have been done once."""
    counts, doers = (np.zeros((rows, max(tasks, 1), 4), np.float32) for _ in range(2))
    waste = np.zeros((threads + 1, 64), np.float32)
    words = [
        np.array([c.ctypes.data, d.ctypes.data, tasks, slow, waste.ctypes.data, rounds], np.int64)
        for c, d in zip(counts, doers, strict=True)
    ]
    table = np.array([[note.address("note"), w.ctypes.data, BARRIER, 0] for w in words], np.int64)
    team = Team(threads)
    try:
        for _ in range(3):
            counts[:], doers[:] = 0, 0
            team.run(table)
            assert (counts[:, :tasks] == 1).all()
    finally:
        team.close()
    return doers[:, :tasks, 0].astype(int)


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize("tasks", [0, 1, 2, 5, 31, 32, 33, 1000])
def test_every_task_is_done_once(note: NativeCode, threads: int, tasks: int) -> None:
    doers = run(note, threads, tasks)
    assert ((doers >= 0) & (doers < threads)).all()


@pytest.mark.alone
@pytest.mark.parametrize("slow", [0, 1])
def test_others_do_what_a_slow_thread_does_not_come_to(note: NativeCode, slow: int) -> None:
    tasks = 64
    doers = run(note, 2, tasks, slow=slow, rounds=10_000_000, rows=5)  # some 15 ms a task: longer than a time slice
    own = slice(slow * tasks // 2, (slow + 1) * tasks // 2)
    kept = (doers[:, own] == slow).sum(axis=1)
    # It had claimed a piece, and may claim another while the other thread is on its way; now and then the other thread
    # is the one that the system holds up.
    assert np.median(kept) <= tasks // 2 // 4, kept
    others = (doers[:, slice((1 - slow) * tasks // 2, (2 - slow) * tasks // 2)] == 1 - slow).sum(axis=1)
    assert np.median(others) == tasks // 2, others


def test_a_large_team_helps_its_next_neighbours_only(note: NativeCode) -> None:
    threads, tasks = MOST_OTHERS + 3, 64 * (MOST_OTHERS + 3)
    doers = run(note, threads, tasks, rows=2)
    owners = np.arange(tasks) * threads // tasks
    assert (((owners[None] - doers) % threads) <= MOST_OTHERS).all()
