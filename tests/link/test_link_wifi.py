"""Recorded output of `iw` and the kernel, station messages, and the figures made of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdk.link.interface import LinkKind, Method
from sdk.link.iw_text import parse_bitrate, parse_iw, parse_proc_wireless
from sdk.link.nl80211 import read_station, station_of
from sdk.link.wifi import WifiProbe
from sdk.link.wifi_station import WifiStation, station_reading

LINK = """Connected to 78:45:58:82:dd:8b (on wlan1)
\tSSID: 78
\tfreq: 5765.0
\tRX: 28961313 bytes (25546 packets)
\tTX: 1545931 bytes (9165 packets)
\tsignal: -45 dBm
\trx bitrate: 1200.9 MBit/s 80MHz HE-MCS 11 HE-NSS 2 HE-GI 0 HE-DCM 0
\ttx bitrate: 1200.9 MBit/s 80MHz HE-MCS 11 HE-NSS 2 HE-GI 0 HE-DCM 0
\tbss flags: short-slot-time
\tdtim period: 3
\tbeacon int: 100
"""
PI_LINK = """Connected to 78:45:58:82:dd:8b (on wlan0)
\tSSID: lab
\tfreq: 5765
\tsignal: -54 dBm
\trx bitrate: 97.5 MBit/s
\ttx bitrate: 24.0 MBit/s
"""
PI_INFO = (
    "Interface wlan0\n\tifindex 3\n\tchannel 153 (5765 MHz), width: 80 MHz, center1: 5775 MHz\n"
)
STATION = """Station 78:45:58:82:dd:8b (on wlan0)
\tinactive time:\t12 ms
\ttx packets:\t9165
\ttx retries:\t812
\ttx failed:\t3
\tsignal:  \t-33 [-35, -38] dBm
\texpected throughput:\t5.40Mbps
"""
SURVEY = """Survey data from wlan0
\tfrequency:\t\t\t5180 MHz
\tnoise:\t\t\t\t-80 dBm
\tchannel active time:\t\t1 ms
Survey data from wlan0
\tfrequency:\t\t\t5200 MHz [in use]
\tnoise:\t\t\t\t-91 dBm
\tchannel active time:\t\t811909 ms
\tchannel busy time:\t\t63395 ms
\tchannel receive time:\t\t1000 ms
\tchannel transmit time:\t\t59636 ms
"""
PROC = """Inter-| sta-|   Quality        |   Discarded packets               | Missed | WE
 face | tus | link level noise |  nwid  crypt   frag  retry   misc | beacon | 22
 wlan0: 0000   58.  -52.  -256        0      0      0      0     23        0
  old0: 0000   40   204   160         0      0      0      0     23        0
"""


def test_a_modern_driver() -> None:
    station = parse_iw(link=LINK)
    assert station == WifiStation(
        signal_dbm=-45,
        bitrate_bps=1200.9e6,
        mcs=11,
        nss=2,
        width_hz=80e6,
        bssid="78:45:58:82:dd:8b",
    )
    reading = station_reading(station, None, iface="wlan1", now_s=1.0)
    assert reading.se_bps_hz == pytest.approx(15.01, abs=0.01)
    assert reading.kind is LinkKind.WIFI
    assert reading.method is Method.PHY


def test_a_raspberry_pi() -> None:
    station = parse_iw(link=PI_LINK, info=PI_INFO)
    assert station.signal_dbm == -54
    assert station.bitrate_bps == 24.0e6
    assert station.width_hz == 80e6
    assert station.mcs is station.nss is station.noise_dbm is None


def test_station_and_survey() -> None:
    station = parse_iw(link=PI_LINK, station=STATION, survey=SURVEY)
    assert (station.tx_packets, station.tx_retries) == (9165, 812)
    assert (station.noise_dbm, station.active_ms) == (-91, 811909)
    assert (station.busy_ms, station.tx_ms) == (63395, 59636)
    assert parse_iw(station=STATION.replace("signal:  \t", "signal: ")).signal_dbm == -33


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("65.0 MBit/s MCS 7", (65.0e6, 7, 1, 20e6)),
        ("144.4 MBit/s MCS 15 short GI", (144.4e6, 15, 2, 20e6)),
        ("300.0 MBit/s MCS 15 40MHz short GI", (300.0e6, 15, 2, 40e6)),
        ("866.7 MBit/s VHT-MCS 9 80MHz short GI VHT-NSS 2", (866.7e6, 9, 2, 80e6)),
        ("1200.9 MBit/s 80MHz HE-MCS 11 HE-NSS 2 HE-GI 0 HE-DCM 0", (1200.9e6, 11, 2, 80e6)),
        ("2882.3 MBit/s 160MHz EHT-MCS 13 EHT-NSS 2 EHT-GI 0", (2882.3e6, 13, 2, 160e6)),
        ("24.0 MBit/s", (24.0e6, None, None, None)),
    ],
)
def test_bit_rates(text: str, expected: tuple[object, ...]) -> None:
    found = parse_bitrate(text)
    assert tuple(found.get(name) for name in ("bitrate_bps", "mcs", "nss", "width_hz")) == expected


@pytest.mark.parametrize("text", ["", "(unknown)", "24.0 MBit", "0.0 MBit/s", "24.0 MBit/s junk"])
def test_what_is_no_bit_rate(text: str) -> None:
    assert parse_bitrate(text) == {}


def test_proc_net_wireless() -> None:
    assert parse_proc_wireless(PROC, iface="wlan0") == WifiStation(signal_dbm=-52)
    assert parse_proc_wireless(PROC, iface="old0") == WifiStation(signal_dbm=-52, noise_dbm=-96)
    assert parse_proc_wireless(PROC, iface="wlan1") is None


TEXTS = {"link": LINK, "info": PI_INFO, "station": STATION, "survey": SURVEY}
WHOLE = {name: parse_iw(**{name: text}) for name, text in TEXTS.items()}


@given(st.sampled_from(sorted(TEXTS)), st.data())
def test_truncated_text_loses_figures_and_changes_none(name: str, data: st.DataObject) -> None:
    text = TEXTS[name]
    cut = parse_iw(**{name: text[: data.draw(st.integers(0, len(text)))]})
    for field in WifiStation.__dataclass_fields__:
        assert getattr(cut, field) in (None, getattr(WHOLE[name], field))


@given(st.data())
def test_truncated_proc_changes_no_figure(data: st.DataObject) -> None:
    cut = PROC[: data.draw(st.integers(0, len(PROC)))]
    assert parse_proc_wireless(cut, iface="wlan0") in (None, WifiStation(signal_dbm=-52))


@given(st.text(max_size=200), st.text(max_size=200), st.text(max_size=200), st.text(max_size=200))
def test_any_text_is_survived(link: str, info: str, station: str, survey: str) -> None:
    assert parse_iw(link=link, info=info, station=station, survey=survey).mcs is None
    parse_proc_wireless(link, iface="wlan0")


def test_retries_and_airtime_come_from_what_the_counters_gained() -> None:
    before = WifiStation(
        signal_dbm=-50, bitrate_bps=100e6, noise_dbm=-91, tx_packets=100, tx_retries=10,
        active_ms=1000, busy_ms=100, tx_ms=50, bssid="a",
    )  # fmt: skip
    after = WifiStation(
        signal_dbm=-50, bitrate_bps=100e6, noise_dbm=-91, tx_packets=200, tx_retries=30,
        active_ms=2000, busy_ms=600, tx_ms=150, bssid="a",
    )  # fmt: skip
    reading = station_reading(after, before, iface="wlan0", now_s=1.0)
    assert reading.retry_ratio == pytest.approx(0.2)
    assert reading.airtime_busy == pytest.approx(0.4)
    assert reading.sinr_db == 41
    assert reading.rate_bps == pytest.approx(100e6 * 0.6 * 0.6)


@pytest.mark.parametrize("bssid", ["b", "a"])
def test_counters_that_started_anew_say_nothing(bssid: str) -> None:
    before = WifiStation(signal_dbm=-50, tx_packets=100, tx_retries=10, bssid="a")
    grown = 200 if bssid == "b" else 50
    after = WifiStation(signal_dbm=-50, tx_packets=grown, tx_retries=60, bssid=bssid)
    assert station_reading(after, before, iface="w", now_s=1.0).retry_ratio is None


def message(info: dict[str, Any], rate: dict[str, Any]) -> dict[str, Any]:
    """Return a station message in the nesting that pyroute2 hands out."""
    inner = [*info.items(), ("NL80211_STA_INFO_TX_BITRATE", {"attrs": list(rate.items())})]
    return {"NL80211_ATTR_MAC": "aa", "NL80211_ATTR_STA_INFO": {"attrs": inner}}


def test_a_station_message() -> None:
    station = station_of(
        message(
            {
                "NL80211_STA_INFO_SIGNAL": 201,
                "NL80211_STA_INFO_TX_PACKETS": 7,
                "NL80211_STA_INFO_TX_RETRIES": 2,
                "NL80211_STA_INFO_EXPECTED_THROUGHPUT": 212_345,
            },
            {
                "NL80211_RATE_INFO_BITRATE32": 8667,
                "NL80211_RATE_INFO_VHT_MCS": 9,
                "NL80211_RATE_INFO_VHT_NSS": 2,
                "NL80211_RATE_INFO_80_MHZ_WIDTH": True,
            },
        )
    )
    assert station == WifiStation(
        signal_dbm=-55.0,
        bitrate_bps=8667 * 1e5,
        mcs=9,
        nss=2,
        width_hz=80e6,
        expected_bps=212_345e3,
        tx_packets=7,
        tx_retries=2,
        bssid="aa",
    )
    assert station is not None
    reading = station_reading(station, None, iface="w", now_s=0.0)
    assert (reading.rate_bps, reading.method) == (212_345e3, Method.EXPECTED_THROUGHPUT)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
NAMES = ("SIGNAL", "TX_PACKETS", "TX_RETRIES", "EXPECTED_THROUGHPUT", "TX_BITRATE")


@given(
    st.dictionaries(st.sampled_from([f"NL80211_STA_INFO_{name}" for name in NAMES]), scalars),
    st.dictionaries(
        st.sampled_from(["NL80211_RATE_INFO_BITRATE", "NL80211_RATE_INFO_MCS"]), scalars
    ),
)
def test_any_station_message_is_survived(info: dict[str, Any], rate: dict[str, Any]) -> None:
    station_of(message(info, rate))
    station_of({"NL80211_ATTR_STA_INFO": info})


def test_without_a_radio_there_is_no_reading() -> None:
    assert read_station("lo") is None
    assert WifiProbe(iface="lo").read(0.0) is None


def test_iw_is_read_where_nl80211_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "iw"
    (tmp_path / "link.txt").write_text(PI_LINK)
    (tmp_path / "info.txt").write_text(PI_INFO)
    program.write_text(f'#!/bin/sh\ncat "{tmp_path}/$3.txt" 2>/dev/null\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    probe = WifiProbe(iface="lo")
    reading = probe.read(1.0)
    assert reading is not None
    assert (reading.rssi_dbm, reading.bw_hz) == (-54, 80e6)
    (tmp_path / "link.txt").write_text("Not connected.\n")
    assert probe.read(2.0) is None
    probe.close()
