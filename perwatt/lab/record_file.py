"""Record files: written whole or not at all, read with an error that says where."""

import gzip
import json
import tempfile
import zlib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from perwatt.errors import RecordError
from perwatt.lab.record import READABLE_VERSIONS, Record
from perwatt.package.atomic_file import output_error, write_whole

Kind = TypeVar("Kind", bound=BaseModel)
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
        raise output_error(folder, error) from error


def save(record: Record, folder: Path) -> Path:
    """Write the Record into the folder and return its path: `.json`, or `.json.gz` above one megabyte.

    The file appears under its name only when all of it is on the disk. Raises OutputError, leaving nothing behind.
    """
    return save_text(to_text(record), "perwatt", record.created, record.digest, folder)


def save_text(text: str, name: str, created: str, digest: str, folder: Path) -> Path:
    """Write a Record's text under a name made from its kind, moment and digest; return its path. Raises OutputError."""
    content, suffix = text.encode(), ".json"
    if len(content) > COMPRESS_ABOVE_BYTES:
        content, suffix = gzip.compress(content, 6, mtime=0), ".json.gz"
    moment = "".join(letter for letter in created if letter.isalnum())[:15]
    path = folder / f"{name}-{moment}-{digest[:8]}{suffix}"
    write_whole(path, content)
    return path


def to_text(record: BaseModel) -> str:
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
    fields = read_fields(path)
    if fields.get("kind") is not None:
        raise RecordError(
            f"{path}: expected a Record of bench, got one of kind {fields['kind']!r}; perwatt check reads every kind"
        )
    return validated(Record, fields, READABLE_VERSIONS, path)


def read_fields(path: Path) -> dict[str, Any]:
    """Return the top-level fields of a Record file of any kind, compressed or not. Raises RecordError."""
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
    return fields


def validated(kind: type[Kind], fields: dict[str, Any], versions: tuple[int, ...], path: Path) -> Kind:
    """Return the Record that the fields of a file are. Raises RecordError for another version or a broken schema."""
    if fields["schema_version"] not in versions:
        known = " or ".join(map(str, versions))
        raise RecordError(
            f"{path}: schema_version: expected {known}, got {fields['schema_version']!r}; "
            "read it with the perwatt that wrote it, or measure again"
        )
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise RecordError(
            f"{path}: {where}: {first['msg']} ({error.error_count()} faults); take the Record from its source again"
        ) from error


def schema() -> dict[str, Any]:
    """Return the JSON Schema of a Record."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Record.model_json_schema(mode="serialization")}
