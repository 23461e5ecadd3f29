"""`multispin broker`: write what a production mosquitto needs besides its certificates."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from edge_server.mosquitto_conf import (
    BROKER_FILES,
    TlsListener,
    mosquitto_acl,
    production_conf,
)
from sdk.errors import ConfigError

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--folder",
        type=Path,
        required=True,
        metavar="DIR",
        help=f"holds {', '.join(BROKER_FILES)}; mosquitto.conf and acl are written beside them",
    )
    parser.add_argument("--host", metavar="ADDRESS", help="listen here only (default: everywhere)")
    parser.add_argument("--port", type=int, default=8883, help="default: 8883")
    parser.add_argument(
        "--server",
        default="edge",
        metavar="NAME",
        help="name in the server's certificate (default: edge)",
    )
    parser.add_argument(
        "--max-connections", type=int, default=500, metavar="N", help="at most (default: 500)"
    )
    parser.add_argument(
        "--one-connection-each",
        action="store_true",
        help="one connection per certificate: no device can end another's, none can have two",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Write both files, whole or not at all."""
    folder = args.folder.resolve()
    missing = [name for name in BROKER_FILES if not (folder / name).is_file()]
    if missing:
        raise ConfigError(
            f"broker: {folder / missing[0]} is missing; name the folder 'broker' within the one "
            "that 'multispin keys init' made"
        )
    listener = TlsListener.in_folder(
        folder,
        host=args.host,
        port=args.port,
        max_connections=args.max_connections,
        one_connection_each=args.one_connection_each,
    )
    conf_file = folder / "mosquitto.conf"
    _write(listener.acl_file, mosquitto_acl(server=args.server))
    _write(conf_file, production_conf(listener))
    if args.json:
        print(json.dumps({"conf": str(conf_file), "acl": str(listener.acl_file)}))
    else:
        print(f"wrote {conf_file} and {listener.acl_file}; start: mosquitto -c {conf_file}")
    return 0


def _write(path: Path, text: str) -> None:
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_text(text)
        os.replace(part, path)
    except OSError as error:
        raise ConfigError(f"broker: cannot write {path}: {error.strerror}") from error
