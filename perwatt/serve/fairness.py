"""Whose turn it is on the cores: several packages side by side, one batch at a time, shared by time used.

Each package has a virtual clock that advances by the engine time it used over its weight; of those that want to run the
one whose clock is furthest behind goes next (start-time fair queueing, Goyal et al., SIGCOMM 1996). Who comes back
from idleness starts at the clock of those at work: idle time is no credit. Pure: no sockets, no threads, no event loop.
"""

from collections.abc import Callable

from perwatt.errors import InputError


class Turn:
    """One package's place at the cores. `go` is called when its turn has come; it says whether it began a batch."""

    def __init__(self, cores: "Cores", name: str, weight: float, go: Callable[[], bool]) -> None:
        self.name, self.weight = name, weight
        self.used_s = 0.0
        self._cores, self._go = cores, go
        self._clock = 0.0
        self._waiting = False

    @property
    def holds(self) -> bool:
        """Whether it has the cores now."""
        return self._cores.holder is self

    @property
    def alone(self) -> bool:
        """Whether nobody else waits for the cores: who holds them may then begin the next batch at once."""
        return not any(turn._waiting for turn in self._cores.turns if turn is not self)

    @property
    def stretch(self) -> float:
        """How many times longer than alone a package takes while those others are at work: 1 when it is alone."""
        others = sum(turn.weight for turn in self._cores.turns if turn is not self and turn.at_work)
        return (self.weight + others) / self.weight

    @property
    def at_work(self) -> bool:
        """Whether it has the cores or waits for them."""
        return self._waiting or self.holds

    def want(self) -> None:
        """Ask for the cores; `go` is called at once when they are free, and later otherwise. Asking twice is once."""
        if self.at_work:
            return
        self._clock = max(self._clock, self._cores.clock)
        self._waiting = True
        self._cores.give()

    def charge(self, seconds: float) -> None:
        """Count engine time this package used."""
        self.used_s += seconds
        self._clock += seconds / self.weight

    def release(self, *, wants_more: bool) -> None:
        """Hand the cores on; `wants_more`: there is more to run, when its turn comes again."""
        if self.holds:
            self._cores.holder = None
        self._waiting = wants_more
        self._cores.give()

    def leave(self) -> None:
        """Go for good."""
        if self in self._cores.turns:
            self._cores.turns.remove(self)
        self.release(wants_more=False)


class Cores:
    """The cores of this machine, held by one package at a time."""

    def __init__(self) -> None:
        self.turns: list[Turn] = []
        self.holder: Turn | None = None
        self.clock = 0.0
        self._giving = False

    def join(self, name: str, go: Callable[[], bool], weight: float = 1.0) -> Turn:
        """Return a new package's place; raises InputError for a weight that is not above zero."""
        if not weight > 0:
            raise InputError(f"weight of {name}: expected a number above 0, got {weight}")
        turn = Turn(self, name, weight, go)
        turn._clock = self.clock
        self.turns.append(turn)
        return turn

    def give(self) -> None:
        """Let the one whose clock is furthest behind run, if the cores are free."""
        if self._giving:  # called from within a `go` below: the loop there goes on
            return
        self._giving = True
        try:
            while self.holder is None:
                waiting = [turn for turn in self.turns if turn._waiting]
                if not waiting:
                    return
                turn = min(waiting, key=lambda each: each._clock)
                self.clock = max(self.clock, turn._clock)
                turn._waiting = False
                self.holder = turn
                began = False
                try:
                    began = turn._go()
                finally:
                    if not began and self.holder is turn:
                        self.holder = None  # its work had gone meanwhile, or could not be begun
        finally:
            self._giving = False
