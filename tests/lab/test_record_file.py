"""Record files: round trip, schema, and every way in which a disk or a file can be bad."""

import errno
import gzip
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from perwatt.errors import OutputError, RecordError
from perwatt.lab import figures, record_file
from perwatt.lab.record import Array, Record, pack, unpack


def test_a_record_comes_back_as_it_was_and_follows_its_schema(make_record: Callable[..., Record], tmp_path) -> None:
    record = make_record()
    path = record_file.save(record, tmp_path / "new" / "folder")
    assert path.suffix == ".json"
    assert record_file.load(path) == record
    jsonschema.Draft202012Validator.check_schema(record_file.schema())
    jsonschema.validate(json.loads(path.read_text()), record_file.schema())
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    assert path.stat().st_mode & 0o444 == 0o444


def test_the_schema_refuses_what_a_record_may_not_be(make_record: Callable[..., Record]) -> None:
    content = json.loads(record_file.to_text(make_record()))
    content["rows"][0]["status"] = "splendid"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, record_file.schema())


def test_a_large_record_is_compressed_and_the_same_bytes_each_time(
    make_record: Callable[..., Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_file, "COMPRESS_ABOVE_BYTES", 1000)
    record = make_record()
    path = record_file.save(record, tmp_path)
    assert path.name.endswith(".json.gz")
    assert record_file.load(path) == record
    first = path.read_bytes()
    record_file.save(record, tmp_path)
    assert path.read_bytes() == first


def test_the_digest_covers_everything_but_itself(make_record: Callable[..., Record]) -> None:
    record = make_record()
    assert figures.digest(record.model_copy(update={"digest": "other"})) == figures.digest(record)
    assert figures.digest(record.model_copy(update={"seed": record.seed + 1})) != figures.digest(record)


@given(hnp.arrays(np.float32, hnp.array_shapes(min_dims=1, max_dims=3, min_side=0), elements=st.floats(width=32)))
def test_an_array_comes_back_bit_for_bit(values: np.ndarray) -> None:
    assert unpack(pack(values)).tobytes() == values.tobytes()


def test_an_array_that_is_not_what_it_says_is_refused() -> None:
    good = pack(np.ones((2, 3), np.float32))
    for bad in (
        Array(shape=(2, 4), data=good.data),
        Array(shape=(1,), data=good.data),
        Array(shape=(2, 3), data="%" + good.data[1:]),
        Array(shape=(2, 3), data=good.data[:8]),
        Array(shape=(-2, -3), data=good.data),
        Array(shape=(0,), data=pack(np.zeros(1_000_000, np.float32)).data),
    ):
        with pytest.raises(RecordError):
            unpack(bad)


def write(folder: Path, content: bytes) -> Path:
    path = folder / "record.json"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "expected JSON"),
        (b"{", "expected JSON"),
        (b"\xff\xfe\x00", "expected JSON"),
        (b"[" * 100_000, "expected JSON"),
        (b"[1, 2]", "schema_version"),
        (b'{"schema_version": 99}', "expected 1 or 2, got 99"),
        (b'{"schema_version": 1}', "created"),
        pytest.param(gzip.compress(b'{"schema_version": 1}', mtime=0)[:-4], "whole gzip", id="gzip cut off"),
        (b"\x1f\x8b garbage", "gzip"),
    ],
)
def test_a_file_that_is_no_record_is_one_line_with_the_reason(tmp_path: Path, content: bytes, said: str) -> None:
    with pytest.raises(RecordError) as caught:
        record_file.load(write(tmp_path, content))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_field_out_of_its_type_is_named_with_its_place(make_record: Callable[..., Record], tmp_path: Path) -> None:
    content = json.loads(record_file.to_text(make_record()))
    content["rows"][2]["blocks"][1]["start_s"] = "soon"
    with pytest.raises(RecordError, match=r"rows\.2\.blocks\.1\.start_s"):
        record_file.load(write(tmp_path, json.dumps(content).encode()))
    with pytest.raises(RecordError, match="check the path"):
        record_file.load(tmp_path / "nowhere.json")


def test_a_number_that_is_not_finite_is_refused(make_record: Callable[..., Record], tmp_path: Path) -> None:
    text = record_file.to_text(make_record()).replace('"duration_s": 201.0', '"duration_s": NaN')
    with pytest.raises(RecordError, match="duration_s"):
        record_file.load(write(tmp_path, text.encode()))


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_nothing_half_written_and_the_old_file_whole(
    make_record: Callable[..., Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    record = make_record()
    path = record_file.save(record, tmp_path)
    before = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if step == "write":
        original = os.fdopen

        def opened(handle: int, mode: str):  # a file whose disk is full
            file = original(handle, mode, buffering=0)
            real, other = file.fileno(), os.open("/dev/full", os.O_WRONLY)
            os.dup2(other, real)
            os.close(other)
            return file

        if not Path("/dev/full").exists():
            pytest.skip("this system has no /dev/full")
        monkeypatch.setattr(os, "fdopen", opened)
    else:
        monkeypatch.setattr(os, step, full)
    with pytest.raises(OutputError, match="free some space"):
        record_file.save(record, tmp_path)
    monkeypatch.undo()
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == before


def test_a_disk_that_is_really_full(make_record: Callable[..., Record], tmp_path: Path) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)], capture_output=True, check=False
    ) if hasattr(os, "geteuid") and os.geteuid() == 0 else None  # fmt: skip
    if mounted is None or mounted.returncode != 0:
        pytest.skip("mounting a small disk needs root")
    try:
        record = make_record(notes=("long " * 40_000,))
        with pytest.raises(OutputError, match="free some space"):
            record_file.save(record, tmp_path)
        assert list(tmp_path.iterdir()) == []
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_folder_that_cannot_be_written_is_found_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError, match="choose another folder with --out"):
            record_file.ensure_writable(folder)
    record_file.ensure_writable(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []
