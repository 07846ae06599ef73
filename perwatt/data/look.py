"""Look: what decoding every picture once tells, kept so that files that have not changed are not decoded again."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from perwatt import settings
from perwatt.data.dataset import DataSet, Split, Stored
from perwatt.errors import InputError
from perwatt.machine import this_machine
from perwatt.package.preprocessing import Photo

# done, of how many pictures
Progress = Callable[[int, int], None]
_AT_ONCE = 256
_VERSION = 2


@dataclass(frozen=True)
class Seen:
    """One picture: its size when upright and a digest of its pixels, or why it cannot be decoded."""

    width: int
    height: int
    digest: str
    fault: str | None = None


def look(data: DataSet, progress: Progress | None = None) -> dict[str, tuple[Seen, ...]]:
    """Return what every picture of every split is, in the splits' order; decodes what was not seen before.

    Pixels are compared after decoding to upright 8-bit RGB, so that the same picture in two formats has one digest.
    """
    total = sum(len(split) for split in data.splits.values())
    found: dict[str, tuple[Seen, ...]] = {}
    done = 0
    for name, split in data.splits.items():

        def tell(count: int, before: int = done) -> None:
            if progress is not None:
                progress(before + count, total)

        found[name] = _stored(split.pictures, tell) if isinstance(split.pictures, Stored) else _files(split, tell)
        done += len(split)
    return found


def pixel_fingerprint(data: DataSet, seen: Mapping[str, Sequence[Seen]]) -> dict[str, str]:
    """Return what tells whether each split is still the same: a digest of its classes, labels and pixels, in order."""
    digests = {}
    for name, split in data.splits.items():
        digest = hashlib.sha256("\n".join(data.classes).encode())
        for label, each in zip(split.labels, seen[name], strict=True):
            digest.update(f"\0{label} {each.digest}".encode())
        digests[name] = digest.hexdigest()[:16]
    return digests


def _stored(pictures: Stored, tell: Callable[[int], None]) -> tuple[Seen, ...]:
    height, width = pictures.pixels.shape[1:3]
    seen = []
    for count, pixels in enumerate(pictures.pixels, 1):
        seen.append(Seen(width, height, _digest(pixels)))
        if count % _AT_ONCE == 0:
            tell(count)
    tell(len(seen))
    return tuple(seen)


def _files(split: Split, tell: Callable[[int], None]) -> tuple[Seen, ...]:
    assert not isinstance(split.pictures, Stored)
    memory = _Memory.of(split.pictures)
    seen: list[Seen] = []
    with ThreadPoolExecutor(max(1, len(this_machine().cpus))) as pool:
        for first in range(0, len(split), _AT_ONCE):
            indices = range(first, min(first + _AT_ONCE, len(split)))
            seen += pool.map(lambda index: _file(split, index, memory), indices)
            tell(len(seen))
    memory.keep()
    return tuple(seen)


def _file(split: Split, index: int, memory: "_Memory") -> Seen:
    path = Path(split.name(index))
    try:
        state = path.stat()
    except OSError as error:
        return Seen(0, 0, "", f"{path}: expected a picture, got {error.strerror}; mend the list or the folder")
    stamp = (state.st_size, state.st_mtime_ns)
    known = memory.get(path, stamp)
    if known is not None:
        return known
    try:
        photo = split.photo(index)
        seen = Seen(photo.width, photo.height, _digest_of(photo))
    except InputError as error:
        # Not remembered: rights, or a decoder that was missing, are mended without a change of the file.
        return Seen(0, 0, "", str(error))
    memory.put(path, stamp, seen)
    return seen


def _digest_of(photo: Photo) -> str:
    return _digest(np.asarray(photo))


def _digest(pixels: np.ndarray) -> str:
    digest = hashlib.blake2b(np.ascontiguousarray(pixels).tobytes(), digest_size=12)
    digest.update(repr(pixels.shape).encode())
    return digest.hexdigest()


class _Memory:
    """What was seen of whole pictures before, by path, size and time of change, in one JSON file of perwatt's cache."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, list[object]] = {}
        self.changed = False
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept["version"] == _VERSION:
                self.rows = dict(kept["pictures"])
        except (OSError, ValueError, TypeError, KeyError):
            self.rows = {}  # never seen, or a damaged note of what can be seen again

    @classmethod
    def of(cls, pictures: Sequence[Path]) -> "_Memory":
        root = os.path.commonpath([path.absolute().parent for path in pictures]) if pictures else "/"
        name = hashlib.sha256(root.encode()).hexdigest()[:24]
        return cls(settings.cache_folder() / "pictures" / f"{name}.json")

    def get(self, path: Path, stamp: tuple[int, int]) -> Seen | None:
        row = self.rows.get(str(path.absolute()))
        if not isinstance(row, list) or len(row) != 5 or tuple(row[:2]) != stamp:
            return None
        width, height, digest = row[2:]
        return Seen(int(str(width)), int(str(height)), str(digest))

    def put(self, path: Path, stamp: tuple[int, int], seen: Seen) -> None:
        self.rows[str(path.absolute())] = [*stamp, seen.width, seen.height, seen.digest]
        self.changed = True

    def keep(self) -> None:
        if not self.changed:
            return
        aside = self.path.with_suffix(f".{os.getpid()}.tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            aside.write_text(json.dumps({"version": _VERSION, "pictures": self.rows}), encoding="utf-8")
            aside.replace(self.path)
        except OSError:
            aside.unlink(missing_ok=True)  # a cache that cannot be written costs time, not answers
