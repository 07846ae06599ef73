"""Compiled objects on disk: found again by what they were made from, verified before anything trusts them.

An entry is one file, written beside its place and moved there, so that a reader sees a whole entry or none and
processes may race. Its name is a hash of the IR, the compiler and the processor: another CPU's code is never found.
"""

import hashlib
import json
import os
import tempfile
import warnings
from functools import cache
from pathlib import Path

from perwatt import settings
from perwatt.cpu.compiler import Options, Target, compiler_version

MAGIC = b"perwatt code 1\n"
_DIGEST_BYTES = 32

Compiled = tuple[bytes, tuple[str, ...]]  # object file, names of the functions it exports


def folder() -> Path:
    """Return the folder of compiled code; it may not exist yet."""
    return settings.cache_folder() / "code"


def key(source: str, target: Target, options: Options) -> str:
    """Return the name of an entry: a hash of all that decides what the object is."""
    facts = [
        compiler_version(),
        target.triple,
        target.processor,
        target.features,
        str(options.passes),
        str(options.codegen),
        source,
    ]
    return hashlib.sha256("\0".join(facts).encode()).hexdigest()


def fetch(entry: str) -> Compiled | None:
    """Return what was stored under a key, or None when there is nothing or not the whole of it."""
    try:
        data = (folder() / entry).read_bytes()
    except OSError:
        return None
    start = len(MAGIC) + _DIGEST_BYTES
    body = data[start:]
    # LLVM aborts the process on a damaged object, so every byte is checked, and that the entry stands under its name.
    if not data.startswith(MAGIC) or data[len(MAGIC) : start] != _digest(entry, body):
        return None
    names, _, image = body.partition(b"\n")
    return image, tuple(json.loads(names))


def store(entry: str, compiled: Compiled) -> None:
    """Keep an object under a key; a folder that cannot be written is told once and otherwise left alone."""
    image, functions = compiled
    body = json.dumps(functions).encode() + b"\n" + image
    where = folder()
    try:
        where.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(prefix=".", dir=where)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(MAGIC + _digest(entry, body) + body)
            os.replace(partial, where / entry)
        except BaseException:
            Path(partial).unlink(missing_ok=True)
            raise
    except OSError as error:
        _warn(str(where), error.strerror or str(error))


def _digest(entry: str, body: bytes) -> bytes:
    return hashlib.sha256(entry.encode() + b"\0" + body).digest()


@cache  # once for a folder and reason
def _warn(where: str, reason: str) -> None:
    warnings.warn(
        f"compiled code is not kept: {where}: {reason}; every start compiles anew until PERWATT_CACHE is a folder "
        "that can be written",
        RuntimeWarning,
        stacklevel=4,
    )
