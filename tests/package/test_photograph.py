"""Every kind of photograph against pixels worked out by hand or written by hand, without Pillow's decoders."""

import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from perwatt.errors import InputError, PhotographRefused
from perwatt.package.photograph import FORMATS, Limits, decode, image_format, image_header

GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6
MID = 128


def noise(height: int, width: int, *channels: int, seed: int = 0, bits: int = 8) -> np.ndarray:
    kind = np.uint16 if bits == 16 else np.uint8
    return np.random.default_rng(seed).integers(0, 1 << bits, (height, width, *channels), dtype=kind)


def stored(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(rows: list[bytes], width: int, depth: int, colour: int, *chunks: bytes) -> bytes:
    """Write a PNG (ISO/IEC 15948) by hand: unfiltered rows of big-endian samples."""
    head = struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + b"".join(chunks) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def samples(pixels: np.ndarray) -> list[bytes]:
    return [row.astype(pixels.dtype.newbyteorder(">")).tobytes() for row in pixels]


def over_grey(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Composite 8-bit colours over mid grey in float64."""
    part = alpha.astype(np.float64)[..., np.newaxis] / 255
    return colour * part + MID * (1 - part)


def decoded(content: bytes) -> np.ndarray:
    image = decode(content)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("colour", [GREY, RGB])
def test_samples_of_8_and_16_bits(colour: int, bits: int) -> None:
    pixels = noise(5, 7, *([3] if colour == RGB else []), bits=bits)
    high = pixels if bits == 8 else pixels >> 8
    expected = high if colour == RGB else np.repeat(high[:, :, np.newaxis], 3, axis=2)
    np.testing.assert_array_equal(decoded(png(samples(pixels), 7, bits, colour)), expected)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("colour", [GREY_ALPHA, RGB_ALPHA])
def test_transparency_is_composited_over_mid_grey(colour: int, bits: int) -> None:
    channels = 4 if colour == RGB_ALPHA else 2
    pixels = noise(6, 5, channels, bits=bits)
    pixels[0, :, -1], pixels[1, :, -1] = 0, (1 << bits) - 1
    high = pixels if bits == 8 else pixels >> 8
    seen = np.broadcast_to(high[..., :-1], (6, 5, 3)).astype(np.float64)
    got = decoded(png(samples(pixels), 5, bits, colour))
    assert (got[0] == MID).all()
    np.testing.assert_array_equal(got[1], seen[1])
    # Pillow composites in integers, with one rounding to 8 bits.
    assert np.abs(got - over_grey(seen, high[..., -1])).max() <= 1


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_a_palette_is_looked_up(depth: int) -> None:
    entries = noise(1 << depth, 3, seed=depth)
    width = 8 * 3
    numbers = np.random.default_rng(1).integers(0, 1 << depth, (4, width))
    bits = (numbers[..., np.newaxis] >> np.arange(depth - 1, -1, -1)) & 1
    rows = [np.packbits(row.reshape(-1).astype(np.uint8)).tobytes() for row in bits]
    content = png(rows, width, depth, PALETTE, chunk(b"PLTE", entries.tobytes()))
    np.testing.assert_array_equal(decoded(content), entries[numbers])


def test_a_palette_with_transparent_entries_is_composited() -> None:
    entries, alphas = noise(4, 3, seed=3), np.array([0, 255, 100], dtype=np.uint8)  # the fourth is opaque by default
    numbers = np.array([[0, 1, 2, 3]], dtype=np.uint8)
    content = png(samples(numbers), 4, 8, PALETTE, chunk(b"PLTE", entries.tobytes()), chunk(b"tRNS", alphas.tobytes()))
    exact = over_grey(entries.astype(np.float64), np.array([0, 255, 100, 255]))
    assert np.abs(decoded(content)[0] - exact).max() <= 1


def test_one_colour_that_is_declared_transparent_shows_grey() -> None:
    pixels = np.array([[[10, 20, 30], [10, 20, 31]]], dtype=np.uint8)
    got = decoded(png(samples(pixels), 2, 8, RGB, chunk(b"tRNS", struct.pack(">HHH", 10, 20, 30))))
    np.testing.assert_array_equal(got, [[[MID] * 3, [10, 20, 31]]])
    grey = np.array([[7, 8]], dtype=np.uint8)
    got = decoded(png(samples(grey), 2, 8, GREY, chunk(b"tRNS", struct.pack(">H", 7))))
    np.testing.assert_array_equal(got, [[[MID] * 3, [8] * 3]])


@pytest.mark.parametrize("key", [(10, 20, 30), (2570, 5140, 7710), (65535, 0, 1)])
def test_a_transparent_colour_of_16_bits_is_taken_as_it_is(key: tuple[int, int, int]) -> None:
    pixels = np.array([[key, (1000, 2000, 60000)]], dtype=np.uint16)
    got = decoded(png(samples(pixels), 2, 16, RGB, chunk(b"tRNS", struct.pack(">HHH", *key))))
    np.testing.assert_array_equal(got, pixels >> 8)
    got = decoded(png(samples(pixels[..., 0]), 2, 16, GREY, chunk(b"tRNS", struct.pack(">H", key[0]))))
    np.testing.assert_array_equal(got[..., 1], pixels[..., 0] >> 8)


def test_one_bit_is_black_and_white() -> None:
    numbers = np.array([[1, 0, 0, 1, 1, 1, 0, 1, 0, 1]], dtype=np.uint8)
    got = decoded(png([np.packbits(row).tobytes() for row in numbers], 10, 1, GREY))
    np.testing.assert_array_equal(got[..., 0], 255 * numbers)
    np.testing.assert_array_equal(got[..., 0], got[..., 2])


def tiff(pixels: np.ndarray, photometric: int, order: str = "<") -> bytes:
    """Write an uncompressed TIFF (revision 6.0) by hand."""
    height, width, count = pixels.shape
    body = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    bits = struct.pack(f"{order}{count}H", *[8 * pixels.dtype.itemsize] * count)
    tags = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, count, None), (259, 3, 1, 1), (262, 3, 1, photometric),
        (273, 4, 1, 8), (277, 3, 1, count), (278, 4, 1, height), (279, 4, 1, len(body)),
    ]  # fmt: skip
    bits_at = 8 + len(body)
    directory_at = bits_at + len(bits) + len(bits) % 2
    directory = struct.pack(f"{order}H", len(tags))
    for tag, kind, number, value in tags:
        directory += struct.pack(f"{order}HHI", tag, kind, number)
        if value is None:
            directory += (bits if len(bits) <= 4 else struct.pack(f"{order}I", bits_at)).ljust(4, b"\0")
        else:
            directory += struct.pack(
                f"{order}HH" if kind == 3 else f"{order}I", *([value, 0] if kind == 3 else [value])
            )
    mark = b"II" if order == "<" else b"MM"
    head = mark + struct.pack(f"{order}HI", 42, directory_at)
    return head + body + bits.ljust(len(bits) + len(bits) % 2, b"\0") + directory + b"\0" * 4


@pytest.mark.parametrize("order", ["<", ">"])
def test_tiff_of_16_bits_in_either_byte_order(order: str) -> None:
    grey = noise(4, 6, 1, bits=16)
    np.testing.assert_array_equal(decoded(tiff(grey, 1, order)), np.repeat(grey >> 8, 3, axis=2))
    colour = noise(4, 6, 3, bits=16, seed=1)
    np.testing.assert_array_equal(decoded(tiff(colour, 2, order)), colour >> 8)


def inked(pixels: np.ndarray) -> np.ndarray:
    """Return what shows of cyan, magenta, yellow and black, in float64: each ink takes its share of the light."""
    exact = pixels.astype(np.float64)
    return (255 - exact[..., :3]) * (255 - exact[..., 3:]) / 255


def test_cmyk_is_ink_on_white() -> None:
    pixels = noise(6, 5, 4)
    assert np.abs(decoded(tiff(pixels, 5)) - inked(pixels)).max() <= 0.51


def test_cmyk_of_a_jpeg_is_not_negative() -> None:
    """Adobe's programs store CMYK inverted in JPEG; a decoder that ignores the marker shows a negative."""
    flat = np.zeros((16, 16, 4), dtype=np.uint8)
    flat[...] = (200, 30, 90, 20)
    content = stored(Image.frombytes("CMYK", (16, 16), flat.tobytes()), "JPEG", quality=100)
    assert b"Adobe" in content
    assert np.abs(decoded(content).astype(int) - inked(flat)).max() <= 3  # what JPEG loses on a flat picture


def test_an_icc_profile_changes_nothing() -> None:
    image = Image.fromarray(noise(5, 4, 3))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    with_profile = stored(image, "PNG", icc_profile=profile)
    assert b"iCCP" in with_profile
    np.testing.assert_array_equal(decoded(with_profile), np.asarray(image))


def test_lab_is_converted_to_rgb() -> None:
    lab = np.zeros((1, 2, 3), dtype=np.uint8)
    lab[0, :, 0] = (0, 255)  # black and white, neutral
    got = decoded(tiff(lab, 8))
    assert got[0, 0].max() <= 2
    assert got[0, 1].min() >= 253


@pytest.mark.parametrize("greatest", [255, 1000, 65535])
def test_a_portable_pixmap_is_scaled_by_its_greatest_value(greatest: int) -> None:
    pixels = np.random.default_rng(0).integers(0, greatest + 1, (3, 4, 3))
    kind = ">u2" if greatest > 255 else "u1"
    content = f"P6 4 3 {greatest}\n".encode() + pixels.astype(kind).tobytes()
    assert np.abs(decoded(content) - pixels * 255 / greatest).max() <= 0.5


def test_a_small_jpeg_cannot_keep_the_decoder_busy_with_scans() -> None:
    content = stored(Image.new("RGB", (64, 64)), "JPEG", progressive=True)
    last = content.rfind(b"\xff\xda")
    assert decoded(content).shape == (64, 64, 3)
    with pytest.raises(PhotographRefused, match="scans") as refused:
        decoded(content[:-2] + content[last:-2] * 100 + content[-2:])
    assert refused.value.reason == "scans"


def test_the_first_of_several_frames_is_taken() -> None:
    frames = [Image.fromarray(noise(6, 5, 3, seed=seed)) for seed in range(3)]
    for form in ("PNG", "TIFF"):
        content = stored(frames[0], form, save_all=True, append_images=frames[1:])
        assert image_header(content).frames == 3
        np.testing.assert_array_equal(decoded(content), np.asarray(frames[0]))
    for form in ("GIF", "WEBP"):
        content = stored(frames[0], form, save_all=True, append_images=frames[1:], lossless=True)
        assert image_header(content).frames == 3


def test_the_second_picture_of_a_phone_is_no_frame() -> None:
    frames = [Image.fromarray(noise(16, 16, 3, seed=seed)) for seed in range(2)]
    content = stored(frames[0], "MPO", save_all=True, append_images=frames[1:])
    header = image_header(content, Limits(formats=("JPEG",), most_frames=1))
    assert (header.format, header.frames) == ("JPEG", 1)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation_counts_in_every_format_that_has_it(form: str, orientation: int) -> None:
    upright = np.zeros((24, 16, 3), dtype=np.uint8)
    upright[:8, :8] = (255, 0, 0)
    upright[:8, 8:] = (0, 255, 0)
    upright[16:, :8] = (0, 0, 255)
    # Where the row 0 and the column 0 of the stored picture lie in the upright one (EXIF 2.32, table 6).
    undo = {
        1: lambda p: p, 2: lambda p: p[:, ::-1], 3: lambda p: p[::-1, ::-1], 4: lambda p: p[::-1],
        5: lambda p: p.transpose(1, 0, 2), 6: lambda p: p.transpose(1, 0, 2)[::-1],
        7: lambda p: p.transpose(1, 0, 2)[::-1, ::-1], 8: lambda p: p.transpose(1, 0, 2)[:, ::-1],
    }  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    lying = Image.fromarray(np.ascontiguousarray(undo[orientation](upright)))
    options = {"lossless": True} if form == "WEBP" else {"quality": 100, "subsampling": 0} if form == "JPEG" else {}
    got = decoded(stored(lying, form, exif=exif, **options))
    assert np.abs(got.astype(int) - upright).max() <= (3 if form == "JPEG" else 0)


def test_orientation_that_is_nonsense_is_ignored() -> None:
    image = Image.fromarray(noise(4, 6, 3))
    exif = Image.Exif()
    exif[0x0112] = 77
    np.testing.assert_array_equal(decoded(stored(image, "PNG", exif=exif)), np.asarray(image))


def test_floats_and_32_bits_have_no_known_range() -> None:
    deep = Image.fromarray(np.full((2, 2), 70_000, dtype=np.int32))
    for image in (Image.fromarray(np.ones((2, 2), dtype=np.float32)), deep):
        with pytest.raises(PhotographRefused, match="8 or 16 bits") as caught:
            decode(stored(image, "TIFF"))
        assert caught.value.reason == "format"


# Limits, from the header alone.


@pytest.mark.parametrize("form", FORMATS)
def test_a_header_says_format_and_size(form: str) -> None:
    header = image_header(stored(Image.fromarray(noise(17, 16, 3)), form))
    assert (header.format, header.width, header.height, header.frames) == (form, 16, 17, 1)


@pytest.mark.parametrize(("form", "options"), [*((form, {}) for form in FORMATS), ("WEBP", {"lossless": True})])
def test_pixels_beyond_the_limit_are_refused_before_they_are_decoded(
    form: str, options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = stored(Image.fromarray(noise(40, 30, 3)), form, **options)
    image_header(content, Limits(most_pixels=1200))
    monkeypatch.setattr(Image.Image, "load", None)
    with pytest.raises(PhotographRefused, match="at most 1,199 pixels, got 30x40") as caught:
        image_header(content, Limits(most_pixels=1199))
    assert caught.value.reason == "pixels"


@pytest.mark.parametrize("lossless", [False, True])
@pytest.mark.parametrize("exif", [b"", b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"])
def test_a_webp_bomb_is_refused_before_its_decoder_starts(
    lossless: bool, exif: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = stored(Image.fromarray(noise(40, 30, 3)), "WEBP", lossless=lossless, exif=exif)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the decoder would allocate its canvas now")

    monkeypatch.setattr(Image, "open", never)
    with pytest.raises(PhotographRefused, match="30x40"):
        image_header(content, Limits(most_pixels=1000))


def test_a_small_file_of_gigabytes_of_pixels_is_refused() -> None:
    bomb = png([b""], 60_000, 8, GREY)[:33].replace(struct.pack(">II", 60_000, 1), struct.pack(">II", 60_000, 60_000))
    bomb = bomb[:29] + struct.pack(">I", zlib.crc32(bomb[12:29])) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    with pytest.raises(PhotographRefused, match="pixels") as caught:
        image_header(bomb)
    assert caught.value.reason == "pixels"


@pytest.mark.parametrize(
    ("content", "limits", "reason"),
    [
        (stored(Image.fromarray(noise(9, 9, 3)), "PNG"), Limits(formats=("JPEG",)), "format"),
        (stored(Image.fromarray(noise(9, 9, 3)), "ICO"), Limits(), "format"),
        (stored(Image.fromarray(noise(9, 9, 3)), "EPS"), Limits(), "format"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", Limits(), "format"),
        (b"", Limits(), "format"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 60, Limits(), "damaged"),
        (stored(Image.fromarray(noise(9, 9, 3)), "PNG"), Limits(most_bytes=20), "bytes"),
        (
            stored(Image.fromarray(noise(9, 9, 3)), "GIF", save_all=True, append_images=[Image.new("RGB", (9, 9))]),
            Limits(most_frames=1),
            "frames",
        ),
    ],
)
def test_a_refusal_has_its_reason(content: bytes, limits: Limits, reason: str) -> None:
    with pytest.raises(PhotographRefused) as caught:
        image_header(content, limits, "holiday.jpg")
    assert caught.value.reason == reason
    assert str(caught.value).startswith("holiday.jpg: expected ")
    assert "\n" not in str(caught.value)


def test_damage_behind_the_header_is_found_while_decoding() -> None:
    content = stored(Image.fromarray(noise(64, 64, 3)), "JPEG")
    image_header(content[:700])
    with pytest.raises(PhotographRefused) as caught:
        decode(content[:700])
    assert caught.value.reason == "damaged"


def test_a_path_that_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        decode(tmp_path / "gone.jpg")
    with pytest.raises(InputError, match="directory"):
        decode(tmp_path)


SEEDS = [stored(Image.fromarray(noise(20, 20, 3)), form) for form in FORMATS]


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of damaged tags
@settings(deadline=None, max_examples=300)
@given(st.data())
def test_changed_bytes_never_raise_anything_else(data: st.DataObject) -> None:
    content = bytearray(data.draw(st.sampled_from(SEEDS)))
    for _ in range(data.draw(st.integers(1, 4))):
        # Headers are where sizes and tables are.
        place = data.draw(st.integers(0, min(len(content), 120) - 1) | st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    changed = bytes(content[: data.draw(st.just(len(content)) | st.integers(0, len(content)))])
    limits = Limits(most_pixels=1_000_000)
    reasons = set()
    try:
        header = image_header(changed, limits)
        assert header.width * header.height <= 1_000_000
        assert decode(changed, limits=limits).mode == "RGB"
    except PhotographRefused as error:
        reasons.add(error.reason)
    assert reasons <= {"format", "damaged", "pixels"}


def test_a_format_is_told_by_its_first_bytes() -> None:
    endings = {form: image_format(content) for form, content in zip(FORMATS, SEEDS, strict=True)}
    assert endings == {form: form.lower() for form in FORMATS}
    assert image_format(b"#!/bin/sh") == "bin"
