"""Levels: how many images pass through each stretch of the steps at a time, so that activations stay in the caches.

Early layers have large activations and few weights: they want few images at a time. Deep layers have small activations
and many weights, which are read again for every part of the batch: they want many. So levels nest: the steps of an
inner level run several times, on a few images each, before the steps that follow it take what they left, all at once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Level:
    """The steps before `end`, except those of levels further inside, take `images` at a time."""

    end: int
    images: int


def nest(
    tensor_bytes: Sequence[int], weight_bytes: Sequence[int], images: Sequence[int], batch: int, fits_bytes: int
) -> tuple[Level, ...]:
    """Return the levels of the first `len(tensor_bytes)` steps, the innermost first.

    `tensor_bytes`: bytes of activations that each step reads and writes for one image, `weight_bytes`: of its weights.
    `images`: the parts of the batch, each a divisor of the next larger one and of the batch; others are left out. The
    largest part is taken all the way; a level inside ends where least bytes come from memory: before its end weights
    are read again for every part, behind it activations that exceed `fits_bytes` are written out and read back.
    """
    found: list[Level] = []
    end, outer = len(tensor_bytes), batch
    for depth, part in enumerate(sorted(set(images), reverse=True)):
        if part < 1 or outer % part:
            continue
        if depth:
            spilled = [outer * each if outer * each > fits_bytes else 0 for each in tensor_bytes]
            again = [(outer // part - 1) * each for each in weight_bytes]
            end = min(range(end + 1), key=lambda p: sum(again[:p]) + sum(spilled[p:end]))
        if end and part < outer:
            found.append(Level(end, part))
        outer = part
    return tuple(reversed(found))


def images_of(levels: Sequence[Level], batch: int, position: int) -> int:
    """Return how many images a step takes at a time."""
    return next((level.images for level in levels if position < level.end), batch)


def walk(levels: Sequence[Level], batch: int, steps: int) -> Iterator[tuple[int, int]]:
    """Yield (first image, position of the step) in the order in which the steps of the whole batch run."""

    def run(depth: int, first: int) -> Iterator[tuple[int, int]]:
        """Yield one passage of a level, the levels inside it before its own steps."""
        end, size = (levels[depth].end, levels[depth].images) if depth < len(levels) else (steps, batch)
        start = 0
        if depth:
            start = levels[depth - 1].end
            for inner in range(first, first + size, levels[depth - 1].images):
                yield from run(depth - 1, inner)
        for position in range(start, end):
            yield first, position

    yield from run(len(levels), 0)
