"""One file per meter the lab can read, in one table; `discover`, `choose` and `open_meters` are the way in."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from perwatt.errors import InputError, MeterError
from perwatt.lab.meters import amd_gpu, apple, battery, http, hwmon, log, nvml, rapl
from perwatt.lab.meters.meter import Found, Host, OpenMeter, overlap
from perwatt.lab.meters.running import NoMeter, Running, Together

# What looks for the meters of one kind, by the name of the kind.
METERS: tuple[tuple[str, Callable[[Host], Sequence[Found]]], ...] = (
    ("rapl", rapl.find),
    ("nvml", nvml.find),
    ("amd", amd_gpu.find),
    ("apple", apple.find),
    ("hwmon", hwmon.find),
    ("battery", battery.find),
)
# Meters that no machine shows by itself: what their names begin with.
NAMED: tuple[tuple[str, Callable[[str, Host], Found]], ...] = (
    ("log:", log.find),
    ("http://", http.find),
    ("https://", http.find),
)
HOW_TO_GET_ONE = "give a wall meter: --meter log:FILE (rows of timestamp,watts) or --meter http://PLUG/status#power"


@dataclass(frozen=True)
class Choice:
    """Which meters one run reads: their names, empty for none; `why` says why these, or why there is none.

    `remedy` is a command that would give a meter or a better one, where there is one.
    """

    names: tuple[str, ...]
    why: str
    remedy: str | None = None


def discover(host: Host | None = None, wanted: str = "auto") -> tuple[Found, ...]:
    """Return every meter of the machine, open or closed, with what it overlaps.

    Wall meters that `wanted` names (`log:PATH`, `http://...#path`, with commas) come first.
    """
    surroundings = host or Host()
    found: list[Found] = []
    for name in _parts(wanted):
        found += [find(name, surroundings) for begin, find in NAMED if name.startswith(begin)]
    found += [each for _, find in METERS for each in find(surroundings)]
    return tuple(
        replace(
            each,
            overlaps=tuple(
                other.meter.name for other in found if other is not each and overlap(other.meter, each.meter)
            ),
        )
        for each in found
    )


def choose(found: Sequence[Found], wanted: str = "auto", device: str = "cpu", gpu: int = 0) -> Choice:
    """Return the meters that `--meter wanted` means for rows of the device ("cpu" or "cuda", there GPU number `gpu`).

    `wanted` is auto, none, or names of open meters with commas. Raises InputError for a name that is unknown or closed,
    and for meters that overlap.
    """
    if wanted == "none":
        return Choice((), "none was asked for")
    if wanted == "auto":
        return _auto(found, device, gpu)
    known = {each.meter.name: each for each in found}
    names = tuple(dict.fromkeys(_parts(wanted)))
    for name in names:
        if name not in known:
            listed = ", ".join(("auto", "none", *(name for name, each in known.items() if each.open)))
            raise InputError(f"meter: expected one of {listed}, got {name!r}; perwatt meters lists them")
        if known[name].open is None:
            remedy = known[name].remedy or "choose another meter"
            raise InputError(f"meter: expected {name} to be open: {known[name].reason}; {remedy}")
        both = [other for other in names if other in known[name].overlaps]
        if both:
            raise InputError(
                f"meter: expected meters that share no joules, but {name} and {both[0]} do; choose one of them"
            )
    return Choice(names, "asked for")


def _auto(found: Sequence[Found], device: str, gpu: int) -> Choice:
    """Return what covers the device best: a GPU's board, the processor with its memory, else what is wider."""
    for names, why in _candidates(found, device, gpu):
        chosen = [each for each in found if each.meter.name in names]
        if chosen and all(each.open is not None for each in chosen):
            closed = [each.remedy for each in found if each.open is None and each.meter.scope in ("dram", "package")]
            return Choice(tuple(each.meter.name for each in chosen), why, closed[0] if closed else None)
    closed_meters = [each for each in found if each.open is None]
    if closed_meters:
        first = closed_meters[0]
        return Choice((), f"{first.meter.name} is closed: {first.reason}", first.remedy)
    if found:
        return Choice(
            (), "this machine shows no meter that covers it; perwatt meters lists what it shows", HOW_TO_GET_ONE
        )
    return Choice((), "this machine shows none", HOW_TO_GET_ONE)


def _candidates(found: Sequence[Found], device: str, gpu: int) -> list[tuple[list[str], str]]:
    def named(*scopes: str, family: str = "", unless: str = "") -> list[str]:
        return [
            each.meter.name
            for each in found
            if each.meter.scope in scopes
            and each.meter.family.startswith(family)
            and not (unless and each.meter.family == unless)
        ]

    walls = [each.meter.name for each in found if each.meter.family in ("log", "http")]
    candidates = [(walls[:1], "a wall meter was named")]
    board = named("board")
    if device == "cuda":
        candidates.append(([name for name in named("gpu", family="nvml") if name == f"nvml:{gpu}"], "the GPU's board"))
        candidates.append((board[:1], "the board that holds the GPU"))
        return candidates
    packages, memory = named("package", family="rapl"), named("dram", family="rapl")
    open_memory = [each.meter.name for each in found if each.meter.name in memory and each.open is not None]
    apple_parts = named("package", "dram", family="apple")
    candidates += [
        (packages + open_memory, "the processor's packages" + (" and their memory" if open_memory else "")),
        (apple_parts, "the chip's CPU and memory"),
        (named("package", unless="rapl"), "the processor's sockets"),
        (board[:1], "the board's input"),
        (named("psys")[:1], "the platform"),
        (named("wall", family="hwmon")[:1], "the power supply's input"),
        (named("system")[:1], "the whole system"),
        (_outer_rails(found), "all rails of the board"),
    ]
    return candidates


def _outer_rails(found: Sequence[Found]) -> list[str]:
    """Return the rails that no other rail holds; together they are the board where it has no input rail."""
    rails = [each.meter for each in found if each.meter.scope == "rail"]
    return [
        rail.name
        for rail in rails
        if not any(
            other is not rail and rail.covers[0].startswith(f"{other.covers[0]}/") and overlap(other, rail)
            for other in rails
        )
    ]


def _parts(wanted: str) -> list[str]:
    return [part.strip() for part in wanted.split(",") if part.strip()]


def open_meters(found: Sequence[Found], choice: Choice, host: Host | None = None) -> OpenMeter:
    """Return the chosen meters as one that is being read. Raises MeterError when one does not open."""
    surroundings = host or Host()
    if not choice.names:
        remedy = f"; {choice.remedy}" if choice.remedy else ""
        return NoMeter(choice.why + remedy, surroundings.clock_ns)
    running: list[Running] = []
    try:
        for name in choice.names:
            each = next((each for each in found if each.meter.name == name), None)
            if each is None or each.open is None:
                raise MeterError(f"{name}: expected an open meter, got {each.reason if each else 'none of that name'}")
            running.append(Running(each.meter, each.open(), surroundings))
    except MeterError:
        for opened in running:
            opened.close()
        raise
    return running[0] if len(running) == 1 else Together(running)
