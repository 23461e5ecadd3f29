"""Which mappings are moved into huge pages, and that moving them changes no byte."""

from __future__ import annotations

import mmap
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from sdk.model.huge_pages import MAPPINGS, PAGE_BYTES, resident_mappings, use_huge_pages

KB = PAGE_BYTES // 1024


def entry(start: int, pages: int, resident_kb: int, *, access: str = "rw-p", name: str = "") -> str:
    """Return a mapping of so many huge pages as the kernel writes it."""
    inode = 7 if name.startswith("/") else 0
    end = start + pages * PAGE_BYTES
    size = f"Size: {pages * KB} kB\nKernelPageSize: 4 kB"
    header = f"{start:x}-{end:x} {access} 00000000 00:00 {inode} {name}"
    return f"{header}\n{size}\nRss:    {resident_kb} kB\n"


@pytest.mark.parametrize(
    ("text", "moved"),
    [
        (entry(0x40000000, 8, 8 * KB), True),
        (entry(0x40000000, 8, 8 * KB, name="[heap]"), True),
        (entry(0x40000000, 8, 6 * KB), True),
        (entry(0x40000000, 8, 6 * KB - 4), False),  # a thread's stack, an arena's reserve
        (entry(0x40000000, 1, KB), False),  # holds no whole page unless it starts on one
        (entry(0x40000000, 8, 8 * KB, access="r--p"), False),
        (entry(0x40000000, 8, 8 * KB, access="rw-s"), False),
        (entry(0x40000000, 8, 8 * KB, name="/usr/lib/lib.so"), False),
        (entry(0x40000000, 8, 8 * KB, name="[stack]"), False),
    ],
)
def test_only_filled_private_memory_is_moved(text: str, moved: bool) -> None:
    expected = [(0x40000000, 0x40000000 + 8 * PAGE_BYTES)] if moved else []
    assert list(resident_mappings(text)) == expected


def test_mappings_are_told_apart() -> None:
    small, large = entry(0x40000000, 8, 4), entry(0x80000000, 4, 4 * KB)
    found = list(resident_mappings(large + small + large + "VmFlags: rd wr\n"))
    assert [start for start, _ in found] == [0x80000000, 0x80000000]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="huge pages are Linux's")
def test_moved_memory_keeps_its_bytes() -> None:
    memory = mmap.mmap(-1, 16 * PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    array = np.frombuffer(memory, np.uint64)
    array[:] = np.arange(array.size, dtype=np.uint64)
    moved = use_huge_pages()
    assert moved % PAGE_BYTES == 0
    assert (array == np.arange(array.size, dtype=np.uint64)).all()
    if moved:  # else this kernel does not move memory at once
        start = array.ctypes.data
        assert huge_bytes_at(start) >= 14 * PAGE_BYTES


def huge_bytes_at(address: int) -> int:
    """Return how much of the mapping around an address lies in huge pages."""
    inside = False
    for line in MAPPINGS.read_text().splitlines():
        if header := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(header[1], 16) <= address < int(header[2], 16)
        elif inside and (size := re.match(r"AnonHugePages: +(\d+) kB", line)):
            return int(size[1]) * 1024
    return 0


def test_a_kernel_that_is_told_never_is_not_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = tmp_path / "enabled"
    setting.write_text("always madvise [never]\n")
    monkeypatch.setattr("sdk.model.huge_pages.SETTING", setting)
    monkeypatch.setattr("sdk.model.huge_pages.resident_mappings", pytest.fail)
    assert use_huge_pages() == 0
