"""The driver with real model processes: answers, errors, crashes, hangs, restarts, drains. Nothing is ever lost."""

import asyncio
import contextlib
import gc
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from served_models import BAD, DEADLY, HANGING, SHAPE

from perwatt.errors import EngineCrashed, InputError, InvalidPackage, PerwattError, Refused
from perwatt.serve.batcher import Limits
from perwatt.serve.dispatch import BatchReport, Dispatch
from perwatt.serve.fairness import Cores
from perwatt.serve.process import ModelProcess, Source, batch_sizes, null_source
from perwatt.serve.service import Answer

HERE = Path(__file__).parent
Images = np.ndarray


def source(function: str = "create", **arguments: Any) -> Source:
    return Source(f"served_models:{function}", {"sizes": [1, 2, 4], **arguments}, HERE)


def images(count: int, first: float = 1.0) -> Images:
    """Return images of different values, the first image beginning with `first`."""
    made = np.arange(count * 12, dtype=np.float32).reshape(count, *SHAPE) / 7 + first
    made[:, 0, 0] = first + np.arange(count)
    return made


def check(answer: Answer, asked: Images) -> None:
    assert np.array_equal(answer.outputs[0], asked * 2)
    assert answer.outputs[1] == pytest.approx(asked.sum(axis=(1, 2)), rel=1e-5)


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a test on an event loop, within a time that a paused machine needs."""
    asyncio.run(asyncio.wait_for(test(), 600))


def open_files() -> list[str]:
    """Return what every descriptor of this process points at."""
    names = []
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the folder's own
            names.append(re.sub(r"\d+", "N", os.readlink(f"/proc/self/fd/{entry}")))
    return sorted(names)


def test_everybody_gets_the_answer_to_their_own_images() -> None:
    async def scene() -> None:
        told: list[str] = []
        reports: list[BatchReport] = []
        service = await Dispatch.open(source(), name="twice", progress=told.append, observer=reports.append)
        noise = random.Random(1)
        served = 0

        async def client(number: int) -> None:
            nonlocal served
            for turn in range(12):
                mine = images(noise.choice([1, 1, 1, 1, 2, 3, 9]), first=100.0 * number + turn + 1)
                work = asyncio.ensure_future(service.infer(mine, priority=noise.randrange(2)))
                if noise.random() < 0.15:  # the caller hangs up, sooner or later
                    await asyncio.sleep(noise.choice([0.0, 0.0001, 0.001]))
                    work.cancel()
                    await asyncio.wait([work])
                    if work.cancelled():
                        continue
                check(await work, mine)
                served += len(mine)

        await asyncio.gather(*[client(number) for number in range(24)])
        assert service.queued_images == 0
        assert service.in_flight_images == 0
        assert sum(report.images for report in reports) >= served
        assert all(report.images <= report.size for report in reports)
        assert any(report.images > 1 for report in reports), "what came together ran together"
        assert service.notes == ("made for tests",)
        assert "warming up" in told
        assert service.latency.prediction_error.batches == len(reports)
        await service.close()

    run(scene)


def test_one_bad_request_fails_alone() -> None:
    async def scene() -> None:
        service = await Dispatch.open(source(batch_s=0.01))
        first = asyncio.ensure_future(service.infer(images(1)))
        await asyncio.sleep(0)  # it runs alone; the others gather
        asked = [images(1, first=BAD if number == 5 else float(number + 1)) for number in range(11)]
        asked.append(images(3, first=BAD - 1e9))
        asked[-1][1, 0, 0] = BAD
        answers = await asyncio.gather(*map(service.infer, asked), return_exceptions=True)
        for number, (answer, mine) in enumerate(zip(answers, asked, strict=True)):
            if number in (5, 11):
                assert isinstance(answer, Refused)
                assert (answer.reason, answer.status) == ("failed", 500)
                assert "nobody can bear" in str(answer)
            else:
                assert isinstance(answer, Answer), f"request {number} failed by its neighbour's fault: {answer}"
                check(answer, mine)
        check(await first, images(1))
        await service.close()

    run(scene)


@pytest.mark.slow
def test_a_crash_costs_the_requests_in_flight_and_nobody_else() -> None:
    async def scene() -> None:
        service = await Dispatch.open(source(batch_s=0.02))
        before = service._process.pid
        running = asyncio.ensure_future(service.infer(images(1)))
        await asyncio.sleep(0.005)
        deadly = asyncio.ensure_future(service.infer(images(1, first=DEADLY), priority=0))
        waiting = [asyncio.ensure_future(service.infer(images(1, first=n + 5.0), priority=9)) for n in range(12)]
        check(await running, images(1))
        with pytest.raises(Refused, match="died of SIGSEGV") as refusal:
            await deadly
        assert (refusal.value.reason, refusal.value.status) == ("crashed", 503)
        assert not service.ready
        with pytest.raises(Refused) as refusal:
            await service.infer(images(1))
        assert (refusal.value.reason, refusal.value.status) == ("restarting", 503)
        answers = await asyncio.gather(*waiting, return_exceptions=True)
        crashed = [answer for answer in answers if isinstance(answer, Refused)]
        assert len(crashed) <= 3, "no more than were in its batch"
        for number, answer in enumerate(answers):
            if isinstance(answer, Answer):
                check(answer, images(1, first=number + 5.0))
        assert service.ready
        assert service.restarts == 1
        assert service._process.pid != before
        check(await service.infer(images(2)), images(2))
        await service.close()

    run(scene)


def test_a_process_that_is_killed_while_idle_is_started_again() -> None:
    async def scene() -> None:
        service = await Dispatch.open(source())
        for kills in range(1, 3):
            os.kill(service._process.pid, signal.SIGKILL)
            while service.restarts < kills:
                await asyncio.sleep(0.01)
            check(await service.infer(images(1)), images(1))
        await service.close()

    run(scene)


@pytest.mark.slow
def test_a_process_that_hangs_is_killed_and_started_again() -> None:
    async def scene() -> None:
        service = await Dispatch.open(source(), stall_s=0.5)
        with pytest.raises(Refused, match="SIGKILL") as refusal:
            await service.infer(images(1, first=HANGING))
        assert refusal.value.reason == "crashed"
        while not service.ready:
            await asyncio.sleep(0.01)
        check(await service.infer(images(1)), images(1))
        await service.close()

    run(scene)


@pytest.mark.slow
def test_a_package_that_cannot_be_loaded_again_answers_everybody_and_comes_back_when_it_can(tmp_path: Path) -> None:
    flag = tmp_path / "here"
    flag.touch()

    async def scene() -> None:
        service = await Dispatch.open(source("only_while", flag=str(flag), batch_s=0.02))
        flag.unlink()
        work = [asyncio.ensure_future(service.infer(images(1, first=DEADLY)))]
        await asyncio.sleep(0.001)
        work += [asyncio.ensure_future(service.infer(images(1))) for _ in range(9)]
        answers = await asyncio.gather(*work, return_exceptions=True)
        assert all(isinstance(answer, Refused) and answer.status == 503 for answer in answers)
        assert any("the package has gone" in str(answer) for answer in answers)
        flag.touch()
        while not service.ready:
            await asyncio.sleep(0.01)
        check(await service.infer(images(1)), images(1))
        await service.close()

    run(scene)


@pytest.mark.parametrize(
    ("function", "kind", "words"),
    [
        ("refuse", InvalidPackage, "expected a package, got a test"),
        ("die", EngineCrashed, "exit code 7 before it was ready"),
        ("nothing", EngineCrashed, "AttributeError"),
    ],
)
def test_what_goes_wrong_at_the_start_is_told(function: str, kind: type[PerwattError], words: str) -> None:
    async def scene() -> None:
        gc.collect()  # what earlier tests left
        descriptors = open_files()
        with pytest.raises(kind, match=words):
            await ModelProcess.start(source(function))
        assert open_files() == descriptors

    run(scene)


def test_closing_finishes_what_waits_and_refuses_what_comes() -> None:
    async def scene() -> None:
        gc.collect()  # what earlier tests left
        descriptors = open_files()
        service = await Dispatch.open(source(batch_s=0.02))
        pid = service._process.pid
        work = [asyncio.ensure_future(service.infer(images(1, first=n + 1.0))) for n in range(12)]
        await asyncio.sleep(0.001)
        closing = asyncio.ensure_future(service.close(30.0))
        await asyncio.sleep(0)
        assert not service.ready
        with pytest.raises(Refused) as refusal:
            await service.infer(images(1))
        assert (refusal.value.reason, refusal.value.status) == ("draining", 503)
        for number, answer in enumerate(await asyncio.gather(*work)):
            check(answer, images(1, first=number + 1.0))
        await closing
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        assert open_files() == descriptors

    run(scene)


@pytest.mark.slow
def test_closing_refuses_what_is_not_finished_in_time() -> None:
    async def scene() -> None:
        service = await Dispatch.open(source(batch_s=0.1))
        work = [asyncio.ensure_future(service.infer(images(1))) for _ in range(40)]
        await asyncio.sleep(0.001)
        await service.close(0.15)
        answers = await asyncio.gather(*work, return_exceptions=True)
        refused = [answer for answer in answers if isinstance(answer, Refused)]
        assert {(refusal.reason, refusal.status) for refusal in refused} == {("draining", 503)}
        assert len(refused) + sum(isinstance(answer, Answer) for answer in answers) == 40

    run(scene)


@pytest.mark.alone
def test_an_idle_process_takes_no_processor_time_and_leaves_signals_to_the_server() -> None:
    async def scene() -> None:
        service = await Dispatch.open(null_source((3, 8, 8)))
        await service.infer(np.ones((1, 3, 8, 8), np.float32))
        pid = service._process.pid
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGINT)
        clock = (~pid << 3) | 2  # the processor clock of another process, in ns
        await asyncio.sleep(0.1)
        before = time.clock_gettime(clock)
        await asyncio.sleep(0.5)
        assert time.clock_gettime(clock) - before < 0.002
        assert (await service.infer(np.full((1, 3, 8, 8), 5, np.float32))).outputs[0].tolist() == [[5.0] * 8]
        await service.close()

    run(scene)


@pytest.mark.slow
@pytest.mark.alone
def test_packages_side_by_side_share_time_and_never_run_at_once(tmp_path: Path) -> None:
    async def scene() -> None:
        cores = Cores()
        logs = [tmp_path / "short", tmp_path / "long"]
        services = [
            await Dispatch.open(source(batch_s=seconds, log=str(log), sizes=[1]), name=log.name, cores=cores)
            for seconds, log in zip((0.004, 0.02), logs, strict=True)
        ]
        for log in logs:
            log.write_text("")  # without the warm-up
        used = [service.engine_s for service in services]
        end = time.monotonic() + 1.5

        async def client(service: Dispatch) -> None:
            while time.monotonic() < end:
                await service.infer(images(1))

        await asyncio.gather(*[client(service) for service in services for _ in range(4)])
        shares = [service.engine_s - before for service, before in zip(services, used, strict=True)]
        assert shares[0] == pytest.approx(shares[1], rel=0.25)
        spans = sorted(tuple(map(float, line.split())) for log in logs for line in log.read_text().splitlines())
        assert len(spans) > 50
        for (_, before_end), (begin, _) in pairwise(spans):
            assert begin >= before_end - 1e-4, "two batches of different packages ran at once"
        for service in services:
            await service.close()

    run(scene)


def test_deadlines_come_first_and_what_cannot_be_kept_is_refused() -> None:
    async def scene() -> None:
        service = await Dispatch.open(source(batch_s=0.02, sizes=[1]))
        order: list[str] = []

        async def ask(name: str, deadline_s: float | None) -> None:
            at = None if deadline_s is None else time.monotonic() + deadline_s
            await service.infer(images(1), deadline=at)
            order.append(name)

        first = asyncio.ensure_future(ask("first", None))
        await asyncio.sleep(0.001)
        await asyncio.gather(first, ask("whenever", None), ask("late", 9.0), ask("soon", 5.0))
        assert order == ["first", "soon", "late", "whenever"]
        with pytest.raises(Refused) as refusal:
            await service.infer(images(1), deadline=time.monotonic() + 0.005)
        assert (refusal.value.reason, refusal.value.status, refusal.value.retry_after_s) == ("deadline", 429, None)
        await service.close()

    run(scene)


@pytest.mark.slow
def test_who_waits_is_told_when_the_deadline_has_passed_while_the_engine_is_busy() -> None:
    async def scene() -> None:
        service = await Dispatch.open(source(batch_s=0.01, sizes=[1]), stall_s=600)
        hanging = asyncio.ensure_future(service.infer(images(1, first=HANGING)))
        await asyncio.sleep(0.001)
        begun = time.monotonic()
        with pytest.raises(Refused) as refusal:
            await service.infer(images(1), deadline=begun + 0.3)
        assert (refusal.value.reason, refusal.value.status) == ("expired", 504)
        assert time.monotonic() - begun >= 0.28
        service._process.kill()
        with pytest.raises(Refused):
            await hanging
        await service.close()

    run(scene)


@pytest.mark.slow
def test_a_full_queue_refuses_with_429() -> None:
    async def scene() -> None:
        service = await Dispatch.open(source(batch_s=0.05), limits=Limits(queue_images=4))
        work = [asyncio.ensure_future(service.infer(images(1))) for _ in range(12)]
        answers = await asyncio.gather(*work, return_exceptions=True)
        refused = [answer for answer in answers if isinstance(answer, Refused)]
        assert len(refused) >= 4
        assert {(refusal.reason, refusal.status) for refusal in refused} == {("queue_full", 429)}
        await service.close()

    run(scene)


@pytest.mark.slow
def test_energy_is_measured_for_each_size_and_needs_a_meter() -> None:
    async def scene() -> None:
        with pytest.raises(InputError, match="expected a meter"):
            await Dispatch.open(source(), limits=Limits(objective="energy"))
        begun = time.monotonic()
        service = await Dispatch.open(
            source(batch_s=0.05, sizes=[1, 4]),
            limits=Limits(objective="energy"),
            joules=lambda: 50.0 * (time.monotonic() - begun),  # a machine that takes 50 W all the time
        )
        rows = service.latency.rows()
        for row in rows:
            assert row.joules is not None
            assert 50.0 * 0.05 <= row.joules <= 2 * 50.0 * 0.05, "0.05 s at 50 W, on a machine that others use too"
        assert service.latency.first_batch(4, "energy") == 4
        check(await service.infer(images(2)), images(2))
        await service.close()

    run(scene)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((1, 3, 5), np.float32),
        np.zeros((1, *SHAPE), np.float64),
        np.zeros((0, *SHAPE), np.float32),
        np.zeros(SHAPE, np.float32),
    ],
    ids=["shape", "type", "none", "no batch"],
)
def test_arrays_of_another_kind_are_refused(wrong: Images) -> None:
    async def scene() -> None:
        service = await Dispatch.open(source())
        with pytest.raises(InputError, match="pixels"):
            await service.infer(wrong)
        await service.close()

    run(scene)


PARENT = """
import asyncio, sys
from pathlib import Path
from perwatt.serve.process import ModelProcess, Source
async def scene():
    process = await ModelProcess.start(Source("served_models:create", {"sizes": [1]}, Path(sys.argv[1])))
    print(process.pid, flush=True)
    await asyncio.sleep(3600)
asyncio.run(scene())
"""


def test_a_model_process_does_not_outlive_a_server_that_was_killed() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(HERE)], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
        parent.wait()
    for _ in range(500):
        if not Path(f"/proc/{child}").exists() or "State:\tZ" in Path(f"/proc/{child}/status").read_text():
            return
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    pytest.fail("the model process lives on")


def test_sizes_are_powers_of_two_and_the_largest_itself() -> None:
    assert batch_sizes(1) == (1,)
    assert batch_sizes(8) == (1, 2, 4, 8)
    assert batch_sizes(12) == (1, 2, 4, 8, 12)
    with pytest.raises(InputError, match="largest batch"):
        batch_sizes(0)
