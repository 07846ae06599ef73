"""Batches: pictures decoded, cut, mirrored and made into arrays by threads, ahead of the step that needs them."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

import numpy as np

from perwatt.data.dataset import Split, Stored
from perwatt.package.preprocessing import Preprocessing, preprocess
from perwatt.train.augment import crop_and_mirror, moved, moves, order
from perwatt.train.recipe import Recipe

# Images that have their final size stay decoded in memory up to this many bytes.
RESIDENT_BYTES = 1 << 30
# What waits in finished batches may take this much memory, and is at least two batches: one in use, one ready.
AHEAD_BYTES = 256 << 20
MOST_AHEAD = 16
# Photographs that one thread decodes in a go.
_TOGETHER = 4
# At which parts of its sides a JPEG can be decoded, and how much larger than the input what is cut out stays.
PARTS = (8, 4, 2)
ENOUGH = 2.0

PLAIN = Recipe(augment="none", flip=False)


@dataclass(frozen=True)
class Batch:
    """What one step learns from: images float32 [count, channels, height, width] and labels int64 [count].

    The images lie in memory as [count, height, width, channels], the order in which PyTorch's convolutions are fastest.
    """

    images: np.ndarray
    labels: np.ndarray


class Batches:
    """The batches of a split, epoch after epoch. Close it, or use it in a `with`, to end its threads.

    With a recipe that does not crop, pictures are decoded once and kept as 8-bit pixels where they fit into memory.
    """

    def __init__(
        self, split: Split, how: Preprocessing, recipe: Recipe = PLAIN, seed: int = 0, threads: int = 2
    ) -> None:
        self.split, self.how, self.recipe, self.seed = split, how, recipe, seed
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="pictures")
        self.pixels: np.ndarray | None = None
        self.mean = np.asarray(how.mean, np.float32)
        self.scale = np.asarray(how.scale, np.float32)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the threads; what they have not begun is dropped."""
        self.pool.shutdown(cancel_futures=True)

    @property
    def fits(self) -> bool:
        """Whether the pictures stay in memory: they need no new crop each time, and few enough bytes."""
        height, width = self.how.size
        needed = len(self.split) * height * width * self.how.channels
        return self.recipe.augment != "crop" and needed <= RESIDENT_BYTES

    def prepare(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Decode what stays in memory, if it is not there yet. Raises InputError when a picture is broken."""
        if not self.fits or self.pixels is not None:
            return
        stored = self._as_stored()
        if stored is not None:
            self.pixels = stored
            return
        plain = replace(self.how, mean=(0.0,) * self.how.channels, scale=(1.0,) * self.how.channels)
        pixels = np.empty((len(self.split), *self.how.size, self.how.channels), np.uint8)

        def decode(index: int) -> None:
            # Without mean and scale an input is whole numbers from 0 to 255.
            pixels[index] = preprocess(self.split.photo(index), plain).transpose(1, 2, 0)

        for done, _ in enumerate(self.pool.map(decode, range(len(self.split))), 1):
            if progress is not None and done % 256 == 0:
                progress(done, len(self.split))
        self.pixels = pixels

    def steps(self, batch: int) -> int:
        """Return how many batches an epoch has: full ones only, but at least one."""
        return max(1, len(self.split) // batch)

    def epoch(self, epoch: int, batch: int, first: int = 0) -> Iterator[Batch]:
        """Yield an epoch's full batches in its order, from its batch `first` on.

        Raises InputError when a picture is broken.
        """
        taken = order(self.seed, epoch, len(self.split))
        starts = range(first * batch, self.steps(batch) * batch, batch)
        yield from self._ahead([taken[start : start + batch] for start in starts], epoch)

    def in_order(self, batch: int) -> Iterator[Batch]:
        """Yield every picture once, in the split's order; the last batch may be smaller."""
        places = np.arange(len(self.split))
        yield from self._ahead([places[start : start + batch] for start in range(0, len(places), batch)], 0)

    def _ahead(self, groups: list[np.ndarray], epoch: int) -> Iterator[Batch]:
        self.prepare()
        waiting: deque[tuple[np.ndarray, np.ndarray, list[Future[None]]]] = deque()
        coming = iter(groups)
        image_bytes = 4 * self.how.channels * self.how.size[0] * self.how.size[1]
        largest = max((len(group) for group in groups), default=1)
        depth = min(MOST_AHEAD, max(2, AHEAD_BYTES // (image_bytes * largest)))
        try:
            while True:
                while len(waiting) < depth and (group := next(coming, None)) is not None:
                    waiting.append(self._start(group, epoch))
                if not waiting:
                    return
                group, images, parts = waiting.popleft()
                for part in parts:
                    part.result()
                yield Batch(images.transpose(0, 3, 1, 2), self.split.labels[group])
        finally:
            for _, _, parts in waiting:
                for part in parts:
                    part.cancel()

    def _start(self, group: np.ndarray, epoch: int) -> tuple[np.ndarray, np.ndarray, list[Future[None]]]:
        images = np.empty((len(group), *self.how.size, self.how.channels), np.float32)
        if self.pixels is not None:
            return group, images, [self.pool.submit(self._from_memory, group, epoch, images)]
        parts = [
            self.pool.submit(self._decoded, group[start : start + _TOGETHER], epoch, images[start : start + _TOGETHER])
            for start in range(0, len(group), _TOGETHER)
        ]
        return group, images, parts

    def _from_memory(self, group: np.ndarray, epoch: int, images: np.ndarray) -> None:
        assert self.pixels is not None
        pixels = self.pixels[group]
        if self.recipe.augment == "shift" or self.recipe.flip:
            pixels = moved(pixels, *moves(self.recipe, self.seed, epoch, group, *self.how.size[::-1]))
        # The arithmetic of `preprocess`, in its order: the answers are equal to the last bit.
        np.subtract(pixels, self.mean, out=images, dtype=np.float32)
        np.multiply(images, self.scale, out=images)

    def _decoded(self, group: np.ndarray, epoch: int, images: np.ndarray) -> None:
        down, right, mirrored = moves(self.recipe, self.seed, epoch, group, *self.how.size[::-1])
        for place, index in enumerate(group):
            if self.recipe.augment == "crop":
                images[place], mirrored[place] = self._cropped(int(index), epoch)
            else:
                images[place] = preprocess(self.split.photo(int(index)), self.how).transpose(1, 2, 0)
        if down.any() or right.any() or mirrored.any():
            images[...] = moved(images, down, right, mirrored)

    def _cropped(self, index: int, epoch: int) -> tuple[np.ndarray, bool]:
        """Return a random part of a picture [height, width, channels], and whether it is to be mirrored.

        JPEGs are decoded at a half, a quarter or an eighth of their sides where the part keeps ENOUGH times the input's
        sides: decoding whole photographs of 12 megapixels would take longer than learning from them.
        """
        whole, drawn = (0, 0), None
        mirrored = False

        def shrink(width: int, height: int) -> int:
            nonlocal whole, drawn, mirrored
            whole = (width, height)
            drawn, mirrored = crop_and_mirror(self.recipe, self.seed, epoch, index, width, height)
            assert drawn is not None
            across, down = drawn[2] - drawn[0], drawn[3] - drawn[1]
            most = min(across / self.how.size[1], down / self.how.size[0]) / ENOUGH
            return next((part for part in PARTS if part <= most), 1)

        photo = self.split.photo(index, shrink)
        if not whole[0]:  # no JPEG: nobody asked
            shrink(photo.width, photo.height)
        assert drawn is not None
        part = round(whole[0] / photo.width)
        crop = drawn[0] / part, drawn[1] / part, drawn[2] / part, drawn[3] / part
        return preprocess(photo, self.how, crop).transpose(1, 2, 0), mirrored

    def _as_stored(self) -> np.ndarray | None:
        """Return stored pictures as they are, where preprocessing would change none of their pixels: grey, its size."""
        pictures = self.split.pictures
        if not isinstance(pictures, Stored) or pictures.pixels.ndim != 3 or self.how.channel_order != "grey":
            return None
        same = pictures.pixels.shape[1:] == self.how.size and self.how.resize_to == min(self.how.size)
        return pictures.pixels[..., np.newaxis] if same else None
