"""Order and augmentation as pure functions of (seed, epoch, index): nothing to save, nothing to restore.

Whatever is drawn at random while training is drawn here, from a generator made for that one purpose and place. A run
that was killed and goes on therefore sees the same images in the same order, cut and mirrored the same way.
"""

import math
from dataclasses import dataclass

import numpy as np

from perwatt.package.preprocessing import Crop
from perwatt.train.recipe import Recipe

# What the generators are for; a purpose never shares its numbers with another.
_ORDER, _IMAGE, _MIXUP, _DROPOUT = 1, 2, 3, 4
_TRIES = 8
# Width over height of a random crop, as in training GoogLeNet (Szegedy et al., 2015, section 6).
_RATIOS = (3 / 4, 4 / 3)


@dataclass(frozen=True)
class Move:
    """What is done to one image that already has its size: moved by whole pixels, then mirrored or not."""

    down: int
    right: int
    mirrored: bool


def generator(*key: int) -> np.random.Generator:
    """Return the generator of a key: the same key, the same numbers, on every machine."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def order(seed: int, epoch: int, count: int) -> np.ndarray:
    """Return the order in which an epoch takes `count` images: int64 [count], each place once."""
    return generator(_ORDER, seed, epoch).permutation(count)


def crop_and_mirror(
    recipe: Recipe, seed: int, epoch: int, index: int, width: int, height: int
) -> tuple[Crop | None, bool]:
    """Return the part of a photograph that is taken, (left, top, right, bottom) in pixels, and whether it is mirrored.

    A crop has an area drawn evenly between `crop_area` and all, and a shape drawn evenly in log scale; when none of
    some tries fits, the whole is taken, cut to the nearest allowed shape. None for a recipe that does not crop.
    """
    random = generator(_IMAGE, seed, epoch, index)
    mirrored = recipe.flip and bool(random.random() < 0.5)
    if recipe.augment != "crop":
        return None, mirrored
    for _ in range(_TRIES):
        area = width * height * random.uniform(recipe.crop_area, 1.0)
        ratio = math.exp(random.uniform(math.log(_RATIOS[0]), math.log(_RATIOS[1])))
        wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < high <= height:
            left, top = int(random.integers(width - wide + 1)), int(random.integers(height - high + 1))
            return (left, top, left + wide, top + high), mirrored
    wide, high = min(width, max(1, round(height * _RATIOS[1]))), min(height, max(1, round(width / _RATIOS[0])))
    left, top = (width - wide) // 2, (height - high) // 2
    return (left, top, left + wide, top + high), mirrored


def moves(
    recipe: Recipe, seed: int, epoch: int, indices: np.ndarray, width: int, height: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what is done to images of one size: pixels down, pixels right (int64) and mirrored (bool), each [count].

    Each is drawn for (seed, epoch, index), by a mixing function over whole arrays: a generator object for each of
    60,000 small images would take longer than training on them.
    """
    drawn = _mixed(seed, epoch, indices)
    down, right = np.zeros(len(indices), np.int64), np.zeros(len(indices), np.int64)
    if recipe.augment == "shift":
        most_down, most_right = round(recipe.shift * height), round(recipe.shift * width)
        down = (drawn[0] % np.uint64(2 * most_down + 1)).astype(np.int64) - most_down
        right = (drawn[1] % np.uint64(2 * most_right + 1)).astype(np.int64) - most_right
    mirrored = (drawn[2] & np.uint64(1)).astype(bool) if recipe.flip else np.zeros(len(indices), bool)
    return down, right, mirrored


def moved(images: np.ndarray, down: np.ndarray, right: np.ndarray, mirrored: np.ndarray) -> np.ndarray:
    """Return images [count, height, width, channels] moved by whole pixels, the edge repeated, then mirrored."""
    height, width = images.shape[1:3]
    rows = np.clip(np.arange(height) - down[:, None], 0, height - 1)
    columns = np.clip(np.arange(width) - right[:, None], 0, width - 1)
    columns[mirrored] = columns[mirrored][:, ::-1]
    taken: np.ndarray = images[np.arange(len(images))[:, None, None], rows[:, :, None], columns[:, None, :]]
    return taken


def mixing(recipe: Recipe, seed: int, step: int, count: int) -> tuple[float, np.ndarray] | None:
    """Return mixup's share of the first image and the partner of each, int64 [count]; None for a recipe without."""
    if recipe.mixup == 0 or count < 2:
        return None
    random = generator(_MIXUP, seed, step)
    share = float(random.beta(recipe.mixup, recipe.mixup))
    return share, random.permutation(count)


def dropout_seed(seed: int, step: int, part: int) -> int:
    """Return the seed of the framework's own generator for one part of a step."""
    return int(generator(_DROPOUT, seed, step, part).integers(2**62))


def _mixed(seed: int, epoch: int, indices: np.ndarray) -> np.ndarray:
    """Return three columns of 64 random bits for each index: uint64 [3, count].

    SplitMix64's finaliser over a key for (seed, epoch) and the index (Steele et al., OOPSLA 2014, section 4).
    """
    key = generator(_IMAGE, seed, epoch).integers(2**64, dtype=np.uint64)
    places = np.asarray(indices, dtype=np.uint64)
    golden = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        state = key + golden * (np.uint64(3) * places[None, :] + np.arange(1, 4, dtype=np.uint64)[:, None])
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return state ^ (state >> np.uint64(31))
