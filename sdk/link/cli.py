"""`multispin link`: the quality of this board's link, live, as its server gets to see it."""

from __future__ import annotations

import argparse
import contextlib
import queue
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdk.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from sdk.link.report import LinkReport

__all__ = ["configure", "run"]

_CONNECT_S = 5.0
_RADIO = ("rsrp_dbm", "rsrq_db", "sinr_db", "rssi_dbm", "mcs", "nss", "retry_ratio", "airtime_busy")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--broker", metavar="HOST:PORT", help="default 127.0.0.1:1883")
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML: broker, device")
    parser.add_argument("--device", metavar="ID", help="default: that of the configuration")
    parser.add_argument("--modem", metavar="PORT", help="AT port of a modem: /dev/ttyUSB2")
    parser.add_argument("--interval", type=float, default=1.0, metavar="S", help="between reports")
    parser.add_argument("--seconds", type=float, metavar="S", help="end after so long")
    parser.add_argument(
        "--passive", action="store_true", help="send no probes (they take under 1 %% of the link)"
    )
    parser.add_argument("--json", action="store_true", help="one report per line")


def run(args: argparse.Namespace) -> int:
    """Report until interrupted, or for the time given."""
    if not args.interval > 0.0 or (args.seconds is not None and not args.seconds > 0.0):
        raise ConfigError("--interval and --seconds must be above 0")
    with contextlib.suppress(KeyboardInterrupt):  # the usual way out of a live view
        _watch(args)
    return 0


def _watch(args: argparse.Namespace) -> None:
    from sdk.config import BrokerConfig, Config, check_named, load_config
    from sdk.link.probes import available_probes
    from sdk.link.reporter import LinkReporter
    from sdk.transport.mqtt import MqttTransport

    config = load_config(args.config) if args.config else Config()
    broker = BrokerConfig.parse(args.broker) if args.broker else config.broker
    suffix = secrets.token_hex(3)
    device = args.device or config.device.id or broker.username
    if device is None:
        check_named(broker)
        device = f"link-{suffix}"
    # An id of its own, so that a session that runs under the device's is not taken over.
    with MqttTransport(broker=broker, client_id=f"{device}-link-{suffix}") as transport:
        transport.connect(_CONNECT_S)
        probes = available_probes(
            transport,
            broker=None if args.passive else broker,
            device_id=device,
            modem_port=args.modem,
        )
        reports: queue.SimpleQueue[LinkReport] = queue.SimpleQueue()
        with LinkReporter(
            transport, device, probes=probes, interval_s=args.interval, on_report=reports.put
        ):
            show = _print_lines if args.json else _show_live
            show(_until(reports, args.seconds), [probe.name for probe in probes])


def _until(reports: queue.SimpleQueue[LinkReport], seconds: float | None) -> Iterator[LinkReport]:
    end_s = None if seconds is None else time.monotonic() + seconds
    while end_s is None or time.monotonic() < end_s:
        with contextlib.suppress(queue.Empty):
            yield reports.get(timeout=0.2)


def _print_lines(reports: Iterator[LinkReport], _sources: list[str]) -> None:
    for report in reports:
        print(report.to_json(), flush=True)


def _show_live(reports: Iterator[LinkReport], sources: list[str]) -> None:
    from rich.live import Live

    with Live(auto_refresh=False) as live:
        for report in reports:
            live.update(_table(report.to_dict(), sources), refresh=True)


def _table(report: dict[str, Any], sources: list[str]) -> Table:
    from rich.table import Table

    table = Table(title=f"link of {report['device']}", caption=f"sources: {', '.join(sources)}")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, value in _rows(report):
        table.add_row(name, value)
    return table


def _rows(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "interface", f"{report['iface'] or '?'} ({report['kind'] or 'kind unknown'})"
    if report["uplink_bps"] is None:
        yield "uplink", "not measured yet"
    else:
        sd = report["uplink_sd_bps"] * 1e-6
        yield "uplink", f"{report['uplink_bps'] * 1e-6:.2f} ± {sd:.2f} Mbit/s"
        yield "nine times in ten above", f"{report['uplink_bps_lo'] * 1e-6:.2f} Mbit/s"
        yield (
            "by",
            f"{report['method']}, {report['age_ms'] * 1e-3:.1f} s ago, {report['n']} readings",
        )
    for name, value in report["rtt_ms"].items():
        if value is not None:
            yield f"round trip ({name})", f"{value:.2f} ms"
    if report["cap_bps"] is not None:
        yield "held to", f"{report['cap_bps'] * 1e-6:.2f} Mbit/s"
    for name in ("loss", "queue_bytes", "se_bps_hz", *_RADIO):
        if report[name] is not None:
            yield name, str(report[name])
