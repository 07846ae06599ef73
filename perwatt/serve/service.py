"""What the front of the server knows of a network that answers: this contract, and nothing of batches or processes."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from perwatt.errors import Refused


@dataclass(frozen=True)
class TensorFacts:
    """One input or output of a network, without its batch dimension."""

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Answer:
    """What one call of infer gives: the outputs in the order of the facts, each [images, ...], and where time went.

    `batch_size` is the number of images of the batch that carried the first of them; `done_s` is when the last of them
    had come back, in seconds of time.monotonic(), None where nobody looked.
    """

    outputs: tuple[np.ndarray, ...]
    queue_s: float
    infer_s: float
    batch_size: int
    done_s: float | None = None


class Service(Protocol):
    """A network that answers, several callers at once, on one event loop."""

    @property
    def inputs(self) -> tuple[TensorFacts, ...]:
        """The network's inputs."""

    @property
    def outputs(self) -> tuple[TensorFacts, ...]:
        """The network's outputs."""

    @property
    def ready(self) -> bool:
        """Whether it can answer now: golden examples replayed, warmed up, its process alive."""

    @property
    def queued_images(self) -> int:
        """Images that wait for the engine."""

    @property
    def engine_s(self) -> float:
        """The engine time it has used, in seconds."""

    def turns_away(self, images: int, *, deadline: float | None = None, priority: int = 0) -> Refused | None:
        """Return what `infer` would be refused with by now, None where it would be let in; nothing is kept for it."""

    def expecting(
        self, images: int, *, deadline: float | None = None, priority: int = 0
    ) -> AbstractContextManager[None]:
        """Announce images that are still being decoded, for as long as they are; `infer` follows.

        Raises errors.Refused at once when they would be refused although they were here already.
        """

    async def infer(self, images: np.ndarray, *, deadline: float | None = None, priority: int = 0) -> Answer:
        """Return the outputs of images, float32 [images, ...]; deadline in seconds of time.monotonic().

        Smaller priorities go first. A caller that has gone cancels the task that waits here. Raises errors.Refused
        when it cannot or will not: queue full, deadline out of reach, process gone, closing.
        """

    async def close(self, drain_s: float) -> None:
        """Finish what is queued within `drain_s`, refuse the rest, and end."""
