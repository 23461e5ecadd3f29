"""Moves what this process holds in memory into huge pages, on Linux.

A model reads all its weights for every token. In pages of 4 KiB the processor looks up an address
for every 4,096 bytes of them, and inside a virtual machine each look-up is a walk of two tables;
in pages of 2 MiB there are 512 times fewer. ONNX Runtime allocates its weights itself, so they are
moved once they are there. Knows nothing about models.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from pathlib import Path

__all__ = ["resident_mappings", "use_huge_pages"]

MAPPINGS = Path("/proc/self/smaps")
SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")  # MADV_COLLAPSE does not ask it
PAGE_BYTES = 2 << 20
FILLED = 0.75  # of a mapping must be in use: to move the rest would take memory for nothing
MADV_HUGEPAGE, MADV_COLLAPSE = 14, 25  # the second since Linux 6.1; before, the kernel moves later
HEADER = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw-p \S+ \S+ 0 +(\[heap\])?$")
RESIDENT = re.compile(r"Rss: +(\d+) kB$")


def use_huge_pages() -> int:
    """Move this process's large, filled mappings; return how many bytes were moved at once.

    A kernel that cannot, or is told never to use huge pages, moves nothing; nothing else changes.
    """
    if SETTING.exists() and "[never]" in SETTING.read_text():
        return 0
    advise = getattr(ctypes.CDLL(None), "madvise", None) if MAPPINGS.exists() else None
    if advise is None:
        return 0
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    moved = 0
    for start, end in resident_mappings(MAPPINGS.read_text()):
        first = -(-start // PAGE_BYTES) * PAGE_BYTES
        length = end // PAGE_BYTES * PAGE_BYTES - first
        advise(first, length, MADV_HUGEPAGE)
        moved += 0 if advise(first, length, MADV_COLLAPSE) else length
    return moved


def resident_mappings(smaps: str) -> Iterator[tuple[int, int]]:
    """Yield start and end of every private, writable mapping without a file that is filled."""
    found: tuple[int, int] | None = None
    for line in smaps.splitlines():
        if header := HEADER.match(line):
            found = int(header[1], 16), int(header[2], 16)
        elif found and (resident := RESIDENT.match(line)):
            start, end = found
            size = end - start
            if size >= 2 * PAGE_BYTES and int(resident[1]) * 1024 >= FILLED * size:
                yield found
            found = None
