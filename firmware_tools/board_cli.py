"""`multispin board status|rollback|mark|doctor|serve`, on the board itself.

Knows nothing about how slots change; it asks for a change and shows what is.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from firmware_tools.board.paths import BoardPaths
from firmware_tools.board.slots import Slots
from firmware_tools.bundle.tree import check_folder

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the verbs and their options."""
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    status = verbs.add_parser("status", help="show both slots and the last update")
    status.add_argument("--verify", action="store_true", help="check every file of both slots")
    verbs.add_parser("rollback", help="return to the other slot")
    mark = verbs.add_parser("mark", help="mark the running slot")
    mark.add_argument("mark", choices=("good", "bad"))
    verbs.add_parser("doctor", help="look for what this board lacks")
    verbs.add_parser("serve", help="run as the board's service (systemd does)")
    for verb in verbs.choices.values():
        verb.add_argument("--root", type=Path, default=Path("/"), help="the board's file system")
        verb.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Run one verb; `doctor` returns 1 if anything is not well."""
    verbs: dict[str, Callable[[argparse.Namespace], int]] = {
        "status": _status,
        "rollback": _rollback,
        "mark": _mark,
        "doctor": _doctor,
        "serve": _serve,
    }
    return verbs[args.verb](args)


def _status(args: argparse.Namespace) -> int:
    slots = Slots(BoardPaths(root=args.root))
    state = slots.load()
    shown: dict[str, Any] = asdict(state)
    if args.verify:
        shown["damage"] = {
            name: check_folder(slots.manifest(name), slots.paths.slot(name))
            for name, slot in state.slots.items()
            if slot.status != "empty"
        }
    if args.json:
        print(json.dumps(shown))
        return 0
    for name, slot in state.slots.items():
        mark = "*" if name == state.active else " "
        print(f"{mark} {name}  {slot.version or '-':<12} {slot.status:<9} {slot.reason}")
    if state.trying:
        print(f"on trial, {state.tries_left} more starts; {state.last_failure or 'not failed yet'}")
    if state.reason:
        print(f"rolled back: {state.reason}")
    for name, damage in shown.get("damage", {}).items():
        print(f"slot {name}: {damage or 'every file as delivered'}")
    return 0


def _rollback(args: argparse.Namespace) -> int:
    state = Slots(BoardPaths(root=args.root)).rollback("asked for by multispin board rollback")
    return _say(args, f"slot {state.active} runs from the next start", active=state.active)


def _mark(args: argparse.Namespace) -> int:
    slots = Slots(BoardPaths(root=args.root))
    state = slots.good() if args.mark == "good" else slots.failed("marked bad by hand")
    return _say(args, f"slot {state.active} is {state.running.status}", active=state.active)


def _doctor(args: argparse.Namespace) -> int:
    from firmware_tools.board.doctor import examine
    from firmware_tools.board.install import Host

    findings = examine(BoardPaths(root=args.root), Host.present())
    if args.json:
        print(json.dumps([asdict(finding) for finding in findings]))
    else:
        for each in findings:
            print(f"{'ok ' if each.well else 'BAD'} {each.name:<18} {each.found}  {each.todo}")
    return 0 if all(finding.well for finding in findings) else 1


def _serve(args: argparse.Namespace) -> int:
    from firmware_tools.board.notify import Notifier
    from firmware_tools.board.service import serve
    from firmware_tools.ota.agent import make_agent

    paths = BoardPaths(root=args.root)
    return serve(paths.current.resolve(), Notifier.from_environment(), lambda: make_agent(paths))


def _say(args: argparse.Namespace, text: str, **fields: object) -> int:
    print(json.dumps(fields) if args.json else text)
    return 0
