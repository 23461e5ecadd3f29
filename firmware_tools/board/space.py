"""Room on the board's disk, asked for before anything is written. Standard library only."""

from __future__ import annotations

import shutil
from pathlib import Path

from firmware_tools.errors import SlotError

__all__ = ["check_space", "size_of"]


def check_space(folder: Path, needed_bytes: int) -> None:
    """Check that `needed_bytes` more fit where `folder` is, or will be.

    Raises:
        SlotError: if they do not.
    """
    there = next(each for each in (folder, *folder.parents) if each.exists())
    free_bytes = shutil.disk_usage(there).free
    if free_bytes < needed_bytes:
        raise SlotError(
            f"slots: the disk with {folder} is full: {_mib(needed_bytes)} MiB are needed, "
            f"{_mib(free_bytes)} are free; make room or use a larger card, then update again"
        )


def size_of(folder: Path) -> int:
    """Return how many bytes the files below `folder` hold; 0 if it is not there."""
    return sum(path.lstat().st_size for path in folder.rglob("*"))


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):.1f}"
