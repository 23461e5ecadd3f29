"""`multispin serve`: the edge server, beside a broker it starts or joins."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from edge_server.broker import start_broker
from edge_server.gateway import GatewayLimits
from edge_server.metrics import metrics_text, parse_address, serve_metrics
from edge_server.scheduler.control import DraftControl
from edge_server.scheduler.modes import RatioMode
from edge_server.scheduler.policies import make_policy
from edge_server.scheduler.solver import ProcessSolver
from edge_server.secured_broker import SecuredBroker
from edge_server.serve_options import OWN_BROKERS, check, configure
from edge_server.serve_report import announce, report
from edge_server.server import EdgeServer
from edge_server.server_energy import meter_server
from edge_server.verifier.interface import Verifier
from edge_server.verifier.onnx import OnnxVerifier
from sdk.config import BrokerConfig, load_config, shipped_model
from sdk.errors import BrokerError, ConnectError
from sdk.protocol import UP_FILTER, bits_per_id
from sdk.protocol.proposals import proposal_bytes
from sdk.transport.mqtt import MqttTransport

__all__ = ["DRAFT_OVERHEAD_BITS", "configure", "ratio_modes", "run"]

_CONNECT_TIMEOUT_S = 10.0
_START_LENGTH = 4
DRAFT_OVERHEAD_BITS = 8.0 * 90  # draft header, MQTT, TCP and IP around the ids
_WEIGHT_BITS = 8
# Measured on one pair at temperature 1: acceptance 0.61 coupled, 0.67 by the ratio test.
_REJECTIONS_LEFT = 0.33 / 0.39
_PLAIN_PORT, _TLS_PORT = 1883, 8883


def run(args: argparse.Namespace) -> int:
    """Serve until interrupted."""
    check(args)
    logging.basicConfig(format="%(asctime)s %(message)s", stream=sys.stderr)
    for package in ("edge_server", "sdk"):  # of libraries, warnings will do
        logging.getLogger(package).setLevel(logging.INFO)
    logging.getLogger("torchao").setLevel(logging.ERROR)  # kernels that it misses, we do not use
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    lost: list[str] = []

    def broker_lost(why: str) -> None:
        lost.append(why)
        stop.set()

    with ExitStack() as stack:
        energy = stack.enter_context(meter_server(args.energy))
        broker = _join_broker(args, stack, on_loss=broker_lost)  # a taken port is told at once
        verifier = _load_verifier(args)
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
        announce(args, broker, verifier, energy=energy, metrics_port=metrics_port)
        reporter = threading.Thread(
            target=report, args=(args, server, stop), name="report", daemon=True
        )
        reporter.start()
        server.run(stop)
        reporter.join()
    if lost:
        raise BrokerError(f"{lost[0]}; start 'multispin serve' again: boards go on by themselves")
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


def _join_broker(
    args: argparse.Namespace, stack: ExitStack, *, on_loss: Callable[[str], None]
) -> BrokerConfig:
    if args.keys:
        port = args.port or _TLS_PORT
        return stack.enter_context(
            SecuredBroker(
                args.keys, secrets=args.secrets, host=args.listen, port=port, on_loss=on_loss
            )
        ).config
    if args.config:
        return load_config(args.config).broker
    if args.broker in OWN_BROKERS:
        return stack.enter_context(
            start_broker(
                args.broker,
                port=_PLAIN_PORT if args.port is None else args.port,
                host=args.listen or "127.0.0.1",
                on_loss=on_loss,
            )
        ).config
    return BrokerConfig.parse(args.broker)


def _connect(broker: BrokerConfig) -> MqttTransport:
    transport = MqttTransport(broker=broker, client_id="edge", subscriptions=[(UP_FILTER, 1)])
    try:
        transport.connect(_CONNECT_TIMEOUT_S)
    except ConnectError:
        transport.close()
        raise
    return transport
