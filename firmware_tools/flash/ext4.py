"""Files in an ext4 file system inside an image, by debugfs on a copy of the partition: no root.

debugfs exits 0 whatever happens, so its messages are read, and e2fsck must find nothing before and
after. Knows nothing about what the files mean.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from firmware_tools.errors import FlashError
from firmware_tools.flash.fat import run

__all__ = ["Ext4Copy", "edit_partition", "read_file"]

_CHUNK_BYTES = 1 << 20
_BANNER = "debugfs 1."


@dataclass(frozen=True, slots=True, kw_only=True)
class RootFile:
    """One file to put there: content, or a link's target, and its mode."""

    content: bytes | Path = b""
    link: str = ""
    mode: int = 0o644


@dataclass(frozen=True, slots=True, kw_only=True)
class Ext4Copy:
    """A partition copied out of its image."""

    path: Path
    written: list[str] = field(default_factory=list)

    def put(self, files: Mapping[str, RootFile]) -> None:
        """Write files by absolute path, making folders, over what is there; owner root."""
        for name in sorted({str(p) for n in files for p in PurePosixPath(n).parents} - {"/"}):
            if not self.exists(name):
                self._change(f"mkdir {name}", f"set_inode_field {name} mode 040755")
        for name, file in files.items():
            if self.exists(name):
                self._change(f"rm {name}")
            self._put_one(name, file)

    def exists(self, name: str) -> bool:
        """Say whether there is something at this path."""
        return "File not found" not in self._debugfs("-R", f"stat {name}")[1]

    def _put_one(self, name: str, file: RootFile) -> None:
        if file.link:
            self._change(f"symlink {name} {file.link}")
            return
        with tempfile.NamedTemporaryFile() as source:
            path = file.content
            if isinstance(path, bytes):
                source.write(path)
                source.flush()
                path = Path(source.name)
            mode = f"set_inode_field {name} mode 0{0o100000 | file.mode:o}"
            owner = [f"set_inode_field {name} {who} 0" for who in ("uid", "gid")]
            self._change(f"write {path} {name}", mode, *owner)
            if read_file(self.path, 0, name) != path.read_bytes():
                raise FlashError(f"flash sd: {name} did not read back as it was written")

    def _change(self, *commands: str) -> None:
        with tempfile.NamedTemporaryFile("w") as script:
            script.write("\n".join([*commands, ""]))
            script.flush()
            _, said = self._debugfs("-w", "-f", script.name)
        complaints = [line for line in said.splitlines() if line and not line.startswith(_BANNER)]
        if any("No free" in line or "Could not allocate" in line for line in complaints):
            raise FlashError("flash sd: the root partition is full; use a larger image")
        if complaints:
            raise FlashError(f"flash sd: debugfs: {complaints[0]}")

    def _debugfs(self, *arguments: str) -> tuple[bytes, str]:
        done = run(["debugfs", *arguments, str(self.path)])
        return done.stdout, done.stderr.decode(errors="replace")


@contextmanager
def edit_partition(image: Path, start_bytes: int, size_bytes: int) -> Iterator[Ext4Copy]:
    """Copy a partition out, let it be edited, check it, and copy it back.

    Raises:
        FlashError: if it is damaged, or in use (its journal not played), before or after.
    """
    with tempfile.TemporaryDirectory(dir=image.parent) as folder:
        copy = Path(folder) / "partition"
        _copy(image, start_bytes, copy, 0, size_bytes)
        _check(copy, "is damaged or was not shut down; boot it once, or download it again")
        yield Ext4Copy(path=copy)
        _check(copy, "did not survive the edit; this is a bug")
        _copy(copy, 0, image, start_bytes, size_bytes)


def read_file(image: Path, start_bytes: int, name: str) -> bytes | None:
    """Return a file's content, None if there is none."""
    done = run(["debugfs", "-R", f"cat {name}", f"{image}?offset={start_bytes}"])
    said = [line for line in done.stderr.decode(errors="replace").splitlines() if line]
    return None if any(not line.startswith(_BANNER) for line in said) else done.stdout


def _check(partition: Path, what: str) -> None:
    if run(["e2fsck", "-fn", str(partition)]).returncode:
        raise FlashError(f"flash sd: the image's root file system {what}")


def _copy(source: Path, source_at: int, target: Path, target_at: int, size_bytes: int) -> None:
    """Copy bytes, leaving holes where the target is new and the source is zero."""
    fresh = not target.exists()
    with source.open("rb") as reading, target.open("wb" if fresh else "r+b") as writing:
        reading.seek(source_at)
        for at in range(0, size_bytes, _CHUNK_BYTES):
            chunk = reading.read(min(_CHUNK_BYTES, size_bytes - at))
            if any(chunk) or not fresh:
                writing.seek(target_at + at)
                writing.write(chunk)
        if fresh:
            writing.truncate(target_at + size_bytes)
