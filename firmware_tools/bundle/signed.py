"""Sign, open and verify bundles: nothing is written before everything has been checked.

Knows nothing about slots, releases or where a bundle came from.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import zstandard

from firmware_tools.bundle import archive
from firmware_tools.bundle.archive import BLOCK_BYTES, Member, archive_bytes
from firmware_tools.bundle.build import MANIFEST, MODE, PAYLOAD, SIGNATURE, write_bundle
from firmware_tools.bundle.manifest import MAX_MANIFEST_BYTES, Manifest
from firmware_tools.bundle.tree import members_of, unpack_members, verify_members
from firmware_tools.errors import RefusedError
from firmware_tools.keys.signing import SIGNATURE_BYTES, SigningKey, VerifyKey

__all__ = ["SignedBundle", "open_bundle", "sign"]

_DOMAIN = b"multispin bundle manifest 1\n"
_KEY_ID_BYTES = 32
_MAX_WINDOW_BYTES = 128 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedBundle:
    """A bundle whose manifest is authentic; its payload is checked by `verify`."""

    path: Path
    manifest: Manifest
    key_id: str
    payload_at: int

    def verify(self) -> None:
        """Check every byte of the payload against the manifest, writing nothing.

        Raises:
            RefusedError: with the reason.
        """
        self._verify_compressed()
        with self.decompressed() as stream:
            verify_members(stream, self.manifest)

    def unpack(self, folder: Path) -> None:
        """Write the slot's files into `folder`, which must be empty, and flush them.

        Call `verify` first. The file is checked again as it is read.
        """
        with self.decompressed() as stream:
            unpack_members(stream, self.manifest, folder)

    def read_file(self, path: str) -> bytes:
        """Return one file of the slot.

        Raises:
            RefusedError: absent.
        """
        found: list[bytes] = []

        def take(member: Member, body: Iterator[bytes]) -> None:
            if member.name == path:
                found.append(b"".join(body))

        with self.decompressed() as stream:
            archive.read_members(stream, members_of(self.manifest), take)
        if not found:
            raise RefusedError("absent", f"the bundle has no {path}; build it again")
        return found[0]

    def decompressed(self) -> _Bounded:
        """Return the payload's archive, which ends with an error beyond its declared size."""
        raw = self.path.open("rb")
        raw.seek(self.payload_at)
        return _Bounded(raw, self.manifest.payload_bytes, archive_bytes(members_of(self.manifest)))

    def _verify_compressed(self) -> None:
        digest = hashlib.sha256()
        with self.path.open("rb") as stream:
            stream.seek(self.payload_at)
            for chunk in _read_exactly(stream, self.manifest.payload_bytes):
                digest.update(chunk)
            if digest.hexdigest() != self.manifest.payload_sha256:
                raise RefusedError("tampered", "the payload is not what the manifest describes")
            archive.skip_padding(stream, self.manifest.payload_bytes)
            archive.read_end(stream)


def open_bundle(path: Path, keys: Sequence[VerifyKey]) -> SignedBundle:
    """Open a bundle and check its signature before a byte of its manifest is believed.

    Raises:
        RefusedError: unsigned, key, tampered, size, missing or format, with what was found.
    """
    try:
        stream = path.open("rb")
    except OSError as error:
        raise RefusedError("absent", f"{path}: {error.strerror}") from error
    with stream:
        encoded = _read_part(stream, MANIFEST, MAX_MANIFEST_BYTES)
        signature = _read_part(stream, SIGNATURE, _KEY_ID_BYTES + SIGNATURE_BYTES)
        key_id = _check_signature(encoded, signature, keys)
        manifest = Manifest.from_bytes(encoded)
        archive.read_header(stream, Member(PAYLOAD, manifest.payload_bytes, MODE))
        return SignedBundle(path=path, manifest=manifest, key_id=key_id, payload_at=stream.tell())


def sign(path: Path, key: SigningKey) -> None:
    """Sign the bundle in place; a bundle signed before gets the new signature instead."""
    with path.open("rb") as stream:
        encoded = _read_part(stream, MANIFEST, MAX_MANIFEST_BYTES)
        _read_part(stream, SIGNATURE, _KEY_ID_BYTES + SIGNATURE_BYTES)
        manifest = Manifest.from_bytes(encoded)
        archive.read_header(stream, Member(PAYLOAD, manifest.payload_bytes, MODE))
        payload = path.with_name(f".{path.name}.payload")
        with payload.open("wb") as copy:
            for chunk in _read_exactly(stream, manifest.payload_bytes):
                copy.write(chunk)
    signature = bytes.fromhex(key.verify_key.key_id) + key.sign(_DOMAIN + encoded)
    try:
        write_bundle(path, encoded, signature, payload)
    finally:
        payload.unlink()


def _check_signature(encoded: bytes, signature: bytes, keys: Sequence[VerifyKey]) -> str:
    if not signature:
        raise RefusedError("unsigned", "no signature; run: multispin bundle sign")
    if len(signature) != _KEY_ID_BYTES + SIGNATURE_BYTES:
        raise RefusedError("tampered", "the signature has a wrong length")
    key_id = signature[:_KEY_ID_BYTES].hex()
    key = next((each for each in keys if each.key_id == key_id), None)
    if key is None:
        raise RefusedError("key", f"signed by {key_id[:16]}…, which is not trusted here")
    if not key.accepts(signature[_KEY_ID_BYTES:], _DOMAIN + encoded):
        raise RefusedError("tampered", "the signature does not fit the manifest")
    return key_id


def _read_part(stream: BinaryIO, name: str, max_bytes: int) -> bytes:
    """Read one small file of the outer archive, whose size its own header gives."""
    block = stream.read(BLOCK_BYTES)
    stream.seek(-len(block), os.SEEK_CUR)
    try:
        size_bytes = int(block[124:135], 8)
    except ValueError as error:
        raise RefusedError("format", f"not a bundle: no {name}") from error
    if size_bytes > max_bytes:
        raise RefusedError("size", f"{name} of {size_bytes} bytes; the most is {max_bytes}")
    archive.read_header(stream, Member(name, size_bytes, MODE))
    content = b"".join(_read_exactly(stream, size_bytes))
    archive.skip_padding(stream, size_bytes)
    return content


def _read_exactly(stream: BinaryIO, size_bytes: int) -> Iterator[bytes]:
    left = size_bytes
    while left:
        chunk = stream.read(min(left, archive.CHUNK_BYTES))
        if not chunk:
            raise RefusedError("missing", "the bundle ends early")
        left -= len(chunk)
        yield chunk


class _Part:
    """The next bytes of a file, as if it ended after them."""

    def __init__(self, raw: BinaryIO, size_bytes: int) -> None:
        self._raw = raw
        self._left = size_bytes

    def read(self, size: int) -> bytes:
        chunk = self._raw.read(min(size, self._left))
        self._left -= len(chunk)
        return chunk


class _Bounded:
    """A zstd stream that refuses to yield more than it may."""

    def __init__(self, raw: BinaryIO, packed_bytes: int, limit_bytes: int) -> None:
        self._raw = raw
        decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES)
        unpacked = decompressor.stream_reader(
            _Part(raw, packed_bytes),  # type: ignore[arg-type] # it only calls read
            read_across_frames=True,
        )
        self._stream = io.BufferedReader(unpacked, archive.CHUNK_BYTES)
        self._left = limit_bytes

    def read(self, size: int = -1, /) -> bytes:
        try:
            chunk = self._stream.read(self._left + 1 if size < 0 else min(size, self._left + 1))
        except zstandard.ZstdError as error:
            raise RefusedError("tampered", f"the payload does not unpack: {error}") from error
        self._left -= len(chunk)
        if self._left < 0:
            raise RefusedError("size", "the payload unpacks to more than the manifest says")
        return chunk

    def __enter__(self) -> _Bounded:
        return self

    def __exit__(self, *_: object) -> None:
        self._raw.close()
