"""What the batcher hands out: a Ticket for each request it lets in, and Batches made of Parts of them."""

from dataclasses import dataclass
from typing import Any, Literal

State = Literal["waiting", "done", "failed", "expired", "cancelled"]


class Ticket:
    """One request that was let in. `payload` is the caller's own; the rest is the batcher's."""

    __slots__ = ("answered", "arrived_s", "deadline_s", "images", "key", "payload", "priority", "state", "taken")

    def __init__(
        self, number: int, images: int, arrived_s: float, deadline_s: float, priority: int, payload: Any
    ) -> None:
        self.images, self.arrived_s, self.deadline_s, self.priority = images, arrived_s, deadline_s, priority
        self.payload = payload
        self.key = (priority, deadline_s, number)
        self.taken = 0
        self.answered = 0
        self.state: State = "waiting"

    @property
    def number(self) -> int:
        """Counts the requests in order of arrival."""
        return self.key[2]


@dataclass(frozen=True, slots=True)
class Part:
    """Images `first` .. `first + count - 1` of a request, as they lie in a batch."""

    ticket: Ticket
    first: int
    count: int


class Batch:
    """What the engine runs at once: parts of requests, in order, padded to a compiled size."""

    __slots__ = ("bound_s", "expected_s", "images", "parts", "size", "started_s")

    def __init__(self, parts: tuple[Part, ...], images: int, size: int, started_s: float) -> None:
        self.parts, self.images, self.size, self.started_s = parts, images, size, started_s
        self.expected_s = self.bound_s = 0.0
