"""The first installation, from a seed: a folder with everything that a bare board needs.

    guard.pyz  manifest.json  payload.tar.gz          the slot (the host verified its signature)
    multispin.toml  ca.crt  device.crt  device.key    this board's own
    bundle.pub  root.json  clock                      what it will trust from now on

Standard library only: a board has no zstd and no Ed25519 before its first slot. Every file is
checked against the manifest's hashes. A second run changes nothing.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import platform
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from firmware_tools.board.paths import BoardPaths
from firmware_tools.board.slots import Slots
from firmware_tools.bundle.manifest import Manifest
from firmware_tools.bundle.tree import unpack_members, verify_members
from firmware_tools.durable import write_file
from firmware_tools.errors import RefusedError

__all__ = [
    "CLOCK",
    "GUARD",
    "IDENTITY",
    "MANIFEST",
    "PAYLOAD",
    "Host",
    "identity_digest",
    "install_seed",
]

MANIFEST, PAYLOAD, GUARD, CLOCK = "manifest.json", "payload.tar.gz", "guard.pyz", "clock"
DIGEST = "identity.sha256"
IDENTITY = ("multispin.toml", "ca.crt", "device.crt", "device.key", "bundle.pub", "root.json")
_SECRET = {"device.key", "multispin.toml"}
_UNIT = "multispin.service"


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What the machine that runs this is."""

    machine: str
    python: str
    glibc: tuple[int, ...]

    @classmethod
    def present(cls) -> Host:
        """Return this machine."""
        version = platform.libc_ver()[1]
        return cls(
            machine=platform.machine(),
            python=".".join(str(part) for part in sys.version_info[:2]),
            glibc=tuple(int(part) for part in re.findall(r"\d+", version)[:2]),
        )

    def check(self, manifest: Manifest) -> None:
        """Refuse a bundle that cannot run here.

        Raises:
            RefusedError: board or python.
        """
        if self.machine != "aarch64":
            raise RefusedError("board", f"this machine is {self.machine}, the bundle for aarch64")
        if self.python != manifest.python:
            raise RefusedError(
                "python",
                f"this board has Python {self.python}, the bundle is for {manifest.python}; build "
                f"with --python {self.python}",
            )
        needed = tuple(int(part) for part in manifest.glibc.split("."))
        if self.glibc and self.glibc < needed:
            found = ".".join(map(str, self.glibc))
            raise RefusedError(
                "board", f"this board has glibc {found}, the bundle needs {manifest.glibc}"
            )


def install_seed(seed: Path, paths: BoardPaths, host: Host) -> bool:
    """Install from a seed folder; return False if this release is there already.

    Raises:
        RefusedError: for another board, Python or C library, damaged or older files.
        SlotError: while another release is on trial.
    """
    manifest = Manifest.from_bytes((seed / MANIFEST).read_bytes())
    host.check(manifest)
    with gzip.open(seed / PAYLOAD) as stream:
        verify_members(stream, manifest)
    slots = Slots(paths)
    slots.admits(manifest)
    _copy_identity(seed, paths)
    write_file(paths.guard, (seed / GUARD).read_bytes(), mode=0o755)

    def unpack(folder: Path) -> None:
        with gzip.open(seed / PAYLOAD) as stream:
            unpack_members(stream, manifest, folder)

    changed = slots.install(manifest, unpack)
    _enable(paths, slots.load().active)
    return changed


def _copy_identity(seed: Path, paths: BoardPaths) -> None:
    paths.config.mkdir(parents=True, exist_ok=True)
    for name in _present(seed, IDENTITY):
        content = (seed / name).read_bytes()
        target = paths.config / name
        if not target.exists() or target.read_bytes() != content:
            write_file(target, content, mode=0o600 if name in _SECRET else 0o644)
    write_file(paths.data / DIGEST, identity_digest(seed).encode())
    if (seed / CLOCK).exists():
        write_file(paths.data / CLOCK, (seed / CLOCK).read_bytes())


def identity_digest(seed: Path) -> str:
    """Return one hash of a seed's identity, by which `flash ssh` sees that it is there already."""
    digest = hashlib.sha256()
    for name in _present(seed, IDENTITY):
        digest.update(hashlib.sha256((seed / name).read_bytes()).digest())
    return digest.hexdigest()


def _present(seed: Path, names: Sequence[str]) -> list[str]:
    return [name for name in names if (seed / name).exists()]


def _enable(paths: BoardPaths, active: str) -> None:
    """Put the unit where systemd finds it at the next boot or daemon-reload."""
    unit = (paths.slot(active) / "systemd" / _UNIT).read_bytes()
    write_file(paths.units / _UNIT, unit)
    wanted = paths.units / "multi-user.target.wants"
    wanted.mkdir(parents=True, exist_ok=True)
    if not os.path.lexists(wanted / _UNIT):
        (wanted / _UNIT).symlink_to(f"/etc/systemd/system/{_UNIT}")
    command = paths.root / "usr/local/bin/multispin"
    if not os.path.lexists(command):
        command.parent.mkdir(parents=True, exist_ok=True)
        command.symlink_to("/opt/multispin/current/bin/multispin")
