"""`multispin demo`: broker, edge server and devices on this machine, each its own process.

What a user would start in several terminals, started here, shown live, and checked: every device's
text is compared with what the target says alone for the same prompt and seed.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from edge_server.broker import start_broker
from edge_server.demo_view import DemoView
from edge_server.processes import DeviceProcess, DeviceRequest, start_device, start_server
from edge_server.reference import decode_alone
from sdk.config import BrokerConfig
from sdk.errors import ConfigError
from sdk.model.decoder import Decoder
from sdk.model.sampling import SamplingParameters
from sdk.model.tokenizer import Tokenizer

__all__ = ["configure", "run"]

# What drafting costs on the pretended boards, ms a token beside this machine's own time.
_SLOW_DOWN_MS = (0.0, 4.0, 12.0)


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--devices", type=int, default=3, metavar="N")
    parser.add_argument("--tokens", type=int, default=96, metavar="N", help="for each device")
    parser.add_argument("--temperature", type=float, default=0.7, metavar="T", help="0 is greedy")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    parser.add_argument(
        "--broker", default="auto", metavar="auto|mosquitto|amqtt|HOST:PORT", help="default: auto"
    )
    parser.add_argument("--target", type=Path, metavar="DIR", help="default: the shipped target")
    parser.add_argument("--drafter", type=Path, metavar="DIR", help="default: the shipped drafter")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here")
    parser.add_argument("--plain", action="store_true", help="no live view")


def run(args: argparse.Namespace) -> int:
    """Run everything once; exit code 1 if a text differs from the target's own."""
    if args.devices < 1 or args.tokens < 1:
        raise ConfigError("demo: --devices and --tokens must be at least 1")
    console = Console()
    target, drafter = _models(args)
    with ExitStack() as stack:
        kind, broker = _join_broker(args.broker, stack)
        console.print(f"broker: {kind} at {broker.host}:{broker.port}", highlight=False)
        server = start_server(stack, model=target, broker=broker)
        console.print(
            f"server: verifying with {target.name}, process {server.pid}", highlight=False
        )
        devices = [
            start_device(stack, request, model=drafter, broker=broker)
            for request in _requests(args)
        ]
        DemoView(console=console, plain=args.plain or not console.is_terminal).watch(devices)
    same = _check(console, target, devices)
    result = _result(args, kind, devices, same)
    _show(console, result)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if result["identical_to_server_only"] else 1


def _models(args: argparse.Namespace) -> tuple[Path, Path]:
    from models.registry import pair_dir

    return args.target or pair_dir("target"), args.drafter or pair_dir("drafter")


def _join_broker(wanted: str, stack: ExitStack) -> tuple[str, BrokerConfig]:
    if wanted in ("auto", "mosquitto", "amqtt"):
        broker = stack.enter_context(start_broker(wanted, port=0))
        return broker.kind, broker.config
    return "given", BrokerConfig.parse(wanted)


def _requests(args: argparse.Namespace) -> list[DeviceRequest]:
    from models.registry import prompts

    texts = [prompt["text"] for prompt in prompts()]
    return [
        DeviceRequest(
            id=f"board-{number + 1}",
            prompt=texts[number % len(texts)],
            max_tokens=args.tokens,
            temperature=args.temperature,
            seed=args.seed + number,
            slow_down_ms=_SLOW_DOWN_MS[number % len(_SLOW_DOWN_MS)],
        )
        for number in range(args.devices)
    ]


def _check(console: Console, target: Path, devices: list[DeviceProcess]) -> list[bool]:
    """Decode every prompt with the target alone and compare, token for token."""
    decoder, tokenizer = Decoder.load(target, batch_invariant=True), Tokenizer(target)
    same = []
    with console.status("checking against the target decoding alone"):
        for device in devices:
            request = device.request
            parameters = SamplingParameters(temperature=request.temperature, seed=request.seed)
            alone = decode_alone(
                decoder,
                tokenizer.encode(request.prompt),
                parameters=parameters,
                max_tokens=request.max_tokens,
                stop_ids=tokenizer.stop_ids,
            )
            same.append(list(alone) == device.token_ids)
    return same


def _result(
    args: argparse.Namespace, kind: str, devices: list[DeviceProcess], same: list[bool]
) -> dict[str, Any]:
    rows = [
        {**device.summary, "text": device.text, "identical": identical}
        for device, identical in zip(devices, same, strict=True)
    ]
    return {
        "broker": kind,
        "mode": "coupled" if args.temperature else "greedy",
        "temperature": args.temperature,
        "seed": args.seed,
        "devices": rows,
        "sum_goodput_tokens_per_s": round(sum(row["tokens_per_s"] for row in rows), 2),
        "identical_to_server_only": all(same),
    }


def _show(console: Console, result: dict[str, Any]) -> None:
    table = Table(title=f"{result['mode']}, broker {result['broker']}")
    columns = ("device", "tokens", "rounds", "accepted", "tok/s", "B/tok up", "down", "same text")
    for column in columns:
        table.add_column(column, justify="left" if column == "device" else "right")
    for row in result["devices"]:
        acceptance = "-" if row["acceptance"] is None else f"{row['acceptance']:.0%}"
        tokens = max(row["tokens"], 1)
        table.add_row(
            row["id"],
            str(row["tokens"]),
            str(row["rounds"]),
            acceptance,
            f"{row['tokens_per_s']:.1f}",
            f"{row['uplink_bytes'] / tokens:.1f}",
            f"{row['downlink_bytes'] / tokens:.1f}",
            "yes" if row["identical"] else "NO",
        )
    console.print(table)
    console.print(f"sum goodput: {result['sum_goodput_tokens_per_s']} tokens/s", highlight=False)
    if result["identical_to_server_only"]:
        console.print("every text equals what the target writes alone")
    else:
        print("multispin: a text differs from what the target writes alone", file=sys.stderr)
