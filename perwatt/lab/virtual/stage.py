"""A simulated machine for a demonstration: what `--as NAME` shows in place of this machine's meters."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

from perwatt.errors import InputError
from perwatt.lab.virtual.machines import MACHINES, machine, world_of
from perwatt.lab.virtual.trace import Phase
from perwatt.lab.virtual.world import World

QUIET = (Phase(False, 5.0), Phase(True, 5.0))


@contextmanager
def stage(name: str, phases: Sequence[Phase] = QUIET, seed: int = 1) -> Iterator[World]:
    """Give a simulated machine by its name, in a folder of its own that is removed afterwards.

    Raises InputError for an unknown name.
    """
    kind = machine(name)
    if kind is None:
        known = [each.name for each in MACHINES]
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else "choose among them"
        raise InputError(f"machine: expected one of {', '.join(known)}, got {name!r}; {hint}")
    with tempfile.TemporaryDirectory() as folder:
        yield world_of(kind, Path(folder), phases, seed)
