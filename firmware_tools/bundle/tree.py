"""A slot's files between an archive and a folder: checked by hash, written once, flushed.

Standard library only: the first installation on a bare board runs this. Knows nothing about
compression, signatures or slots.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from firmware_tools.bundle.archive import Member, Readable, read_members
from firmware_tools.bundle.manifest import FileEntry, Manifest
from firmware_tools.durable import sync_folder
from firmware_tools.errors import RefusedError

__all__ = ["check_folder", "members_of", "unpack_members", "verify_members"]

_CHUNK_BYTES = 1 << 20


def members_of(manifest: Manifest) -> list[Member]:
    """Return the archive members that a manifest describes, in order."""
    return [Member(each.path, each.size_bytes, each.mode) for each in manifest.files]


def verify_members(stream: Readable, manifest: Manifest) -> None:
    """Read the archive to its end and check every file's hash.

    Raises:
        RefusedError: for the first difference.
    """
    entries = {entry.path: entry for entry in manifest.files}

    def take(member: Member, body: Iterator[bytes]) -> None:
        for _ in _checked(entries[member.name], body):
            pass

    read_members(stream, members_of(manifest), take)


def unpack_members(stream: Readable, manifest: Manifest, folder: Path) -> None:
    """Write every file below `folder`, never over an existing one, and flush all of it."""
    entries = {entry.path: entry for entry in manifest.files}

    def take(member: Member, body: Iterator[bytes]) -> None:
        path = folder / member.name
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with os.fdopen(os.open(path, flags, member.mode), "wb") as out:
            os.fchmod(out.fileno(), member.mode)
            for chunk in _checked(entries[member.name], body):
                out.write(chunk)

    folder.mkdir(parents=True, exist_ok=True)
    read_members(stream, members_of(manifest), take)
    (folder / "manifest.json").write_bytes(manifest.to_bytes())
    os.sync()  # one flush of everything: thousands of fsyncs take minutes on a card
    sync_folder(folder.parent)


def check_folder(manifest: Manifest, folder: Path) -> str:
    """Return "" if every file in `folder` is the manifest's, otherwise what differs."""
    for entry in manifest.files:
        difference = _difference(entry, folder / entry.path)
        if difference:
            return difference
    return ""


def _difference(entry: FileEntry, path: Path) -> str:
    try:
        with path.open("rb") as stream:
            for _ in _checked(entry, iter(lambda: stream.read(_CHUNK_BYTES), b"")):
                pass
    except OSError as error:
        return f"{entry.path}: {error.strerror}"
    except RefusedError as error:
        return str(error)
    return ""


def _checked(entry: FileEntry, body: Iterator[bytes]) -> Iterator[bytes]:
    digest = hashlib.sha256()
    for chunk in body:
        digest.update(chunk)
        yield chunk
    if digest.hexdigest() != entry.sha256:
        raise RefusedError("tampered", f"{entry.path} is not what the manifest describes")
