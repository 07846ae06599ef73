"""Resize rules against float64 NumPy and scikit-image, and photographs of shapes that are no photographs."""

from io import BytesIO

import numpy as np
import pytest
import skimage.transform
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from perwatt.errors import InputError, PhotographRefused
from perwatt.package.preprocessing import Preprocessing, Resize, preprocess


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def rule(resize: Resize, size: tuple[int, int], resize_to: int, interpolation: str = "bilinear") -> Preprocessing:
    return Preprocessing(size, resize_to, interpolation, "rgb", (0.0,) * 3, (1.0,) * 3, resize)  # type: ignore[arg-type]


def triangle(pixels: np.ndarray, length: int, begin: float, end: float) -> np.ndarray:
    """Resize [begin, end) of axis 0 to `length` in float64 with a triangle as wide as the reduction."""
    ratio = (end - begin) / length
    reach = max(ratio, 1.0)
    centres = begin + (np.arange(length) + 0.5) * ratio
    distance = np.abs(np.arange(len(pixels))[np.newaxis] + 0.5 - centres[:, np.newaxis]) / reach
    weights = np.clip(1 - distance, 0, None)
    weights /= weights.sum(axis=1, keepdims=True)
    return np.tensordot(weights, pixels, axes=(1, 0))


def resized(image: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float]) -> np.ndarray:
    """Return channels first what a box (left, top, right, bottom) becomes, in float64."""
    exact = np.asarray(image, dtype=np.float64)
    across = triangle(exact.transpose(1, 0, 2), size[1], box[0], box[2]).transpose(1, 0, 2)
    return triangle(across, size[0], box[1], box[3]).transpose(2, 0, 1)


# Pillow rounds to 8 bits after each of its two passes: half a step each, plus its fixed-point weights.
ROUNDING = 1.01


@pytest.mark.parametrize(("width", "height"), [(640, 427), (300, 500), (100, 100)])
def test_squash_resizes_both_sides_and_cuts_the_centre(width: int, height: int) -> None:
    image = photograph(width, height)
    got = preprocess(image, rule("squash", (224, 224), 256))
    exact = resized(image, (256, 256), (0, 0, width, height))[:, 16:240, 16:240]
    assert np.abs(got - exact).max() <= ROUNDING


def test_squash_without_a_margin_takes_the_whole_photograph() -> None:
    image = photograph(90, 50)
    got = preprocess(image, rule("squash", (24, 32), 24))
    assert np.abs(got - resized(image, (24, 32), (0, 0, 90, 50))).max() <= ROUNDING


@pytest.mark.parametrize(
    ("width", "height", "size"), [(640, 427, (224, 224)), (301, 500, (96, 64)), (50, 41, (64, 64))]
)
def test_crop_resizes_a_centred_box_of_the_input_shape(width: int, height: int, size: tuple[int, int]) -> None:
    image = photograph(width, height)
    resize_to = round(min(size) * 8 / 7)
    got = preprocess(image, rule("crop", size, resize_to))
    # By hand: the largest box of the input's shape, shrunk to size / resize_to about the centre.
    across = min(width, height * size[1] / size[0]) * min(size) / resize_to
    down = across * size[0] / size[1]
    box = ((width - across) / 2, (height - down) / 2, (width + across) / 2, (height + down) / 2)
    # Pillow takes the box in float32: what that moves is far below a pixel, times the steepest edge of noise.
    assert np.abs(got - resized(image, size, box)).max() <= ROUNDING + 255 * max(width, height) * 2**-23


@pytest.mark.parametrize(("interpolation", "order"), [("bilinear", 1), ("nearest", 0)])
def test_enlarging_is_what_scikit_image_does(interpolation: str, order: int) -> None:
    image = photograph(19, 23)
    got = preprocess(image, rule("squash", (92, 76), 76, interpolation))
    # 23 -> 92 and 19 -> 76 are four times, so that no sample lies half-way between two pixels.
    exact = skimage.transform.resize(
        np.asarray(image, dtype=np.float64), (92, 76), order=order, mode="edge", anti_aliasing=False
    )
    assert np.abs(got - exact.transpose(2, 0, 1)).max() <= (ROUNDING if order else 0)


def test_a_box_filter_averages_whole_blocks() -> None:
    image = photograph(48, 36)
    got = preprocess(image, rule("squash", (9, 12), 9, "box"))
    exact = np.asarray(image, dtype=np.float64).reshape(9, 4, 12, 4, 3).mean(axis=(1, 3))
    assert np.abs(got - exact.transpose(2, 0, 1)).max() <= ROUNDING


def test_rules_agree_where_they_mean_the_same() -> None:
    image = photograph(60, 60)
    whole = [preprocess(image, rule(each, (30, 30), 30)) for each in ("short-side", "squash", "crop")]
    np.testing.assert_array_equal(whole[0], whole[1])
    np.testing.assert_array_equal(whole[0], whole[2])


@settings(deadline=None, max_examples=80)
@given(
    st.sampled_from(("short-side", "squash", "crop")),
    st.integers(1, 90), st.integers(1, 90), st.integers(1, 40), st.integers(1, 40), st.integers(0, 9),
)  # fmt: skip
def test_every_photograph_fills_every_input(
    resize: Resize, width: int, height: int, high: int, wide: int, more: int
) -> None:
    # A white photograph must stay white up to the border: what a rule takes from outside would be black.
    white = Image.new("RGB", (width, height), (255, 255, 255))
    got = preprocess(white, rule(resize, (high, wide), min(high, wide) + more))
    assert got.shape == (3, high, wide)
    assert got.min() == 255


def test_a_sliver_is_not_blown_up_to_gigabytes() -> None:
    sliver = Image.new("RGB", (2, 60_000))
    with pytest.raises(PhotographRefused, match="which becomes 256x7680000") as caught:
        preprocess(sliver, rule("short-side", (224, 224), 256))
    assert caught.value.reason == "pixels"
    assert preprocess(sliver, rule("crop", (224, 224), 256)).shape == (3, 224, 224)


def test_encoded_decoded_and_on_disk_are_the_same(tmp_path: object) -> None:
    image = photograph(70, 50)
    stored = BytesIO()
    image.save(stored, "PNG")
    how = rule("short-side", (32, 32), 36)
    np.testing.assert_array_equal(preprocess(stored.getvalue(), how), preprocess(image, how))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"size": (10_000, 10_000), "resize_to": 10_000}, "at most 8192"),
        ({"mean": (float("nan"), 0.0, 0.0)}, "finite"),
        ({"scale": (0.0, 1.0, 1.0)}, "not 0"),
        ({"resize": "zoom"}, "resize"),
    ],
)
def test_preprocessing_that_makes_no_sense_is_refused(changes: dict[str, object], reason: str) -> None:
    whole: dict[str, object] = {
        "size": (8, 8), "resize_to": 9, "interpolation": "box", "channel_order": "rgb", "mean": (0.0,) * 3,
        "scale": (1.0,) * 3, "resize": "crop",
    }  # fmt: skip
    with pytest.raises(InputError, match=reason):
        Preprocessing(**{**whole, **changes})  # type: ignore[arg-type]
