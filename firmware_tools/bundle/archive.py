"""A tar archive of which there is one form only: plain files, fixed owner and time, known order.

Every header is compared with the one that we would have written, so links, devices, doubles, other
names, extra files and changed padding cannot occur: `read_members` says which it found instead.
Standard library only; knows nothing about manifests, compression or where bytes go.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, NamedTuple, Protocol

from firmware_tools.errors import RefusedError

__all__ = [
    "Member",
    "Readable",
    "archive_bytes",
    "read_header",
    "read_members",
    "write",
]

BLOCK_BYTES = tarfile.BLOCKSIZE
CHUNK_BYTES = 1 << 20
_END = bytes(2 * BLOCK_BYTES)


class Readable(Protocol):
    """Whatever bytes can be read from, in order."""

    def read(self, size: int = -1, /) -> bytes:
        """Return up to `size` bytes, b"" at the end."""


class Member(NamedTuple):
    """Name, size in bytes and mode of one file in the archive."""

    name: str
    size_bytes: int
    mode: int


def header(member: Member) -> bytes:
    """Return the 512 bytes before a file.

    Raises:
        ValueError: if the name does not fit a ustar header.
    """
    info = tarfile.TarInfo(member.name)
    info.size, info.mode, info.mtime = member.size_bytes, member.mode, 0
    return info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")


def archive_bytes(members: Iterable[Member]) -> int:
    """Return the exact size of the archive of these files."""
    return sum(BLOCK_BYTES + _padded(each.size_bytes) for each in members) + len(_END)


def write(out: BinaryIO, files: Iterable[tuple[Member, Iterable[bytes]]]) -> None:
    """Write the archive of these files, in the order given."""
    for member, chunks in files:
        out.write(header(member))
        written = 0
        for chunk in chunks:
            out.write(chunk)
            written += len(chunk)
        if written != member.size_bytes:
            raise ValueError(f"{member.name} changed while it was read; build again")
        out.write(bytes(_padded(written) - written))
    out.write(_END)


def read_header(stream: Readable, expected: Member) -> None:
    """Read one header and refuse any but that of `expected`."""
    found = _read(stream, BLOCK_BYTES)
    if found != header(expected):
        raise _surprise(found, expected.name)


def read_members(
    stream: Readable, members: Iterable[Member], take: Callable[[Member, Iterator[bytes]], None]
) -> None:
    """Read exactly `members`, handing each file's bytes to `take`, and refuse whatever differs.

    Raises:
        RefusedError: size, extra, missing, type, path or tampered, with what was found.
    """
    for member in members:
        read_header(stream, member)
        body = _body(stream, member.size_bytes)
        take(member, body)
        for _ in body:
            pass
        skip_padding(stream, member.size_bytes)
    read_end(stream)


def read_end(stream: Readable) -> None:
    """Read the end of the archive and refuse anything behind the last file."""
    found = _read(stream, len(_END))
    if found != _END:
        raise _surprise(found[:BLOCK_BYTES], "the end of the archive")
    if stream.read(1):
        raise RefusedError("extra", "bytes behind the end of the archive")


def skip_padding(stream: Readable, size_bytes: int) -> None:
    """Read the zeros that fill a file's last block."""
    if any(_read(stream, _padded(size_bytes) - size_bytes)):
        raise RefusedError("tampered", "padding is not zero")


def _body(stream: Readable, size_bytes: int) -> Iterator[bytes]:
    left = size_bytes
    while left:
        chunk = _read(stream, min(left, CHUNK_BYTES))
        left -= len(chunk)
        yield chunk


def _read(stream: Readable, size_bytes: int) -> bytes:
    parts = bytearray()
    while len(parts) < size_bytes:
        chunk = stream.read(size_bytes - len(parts))
        if not chunk:
            raise RefusedError("missing", "the archive ends early")
        parts += chunk
    return bytes(parts)


def _padded(size_bytes: int) -> int:
    return -(-size_bytes // BLOCK_BYTES) * BLOCK_BYTES


def _surprise(found: bytes, expected: str) -> RefusedError:
    """Name what a header that is not the expected one says."""
    if not any(found):
        return RefusedError("missing", f"{expected}: the archive ends before it")
    try:
        info = tarfile.TarInfo.frombuf(found, "utf-8", "strict")
    except (tarfile.HeaderError, UnicodeError):
        return RefusedError("tampered", f"{expected}: its header is damaged")
    if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
        return RefusedError("type", f"{info.name!r} is no plain file")
    if info.name.startswith("/") or ".." in info.name.split("/"):
        return RefusedError("path", f"{info.name!r} leaves the slot")
    if info.name != expected:
        return RefusedError("extra", f"{info.name!r} is where {expected!r} should be")
    return RefusedError("size", f"{info.name!r}: its header differs from the manifest")
