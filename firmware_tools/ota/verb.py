"""`multispin flash ota`: roll a release out over MQTT, canaries first, progress per board.

Knows nothing about blocks or reports; it makes the parts and shows what they say.
"""

from __future__ import annotations

import argparse
import json
import re
import secrets
from pathlib import Path
from typing import Any

from firmware_tools.key_options import add_key_options
from sdk.errors import ConfigError

__all__ = ["configure", "run"]

_BACKLOG_BYTES = 16 << 20


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--broker", required=True, metavar="HOST:PORT", help="as in its certificate"
    )
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("--device", action="append", metavar="ID", help="a board (repeat)")
    who.add_argument("--group", type=Path, metavar="FILE", help="boards, one id per line")
    parser.add_argument(
        "--release-dir",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of releases, as 'multispin bundle sign' fills it",
    )
    parser.add_argument("--version", metavar="V", help="default: the newest in the release")
    add_key_options(parser)
    parser.add_argument(
        "--canary", type=int, default=1, metavar="N", help="boards that go first (default: 1)"
    )
    parser.add_argument(
        "--max-failures",
        type=int,
        default=0,
        metavar="N",
        help="with more failed boards than this, no other is begun (default: 0)",
    )
    parser.add_argument(
        "--parallel", type=int, default=8, metavar="N", help="boards at once (default: 8)"
    )
    parser.add_argument(
        "--rate-kib-s",
        type=int,
        default=512,
        metavar="N",
        help="per board; leave room for drafts (default: 512)",
    )
    parser.add_argument(
        "--silence-s",
        type=float,
        default=600.0,
        metavar="S",
        help="a board that says nothing for so many seconds has failed (default: 600)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per report")


def run(args: argparse.Namespace) -> int:
    """Roll out; return 0 if every board succeeded."""
    from firmware_tools.ota.operator import Operator
    from firmware_tools.ota.rollout import Rollout
    from firmware_tools.ota.shop import Shop

    devices = args.device or _group(args.group)
    version = _version(args.release_dir, args.version)
    if args.rate_kib_s < 1 or not args.silence_s > 0:
        raise ConfigError("flash ota: --rate-kib-s is 1 or more, --silence-s above 0")
    _check_known(args.keys, devices)
    try:
        rollout = Rollout(
            id=secrets.token_hex(8),
            devices=devices,
            canaries=min(args.canary, len(devices)),
            max_failures=args.max_failures,
            parallel=args.parallel,
            silence_s=args.silence_s,
        )
    except ValueError as error:
        raise ConfigError(f"flash ota: {error}") from error
    progress, show, asked = _display(args.json)
    with progress, _transport(args) as transport:
        transport.connect()
        operator = Operator(
            transport=transport,
            rollout=rollout,
            shop=Shop(release=args.release_dir),
            version=version,
            rate_bytes_s=args.rate_kib_s << 10,
            show=show,
            asked=asked,
        )
        well = operator.run()
    _summarise(args, rollout, version)
    return 0 if well else 10


def _version(release: Path, wanted: str | None) -> str:
    """Return the wanted version, or the one with the highest counter in the newest metadata.

    Raises:
        ConfigError: if there is no release, or the wanted one is not in it.
    """
    found = sorted(
        release.glob("metadata/*.targets.json"), key=lambda path: int(path.name.split(".")[0])
    )
    if not found:
        raise ConfigError(f"flash ota: {release} is no release; see: multispin bundle sign")
    targets = json.loads(found[-1].read_bytes())["signed"]["targets"].values()
    known = [
        str(target["custom"]["version"])
        for target in sorted(targets, key=lambda target: int(target["custom"]["release"]))
    ]
    if wanted is not None and wanted not in known:
        raise ConfigError(
            f"flash ota: {release} has no version {wanted}; it has {', '.join(known)}"
        )
    return wanted or known[-1]


def _check_known(keys: Path, devices: list[str]) -> None:
    """Refuse a board without a certificate: it can be nowhere, and its silence would be long."""
    known = {path.name for path in (keys / "devices").glob("*")}
    unknown = [device for device in devices if device not in known]
    if known and unknown:
        raise ConfigError(
            f"flash ota: {unknown[0]} has no certificate under {keys}; 'multispin keys show' lists "
            "who has one"
        )


def _group(path: Path) -> list[str]:
    from sdk.protocol.topics import check_device_id

    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"flash ota: {path}: {error.strerror}") from error
    names = [re.sub(r"#.*", "", line).strip() for line in lines]
    return [check_device_id(name) for name in names if name]


def _transport(args: argparse.Namespace) -> Any:
    from dataclasses import replace

    from firmware_tools.ota.operator import SUBSCRIPTIONS
    from sdk.config import BrokerConfig
    from sdk.transport.mqtt import MqttTransport

    secret = args.secrets or args.keys / "secret"
    broker = replace(
        BrokerConfig.parse(args.broker),
        ca_file=args.keys / "ca.crt",
        cert_file=args.keys / "edge.crt",
        key_file=secret / "edge.key",
    )
    return MqttTransport(
        broker=broker,
        client_id=f"flash-{secrets.token_hex(4)}",
        subscriptions=list(SUBSCRIPTIONS),
        backlog_bytes=_BACKLOG_BYTES,
        inbox_limit=4096,
    )


def _display(as_json: bool) -> tuple[Any, Any, Any]:
    from contextlib import nullcontext
    from dataclasses import asdict

    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from firmware_tools.ota.messages import Report

    if as_json:

        def print_json(device: str, report: Report) -> None:
            print(json.dumps({"device": device, **asdict(report)}), flush=True)

        def asked_json(device: str) -> None:
            print(json.dumps({"device": device, "status": "asked"}), flush=True)

        return nullcontext(), print_json, asked_json
    columns = (TextColumn("{task.fields[device]:<16}"), TextColumn("{task.fields[status]:<12}"))
    progress = Progress(*columns, BarColumn(), TimeRemainingColumn())
    tasks: dict[str, Any] = {}

    def asked(device: str) -> None:
        tasks[device] = progress.add_task("", device=device, status="asked", total=1.0)

    def show(device: str, report: Report) -> None:
        whole = report.status in ("installing", "restarting", "successful")
        share = 1.0 if whole else report.done_bytes / max(report.size_bytes, 1)
        progress.update(tasks[device], completed=share, status=report.status)

    return progress, show, asked


def _summarise(args: argparse.Namespace, rollout: Any, version: str) -> None:
    reports = {device: board.report for device, board in rollout.boards.items()}
    if args.json:
        print(
            json.dumps({"version": version, "stopped": rollout.stopped, "failed": rollout.failures})
        )
        return
    for device, report in reports.items():
        status, reason = (report.status, report.reason) if report else ("not asked", "")
        print(f"{device:<16} {status:<12} {reason}")
    if rollout.stopped:
        print(f"stopped: {rollout.stopped}")
