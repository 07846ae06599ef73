"""Files that are there whole or not at all."""

import errno
import os
import tempfile
from pathlib import Path

from perwatt.errors import OutputError


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
        raise output_error(path, error) from error
    finally:
        if temporary:
            Path(temporary).unlink(missing_ok=True)


def output_error(path: Path, error: OSError) -> OutputError:
    """Return what to raise when a file or folder cannot be written."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    wish = "free some space or choose another folder with --out" if full else "choose another folder with --out"
    return OutputError(f"{path}: expected to write here, got: {error.strerror or error}; {wish}")


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
