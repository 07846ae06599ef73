"""Parts of the batch nest: every image passes every step once, and no step sees an image before what it needs."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from perwatt.plan.levels import Level, images_of, nest, walk

PARTS = st.lists(st.integers(1, 24), max_size=4)
BYTES = st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 50_000)), min_size=1, max_size=12)


@given(sizes=BYTES, images=PARTS, batch=st.integers(1, 48), fits=st.integers(0, 100_000), rest=st.integers(0, 3))
def test_every_image_passes_every_step_once_and_in_order(
    sizes: list[tuple[int, int]], images: list[int], batch: int, fits: int, rest: int
) -> None:
    levels = nest([t for t, _ in sizes], [w for _, w in sizes], images, batch, fits)
    steps = len(sizes) + rest
    done = [0] * batch  # the next step of each image
    for first, position in walk(levels, batch, steps):
        for image in range(first, first + images_of(levels, batch, position)):
            assert done[image] == position
            done[image] += 1
    assert done == [steps] * batch


@given(sizes=BYTES, images=PARTS, batch=st.integers(1, 48), fits=st.integers(0, 100_000))
def test_levels_grow_outwards_and_divide_each_other(
    sizes: list[tuple[int, int]], images: list[int], batch: int, fits: int
) -> None:
    levels = nest([t for t, _ in sizes], [w for _, w in sizes], images, batch, fits)
    ends = [level.end for level in levels]
    assert ends == sorted(ends)
    sizes = [*(level.images for level in levels), batch]
    assert all(a < b and b % a == 0 for a, b in pairwise(sizes))


def test_an_inner_level_ends_where_weights_outweigh_activations() -> None:
    tensors, weights = [50, 100, 10, 30, 5, 30], [1, 1, 1, 1, 1, 90]
    levels = nest(tensors, weights, (2, 8), 48, 200)
    assert levels == (Level(4, 2), Level(6, 8))  # the last step's 240 do not fit, but its weights three times are more
    assert list(walk((Level(4, 2),), 4, 5)) == [*((i, p) for i in (0, 2) for p in range(4)), (0, 4)]
    assert nest([50, 100], [1, 1], (2, 8), 48, 10_000) == (Level(2, 8),)


def test_a_whole_batch_can_have_levels_inside() -> None:
    assert nest([50, 100, 10], [0, 0, 0], (2, 4), 4, 200) == (Level(2, 2),)
    assert nest([50, 100, 10], [0, 0, 0], (4,), 4, 200) == ()
