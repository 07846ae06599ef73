"""Padding copies planes into frames of zeros: every size around a vector's width, any team, and nothing else."""

import ctypes

import numpy as np
import pytest
from kernel_runner import each_width, machine

from perwatt.cpu.jit import compile_module
from perwatt.cpu.kernels.padding import padding

CANARY = np.float32(-7.5e33)


def pad(x: np.ndarray, frame: tuple[int, int, int, int], lanes: int, threads: int, spare: int) -> np.ndarray:
    """Return (images, planes, rows, row) framed by (above, left, below, right); `spare` floats part the rows."""
    images, planes, rows, row = x.shape
    above, left, below, right = frame
    stride = rows * (row + spare)
    source = np.full((images, planes, rows, row + spare), np.nan, np.float32)
    source[..., :row] = x
    shape = (images, planes, rows + above + below, row + left + right)
    target = np.full(int(np.prod(shape)) + 2 * lanes, CANARY, np.float32)
    words = np.array(
        [
            source.ctypes.data, target.ctypes.data + 4 * lanes, images, planes, planes * stride, stride, rows, row,
            above, below, left, right, row + spare,
        ],
        np.int64,
    )  # fmt: skip
    code = compile_module(str(padding(lanes)), machine(lanes))
    kernel = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)(
        code.address(f"padding_{lanes}")
    )
    for thread in range(threads):
        kernel(words.ctypes.data, thread, threads, None)
    assert (target[:lanes] == CANARY).all()
    assert (target[-lanes:] == CANARY).all()
    return target[lanes:-lanes].reshape(shape)


@pytest.mark.parametrize("lanes", each_width())
@pytest.mark.parametrize("row", [1, 3, 15, 16, 17, 31, 33, 48])
def test_frames_of_every_width(row: int, lanes: int) -> None:
    random = np.random.default_rng(row)
    for threads, frame in zip(
        (1, 2, 3, 5, 64), [(0, 0, 0, 0), (1, 1, 1, 1), (7, 0, 0, 19), (0, 33, 2, 0), (3, 16, 1, 17)], strict=True
    ):
        x = random.standard_normal((2, 3, int(random.integers(1, 6)), row)).astype(np.float32)
        above, left, below, right = frame
        wanted = np.pad(x, ((0, 0), (0, 0), (above, below), (left, right)))
        assert np.array_equal(pad(x, frame, lanes, threads, spare=5), wanted)
