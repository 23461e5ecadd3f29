"""`--keys` and `--secrets`: where a command finds the project's keys. Imports no cryptography."""

from __future__ import annotations

import argparse
from pathlib import Path

__all__ = ["add_key_options"]


def add_key_options(parser: argparse.ArgumentParser, *, secret: bool = True) -> None:
    """Add the folder of public files and, unless a command needs none, that of secrets."""
    parser.add_argument(
        "--keys", type=Path, default=Path("keys"), help="folder of public files (default: keys)"
    )
    if secret:
        parser.add_argument("--secrets", type=Path, help="folder of secrets (default: KEYS/secret)")
