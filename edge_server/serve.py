"""`multispin serve`: the edge server, beside a broker it starts or joins."""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

from edge_server.broker import start_broker
from edge_server.energy import DeviceEnergy
from edge_server.gateway import GatewayLimits
from edge_server.metrics import metrics_text, parse_address, serve_metrics
from edge_server.scheduler.control import DraftControl
from edge_server.scheduler.joint import OBJECTIVES
from edge_server.scheduler.modes import RatioMode
from edge_server.scheduler.policies import POLICY_NAMES, make_policy
from edge_server.scheduler.solver import ProcessSolver
from edge_server.secured_broker import SecuredBroker
from edge_server.server import EdgeServer
from edge_server.server_energy import ServerEnergy, meter_server
from edge_server.verifier.interface import Verifier
from edge_server.verifier.onnx import DEFAULT_LANES, OnnxVerifier
from sdk.config import BrokerConfig, load_config, shipped_model
from sdk.errors import ConfigError, ConnectError
from sdk.model.proposal import MAX_SUPPORT
from sdk.protocol import UP_FILTER, bits_per_id
from sdk.protocol.proposals import proposal_bytes
from sdk.transport.mqtt import MqttTransport

__all__ = ["DRAFT_OVERHEAD_BITS", "configure", "ratio_modes", "run"]

_CONNECT_TIMEOUT_S = 10.0
_START_LENGTH = 4
DRAFT_OVERHEAD_BITS = 8.0 * 90  # draft header, MQTT, TCP and IP around the ids
_SUPPORTS = (8, 32)
_WEIGHT_BITS = 8
# Measured on one pair at temperature 1: acceptance 0.61 coupled, 0.67 by the ratio test.
_REJECTIONS_LEFT = 0.33 / 0.39
_PLAIN_PORT, _TLS_PORT = 1883, 8883
_OWN_BROKERS = ("auto", "mosquitto", "amqtt")


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
    parser.add_argument("--sessions", type=int, default=64, metavar="N", help="at most, at once")
    parser.add_argument(
        "--kv-memory", type=int, default=1024, metavar="MIB", help="for all keys and values"
    )
    parser.add_argument("--idle", type=float, default=120.0, metavar="S", help="session expiry")
    parser.add_argument("--max-draft", type=int, default=8, metavar="N", help="longest draft")
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
        help="sessions that an ONNX pass takes together; 1: one by one, with the weights held once",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per report")
    parser.add_argument("--report-every", type=float, default=10.0, metavar="S")


def run(args: argparse.Namespace) -> int:
    """Serve until interrupted."""
    _check_bounds(args)
    _check_broker(args)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with ExitStack() as stack:
        verifier = _load_verifier(args)
        energy = stack.enter_context(meter_server(args.energy))
        broker = _join_broker(args, stack)
        transport = stack.enter_context(_connect(broker))
        control = DraftControl(
            policy=args.policy,
            objective=args.objective,
            max_length=args.max_draft,
            start_length=min(_START_LENGTH, args.max_draft),
            bits_per_token=bits_per_id(verifier.vocabulary_size),
            overhead_bits=DRAFT_OVERHEAD_BITS,
            shared_band=not args.separate_links,
            rate_tokens_per_s=args.rate,
            energy_cap_w=args.energy_cap,
            ratio_modes=ratio_modes(args.ratio, verifier.vocabulary_size),
            always_upload=len(args.ratio) == 1,
            solver=stack.enter_context(ProcessSolver()),
        )
        server = EdgeServer(
            transport=transport,
            verifier=verifier,
            controller=control,
            policy=make_policy(args.policy, choose=control.policy_name, groups=control.groups),
            limits=GatewayLimits(idle_s=args.idle),
            energy=energy,
        )
        metrics_port = _serve_metrics(args, server, control, stack)
        _announce(args, broker, verifier, energy=energy, metrics_port=metrics_port)
        reporter = threading.Thread(
            target=_report, args=(args, server, stop), name="report", daemon=True
        )
        reporter.start()
        server.run(stop)
        reporter.join()
    return 0


def _load_verifier(args: argparse.Namespace) -> Verifier:
    model = args.model or shipped_model("target")
    if args.backend == "torch":
        from edge_server.verifier.torch_backend import TorchVerifier

        return TorchVerifier.load(
            model,
            device=args.device,
            dtype=args.dtype,
            weights=args.weights,
            threads=args.threads,
            max_sessions=args.sessions,
            kv_memory_mib=args.kv_memory,
            invariant=args.invariant,
        )
    return OnnxVerifier.load(
        Path(model),
        threads=args.threads,
        max_sessions=args.sessions,
        kv_memory_mib=args.kv_memory,
        lanes=args.lanes,
    )


def _ratio_supports(text: str) -> tuple[int, ...]:
    """Read --ratio: the supports to choose from, just one that is obligatory, or none."""
    words = {"auto": _SUPPORTS, "off": ()}
    if text in words:
        return words[text]
    if text.isdecimal() and 1 <= int(text) <= MAX_SUPPORT:
        return (int(text),)
    raise argparse.ArgumentTypeError(f"must be auto, off or 1 to {MAX_SUPPORT}, got {text!r}")


def ratio_modes(supports: tuple[int, ...], vocabulary_size: int) -> tuple[RatioMode, ...]:
    """Return the ways to upload that many ids a token, or all ids where there are fewer."""
    id_bits = bits_per_id(vocabulary_size)
    return tuple(
        RatioMode(
            support=support,
            bits_per_token=id_bits
            + 8.0 * proposal_bytes([support], id_bits=id_bits, weight_bits=_WEIGHT_BITS),
            acceptance_gain=_REJECTIONS_LEFT,
        )
        for support in dict.fromkeys(min(support, vocabulary_size) for support in supports)
    )


def _check_bounds(args: argparse.Namespace) -> None:
    """Refuse what cannot be: energy and a cap are planned for rounds that all devices share."""
    bounded = args.objective == "energy" or args.energy_cap is not None
    if args.energy_cap is not None and not args.energy_cap > 0.0:
        raise ConfigError(f"--energy-cap must be above 0 W, got {args.energy_cap}")
    if args.energy_cap is not None and args.objective not in ("energy", "goodput"):
        raise ConfigError(f"--energy-cap: not with --objective {args.objective}")
    if bounded and args.policy not in ("auto", "synchronous"):
        raise ConfigError(
            f"--policy {args.policy}: objective energy and --energy-cap need synchronous or auto"
        )


def _serve_metrics(
    args: argparse.Namespace, server: EdgeServer, control: DraftControl, stack: ExitStack
) -> int | None:
    if args.metrics is None:
        return None
    return stack.enter_context(
        serve_metrics(
            parse_address(args.metrics),
            lambda: metrics_text(server, link_bps=control.link_rates()),
        )
    )


def _check_broker(args: argparse.Namespace) -> None:
    """Refuse options that do not go together, before a model is loaded for nothing."""
    if args.secrets and not args.keys:
        raise ConfigError("--secrets: give --keys too")
    if args.keys and (args.config or args.broker not in ("auto", "mosquitto")):
        raise ConfigError("--keys: starts a mosquitto of its own; leave --config and --broker out")
    if args.keys and args.port == 0:
        raise ConfigError("--port 0: boards must know the port; with --keys give one")


def _join_broker(args: argparse.Namespace, stack: ExitStack) -> BrokerConfig:
    if args.keys:
        port = args.port or _TLS_PORT
        return stack.enter_context(
            SecuredBroker(args.keys, secrets=args.secrets, host=args.listen, port=port)
        ).config
    if args.config:
        return load_config(args.config).broker
    if args.broker in _OWN_BROKERS:
        return stack.enter_context(
            start_broker(
                args.broker,
                port=_PLAIN_PORT if args.port is None else args.port,
                host=args.listen or "127.0.0.1",
            )
        ).config
    return BrokerConfig.parse(args.broker)


def _connect(broker: BrokerConfig) -> MqttTransport:
    transport = MqttTransport(broker=broker, client_id="edge", subscriptions=[(UP_FILTER, 1)])
    if not transport.wait_connected(_CONNECT_TIMEOUT_S):
        transport.close()
        raise ConnectError(
            f"connect: no broker answers at {broker.host}:{broker.port}; "
            "check --broker, or leave it out to start a private one"
        )
    return transport


def _announce(
    args: argparse.Namespace,
    broker: BrokerConfig,
    verifier: Verifier,
    *,
    energy: ServerEnergy | None,
    metrics_port: int | None,
) -> None:
    """Say where devices find this server."""
    if args.json:
        ready: dict[str, object] = {"ready": f"{broker.host}:{broker.port}"}
        if metrics_port is not None:
            ready["metrics_port"] = metrics_port
        print(json.dumps(ready), flush=True)
        return
    if energy is not None:
        print(f"multispin: own energy by {energy.meter} ({energy.scope})")
    if metrics_port is not None:
        print(f"multispin: metrics at port {metrics_port}, /metrics")
    if broker.tls:
        where = "on a board set up for this broker"
        options = "--config /etc/multispin/multispin.toml"
    else:
        where, options = "try", f"--broker {broker.host}:{broker.port}"
    print(
        f"multispin: verifying on {broker.host}:{broker.port}, {verifier.vocabulary_size} token "
        f"ids, context {verifier.context_length}, at most {args.sessions} sessions in "
        f"{args.kv_memory} MiB; stop with Ctrl-C\n"
        f"  {where}: multispin generate {options} --prompt 'def main('",
        flush=True,
    )


def _report(args: argparse.Namespace, server: EdgeServer, stop: threading.Event) -> None:
    """Print what was done, every so often, while there is something to tell."""
    before, before_s, told = 0, time.monotonic(), 0
    while not stop.wait(args.report_every):
        counters, now_s = server.engine.counters, time.monotonic()
        rate = (counters.emitted - before) / (now_s - before_s)
        devices = dict(server.gateway.energy.devices)
        records = sum(sums.records + sums.refused for sums in devices.values())
        changed = (counters.emitted, records) != (before, told)  # records follow the last token
        before, before_s = counters.emitted, now_s
        told, new_records = records, records != told
        if not changed:
            continue
        figures: dict[str, object] = {
            "sessions": len(server.sessions),
            "tokens_per_s": round(rate, 1),
            "emitted": counters.emitted,
            "drafted": counters.drafted,
            "accepted": counters.accepted,
            "passes": counters.passes,
            "rows_per_pass": round(counters.rows / max(counters.passes, 1), 2),
            "verify_s": round(counters.verify_s, 3),
            **server.gateway.counters,
            "energy": {device: sums.as_json() for device, sums in devices.items()},
        }
        if server.energy is not None:
            figures["server_energy"] = server.energy.as_json()
        if args.json:
            print(json.dumps(figures), flush=True)
        else:
            print(
                f"{figures['sessions']} sessions, {rate:.1f} tokens/s, "
                f"{counters.accepted} of {counters.drafted} drafted tokens accepted, "
                f"{figures['rows_per_pass']} rows a pass",
                flush=True,
            )
            if new_records:
                _print_energy(devices, server.energy)


def _print_energy(devices: dict[str, DeviceEnergy], own: ServerEnergy | None) -> None:
    """Print joules per accepted token: what each device says, and the server's own share."""
    shares = {} if own is None else own.devices()
    for device, sums in devices.items():
        parts = [f"{sums.gross_j / sums.accepted:.4g} J by itself"] if sums.accepted else []
        share = shares.get(device)
        if share is not None and share.accepted:
            parts.append(f"{share.joules / share.accepted:.4g} J here")
        if parts:
            print(f"  {device}: {' and '.join(parts)} per accepted token", flush=True)
