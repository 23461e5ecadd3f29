"""What `multispin serve` prints: where devices find it, and what was done since."""

from __future__ import annotations

import argparse
import json
import threading
import time

from edge_server.energy import DeviceEnergy
from edge_server.server import EdgeServer
from edge_server.server_energy import ServerEnergy
from edge_server.verifier.interface import Verifier
from sdk.config import BrokerConfig

__all__ = ["announce", "report"]


def announce(
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


def report(args: argparse.Namespace, server: EdgeServer, stop: threading.Event) -> None:
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
