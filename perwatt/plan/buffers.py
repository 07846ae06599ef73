"""Buffers: offsets in one arena, by lifetime, so that memory is used again as soon as its last reader is done."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

ALIGNMENT_FLOATS = 16  # a cache line
# Vector loads and register tiles may touch a little more than a tensor; what they touch must be memory.
SLACK_FLOATS = 64


@dataclass(frozen=True)
class Lifetime:
    """A buffer's size in floats, and the first and last step during which its content matters."""

    size: int
    first: int
    last: int


def arrange(lifetimes: Mapping[str, Lifetime]) -> tuple[dict[str, int], int]:
    """Return (offset of each buffer in floats, floats of the arena); buffers alive together never overlap.

    Greedy by size, each at the lowest offset that is free over its whole life (Pisarchyk and Lee, arXiv 2001.03288).
    """
    offsets: dict[str, int] = {}
    placed: list[tuple[int, int, Lifetime]] = []
    total = 0
    for name, life in sorted(lifetimes.items(), key=lambda item: (-item[1].size, item[1].first, item[0])):
        size = -(-(life.size + SLACK_FLOATS) // ALIGNMENT_FLOATS) * ALIGNMENT_FLOATS
        neighbours = sorted(
            (start, stop) for start, stop, other in placed if other.first <= life.last and life.first <= other.last
        )
        offset = _lowest_gap(neighbours, size)
        offsets[name] = offset
        placed.append((offset, offset + size, life))
        total = max(total, offset + size)
    return offsets, total


def _lowest_gap(taken: Sequence[tuple[int, int]], size: int) -> int:
    offset = 0
    for start, stop in taken:
        if start - offset >= size:
            return offset
        offset = max(offset, stop)
    return offset
