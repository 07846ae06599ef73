"""Reorder moves every element to its place, exactly, and fills what is left with zeros."""

import numpy as np
import pytest
from kernel_runner import each_width, run, step

from perwatt.cpu.kernels.reorder import REORDER

MAPS = [(1, 1, 1, 1), (2, 3, 5, 7), (3, 17, 1, 1), (1, 33, 3, 5), (2, 16, 4, 4), (1, 48, 7, 7), (1, 2, 9)]
VECTORS = [(2, 5), (3, 64), (1, 1000), (2, 19), (1, 1)]


@pytest.mark.parametrize("lanes", each_width())
@pytest.mark.parametrize("shape", [*MAPS, *VECTORS], ids=str)
def test_there_and_back(shape: tuple[int, ...], lanes: int) -> None:
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    for threads in (1, 2, 3, 5):
        for spare in (0, 2):
            how = {"lanes": lanes, "threads": threads, "spare_blocks": spare}
            for layouts in (("plain", "blocked"), ("blocked", "plain")):
                s = step("Reorder", [("x", shape)], [shape], **how, layouts=layouts)
                assert np.array_equal(run(REORDER, s, {"x": x})[0], x)


@pytest.mark.parametrize("lanes", each_width())
@pytest.mark.parametrize("shape", [(1, 3, 2, 2), (3, 33, 1, 5), (2, 16, 6, 6)], ids=str)
def test_flatten_keeps_whole_vectors_together(shape: tuple[int, ...], lanes: int) -> None:
    n, c, h, w = shape
    blocks = -(-c // lanes)
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    features = blocks * h * w * lanes
    s = step("FlattenBlocked", [("x", shape)], [(n, features)], lanes=lanes, threads=2)
    wide = np.full((n, blocks * lanes, h, w), 7, np.float32)
    wide[:, :c] = x
    wanted = wide.reshape(n, blocks, lanes, h, w).transpose(0, 1, 3, 4, 2).reshape(n, features)
    got = run(REORDER, s, {"x": x}, garbage=7.0)[0]
    lane = np.arange(features) % lanes + np.arange(features) // (h * w * lanes) * lanes
    assert np.array_equal(got[:, lane < c], wanted[:, lane < c])
    assert np.array_equal(np.abs(got), np.abs(wanted))


def test_equal_layouts_and_vectors_are_refused() -> None:
    assert REORDER.accepts(step("Reorder", [("x", (1, 2, 3, 4))], [(1, 2, 3, 4)])) is not None
    assert REORDER.accepts(step("Reorder", [("x", (3,))], [(3,)], layouts="plain")) is not None
