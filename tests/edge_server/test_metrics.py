"""What Prometheus is told, over a real socket."""

from __future__ import annotations

import json
import re
import socket
import time
import urllib.error
import urllib.request

import pytest

from edge_server.metrics import metrics_text, parse_address, serve_metrics
from edge_server.scheduler.control import DraftControl
from edge_server.server_energy import ServerEnergy
from sdk.errors import ConfigError
from sdk.protocol import encode_control, up
from sdk.transport.memory import MemoryHub
from tests.fakes.cell import (
    FixedLength,
    connect_device,
    generate,
    opening,
    serve_in_memory,
    serving,
)
from tests.fakes.hash_model import HashDrafter, HashVerifier

LINE = re.compile(r'(\w+)((?:\{\w+="[^"\\\n]*"(?:,\w+="[^"\\\n]*")*\})?) (-?[0-9.e+-]+)')
RECORD = {
    "verdict": "ok",
    "tokens": {"drafted": 20, "accepted": 10, "emitted": 15},
    "energy": {"gross_j": {"value": 6.0, "low": 5.0, "high": 7.0}},
}


def parse(text: str) -> dict[str, float]:
    """Return every sample by its name and labels; a line that is none fails the test."""
    samples: dict[str, float] = {}
    for line in text.splitlines():
        if line.startswith("# "):
            assert re.fullmatch(r"# (HELP \w+ .+|TYPE \w+ (counter|gauge))", line), line
            continue
        match = LINE.fullmatch(line)
        assert match, line
        key = match[1] + match[2]
        assert key not in samples
        samples[key] = float(match[3])
    return samples


def scrape(port: int, path: str = "/metrics") -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        text: str = answer.read().decode()
    return text


def test_a_scrape_tells_what_the_server_did() -> None:
    hub, control = MemoryHub(), DraftControl()
    energy = ServerEnergy(meter="test", scope="gpu")
    with serving(serve_in_memory(hub), HashVerifier(), controller=control, energy=energy) as server:
        device = connect_device(hub, "pi")
        device.publish(up("pi", "energy"), json.dumps(RECORD).encode(), qos=1)
        device.publish(up("pi", "energy"), b"[]", qos=1)
        seen: list[str] = []

        def look(_tokens: list[int]) -> None:
            if not seen:
                device.publish(up("pi", "report"), b'{"uplink_bps": 2000000}')
                seen.append(scrape(port))

        def text() -> str:
            return metrics_text(server, link_bps=control.link_rates())

        with serve_metrics(("127.0.0.1", 0), text) as port:
            generate(device, "pi", opening(), HashDrafter(), on_tokens=look)
            energy.settle(energy.take(), 12.0)
            last = parse(scrape(port))
            with pytest.raises(urllib.error.HTTPError, match="404"):
                scrape(port, "/")
    during = parse(seen[0])
    assert during["multispin_sessions"] == 1
    assert during['multispin_grant_tokens{device="pi"}'] >= 0
    assert 0 < during['multispin_grant_share{device="pi"}'] <= 1
    counters = server.engine.counters
    assert last["multispin_emitted_tokens_total"] == counters.emitted == 60
    assert last["multispin_rows_total"] == counters.rows
    assert last["multispin_passes_total"] == counters.passes
    assert last["multispin_verify_seconds_total"] == pytest.approx(counters.verify_s)
    assert last['multispin_rejects_total{reason="malformed"}'] == 1
    assert last['multispin_device_joules_total{device="pi"}'] == 6
    assert last['multispin_device_tokens_total{device="pi",kind="accepted"}'] == 10
    assert last['multispin_server_joules_total{device="pi"}'] == 12


def test_two_sessions_of_a_device_are_one_series() -> None:
    hub = MemoryHub()
    with serving(serve_in_memory(hub), HashVerifier(), controller=FixedLength(3, 5)) as server:
        device = connect_device(hub, "pi")
        for session in (1, 2):
            device.publish(up("pi", "open"), encode_control(opening(session=session)), qos=1)
        deadline_s = time.monotonic() + 10.0
        while len(server.sessions) < 2 or server.engine.counters.emitted < 2:
            assert time.monotonic() < deadline_s
            time.sleep(0.001)
        told = parse(metrics_text(server, link_bps={}))
    assert told["multispin_sessions"] == 2
    assert told['multispin_grant_tokens{device="pi"}'] in (3, 5)
    assert told['multispin_grant_share{device="pi"}'] == 1


def test_a_link_report_shows_as_a_rate() -> None:
    hub, control = MemoryHub(), DraftControl()
    with serving(serve_in_memory(hub), HashVerifier(), controller=control) as server:
        control.opened("pi", 1, mode=opening().mode, now_s=0.0)
        control.observe_link("pi", {"uplink_bps": 2_000_000}, now_s=0.0)
        told = parse(metrics_text(server, link_bps=control.link_rates()))
    assert told['multispin_link_bits_per_second{device="pi"}'] == pytest.approx(2e6)
    assert not any(name.startswith("multispin_server_") for name in told)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("9100", ("127.0.0.1", 9100)),
        (":9100", ("127.0.0.1", 9100)),
        ("0.0.0.0:1", ("0.0.0.0", 1)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", "x", "70000", "host:", "1:2:x", "-1"])
def test_no_address(text: str) -> None:
    with pytest.raises(ConfigError, match="--metrics"):
        parse_address(text)


def test_a_port_that_is_taken_is_the_users_to_change() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = taken.getsockname()
        with pytest.raises(ConfigError, match="cannot listen"), serve_metrics(address, str):
            pass
