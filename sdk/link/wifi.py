"""The Wi-Fi station's signal and rate: through nl80211, else from `iw`, else /proc/net/wireless."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

from sdk.link.interface import LinkReading
from sdk.link.iw_text import parse_iw, parse_proc_wireless
from sdk.link.nl80211 import read_station
from sdk.link.wifi_station import WifiStation, station_reading

__all__ = ["WifiProbe"]

_PROC_WIRELESS: Final = Path("/proc/net/wireless")
_IW_TIMEOUT_S: Final = 2.0


class WifiProbe:
    """Reads one interface by the best way that works there; looks again when it stops working."""

    name = "wifi"
    period_s = 2.0

    def __init__(self, *, iface: str) -> None:
        self._iface = iface
        self._way: Callable[[str], WifiStation | None] | None = None
        self._before: WifiStation | None = None

    def read(self, now_s: float) -> LinkReading | None:
        """Return the station's state, or None while it is not associated."""
        station = self._station()
        before, self._before = self._before, station
        if station is None:
            return None
        return station_reading(station, before, iface=self._iface, now_s=now_s)

    def close(self) -> None:
        """Forget the counters."""
        self._before = None

    def _station(self) -> WifiStation | None:
        for way in [self._way] if self._way else (read_station, read_iw, read_proc_wireless):
            station = way(self._iface)
            if station is not None:
                self._way = way
                return station
        self._way = None
        return None


def read_iw(iface: str) -> WifiStation | None:
    """Return what `iw` prints of an interface, or None without it or unassociated."""
    if not shutil.which("iw"):
        return None
    link = _iw(iface, "link")
    if not link.startswith("Connected to"):
        return None
    station = parse_iw(
        link=link,
        info=_iw(iface, "info"),
        station=_iw(iface, "station", "dump"),
        survey=_iw(iface, "survey", "dump"),
    )
    return None if station.empty else station


def read_proc_wireless(iface: str) -> WifiStation | None:
    """Return what /proc/net/wireless says of an interface; it has no rates."""
    try:
        return parse_proc_wireless(_PROC_WIRELESS.read_text(encoding="ascii"), iface=iface)
    except (OSError, ValueError):
        return None


def _iw(iface: str, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["iw", "dev", iface, *arguments],
            capture_output=True,
            timeout=_IW_TIMEOUT_S,
            check=False,
            text=True,
            errors="replace",
            env={**os.environ, "LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
