"""Inputs are many, distinct, seeded, and come from the photographs that the Record names."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from perwatt.errors import InputError
from perwatt.lab.photographs import DEFAULT_NAMES, find_photographs, input_batches
from perwatt.package.preprocessing import Preprocessing

SMALL = Preprocessing((37, 41), 48, "bilinear", "rgb", (0.0,) * 3, (1.0,) * 3)
GREY = Preprocessing((28, 28), 28, "bilinear", "grey", (0.0,), (1 / 256,))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = np.random.default_rng(1)
    for name in ("a.png", "b.jpg", "sub/c.webp"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (90, 120, 3), dtype=np.uint8)).save(path)
    (tmp_path / "notes.txt").write_text("not a photograph, and not asked")
    return tmp_path


def test_the_default_photographs_are_those_scikit_image_carries() -> None:
    found = find_photographs(None)
    assert tuple(path.name for path in found) == DEFAULT_NAMES


def test_batches_are_distinct_and_repeatable(folder: Path) -> None:
    photos = find_photographs(folder)
    batches, used = input_batches(SMALL, photos, batch=5, count=4, seed=3)
    assert batches.shape == (4, 5, 3, 37, 41)
    assert batches.dtype == np.float32
    assert batches.flags.c_contiguous
    images = batches.reshape(20, -1)
    assert len({image.tobytes() for image in images}) == 20
    assert images.std(axis=1).min() > 1  # no blank image
    again, _ = input_batches(SMALL, photos, batch=5, count=4, seed=3)
    np.testing.assert_array_equal(batches, again)
    other, _ = input_batches(SMALL, photos, batch=5, count=4, seed=4)
    assert (other != batches).any()
    assert {photo.name: photo.sha256 for photo in used} == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in photos
    }


def test_every_photograph_is_used_and_no_more_are_named_than_used(folder: Path) -> None:
    photos = find_photographs(folder)
    _, used = input_batches(SMALL, photos, batch=2, count=1, seed=0)
    assert len(used) == 2
    _, used = input_batches(SMALL, photos, batch=1, count=3, seed=0)
    assert [photo.name for photo in used] == ["a.png", "b.jpg", "c.webp"]


def test_a_network_with_one_channel_gets_grey_inputs(folder: Path) -> None:
    batches, _ = input_batches(GREY, find_photographs(folder), batch=3, count=2, seed=0)
    assert batches.shape == (2, 3, 1, 28, 28)
    assert 0 <= batches.min() < batches.max() <= 255 / 256


def test_a_folder_that_cannot_serve_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="gone"):
        find_photographs(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="found none"):
        find_photographs(tmp_path / "empty")
    (folder / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"broken\.jpg"):
        input_batches(SMALL, find_photographs(folder), batch=4, count=1, seed=0)


def test_a_uniform_photograph_is_refused_rather_than_repeated(tmp_path: Path) -> None:
    Image.new("RGB", (80, 80), (9, 9, 9)).save(tmp_path / "wall.png")
    with pytest.raises(InputError, match=r"wall\.png.*different crops"):
        input_batches(SMALL, find_photographs(tmp_path), batch=2, count=1, seed=0)


@pytest.mark.parametrize(("batch", "count"), [(0, 1), (1, 0), (-1, 3)])
def test_an_empty_batch_is_refused(folder: Path, batch: int, count: int) -> None:
    with pytest.raises(InputError, match="at least 1"):
        input_batches(SMALL, find_photographs(folder), batch=batch, count=count, seed=0)
