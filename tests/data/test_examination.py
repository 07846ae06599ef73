"""What perwatt data finds: broken files, the same picture twice, sizes, balance; and what it remembers."""

import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from picture_folders import class_folders, encoded, pixels
from PIL import Image

from perwatt import cli
from perwatt.data import look as look_room
from perwatt.data import open_data
from perwatt.data.contact_sheet import contact_sheet
from perwatt.data.examination import examination, examine, require_whole, without_broken
from perwatt.data.look import look
from perwatt.errors import DataError, InputError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERWATT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = class_folders(tmp_path / "set" / "train", {"cat": 4, "dog": 3})
    class_folders(tmp_path / "set" / "test", {"cat": 2}, first=50)
    return root.parent


def test_a_good_set_has_nothing_to_mend(folder: Path) -> None:
    found = examine(open_data(folder))
    assert found.counts == {"train": (4, 3), "test": (2, 0)}
    assert found.sizes["train"] is not None
    assert found.sizes["train"].width == (12, 12, 12)
    assert not found.broken
    assert not found.duplicates
    assert found.faults == ("test: no picture of 'dog'",)


def test_broken_pictures_are_found_by_decoding_them(folder: Path) -> None:
    cut = folder / "train" / "cat" / "000.png"
    cut.write_bytes(cut.read_bytes()[:-40])
    (folder / "train" / "dog" / "001.png").write_bytes(b"not a picture")
    (folder / "test" / "cat" / "050.png").write_bytes(b"")
    data = open_data(folder)
    seen = look(data)
    found = examination(data, seen)
    assert {(split, data.splits[split].name(place)) for split, place in found.broken} == {
        ("train", str(cut)),
        ("train", str(folder / "train" / "dog" / "001.png")),
        ("test", str(folder / "test" / "cat" / "050.png")),
    }
    with pytest.raises(DataError, match=r"3 broken.*--skip-broken"):
        require_whole(data, seen)
    rest = without_broken(data, seen)
    assert {name: len(split) for name, split in rest.splits.items()} == {"train": 5, "test": 1}
    require_whole(rest, look(rest))


def test_the_same_pixels_are_found_in_any_format_and_split(folder: Path) -> None:
    same = Image.fromarray(pixels(0, 1))
    same.save(folder / "test" / "cat" / "other.bmp")  # across splits
    same.save(folder / "train" / "dog" / "other.webp", lossless=True)  # and under another class
    (folder / "train" / "dog" / "twice.png").write_bytes(encoded(1, 2))
    found = examine(open_data(folder))
    assert len(found.duplicates) == 2
    assert [len(each.members) for each in found.across] == [3]
    assert [each.classes for each in found.contradicting] == [frozenset({"cat", "dog"})]
    assert {"1 pictures stand in more than one split", "1 pictures stand in more than one class"} <= set(found.faults)


def test_a_shape_is_part_of_a_picture(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Image.new("RGB", (4, 6), (9, 9, 9)).save(tmp_path / "a" / "high.png")
    Image.new("RGB", (6, 4), (9, 9, 9)).save(tmp_path / "a" / "wide.png")
    assert not examine(open_data(tmp_path)).duplicates


def test_what_was_seen_is_not_decoded_again_until_it_changes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = look(open_data(folder))
    decoded: list[str] = []
    digest = look_room._digest_of
    monkeypatch.setattr(look_room, "_digest_of", lambda photo: decoded.append("x") or digest(photo))
    assert look(open_data(folder)) == before
    assert not decoded
    (folder / "train" / "cat" / "000.png").write_bytes(encoded(0, 77))
    after = look(open_data(folder))
    assert len(decoded) == 1
    assert [one == other for one, other in zip(before["train"], after["train"], strict=True)].count(False) == 1


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"version": 1}', b'{"version": 1, "pictures": []}', b"\xff"])
def test_a_damaged_memory_is_begun_anew(folder: Path, tmp_path: Path, content: bytes) -> None:
    before = look(open_data(folder))
    for note in (tmp_path / "cache" / "pictures").iterdir():
        note.write_bytes(content)
    assert look(open_data(folder)) == before


def test_progress_reaches_the_end(folder: Path) -> None:
    told: list[tuple[int, int]] = []
    look(open_data(folder), lambda done, total: told.append((done, total)))
    assert told[-1] == (9, 9)
    assert told == sorted(told)


def test_the_contact_sheet_shows_each_class_in_its_row(folder: Path) -> None:
    data = open_data(folder)
    sheet = np.asarray(Image.open(BytesIO(contact_sheet(data, "train", {}))))
    assert sheet.shape[0] > 2 * 84
    # Classes differ by the channel that is raised: the middle of each row's first picture shows which.
    rows = [sheet[34 + row * 88 + 42, 190 + 42].astype(int) for row in (0, 1)]
    assert rows[0].argmax() == 0
    assert rows[1].argmax() == 1
    broken = {("train", place): "broken" for place in range(len(data.split("train")))}
    empty = np.asarray(Image.open(BytesIO(contact_sheet(data, "train", broken))))
    assert np.all(empty[34:, 190 + 84 * 11 :][10] >= 238)


def test_the_command_shows_and_counts(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "test" / "dog").mkdir()
    (folder / "test" / "dog" / "050.png").write_bytes(encoded(1, 50))
    picture = tmp_path / "sheet.png"
    assert cli.run(["data", str(folder), "--picture", str(picture), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["splits"]["train"]["per_class"] == {"cat": 4, "dog": 3}
    assert found["faults"] == []
    assert Image.open(picture).format == "PNG"
    (folder / "test" / "dog" / "051.png").write_bytes(encoded(0, 0))
    assert cli.run(["data", str(folder)]) == 1
    out = capsys.readouterr().out
    assert "in 2 splits" in out
    assert "000.png" in out
    assert cli.run(["data", str(tmp_path / "none")]) == 2


def test_a_picture_that_was_mended_without_a_change_is_seen_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rights and missing decoders are no part of the file: what failed is tried anew."""
    decode, broken = look_room.Split.photo, [True]

    def refused(self: look_room.Split, index: int) -> Image.Image:
        if broken[0] and self.name(index).endswith("001.png"):
            raise InputError(f"{self.name(index)}: expected a readable photograph, got: Permission denied")
        return decode(self, index)

    monkeypatch.setattr(look_room.Split, "photo", refused)
    assert sum(each.fault is not None for each in look(open_data(folder))["train"]) == 2
    broken[0] = False
    assert all(each.fault is None for each in look(open_data(folder))["train"])
