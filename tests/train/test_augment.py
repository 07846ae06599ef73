"""Order and augmentation follow from (seed, epoch, index) alone, stay within the picture and are spread evenly."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perwatt.train.augment import crop_and_mirror, dropout_seed, mixing, moved, moves, order
from perwatt.train.recipe import Recipe

CROP = Recipe(augment="crop", crop_area=0.3)
SHIFT = Recipe(augment="shift", shift=0.1)


def test_an_order_has_each_place_once_and_differs_by_seed_and_epoch() -> None:
    orders = [order(seed, epoch, 500) for seed in (1, 2) for epoch in (0, 1)]
    for each in orders:
        np.testing.assert_array_equal(np.sort(each), np.arange(500))
    assert len({each.tobytes() for each in orders}) == 4
    np.testing.assert_array_equal(orders[0], order(1, 0, 500))


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 700),
    height=st.integers(1, 700),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 500),
    index=st.integers(0, 2**40),
    area=st.floats(0.05, 1.0),
)
def test_a_crop_stays_inside_and_keeps_area_and_shape(
    width: int, height: int, seed: int, epoch: int, index: int, area: float
) -> None:
    recipe = Recipe(augment="crop", crop_area=area)
    crop, mirrored = crop_and_mirror(recipe, seed, epoch, index, width, height)
    assert (crop, mirrored) == crop_and_mirror(recipe, seed, epoch, index, width, height)
    assert crop is not None
    left, top, right, bottom = crop
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    wide, high = right - left, bottom - top
    # Whole pixels: each side is off by up to half a pixel, or one where nothing smaller exists.
    assert 0.75 * (high - 1) - 1 <= wide or wide == width
    assert wide <= 4 / 3 * (high + 1) + 1


def test_crops_and_mirrors_are_spread() -> None:
    drawn = [crop_and_mirror(CROP, 3, 0, index, 400, 300) for index in range(2000)]
    share = np.mean([mirrored for _, mirrored in drawn])
    assert abs(share - 0.5) < 4 * math.sqrt(0.25 / 2000)
    areas = np.array([(c[2] - c[0]) * (c[3] - c[1]) / 120_000 for c, _ in drawn if c is not None])
    # The largest crops that fit less often are drawn again, so that only the lower part is even.
    assert areas.min() >= 0.29
    assert 0.3 < np.mean(areas < 0.5) < 0.5
    centres = np.array([(c[0] + c[2]) / 800 for c, _ in drawn if c is not None])
    assert abs(centres.mean() - 0.5) < 4 * centres.std() / math.sqrt(len(centres))


def test_a_recipe_that_does_not_crop_gives_the_whole() -> None:
    assert crop_and_mirror(Recipe(augment="none", flip=False), 1, 2, 3, 40, 30) == (None, False)


def test_moves_follow_from_the_index_not_from_the_batch() -> None:
    indices = np.array([5, 0, 17, 3, 17])
    together = moves(SHIFT, 9, 4, indices, 28, 20)
    for place, index in enumerate(indices):
        alone = moves(SHIFT, 9, 4, np.array([index]), 28, 20)
        assert all(one[place] == other[0] for one, other in zip(together, alone, strict=True))
    one, other = (moves(SHIFT, 9, epoch, np.arange(100), 28, 20) for epoch in (4, 5))
    assert all((this != that).any() for this, that in zip(one, other, strict=True))


def test_moves_are_spread_evenly_within_their_limits() -> None:
    count = 60_000
    down, right, mirrored = moves(SHIFT, 1, 0, np.arange(count), 28, 20)
    for drawn, most in ((down, 2), (right, 3)):
        counts = np.bincount(drawn + most, minlength=2 * most + 1)
        assert len(counts) == 2 * most + 1
        expected = count / len(counts)
        # Chi-squared with at most 6 degrees of freedom: 30 has a chance of 4e-5.
        assert ((counts - expected) ** 2 / expected).sum() < 30
    assert abs(mirrored.mean() - 0.5) < 4 * math.sqrt(0.25 / count)
    assert abs(np.corrcoef(down, right)[0, 1]) < 4 / math.sqrt(count)
    none = moves(Recipe(augment="none", flip=False), 1, 0, np.arange(9), 28, 20)
    assert not any(each.any() for each in none)


def test_moved_is_what_its_words_say() -> None:
    images = np.random.default_rng(1).integers(0, 256, (40, 9, 7, 2)).astype(np.uint8)
    random = np.random.default_rng(2)
    down, right = random.integers(-3, 4, 40), random.integers(-3, 4, 40)
    mirrored = random.integers(0, 2, 40).astype(bool)
    got = moved(images, down, right, mirrored)
    for place in range(40):
        padded = np.pad(images[place], ((3, 3), (3, 3), (0, 0)), mode="edge")
        top, left = 3 - down[place], 3 - right[place]
        expected = padded[top : top + 9, left : left + 7]
        expected = expected[:, ::-1] if mirrored[place] else expected
        np.testing.assert_array_equal(got[place], expected)


def test_mixing_follows_from_the_step() -> None:
    recipe = Recipe(mixup=0.4)
    first, again, other = mixing(recipe, 1, 7, 64), mixing(recipe, 1, 7, 64), mixing(recipe, 1, 8, 64)
    assert first is not None
    assert again is not None
    assert other is not None
    assert first[0] == again[0] != other[0]
    np.testing.assert_array_equal(first[1], again[1])
    np.testing.assert_array_equal(np.sort(first[1]), np.arange(64))
    assert 0 <= first[0] <= 1
    assert mixing(Recipe(), 1, 7, 64) is None
    assert mixing(recipe, 1, 7, 1) is None


@pytest.mark.parametrize("other", [(2, 5, 0), (1, 6, 0), (1, 5, 1)])
def test_dropout_has_a_seed_for_each_part_of_a_step(other: tuple[int, int, int]) -> None:
    assert dropout_seed(1, 5, 0) == dropout_seed(1, 5, 0) != dropout_seed(*other)
