"""Files in a FAT file system inside an image, by mtools: no root, no mount.

Knows nothing about what the files mean.
"""

from __future__ import annotations

import errno
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from firmware_tools.errors import FlashError

__all__ = ["BootFiles", "FatInImage", "MountedFolder"]

_TIMEOUT_S = 600
_FULL = "flash sd: the boot partition is full; use a larger image, or make room on it"


class BootFiles(Protocol):
    """The boot partition's files, wherever they are."""

    def names(self) -> set[str]:
        """Return the names at the top, as written."""
        ...

    def read(self, name: str) -> bytes:
        """Return a file's content."""
        ...

    def write(self, name: str, content: bytes) -> None:
        """Write a file at the top, over one that is there."""
        ...

    def copy_tree(self, source: Path, name: str) -> None:
        """Copy a folder of plain files to the top, as `name`, over one that is there."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FatInImage:
    """A FAT partition of an image file."""

    image: Path
    start_bytes: int

    def names(self) -> set[str]:
        """Return the names at the top, as written."""
        listed = self._run("mdir", "-b", "-f", "::/").decode(errors="replace").splitlines()
        return {line.strip().rstrip("/").rpartition("/")[2] for line in listed if line.strip()}

    def read(self, name: str) -> bytes:
        """Return a file's content."""
        return self._run("mtype", f"::/{name}")

    def write(self, name: str, content: bytes) -> None:
        """Write a file and read it back."""
        with tempfile.NamedTemporaryFile() as file:
            file.write(content)
            file.flush()
            self._run("mcopy", "-o", "-n", file.name, f"::/{name}")
        if self.read(name) != content:
            raise FlashError(f"flash sd: {name} did not read back as it was written")

    def copy_tree(self, source: Path, name: str) -> None:
        """Copy a folder of plain files and read it back."""
        for there in self.names():
            if there.lower() == name.lower():
                self._run("mdeltree", f"::/{there}")
        self._run("mmd", f"::/{name}")
        files = sorted(source.iterdir())
        self._run("mcopy", "-n", *(str(path) for path in files), f"::/{name}/")
        for path in files:
            if self._run("mtype", f"::/{name}/{path.name}") != path.read_bytes():
                raise FlashError(f"flash sd: {path.name} did not read back as it was written")

    def _run(self, program: str, *arguments: str) -> bytes:
        place = f"{self.image}@@{self.start_bytes}"
        done = run([program, "-i", place, *arguments])
        if done.returncode == 0:
            return done.stdout
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        if any("full" in line.lower() for line in said):
            raise FlashError(_FULL)
        raise FlashError(f"flash sd: {program}: {said[-1]}")


@dataclass(frozen=True, slots=True, kw_only=True)
class MountedFolder:
    """A boot partition that the operating system has mounted."""

    folder: Path

    def names(self) -> set[str]:
        """Return the names at the top, as written."""
        return {path.name for path in self.folder.iterdir()}

    def read(self, name: str) -> bytes:
        """Return a file's content."""
        return (self.folder / name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        """Write a file and read it back."""
        self._put(self.folder / name, content)

    def copy_tree(self, source: Path, name: str) -> None:
        """Copy a folder of plain files and read it back."""
        with _explained(self.folder / name):
            (self.folder / name).mkdir(exist_ok=True)
        for path in sorted(source.iterdir()):
            self._put(self.folder / name / path.name, path.read_bytes())

    def _put(self, path: Path, content: bytes) -> None:
        with _explained(path):
            path.write_bytes(content)
        if path.read_bytes() != content:
            raise FlashError(f"flash sd: {path} did not read back as it was written")


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise FlashError(_FULL) from error
        raise FlashError(
            f"flash sd: {path}: {error.strerror}; mount it so that you can write to it"
        ) from error


def run(command: list[str]) -> subprocess.CompletedProcess[bytes]:
    """Run a program of the host, saying which package brings it if it is missing."""
    packages = {"debugfs": "e2fsprogs", "e2fsck": "e2fsprogs"}
    try:
        return subprocess.run(
            command,
            capture_output=True,
            timeout=_TIMEOUT_S,
            check=False,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "MTOOLS_SKIP_CHECK": "1", "LC_ALL": "C"},
        )
    except FileNotFoundError as error:
        package = packages.get(command[0], "mtools")
        raise FlashError(
            f"flash sd: '{command[0]}' is missing; run: apt install {package}"
        ) from error
