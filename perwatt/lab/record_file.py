"""Record files: written whole or not at all, read with an error that says where."""

import errno
import gzip
import json
import os
import tempfile
import zlib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from perwatt.errors import OutputError, RecordError
from perwatt.lab.record import READABLE_VERSIONS, Record

COMPRESS_ABOVE_BYTES = 1_000_000
MOST_BYTES = 1 << 30


def ensure_writable(folder: Path) -> None:
    """Make the folder if need be and prove that a file can be written there, before anything is measured.

    Raises OutputError.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".perwatt-") as probe:
            probe.write(b"0")
            probe.flush()
    except OSError as error:
        raise _output_error(folder, error) from error


def save(record: Record, folder: Path) -> Path:
    """Write the Record into the folder and return its path: `.json`, or `.json.gz` above one megabyte.

    The file appears under its name only when all of it is on the disk. Raises OutputError, leaving nothing behind.
    """
    content = to_text(record).encode()
    suffix = ".json"
    if len(content) > COMPRESS_ABOVE_BYTES:
        content, suffix = gzip.compress(content, 6, mtime=0), ".json.gz"
    moment = "".join(letter for letter in record.created if letter.isalnum())[:15]
    path = folder / f"perwatt-{moment}-{record.digest[:8]}{suffix}"
    write_whole(path, content)
    return path


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all, also when the disk is full. Raises OutputError."""
    handle, temporary = -1, ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".perwatt-", suffix=".part")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would keep a shared folder's other users out
        os.replace(temporary, path)
        temporary = ""
        _sync_folder(path.parent)
    except OSError as error:
        raise _output_error(path, error) from error
    finally:
        if temporary:
            Path(temporary).unlink(missing_ok=True)


def to_text(record: Record) -> str:
    """Return the Record as JSON, one line for each top-level field and each row, so that two can be told apart."""
    fields = record.model_dump(mode="json")
    lines = []
    for name, value in fields.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            text = "[\n" + ",\n".join(json.dumps(each, allow_nan=False) for each in value) + "\n]"
        else:
            text = json.dumps(value, allow_nan=False)
        lines.append(f"{json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def load(path: Path) -> Record:
    """Read a Record file, compressed or not.

    Raises RecordError, with the field where that is known: no such file, not JSON, another version, broken schema.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RecordError(f"{path}: expected a readable Record, got: {error.strerror}; check the path") from error
    if content[:2] == b"\x1f\x8b":
        try:
            unpacker = zlib.decompressobj(31)
            content = unpacker.decompress(content, MOST_BYTES)
        except zlib.error as error:
            raise RecordError(f"{path}: expected a whole gzip file, got: {error}; copy it again") from error
        if not unpacker.eof:
            raise RecordError(f"{path}: expected a whole gzip file of at most {MOST_BYTES} bytes; copy it again")
    try:
        fields: Any = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path}: expected JSON, got: {error}; is it a Record that perwatt wrote?") from error
    if not isinstance(fields, dict) or "schema_version" not in fields:
        raise RecordError(f"{path}: expected a Record with a schema_version, got other JSON; choose a Record file")
    if fields["schema_version"] not in READABLE_VERSIONS:
        known = " or ".join(map(str, READABLE_VERSIONS))
        raise RecordError(
            f"{path}: schema_version: expected {known}, got {fields['schema_version']!r}; "
            "read it with the perwatt that wrote it, or measure again"
        )
    try:
        return Record.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise RecordError(
            f"{path}: {where}: {first['msg']} ({error.error_count()} faults); take the Record from its source again"
        ) from error


def schema() -> dict[str, Any]:
    """Return the JSON Schema of a Record."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Record.model_json_schema(mode="serialization")}


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _output_error(path: Path, error: OSError) -> OutputError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    wish = "free some space or choose another folder with --out" if full else "choose another folder with --out"
    return OutputError(f"{path}: expected to write here, got: {error.strerror or error}; {wish}")
