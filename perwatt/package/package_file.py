"""A package as a file: `package.json`, `model.onnx` and `golden/` in a container; nothing inside is ever executed.

`package.json` names every other file with its length and SHA-256, and is itself covered by the container's CRC-32 and
its canonical form: equal packages are equal bytes, and a file with any byte changed is refused.
"""

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Literal, NoReturn

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from perwatt.errors import InputError, InvalidPackage
from perwatt.package import container
from perwatt.package.atomic_file import write_whole
from perwatt.package.package import MOST_IMAGE_BYTES, MOST_IMAGES, Golden, Package, Precision
from perwatt.package.preprocessing import ChannelOrder, Interpolation, Preprocessing, Resize, image_format

SCHEMA_VERSION = 1
MANIFEST, MODEL, OUTPUTS = "package.json", "model.onnx", "golden/outputs.npy"
MOST_MANIFEST_BYTES = 16 << 20
MOST_OUTPUT_BYTES = 64 << 20
STRICT = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class _Preprocessing(BaseModel):
    model_config = STRICT
    size: list[int] = Field(min_length=2, max_length=2)
    resize: Resize
    resize_to: int
    interpolation: Interpolation
    channel_order: ChannelOrder
    mean: list[float] = Field(max_length=3)
    scale: list[float] = Field(max_length=3)


class _Golden(BaseModel):
    model_config = STRICT
    images: list[str] = Field(min_length=1, max_length=MOST_IMAGES)
    inputs_sha256: list[str]
    values: int = Field(ge=1, le=MOST_OUTPUT_BYTES)
    tolerances: dict[Precision, float]


class _Content(BaseModel):
    model_config = STRICT
    bytes: int = Field(ge=1)
    sha256: str


class _Manifest(BaseModel):
    model_config = STRICT
    format: Literal["perwatt package"]
    schema_version: Literal[1]
    name: str
    version: str
    preprocessing: _Preprocessing
    labels: list[str] | None
    licence: str | None
    source: str | None
    golden: _Golden | None
    evidence: dict[str, Any]
    files: dict[str, _Content]


def write(package: Package, path: Path) -> None:
    """Write a package so that it is there whole or not at all; equal packages give equal bytes.

    Raises OutputError, and InvalidPackage when it is too large for the format.
    """
    write_whole(path, to_bytes(package))


def to_bytes(package: Package) -> bytes:
    """Return the bytes of a package's file. Raises InvalidPackage when it is too large for the format."""
    contents = {MODEL: package.model}
    golden = None
    if package.golden is not None:
        names = [f"golden/{place:03}.{image_format(image)}" for place, image in enumerate(package.golden.images)]
        contents |= dict(zip(names, package.golden.images, strict=True))
        contents[OUTPUTS] = _npy(package.golden.outputs)
        golden = {
            "images": names,
            "inputs_sha256": list(package.golden.inputs),
            "values": package.golden.outputs.shape[1],
            "tolerances": dict(package.golden.tolerances),
        }
    how = package.preprocessing
    manifest = {
        "format": "perwatt package",
        "schema_version": SCHEMA_VERSION,
        "name": package.name,
        "version": package.version,
        "preprocessing": {
            "size": list(how.size),
            "resize": how.resize,
            "resize_to": how.resize_to,
            "interpolation": how.interpolation,
            "channel_order": how.channel_order,
            "mean": list(map(float, how.mean)),
            "scale": list(map(float, how.scale)),
        },
        "labels": None if package.labels is None else list(package.labels),
        "licence": package.licence,
        "source": package.source,
        "golden": golden,
        "evidence": dict(package.evidence),
        "files": {name: _fingerprint(content) for name, content in contents.items()},
    }
    text = _text(manifest)
    if len(text) > MOST_MANIFEST_BYTES:
        raise InvalidPackage(f"{MANIFEST}: expected at most {MOST_MANIFEST_BYTES:,} bytes, got {len(text):,}")
    return container.pack({**contents, MANIFEST: text})


def read(source: Path | bytes) -> Package:
    """Return the package of a file or of its bytes; its golden examples are not replayed yet, see `open` and `replay`.

    Memory stays within the file's own size and a little. Raises InvalidPackage, with the reason, for whatever is not
    exactly a package, InputError when there is no such file.
    """
    if isinstance(source, bytes):
        return _read(BytesIO(source), len(source))
    try:
        # A pipe or a device would block, or never end.
        handle = os.open(source, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(handle, "rb") as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise InputError(f"{source}: expected a package file, got a folder or device; name the .perwatt file")
            return _read(file, facts.st_size)
    except OSError as error:
        raise InputError(
            f"{source}: expected a package file, got: {error.strerror or error}; check the path"
        ) from error
    except InvalidPackage as error:
        raise InvalidPackage(f"{source}: {error}") from error


def _read(file: BinaryIO, length: int) -> Package:
    entries = {entry.name: entry for entry in container.entries_of(file, length)}
    if MANIFEST not in entries:
        raise InvalidPackage(f"expected {MANIFEST} inside, got none; it is no package of perwatt's")
    if entries[MANIFEST].size > MOST_MANIFEST_BYTES:
        raise InvalidPackage(f"{MANIFEST}: expected at most {MOST_MANIFEST_BYTES:,} bytes, got a larger one")
    manifest = _manifest(container.content_of(file, entries[MANIFEST]))
    expected = {MODEL, *(manifest.golden.images if manifest.golden else ()), *((OUTPUTS,) if manifest.golden else ())}
    for name in sorted(expected ^ set(manifest.files)):
        raise InvalidPackage(f"{MANIFEST}: files: expected exactly {', '.join(sorted(expected))}, differs in {name!r}")
    for name in sorted(set(entries) - expected - {MANIFEST}):
        raise InvalidPackage(f"{name}: expected only files that {MANIFEST} names, got an extra one; remove it")
    for name in sorted(expected - set(entries)):
        raise InvalidPackage(f"{name}: expected it inside, got a package without; take it from its source again")
    for name, told in manifest.files.items():
        if entries[name].size != told.bytes:
            raise InvalidPackage(
                f"{name}: expected {told.bytes:,} bytes as {MANIFEST} says, got {entries[name].size:,}"
            )
    if manifest.golden is not None:
        _check_golden(manifest.golden, manifest.files)
    contents = {name: _verified(file, entries[name], manifest.files[name].sha256) for name in sorted(expected)}
    return _package(manifest, contents)


def _manifest(content: bytes) -> _Manifest:
    try:
        fields: Any = json.loads(
            content.decode("utf-8"), object_pairs_hook=_without_duplicates, parse_constant=_no_constant
        )
    except InvalidPackage:
        raise
    except (ValueError, RecursionError) as error:
        raise InvalidPackage(f"{MANIFEST}: expected JSON, got {type(error).__name__}: {error}") from error
    if not isinstance(fields, dict) or fields.get("format") != "perwatt package":
        raise InvalidPackage(f"{MANIFEST}: expected a description of a perwatt package, got other JSON")
    version = fields.get("schema_version")
    if type(version) is not int or version != SCHEMA_VERSION:
        raise InvalidPackage(
            f"{MANIFEST}: schema_version: expected {SCHEMA_VERSION}, got {version!r}; read it with the perwatt that "
            "wrote it, or make it again"
        )
    try:
        manifest = _Manifest.model_validate(fields)
        canonical = _text(manifest.model_dump())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InvalidPackage(f"{MANIFEST}: {where}: {first['msg']} ({error.error_count()} faults)") from error
    except (ValueError, RecursionError) as error:  # half a surrogate pair is JSON, yet no text
        raise InvalidPackage(f"{MANIFEST}: expected text, got {type(error).__name__}: {error}") from error
    if canonical != content:
        raise InvalidPackage(
            f"{MANIFEST}: expected JSON as perwatt writes it, got another form; make the package again"
        )
    return manifest


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise InvalidPackage(f"{MANIFEST}: expected every key once, got one twice; which one counts would be a guess")
    return fields


def _no_constant(name: str) -> NoReturn:
    raise InvalidPackage(f"{MANIFEST}: expected finite numbers, got {name}")


def _check_golden(golden: _Golden, files: Mapping[str, _Content]) -> None:
    """Refuse sizes that do not follow from one another, before anything of that size is read."""
    for name in golden.images:
        if files[name].bytes > MOST_IMAGE_BYTES:
            raise InvalidPackage(f"{name}: expected at most {MOST_IMAGE_BYTES:,} bytes, got {files[name].bytes:,}")
    wanted = len(_npy_head(len(golden.images), golden.values)) + 4 * len(golden.images) * golden.values
    if wanted > MOST_OUTPUT_BYTES or files[OUTPUTS].bytes != wanted:
        raise InvalidPackage(
            f"{OUTPUTS}: expected {wanted:,} bytes for {len(golden.images)} images of {golden.values} values, and at "
            f"most {MOST_OUTPUT_BYTES:,}, got {files[OUTPUTS].bytes:,}"
        )


def _verified(file: BinaryIO, entry: container.Entry, sha256: str) -> bytes:
    content = container.content_of(file, entry)
    got = hashlib.sha256(content).hexdigest()
    if got != sha256:
        raise InvalidPackage(f"{entry.name}: expected SHA-256 {sha256[:80]}, got {got}; take it from its source again")
    return content


def _package(manifest: _Manifest, contents: Mapping[str, bytes]) -> Package:
    golden = None
    if manifest.golden is not None:
        told = manifest.golden
        for place, name in enumerate(told.images):
            proper = f"golden/{place:03}.{image_format(contents[name])}"
            if name != proper:
                raise InvalidPackage(f"{name}: expected the name {proper} for what it holds; make the package again")
        golden = Golden(
            images=tuple(contents[name] for name in told.images),
            outputs=_outputs(contents[OUTPUTS], len(told.images), told.values),
            tolerances=told.tolerances,
            inputs=tuple(told.inputs_sha256),
        )
    how = manifest.preprocessing
    try:
        preprocessing = Preprocessing(
            size=(how.size[0], how.size[1]),
            resize=how.resize,
            resize_to=how.resize_to,
            interpolation=how.interpolation,
            channel_order=how.channel_order,
            mean=tuple(how.mean),
            scale=tuple(how.scale),
        )
    except InputError as error:
        raise InvalidPackage(f"{MANIFEST}: {error}") from error
    return Package(
        name=manifest.name,
        version=manifest.version,
        model=contents[MODEL],
        preprocessing=preprocessing,
        labels=None if manifest.labels is None else tuple(manifest.labels),
        licence=manifest.licence,
        source=manifest.source,
        golden=golden,
        evidence=manifest.evidence,
    )


def _text(fields: Mapping[str, Any]) -> bytes:
    return (json.dumps(fields, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")


def _fingerprint(content: bytes) -> dict[str, int | str]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _npy(outputs: np.ndarray) -> bytes:
    return _npy_head(*outputs.shape) + outputs.astype("<f4").tobytes()


def _npy_head(images: int, values: int) -> bytes:
    """Return the header of NumPy's format 1.0 (NEP 1), always the same for one shape."""
    fields = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({images}, {values}), }}"
    length = 10 + len(fields) + 1
    padded = fields + " " * (-length % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded.encode("ascii")


def _outputs(content: bytes, images: int, values: int) -> np.ndarray:
    """Return golden outputs; the header is compared, not parsed."""
    head = _npy_head(images, values)
    if not content.startswith(head):
        raise InvalidPackage(f"{OUTPUTS}: expected the header of float32 [{images}, {values}], got another one")
    return np.frombuffer(content, "<f4", offset=len(head)).reshape(images, values).astype(np.float32)
