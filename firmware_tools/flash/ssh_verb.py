"""`multispin flash ssh USER@HOST`: install on a board that runs and answers SSH.

Knows nothing about SSH.
"""

from __future__ import annotations

import argparse
import getpass
import json
import sys
import tempfile
from pathlib import Path

from firmware_tools.flash.owner import add_options, make_seed_for
from firmware_tools.flash.ssh import Remote, flash_over_ssh

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("address", metavar="USER@HOST")
    add_options(parser)
    add_ssh_options(parser)


def add_ssh_options(parser: argparse.ArgumentParser) -> None:
    """Declare how to reach the board's SSH server."""
    parser.add_argument("--port", type=int, default=22)
    parser.add_argument("--ssh-option", action="append", default=[], metavar="X", help="for ssh")
    parser.add_argument("--board-python", default="python3", metavar="PATH")


def run(args: argparse.Namespace) -> int:
    """Make the seed and install it."""
    remote = Remote(
        address=args.address,
        port=args.port,
        options=tuple(args.ssh_option),
        python=args.board_python,
    )
    return install(args, remote)


def install(args: argparse.Namespace, remote: Remote) -> int:
    """Make the seed, install it on `remote`, and say what happened."""
    with tempfile.TemporaryDirectory(prefix="multispin-seed-") as scratch:
        seed = Path(scratch) / "seed"
        manifest = make_seed_for(args, seed)
        changed = flash_over_ssh(
            remote, seed, getpass.getpass, lambda step: print(f"{step} …", file=sys.stderr)
        )
    if args.json:
        print(json.dumps({"id": args.id, "version": manifest.version, "changed": changed}))
    else:
        done = f"installed {manifest.version}" if changed else f"runs {manifest.version} already"
        print(f"{args.id}: {done}")
    return 0
