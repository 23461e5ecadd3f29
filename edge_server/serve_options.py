"""The options of `multispin serve`, and which of them go together."""

from __future__ import annotations

import argparse
from pathlib import Path

from edge_server.metrics import parse_address
from edge_server.scheduler.joint import OBJECTIVES
from edge_server.scheduler.policies import POLICY_NAMES
from edge_server.verifier.onnx import DEFAULT_LANES
from sdk.config import BrokerConfig, load_config
from sdk.errors import ConfigError
from sdk.model.proposal import MAX_SUPPORT
from sdk.protocol import MAX_DRAFT_TOKENS

__all__ = ["OWN_BROKERS", "check", "configure"]

OWN_BROKERS = ("auto", "mosquitto", "amqtt")
"""Values of --broker that start one."""

_SUPPORTS = (8, 32)
_MANY = 1 << 31
_LEAST_S = 0.1


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--model", metavar="DIR", help="default: the shipped target; torch also takes a Hub name"
    )
    parser.add_argument(
        "--backend",
        choices=("onnx", "torch"),
        default="onnx",
        help="what runs the target (default: onnx)",
    )
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="of the torch backend"
    )
    parser.add_argument(
        "--dtype",
        choices=("auto", "fp32", "bf16", "fp16"),
        default="auto",
        help="of the torch backend",
    )
    parser.add_argument(
        "--weights",
        choices=("stored", "int8", "fp8"),
        default="stored",
        help="of the torch backend: as stored, in --dtype (default), or in 8 bits",
    )
    parser.add_argument(
        "--broker",
        default="auto",
        metavar="HOST:PORT|auto|mosquitto|amqtt",
        help="join a broker, or start a private one on this machine (default: auto)",
    )
    parser.add_argument(
        "--keys",
        type=Path,
        metavar="DIR",
        help="start a private mosquitto for a network: TLS 1.3 with the certificates in this "
        "folder, which 'multispin keys init' makes",
    )
    parser.add_argument(
        "--secrets", type=Path, metavar="DIR", help="folder of the secrets (default: KEYS/secret)"
    )
    parser.add_argument(
        "--port",
        type=int,
        help="of a private broker (default: 1883, with --keys 8883); 0, without --keys: any free",
    )
    parser.add_argument(
        "--listen",
        metavar="ADDRESS",
        help="where a private broker listens (default: 127.0.0.1, with --keys everywhere); "
        "beyond this machine and without --keys anybody who reaches it may join",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML with a [broker] table")
    parser.add_argument(
        "--sessions", type=int, default=64, metavar="N", help="at most, at once (default: 64)"
    )
    parser.add_argument(
        "--kv-memory",
        type=int,
        default=1024,
        metavar="MIB",
        help="for all keys and values (default: 1024)",
    )
    parser.add_argument(
        "--idle",
        type=float,
        default=120.0,
        metavar="S",
        help="seconds of silence after which a session is closed (default: 120)",
    )
    parser.add_argument(
        "--max-draft",
        type=int,
        default=8,
        metavar="N",
        help="longest draft in tokens, up to 64; 0: the server decodes alone (default: 8)",
    )
    parser.add_argument(
        "--policy",
        choices=POLICY_NAMES,
        default="auto",
        help="which drafts share a pass: whatever waits (continuous), everybody's (synchronous), "
        "or two groups in turn (ping_pong); auto (default): by predicted goodput",
    )
    parser.add_argument(
        "--objective",
        choices=OBJECTIVES,
        default="goodput",
        help="what the scheduler maximises (default: goodput)",
    )
    parser.add_argument(
        "--rate", type=float, default=0.0, metavar="R", help="tokens/s that a device must get"
    )
    parser.add_argument(
        "--ratio",
        type=_ratio_supports,
        default=_SUPPORTS,
        metavar="auto|off|M",
        help="for sessions in ratio mode: upload distributions where that pays (default), never, "
        "or always those of the M likeliest ids",
    )
    parser.add_argument(
        "--energy-cap",
        type=float,
        metavar="W",
        help="most average power of any device, by its own energy records",
    )
    parser.add_argument(
        "--energy",
        default="auto",
        metavar="auto|METER|none",
        help="the server's own meter, split among devices by verified rows (default: the NVIDIA "
        "card's, where there is one)",
    )
    parser.add_argument(
        "--metrics",
        metavar="[ADDRESS:]PORT",
        help="answer Prometheus at http://ADDRESS:PORT/metrics (default address: 127.0.0.1)",
    )
    parser.add_argument(
        "--separate-links",
        action="store_true",
        help="every board has a link of its own: no sharing of one band",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads to verify with")
    parser.add_argument(
        "--invariant",
        action="store_true",
        help="torch: run every pass in the same shapes, so that no token depends on who shares it",
    )
    parser.add_argument(
        "--lanes",
        type=int,
        default=DEFAULT_LANES,
        metavar="N",
        help="sessions that an ONNX pass takes together (default: %(default)s); 1: one by one, "
        "with the weights held once",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per report")
    parser.add_argument(
        "--report-every",
        type=float,
        default=10.0,
        metavar="S",
        help="seconds between reports of what was done (default: 10)",
    )


def _ratio_supports(text: str) -> tuple[int, ...]:
    """Read --ratio: the supports to choose from, just one that is obligatory, or none."""
    words = {"auto": _SUPPORTS, "off": ()}
    if text in words:
        return words[text]
    if text.isdecimal() and 1 <= int(text) <= MAX_SUPPORT:
        return (int(text),)
    raise argparse.ArgumentTypeError(f"must be auto, off or 1 to {MAX_SUPPORT}, got {text!r}")


def check(args: argparse.Namespace) -> None:
    """Refuse options that do not go together, before a model is loaded for nothing.

    Raises:
        ConfigError: naming them.
    """
    _check_numbers(args)
    _check_bounds(args)
    _check_backend(args)
    _check_broker(args)


def _check_numbers(args: argparse.Namespace) -> None:
    for name, least, most in (
        ("sessions", 1, _MANY),
        ("kv_memory", 1, _MANY),
        ("max_draft", 0, MAX_DRAFT_TOKENS),
        ("threads", 1, _MANY),
        ("lanes", 1, _MANY),
        ("port", 0, 65_535),
        ("rate", 0, _MANY),
        ("idle", _LEAST_S, _MANY),
        ("report_every", _LEAST_S, _MANY),
    ):
        value = getattr(args, name)
        if value is not None and not least <= value <= most:
            bounds = f"at least {least}" if most == _MANY else f"{least} to {most}"
            raise ConfigError(f"--{name.replace('_', '-')} {value}: must be {bounds}")


def _check_bounds(args: argparse.Namespace) -> None:
    """Energy and a cap are planned for rounds that all devices share."""
    bounded = args.objective == "energy" or args.energy_cap is not None
    if args.energy_cap is not None and not args.energy_cap > 0.0:
        raise ConfigError(f"--energy-cap must be above 0 W, got {args.energy_cap}")
    if args.energy_cap is not None and args.objective not in ("energy", "goodput"):
        raise ConfigError(f"--energy-cap: not with --objective {args.objective}")
    if bounded and args.policy not in ("auto", "synchronous"):
        raise ConfigError(
            f"--policy {args.policy}: objective energy and --energy-cap need synchronous or auto"
        )


def _check_backend(args: argparse.Namespace) -> None:
    """Refuse what would be ignored without a word."""
    if args.backend == "torch":
        return
    for name, default in (("device", "auto"), ("dtype", "auto"), ("weights", "stored")):
        if getattr(args, name) != default:
            raise ConfigError(f"--{name}: only with --backend torch; an ONNX target has its own")
    if args.invariant:
        raise ConfigError("--invariant: only with --backend torch; an ONNX target always is")


def _check_broker(args: argparse.Namespace) -> None:
    if args.secrets and not args.keys:
        raise ConfigError("--secrets: give --keys too")
    if args.keys and (args.config or args.broker not in ("auto", "mosquitto")):
        raise ConfigError("--keys: starts a mosquitto of its own; leave --config and --broker out")
    if args.keys and args.port == 0:
        raise ConfigError("--port 0: boards must know the port; with --keys give one")
    if args.metrics is not None:
        parse_address(args.metrics)
    if args.config:
        load_config(args.config)
    elif args.broker not in OWN_BROKERS:
        BrokerConfig.parse(args.broker)
    joins = bool(args.config) or args.broker not in OWN_BROKERS
    if joins and (args.listen is not None or args.port is not None):
        raise ConfigError("--listen, --port: are for a broker that 'serve' starts, not to join one")
