"""The container of a package: a zip file of one exact form, so that equal contents are equal bytes.

Entries are stored without compression, in the order of their names, with fixed times and modes, one behind the other
from the first byte on; nothing precedes, separates or follows them but the zip's own directory. Any tool that reads zip
files reads these. Reading takes that form only. What is hostile in zip files lies outside of it: with nothing
compressed and nothing overlapping, contents cannot be larger than the file that holds them.

The records are those of PKWARE's APPNOTE.TXT 6.3, sections 4.3.7, 4.3.12 and 4.3.16.
"""

import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO

from perwatt.errors import InvalidPackage

LOCAL = struct.Struct("<4sHHHHHIIIHH")
CENTRAL = struct.Struct("<4sHHHHHHIIIHHHHHII")
END = struct.Struct("<4sHHHHIIH")
VERSION_NEEDED = 20
MADE_BY = (3 << 8) | VERSION_NEEDED  # Unix, so that the mode counts
DATE_1980 = (1 << 5) | 1  # the first day that a zip file can name
REGULAR_FILE = 0o100644 << 16
FILE_TYPE = 0o170000
MOST_ENTRIES = 256
MOST_NAME = 128
MOST_BYTES = (1 << 32) - 2  # from here on a zip file needs its 64-bit records


@dataclass(frozen=True)
class Entry:
    """One file inside: its name, where its header begins, its length and its CRC-32."""

    name: str
    offset: int
    size: int
    crc: int

    @property
    def content_offset(self) -> int:
        """Where its content begins."""
        return self.offset + LOCAL.size + len(self.name)


def pack(contents: Mapping[str, bytes]) -> bytes:
    """Return the container of these files. Raises InvalidPackage when there are too many or they are too large."""
    entries: list[Entry] = []
    parts: list[bytes] = []
    position = 0
    for name, content in sorted(contents.items()):
        _check_name(name)
        entry = Entry(name, position, len(content), zlib.crc32(content))
        if entry.content_offset + entry.size > MOST_BYTES or len(entries) == MOST_ENTRIES:
            raise InvalidPackage(
                f"expected at most {MOST_ENTRIES} files and {MOST_BYTES:,} bytes, got more; leave out photographs"
            )
        entries.append(entry)
        parts += [_local(entry), content]
        position = entry.content_offset + entry.size
    directory = b"".join(map(_central, entries))
    return b"".join([*parts, directory, _end(len(entries), len(directory), position)])


def entries_of(file: BinaryIO, length: int) -> tuple[Entry, ...]:
    """Return the entries of a container of `length` bytes; nothing is read but its directory and its headers.

    Raises InvalidPackage, with the reason, when it has not the exact form that `pack` writes.
    """
    if length < END.size:
        raise InvalidPackage(f"expected a perwatt package, got {length} bytes; copy or download it again")
    if length > MOST_BYTES + (1 << 20):
        raise InvalidPackage(f"expected at most {MOST_BYTES:,} bytes, got {length:,}; it is no package of perwatt's")
    end = _at(file, length - END.size, END.size)
    signature, _, _, _, count, size, start, comment = END.unpack(end)
    if signature != b"PK\x05\x06":
        zipped = _at(file, 0, 4) == b"PK\x03\x04"
        raise InvalidPackage(
            "expected a whole perwatt package, got one that is truncated or has something appended; copy it again"
            if zipped
            else "expected a perwatt package, got another kind of file; make one with perwatt package"
        )
    if comment or start == 0xFFFFFFFF or count == 0xFFFF:
        raise InvalidPackage("expected a zip file without comment or 64-bit records; make it with perwatt package")
    if not 1 <= count <= MOST_ENTRIES:
        raise InvalidPackage(f"expected 1 to {MOST_ENTRIES} files inside, got {count:,}; it is no package of perwatt's")
    if start + size + END.size != length:
        raise InvalidPackage(
            f"expected a directory that ends with the file's {length:,} bytes, got one of {size:,} bytes at {start:,}: "
            "the file is truncated, or something was put before or after it; copy it again"
        )
    directory = _at(file, start, size)
    if end != _end(count, size, start):
        raise InvalidPackage("expected a directory as perwatt writes it, got another; make it with perwatt package")
    entries = tuple(_entries(directory, count))
    _check_places(entries, start)
    for entry in entries:
        if _at(file, entry.offset, LOCAL.size + len(entry.name)) != _local(entry):
            raise InvalidPackage(f"{entry.name}: expected the header that the directory tells, got another one")
    return entries


def content_of(file: BinaryIO, entry: Entry) -> bytes:
    """Return the content of an entry that `entries_of` returned. Raises InvalidPackage when it is damaged."""
    content = _at(file, entry.content_offset, entry.size)
    if zlib.crc32(content) != entry.crc:
        raise InvalidPackage(f"{entry.name}: its content is damaged (CRC-32 does not match); copy the package again")
    return content


def _entries(directory: bytes, count: int) -> Iterator[Entry]:
    position = 0
    for _ in range(count):
        if position + CENTRAL.size > len(directory):
            raise InvalidPackage(f"expected {count} files in the directory, got fewer; copy the package again")
        fields = CENTRAL.unpack_from(directory, position)
        (
            signature,
            made_by,
            _,
            flags,
            method,
            _,
            _,
            crc,
            packed,
            size,
            name_length,
            extra,
            note,
            _,
            _,
            mode,
            offset,
        ) = fields
        if signature != b"PK\x01\x02":
            raise InvalidPackage("expected a directory of files, got a damaged one; copy the package again")
        raw = directory[position + CENTRAL.size : position + CENTRAL.size + name_length]
        name = raw.decode("ascii", "backslashreplace")
        if len(raw) != name_length or not raw.isascii():
            raise InvalidPackage(f"expected file names in ASCII, got {name[:MOST_NAME]!r}")
        _check_name(name)
        if flags & 1:
            raise InvalidPackage(
                f"{name}: expected plain content, got an encrypted entry; packages are never encrypted"
            )
        if method != 0:
            raise InvalidPackage(
                f"{name}: expected content without compression, got method {method}, which could expand to any size; "
                "make the file with perwatt package, or with zip -0"
            )
        if packed != size:
            raise InvalidPackage(f"{name}: expected as many bytes inside as outside, got {packed:,} and {size:,}")
        kind = (mode >> 16) & FILE_TYPE if made_by >> 8 == 3 else 0o100000
        if kind != REGULAR_FILE >> 16 & FILE_TYPE:
            sort = "a symbolic link" if kind == 0o120000 else "something else"
            raise InvalidPackage(f"{name}: expected a regular file, got {sort}; packages hold files only")
        entry = Entry(name, offset, size, crc)
        if extra or note or directory[position : position + CENTRAL.size + name_length] != _central(entry):
            raise InvalidPackage(
                f"{name}: expected the entry as perwatt writes it, got other flags, times, modes or extra fields; make "
                "the file with perwatt package"
            )
        yield entry
        position += CENTRAL.size + name_length
    if position != len(directory):
        raise InvalidPackage(f"expected {count} files in the directory, got more; copy the package again")


def _check_places(entries: tuple[Entry, ...], end: int) -> None:
    names = [entry.name for entry in entries]
    for place, name in enumerate(names):
        if name in names[:place]:
            raise InvalidPackage(f"{name}: expected every name once, got it twice; which one counts would be a guess")
    if names != sorted(names):
        raise InvalidPackage("expected the files in the order of their names; make the package with perwatt package")
    position = 0
    for entry in entries:
        if entry.content_offset + entry.size > end:
            raise InvalidPackage(
                f"{entry.name}: expected content inside of the file, got a declared size of {entry.size:,} bytes that "
                f"leaves it; copy the package again"
            )
        if entry.offset != position:
            raise InvalidPackage(
                f"{entry.name}: expected it to begin at byte {position:,}, got {entry.offset:,}: files overlap or "
                "leave a gap; make the package with perwatt package"
            )
        position = entry.content_offset + entry.size
    if position != end:
        raise InvalidPackage(f"expected the directory behind the last file, at {position:,}, got it at {end:,}")


def _check_name(name: str) -> None:
    parts = name.split("/")
    if name.startswith(("/", "\\")) or ":" in name:
        raise InvalidPackage(f"{name!r}: expected a path inside of the package, got an absolute one")
    if ".." in parts:
        raise InvalidPackage(f"{name!r}: expected a path inside of the package, got one that leaves it")
    if not 1 <= len(name) <= MOST_NAME or any(part in ("", ".") for part in parts):
        raise InvalidPackage(f"{name[:MOST_NAME]!r}: expected the name of a file of 1 to {MOST_NAME} characters")
    if "\\" in name or not (name.isascii() and name.isprintable()):
        raise InvalidPackage(f"{name!r}: expected printable ASCII without backslashes in a file name")


def _local(entry: Entry) -> bytes:
    name = entry.name.encode("ascii")
    return (
        LOCAL.pack(
            b"PK\x03\x04", VERSION_NEEDED, 0, 0, 0, DATE_1980, entry.crc, entry.size, entry.size, len(name), 0
        )
        + name
    )  # fmt: skip


def _central(entry: Entry) -> bytes:
    name = entry.name.encode("ascii")
    head = CENTRAL.pack(
        b"PK\x01\x02", MADE_BY, VERSION_NEEDED, 0, 0, 0, DATE_1980, entry.crc, entry.size, entry.size, len(name), 0, 0,
        0, 0, REGULAR_FILE, entry.offset,
    )  # fmt: skip
    return head + name


def _end(count: int, size: int, start: int) -> bytes:
    return END.pack(b"PK\x05\x06", 0, 0, count, count, size, start, 0)


def _at(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    content = file.read(size)
    if len(content) != size:
        raise InvalidPackage(f"expected {size:,} bytes at {offset:,}, got {len(content):,}; copy the package again")
    return content
