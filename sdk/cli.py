"""`multispin`: one console command; each subcommand lives beside the code it drives.

A subcommand is a module with `configure(parser)` and `run(args) -> int`, imported only when it is
asked for: `multispin energy` on a board never imports the server. What fails on purpose
(`MultispinError`) prints as one line and exits with its own code; a bug stays a traceback.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import select
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from sdk.errors import DependencyError, MultispinError

__all__ = ["COMMANDS", "main"]

EXIT_INTERRUPTED = 130
EXIT_READER_GONE = 141


EXTRAS = {
    **dict.fromkeys(("cryptography", "pexpect", "serial", "tuf", "uv", "zstandard"), "firmware"),
    **dict.fromkeys(("accelerate", "onnx", "onnxscript", "optimum"), "export"),
    **dict.fromkeys(("safetensors", "torch", "transformers"), "torch"),
    "matplotlib": "plot",
}
"""Which extra brings a package that a command may lack."""


class Command(NamedTuple):
    """Where a subcommand lives and what it is for."""

    module: str
    help: str


# "Import by name" keeps the board's side free of the server's: see the module docstring.
COMMANDS: dict[str, Command] = {
    "demo": Command("edge_server.demo", "broker, server and three devices on this machine, live"),
    "generate": Command("sdk.generate", "generate text on this board, verified by the edge server"),
    "serve": Command("edge_server.serve", "run the edge server beside a broker"),
    "broker": Command("edge_server.broker_cli", "write a production broker's configuration"),
    "model": Command("sdk.export.cli", "export a small or large model to ONNX"),
    "plan": Command("edge_server.scheduler.plan", "solve one cell: draft lengths and band shares"),
    "simulate": Command("edge_server.simulate", "drive the scheduler by a modelled cell"),
    "energy": Command("sdk.energy.cli", "list, record, calibrate and report energy meters"),
    "link": Command("sdk.link.cli", "show the quality of this board's link, live"),
    "bench": Command("sdk.bench", "measure drafting or energy per token on this board"),
    "bundle": Command("firmware_tools.bundle_cli", "build, sign and inspect a board's bundle"),
    "flash": Command("firmware_tools.flash_cli", "put the SDK on a board"),
    "board": Command("firmware_tools.board_cli", "status, rollback and doctor, on the board"),
    "keys": Command("firmware_tools.keys_cli", "make, give out and revoke keys and certificates"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = next((word for word in arguments if not word.startswith("-")), None)
    parser = argparse.ArgumentParser(
        prog="multispin",
        description="Edge boards draft, one server verifies: lossless generation over MQTT.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('multispin')}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    try:
        for command, (module, summary) in COMMANDS.items():
            subparser = subparsers.add_parser(command, help=summary, description=summary)
            if command == name:
                importlib.import_module(module).configure(subparser)
        args = parser.parse_args(arguments)
        code = int(importlib.import_module(COMMANDS[args.command].module).run(args))
        sys.stdout.flush()  # here, where a reader that is gone is no traceback
        return code
    except MultispinError as error:
        print(f"multispin: {error}", file=sys.stderr)
        return error.exit_code
    except ModuleNotFoundError as error:
        # Extras and packages of our own (a board has no server) may be absent; others are bugs.
        package = (error.name or "").split(".")[0]
        if package in EXTRAS:
            missing = DependencyError(
                f"'multispin {name}': {package} is missing; it", EXTRAS[package]
            )
            print(f"multispin: {missing}", file=sys.stderr)
            return missing.exit_code
        if package not in {"edge_server", "firmware_tools", "models"}:
            raise
        print(
            f"multispin: '{name}' is not part of a board's installation; run it where the whole "
            "distribution is installed (pip install multispin)",
            file=sys.stderr,
        )
        return DependencyError.exit_code
    except KeyboardInterrupt:
        print("multispin: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _reader_gone():
            return EXIT_READER_GONE
        hint = _file_hint(error, arguments)
        if hint is None:
            raise
        where = error.filename or "where the output goes"
        print(f"multispin: {name}: {where}: {error.strerror}; {hint}", file=sys.stderr)
        return MultispinError.exit_code


def _file_hint(error: OSError, arguments: Sequence[str]) -> str | None:
    """Say what to do about a file that cannot be used; None where that may be our own bug."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "make room, then try again"
    if not isinstance(error.filename, str):
        return None
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "name a place that this user may use, or be another user"
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR):
        path, named = Path(error.filename), [Path(word) for word in arguments]
        if path in named or path.parent in [part for word in named for part in (word, word.parent)]:
            return "check the path"
    return None


def _reader_gone() -> bool:
    """Return whether nobody reads our output any more (`| head`); nothing is written to it then."""
    output = sys.stdout.fileno()
    poll = select.poll()
    poll.register(output, 0)
    gone = any(events & select.POLLERR for _, events in poll.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return gone


if __name__ == "__main__":
    sys.exit(main())
