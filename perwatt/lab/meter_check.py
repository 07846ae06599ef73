"""Reads every meter idle and under load and judges it: does it move, does it wrap, is its period what it claims?"""

import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from perwatt.errors import MeterError
from perwatt.lab.meters import Choice, open_meters
from perwatt.lab.meters.meter import Energy, Found, Host, Meter, OpenMeter
from perwatt.lab.meters.running import NoMeter, Together

PERIOD_FACTOR = 1.5  # of its claim, up to which a meter's period is what it claims
CHANGES = 12  # of a number, from which its period is known
MOST_READS = 2000
RISE = 1.05  # of idle, from which a meter saw the load
_BURN = "while True: pass"
_BURN_GPU = (
    "import torch\na = torch.randn(4096, 4096, device='cuda')\nwhile True:\n    b = a @ a\n    torch.cuda.synchronize()"
)


@dataclass(frozen=True)
class Judgement:
    """What a meter showed: mean power idle and under load with 95 % half widths, its period, and what is wrong.

    `wraps_every_s` is at the power under load. `faults` is empty for a meter that this test finds nothing
    against.
    """

    name: str
    idle_w: float | None
    idle_half_w: float | None
    load_w: float | None
    load_half_w: float | None
    moves: bool
    claimed_period_s: float
    period_s: float | None
    wraps_every_s: float | None
    faults: tuple[str, ...]
    notes: tuple[str, ...]


def judge(
    found: Sequence[Found],
    seconds: float,
    host: Host,
    load: Callable[[bool], None],
    let_pass: Callable[[OpenMeter, float], None],
) -> tuple[Judgement, ...]:
    """Return a judgement of every open meter, after half the seconds idle and half under load.

    `load(True)` makes the machine work, `load(False)` lets it rest; `let_pass(meter, seconds)` lets time pass.
    """
    periods = {each.meter.name: _period_s(each, host) for each in found if each.open is not None}
    opened: list[tuple[Found, OpenMeter | None, str]] = []
    for each in found:
        if each.open is None:
            continue
        try:
            opened.append((each, open_meters(found, Choice((each.meter.name,), "test"), host), ""))
        except MeterError as error:
            opened.append((each, None, str(error)))
    running = [meter for _, meter, _ in opened if meter is not None]
    try:
        marks: list[list[int]] = [[] for _ in running]
        for working in (False, True):
            load(working)
            _pass(running, min(0.5, seconds / 8), let_pass)
            for mark, meter in zip(marks, running, strict=True):
                mark.append(meter.mark())
            _pass(running, seconds / 2 - min(0.5, seconds / 8), let_pass)
            for mark, meter in zip(marks, running, strict=True):
                mark.append(meter.mark())
    finally:
        load(False)
    _pass(running, max((meter.meter.settle_s for meter in running), default=0.0), let_pass)
    by_name = {meter.meter.name: mark for mark, meter in zip(marks, running, strict=True)}
    judged = []
    for each, opened_meter, fault in opened:
        name = each.meter.name
        answers = [_ask(opened_meter, *by_name[name][at : at + 2]) for at in (0, 2)] if opened_meter else [fault, fault]
        judged.append(_judgement(each.meter, answers[0], answers[1], periods[name]))
    for meter in running:
        meter.close()
    return tuple(judged)


def _pass(running: Sequence[OpenMeter], seconds: float, let_pass: Callable[[OpenMeter, float], None]) -> None:
    whole = Together(running) if len(running) > 1 else running[0] if running else NoMeter("", lambda: 0)
    let_pass(whole, seconds)


def _ask(meter: OpenMeter, start_ns: int, end_ns: int) -> Energy | str:
    try:
        return meter.energy(start_ns, end_ns)
    except MeterError as error:
        return str(error)


def _period_s(found: Found, host: Host) -> float | None:
    """Return the median time between two changes of the number; None where it hardly changes or takes long to ask."""
    claimed_s = found.meter.update_period_s
    if found.open is None or not found.meter.reads_at_marks:
        return None
    changes: list[int] = []
    last: float | None = None
    try:
        source = found.open()
        limit_ns = host.clock_ns() + int(1e9 * min(max(1.0, 1.5 * CHANGES * claimed_s), 4.0))
        for _ in range(MOST_READS):
            now_ns = host.clock_ns()
            for reading in source.read(now_ns):
                if last is not None and reading.value != last:
                    changes.append(now_ns)
                last = reading.value
            if len(changes) > CHANGES or now_ns > limit_ns:
                break
            host.sleep(claimed_s / 20)
        source.close()
    except MeterError:
        return None
    waits = [(late - early) * 1e-9 for early, late in pairwise(changes)]
    return statistics.median(waits) if len(waits) >= 3 else None


def _judgement(meter: Meter, idle: Energy | str, load: Energy | str, period_s: float | None) -> Judgement:
    faults = [answer for answer in dict.fromkeys((idle, load)) if isinstance(answer, str)]
    first, second = (answer if isinstance(answer, Energy) else None for answer in (idle, load))
    moves = first is not None and second is not None and second.watts > RISE * first.watts
    notes = list(dict.fromkeys((*(first.notes if first else ()), *(second.notes if second else ()))))
    if first is not None and second is not None and not moves:
        notes.append("shows no more under load than idle: it may not see what worked, or lag")
    if period_s is not None and period_s > PERIOD_FACTOR * meter.update_period_s + 0.002:
        faults.append(f"updates every {period_s:.3g} s, claimed are {meter.update_period_s:.3g} s")
    known = second or first
    watts = known.watts if known is not None else None
    return Judgement(
        name=meter.name,
        idle_w=first.watts if first else None,
        idle_half_w=first.half_width_j / first.seconds if first else None,
        load_w=second.watts if second else None,
        load_half_w=second.half_width_j / second.seconds if second else None,
        moves=moves,
        claimed_period_s=meter.update_period_s,
        period_s=period_s,
        wraps_every_s=meter.wrap_j / watts if meter.wrap_j is not None and watts else None,
        faults=tuple(faults),
        notes=tuple(notes),
    )


class Load:
    """Work for every core, and for a GPU where PyTorch can reach one, in processes of its own."""

    def __init__(self, cores: int, gpu: bool) -> None:
        self.programs = [_BURN] * cores + [_BURN_GPU] * gpu
        self.processes: list[subprocess.Popen[bytes]] = []

    def __call__(self, working: bool) -> None:
        """Begin or end the work."""
        for process in self.processes:
            process.kill()
            process.wait()
        self.processes = []
        if working:
            self.processes = [
                subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
                for program in self.programs
            ]
