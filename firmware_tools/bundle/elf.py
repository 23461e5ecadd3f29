"""Which machine a shared object is for, which libraries it needs and which it provides.

Reads the ELF format's dynamic section (System V gABI, chapters 4 and 5). Knows nothing about
bundles.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

__all__ = ["AARCH64", "SharedObject", "parse"]

AARCH64 = 183
_MAGIC = b"\x7fELF\x02\x01"  # 64 bits, little-endian
_LOAD, _DYNAMIC = 1, 2
_END, _NEEDED, _STRTAB, _SONAME = 0, 1, 5, 14


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedObject:
    """Machine number, names of needed libraries, and its own name ("" without one)."""

    machine: int
    needed: tuple[str, ...]
    name: str


def parse(content: bytes) -> SharedObject | None:
    """Return what a 64-bit little-endian ELF file says, or None if it is none."""
    if content[:6] != _MAGIC:
        return None
    (machine,) = struct.unpack_from("<H", content, 18)
    (headers_at,) = struct.unpack_from("<Q", content, 32)
    entry_bytes, count = struct.unpack_from("<HH", content, 54)
    segments = [
        struct.unpack_from("<I4xQQ8xQ", content, headers_at + index * entry_bytes)
        for index in range(count)
    ]
    dynamic = [
        struct.unpack_from("<qQ", content, start + offset)
        for kind, start, _, size in segments
        if kind == _DYNAMIC
        for offset in range(0, size, 16)
    ]
    tags = dynamic[: next((i for i, (tag, _) in enumerate(dynamic) if tag == _END), len(dynamic))]
    strings_at = next((_file_offset(segments, at) for tag, at in tags if tag == _STRTAB), 0)
    names = [(tag, _string(content, strings_at + at)) for tag, at in tags if tag in (1, 14)]
    return SharedObject(
        machine=machine,
        needed=tuple(name for tag, name in names if tag == _NEEDED),
        name=next((name for tag, name in names if tag == _SONAME), ""),
    )


def _file_offset(segments: list[tuple[int, ...]], address: int) -> int:
    for kind, start, virtual, size in segments:
        if kind == _LOAD and virtual <= address < virtual + size:
            return start + address - virtual
    return address


def _string(content: bytes, start: int) -> str:
    return content[start : content.index(b"\0", start)].decode()
