"""Measure our transport through our own broker on loopback: round trips and rate.

A second process echoes, as an edge server would. Prints one JSON line.

    python -m benchmarks.link [--broker mosquitto|amqtt] [--payload-bytes 200]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from edge_server.broker import start_broker
from sdk.config import BrokerConfig
from sdk.transport.mqtt import MqttTransport

UP, DOWN = "sd/1/bench/up/draft", "sd/1/bench/down/verdict"
WAIT_S = 10.0


def main() -> int:
    """Measure, and print what was found and on what."""
    args = parse_arguments()
    if args.echo:
        return echo(BrokerConfig.parse(args.echo))
    payload = bytes(args.payload_bytes)
    with start_broker(args.broker) as broker, echoing(broker.config):
        with MqttTransport(
            broker=broker.config, client_id="bench", subscriptions=[(DOWN, 1)]
        ) as device:
            device.connect()
            result = {
                f"echo_qos{qos}_ms": round_trips_ms(device, payload, qos, args.round_trips)
                for qos in (0, 1)
            }
        rates = {
            f"rate_qos{qos}": rate(broker.config, payload, qos, args.messages) for qos in (0, 1)
        }
    machine = {
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "load": [round(each, 1) for each in os.getloadavg()],
    }
    print(
        json.dumps(
            {"broker": broker.kind, "payload_bytes": len(payload), **result, **rates, **machine}
        )
    )
    return 0


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--broker", choices=["auto", "mosquitto", "amqtt"], default="auto")
    parser.add_argument("--payload-bytes", type=int, default=200)
    parser.add_argument("--round-trips", type=int, default=1000)
    parser.add_argument("--messages", type=int, default=10_000)
    parser.add_argument("--echo", metavar="HOST:PORT", help=argparse.SUPPRESS)
    return parser.parse_args()


def round_trips_ms(device: MqttTransport, payload: bytes, qos: int, count: int) -> dict[str, float]:
    """Send one message at a time and wait for its echo."""
    times_ms = []
    for _ in range(count):
        started_s = time.perf_counter()
        device.publish(UP, bytes([qos]) + payload[1:], qos=qos)
        if device.receive(WAIT_S) is None:
            raise SystemExit("link: the echo stays away")
        times_ms.append((time.perf_counter() - started_s) * 1e3)
    cuts = statistics.quantiles(times_ms, n=100)
    return {
        "p10": round(cuts[9], 3),
        "p50": round(cuts[49], 3),
        "p90": round(cuts[89], 3),
        "p99": round(cuts[98], 3),
    }


def rate(broker: BrokerConfig, payload: bytes, qos: int, count: int) -> dict[str, float]:
    """Publish to a reader in the same process, with 64 messages on the way.

    CPU time is that of both ends together, without the broker; it hardly depends on the load.
    """
    topic = f"sd/1/bench/up/rate{qos}"
    with (
        MqttTransport(broker=broker, client_id="reader", subscriptions=[(topic, qos)]) as reader,
        MqttTransport(broker=broker, client_id="writer", control_limit=128) as writer,
    ):
        reader.connect()
        writer.connect()
        started_s, started_cpu_s = time.perf_counter(), time.process_time()
        sent = received = 0
        while received < count:
            while sent < count and sent - received < 64:
                if not writer.publish(topic, payload, qos=qos):
                    break
                sent += 1
            if reader.receive(WAIT_S) is None:
                raise SystemExit(f"link: {sent - received} messages were lost")
            received += 1
        took_s, took_cpu_s = time.perf_counter() - started_s, time.process_time() - started_cpu_s
    return {
        "messages_per_s": round(count / took_s),
        "cpu_us_per_message": round(took_cpu_s / count * 1e6, 1),
    }


@contextmanager
def echoing(broker: BrokerConfig) -> Iterator[None]:
    """Run this program as the echo; it ends when its standard input does."""
    command = [sys.executable, "-m", "benchmarks.link", "--echo", broker.address]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield
        finally:
            process.communicate()


def echo(broker: BrokerConfig) -> int:
    """Send back what comes, at the QoS in its first byte."""
    with MqttTransport(broker=broker, client_id="echo", subscriptions=[(UP, 1)]) as transport:
        transport.connect()
        print("ready", flush=True)

        def end() -> None:
            sys.stdin.read()
            transport.close()

        threading.Thread(target=end, daemon=True).start()
        while (message := transport.receive(None)) is not None:
            transport.publish(DOWN, message.payload, qos=message.payload[0])
    return 0


if __name__ == "__main__":
    sys.exit(main())
