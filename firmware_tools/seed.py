"""A seed: the folder from which a bare board installs itself with nothing but its own Python.

Made from a verified bundle, which is unpacked and packed again as gzip because a bare board has no
zstd. `firmware_tools.board.install` is the other end. Knows nothing about how it gets to the board.
"""

from __future__ import annotations

import gzip
import io
import string
import zipfile
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import firmware_tools
import sdk
from firmware_tools.board.install import CLOCK, GUARD, MANIFEST, PAYLOAD
from firmware_tools.bundle.signed import SignedBundle
from firmware_tools.durable import write_file
from firmware_tools.errors import FlashError
from firmware_tools.keys import DeviceFiles
from sdk.config import BrokerConfig

__all__ = ["Identity", "guard_archive", "make_seed"]

_GUARD_MODULES = (
    "errors.py",
    "durable.py",
    "board/__init__.py",
    "board/paths.py",
    "board/space.py",
    "board/state.py",
    "board/slots.py",
    "board/install.py",
    "board/guard.py",
    "bundle/__init__.py",
    "bundle/manifest.py",
    "bundle/archive.py",
    "bundle/tree.py",
)
_GUARD_MAIN = "import sys\nfrom firmware_tools.board.guard import main\nsys.exit(main())\n"
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What makes a board this board.

    Attributes:
        files: its certificate and key.
        broker_host, broker_port: where it finds the broker, as the broker's certificate names it.
        bundle_key: PEM of the key that signs bundles; root: the release's first root.
    """

    files: DeviceFiles
    broker_host: str
    broker_port: int
    bundle_key: bytes
    root: bytes

    def __post_init__(self) -> None:
        BrokerConfig(host=self.broker_host, port=self.broker_port)

    def fill(self, template: str) -> bytes:
        """Return the board's configuration from the bundle's template.

        Raises:
            FlashError: for a placeholder that is none of device, broker_host, broker_port.
        """
        try:
            text = string.Template(template).substitute(
                device=self.files.device,
                broker_host=self.broker_host,
                broker_port=self.broker_port,
            )
        except (KeyError, ValueError) as error:
            raise FlashError(f"flash: the bundle's configuration template: {error}") from error
        return text.encode()


def make_seed(bundle: SignedBundle, identity: Identity, folder: Path, *, now: datetime) -> None:
    """Write the seed of one board into `folder`.

    Raises:
        RefusedError: if the bundle does not verify.
    """
    bundle.verify()
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / GUARD, guard_archive())
    write_file(folder / MANIFEST, bundle.manifest.to_bytes())
    _repack(bundle, folder / PAYLOAD)
    template = bundle.read_file("config/multispin.toml").decode()
    write_file(folder / "multispin.toml", identity.fill(template), mode=0o600)
    write_file(folder / "ca.crt", identity.files.authority)
    write_file(folder / "device.crt", identity.files.certificate)
    write_file(folder / "device.key", identity.files.key, mode=0o600)
    write_file(folder / "bundle.pub", identity.bundle_key)
    write_file(folder / "root.json", identity.root)
    write_file(folder / CLOCK, str(int(now.timestamp())).encode())


def guard_archive() -> bytes:
    """Return the guard as one file that `python3` runs, the same bytes every time."""
    home = Path(str(firmware_tools.__file__)).parent
    files = {"__main__.py": _GUARD_MAIN.encode()}
    files["sdk/__init__.py"] = b""
    files["sdk/errors.py"] = (Path(str(sdk.__file__)).parent / "errors.py").read_bytes()
    files["firmware_tools/__init__.py"] = b""
    for name in _GUARD_MODULES:
        files[f"firmware_tools/{name}"] = (home / name).read_bytes()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in sorted(files.items()):
            packed.writestr(zipfile.ZipInfo(name), content)
    return out.getvalue()


def _repack(bundle: SignedBundle, out: Path) -> None:
    """Write the payload as gzip."""
    with (
        bundle.decompressed() as stream,
        out.open("wb") as raw,
        gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=6, mtime=0, filename="") as packed,
    ):
        while chunk := stream.read(_CHUNK_BYTES):
            packed.write(chunk)
