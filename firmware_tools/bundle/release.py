"""The release folder: bundles with TUF metadata, made by python-tuf and signed with our keys.

    RELEASE/metadata/  N.root.json  N.targets.json  N.snapshot.json  timestamp.json
    RELEASE/targets/   BOARD-pyPYTHON-VERSION.bundle

Whoever holds only the online key can refresh the timestamp, not add a bundle. Knows nothing about
how boards fetch it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner  # type: ignore[attr-defined]
from tuf.api.metadata import (  # type: ignore[attr-defined]
    Metadata,
    MetaFile,
    Root,
    Signed,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from firmware_tools.bundle.manifest import Manifest
from firmware_tools.bundle.signed import open_bundle
from firmware_tools.durable import write_file
from firmware_tools.errors import BundleError
from firmware_tools.keys import KeyStore

__all__ = ["Release", "target_name"]

_ROLES = {"root": "root", "targets": "targets", "snapshot": "online", "timestamp": "online"}
_LIFE = {
    "root": timedelta(days=3650),
    "targets": timedelta(days=365),
    "snapshot": timedelta(days=90),
    "timestamp": timedelta(days=90),
}


def target_name(manifest: Manifest) -> str:
    """Return the bundle's name in a release."""
    return f"{manifest.board}-py{manifest.python}-{manifest.version}.bundle"


class Release:
    """A release folder, opened with the keys that sign it."""

    def __init__(self, *, folder: Path, keys: KeyStore, now: datetime) -> None:
        self.folder = folder
        self._keys = keys
        self._now = now

    @property
    def metadata(self) -> Path:
        """Where the metadata is."""
        return self.folder / "metadata"

    @property
    def targets(self) -> Path:
        """Where the bundles are."""
        return self.folder / "targets"

    def first_root(self) -> bytes:
        """Return the root that boards are flashed with, making the release's first if need be."""
        path = self.metadata / "1.root.json"
        if not path.exists():
            self._save(self._signed(self._root(1), [self._keys]), "1.root.json")
        return path.read_bytes()

    def add(self, bundles: Iterable[Path]) -> list[str]:
        """Verify signed bundles, copy them in, and sign metadata that names them.

        Raises:
            RefusedError: for a bundle that is unsigned or damaged.
            BundleError: for a release that is not newer than the newest for its board and Python.
        """
        self.first_root()
        targets = self._latest(Targets)
        names = []
        for path in bundles:
            bundle = open_bundle(path, [self._keys.verify_key("bundle")])
            bundle.verify()
            names.append(self._add_target(targets, path, bundle.manifest))
        if names or targets.version == 0:
            self._publish(targets)
        self.refresh()
        return names

    def refresh(self) -> None:
        """Sign a new snapshot and timestamp, so that boards see that this is the newest release."""
        snapshot = self._latest(Snapshot)
        targets_version = self._latest(Targets).version
        snapshot.meta = {"targets.json": MetaFile(version=targets_version)}
        self._publish(snapshot)
        timestamp = self._latest(Timestamp)
        timestamp.snapshot_meta = MetaFile(version=snapshot.version)
        self._publish(timestamp)

    def rotate(self, new: KeyStore) -> None:
        """Replace every key by those of `new`: the new root is signed by the old and the new."""
        self.first_root()
        root = self._root(self._root_version() + 1, new)
        self._save(self._signed(root, [self._keys, new]), f"{root.version}.root.json")
        self._keys = new
        self._publish(self._latest(Targets))
        self.refresh()

    def _add_target(self, targets: Targets, path: Path, manifest: Manifest) -> str:
        name = target_name(manifest)
        for other, known in targets.targets.items():
            custom = known.custom or {}
            same = (custom["board"], custom["python"]) == (manifest.board, manifest.python)
            if same and custom["release"] >= manifest.release:
                raise BundleError(
                    f"bundle sign: {name} has release {manifest.release}, not above "
                    f"{other}'s {custom['release']}; build it with a higher --version or --release"
                )
        self.targets.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, self.targets / name)
        target = TargetFile.from_file(name, str(self.targets / name))
        target.unrecognized_fields["custom"] = {
            "board": manifest.board,
            "python": manifest.python,
            "release": manifest.release,
            "version": manifest.version,
        }
        targets.targets[name] = target
        return name

    def _latest(self, kind: Any) -> Any:
        """Return the newest signed part of this kind, or a new one of version 0."""
        name = kind.type
        found = sorted(self.metadata.glob(f"*{name}.json"), key=_version_in_name)
        if found:
            return Metadata.from_file(str(found[-1])).signed
        part = kind(version=1, expires=self._now + _LIFE[name])
        part.version = 0
        return part

    def _publish(self, part: Signed) -> None:
        part.version += 1
        part.expires = self._now + _LIFE[part.type]
        name = f"{part.type}.json"
        self._save(
            self._signed(part, [self._keys]),
            name if part.type == "timestamp" else f"{part.version}.{name}",
        )

    def _signed(self, part: Signed, stores: list[KeyStore]) -> Metadata[Any]:
        metadata: Metadata[Any] = Metadata(part)
        for store in stores:
            metadata.sign(_signer(store, part.type), append=True)
        return metadata

    def _root(self, version: int, keys: KeyStore | None = None) -> Root:
        root = Root(version=version, expires=self._now + _LIFE["root"], consistent_snapshot=True)
        for role in _ROLES:
            root.add_key(_signer(keys or self._keys, role).public_key, role)
        return root

    def _root_version(self) -> int:
        return max(_version_in_name(path) for path in self.metadata.glob("*.root.json"))

    def _save(self, metadata: Metadata[Any], name: str) -> None:
        write_file(self.metadata / name, metadata.to_bytes())


def _signer(keys: KeyStore, role: str) -> CryptoSigner:
    return CryptoSigner(keys.signing_key(_ROLES[role]).private)


def _version_in_name(path: Path) -> int:
    first = path.name.split(".")[0]
    return int(first) if first.isdigit() else 0
