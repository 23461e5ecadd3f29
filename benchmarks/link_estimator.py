"""Measure the uplink estimate, or a grant's enforcement, on a link of known rate. Needs root.

The link is a veth pair between two anonymous network namespaces with a token bucket filter (tbf) on
the board's end and mosquitto behind the other. Namespaces and processes end with this program,
however it ends. Prints one JSON line.

    sudo python -m benchmarks.link_estimator steps
    sudo python -m benchmarks.link_estimator grant [--bulk-connection]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.machine import machine
from benchmarks.namespaces import (
    GOODPUT_SHARE,
    board_link,
    broker,
    enter_own_network,
    ip,
    shape,
    timer_lateness,
)
from sdk.config import BrokerConfig
from sdk.link.pacing import PacedTransport
from sdk.link.probes import available_probes
from sdk.link.puback import PubackProbe
from sdk.link.report import LinkReport
from sdk.link.reporter import LinkReporter
from sdk.transport.mqtt import MqttTransport

BOARD_ADDRESS, SERVER_ADDRESS, PORT = "10.99.0.1", "10.99.0.2", 1883
STEPS_MBPS = (8.0, 2.0, 6.0)
STEP_S = 12.0
SETTLE_S = 3.0


def main() -> int:
    """Enter a namespace of our own, build the link, run one scenario."""
    args = parse_arguments()
    missing = enter_own_network("benchmarks.link_estimator")
    if missing:
        print(f"link_estimator: {missing}", file=sys.stderr)
        return 2
    # The link is what is measured, not what else this machine does; inherited by the broker.
    os.setpriority(os.PRIO_PROCESS, 0, -15)
    with shaped_link() as broker, timer_lateness() as lateness_s:
        result = run_steps(broker) if args.scenario == "steps" else run_grant(broker, args)
    result["timer_late_p90_ms"] = round(statistics.quantiles(lateness_s, n=10)[-1] * 1e3, 2)
    print(json.dumps(result | machine()))
    return 0


def parse_arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("scenario", choices=["steps", "grant"])
    parser.add_argument(
        "--bulk-connection", action="store_true", help="large messages on their own"
    )
    parser.add_argument("--seconds", type=float, default=12.0, help="of the grant scenario")
    return parser.parse_args()


# the link


@contextlib.contextmanager
def shaped_link() -> Iterator[BrokerConfig]:
    """Yield the address of a broker behind an uplink of 8 Mbit/s."""
    with broker(PORT, own_network=True) as server_pid:
        ip("link", "set", "lo", "up")
        board_link(
            os.getpid(),
            name="down0",
            board=f"{BOARD_ADDRESS}/24",
            server=f"{SERVER_ADDRESS}/24",
            server_pid=server_pid,
        )
        shape(STEPS_MBPS[0])
        yield BrokerConfig(host=SERVER_ADDRESS, port=PORT)


# the estimate


def run_steps(broker: BrokerConfig) -> dict[str, Any]:
    """Step the link 8 → 2 → 6 Mbit/s beneath draft traffic; compare the reports with the truth."""
    reports: list[tuple[float, LinkReport]] = []
    with MqttTransport(broker=broker, client_id="board") as transport:
        transport.connect()
        probes = available_probes(transport, broker=broker, device_id="board")
        reporter = LinkReporter(
            transport,
            "board",
            probes=probes,
            on_report=lambda report: reports.append((time.monotonic(), report)),
        )
        done = threading.Event()
        drafts = threading.Thread(target=send_drafts, args=(transport, done))
        steps: list[tuple[float, float]] = []
        started_s = time.monotonic()
        cpu_s = time.process_time()
        with reporter:
            drafts.start()
            for rate_mbps in STEPS_MBPS:
                shape(rate_mbps)
                steps.append((time.monotonic(), rate_mbps * 1e6))
                time.sleep(STEP_S)
            done.set()
            drafts.join()
        elapsed_s = time.monotonic() - started_s
        cpu_s = time.process_time() - cpu_s
    probing = next(probe for probe in probes if isinstance(probe, PubackProbe))
    capacity_bits = sum(STEPS_MBPS) * 1e6 * STEP_S
    return {
        "scenario": "steps",
        "seconds": round(elapsed_s, 1),
        "steps": [judge(reports, at_s, rate_bps * GOODPUT_SHARE) for at_s, rate_bps in steps],
        "probing_share": round(8 * probing.sent_wire_bytes / capacity_bits, 5),
        "reports": len(reports),
        "cpu_share": round(cpu_s / elapsed_s, 4),
    }


def send_drafts(transport: MqttTransport, done: threading.Event) -> None:
    """Send what a board in coupled mode sends: some 90 bytes, 15 times a second."""
    while not done.wait(1 / 15):
        transport.publish("sd/1/board/up/draft", bytes(90))


def judge(
    reports: Sequence[tuple[float, LinkReport]], at_s: float, rate_bps: float
) -> dict[str, Any]:
    """Return how far the reports between 3 s after a step and the next step were off.

    `rate_bps` is the truth in the reports' unit, TCP payload in full segments.
    """
    first_good_s = None
    errors: list[float] = []
    for report_s, report in reports:
        if not at_s <= report_s < at_s + STEP_S:
            continue
        error = math.inf if report.uplink_bps is None else report.uplink_bps / rate_bps - 1.0
        if abs(error) < 0.15 and first_good_s is None:
            first_good_s = report_s - at_s
        if report_s >= at_s + SETTLE_S:
            errors.append(error)
    worst = sorted(errors, key=abs)[-1:]
    return {
        "link_mbps": round(rate_bps / GOODPUT_SHARE * 1e-6, 3),
        "within_15_percent_after_s": None if first_good_s is None else round(first_good_s, 2),
        "worst_error": round(worst[0], 4) if worst else None,
        "median_error": round(statistics.median(errors), 4) if errors else None,
        "reports": len(errors),
    }


# the grant


def run_grant(broker: BrokerConfig, args: argparse.Namespace) -> dict[str, Any]:
    """Hold 64 kB messages to 2 of 8 Mbit/s, and time small urgent ones among them."""
    grant_bps, message_bytes = 2e6, 64_000
    received: list[tuple[float, int]] = []
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(
            MqttTransport(broker=broker, client_id="board-listener", subscriptions=[("t/#", 0)])
        )
        inner = stack.enter_context(MqttTransport(broker=broker, client_id="board"))
        bulk = None
        if args.bulk_connection:
            bulk = stack.enter_context(MqttTransport(broker=broker, client_id="board-bulk"))
            bulk.connect()
        for transport in (listener, inner):
            transport.connect()
        paced = stack.enter_context(PacedTransport(inner, bulk=bulk))
        paced.set_rate_bps(grant_bps)
        delays_s: list[float] = []
        started_s = time.monotonic()
        next_urgent_s = started_s + 2.0
        while (now_s := time.monotonic()) < started_s + args.seconds:
            while paced.waiting_bytes < 2 * message_bytes:
                paced.publish("t/bulk", bytes(message_bytes))
            if now_s >= next_urgent_s:
                next_urgent_s += 0.37  # no multiple of a large message's 0.256 s
                paced.publish("t/urgent", str(now_s).encode())
            message = listener.receive(0.02)
            if message is None:
                continue
            if message.topic == "t/urgent":
                delays_s.append(time.monotonic() - float(message.payload))
            else:
                received.append((time.monotonic(), len(message.payload)))
    # From one arrival to another, after the first burst: whole messages over whole intervals.
    steady = [each for each in received if each[0] > started_s + 1.5]
    goodput_bps = 8 * sum(size for _, size in steady[1:]) / (steady[-1][0] - steady[0][0])
    return {
        "scenario": "grant",
        "bulk_connection": args.bulk_connection,
        "grant_mbps": grant_bps * 1e-6,
        "goodput_mbps": round(goodput_bps * 1e-6, 4),
        "urgent_median_ms": round(statistics.median(delays_s) * 1e3, 1),
        "urgent_max_ms": round(max(delays_s) * 1e3, 1),
        "urgent_messages": len(delays_s),
        "bulk_messages": len(steady) - 1,
    }


if __name__ == "__main__":
    sys.exit(main())
