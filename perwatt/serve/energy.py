"""Joules of a meter, shared out among packages by the engine time each used."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Joules:
    """A meter as a server sees it: its joules so far, its name, and what its watts cover."""

    read: Callable[[], float]
    meter: str
    scope: str


def shared_out(joules: float, lasted_s: float, engine_s: Mapping[str, float]) -> dict[str, float]:
    """Return the joules of each package, and under '' those of the time in which none ran.

    `lasted_s` is the length of the window, `engine_s` the engine time of each package within it. Joules are gross: what
    the machine takes at rest is inside them. One batch runs at a time, so that engine times add up to the window's
    length at most; a batch that ended in this window but began before may seem to exceed it.
    """
    used_s = sum(engine_s.values())
    whole_s = max(lasted_s, used_s)
    parts = {name: joules * seconds / whole_s for name, seconds in engine_s.items()}
    parts[""] = joules * (whole_s - used_s) / whole_s
    return parts
