"""Machine code from an object file without LLVM: most starts only load kernels that were compiled before, and LLVM's
library takes 40 MiB and a tenth of a second of every process that loads it.

Understood is what kernels consist of on x86-64 where objects are ELF (the System V ABI's AMD64 supplement): code,
constants, 32-bit distances between them, and calls of functions of the C library. For anything else None is returned,
and LLVM's linker is the one to ask.
"""

import ctypes
import mmap
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

HEADER = b"\x7fELF\x02\x01\x01"  # 64 bits, little endian
RELOCATABLE, AMD64 = 1, 62
PROGRAM, SYMBOLS, ADDENDS = 1, 2, 4  # section types
WRITABLE, ALLOCATED = 1, 2  # section flags
DISTANCE, CALL = 2, 4  # R_X86_64_PC32, R_X86_64_PLT32
JUMP = b"\xff\x25\x00\x00\x00\x00"  # jmp [rip]: to the address behind it
STUB_BYTES = 16
UNWINDING = ".eh_frame"  # for debuggers and exceptions, of which kernels throw none


@dataclass(frozen=True)
class _Section:
    name: str
    kind: int
    flags: int
    begin: int
    size: int
    link: int
    info: int
    alignment: int


@dataclass(frozen=True)
class _Symbol:
    name: str
    section: int
    value: int


class Linked:
    """Code and constants of one object in this process, as long as this lives; names lead to addresses."""

    def __init__(self, memory: mmap.mmap, addresses: dict[str, int]) -> None:
        self._memory = memory
        self._addresses = addresses

    def __getitem__(self, function: str) -> int:
        """Return the address of a function; raises KeyError when there is none of that name."""
        return self._addresses[function]


def link(image: bytes, functions: Sequence[str]) -> Linked | None:
    """Return an object file's code, ready to be called, or None where it holds something not understood here."""
    if not image.startswith(HEADER) or struct.unpack_from("<HH", image, 16) != (RELOCATABLE, AMD64):
        return None
    sections = _sections(image)
    symbols = _symbols(image, sections)
    placed = {number for number, s in enumerate(sections) if s.flags & ALLOCATED and s.size and s.name != UNWINDING}
    if any(sections[n].kind != PROGRAM or sections[n].flags & WRITABLE for n in placed):
        return None
    offsets: dict[int, int] = {}
    end = 0
    for number in sorted(placed):
        alignment = max(1, sections[number].alignment)
        offsets[number] = -(-end // alignment) * alignment
        end = offsets[number] + sections[number].size
    foreign = sorted({s.name for s in symbols if s.section == 0 and s.name})
    stubs = {name: -(-end // STUB_BYTES) * STUB_BYTES + STUB_BYTES * i for i, name in enumerate(foreign)}
    size = max([end, *(at + STUB_BYTES for at in stubs.values())])
    if any(s.alignment > mmap.PAGESIZE for s in sections) or size == 0:
        return None
    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ | mmap.PROT_WRITE)
    for number, offset in offsets.items():
        section = sections[number]
        memory[offset : offset + section.size] = image[section.begin : section.begin + section.size]
    for name, offset in stubs.items():
        address = _of_this_process(name)
        if address is None:
            return None
        memory[offset : offset + STUB_BYTES] = (JUMP + struct.pack("<Q", address)).ljust(STUB_BYTES, b"\xcc")
    for section in sections:
        if section.kind == ADDENDS and section.info in offsets:
            fixed = _relocate(memory, image, section, offsets, symbols, stubs)
            if not fixed:
                return None
    start = _address(memory)
    if not _made_executable(start, size):
        return None
    found = {s.name: start + offsets[s.section] + s.value for s in symbols if s.section in offsets and s.name}
    if any(function not in found for function in functions):
        return None
    return Linked(memory, {function: found[function] for function in functions})


def _relocate(
    memory: mmap.mmap, image: bytes, section: _Section, offsets: dict[int, int], symbols: list[_Symbol],
    stubs: dict[str, int],
) -> bool:  # fmt: skip
    """Write the distances that a section of relocations asks for; False where one is of another kind or too far."""
    home = offsets[section.info]
    for place, info, addend in struct.iter_unpack("<QQq", image[section.begin : section.begin + section.size]):
        kind, symbol = info & 0xFFFFFFFF, symbols[info >> 32]
        if symbol.section in offsets and kind in (DISTANCE, CALL):
            target = offsets[symbol.section] + symbol.value
        elif symbol.section == 0 and kind == CALL:
            target = stubs[symbol.name]
        else:
            return False
        distance = target + addend - (home + place)
        if not -(1 << 31) <= distance < 1 << 31:
            return False
        struct.pack_into("<i", memory, home + place, distance)
    return True


def _sections(image: bytes) -> list[_Section]:
    (table,) = struct.unpack_from("<Q", image, 40)
    count, names = struct.unpack_from("<HH", image, 60)
    rows = [struct.unpack_from("<IIQQQQIIQQ", image, table + 64 * number) for number in range(count)]
    text = rows[names][4]
    return [
        _Section(_text(image, text + name), kind, flags, begin, size, link, info, alignment)
        for name, kind, flags, _, begin, size, link, info, alignment, _ in rows
    ]


def _symbols(image: bytes, sections: list[_Section]) -> list[_Symbol]:
    table = next((s for s in sections if s.kind == SYMBOLS), None)
    if table is None:
        return []
    text = sections[table.link].begin
    rows = struct.iter_unpack("<IBBHQQ", image[table.begin : table.begin + table.size])
    return [_Symbol(_text(image, text + name), section, value) for name, _, _, section, value, _ in rows]


def _text(image: bytes, begin: int) -> str:
    return image[begin : image.index(b"\0", begin)].decode()


@cache
def _process() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


@cache
def _of_this_process(name: str) -> int | None:
    """Return the address of a function that this process has loaded, or None."""
    try:
        return ctypes.cast(getattr(_process(), name), ctypes.c_void_p).value
    except AttributeError:
        return None


def _address(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def _made_executable(start: int, size: int) -> bool:
    protect = _process().mprotect
    protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return bool(protect(start, size, mmap.PROT_READ | mmap.PROT_EXEC) == 0)
