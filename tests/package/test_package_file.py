"""Package files: what is written is read back, the same bytes each time; what is hostile is refused, and why."""

import hashlib
import io
import json
import os
import stat
import struct
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_package import HOW, LABELS, made_up, photograph, small_package

from perwatt.errors import InputError, InvalidPackage, OutputError
from perwatt.package import Golden, Package, container, package_file, read, to_bytes, write

MANIFEST = "package.json"


@cache
def whole() -> bytes:
    return to_bytes(small_package())


def contents(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        return {name: file.read(name) for name in file.namelist()}


def with_manifest(change: Callable[[dict[str, Any]], None], fix: bool = True) -> bytes:
    """Return the package with its description changed, otherwise as perwatt writes it."""
    inside = contents(whole())
    manifest = json.loads(inside[MANIFEST])
    change(manifest)
    return container.pack({**inside, MANIFEST: package_file._text(manifest)})


def with_contents(**changes: bytes) -> bytes:
    """Return the package with files replaced and the description told of it, so that hashes match."""
    inside = {**contents(whole()), **{name.replace("__", "/"): content for name, content in changes.items()}}
    manifest = json.loads(inside.pop(MANIFEST))
    manifest["files"] = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in inside.items()
    }
    return container.pack({**inside, MANIFEST: package_file._text(manifest)})


def refused(data: bytes, reason: str) -> None:
    with pytest.raises(InvalidPackage, match=reason) as caught:
        read(data)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def zipped(entries: list[tuple[zipfile.ZipInfo, bytes]]) -> bytes:
    """Return a zip file as another program writes it."""
    stored = io.BytesIO()
    with zipfile.ZipFile(stored, "w") as file:
        for name, content in entries:
            file.writestr(name, content)
    return stored.getvalue()


def plain(name: str) -> zipfile.ZipInfo:
    """Return an entry's facts as perwatt writes them."""
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = container.REGULAR_FILE
    return info


# What is written.


def test_a_package_is_read_back_as_it_was(tmp_path: Path) -> None:
    package = small_package()
    path = tmp_path / "deep" / "small.perwatt"
    write(package, path)
    again = read(path)
    assert again == package
    assert again.golden is not None
    assert again.golden.outputs.dtype == np.float32
    assert again.labels == LABELS
    assert again.evidence["training"] == {"top1": 0.93, "recipe": {"epochs": 3}, "note": None}
    assert [each.name for each in path.parent.iterdir()] == ["small.perwatt"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_equal_packages_are_equal_bytes() -> None:
    assert to_bytes(small_package()) == whole()
    assert to_bytes(read(whole())) == whole()
    assert to_bytes(replace(small_package(), version="2")) != whole()


def test_an_independent_reader_finds_what_the_format_says() -> None:
    package = small_package()
    with zipfile.ZipFile(io.BytesIO(whole())) as file:
        assert file.testzip() is None
        assert file.namelist() == sorted(file.namelist())
        assert {info.compress_type for info in file.infolist()} == {zipfile.ZIP_STORED}
        assert {info.date_time for info in file.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert {info.external_attr >> 16 for info in file.infolist()} == {0o100644}
        assert file.read("model.onnx") == package.model
        assert package.golden is not None
        np.testing.assert_array_equal(
            np.load(io.BytesIO(file.read("golden/outputs.npy")), allow_pickle=False), package.golden.outputs
        )
        assert set(file.namelist()) == {
            "golden/000.png", "golden/001.jpeg", "golden/002.png", "golden/outputs.npy", "model.onnx", "package.json",
        }  # fmt: skip
        manifest = json.loads(file.read("package.json"))
        for name, told in manifest["files"].items():
            assert hashlib.sha256(file.read(name)).hexdigest() == told["sha256"]
    assert zipped([(plain(name), content) for name, content in contents(whole()).items()]) == whole()


def test_a_package_without_golden_examples_and_labels() -> None:
    package = Package("bare", "1.0-rc.1", b"x", HOW)
    assert read(to_bytes(package)) == package


TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp", "Cf")), min_size=1, max_size=20)
TEXTS = TEXT.filter(str.strip)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_package_survives_the_way_to_the_disk(data: st.DataObject) -> None:
    values = data.draw(st.integers(1, 5))
    images = data.draw(st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=4))
    numbers = st.floats(np.float32(0.01).item(), 2.0**90, width=32)
    outputs = np.array([[data.draw(numbers) for _ in range(values)] for _ in images], dtype=np.float32)
    golden = Golden(tuple(images), outputs, {"fp32": data.draw(st.floats(1e-9, 0.99)), "bf16": 0.5})
    package = Package(
        name=data.draw(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)),
        version="1",
        model=data.draw(st.binary(min_size=1, max_size=60)),
        preprocessing=HOW,
        labels=data.draw(st.none() | st.tuples(*[TEXTS] * values)),
        licence=data.draw(st.none() | TEXTS),
        golden=data.draw(st.none() | st.just(golden)),
        evidence=data.draw(st.dictionaries(TEXT, st.dictionaries(TEXT, PLAIN, max_size=3), max_size=2)),
    )
    stored = to_bytes(package)
    assert read(stored) == package
    assert to_bytes(read(stored)) == stored


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "small.perwatt"
    write(small_package(), path)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="free some space"):
        write(replace(small_package(), version="2"), path)
    assert path.read_bytes() == whole()
    assert list(tmp_path.iterdir()) == [path]


# What is hostile, in the container.


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("/etc/passwd", "absolute"),
        ("C:/windows", "absolute"),
        ("\\\\server\\share", "absolute"),
        ("../outside", "leaves it"),
        ("golden/../../outside", "leaves it"),
        ("golden//000.png", "name of a file"),
        ("golden/./x", "name of a file"),
        ("golden/", "name of a file"),
        ("a\\b", "backslash"),
        ("a\nb", "printable"),
        ("x" * 200, "name of a file"),
    ],
)
def test_paths_that_leave_the_package_are_refused(name: str, reason: str) -> None:
    refused(zipped([(plain("model.onnx"), b"x"), (plain(name), b"x")]), reason)


def test_a_name_that_is_no_ascii_is_refused() -> None:
    refused(zipped([(plain("modèle.onnx"), b"x")]), "ASCII")


def test_a_symbolic_link_is_refused() -> None:
    link = plain("model.onnx")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    refused(zipped([(link, b"/etc/passwd")]), "symbolic link")


def test_a_device_is_refused() -> None:
    device = plain("model.onnx")
    device.external_attr = (stat.S_IFCHR | 0o666) << 16
    refused(zipped([(device, b"")]), "regular file")


def test_an_encrypted_entry_is_refused() -> None:
    data = bytearray(zipped([(plain("model.onnx"), b"x")]))
    data[data.index(b"PK\x01\x02") + 8] |= 1
    refused(bytes(data), "encrypted")


def test_a_zip_bomb_is_refused_before_it_is_unpacked() -> None:
    info = plain("model.onnx")
    info.compress_type = zipfile.ZIP_DEFLATED
    bomb = zipped([(info, b"\0" * 50_000_000)])
    assert len(bomb) < 100_000
    refused(bomb, "compression")


def test_overlapping_entries_are_refused() -> None:
    """As in Fifield, A better zip bomb, WOOT 2019: many entries of the directory share one content."""
    data = zipped([(plain("a"), b"x" * 100)])
    start, end = data.index(b"PK\x01\x02"), data.index(b"PK\x05\x06")
    first = data[start:end]
    second = first[:-1] + b"b"
    directory = first + second
    end_record = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 2, 2, len(directory), start, 0)
    refused(data[:start] + directory + end_record, "overlap|leaves it")


def test_huge_declared_sizes_are_refused() -> None:
    data = bytearray(zipped([(plain("model.onnx"), b"x")]))
    place = data.index(b"PK\x01\x02")
    struct.pack_into("<II", data, place + 20, 0xFFFFFFF0, 0xFFFFFFF0)
    refused(bytes(data), "leaves it")
    struct.pack_into("<I", data, place + 20, 1)
    refused(bytes(data), "as many bytes")


def test_names_that_come_twice_are_refused() -> None:
    with pytest.warns(UserWarning, match="Duplicate"):
        data = zipped([(plain("model.onnx"), b"one"), (plain("model.onnx"), b"two")])
    refused(data, "twice")


def test_more_entries_than_a_package_can_have_are_refused() -> None:
    refused(zipped([(plain(f"golden/{place:04}"), b"") for place in range(300)]), "1 to 256 files")


def test_entries_in_another_order_are_refused() -> None:
    refused(zipped([(plain("b"), b"x"), (plain("a"), b"x")]), "order")


def test_what_another_program_adds_is_refused() -> None:
    info = plain("model.onnx")
    info.extra = b"\x55\x54\x05\x00\x03\x00\x00\x00\x00"
    refused(zipped([(info, b"x")]), "extra fields|flags")
    info = plain("model.onnx")
    info.date_time = (2026, 1, 1, 0, 0, 0)
    refused(zipped([(info, b"x")]), "times")


def test_a_header_that_contradicts_the_directory_is_refused() -> None:
    data = bytearray(whole())
    data[data.index(b"model.onnx")] = ord("n")
    refused(bytes(data), "header")


@pytest.mark.parametrize("extra", [b"PK", b"\0" * 22, b"#!/bin/sh\n"])
def test_bytes_before_or_behind_are_refused(extra: bytes) -> None:
    refused(extra + whole(), "truncated|appended|before|another kind")
    refused(whole() + extra, "truncated|appended|before|comment")


def test_a_comment_is_refused() -> None:
    stored = io.BytesIO(whole())
    with zipfile.ZipFile(stored, "a") as file:
        file.comment = b"hello"
    refused(stored.getvalue(), "comment|truncated|appended")


@pytest.mark.parametrize("data", [b"", b"PK", b"PK\x05\x06" + b"\0" * 18, b"\x7fELF" * 40, b"\0" * 100])
def test_what_is_no_package_is_refused(data: bytes) -> None:
    refused(data, "package|files")


def test_every_truncation_is_refused() -> None:
    data = whole()
    for length in {*range(0, len(data), 97), *range(len(data) - 200, len(data))}:
        refused(data[:length], "expected")


def test_a_folder_a_pipe_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Is a directory"):
        read(tmp_path)
    with pytest.raises(InputError, match="No such file"):
        read(tmp_path / "gone.perwatt")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(InputError, match="folder or device"):
        read(pipe)


def test_the_message_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "broken.perwatt"
    path.write_bytes(whole()[:-5])
    with pytest.raises(InvalidPackage, match=r"broken\.perwatt: "):
        read(path)


# What is hostile, in the description.


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: m.update(schema_version=2), "schema_version: expected 1, got 2"),
        (lambda m: m.update(schema_version=True), "schema_version"),
        (lambda m: m.update(schema_version="1"), "schema_version"),
        (lambda m: m.update(format="perwatt record"), "other JSON"),
        (lambda m: m.pop("name"), "name"),
        (lambda m: m.update(name=7), "name"),
        (lambda m: m.update(name="../x"), "letters"),
        (lambda m: m.update(version=""), "version"),
        (lambda m: m.update(surplus=1), "surplus"),
        (lambda m: m.update(labels={"0": "cat"}), "labels"),
        (lambda m: m.update(labels=["cat"]), "one for each of the 5"),
        (lambda m: m.update(labels=[*LABELS[:4], "\x1b[2J"]), "control characters"),
        (lambda m: m.update(labels=[*LABELS[:4], "a\u202eb"]), "control characters"),
        (lambda m: m.update(licence="\n"), "licence"),
        (lambda m: m.update(evidence=[]), "evidence"),
        (lambda m: m.update(evidence={"training": 3}), "evidence"),
        (lambda m: m["preprocessing"].update(size=[12]), "size"),
        (lambda m: m["preprocessing"].update(size=[12.0, 10]), "size"),
        (lambda m: m["preprocessing"].update(size=[10**9, 10**9], resize_to=10**9), "at most"),
        (lambda m: m["preprocessing"].update(mean=[0.0]), "means"),
        (lambda m: m["preprocessing"].update(resize="zoom"), "resize"),
        (lambda m: m["preprocessing"].update(scale=[0.0, 1.0, 1.0]), "not 0"),
        (lambda m: m["golden"].update(values=10**9), "values"),
        (lambda m: m["golden"].update(values=7), "bytes for 3 images of 7"),
        (lambda m: m["golden"].update(tolerances={}), "fp32"),
        (lambda m: m["golden"].update(tolerances={"fp32": -1.0}), "above 0"),
        (lambda m: m["golden"].update(tolerances={"fp32": 1e9}), "below 1"),
        (lambda m: m["golden"].update(tolerances={"fp64": 0.1}), "fp64|tolerances"),
        (lambda m: m["golden"].update(images=[]), "images"),
        (lambda m: m["golden"].update(inputs_sha256=["00"]), "SHA-256"),
        (lambda m: m["golden"]["images"].append("model.onnx"), "files|bytes|name"),
        (lambda m: m["files"].pop("model.onnx"), "files"),
        (lambda m: m["files"].update({"run.sh": {"bytes": 1, "sha256": "0" * 64}}), "files"),
        (lambda m: m["files"]["model.onnx"].update(bytes=7), "expected 7 bytes"),
        (lambda m: m["files"]["model.onnx"].update(sha256="0" * 64), "SHA-256"),
        (lambda m: m["files"]["golden/000.png"].update(sha256="0" * 64), "SHA-256"),
    ],
)
def test_a_description_of_the_wrong_shape_is_refused(change: Callable[[dict[str, Any]], None], reason: str) -> None:
    refused(with_manifest(change), reason)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "JSON"),
        (b"[]", "other JSON"),
        (b"3", "other JSON"),
        (b"\xff\xfe", "JSON"),
        (b"[" * 100_000, "JSON"),
        (b'{"format": "perwatt package", "format": "perwatt package"}', "twice"),
        (b'{"format": "perwatt package", "schema_version": NaN}', "finite"),
        (b'{"format": "perwatt package", "schema_version": 1e999}', "schema_version"),
        (b'{"format": "perwatt package", "schema_version": 1' + b"0" * 5000 + b"}", "JSON"),
    ],
)
def test_other_json_is_refused(text: bytes, reason: str) -> None:
    refused(container.pack({**contents(whole()), MANIFEST: text}), reason)


def test_json_in_another_form_is_refused() -> None:
    inside = contents(whole())
    refused(container.pack({**inside, MANIFEST: inside[MANIFEST] + b"\n"}), "another form")
    lone = inside[MANIFEST].replace(b"drawn by a test", b"drawn \\ud800 by")
    refused(container.pack({**inside, MANIFEST: lone}), "text")


def test_files_without_a_description_or_without_their_place_in_it_are_refused() -> None:
    inside = contents(whole())
    refused(container.pack({name: part for name, part in inside.items() if name != MANIFEST}), "package.json")
    refused(container.pack({**inside, "run.sh": b"rm"}), "run.sh: .*extra")
    refused(container.pack({name: part for name, part in inside.items() if name != "model.onnx"}), "model.onnx")


def test_golden_outputs_are_never_parsed() -> None:
    """NumPy's own reader evaluates a header and would unpickle objects."""
    evil = io.BytesIO()
    np.save(evil, np.array([{}], dtype=object), allow_pickle=True)
    size = len(contents(whole())["golden/outputs.npy"])
    refused(with_contents(golden__outputs_npy=b""), "files|bytes")
    padded = evil.getvalue()[:size].ljust(size, b"\0")
    refused(with_contents(**{"golden/outputs.npy": padded}), "header")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_golden_outputs_that_are_no_numbers_are_refused(value: float) -> None:
    inside = contents(whole())
    outputs = np.load(io.BytesIO(inside["golden/outputs.npy"])).copy()
    outputs[1, 2] = value
    refused(with_contents(**{"golden/outputs.npy": package_file._npy(outputs)}), "finite")
    outputs[1] = 0
    refused(with_contents(**{"golden/outputs.npy": package_file._npy(outputs)}), "all 0")


def test_a_picture_under_another_ending_is_refused() -> None:
    refused(with_contents(**{"golden/000.png": photograph(1, form="JPEG")}), "golden/000.jpeg")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Package("a b", "1", b"x", HOW), "name"),
        (lambda: Package("", "1", b"x", HOW), "name"),
        (lambda: Package("a", "1", b"", HOW), "model"),
        (lambda: Package("a", "1", b"x", HOW, labels=()), "labels"),
        (lambda: Package("a", "1", b"x", HOW, labels=("a", " ")), "labels"),
        (lambda: Package("a", "1", b"x", HOW, evidence={"training": {"loss": float("nan")}}), "evidence"),
        (lambda: Package("a", "1", b"x", HOW, evidence={"training": {"data": b"raw"}}), "evidence"),  # type: ignore[dict-item]
        (lambda: Package("a", "1", b"x", HOW, evidence={"t": {"x": "y" * 5_000_000}}), "at most"),
        (lambda: Golden((), np.ones((0, 1), np.float32), {"fp32": 0.1}), "1 to 64"),
        (lambda: Golden((b"x",) * 65, np.ones((65, 1), np.float32), {"fp32": 0.1}), "1 to 64"),
        (lambda: Golden((b"",), np.ones((1, 1), np.float32), {"fp32": 0.1}), "bytes"),
        (lambda: Golden((b"x",), np.ones((2, 1), np.float32), {"fp32": 0.1}), "outputs"),
        (lambda: Golden((b"x",), np.ones((1, 1), np.float32), {"bf16": 0.1}), "fp32"),
    ],
)
def test_contradictions_are_refused_where_a_package_is_made(make: Callable[[], object], reason: str) -> None:
    with pytest.raises(InvalidPackage, match=reason):
        make()


def test_golden_answers_cannot_be_changed_afterwards() -> None:
    golden = small_package().golden
    assert golden is not None
    with pytest.raises(ValueError, match="read-only"):
        golden.outputs[0, 0] = 7


# Anything at all.


@settings(deadline=None, max_examples=400)
@given(st.data())
def test_no_changed_byte_goes_unnoticed(data: st.DataObject) -> None:
    changed = bytearray(whole())
    for _ in range(data.draw(st.integers(1, 3))):
        # Half of the changes hit headers, directory and description, which are few of the bytes.
        start = data.draw(st.sampled_from((0, len(changed) - 3000)))
        place = data.draw(st.integers(max(start, 0), len(changed) - 1))
        changed[place] ^= data.draw(st.integers(1, 255))
    if bytes(changed) == whole():
        return
    with pytest.raises(InvalidPackage):
        read(bytes(changed))


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_cut_repeated_and_inserted_bytes_are_refused(data: st.DataObject) -> None:
    source = whole()
    begin = data.draw(st.integers(0, len(source) - 1))
    end = data.draw(st.integers(begin + 1, len(source)))
    inserted = data.draw(st.one_of(st.just(b""), st.binary(max_size=64), st.just(source[begin:end] * 2)))
    changed = source[:begin] + inserted + source[end:]
    if changed == source:
        return
    with pytest.raises(InvalidPackage):
        read(changed)


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=400), st.booleans())
def test_random_bytes_are_refused(content: bytes, as_description: bool) -> None:
    data = container.pack({**contents(whole()), MANIFEST: content}) if as_description else content
    with pytest.raises(InvalidPackage):
        read(data)


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(st.data())
def test_descriptions_with_any_value_anywhere_are_refused_or_mean_a_package(data: st.DataObject) -> None:
    """The hashes match here, so that what lies behind them is reached."""
    manifest = json.loads(contents(whole())[MANIFEST])
    paths: list[tuple[Any, Any]] = []

    def walk(part: Any) -> None:
        for key in part if isinstance(part, dict) else range(len(part)):
            paths.append((part, key))
            if isinstance(part[key], dict | list):
                walk(part[key])

    walk(manifest)
    part, key = data.draw(st.sampled_from(paths))
    part[key] = data.draw(PLAIN | st.text(max_size=5) | st.just(2**70))
    try:
        packed = container.pack({**contents(whole()), MANIFEST: package_file._text(manifest)})
    except (ValueError, UnicodeEncodeError):  # no text at all
        return
    try:
        again = read(packed)
    except InvalidPackage:
        return
    assert to_bytes(again) == packed


def test_made_up_packages_are_read_without_looking_into_the_network() -> None:
    assert read(to_bytes(made_up())).model == b"no network"
