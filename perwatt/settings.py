"""Every environment variable perwatt reads, in one table; nothing else in perwatt reads the environment.

A setting is read when it is asked for, never at import, so that tests and long-lived programs can change it.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from perwatt.errors import InputError


@dataclass(frozen=True)
class Setting:
    """One environment variable: its name, what an unset one means, and what it does."""

    name: str
    default: str
    help: str


SETTINGS = (
    Setting("PERWATT_CACHE", "", "folder for compiled code, tuning results, weights; empty: the user's cache folder"),
    Setting("PERWATT_THREADS", "", "threads of perwatt's own engine; empty: every core this process may use"),
    Setting("PERWATT_SPIN_US", "100", "microseconds an idle thread of the engine spins before it sleeps"),
    Setting(
        "PERWATT_BARRIER_US",
        "600",
        "microseconds it waits awake for the others after a step, 600 at most; 20 in a server",
    ),
    Setting("PERWATT_MACHINE", "", "pretend a smaller vector unit: avx512, avx2, neon, portable; empty: what is here"),
    Setting("PERWATT_TOKEN", "", "the token that clients of perwatt serve must know; empty: none, on loopback only"),
    Setting("NO_COLOR", "", "any value: no colour in the terminal"),
)

_preferred: dict[str, str] = {}


def text(name: str) -> str:
    """Return the value of one setting of the table as text."""
    for setting in SETTINGS:
        if setting.name == name:
            return os.environ.get(name, _preferred.get(name, setting.default))
    raise KeyError(f"{name} is not a setting; add it to SETTINGS")


def prefer(name: str, value: str) -> None:
    """Give a setting another default in this process; what stands in the environment still goes before it."""
    _preferred[name] = value


def cache_folder() -> Path:
    """Return the folder for everything perwatt can make again; it may not exist yet."""
    chosen = text("PERWATT_CACHE")
    return Path(chosen) if chosen else platformdirs.user_cache_path("perwatt")


def threads() -> int | None:
    """Return the number of threads asked for, or None when the machine is to decide.

    Raises InputError when PERWATT_THREADS is no positive whole number.
    """
    chosen = text("PERWATT_THREADS")
    if not chosen:
        return None
    if not chosen.isdigit() or int(chosen) < 1:
        raise InputError(f"PERWATT_THREADS: expected a positive whole number, got {chosen!r}; unset it or give one")
    return int(chosen)


def spin_us() -> float:
    """Return how many microseconds an idle engine thread spins before it sleeps.

    Raises InputError when PERWATT_SPIN_US is no number from 0 to a million.
    """
    return _microseconds("PERWATT_SPIN_US")


def barrier_us() -> float:
    """Return how many microseconds an engine thread waits awake for the others after a step, before it sleeps.

    Raises InputError when PERWATT_BARRIER_US is no number from 0 to a million.
    """
    return _microseconds("PERWATT_BARRIER_US")


def _microseconds(name: str) -> float:
    chosen = text(name)
    try:
        found = float(chosen)
    except ValueError:
        found = -1.0
    if not 0 <= found <= 1e6:
        raise InputError(f"{name}: expected a number from 0 to 1000000, got {chosen!r}; unset it or give one")
    return found


def token() -> str | None:
    """Return the token that clients of the server must know, or None without one."""
    return text("PERWATT_TOKEN") or None


def no_color() -> bool:
    """Return whether the terminal must stay without colour."""
    return bool(text("NO_COLOR"))
