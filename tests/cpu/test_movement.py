"""Moved elements are exact copies: against NumPy, over shapes, steps, negative directions and every padding mode."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_runner import each_width, lanes_here, run, step

from perwatt.cpu.kernels.movement import MOVEMENT

WIDEST = lanes_here()[0]


def array(shape: tuple[int, ...]) -> np.ndarray:
    """Return distinct numbers."""
    return np.random.default_rng(3).normal(size=shape).astype(np.float32)


def check(
    operator: str, x: np.ndarray, wanted: np.ndarray, lanes: int, layout: str, threads: int, **given_: Any
) -> None:
    s = step(
        operator, [("x", x.shape)], [wanted.shape], lanes=lanes, layouts=layout, threads=threads,
        spare_blocks=threads - 1, **given_,
    )  # fmt: skip
    np.testing.assert_array_equal(run(MOVEMENT, s, {"x": x})[0], wanted)


@pytest.mark.parametrize("lanes", each_width())
@pytest.mark.parametrize(
    ("shape", "perm"),
    [
        ((2, 3, 4, 5), (0, 2, 3, 1)),
        ((2, 5, 4, 3), (0, 3, 1, 2)),
        ((7,), (0,)),
        ((33, 17), (1, 0)),
        ((2, 3, 2, 3, 2, 3), (5, 4, 3, 2, 1, 0)),
        ((1, 2, 3, 4, 5, 1, 40), (0, 2, 1, 5, 3, 4, 6)),
        ((3, 1, 4), (1, 2, 0)),
        ((1, 1), (1, 0)),
        ((2, 0, 3), (2, 1, 0)),
    ],
)
def test_transpose(shape: tuple[int, ...], perm: tuple[int, ...], lanes: int) -> None:
    for threads in (1, 3):
        check("Transpose", array(shape), array(shape).transpose(perm), lanes, "plain", threads, perm=perm)


SLICES = [
    ((2, 17, 9, 11), (1, 2), (3,), (1, 10), (1, 2)),
    ((2, 17, 9, 11), (8, 10), (2, 3), (-10, -12), (-1, -3)),
    ((2, 17, 9, 11), (0,), (0,), (1,), (1,)),
    ((40,), (35,), (0,), (2,), (-3,)),
    ((2, 3, 9, 11), (4,), (2,), (4,), (1,)),
]


@pytest.mark.parametrize("lanes", each_width())
@pytest.mark.parametrize("case", SLICES, ids=str)
def test_slice(case: tuple, lanes: int) -> None:
    shape, starts, axes, ends, steps = case
    if len(starts) != len(axes):
        starts, ends, steps = starts[:1], ends[:1], steps[:1]
    x, cut = array(shape), [slice(None)] * len(shape)
    for start, end, axis, jump in zip(starts, ends, axes, steps, strict=True):
        cut[axis] = slice(start, None if end < 0 else end, jump)
    how = {"starts": starts, "ends": ends, "axes": axes, "steps": steps}
    for layout in ("plain", "blocked") if len(shape) == 4 and x[tuple(cut)].size else ("plain",):
        check("Slice", x, x[tuple(cut)], lanes, layout, 2, **how)


@pytest.mark.parametrize("lanes", each_width())
@pytest.mark.parametrize("axis", [0, 2, 3])
def test_concat_and_split(axis: int, lanes: int) -> None:
    feeds = {}
    for i, size in enumerate((1, 4, 2)):
        shape = [2, 19, 3, 5]
        shape[axis] = size
        feeds[f"x{i}"] = array(tuple(shape)) + i
    whole = np.concatenate(list(feeds.values()), axis=axis)
    for threads, layout in ((1, "plain"), (3, "blocked")):
        s = step(
            "Concat", [(n, a.shape) for n, a in feeds.items()], [whole.shape], axis=axis, lanes=lanes, threads=threads,
            layouts=layout,
        )  # fmt: skip
        assert np.array_equal(run(MOVEMENT, s, feeds)[0], whole)
        s = step(
            "Split", [("x", whole.shape)], [a.shape for a in feeds.values()], axis=axis, split=(1, 4, 2), lanes=lanes,
            threads=threads, layouts=layout,
        )  # fmt: skip
        for got, wanted in zip(run(MOVEMENT, s, {"x": whole}), feeds.values(), strict=True):
            assert np.array_equal(got, wanted)


def test_concat_with_a_constant() -> None:
    feeds = {"x": array((2, 3)), "c": array((2, 4))}
    s = step("Concat", [("x", (2, 3)), ("c", (2, 4))], [(2, 7)], axis=1, layouts="plain", constants={"c": feeds["c"]})
    assert np.array_equal(run(MOVEMENT, s, feeds)[0], np.concatenate(list(feeds.values()), axis=1))


@pytest.mark.parametrize("lanes", each_width())
@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
def test_pad(mode: str, lanes: int) -> None:
    x = array((2, 19, 4, 5))
    for pads in (
        (0, 0, 1, 2, 0, 0, 3, 2),
        (0, 0, -1, 3, 0, 0, 1, -2),
        (0, 0, 0, 0, 0, 0, 0, 17),
        (1, 2, 0, 0, 1, 3, 0, 0),
    ):
        kept = tuple(slice(max(-b, 0), n + min(e, 0)) for n, b, e in zip(x.shape, pads[:4], pads[4:], strict=True))
        around = [(max(b, 0), max(e, 0)) for b, e in zip(pads[:4], pads[4:], strict=True)]
        more = {"constant_values": 2.5} if mode == "constant" else {}
        wanted = np.pad(x[kept], around, mode=mode, **more)
        for layout in ("plain", "blocked") if not any((pads[1], pads[5])) else ("plain",):
            check("Pad", x, wanted, lanes, layout, 2, pads=pads, mode=mode, value=2.5)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_transpose_and_slice(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.sampled_from([1, 2, 3, 5, 16, 17]), min_size=1, max_size=5)))
    lanes, threads = data.draw(st.sampled_from(lanes_here())), data.draw(st.sampled_from([1, 2, 3, 5]))
    x = array(shape)
    perm = tuple(data.draw(st.permutations(range(len(shape)))))
    check("Transpose", x, x.transpose(perm), lanes, "plain", threads, perm=perm)
    starts = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
    steps = tuple(data.draw(st.sampled_from([-3, -1, 1, 2])) for _ in shape)
    ends = tuple(-(n + 1) if jump < 0 else n for n, jump in zip(shape, steps, strict=True))
    cut = tuple(slice(a, None, jump) for a, jump in zip(starts, steps, strict=True))
    axes = tuple(range(len(shape)))
    check("Slice", x, x[cut], lanes, "plain", threads, starts=starts, ends=ends, axes=axes, steps=steps)
