"""Where the images of the coming batch lie: written into its shared memory as they arrive, while the last one runs.

Which requests a batch carries is decided only when the engine is free. Images laid ready that it does carry stay where
they are; the few that an earlier deadline pushed out are overwritten, and copied again for the batch after that.
"""

from asyncio import Future

import numpy as np

from perwatt.serve.channel import Buffer
from perwatt.serve.service import Answer
from perwatt.serve.ticket import Part, Ticket


class Call:
    """One caller's images and what has come back of them so far; the payload of its ticket."""

    __slots__ = ("batch_images", "began_s", "future", "images", "infer_s", "outputs", "slot", "staging")

    def __init__(self, images: np.ndarray, future: "Future[Answer]") -> None:
        self.images, self.future = images, future
        self.outputs: tuple[np.ndarray, ...] = ()
        self.staging: Staging | None = None
        self.slot = 0
        self.began_s: float | None = None
        self.infer_s = 0.0
        self.batch_images = 0

    def collect(self, part: Part, slots: list[int], buffer: Buffer) -> None:
        """Copy the outputs of a part out of the shared memory."""
        if len(self.images) == 1:
            self.outputs = tuple(output[slots[0] : slots[0] + 1].copy() for output in buffer.outputs)
            return
        if not self.outputs:
            count = len(self.images)
            self.outputs = tuple(np.empty((count, *output.shape[1:]), output.dtype) for output in buffer.outputs)
        for mine, output in zip(self.outputs, buffer.outputs, strict=True):
            mine[part.first : part.first + part.count] = output[slots]


class Staging:
    """One buffer that is being filled for the next batch. Only requests of one image are laid ready early."""

    __slots__ = ("buffer", "number", "used")

    def __init__(self, number: int, buffer: Buffer) -> None:
        self.number, self.buffer = number, buffer
        self.used = 0

    @property
    def room(self) -> bool:
        """Whether another image fits."""
        return self.used < len(self.buffer.images)

    def lay(self, call: Call) -> None:
        """Write the image of a call into the next free place."""
        self.buffer.images[self.used] = call.images[0]
        call.staging, call.slot = self, self.used
        self.used += 1

    def settle(self, parts: tuple[Part, ...], images: int) -> list[list[int]]:
        """Put all images of a batch into the first `images` places; return the places of each part."""
        kept: set[int] = set()
        for part in parts:
            call: Call = part.ticket.payload
            if call.staging is self and call.slot < images:
                kept.add(call.slot)
        free = iter([slot for slot in range(images) if slot not in kept])
        places = []
        for part in parts:
            call = part.ticket.payload
            if call.staging is self and call.slot < images:
                places.append([call.slot])
                continue
            slots = [next(free) for _ in range(part.count)]
            for offset, slot in enumerate(slots):
                self.buffer.images[slot] = call.images[part.first + offset]
            places.append(slots)
        return places


def laid(ticket: Ticket, staging: Staging) -> bool:
    """Whether the image of a request already lies in this buffer."""
    payload: Call = ticket.payload
    return payload.staging is staging
