"""Writes that survive a power cut: whole files, swapped links and flushed folders.

Every change on a board goes through this module, one function per step that can be the last before
the power goes. Knows nothing about slots or what the bytes mean. Standard library only.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

__all__ = ["remove_tree", "replace_link", "sync_folder", "sync_tree", "write_file"]


def write_file(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Replace `path` by `content`: after a power cut it holds either the old bytes or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as stream:
        os.fchmod(stream.fileno(), mode)
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    fresh.replace(path)
    sync_folder(path.parent)


def replace_link(link: Path, target: str) -> None:
    """Point the symbolic link at `target`: after a power cut it points at the old or the new."""
    fresh = link.with_name(f".{link.name}.new")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.replace(link)
    sync_folder(link.parent)


def sync_folder(folder: Path) -> None:
    """Flush a folder's own entries to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Flush every folder below `folder`, itself last; whoever writes a file flushes it."""
    for root, _, _ in os.walk(folder, topdown=False):
        sync_folder(Path(root))


def remove_tree(folder: Path) -> None:
    """Delete a folder, if it is there, and flush that it is gone."""
    if folder.is_symlink() or folder.is_file():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)
    if folder.parent.exists():
        sync_folder(folder.parent)
