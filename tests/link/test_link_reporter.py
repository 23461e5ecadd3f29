"""Reports: their schema, their timing, and what becomes of probes that misbehave."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence

import jsonschema
import pytest

from sdk.errors import ConfigError
from sdk.link.interface import LinkKind, LinkProbe, LinkReading, Method, NullProbe, ReplayProbe
from sdk.link.probes import available_probes
from sdk.link.report import REPORT_SCHEMA, REPORT_VERSION, LinkReport
from sdk.link.reporter import LinkReporter
from sdk.link.state import LinkState
from sdk.transport.interface import Message, Traffic


class Sink:
    """A transport that keeps what is published."""

    def __init__(self) -> None:
        self.traffic = Traffic()
        self.connected = True
        self.connection_count = 1
        self.published: list[tuple[str, bytes, int, bool]] = []
        self.changed = threading.Condition()

    def publish(self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False) -> bool:
        with self.changed:
            self.published.append((topic, payload, qos, retain))
            self.changed.notify_all()
        return True

    def wait(self, count: int) -> list[dict[str, object]]:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.published) >= count, 20)
            return [json.loads(payload) for _, payload, _, _ in self.published]

    def receive(self, timeout_s: float | None) -> Message | None:
        return None

    def wait_connected(self, timeout_s: float) -> bool:
        return True

    def close(self) -> None:
        pass

    def __enter__(self) -> Sink:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def reading(at_s: float, rate_bps: float, **more: object) -> LinkReading:
    return LinkReading(at_s=at_s, rate_bps=rate_bps, method=Method.PUBACK, **more)  # type: ignore[arg-type]


def test_an_empty_report_fits_the_schema() -> None:
    report = LinkReport(device="pi-1", t_ms=5, seq=0)
    jsonschema.validate(json.loads(report.to_json()), REPORT_SCHEMA)
    assert report.to_dict()["v"] == REPORT_VERSION
    jsonschema.Draft202012Validator.check_schema(REPORT_SCHEMA)


def test_a_full_report_fits_the_schema_and_is_small() -> None:
    state = LinkState(device_id="pi-1", sources=("tcp", "wifi"))
    radio = {"kind": LinkKind.WIFI, "bw_hz": 20e6, "rssi_dbm": -54, "mcs": 7, "nss": 1}
    air = {"retry_ratio": 0.1234567, "airtime_busy": 0.5, "iface": "wlan0"}
    state.add("wifi", reading(1.0, 8e6, **radio, **air))
    times = {"rtt_s": 0.0418, "rtt_min_s": 0.0401, "rtt_var_s": 0.0009}
    queue = {"loss": 0.01, "queue_bytes": 7, "cap_bps": 2.5e6, "saturated": False}
    state.add("tcp", LinkReading(at_s=1.0, **times, **queue))  # type: ignore[arg-type]
    report = state.report(1.5)
    found = json.loads(report.to_json())
    jsonschema.validate(found, REPORT_SCHEMA)
    assert len(report.to_json()) < 1024  # so that it counts as urgent, and costs one segment
    assert found["uplink_bps"] == 8_000_000
    assert 0 < found["uplink_sd_bps"] < 1_000_000
    assert found["uplink_bps_lo"] < found["uplink_bps"]
    assert (found["method"], found["age_ms"], found["n"]) == ("puback", 500, 1)
    assert found["se_bps_hz"] == pytest.approx(0.4)
    assert found["rtt_ms"] == {"srtt": 41.8, "min": 40.1, "var": 0.9}
    assert (found["iface"], found["kind"], found["mcs"]) == ("wlan0", "wifi", 7)
    assert 0.0 < found["confidence"] <= 1.0
    assert found["t_ms"] == 1500


@pytest.mark.parametrize("change", [{"v": 2}, {"device": ""}, {"extra": 1}, {"uplink_bps": -1}])
def test_the_schema_refuses(change: dict[str, object]) -> None:
    found = LinkReport(device="pi-1", t_ms=5, seq=0).to_dict() | change
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(found, REPORT_SCHEMA)


def test_earlier_sources_win_and_silent_ones_are_not_quoted() -> None:
    state = LinkState(device_id="pi-1", sources=("tcp", "puback"))
    state.add("puback", LinkReading(at_s=10.0, rtt_s=0.2, rssi_dbm=-50))
    state.add("tcp", LinkReading(at_s=1.0, rtt_s=0.1))
    assert state.report(11.0).rtt_s == 0.1
    assert state.report(11.0).rssi_dbm == -50
    assert state.report(17.0).rtt_s == 0.2
    assert state.report(60.0).rtt_s is None


def test_reports_are_published_and_numbered() -> None:
    sink = Sink()
    with LinkReporter(sink, "pi-1", probes=[NullProbe()], interval_s=0.02) as reporter:
        reports = sink.wait(3)
        assert reporter.latest is not None
    assert [report["seq"] for report in reports[:3]] == [0, 1, 2]
    assert {(topic, qos, retain) for topic, _, qos, retain in sink.published} == {
        ("sd/1/pi-1/up/report", 0, False)
    }
    for report in reports:
        jsonschema.validate(report, REPORT_SCHEMA)


def test_a_change_is_reported_at_once() -> None:
    """With an hour between reports, only the changes come through: none, 8, then 2 Mbit/s."""
    sink = Sink()
    seen: list[LinkReport] = []
    readings = [reading(1.0, 8e6), reading(2.0, 2e6), reading(2.1, 2e6), reading(2.2, 2e6)]
    probe = ReplayProbe(readings=readings, period_s=0.15)
    with LinkReporter(
        sink, "pi-1", probes=[probe], interval_s=3600.0, on_report=seen.append
    ) as reporter:
        reports = sink.wait(3)
    assert [report["uplink_bps"] for report in reports[:2]] == [None, 8_000_000]
    assert reports[2]["uplink_bps"] == pytest.approx(2e6, rel=0.02)
    assert len(seen) == len(reports) == 3
    assert reporter.latest is seen[-1]


class Broken(NullProbe):
    """A probe with a bug."""

    name = "broken"
    period_s = 0.01

    def __init__(self) -> None:
        self.reads = 0
        self.closed = False

    def read(self, now_s: float) -> LinkReading | None:
        self.reads += 1
        raise RuntimeError("a bug")

    def close(self) -> None:
        self.closed = True


def test_a_broken_probe_costs_its_own_readings_only() -> None:
    sink, broken = Sink(), Broken()
    healthy = ReplayProbe(readings=[reading(1.0, 8e6)] * 100, period_s=0.01)
    probes: Sequence[LinkProbe] = [broken, healthy]
    with LinkReporter(sink, "pi-1", probes=probes, interval_s=0.02):
        reports = sink.wait(6)
    assert reports[-1]["uplink_bps"] == 8_000_000
    assert broken.reads > 1
    assert broken.closed


def test_a_broken_listener_does_not_end_the_reports() -> None:
    def listen(_: LinkReport) -> None:
        raise RuntimeError("a bug")

    sink = Sink()
    with LinkReporter(sink, "pi-1", probes=[], interval_s=0.02, on_report=listen):
        sink.wait(3)


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError):
        LinkReporter(Sink(), "a/b", probes=[])
    with pytest.raises(ValueError, match="above 0"):
        LinkReporter(Sink(), "a", probes=[], interval_s=0.0)


def test_a_board_without_any_source_has_no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr("sdk.link.probes.wireless_interfaces", list)
    assert available_probes(Sink()) == []
    assert available_probes(Sink(), modem_port="/nonexistent/ttyUSB2") == []
