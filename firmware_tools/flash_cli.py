"""`multispin flash sd|ssh|serial|ota|jetson`: one verb, several ways to reach a board.

Each way is a module of its own, imported when it is asked for.
"""

from __future__ import annotations

import argparse
import importlib

__all__ = ["VERBS", "configure", "run"]

VERBS = {
    "sd": ("firmware_tools.flash.sd_verb", "prepare a card image, a card or a boot folder"),
    "ssh": ("firmware_tools.flash.ssh_verb", "install on a board that answers SSH"),
    "serial": ("firmware_tools.flash.serial_verb", "bring up a board from its serial console"),
    "ota": ("firmware_tools.ota.verb", "update a fleet over MQTT"),
    "jetson": ("firmware_tools.flash.jetson_verb", "flash NVIDIA's system with its own tool"),
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
