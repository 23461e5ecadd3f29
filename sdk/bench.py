"""`multispin bench`: what this board can do, one measurement a subcommand.

Each bench is a module like a subcommand's, imported only when it is asked for.
"""

from __future__ import annotations

import argparse
import importlib

__all__ = ["BENCHES", "configure", "run"]

BENCHES: dict[str, tuple[str, str]] = {
    "draft": ("sdk.bench_draft", "milliseconds per drafted token and for the prompt"),
    "energy": ("sdk.bench_energy", "joules per token, drafting alone or with an edge server"),
}
"""By name: the module with `configure` and `run`, and what it measures."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add one subcommand for each bench."""
    commands = parser.add_subparsers(dest="bench", required=True, metavar="BENCH")
    for name, (module, summary) in BENCHES.items():
        subparser = commands.add_parser(name, help=summary, description=summary)
        importlib.import_module(module).configure(subparser)


def run(args: argparse.Namespace) -> int:
    """Run the chosen bench."""
    return int(importlib.import_module(BENCHES[args.bench][0]).run(args))
