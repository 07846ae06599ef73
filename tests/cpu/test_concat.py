"""Channels put together and taken apart, exactly, at counts that do not fill vectors."""

import numpy as np
import pytest
from kernel_runner import each_width, run, step

from perwatt.cpu.kernels.concat import CHANNELS

COUNTS = [(1,), (1, 1), (3, 17, 33), (16, 16), (17, 15, 5), (2, 2, 2, 2, 2, 2, 2, 2, 2), (64, 1, 31), (40, 24)]


def parts(counts: tuple[int, ...], shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Return one array for each count."""
    rng = np.random.default_rng(9)
    return {f"x{i}": rng.normal(size=(shape[0], c, *shape[1:])).astype(np.float32) for i, c in enumerate(counts)}


@pytest.mark.parametrize("lanes", each_width())
@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_concat_and_split(counts: tuple[int, ...], lanes: int) -> None:
    for threads, shape in enumerate([(1, 1, 1), (2, 3, 5), (3,), (1, 9, 9), (2, 4)], 1):
        feeds = parts(counts, shape)
        whole = np.concatenate(list(feeds.values()), axis=1)
        how = {"lanes": lanes, "threads": threads, "spare_blocks": threads % 2}
        s = step("Concat", [(n, a.shape) for n, a in feeds.items()], [whole.shape], axis=1, **how)
        assert np.array_equal(run(CHANNELS, s, feeds)[0], whole)
        s = step("Split", [("x", whole.shape)], [a.shape for a in feeds.values()], axis=1, split=counts, **how)
        for got, wanted in zip(run(CHANNELS, s, {"x": whole}), feeds.values(), strict=True):
            assert np.array_equal(got, wanted)


@pytest.mark.parametrize("lanes", each_width())
@pytest.mark.parametrize(("start", "end"), [(0, 1), (1, 40), (16, 32), (5, 38), (39, 40), (15, 17)])
def test_slice(start: int, end: int, lanes: int) -> None:
    x = np.random.default_rng(9).normal(size=(2, 40, 3, 3)).astype(np.float32)
    s = step(
        "Slice", [("x", x.shape)], [(2, end - start, 3, 3)], lanes=lanes, threads=2,
        starts=(start,), ends=(end,), axes=(1,), steps=(1,),
    )  # fmt: skip
    assert np.array_equal(run(CHANNELS, s, {"x": x})[0], x[:, start:end])
