"""`multispin flash sd|ssh|serial|ota|jetson`: one verb, several ways to reach a board.

Each way is a module of its own, imported when it is asked for.
"""

from __future__ import annotations

import argparse
import importlib

__all__ = ["VERBS", "configure", "run"]

VERBS = {
    "ota": ("firmware_tools.ota.verb", "update a fleet over MQTT"),
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the ways and, of the one that is asked for, the options."""
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="WAY")
    for verb, (module, summary) in VERBS.items():
        way = verbs.add_parser(verb, help=summary, description=summary)
        importlib.import_module(module).configure(way)


def run(args: argparse.Namespace) -> int:
    """Run one way."""
    return int(importlib.import_module(VERBS[args.verb][0]).run(args))
