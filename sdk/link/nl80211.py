"""A Wi-Fi station's state from the kernel through nl80211, by way of pyroute2 (optional).

The attributes' decoding is pure and takes any nesting of names and values; reading needs no root.
"""

from __future__ import annotations

import logging
import socket
from pathlib import Path
from typing import Any, Final

from sdk.link.wifi_station import WifiStation

__all__ = ["read_station", "station_of"]

_LOG = logging.getLogger(__name__)

_SYSFS: Final = Path("/sys/class/net")
_WIDTHS_HZ: Final = {
    "NL80211_RATE_INFO_320_MHZ_WIDTH": 320e6,
    "NL80211_RATE_INFO_160_MHZ_WIDTH": 160e6,
    "NL80211_RATE_INFO_80P80_MHZ_WIDTH": 160e6,
    "NL80211_RATE_INFO_80_MHZ_WIDTH": 80e6,
    "NL80211_RATE_INFO_40_MHZ_WIDTH": 40e6,
}
_MCS: Final = ("NL80211_RATE_INFO_HE_MCS", "NL80211_RATE_INFO_VHT_MCS")
_NSS: Final = ("NL80211_RATE_INFO_HE_NSS", "NL80211_RATE_INFO_VHT_NSS")


def read_station(iface: str) -> WifiStation | None:
    """Return the state of our station on an interface, or None where that cannot be had."""
    if not (_SYSFS / iface / "phy80211").exists():
        return None  # pyroute2 leaves sockets behind where the kernel has no nl80211
    try:
        from pyroute2 import IW
    except ImportError:
        return None
    try:
        with IW() as netlink:
            messages = netlink.get_stations(socket.if_nametoindex(iface))
            return station_of(dict(messages[0]["attrs"])) if messages else None
    except Exception as error:  # pyroute2 calls its Wi-Fi part experimental, and so it is
        _LOG.debug("link: nl80211 on %s: %s", iface, error)
        return None


def station_of(attributes: dict[str, Any]) -> WifiStation | None:
    """Return the state in a station message's attributes; figures of a wrong type are left out."""
    station = _nested(attributes, "NL80211_ATTR_STA_INFO")
    rate = _nested(station, "NL80211_STA_INFO_TX_BITRATE")
    hundred_kbps = _whole(rate, "NL80211_RATE_INFO_BITRATE32", "NL80211_RATE_INFO_BITRATE")
    ht_mcs = _whole(rate, "NL80211_RATE_INFO_MCS")
    nss = _whole(rate, *_NSS)
    mcs = _whole(rate, *_MCS)
    expected_kbps = _whole(station, "NL80211_STA_INFO_EXPECTED_THROUGHPUT")
    bssid = attributes.get("NL80211_ATTR_MAC")
    found = WifiStation(
        signal_dbm=_signed(_whole(station, "NL80211_STA_INFO_SIGNAL")),
        bitrate_bps=hundred_kbps * 1e5 if hundred_kbps else None,
        mcs=ht_mcs if mcs is None else mcs,
        nss=ht_mcs // 8 + 1 if nss is None and ht_mcs is not None else nss,
        width_hz=_width_hz(rate)
        if hundred_kbps and (mcs is not None or ht_mcs is not None)
        else None,
        expected_bps=expected_kbps * 1e3 if expected_kbps else None,
        tx_packets=_whole(station, "NL80211_STA_INFO_TX_PACKETS"),
        tx_retries=_whole(station, "NL80211_STA_INFO_TX_RETRIES"),
        bssid=bssid if isinstance(bssid, str) else None,
    )
    return None if found.empty else found


def _nested(attributes: dict[str, Any], name: str) -> dict[str, Any]:
    """Return an attribute's own attributes; pyroute2 keeps them as pairs under "attrs"."""
    value = attributes.get(name)
    try:
        return dict(value["attrs"]) if value is not None else {}
    except (KeyError, TypeError, ValueError):
        return {}


def _whole(attributes: dict[str, Any], *names: str) -> int | None:
    for name in names:
        value = attributes.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None


def _signed(value: int | None) -> float | None:
    """Return a signal in dBm; it is an int8, which some versions hand out unsigned."""
    if value is None:
        return None
    signed = value - 256 if value > 127 else value
    return float(signed) if -120 <= signed < 0 else None


def _width_hz(rate: dict[str, Any]) -> float:
    return next((width for name, width in _WIDTHS_HZ.items() if name in rate), 20e6)
