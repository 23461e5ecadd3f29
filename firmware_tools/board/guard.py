"""The guard: `python3 guard.pyz VERB`, called by systemd around the service and by `flash`.

    install    first installation from a seed folder
    start      before every start: count it, roll back when there were too many
    good       after the service reported ready: it has drafted with its model
    stopped    after it ended: keep how; a wrong answer rolls back at once

Standard library only; it runs from its own archive, outside the slots.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from firmware_tools.board.install import Host, install_seed
from firmware_tools.board.paths import BoardPaths
from firmware_tools.board.slots import Slots
from sdk.errors import MultispinError

__all__ = ["EXIT_WRONG_ANSWER", "main"]

EXIT_WRONG_ANSWER = 70
"""Exit code of a service whose drafter does not answer what its bundle says."""

_ENDINGS = {
    "exit-code": "it ended with exit code {status}",
    "signal": "it was killed by signal {status}",
    "core-dump": "it crashed with signal {status}",
    "timeout": "it was not ready in time",
    "watchdog": "it stood still (watchdog)",
    "oom-kill": "it ran out of memory",
}


def main(argv: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ) -> int:
    """Run one verb."""
    parser = argparse.ArgumentParser(prog="guard.pyz")
    parser.add_argument("--root", type=Path, default=Path("/"))
    verbs = parser.add_subparsers(dest="verb", required=True)
    install = verbs.add_parser("install")
    install.add_argument("seed", type=Path)
    for verb in ("start", "good", "stopped"):
        verbs.add_parser(verb)
    args = parser.parse_args(argv)
    paths = BoardPaths(root=args.root)
    try:
        if args.verb == "install":
            changed = install_seed(args.seed, paths, Host.present())
            print("installed" if changed else "already at this version")
        else:
            _guard(args.verb, Slots(paths), environment)
    except MultispinError as error:
        print(f"guard: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _guard(verb: str, slots: Slots, environment: Mapping[str, str]) -> None:
    if verb == "start":
        slots.started()
    elif verb == "good":
        slots.good()
    else:
        _note_end(slots, environment)


def _note_end(slots: Slots, environment: Mapping[str, str]) -> None:
    """Read how the service ended from what systemd sets for ExecStopPost (systemd.exec(5))."""
    result = environment.get("SERVICE_RESULT", "")
    status = environment.get("EXIT_STATUS", "?")
    if result == "success" or not slots.load().trying:
        return
    if status == str(EXIT_WRONG_ANSWER):
        slots.failed("its drafter answers wrongly")
    else:
        slots.stopped(
            _ENDINGS.get(result, "it ended: {result}").format(status=status, result=result)
        )


if __name__ == "__main__":
    sys.exit(main())
