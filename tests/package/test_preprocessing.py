"""Preprocessing against its own definition, worked out in float64 NumPy, and against files that are no photographs."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from perwatt.errors import InputError, PhotographRefused
from perwatt.package.preprocessing import Limits, Preprocessing, decode, preprocess

PLAIN = Preprocessing((224, 224), 256, "bilinear", "rgb", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def photograph(width: int = 61, height: int = 47, seed: int = 0) -> Image.Image:
    generator = np.random.default_rng(seed)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


def stored(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def sized(height: int, width: int, resize_to: int, order: str = "rgb") -> Preprocessing:
    channels = 1 if order == "grey" else 3
    return Preprocessing((height, width), resize_to, "bilinear", order, (0.0,) * channels, (1.0,) * channels)


def triangle_resize(pixels: np.ndarray, length: int) -> np.ndarray:
    """Resize axis 0 in float64 with a triangle that widens with the reduction: antialiased bilinear."""
    source = pixels.shape[0]
    ratio = source / length
    reach = max(ratio, 1.0)
    centres = (np.arange(length) + 0.5) * ratio
    distance = np.abs(np.arange(source)[np.newaxis, :] + 0.5 - centres[:, np.newaxis]) / reach
    weights = np.clip(1 - distance, 0, None)
    weights /= weights.sum(axis=1, keepdims=True)
    return np.tensordot(weights, pixels, axes=(1, 0))


def test_resizing_is_the_antialiased_filter_of_the_definition() -> None:
    image = photograph(640, 427)
    got = preprocess(image, sized(224, 224, 256))
    exact = np.asarray(image, dtype=np.float64)
    wide = int(256 * 640 / 427)
    exact = triangle_resize(exact.transpose(1, 0, 2), wide).transpose(1, 0, 2)
    exact = triangle_resize(exact, 256)
    left = round((wide - 224) / 2)
    exact = exact[16 : 16 + 224, left : left + 224].transpose(2, 0, 1)
    # Pillow rounds to 8 bits after each of its two passes: half a step each, plus its fixed-point weights.
    assert np.abs(got - exact).max() <= 1.01


def test_mean_scale_and_channel_order_are_applied_per_channel() -> None:
    image = photograph(8, 8)
    mean, scale = (104.0, 117.0, 123.0), (0.5, 0.25, 0.125)
    got = preprocess(image, Preprocessing((8, 8), 8, "bicubic", "bgr", mean, scale))
    expected = (np.asarray(image, dtype=np.float64)[:, :, ::-1] - mean) * scale
    assert got.dtype == np.float32
    assert got.flags.c_contiguous
    np.testing.assert_allclose(got, expected.transpose(2, 0, 1), rtol=2 * np.finfo(np.float32).eps, atol=1e-5)


def test_grey_input_has_one_channel_of_luma() -> None:
    image = photograph(9, 7)
    got = preprocess(image, sized(7, 7, 7, "grey"))
    luma = np.asarray(image, dtype=np.float64) @ [0.299, 0.587, 0.114]
    assert got.shape == (1, 7, 7)
    assert np.abs(got[0] - luma[:, 1:8]).max() <= 0.51


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40), st.integers(1, 40), st.integers(0, 9))
def test_every_photograph_fills_every_input(width: int, height: int, high: int, wide: int, more: int) -> None:
    # A white photograph must stay white up to the border: Pillow pads a crop that leaves the image with black.
    white = Image.new("RGB", (width, height), (255, 255, 255))
    got = preprocess(white, sized(high, wide, min(high, wide) + more))
    assert got.shape == (3, high, wide)
    assert got.min() == 255


def test_a_crop_is_resized_straight_to_the_input() -> None:
    image = photograph(50, 40)
    got = preprocess(image, sized(10, 12, 10), crop=(5, 7, 17, 17))
    np.testing.assert_array_equal(got, np.asarray(image)[7:17, 5:17].transpose(2, 0, 1))


@pytest.mark.parametrize("crop", [(-1, 0, 5, 5), (0, 0, 0, 5), (3, 0, 2, 5), (0, 0, 51, 5), (0, 0, 5, 41)])
def test_a_crop_outside_the_photograph_is_refused(crop: tuple[float, float, float, float]) -> None:
    with pytest.raises(InputError, match="crop"):
        preprocess(photograph(50, 40), PLAIN, crop=crop)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_the_photograph_upright(orientation: int) -> None:
    upright = np.asarray(photograph(6, 4))
    turn = {
        1: lambda p: p,
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.transpose(1, 0, 2),
        6: lambda p: p.transpose(1, 0, 2)[::-1],
        7: lambda p: p.transpose(1, 0, 2)[::-1, ::-1],
        8: lambda p: p.transpose(1, 0, 2)[:, ::-1],
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    lying = Image.fromarray(np.ascontiguousarray(turn[orientation](upright)))
    np.testing.assert_array_equal(np.asarray(decode(stored(lying, "PNG", exif=exif))), upright)


def test_of_sixteen_bits_the_high_byte_counts() -> None:
    deep = np.array([[0, 128, 129, 257, 32896, 65535]], dtype=np.uint16)
    got = np.asarray(decode(stored(Image.fromarray(deep), "PNG")))
    np.testing.assert_array_equal(got[0, :, 1], [0, 0, 0, 1, 128, 255])


def test_transparency_shows_mid_grey() -> None:
    pixels = np.zeros((1, 3, 4), dtype=np.uint8)
    pixels[0, :, 0] = 255
    pixels[0, :, 3] = (0, 255, 128)
    got = np.asarray(decode(stored(Image.fromarray(pixels, "RGBA"), "PNG")))
    assert tuple(got[0, 0]) == (128, 128, 128)
    assert tuple(got[0, 1]) == (255, 0, 0)
    assert np.abs(got[0, 2].astype(int) - (192, 64, 64)).max() <= 1


@pytest.mark.parametrize(
    ("mode", "form"), [("CMYK", "JPEG"), ("P", "PNG"), ("P", "GIF"), ("L", "JPEG"), ("1", "PNG"), ("LA", "PNG")]
)
def test_every_pixel_format_becomes_rgb(mode: str, form: str) -> None:
    image = photograph(20, 10).convert(mode)
    got = decode(stored(image, form))
    assert got.mode == "RGB"
    assert got.size == (20, 10)
    expected = np.asarray(image.convert("RGB"), dtype=int)
    tolerance = 40 if form == "JPEG" else 0  # what JPEG loses on noise
    assert np.abs(np.asarray(got, dtype=int) - expected).mean() <= tolerance


def test_a_palette_with_transparency_is_composited() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 0), 1)
    got = np.asarray(decode(stored(image, "PNG", transparency=1)))
    assert [tuple(pixel) for pixel in got[0]] == [(255, 0, 0), (128, 128, 128)]


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "no image format"),
        (b"this is no photograph", "no image format"),
        (stored(photograph(), "JPEG")[:200], "(?i)truncated|format"),
        (stored(photograph(), "PNG")[:300], "(?i)truncated|format"),
        (b"\x89PNG\r\n\x1a\n" + b"\x00" * 40, "format|broken"),
    ],
)
def test_what_is_no_photograph_is_refused_by_name(tmp_path: Path, content: bytes, word: str) -> None:
    path = tmp_path / "holiday.jpg"
    path.write_bytes(content)
    with pytest.raises(InputError, match=word) as caught:
        preprocess(path, PLAIN)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.binary(max_size=200))
@settings(deadline=None, max_examples=100)
def test_random_bytes_never_raise_anything_else(content: bytes) -> None:
    whole = stored(photograph(9, 9), "JPEG")
    for damaged in (content, whole[: len(whole) // 2] + content + whole[len(whole) // 2 :]):
        try:
            assert decode(damaged).mode == "RGB"
        except InputError as error:
            assert "photograph" in str(error)  # noqa: PT017


def test_a_missing_file_and_a_bomb_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        decode(tmp_path / "gone.jpg")
    with pytest.raises(PhotographRefused, match="at most 100 pixels, got 61x47") as refused:
        decode(stored(photograph(), "PNG"), limits=Limits(most_pixels=100))
    assert refused.value.reason == "pixels"


def test_preprocessing_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(InputError, match="resize_to"):
        Preprocessing((224, 224), 200, "bilinear", "rgb", (0.0,) * 3, (1.0,) * 3)
    with pytest.raises(InputError, match="'cubic'"):
        Preprocessing((224, 224), 256, "cubic", "rgb", (0.0,) * 3, (1.0,) * 3)
    with pytest.raises(InputError, match="1 means"):
        Preprocessing((28, 28), 28, "bilinear", "grey", (0.0,) * 3, (1.0,) * 3)
    with pytest.raises(InputError, match="'rbg'"):
        Preprocessing((28, 28), 28, "bilinear", "rbg", (0.0,) * 3, (1.0,) * 3)


@pytest.mark.parametrize("form", ["EPS", "PDF", "ICO"])
def test_formats_outside_the_closed_list_are_refused(form: str) -> None:
    with pytest.raises(InputError, match="no image format"):
        decode(stored(photograph(16, 16), form))


@pytest.mark.parametrize("form", ["JPEG", "MPO", "PNG", "WEBP", "TIFF", "GIF", "BMP", "PPM", "AVIF"])
def test_formats_of_the_closed_list_are_read(form: str) -> None:
    assert decode(stored(photograph(16, 17), form)).size == (16, 17)
