"""Memory for weights and activations: aligned to cache lines, on huge pages where that pays."""

import mmap
from collections.abc import Callable

import numpy as np

ALIGNMENT_BYTES = 64
HUGE_PAGE_BYTES = 2 << 20
POOL_BYTES = 16 << 20
Allocate = Callable[[int], np.ndarray]


def floats(count: int) -> np.ndarray:
    """Return `count` float32 zeros, aligned. Large ones ask for huge pages: streaming weights then misses no TLB."""
    size = max(count, 1) * 4
    if size < HUGE_PAGE_BYTES:
        raw = np.zeros(size + ALIGNMENT_BYTES, np.uint8)
        start = -raw.ctypes.data % ALIGNMENT_BYTES
        return raw[start : start + size].view(np.float32)
    # Private: memory that processes could share gets no huge pages on most systems.
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    region = mmap.mmap(-1, size + HUGE_PAGE_BYTES, **private)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        region.madvise(mmap.MADV_HUGEPAGE)
    raw = np.frombuffer(region, np.uint8)
    start = -raw.ctypes.data % HUGE_PAGE_BYTES
    return raw[start : start + size].view(np.float32)


class Pool:
    """Arrays that live and die together, one behind the other, so that each does not fill up a huge page of its own."""

    def __init__(self) -> None:
        self._region, self._used = floats(0), 1

    def floats(self, count: int) -> np.ndarray:
        """Return `count` float32 zeros, aligned."""
        if self._used + count > len(self._region):
            self._region, self._used = floats(max(count, POOL_BYTES // 4)), 0
        start = self._used
        self._used += -(-max(count, 1) * 4 // ALIGNMENT_BYTES) * ALIGNMENT_BYTES // 4
        return self._region[start : start + count]


def aligned(array: np.ndarray, allocate: Allocate = floats) -> np.ndarray:
    """Return float arrays as an aligned float32 copy, halves as they are; tables of integers as contiguous int64."""
    if array.dtype.itemsize == 2:  # FP16, or BF16 as its bits
        halves = allocate(-(-array.size // 2)).view(array.dtype)[: array.size]
        halves[...] = array.reshape(-1)
        return halves
    if array.dtype.kind in "iu":
        return np.ascontiguousarray(array, np.int64)
    place = allocate(array.size)
    place[...] = array.reshape(-1)
    return place
