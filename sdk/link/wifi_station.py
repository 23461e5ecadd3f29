"""What a Wi-Fi driver says of its station, and what rate that suggests. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sdk.link.interface import LinkKind, LinkReading, Method

__all__ = ["WifiStation", "station_reading"]

# What TCP gets of the bit rate with frame aggregation: 0.55 to 0.70, the rest is air between.
_GOODPUT_SHARE: Final = 0.6


@dataclass(frozen=True, slots=True, kw_only=True)
class WifiStation:
    """A station's state; None is "the driver does not say". Counters only ever grow.

    Attributes:
        signal_dbm, noise_dbm: received from the access point.
        bitrate_bps, mcs, nss, width_hz: of what was sent last.
        expected_bps: the rate control's own expectation of throughput.
        tx_packets, tx_retries: counters since association.
        active_ms, busy_ms, tx_ms: the channel's time, counters.
        bssid: of the access point; a new one starts the counters anew.
    """

    signal_dbm: float | None = None
    noise_dbm: float | None = None
    bitrate_bps: float | None = None
    mcs: int | None = None
    nss: int | None = None
    width_hz: float | None = None
    expected_bps: float | None = None
    tx_packets: int | None = None
    tx_retries: int | None = None
    active_ms: int | None = None
    busy_ms: int | None = None
    tx_ms: int | None = None
    bssid: str | None = None

    @property
    def empty(self) -> bool:
        """Whether it holds neither signal nor rate."""
        return self.signal_dbm is None and self.bitrate_bps is None and self.expected_bps is None


def station_reading(
    station: WifiStation, before: WifiStation | None, *, iface: str, now_s: float
) -> LinkReading:
    """Return a reading; shares come from what the counters gained since `before`."""
    if before is not None and before.bssid != station.bssid:
        before = None
    busy = _busy_share(station, before)
    rate_bps, method, deviation = None, None, 0.0
    if station.expected_bps:
        rate_bps, method, deviation = station.expected_bps, Method.EXPECTED_THROUGHPUT, 0.3
    elif station.bitrate_bps:
        rate_bps = station.bitrate_bps * _GOODPUT_SHARE * (1.0 - min(busy or 0.0, 0.95))
        method, deviation = Method.PHY, 0.4
    signal, noise = station.signal_dbm, station.noise_dbm
    width_hz, bitrate_bps = station.width_hz, station.bitrate_bps
    return LinkReading(
        at_s=now_s,
        iface=iface,
        kind=LinkKind.WIFI,
        rate_bps=rate_bps,
        method=method,
        deviation=deviation,
        se_bps_hz=bitrate_bps / width_hz if bitrate_bps and width_hz else None,
        bw_hz=width_hz,
        rssi_dbm=signal,
        sinr_db=signal - noise if signal is not None and noise is not None else None,
        mcs=station.mcs,
        nss=station.nss,
        retry_ratio=_ratio(station, before, "tx_retries", "tx_packets"),
        airtime_busy=busy,
    )


def _busy_share(station: WifiStation, before: WifiStation | None) -> float | None:
    """Return the share of time in which others had the channel, in [0, 1]."""
    busy = _ratio(station, before, "busy_ms", "active_ms")
    if busy is None:
        return None
    ours = _ratio(station, before, "tx_ms", "active_ms") or 0.0
    return min(max(busy - ours, 0.0), 1.0)


def _ratio(station: WifiStation, before: WifiStation | None, part: str, whole: str) -> float | None:
    """Return one counter's gain over another's, or None if either did not grow as counters do."""
    if before is None:
        return None
    values = [getattr(each, name) for name in (part, whole) for each in (before, station)]
    if any(value is None for value in values):
        return None
    part_before, part_now, whole_before, whole_now = values
    if part_now < part_before or whole_now <= whole_before:
        return None
    return float(part_now - part_before) / float(whole_now - whole_before)
