"""Build a bundle: the same inputs give the same bytes, whatever the clock, umask, locale or folder.

    bundle = archive of  manifest.json   the sole index, first
                         manifest.sig    empty until signed, then key id and signature
                         payload.tar.zst the slot's files, in the manifest's order

    slot   = bin/multispin  lib/ (SDK and locked packages)  model/  config/  systemd/

(zstd's output depends on its version: build with the locked `zstandard` to compare bytes.)
Knows nothing about keys or how the packages were resolved.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import zstandard

import firmware_tools
import sdk
from firmware_tools.bundle import archive
from firmware_tools.bundle.archive import Member
from firmware_tools.bundle.manifest import FileEntry, GoldenDraft, Manifest
from firmware_tools.bundle.packages import glibc_needed, libraries_needed, version_of
from firmware_tools.errors import BundleError
from sdk.model.manifest import Manifest as ModelManifest
from sdk.model.runtime import lacks

__all__ = ["BundleRecipe", "build", "member_of"]

MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"
PAYLOAD = "payload.tar.zst"
MODE = 0o644
_LEVEL = 9
# Packages' own tests and stubs are nearly a third of their files, and no board reads them.
_LEFT_OUT = {"__pycache__", "bin", "tests"}
_LEFT_OUT |= {"RECORD", "INSTALLER", "REQUESTED", "uv_cache.json", ".lock"}
_SUFFIXES_LEFT_OUT = {".pyc", ".pyi"}
_LAUNCHER = b"""\
#!/bin/sh
# The command of this slot, with this slot's packages alone.
slot=$(dirname "$(dirname "$(readlink -f "$0")")")
PYTHONPATH="$slot/lib" exec python3 -s -m sdk.cli "$@"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleRecipe:
    """Everything that goes into a bundle.

    Attributes:
        board, python, version, release: as in the manifest.
        model: folder of the ONNX drafter; config: template of the board's configuration.
        packages: folder of unpacked aarch64 packages.
        golden: what the drafter answers.
    """

    board: str
    python: str
    version: str
    release: int
    model: Path
    config: Path
    packages: Path
    golden: GoldenDraft

    def __post_init__(self) -> None:
        for name, path in (("model.onnx", self.model), ("manifest.json", self.model)):
            if not (path / name).is_file():
                raise BundleError(f"bundle build: {path} has no {name}; give --model a drafter")
        if not self.config.is_file():
            raise BundleError(f"bundle build: {self.config} is no file; give --config a template")
        runtime = version_of("onnxruntime", self.packages)
        reason = lacks(ModelManifest.load(self.model), runtime) if runtime else ""
        if reason:
            raise BundleError(
                f"bundle build: {self.model} {reason} (the packages for Python {self.python} bring "
                f"onnxruntime {runtime})"
            )


def build(recipe: BundleRecipe, out: Path) -> Manifest:
    """Write the unsigned bundle to `out` and return its manifest.

    Raises:
        BundleError: for a link or special file among the inputs, or a name that is too long.
    """
    sources = _sources(recipe)
    payload = out.with_name(f".{out.name}.payload")
    try:
        manifest = _manifest(recipe, _write_payload(sources, payload), payload)
        write_bundle(out, manifest.to_bytes(), b"", payload)
    except ValueError as error:
        raise BundleError(f"bundle build: {error}") from error
    finally:
        payload.unlink(missing_ok=True)
    return manifest


def write_bundle(out: Path, manifest: bytes, signature: bytes, payload: Path) -> None:
    """Write the outer archive; `out` appears whole or not at all."""
    fresh = out.with_name(f".{out.name}.new")
    parts: list[tuple[Member, Iterable[bytes]]] = [
        (Member(MANIFEST, len(manifest), MODE), [manifest]),
        (Member(SIGNATURE, len(signature), MODE), [signature]),
        (Member(PAYLOAD, payload.stat().st_size, MODE), _chunks(payload)),
    ]
    with fresh.open("wb") as stream:
        archive.write(stream, parts)
    fresh.replace(out)


def member_of(entry: FileEntry) -> Member:
    """Return the archive member of a manifest entry."""
    return Member(entry.path, entry.size_bytes, entry.mode)


def _sources(recipe: BundleRecipe) -> dict[str, Path | bytes]:
    """Return where each file of the slot comes from, sorted by its path."""
    found: dict[str, Path | bytes] = {"bin/multispin": _LAUNCHER}
    found["config/multispin.toml"] = recipe.config
    metadata = f"Metadata-Version: 2.1\nName: multispin\nVersion: {recipe.version}\n"
    found[f"lib/multispin-{recipe.version}.dist-info/METADATA"] = metadata.encode()
    _add(found, "lib", recipe.packages)
    for package in (sdk, firmware_tools):
        _add(found, f"lib/{package.__name__}", Path(str(package.__file__)).parent)
    _add(found, "model", recipe.model)
    _add(found, "systemd", Path(str(firmware_tools.__file__)).parent / "systemd")
    return dict(sorted(found.items()))


def _add(found: dict[str, Path | bytes], prefix: str, folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        below = path.relative_to(folder)
        if _LEFT_OUT.intersection(below.parts) or path.suffix in _SUFFIXES_LEFT_OUT:
            continue
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise BundleError(f"bundle build: {path} is a link or no plain file; leave it out")
        if path.is_file():
            found[f"{prefix}/{below.as_posix()}"] = path


def _write_payload(sources: Mapping[str, Path | bytes], payload: Path) -> list[FileEntry]:
    """Compress every file into `payload` and return what went in, from the same reading."""
    entries: list[FileEntry] = []

    def members() -> Iterator[tuple[Member, Iterable[bytes]]]:
        for name, source in sources.items():
            digest = hashlib.sha256()
            size_bytes = len(source) if isinstance(source, bytes) else source.stat().st_size
            yield Member(name, size_bytes, _mode(name)), _hashed(source, digest)
            entries.append(
                FileEntry(
                    path=name,
                    size_bytes=size_bytes,
                    sha256=digest.hexdigest(),
                    mode=_mode(name),
                )
            )

    compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=False)
    with payload.open("wb") as stream, compressor.stream_writer(stream) as packed:
        archive.write(packed, members())
    return entries


def _manifest(recipe: BundleRecipe, entries: Sequence[FileEntry], payload: Path) -> Manifest:
    digests = {entry.path: entry.sha256 for entry in entries}
    payload_digest = hashlib.sha256()
    for _ in _hashed(payload, payload_digest):
        pass
    return Manifest(
        board=recipe.board,
        python=recipe.python,
        glibc=glibc_needed(recipe.packages),
        libraries=libraries_needed(recipe.packages),
        version=recipe.version,
        release=recipe.release,
        model_sha256=digests["model/model.onnx"],
        tokenizer_sha256=digests.get("model/tokenizer.json", ""),
        golden=recipe.golden,
        payload_bytes=payload.stat().st_size,
        payload_sha256=payload_digest.hexdigest(),
        files=tuple(entries),
    )


def _mode(name: str) -> int:
    return 0o755 if name.startswith("bin/") else MODE


def _hashed(source: Path | bytes, digest: hashlib._Hash) -> Iterator[bytes]:
    for chunk in [source] if isinstance(source, bytes) else _chunks(source):
        digest.update(chunk)
        yield chunk


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb", buffering=0) as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        while chunk := stream.read(archive.CHUNK_BYTES):
            yield chunk
