"""A file that arrives in blocks, in any order, over any number of restarts.

Beside the data lies a map of the blocks that are safely on disk; both are dropped when they belong
to another file. Knows nothing about the network.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from firmware_tools.durable import write_file

__all__ = ["PartFile", "remove_part"]

_FLUSH_BYTES = 4 << 20


class PartFile:
    """The blocks of one file; a context manager that owns the open file."""

    def __init__(self, *, path: Path, sha256: str, size_bytes: int, block_bytes: int) -> None:
        """Go on with what is there, if it is of the same file in the same blocks."""
        self.path = path
        self.size_bytes = size_bytes
        self.block_bytes = block_bytes
        self.count = -(-size_bytes // block_bytes)
        self._map = path.with_name(f"{path.name}.map")
        self._key = {"sha256": sha256, "size_bytes": size_bytes, "block_bytes": block_bytes}
        self._have = self._load()
        self._unflushed_bytes = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        if not self._have:
            path.unlink(missing_ok=True)
        self._stream = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b")

    @property
    def missing(self) -> list[int]:
        """Blocks still to come, in order."""
        return [index for index in range(self.count) if index not in self._have]

    @property
    def done_bytes(self) -> int:
        """Bytes that are here."""
        return sum(self.length(index) for index in self._have)

    def length(self, index: int) -> int:
        """Return how many bytes block `index` has."""
        return min(self.block_bytes, self.size_bytes - index * self.block_bytes)

    def put(self, index: int, data: bytes) -> bool:
        """Keep a block; False if it is none of this file, or is here already."""
        if not 0 <= index < self.count or len(data) != self.length(index) or index in self._have:
            return False
        self._stream.seek(index * self.block_bytes)
        self._stream.write(data)
        self._have.add(index)
        self._unflushed_bytes += len(data)
        if self._unflushed_bytes >= _FLUSH_BYTES:
            self.flush()
        return True

    def flush(self) -> None:
        """Bring the data to the disk, then the map that vouches for it."""
        self._stream.flush()
        os.fsync(self._stream.fileno())
        write_file(self._map, json.dumps(self._key | {"have": sorted(self._have)}).encode())
        self._unflushed_bytes = 0

    def discard(self) -> None:
        """Forget everything: it was not what it should be."""
        self._have.clear()
        remove_part(self.path)

    def __enter__(self) -> PartFile:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._have:
                self.flush()
        finally:
            self._stream.close()

    def _load(self) -> set[int]:
        try:
            found = json.loads(self._map.read_bytes())
            have = {int(index) for index in found.pop("have")}
        except (OSError, ValueError, KeyError, AttributeError):
            return set()
        whole = self.path.exists() and found == self._key
        return {index for index in have if 0 <= index < self.count} if whole else set()


def remove_part(path: Path) -> None:
    """Delete a part file and its map, the map first."""
    path.with_name(f"{path.name}.map").unlink(missing_ok=True)
    path.unlink(missing_ok=True)
