"""Memory for weights and activations: aligned to cache lines, on huge pages where that pays."""

import contextlib
import ctypes
import mmap

import numpy as np

ALIGNMENT_BYTES = 64
HUGE_PAGE_BYTES = 2 << 20


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


def aligned(array: np.ndarray) -> np.ndarray:
    """Return float arrays as an aligned float32 copy, halves as they are; tables of integers as contiguous int64."""
    if array.dtype.itemsize == 2:  # FP16, or BF16 as its bits
        halves = floats(-(-array.size // 2)).view(array.dtype)[: array.size]
        halves[...] = array.reshape(-1)
        return halves
    if array.dtype.kind in "iu":
        return np.ascontiguousarray(array, np.int64)
    place = floats(array.size)
    place[...] = array.reshape(-1)
    return place


def give_back() -> None:
    """Return what the C library keeps of freed memory to the system, where it can (glibc).

    Compiling a network frees several times its weights; a server would carry them for as long as it lives.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
