"""The meters of one run of the lab: opened once, read at the edges of blocks, never trusted to answer or to be right.

Whatever goes wrong with a meter becomes the reason why a block has no energy; the speed of the block stays.
"""

import contextlib
import math
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from perwatt.errors import MeterError
from perwatt.lab import meters
from perwatt.lab.engine import Device
from perwatt.lab.meters.meter import Found, Host, Meter, OpenMeter
from perwatt.lab.notation import number_text
from perwatt.lab.record import Block, IdleReading, MeterFacts, Reading

BLOCK_SHARE = 0.05  # of a block's joules: what the meter's timing may be wrong by; over the rounds it averages out
FEWEST_PERIODS = 4  # of a meter in a block, two of which are its edges; with fewer a reading says next to nothing
IDLE_WINDOWS = 3  # before the blocks, and as many after
IDLE_SHARE = 0.15  # of a group's time at most
PATIENCE_S = 5.0  # for one answer of a meter; then it hangs, and is asked no more
_ALL = frozenset({"wall", "system", "board", "rail", "part"})  # what a rail feeds only the person who names it knows
_SEES: dict[Device, frozenset[str]] = {"cpu": _ALL | {"psys", "package", "dram"}, "cuda": _ALL | {"gpu"}}
_LEAVES_OUT = (
    ("wall", "nothing: the whole machine with its power supply"),
    ("system", "the power supply's own loss"),
    ("board", "whatever is not fed through the board's input"),
    ("psys", "what the maker does not count as platform: discrete GPUs, the power supply"),
    ("gpu", "the host: processor, memory, disks, fans, power supply"),
    ("package", "memory (unless named), board, disks, fans, power supply"),
)
When = Literal["before", "after"]
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Opened:
    """The meters of a run, or why there is none and the command that would help."""

    asked: str
    meters: tuple[tuple[MeterFacts, OpenMeter], ...]
    reason: str | None
    remedy: str | None


OpenFor = Callable[[str, Device], Opened]


def open_for(asked: str, device: Device, host: Host | None = None) -> Opened:
    """Open the meters that `--meter asked` means for a device; on a GPU the host's own beside it where it can be read.

    Raises InputError for a name that is unknown, closed or overlaps, before anything is measured. A meter that `auto`
    chose and that does not open is no meter, with the reason.
    """
    found = meters.discover(host, asked) if asked != "none" else ()
    choices = [meters.choose(found, asked, device)]
    if asked == "auto" and device == "cuda" and choices[0].names:
        beside = meters.choose(found, "auto", "cpu")
        if beside.names and not _overlapping(found, choices[0].names, beside.names):
            choices.append(beside)
    opened: list[tuple[MeterFacts, OpenMeter]] = []
    reason, remedy = None, choices[0].remedy
    for choice in choices:
        if not choice.names:
            reason = choice.why
            continue
        try:
            meter = meters.open_meters(found, choice, host)
        except MeterError as error:
            reason = reason or str(error)
        else:
            opened.append((facts_of(meter.meter, overlaps_of(found, choice.names)), meter))
    return Opened(asked, tuple(opened), None if opened else reason or "no meter opened", None if opened else remedy)


def _overlapping(found: Sequence[Found], ours: Sequence[str], theirs: Sequence[str]) -> bool:
    return bool(set(ours) & set(theirs)) or any(name in overlaps_of(found, ours) for name in theirs)


def overlaps_of(found: Sequence[Found], names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of other meters that count some of the joules of these."""
    every = dict.fromkeys(name for each in found if each.meter.name in names for name in each.overlaps)
    return tuple(name for name in every if name not in names)


def devices_of(scope: str) -> tuple[Device, ...]:
    """Return the devices whose rows a meter of this scope may judge: the host's counters say nothing of a GPU."""
    parts = set(scope.split(" + "))
    return tuple(device for device, seen in _SEES.items() if parts & seen)


def edges_s(facts: MeterFacts) -> tuple[float, float]:
    """Return how much of a block's beginning and end a meter must not be asked about, in seconds.

    What a meter shows there mixes the block with the rest before or after it, always downwards: an error that no
    number of blocks would average out. The power of the inside stands for the whole block.
    """
    return facts.update_period_s + facts.averaging_s, facts.update_period_s


def facts_of(meter: Meter, overlaps: tuple[str, ...] = ()) -> MeterFacts:
    """Return what the Record keeps of a meter."""
    parts = meter.scope.split(" + ")
    left = next((text for scope, text in _LEAVES_OUT if scope in parts), "everything but itself")
    counts = meter.unit == "J"
    every = "" if counts or not meter.averaging_s else f", each the mean of {number_text(meter.averaging_s)} s"
    sampled = "" if meter.sampled_share >= 1 else f", sampled {100 * meter.sampled_share:.0f} % of the time"
    return MeterFacts(
        name=meter.name,
        family=meter.family,
        scope=meter.scope,
        devices=devices_of(meter.scope),
        unit=meter.unit,
        quantum=meter.quantum,
        update_period_s=meter.update_period_s,
        averaging_s=meter.averaging_s,
        sampled_share=meter.sampled_share,
        gain=meter.gain,
        overlaps=overlaps,
        leaves_out=left,
        note=meter.note,
        uncertainty=(
            "power of the inside of each block, an update period off its edges; "
            f"each reading: edges of ±half a period of {number_text(1000 * meter.update_period_s)} ms, steps of "
            f"{meter.quantum:g} {meter.unit}{every}{sampled}; all readings alike: ±{100 * meter.gain:g} %"
        ),
    )


@dataclass
class _Watched:
    """One meter and the thread that asks it, so that one that hangs holds up the lab once only."""

    facts: MeterFacts
    meter: OpenMeter
    lost: str | None = None
    _requests: "queue.SimpleQueue[Callable[[], None] | None]" = field(default_factory=queue.SimpleQueue)
    _thread: threading.Thread | None = None

    def ask(self, call: Callable[[], Answer]) -> Answer:
        """Return the meter's answer. Raises MeterError for whatever it does instead of answering."""
        if self.lost is not None:
            raise MeterError(self.lost)
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, daemon=True)
            self._thread.start()
        answers: queue.SimpleQueue[tuple[Answer | None, Exception | None]] = queue.SimpleQueue()

        def run() -> None:
            try:
                answers.put((call(), None))
            except Exception as error:  # noqa: BLE001 whatever a meter raises becomes the reason of an empty cell
                answers.put((None, error))

        self._requests.put(run)
        try:
            answer, error = answers.get(timeout=PATIENCE_S)
        except queue.Empty:
            self.lost = f"{self.facts.name} hung: no answer within {PATIENCE_S:g} s"
            raise MeterError(self.lost) from None
        if isinstance(error, MeterError):
            raise error
        if error is not None:
            raise MeterError(f"{self.facts.name}: {type(error).__name__}: {' '.join(str(error).split())}") from error
        return answer  # type: ignore[return-value]

    def _serve(self) -> None:
        while (request := self._requests.get()) is not None:
            request()

    def close(self) -> None:
        """Close the meter, unless it hangs."""
        with contextlib.suppress(MeterError):
            self.ask(self.meter.close)
        self._requests.put(None)


class Metering:
    """Reads the meters of a run; without meters it does nothing.

    `zero_ns` is the Record's start on the clock of `time.perf_counter_ns`; `sleep` waits for a meter to settle.
    """

    def __init__(self, opened: Opened, zero_ns: int, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self.opened = opened
        self.zero_ns = zero_ns
        self.sleep = sleep
        self.idle: list[IdleReading] = []
        self._watched = tuple(_Watched(facts, meter) for facts, meter in opened.meters)
        self._waiting: list[tuple[list[Block], int, int, int]] = []

    @property
    def is_on(self) -> bool:
        """Whether there is a meter at all."""
        return bool(self._watched)

    def block_s(self, usual_s: float, most_s: float) -> float:
        """Return how long a block should be: the usual, or as long as the slowest meter wants, `most_s` at most.

        Where that is too short for any meter, the usual: time that no meter makes use of would be wasted.
        """
        length_s = max(usual_s, min(self._wanted_s(), most_s))
        return length_s if any(length_s >= self._least_s(meter) for _, meter in self._meters()) else usual_s

    def _wanted_s(self) -> float:
        return max((max(meter.window_s(BLOCK_SHARE), self._least_s(meter)) for _, meter in self._meters()), default=0.0)

    def _meters(self) -> Iterator[tuple[_Watched, Meter]]:
        return ((each, each.meter.meter) for each in self._watched)

    @staticmethod
    def _least_s(meter: Meter) -> float:
        return FEWEST_PERIODS * meter.update_period_s + 2 * meter.averaging_s

    def lengthened(self, usual_s: float, length_s: float) -> str | None:
        """Return what a note says of blocks of `length_s` instead of the usual ones; None: nothing needs saying."""
        if not self.is_on:
            return None
        slowest = max((meter for _, meter in self._meters()), key=self._least_s)
        tells = f"{slowest.name}, which tells every {number_text(slowest.update_period_s)} s"
        if length_s < self._least_s(slowest):
            return (
                f"blocks of {length_s:.3g} s are too short for {tells}: its energy stays empty; take a longer profile"
            )
        if length_s > usual_s:
            return f"blocks of {length_s:.3g} s instead of {usual_s:g} s, to suit {tells}"
        return None

    def offset_s(self, generator: random.Random, length_s: float) -> float:
        """Return a wait before a block, so that blocks and the meter's periods do not run in step.

        In step, every block would err the same way and no number of rounds would show it.
        """
        used = (meter for _, meter in self._meters() if length_s >= self._least_s(meter))
        period_s = max((meter.update_period_s for meter in used), default=0.0)
        return generator.random() * min(period_s, 0.1 * length_s)

    def mark(self) -> None:
        """Read every meter now: at the edges of a block, outside of what is timed."""
        for watched in self._watched:
            with contextlib.suppress(MeterError):  # asked for the energy, it will say so again
                watched.ask(watched.meter.mark)

    def owe(self, blocks: list[Block], start_ns: int, end_ns: int) -> None:
        """Note that the last of `blocks` is to get the energy of this stretch, once the meters know it."""
        if self.is_on:
            self._waiting.append((blocks, len(blocks) - 1, start_ns, end_ns))
            self.settle(0.0)

    def settle(self, most_s: float) -> None:
        """Give the waiting blocks their energy; with `most_s` wait for the meters at most so long, and leave none."""
        late_s = max((meter.settle_s for _, meter in self._meters()), default=0.0)
        kept = []
        for blocks, index, start_ns, end_ns in self._waiting:
            rest_s = late_s - (time.perf_counter_ns() - end_ns) * 1e-9
            if rest_s > 0 and not most_s:
                kept.append((blocks, index, start_ns, end_ns))
                continue
            if rest_s > 0:
                self.sleep(min(rest_s, most_s))
            blocks[index] = blocks[index].model_copy(update={"energy": self.read(start_ns, end_ns)})
        self._waiting = kept

    def read(self, start_ns: int, end_ns: int) -> tuple[Reading, ...]:
        """Return what each meter says of the inside of a stretch of time, or why it says nothing."""
        return tuple(self._read_one(watched, start_ns, end_ns) for watched in self._watched)

    def _read_one(self, watched: _Watched, start_ns: int, end_ns: int) -> Reading:
        whole_s, least_s = (end_ns - start_ns) * 1e-9, self._least_s(watched.meter.meter)
        if whole_s >= least_s:
            before_s, after_s = edges_s(watched.facts)
            start_ns, end_ns = start_ns + round(1e9 * before_s), end_ns - round(1e9 * after_s)
        seconds = (end_ns - start_ns) * 1e-9
        joules, half_width_j, gain, reason = None, None, None, None
        notes: tuple[str, ...] = ()
        try:
            if whole_s < least_s:
                raise MeterError(
                    f"{whole_s:.3g} s are too short for {watched.facts.name}, which wants {least_s:.3g} s at least"
                )
            energy = watched.ask(lambda: watched.meter.energy(start_ns, end_ns))
            if not (math.isfinite(energy.joules) and energy.joules > 0 and energy.seconds > 0):
                raise MeterError(f"{watched.facts.name} did not move: {energy.joules:g} J in {seconds:.3g} s")
            if not (math.isfinite(energy.random_j) and energy.random_j >= 0):
                raise MeterError(f"{watched.facts.name} does not say how sure it is")
            # A window that is a little off the one asked for is brought to it at its mean power.
            joules = energy.watts * seconds
            half_width_j = energy.random_j * seconds / energy.seconds
            gain, notes = energy.gain, energy.notes
        except MeterError as error:
            reason = str(error)
        return Reading(
            meter=watched.facts.name,
            start_s=(start_ns - self.zero_ns) * 1e-9,
            end_s=(end_ns - self.zero_ns) * 1e-9,
            joules=joules,
            half_width_j=half_width_j,
            gain=gain,
            reason=reason,
            notes=notes,
        )

    def idle_s(self, block_s: float, left_s: float) -> float:
        """Return how long one of the windows without work should be; 0 where no meter would make use of it."""
        window_s = min(block_s, IDLE_SHARE * max(left_s, 0.0) / (2 * IDLE_WINDOWS))
        return window_s if any(window_s >= self._least_s(meter) for _, meter in self._meters()) else 0.0

    def rest(self, network: str, batch: int, when: When, rested: bool, window_s: float) -> None:
        """Read the meters over a few windows in which nobody works."""
        if not self.is_on or window_s <= 0:
            return
        windows = []
        for _ in range(IDLE_WINDOWS):
            self.mark()
            start_ns = time.perf_counter_ns()
            self.sleep(window_s)
            windows.append((start_ns, time.perf_counter_ns()))
            self.mark()
        late_s = max((meter.settle_s for _, meter in self._meters()), default=0.0)
        if late_s:
            self.sleep(late_s)
        for start_ns, end_ns in windows:
            readings = self.read(start_ns, end_ns)
            self.idle.append(IdleReading(network=network, batch=batch, when=when, rested=rested, readings=readings))

    def close(self) -> None:
        """Close every meter."""
        for watched in self._watched:
            watched.close()
