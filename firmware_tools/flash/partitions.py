"""Read the partition table of a disk image: MBR (primary partitions), GPT (UEFI 2.10, 5.3).

Knows nothing about file systems beyond telling FAT and ext4 by their magic numbers.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import BinaryIO

from firmware_tools.errors import FlashError

__all__ = ["Partition", "read_partitions"]

SECTOR_BYTES = 512
_PROTECTIVE = 0xEE
_EXTENDED = {0x05, 0x0F, 0x85}
_MAX_ENTRIES = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """One partition: number from 1, place and size in bytes, and "fat", "ext4" or ""."""

    number: int
    start_bytes: int
    size_bytes: int
    kind: str


def read_partitions(image: BinaryIO, image_bytes: int) -> list[Partition]:
    """Return the partitions of an image, in the table's order.

    Raises:
        FlashError: if there is no table, or it points beyond the image.
    """
    image.seek(0)
    first = image.read(SECTOR_BYTES)
    if len(first) < SECTOR_BYTES or first[510:] != b"\x55\xaa":
        raise FlashError("flash sd: the image has no partition table; is it a disk image?")
    entries = [struct.unpack_from("<B3xB3xII", first, 446 + 16 * row) for row in range(4)]
    if any(kind == _PROTECTIVE for _, kind, _, _ in entries):
        extents = _read_gpt(image)
    else:
        extents = [
            (row + 1, start, count)
            for row, (_, kind, start, count) in enumerate(entries)
            if count and kind not in _EXTENDED
        ]
    found = []
    for number, start, count in extents:
        if (start + count) * SECTOR_BYTES > image_bytes:
            raise FlashError(
                f"flash sd: partition {number} lies beyond the image; is it cut short?"
            )
        found.append(
            Partition(
                number=number,
                start_bytes=start * SECTOR_BYTES,
                size_bytes=count * SECTOR_BYTES,
                kind=_kind(image, start * SECTOR_BYTES),
            )
        )
    return found


def _read_gpt(image: BinaryIO) -> list[tuple[int, int, int]]:
    image.seek(SECTOR_BYTES)
    header = image.read(92)
    if header[:8] != b"EFI PART":
        raise FlashError("flash sd: the image's GPT is missing; is it cut short?")
    (check,) = struct.unpack_from("<I", header, 16)
    if zlib.crc32(header[:16] + bytes(4) + header[20:92]) != check:
        raise FlashError("flash sd: the image's GPT is damaged; download it again")
    (table_at,) = struct.unpack_from("<Q", header, 72)
    count, entry_bytes, table_check = struct.unpack_from("<III", header, 80)
    if count > _MAX_ENTRIES or not 128 <= entry_bytes <= 4096:
        raise FlashError("flash sd: the image's GPT is damaged; download it again")
    image.seek(table_at * SECTOR_BYTES)
    table = image.read(count * entry_bytes)
    if zlib.crc32(table) != table_check:
        raise FlashError("flash sd: the image's GPT is damaged; download it again")
    rows = [table[row * entry_bytes :][:entry_bytes] for row in range(count)]
    found = []
    for row, entry in enumerate(rows):
        first, last = struct.unpack_from("<QQ", entry, 32)
        if any(entry[:16]):
            found.append((row + 1, first, last - first + 1))
    return found


def _kind(image: BinaryIO, start_bytes: int) -> str:
    image.seek(start_bytes)
    head = image.read(2048)
    if head[510:512] == b"\x55\xaa" and (head[54:57] == b"FAT" or head[82:85] == b"FAT"):
        return "fat"
    return "ext4" if head[1080:1082] == b"\x53\xef" else ""
