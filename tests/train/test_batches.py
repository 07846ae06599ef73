"""Batches hold what preprocessing makes of the pictures, in the order of the epoch, from wherever one begins."""

import threading
from pathlib import Path

import numpy as np
import pytest
from picture_folders import class_folders
from PIL import Image

from perwatt.data import Split, Stored, open_data
from perwatt.errors import InputError
from perwatt.package.preprocessing import Photo, Preprocessing, Shrink, preprocess
from perwatt.train import batches as batches_room
from perwatt.train.augment import crop_and_mirror, moved, moves, order
from perwatt.train.batches import PLAIN, Batches
from perwatt.train.recipe import Recipe

RGB = Preprocessing((9, 11), 10, "bilinear", "bgr", (104.0, 117.0, 123.0), (0.5, 1 / 3, 0.7))
GREY = Preprocessing((10, 10), 10, "bilinear", "grey", (33.3,), (1 / 256,))
SHIFT = Recipe(augment="shift", shift=0.2, flip=True)
CROP = Recipe(augment="crop", crop_area=0.3)


@pytest.fixture
def files(tmp_path: Path) -> Split:
    return open_data(class_folders(tmp_path, {"a": 7, "b": 6})).split("train")


@pytest.fixture
def stored() -> Split:
    random = np.random.default_rng(5)
    return Split(Stored(random.integers(0, 256, (13, 10, 10)).astype(np.uint8), "x"), random.integers(0, 2, 13))


def expected(split: Split, how: Preprocessing, recipe: Recipe, seed: int, epoch: int, index: int) -> np.ndarray:
    """Return one image by the definition: preprocess, then move and mirror; a crop goes into preprocess."""
    photo = split.photo(index)
    height, width = how.size
    if recipe.augment == "crop":
        crop, mirrored = crop_and_mirror(recipe, seed, epoch, index, photo.width, photo.height)
        made = preprocess(photo, how, crop)
        return made[:, :, ::-1] if mirrored else made
    made = preprocess(photo, how).transpose(1, 2, 0)[np.newaxis]
    return moved(made, *moves(recipe, seed, epoch, np.array([index]), width, height))[0].transpose(2, 0, 1)


@pytest.mark.parametrize("recipe", [PLAIN, SHIFT, CROP], ids=["plain", "shift", "crop"])
@pytest.mark.parametrize("kind", ["files", "stored"])
@pytest.mark.parametrize("room", [0, 1 << 30], ids=["decoded", "in memory"])
def test_an_epoch_is_the_definition_to_the_last_bit(
    kind: str, recipe: Recipe, room: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches_room, "RESIDENT_BYTES", room)
    split: Split = request.getfixturevalue(kind)
    how = RGB if kind == "files" else GREY
    with Batches(split, how, recipe, seed=3) as batches:
        assert batches.fits == (room > 0 and recipe.augment != "crop")
        for epoch in (0, 1):
            taken = order(3, epoch, 13)
            got = list(batches.epoch(epoch, 4))
            assert len(got) == batches.steps(4) == 3
            for number, batch in enumerate(got):
                its = taken[4 * number : 4 * number + 4]
                np.testing.assert_array_equal(batch.labels, split.labels[its])
                for place, index in enumerate(its):
                    one = expected(split, how, recipe, 3, epoch, int(index))
                    np.testing.assert_array_equal(batch.images[place], one)


@pytest.mark.parametrize("recipe", [SHIFT, CROP], ids=["shift", "crop"])
def test_an_epoch_can_begin_in_its_middle(files: Split, recipe: Recipe) -> None:
    with Batches(files, RGB, recipe, seed=1) as batches:
        whole = list(batches.epoch(2, 3))
        for first in range(5):
            rest = list(batches.epoch(2, 3, first))
            assert len(rest) == max(0, 4 - first)
            for one, other in zip(whole[first:], rest, strict=True):
                np.testing.assert_array_equal(one.images, other.images)


def test_in_order_every_picture_comes_once(files: Split) -> None:
    with Batches(files, RGB) as batches:
        got = list(batches.in_order(5))
    assert [len(batch.labels) for batch in got] == [5, 5, 3]
    np.testing.assert_array_equal(np.concatenate([batch.labels for batch in got]), files.labels)
    np.testing.assert_array_equal(got[2].images[2], preprocess(files.photo(12), RGB))


def test_fewer_pictures_than_a_batch_still_make_one(files: Split) -> None:
    with Batches(files, RGB) as batches:
        assert batches.steps(64) == 1
        assert [len(batch.labels) for batch in batches.epoch(0, 64)] == [13]


def test_grey_pictures_of_the_right_size_are_taken_as_they_are(stored: Split) -> None:
    with Batches(stored, GREY) as batches:
        batches.prepare()
        assert isinstance(stored.pictures, Stored)
        assert batches.pixels is not None
        assert np.shares_memory(batches.pixels, stored.pictures.pixels)


def test_a_picture_that_breaks_later_is_told(files: Split, tmp_path: Path) -> None:
    (tmp_path / "b" / "003.png").write_bytes(b"broken")
    with Batches(files, RGB, CROP) as batches, pytest.raises(InputError, match="003"):
        list(batches.epoch(0, 13))


def test_threads_end_and_nothing_waits_for_a_reader_that_left(files: Split) -> None:
    before = threading.active_count()
    with Batches(files, RGB, CROP) as batches:
        coming = batches.epoch(0, 2)
        next(coming)
        coming.close()
    assert threading.active_count() == before


def test_what_is_ahead_is_bounded(files: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches_room, "AHEAD_BYTES", 3 * 2 * 4 * 3 * 9 * 11)
    begun: list[int] = []
    start = Batches._start

    def counted(self: Batches, group: np.ndarray, epoch: int) -> object:
        begun.append(len(group))
        return start(self, group, epoch)

    monkeypatch.setattr(Batches, "_start", counted)
    with Batches(files, RGB, CROP) as batches:
        coming = batches.epoch(0, 2)
        next(coming)
        assert len(begun) == 3
        next(coming)
        assert len(begun) == 4


@pytest.mark.parametrize(
    ("size", "turned", "smallest"),
    [
        ((803, 601), 1, (101, 76)),
        ((808, 600), 6, (75, 101)),
        ((808, 600), 3, (101, 75)),
        ((803, 601), 6, (601, 803)),  # parts of pixels at the end would come to stand at the beginning
        ((804, 600), 3, (201, 150)),
    ],
)
def test_large_jpegs_are_decoded_smaller_where_a_part_is_cut_out(
    size: tuple[int, int], turned: int, smallest: tuple[int, int], tmp_path: Path
) -> None:
    """What comes of it is what decoding whole and resizing gives, but for what a JPEG's cosine transform leaves out."""
    smooth = np.random.default_rng(4).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = turned
    (tmp_path / "a").mkdir()
    path = tmp_path / "a" / "large.jpg"
    Image.fromarray(smooth).resize(size, Image.Resampling.BICUBIC).save(path, quality=95, exif=exif)
    split = open_data(tmp_path).split("train")
    seen: list[tuple[int, int]] = []
    with Batches(split, RGB, CROP, seed=3) as batches:
        photo = Split.photo

        def noted(self: Split, index: int, shrink: Shrink | None = None) -> Photo:
            seen.append((found := photo(self, index, shrink)).size)
            return found

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Split, "photo", noted)
            for epoch in range(12):
                (batch,) = batches.epoch(epoch, 1)
                exact = expected(split, RGB, CROP, 3, epoch, 0)
                spread = np.abs(batch.images[0] - exact) / np.abs(np.asarray(RGB.scale)[:, None, None])
                assert spread.mean() < 1.5  # of 255
                assert spread.max() < 12
    assert min(seen) == smallest
    with Batches(split, RGB) as batches:  # whatever is not cut at random is exact
        np.testing.assert_array_equal(next(batches.in_order(1)).images[0], preprocess(path, RGB))
