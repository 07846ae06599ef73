"""What `perwatt meters` does, on this machine or on a simulated one: list, watch, test."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict

from perwatt.errors import MeterError
from perwatt.lab import meters_terminal
from perwatt.lab.meter_check import Load, judge
from perwatt.lab.meters import HOW_TO_GET_ONE, Choice, choose, discover, open_meters
from perwatt.lab.meters.meter import Found, Host, OpenMeter
from perwatt.lab.meters.running import Together
from perwatt.lab.terminal import console
from perwatt.lab.virtual.stage import QUIET, stage
from perwatt.lab.virtual.trace import Phase
from perwatt.lab.virtual.world import World
from perwatt.machine import this_machine

TICK_S = 1.0
WATCHED_S = 600.0  # of a simulated machine
SETTLING_S = 30.0


@contextlib.contextmanager
def _place(named: str, as_name: str, phases: Sequence[Phase] = QUIET) -> Iterator[tuple[Host, World | None, str]]:
    """Give the host to look at, its simulation where it is one, and the wall meters that were named."""
    if not as_name:
        yield Host(), None, named
        return
    with stage(as_name, phases) as world:
        world.sleep(0.5)
        yield world.host(), world, ",".join(each for each in (named, world.wanted) if each and each != "auto")


def listing(named: str, as_name: str, *, as_json: bool) -> None:
    """Print every meter and what `--meter auto` would read."""
    with _place(named, as_name) as (host, _, wanted):
        found = discover(host, wanted)
    choices = {"cpu": choose(found)}
    if any(each.meter.scope == "gpu" for each in found):
        choices["cuda"] = choose(found, device="cuda")
    if as_json:
        print(json.dumps(meters_terminal.as_json(found, choices), indent=2))
    else:
        meters_terminal.show_meters(found, choices, console())


def watch(named: str, as_name: str, *, as_json: bool) -> None:
    """Print the watts of every open meter, a line a second, until Ctrl-C. Raises MeterError when none is open."""
    phases = QUIET * int(WATCHED_S / sum(phase.seconds for phase in QUIET))
    with _place(named, as_name, phases) as (host, world, wanted), contextlib.ExitStack() as stack:
        running = [stack.enter_context(each) for each in _opened(discover(host, wanted), host)]
        if not running:
            raise MeterError(f"meters: expected one that is open, this machine has none; {HOW_TO_GET_ONE}")
        try:
            while world is None or world.now_s < WATCHED_S:
                time.sleep(TICK_S)
                if world is not None:
                    world.pass_time(Together(running), TICK_S)
                powers = [(meter.meter.name, meter.watts()) for meter in running]
                print(json.dumps(dict(powers)) if as_json else meters_terminal.watts_line(powers), flush=True)
        except KeyboardInterrupt:
            return


def _opened(found: Sequence[Found], host: Host) -> Iterator[OpenMeter]:
    for each in found:
        if each.open is not None:
            yield open_meters(found, Choice((each.meter.name,), "watched"), host)


def test(seconds: float, named: str, as_name: str, *, as_json: bool) -> bool:
    """Print a judgement of every open meter; return whether one has a fault."""
    # A simulated machine begins to work when half of the time is over; what its own clock needs for looking is small.
    phases = (Phase(False, SETTLING_S), Phase(False, seconds / 2), Phase(True, seconds / 2))
    with _place(named, as_name, phases) as (host, world, wanted):
        found = discover(host, wanted)
        if world is None:
            cores = this_machine().cores
            gpu = any(each.meter.family == "nvml" and each.open for each in found)
            judged = judge(found, seconds, host, Load(cores, gpu), lambda _, passing_s: time.sleep(passing_s))
        else:
            judged = judge(found, seconds, host, _working(world, seconds), world.pass_time)
    if as_json:
        print(json.dumps([asdict(each) for each in judged], indent=2))
    else:
        meters_terminal.show_judgements(judged, console())
    return any(each.faults for each in judged)


def _working(world: World, seconds: float) -> Callable[[bool], None]:
    """Return what takes a simulated machine to where it idles, or where it works."""

    def load(working: bool) -> None:
        begin_s = SETTLING_S + (seconds / 2 if working else 0.0)
        world.sleep(max(0.0, begin_s - world.now_s))

    return load
