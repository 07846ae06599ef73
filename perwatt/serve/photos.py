"""Photographs to a tensor, in a bounded pool of threads off the event loop, under a deadline."""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from perwatt.errors import InputError, PhotographRefused, Refused
from perwatt.package import photograph
from perwatt.package.preprocessing import Preprocessing, preprocess
from perwatt.serve.limits import HttpLimits

# The share of the newest photograph in the running mean of decoding times.
NEWEST = 0.1
# PhotographRefused.reason to the HTTP status that says it; too large in whatever way is 413.
STATUS = {"format": 415, "damaged": 422}


class Decoder:
    """Decodes and preprocesses photographs; whatever could not be done in time is refused before it costs anything."""

    def __init__(self, limits: HttpLimits, threads: int, queue: int = 256) -> None:
        self.limits, self.queue = limits, queue
        self.photograph_limits = photograph.Limits(
            formats=limits.formats,
            most_bytes=limits.image_bytes,
            most_pixels=limits.pixels,
            most_frames=limits.frames,
        )
        self.threads = threads
        self.waiting = 0
        self.mean_s: float | None = None
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="decode")

    async def decode(
        self,
        photos: Sequence[bytes | memoryview],
        how: Preprocessing,
        *,
        deadline: float | None,
        gone: Callable[[], bool],
    ) -> np.ndarray:
        """Return photographs as a network's input, float32 [photographs, channels, height, width].

        Raises Refused: 413 for one beyond the limits, 415 for a format that is not taken, 422 for one that cannot be
        decoded, 429 when the pool is full or the deadline out of reach, 504 when it has passed.
        """
        self._admit(len(photos), deadline)
        loop = asyncio.get_running_loop()
        self.waiting += len(photos)
        tasks = [
            loop.run_in_executor(self._pool, self._one, photo, number, len(photos), how, deadline, gone)
            for number, photo in enumerate(photos)
        ]
        for task in tasks:
            task.add_done_callback(self._done)
        try:
            decoded = await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:  # what has not begun is taken out of the pool's queue
                task.cancel()
            raise
        if len(decoded) == 1:
            return decoded[0][np.newaxis]
        return np.stack(decoded)

    def close(self) -> None:
        """End the pool; what has not begun is dropped."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _admit(self, photos: int, deadline: float | None) -> None:
        ahead_s = None if self.mean_s is None else self.mean_s * self.waiting / self.threads
        if self.waiting + photos > self.queue:
            raise Refused(
                f"expected at most {self.queue} photographs waiting to be decoded, they are {self.waiting}; "
                "come again later",
                reason="decode_queue_full",
                status=429,
                retry_after_s=ahead_s,
            )
        if deadline is not None and ahead_s is not None and self.mean_s is not None:
            late_s = time.monotonic() + ahead_s + self.mean_s - deadline
            if late_s > 0 and self.waiting:
                raise Refused(
                    f"decoding would end {1e3 * late_s:.0f} ms after the deadline; come again later",
                    reason="deadline_unreachable",
                    status=429,
                    retry_after_s=ahead_s,
                )

    def _done(self, _: object) -> None:
        self.waiting -= 1

    def _one(
        self,
        photo: bytes | memoryview,
        number: int,
        photos: int,
        how: Preprocessing,
        deadline: float | None,
        gone: Callable[[], bool],
    ) -> np.ndarray:
        start_s = time.monotonic()
        if gone():
            raise Refused("the client has gone", reason="cancelled", status=499)
        if deadline is not None and start_s > deadline:
            raise Refused("the deadline passed before decoding began", reason="expired", status=504)
        which = "photograph" if photos == 1 else f"photograph {number}"
        try:
            # The header is checked against the limits before anything of the picture's size is allocated.
            upright = photograph.decode(bytes(photo), which, self.photograph_limits)
            decoded = preprocess(upright, how)
        except PhotographRefused as error:
            raise Refused(str(error), reason=f"image_{error.reason}", status=STATUS.get(error.reason, 413)) from error
        except InputError as error:
            raise Refused(str(error), reason="image_damaged", status=422) from error
        took_s = time.monotonic() - start_s
        # Threads may both write; a lost update of a running mean harms nobody.
        self.mean_s = took_s if self.mean_s is None else (1 - NEWEST) * self.mean_s + NEWEST * took_s
        return decoded
