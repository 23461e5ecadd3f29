"""The options that every way of flashing shares: which bundle, which device, which broker.

Turns them into a verified bundle and a seed. Knows nothing about how the seed gets to the board.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from firmware_tools.key_options import add_key_options
from sdk.errors import ConfigError

if TYPE_CHECKING:
    from firmware_tools.bundle.manifest import Manifest

__all__ = ["add_options", "make_seed_for", "public_key_line", "read_text"]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the shared options."""
    parser.add_argument("--bundle", type=Path, required=True, metavar="FILE", help="signed")
    parser.add_argument(
        "--id", required=True, metavar="ID", help="of the device; makes its certificate"
    )
    parser.add_argument(
        "--broker", required=True, metavar="HOST:PORT", help="as in its certificate"
    )
    parser.add_argument(
        "--release-dir",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of releases, as 'multispin bundle sign' fills it",
    )
    add_key_options(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def make_seed_for(args: argparse.Namespace, folder: Path) -> Manifest:
    """Verify the bundle, make the device's certificate if it has none, and write its seed."""
    from firmware_tools.bundle.release import Release
    from firmware_tools.bundle.signed import open_bundle
    from firmware_tools.keys import KeyStore
    from firmware_tools.keys.store import utc_now
    from firmware_tools.seed import Identity, make_seed
    from sdk.config import BrokerConfig

    keys = KeyStore.at(args.keys, args.secrets)
    broker = BrokerConfig.parse(args.broker)
    _check_named(broker.host, keys.broker_names())
    bundle = open_bundle(args.bundle, [keys.verify_key("bundle")])
    now = utc_now()
    if keys.devices().get(args.id) != "valid":
        keys.issue_device(args.id, now=now)
    identity = Identity(
        files=keys.device_files(args.id),
        broker_host=broker.host,
        broker_port=broker.port,
        bundle_key=keys.read("bundle.pub"),
        root=Release(folder=args.release_dir, keys=keys, now=now).first_root(),
    )
    make_seed(bundle, identity, folder, now=now)
    return bundle.manifest


def _check_named(host: str, names: list[str]) -> None:
    """Refuse a broker that the board would not trust, while that is easily mended."""
    if host not in names:
        raise ConfigError(
            f"flash: --broker {host}: the broker's certificate names {', '.join(names)}; "
            f"call it by one of these, or run: multispin keys broker --host {host}"
        )


def read_text(path: Path, option: str, hint: str) -> str:
    """Return a small file's text without the white space around it.

    Raises:
        ConfigError: naming the option, the file and the hint.
    """
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"flash: {option} {path}: {error.strerror}; {hint}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"flash: {option} {path}: is no text; {hint}") from error


def public_key_line(path: Path | None) -> str:
    """Return the line of an SSH public key file, "" for none.

    Raises:
        ConfigError: if it is none; a secret key is never copied.
    """
    if path is None:
        return ""
    line = read_text(path, "--ssh-key", "give your .pub file; ssh-keygen makes one")
    if "PRIVATE" in line or not line.startswith(("ssh-", "ecdsa-", "sk-")) or "\n" in line:
        raise ConfigError(f"flash: {path} is no SSH public key; give the .pub file")
    return line
