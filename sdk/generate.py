"""`multispin generate`: text on this board, drafted here and verified by the edge server."""

from __future__ import annotations

import argparse
import json
import secrets
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from sdk.config import BrokerConfig, Config, check_named, load_config, shipped_model
from sdk.device import Device, Token
from sdk.draft.drafter import Drafter, OnnxDrafter
from sdk.draft.slowed import SlowedDrafter
from sdk.energy import EnergyRecord, open_meter
from sdk.errors import ConfigError
from sdk.measured_generation import MeasuredGeneration, energy_sentence
from sdk.protocol import Mode
from sdk.session_options import Offline, SessionOptions

__all__ = ["configure", "default_device_id", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", metavar="TEXT", help="text to continue")
    prompt.add_argument("--prompt-file", metavar="FILE", help="the same from a file; - for stdin")
    parser.add_argument("--broker", metavar="HOST:PORT", help="default 127.0.0.1:1883")
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML: broker, device, model")
    parser.add_argument("--model", type=Path, metavar="DIR", help="default: the shipped drafter")
    parser.add_argument("--device", metavar="ID", help="default: host name and a random suffix")
    parser.add_argument(
        "--max-tokens", type=int, default=128, metavar="N", help="at most (default: 128)"
    )
    parser.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0, the default, is greedy"
    )
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help="0 keeps all")
    parser.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="keep the likeliest tokens that make up this probability; 1 keeps all",
    )
    parser.add_argument(
        "--min-p",
        type=float,
        default=0.0,
        metavar="P",
        help="keep tokens of at least this part of the likeliest one's probability; 0 keeps all",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="NUMBER",
        help="above temperature 0: the same number gives the same text (default: 0)",
    )
    parser.add_argument(
        "--mode",
        choices=["coupled", "ratio"],
        default="coupled",
        help="above temperature 0: upload ids only, or distributions too where the link is wide",
    )
    parser.add_argument(
        "--offline",
        choices=[choice.value for choice in Offline],
        default=Offline.WAIT.value,
        help="when the server stops answering: wait and resume (default; up to an hour), "
        "go on alone unverified, or fail",
    )
    parser.add_argument(
        "--lost-after",
        type=float,
        default=15.0,
        metavar="S",
        help="with --offline local or fail: seconds without an answer (default: 15)",
    )
    parser.add_argument(
        "--journal", type=Path, metavar="FILE", help="survive a power cut; same command resumes"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads to draft with")
    parser.add_argument(
        "--no-optimistic", action="store_true", help="do not draft while awaiting a verdict"
    )
    parser.add_argument(
        "--early-stop", action="store_true", help="end drafts where going on no longer pays"
    )
    parser.add_argument(
        "--slow-down-ms", type=float, default=0.0, metavar="MS", help="play a slower board"
    )
    parser.add_argument(
        "--no-link", action="store_true", help="do not measure the link for the server's scheduler"
    )
    parser.add_argument(
        "--energy", metavar="auto|METER", help="measure joules per token; 'multispin energy list'"
    )
    parser.add_argument(
        "--energy-idle",
        type=float,
        default=10.0,
        metavar="S",
        help="idle seconds measured before and after, for net figures (default: 10); 0: gross only",
    )
    parser.add_argument(
        "--energy-trace",
        type=Path,
        metavar="FILE",
        help="write samples and phases, for 'multispin energy report'",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per line")


def run(args: argparse.Namespace) -> int:
    """Generate, stream, and sum up."""
    config = load_config(args.config) if args.config else Config()
    broker = BrokerConfig.parse(args.broker) if args.broker else config.broker
    energy: EnergyRecord | None = None
    _check(args)
    prompt = _prompt(args)
    device = _device(args, broker, config)
    tokens = _tokens(device, prompt, args)  # all mistakes are told before anybody waits
    meter = open_meter(args.energy) if args.energy else None
    with device:
        if meter is not None:
            measuring = MeasuredGeneration(device=device, meter=meter, idle_s=args.energy_idle)
            with measuring as measured:
                summary = _generate(device, tokens, args)
            energy = measured.report()
            if args.energy_trace:
                measured.write_trace(args.energy_trace, energy)
        else:
            summary = _generate(device, tokens, args)
    if args.json:
        fields = {"energy": energy.to_json()} if energy else {}
        print(json.dumps({"summary": summary} | fields), flush=True)
    else:
        print(_sentence(summary), file=sys.stderr)
        if energy:
            print(energy_sentence(energy), file=sys.stderr)
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.energy_trace and not args.energy:
        raise ConfigError("--energy-trace: needs --energy auto or --energy METER")
    if not args.lost_after > 0:
        raise ConfigError(f"--lost-after {args.lost_after}: must be above 0 s")
    for name, value in (("slow-down-ms", args.slow_down_ms), ("energy-idle", args.energy_idle)):
        if not value >= 0:
            raise ConfigError(f"--{name} {value}: must not be below 0")


def _generate(
    device: Device, tokens: Iterator[Token], args: argparse.Namespace
) -> dict[str, object]:
    started_s = time.monotonic()
    count = _stream(tokens, as_json=args.json)
    return _summary(device, count, time.monotonic() - started_s)


def _device(args: argparse.Namespace, broker: BrokerConfig, config: Config) -> Device:
    model = args.model or config.device.model or shipped_model("drafter")
    drafter: Drafter = OnnxDrafter.load(model, threads=args.threads)
    if args.slow_down_ms > 0:
        drafter = SlowedDrafter(drafter=drafter, seconds_per_token=args.slow_down_ms * 1e-3)
    device_id = args.device or config.device.id
    if device_id is None:
        check_named(broker)
    return Device(
        id=device_id or default_device_id(),
        model=model,
        broker=broker,
        drafter=drafter,
        measure_link=not args.no_link,
        options=SessionOptions(
            offline=Offline(args.offline),
            lost_after_s=args.lost_after,
            optimistic=not args.no_optimistic,
            early_stop=args.early_stop,
        ),
    )


def default_device_id() -> str:
    """Return this host's name and a random suffix, as a device id."""
    host = "".join(c for c in socket.gethostname().lower() if c.isascii() and c.isalnum())
    return f"{host[:20] or 'board'}-{secrets.token_hex(3)}"


def _tokens(device: Device, prompt: str, args: argparse.Namespace) -> Iterator[Token]:
    return device.generate(
        prompt,
        max_tokens=args.max_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        seed=args.seed,
        mode=Mode.RATIO if args.mode == "ratio" and args.temperature > 0 else None,
        journal=args.journal,
    )


def _prompt(args: argparse.Namespace) -> str:
    if args.prompt is not None:
        return str(args.prompt)
    if args.prompt_file == "-":
        return sys.stdin.read()
    try:
        return Path(args.prompt_file).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--prompt-file {args.prompt_file}: {error}") from error


def _stream(tokens: Iterator[Token], *, as_json: bool) -> int:
    """Print tokens as they come; return how many."""
    count = 0
    try:
        for count, token in enumerate(tokens, start=1):  # noqa: B007 - the count is what remains
            if as_json:
                fields = {"id": token.id, "text": token.text, "position": token.position}
                print(json.dumps(fields | {"verified": token.verified}), flush=True)
            else:
                print(token.text, end="", flush=True)
    finally:  # what is said next, an error too, begins on a line of its own
        if count and not as_json:
            print(flush=True)
    return count


def _summary(device: Device, tokens: int, seconds: float) -> dict[str, object]:
    stats = device.stats
    return {
        "id": device.id,
        "tokens": tokens,
        "seconds": round(seconds, 3),
        "tokens_per_s": round(tokens / seconds, 2) if seconds else 0.0,
        "rounds": stats.rounds,
        "drafted": stats.drafted,
        "accepted": stats.accepted,
        "acceptance": round(stats.accepted / stats.drafted, 4) if stats.drafted else None,
        "drafted_ahead_saved": stats.saved,
        "drafted_ahead_wasted": stats.wasted,
        "unverified": stats.unverified,
        "retries": stats.retries,
        "reopened": stats.reopened,
        "draft_s": round(stats.draft_s, 4),
        "wait_s": round(stats.wait_s, 4),
        "server_queue_s": round(stats.server_queue_s, 4),
        "server_compute_s": round(stats.server_compute_s, 4),
        "uplink_bytes": stats.sent_bytes,
        "uplink_payload_bytes": stats.sent_payload_bytes,
        "downlink_bytes": stats.received_bytes,
        "downlink_payload_bytes": stats.received_payload_bytes,
    }


def _sentence(summary: dict[str, object]) -> str:
    acceptance = summary["acceptance"]
    accepted = "nothing drafted" if acceptance is None else f"{acceptance:.0%} of drafts accepted"
    unverified = f", {summary['unverified']} unverified" if summary["unverified"] else ""
    return (
        f"[{summary['tokens']} tokens{unverified} in {summary['seconds']} s = "
        f"{summary['tokens_per_s']} tokens/s; {summary['rounds']} rounds, {accepted}; "
        f"{summary['uplink_bytes']} bytes up, {summary['downlink_bytes']} down]"
    )
