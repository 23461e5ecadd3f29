"""What the server has done, as Prometheus reads it: text over HTTP, on loopback unless told else.

The verify loop knows nothing of it: every scrape reads the loop's counters as they stand. Labels
are device ids and our own words, none of which needs escaping.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from edge_server.server import EdgeServer
from sdk.errors import ConfigError

__all__ = ["metrics_text", "parse_address", "serve_metrics"]

_TIMEOUT_S = 5.0
_REJECTED = "rejected_"

Sample = tuple[dict[str, str], float]


def metrics_text(server: EdgeServer, *, link_bps: Mapping[str, float]) -> str:
    """Return every figure in the Prometheus text format.

    Args:
        link_bps: the uplink rate of each device at full share, as the scheduler believes it.
    """
    return "".join(
        f"# HELP multispin_{name} {help_}\n# TYPE multispin_{name} {kind}\n"
        + "".join(f"multispin_{name}{_labels(labels)} {value:.12g}\n" for labels, value in samples)
        for name, kind, help_, samples in _families(server, link_bps)
    )


def _labels(labels: dict[str, str]) -> str:
    inside = ",".join(f'{name}="{value}"' for name, value in labels.items())
    return f"{{{inside}}}" if inside else ""


def _by_device(values: Mapping[str, float]) -> list[Sample]:
    return [({"device": device}, value) for device, value in values.items()]


def _families(
    server: EdgeServer, link_bps: Mapping[str, float]
) -> Iterator[tuple[str, str, str, Iterable[Sample]]]:
    done, counted = server.engine.counters, dict(server.gateway.counters)
    sessions = list(server.sessions)
    yield "sessions", "gauge", "Open sessions.", [({}, len(sessions))]
    for name, help_, value in (
        ("emitted_tokens_total", "Tokens committed.", done.emitted),
        ("drafted_tokens_total", "Drafted tokens verified.", done.drafted),
        ("accepted_tokens_total", "Drafted tokens accepted.", done.accepted),
        ("prefilled_tokens_total", "Tokens of prompts taken in.", done.prefilled),
        ("passes_total", "Verification passes.", done.passes),
        ("requests_total", "Sessions in all passes.", done.requests),
        ("rows_total", "Token rows in all passes.", done.rows),
        ("verify_seconds_total", "Time in verification passes.", done.verify_s),
    ):
        yield name, "counter", help_, [({}, value)]
    yield (
        "rejects_total",
        "counter",
        "Frames rejected, by reason.",
        [
            ({"reason": name.removeprefix(_REJECTED)}, count)
            for name, count in counted.items()
            if name.startswith(_REJECTED)
        ],
    )
    yield (
        "events_total",
        "counter",
        "What became of frames and sessions, by kind.",
        [
            ({"kind": name}, count)
            for name, count in counted.items()
            if not name.startswith(_REJECTED)
        ],
    )
    lengths: dict[str, int] = {}
    shares: dict[str, float] = {}
    for session in sessions:  # by device: a label for each session would grow without end
        device, grant = session.device, session.grant
        lengths[device] = max(lengths.get(device, 0), grant.length)
        shares[device] = min(shares.get(device, 0.0) + grant.share, 1.0)
    yield "grant_tokens", "gauge", "Longest draft granted.", _by_device(lengths)
    yield "grant_share", "gauge", "Share of the uplink granted.", _by_device(shares)
    yield (
        "link_bits_per_second",
        "gauge",
        "Uplink at full share, as believed.",
        _by_device(link_bps),
    )
    yield from _energy(server)


def _energy(server: EdgeServer) -> Iterator[tuple[str, str, str, Iterable[Sample]]]:
    told = dict(server.gateway.energy.devices)
    yield (
        "device_joules_total",
        "counter",
        "Gross joules in trusted energy records of a device.",
        [({"device": device}, sums.gross_j) for device, sums in told.items()],
    )
    yield (
        "device_tokens_total",
        "counter",
        "Tokens in the same records.",
        [
            ({"device": device, "kind": kind}, getattr(sums, kind))
            for device, sums in told.items()
            for kind in ("drafted", "accepted", "emitted")
        ],
    )
    yield (
        "device_records_refused_total",
        "counter",
        "Energy records without a trusted figure.",
        [({"device": device}, sums.refused) for device, sums in told.items()],
    )
    own = server.energy
    if own is None:
        return
    shares = own.devices()
    yield (
        "server_joules_total",
        "counter",
        "The server's own meter, split by verified rows.",
        [({"device": device}, work.joules) for device, work in shares.items()],
    )
    yield (
        "server_accepted_tokens_total",
        "counter",
        "Tokens accepted while that meter ran.",
        [({"device": device}, work.accepted) for device, work in shares.items()],
    )
    yield (
        "server_idle_joules_total",
        "counter",
        "The same meter while no row was verified.",
        [({}, own.idle_j)],
    )


def parse_address(text: str) -> tuple[str, int]:
    """Return host and port of `PORT` or `ADDRESS:PORT`; without an address, loopback.

    Raises:
        ConfigError: if it is neither.
    """
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise ConfigError(f"--metrics {text!r}: give PORT or ADDRESS:PORT")
    return host.strip("[]") or "127.0.0.1", int(port)


@contextmanager
def serve_metrics(address: tuple[str, int], text: Callable[[], str]) -> Iterator[int]:
    """Answer GET /metrics with `text()` while the block runs; yields the port.

    Raises:
        ConfigError: if the address cannot be listened on.
    """

    class Handler(BaseHTTPRequestHandler):
        timeout = _TIMEOUT_S

        def do_GET(self) -> None:
            """Answer one scrape."""
            if self.path.partition("?")[0] != "/metrics":
                self.send_error(404)
                return
            body = text().encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Keep scrapes out of the log."""

    try:
        httpd = ThreadingHTTPServer(address, Handler)
    except OSError as error:
        raise ConfigError(f"--metrics: cannot listen on {address[0]}:{address[1]}: {error}") from (
            error
        )
    httpd.daemon_threads = True
    thread = threading.Thread(target=httpd.serve_forever, name="metrics", daemon=True)
    thread.start()
    try:
        yield httpd.server_address[1]
    finally:
        httpd.shutdown()
        thread.join()
        httpd.server_close()
