"""Every form of labelled data is read as what it says, and every fault is told with its place."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from picture_folders import class_folders, encoded, pixels
from PIL import Image

from perwatt.data import DataSet, Stored, fingerprint, held_out, open_data
from perwatt.data.look import look, pixel_fingerprint
from perwatt.errors import DataError

COUNTS = {"cat": 3, "dog": 2, "owl": 4}


def idx(array: np.ndarray) -> bytes:
    """Return an IDX file, written by the definition and not by the code under test."""
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def marks(data: DataSet) -> dict[str, str]:
    return pixel_fingerprint(data, look(data))


def shown(data: DataSet, split: str = "train") -> list[tuple[str, bytes]]:
    """Return (class, pixels) of every picture of a split."""
    found = data.split(split)
    return [
        (data.classes[found.labels[place]], np.asarray(found.photo(place)).tobytes()) for place in range(len(found))
    ]


def expected(counts: dict[str, int], first: int = 0) -> list[tuple[str, bytes]]:
    return [
        (name, pixels(label, number).tobytes())
        for label, (name, count) in enumerate(counts.items())
        for number in range(first, first + count)
    ]


def test_a_folder_per_class(tmp_path: Path) -> None:
    class_folders(tmp_path, COUNTS)
    (tmp_path / "cat" / "notes.txt").write_text("no picture")
    (tmp_path / "cat" / ".hidden.png").write_bytes(encoded(0, 9))
    (tmp_path / ".git").mkdir()
    data = open_data(tmp_path)
    assert (data.form, data.classes, tuple(data.splits)) == ("folders", ("cat", "dog", "owl"), ("train",))
    assert shown(data) == expected(COUNTS)
    assert data.split("train").encoded(0) == encoded(0, 0)


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_folders_with_splits(tmp_path: Path, name: str) -> None:
    class_folders(tmp_path / "train", COUNTS)
    class_folders(tmp_path / name, {"cat": 1, "dog": 1, "owl": 0}, first=50)
    class_folders(tmp_path / "test", {"cat": 2}, first=60)
    data = open_data(tmp_path)
    assert tuple(data.splits) == ("train", "validation", "test")
    assert shown(data, "validation") == expected({"cat": 1, "dog": 1}, first=50)
    assert shown(data, "test") == expected({"cat": 2}, first=60)


def test_a_class_that_train_lacks_is_refused(tmp_path: Path) -> None:
    class_folders(tmp_path / "train", COUNTS)
    class_folders(tmp_path / "val", {"cat": 1, "fox": 1})
    with pytest.raises(DataError, match="fox"):
        open_data(tmp_path)


@pytest.mark.parametrize("loose", [0, 2])
def test_a_folder_without_classes_is_refused(tmp_path: Path, loose: int) -> None:
    for number in range(loose):
        (tmp_path / f"{number}.png").write_bytes(encoded(0, number))
    with pytest.raises(DataError, match="2 pictures without" if loose else "no folder of pictures"):
        open_data(tmp_path)


def test_class_folders_without_any_picture_are_refused(tmp_path: Path) -> None:
    class_folders(tmp_path, {"cat": 0, "dog": 0})
    with pytest.raises(DataError, match="found none"):
        open_data(tmp_path)


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("separator", [" ", "\t"])
def test_text_lists(tmp_path: Path, named: bool, separator: str) -> None:
    class_folders(tmp_path / "some pictures", COUNTS)
    lines = [
        f"some pictures/{name}/{number:03d}.png{separator}{name if named else label}"
        for label, (name, count) in enumerate(COUNTS.items())
        for number in range(count)
    ]
    (tmp_path / "train.txt").write_text("\n".join(lines) + "\n\n")
    (tmp_path / "val.txt").write_text(lines[0])
    (tmp_path / "labels.txt").write_text("\n".join(COUNTS))
    data = open_data(tmp_path)
    assert (data.form, data.classes) == ("list", tuple(COUNTS))
    assert shown(data) == expected(COUNTS)
    assert shown(data, "validation") == expected({"cat": 1})
    alone = open_data(tmp_path / "train.txt")
    assert shown(alone) == shown(data)


@pytest.mark.parametrize(
    ("line", "told"),
    [("cat/000.png 3", "line 2.*0 to 2"), ("cat/000.png fox", "line 2.*fox"), ("cat/000.png", "line 2.*path label")],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, told: str) -> None:
    class_folders(tmp_path, COUNTS)
    (tmp_path / "labels.txt").write_text("\n".join(COUNTS))
    (tmp_path / "train.txt").write_text(f"cat/000.png 0\n{line}\n")
    with pytest.raises(DataError, match=told):
        open_data(tmp_path)


def test_numbers_without_names_are_their_own_classes(tmp_path: Path) -> None:
    class_folders(tmp_path, COUNTS)
    (tmp_path / "train.txt").write_text("cat/000.png 0\nowl/000.png 2\n")
    data = open_data(tmp_path / "train.txt")
    assert data.classes == ("0", "1", "2")


def test_a_csv_of_paths(tmp_path: Path) -> None:
    class_folders(tmp_path, COUNTS)
    rows = [f'"{name}/{number:03d}.png",{name},x' for name, count in COUNTS.items() for number in range(count)]
    (tmp_path / "train.csv").write_text("filename,label,note\n" + "\n".join(rows) + "\n")
    data = open_data(tmp_path)
    assert (data.form, shown(data)) == ("csv", expected(COUNTS))


@pytest.mark.parametrize("header", [False, True])
def test_a_csv_of_pixels(tmp_path: Path, header: bool) -> None:
    images = np.random.default_rng(1).integers(0, 256, (7, 5, 5)).astype(np.uint8)
    labels = np.array([0, 2, 1, 2, 0, 1, 2])
    table = np.concatenate([labels[:, None], images.reshape(7, -1)], axis=1)
    head = "label," + ",".join(f"pixel{place}" for place in range(25)) + "\n" if header else ""
    (tmp_path / "train.csv").write_text(head + "\n".join(",".join(map(str, row)) for row in table) + "\n")
    data = open_data(tmp_path / "train.csv")
    pictures = data.split("train").pictures
    assert isinstance(pictures, Stored)
    np.testing.assert_array_equal(pictures.pixels, images)
    np.testing.assert_array_equal(data.split("train").labels, labels)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("label,a,b\n1,2,3\n", "square"),
        ("label,a\n1,300\n", "0 to 255"),
        ("label,a\n1,0.5\n", "whole pixels"),
        ("label,a\n1,x\n", "numbers"),
        ("label,a\n", "rows"),
        ("a,b\nx,y\n", "label"),
        ("path,label\na.png\n", "line 2"),
        ("", "label"),
    ],
)
def test_a_wrong_csv_is_told(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "train.csv").write_text(text)
    with pytest.raises(DataError, match=told):
        open_data(tmp_path / "train.csv")


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 6), st.integers(1, 6), st.sampled_from([1, 3])),
    packed=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_idx_files_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, shape: tuple[int, int, int, int], packed: bool, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("idx")
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, shape).astype(np.uint8)
    images = images[..., 0] if shape[3] == 1 else images
    labels = random.integers(0, 4, shape[0]).astype(np.uint8)
    for split in ("train", "t10k"):
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            content = gzip.compress(idx(array)) if packed else idx(array)
            (folder / f"{split}-{kind}-ubyte{'.gz' if packed else ''}").write_bytes(content)
    data = open_data(folder)
    assert (data.form, tuple(data.splits)) == ("idx", ("train", "test"))
    for split in data.splits.values():
        assert isinstance(split.pictures, Stored)
        np.testing.assert_array_equal(split.pictures.pixels, images)
        np.testing.assert_array_equal(split.labels, labels)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda content: content[:-1], "only"),
        (lambda content: content + b"x", "more"),
        (lambda content: b"\0\0\x0d" + content[3:], "bytes, it begins"),
        (lambda content: content[:7], "header"),
        (lambda content: content[:4] + b"\xff" * 12 + content[16:], "at most"),
        (lambda content: b"", "begins with"),
    ],
)
def test_a_damaged_idx_file_is_refused(tmp_path: Path, packed: bool, change: object, told: str) -> None:
    images, labels = np.zeros((3, 4, 4), np.uint8), np.zeros(3, np.uint8)
    content = change(idx(images))  # type: ignore[operator]
    suffix = ".gz" if packed else ""
    (tmp_path / f"train-images-idx3-ubyte{suffix}").write_bytes(gzip.compress(content) if packed else content)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(labels))
    with pytest.raises(DataError, match=told):
        open_data(tmp_path)


def test_a_cut_gzip_file_is_refused(tmp_path: Path) -> None:
    content = gzip.compress(idx(np.random.default_rng(1).integers(0, 256, (50, 8, 8)).astype(np.uint8)))
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(content[: len(content) // 2])
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(50, np.uint8)))
    with pytest.raises(DataError, match="fetch it again"):
        open_data(tmp_path)


def test_pictures_and_labels_of_different_number_are_refused(tmp_path: Path) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(np.zeros((3, 4, 4), np.uint8)))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(4, np.uint8)))
    with pytest.raises(DataError, match="3 pictures and 4 labels"):
        open_data(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="missing"):
        open_data(tmp_path)


@pytest.mark.slow
def test_the_digits_of_scikit_learn_are_those() -> None:
    load = pytest.importorskip("sklearn.datasets").load_digits()
    data = open_data("digits")
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 1433, "test": 364}
    ours = {
        (split.pictures.pixels[place].tobytes(), int(split.labels[place]))  # type: ignore[union-attr]
        for split in data.splits.values()
        for place in range(len(split))
    }
    theirs = {
        (np.rint(image * 255 / 16).astype(np.uint8).tobytes(), int(label))
        for image, label in zip(load.images, load.target, strict=True)
    }
    assert ours == theirs


@pytest.mark.parametrize(("name", "told"), [("digit", "did you mean digits"), ("nowhere", "check the path")])
def test_an_unknown_name_is_told(name: str, told: str) -> None:
    with pytest.raises(DataError, match=told):
        open_data(name)


def test_held_out_takes_of_each_class_and_never_twice() -> None:
    data = open_data("digits")
    first, again, other = held_out(data, 1), held_out(data, 1), held_out(data, 2)
    assert [marks(each) for each in (first, again)] == 2 * [marks(first)]
    assert marks(other) != marks(first)
    kept = [first.split(name) for name in ("train", "validation")]
    assert sum(map(len, kept)) == len(data.split("train"))
    both = [
        sorted(split.pictures.pixels[place].tobytes() for place in range(len(split)))  # type: ignore[union-attr]
        for split in kept
    ]
    whole = data.split("train").pictures.pixels  # type: ignore[union-attr]
    assert sorted(both[0] + both[1]) == sorted(image.tobytes() for image in whole)
    share = np.bincount(kept[1].labels) / np.bincount(data.split("train").labels)
    assert np.all(abs(share - 0.1) < 0.01)


def test_a_validation_split_that_is_there_stays(tmp_path: Path) -> None:
    class_folders(tmp_path / "train", COUNTS)
    class_folders(tmp_path / "val", {"cat": 1}, first=50)
    data = open_data(tmp_path)
    assert held_out(data, 1) is data


def test_a_class_of_one_cannot_be_split(tmp_path: Path) -> None:
    class_folders(tmp_path, {"cat": 3, "dog": 1})
    with pytest.raises(DataError, match="1 of 'dog'"):
        held_out(open_data(tmp_path), 1)


def test_the_fingerprint_sees_a_label_and_a_pixel_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERWATT_CACHE", str(tmp_path / "cache"))
    root = class_folders(tmp_path / "a", COUNTS)
    before = marks(open_data(root))
    assert before == marks(open_data(root.rename(tmp_path / "b")))
    picture = tmp_path / "b" / "cat" / "000.png"
    content = picture.read_bytes()
    changed = pixels(0, 0)
    changed[3, 4, 1] ^= 1
    Image.fromarray(changed).save(picture)
    assert marks(open_data(tmp_path / "b")) != before
    picture.write_bytes(content)
    assert marks(open_data(tmp_path / "b")) == before
    picture.rename(tmp_path / "b" / "dog" / "000x.png")
    assert marks(open_data(tmp_path / "b")) != before


def test_without_reading_places_sizes_and_labels_are_seen(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "a", COUNTS)
    before = fingerprint(open_data(root))
    assert before == fingerprint(open_data(root))
    (root / "cat" / "000.png").rename(root / "dog" / "000x.png")
    moved = fingerprint(open_data(root))
    (root / "dog" / "000x.png").write_bytes(b"1")
    assert len({before["train"], moved["train"], fingerprint(open_data(root))["train"]}) == 3
