"""What `iw` and /proc/net/wireless print, made into station states. Pure.

Every figure is taken only with its unit, or its line's end, behind it: a truncated text loses
figures, and never changes one. Forms from iw's station.c and the kernel's net/wireless/wext-proc.c.
"""

from __future__ import annotations

import re
from typing import Any, Final

from sdk.link.wifi_station import WifiStation

__all__ = ["parse_bitrate", "parse_iw", "parse_proc_wireless"]

_BITRATE: Final = re.compile(
    r"^(?P<mbit>\d{1,6}\.\d) MBit/s"
    r"(?: (?P<ht_mcs>MCS \d{1,2}))?"
    r"(?: (?P<width>\d{2,3})MHz)?"
    r"(?: short GI)?"
    r"(?: (?:VHT|HE|EHT)-MCS (?P<mcs>\d{1,2}))?"
    r"(?: (?P<late_width>\d{2,3})MHz)?"
    r"(?: short GI)?"
    r"(?: (?:VHT|HE|EHT)-NSS (?P<nss>\d))?"
    r"(?: (?:HE|EHT)-GI \d)?(?: HE-DCM \d)?(?: RU-ALLOC \d{1,3})?$"
)
_LINE_FIGURES: Final = {
    "signal_dbm": re.compile(r"^\tsignal: +(-\d{1,3})(?: \[[-\d, ]+\])? dBm$", re.M),
    "tx_packets": re.compile(r"^\ttx packets:\s+(\d{1,20})\n", re.M),
    "tx_retries": re.compile(r"^\ttx retries:\s+(\d{1,20})\n", re.M),
    "noise_dbm": re.compile(r"^\tnoise:\s+(-\d{1,3}) dBm$", re.M),
    "active_ms": re.compile(r"^\tchannel active time:\s+(\d{1,20}) ms$", re.M),
    "busy_ms": re.compile(r"^\tchannel busy time:\s+(\d{1,20}) ms$", re.M),
    "tx_ms": re.compile(r"^\tchannel transmit time:\s+(\d{1,20}) ms$", re.M),
}
_TX_BITRATE: Final = re.compile(r"^\ttx bitrate:\s+(.*)\n", re.M)
_BSSID: Final = re.compile(r"^(?:Connected to|Station) ([0-9a-f]{2}(?::[0-9a-f]{2}){5}) \(on", re.M)
_WIDTH: Final = re.compile(r"^\tchannel \d+ \([\d.]+ MHz\), width: (\d{1,3}) MHz", re.M)
_SURVEY: Final = re.compile(r"^Survey data from", re.M)
_PROC: Final = re.compile(
    r"^ *([^\s:]{1,15}): [0-9a-f]{4} +(\d{1,3})\.? +(-?\d{1,3})\.? +(-?\d{1,3})\.?"
    r"(?: +\d+){5} +\d+$"
)
_UNKNOWN_NOISE_DBM: Final = -256


def parse_iw(*, link: str = "", info: str = "", station: str = "", survey: str = "") -> WifiStation:
    """Return what the four texts say together.

    Args:
        link: output of `iw dev IFACE link`.
        info: of `iw dev IFACE info`, for the width where the bit rate does not tell it.
        station: of `iw dev IFACE station dump`, for the retries.
        survey: of `iw dev IFACE survey dump`, for the channel in use.
    """
    # A last line without its end may be cut in the middle of a figure.
    own = "\n".join(text[: text.rfind("\n") + 1] for text in (link, station))
    found: dict[str, Any] = {}
    texts = {"noise_dbm": _in_use(survey), "active_ms": _in_use(survey)}
    texts |= {"busy_ms": _in_use(survey), "tx_ms": _in_use(survey)}
    for name, pattern in _LINE_FIGURES.items():
        match = pattern.search(texts.get(name, own))
        if match:
            found[name] = int(match[1])
    bitrate = _TX_BITRATE.search(own)
    found |= parse_bitrate(bitrate[1]) if bitrate else {}
    width = _WIDTH.search(info)
    if width and "width_hz" not in found:
        found["width_hz"] = int(width[1]) * 1e6
    bssid = _BSSID.search(own)
    return WifiStation(bssid=bssid[1] if bssid else None, **found)


def parse_bitrate(text: str) -> dict[str, Any]:
    """Return `bitrate_bps` and what else a bit rate's line tells of `mcs`, `nss`, `width_hz`.

    An HT rate's MCS counts through the streams: eight to each. Without a width it is 20 MHz there.
    """
    match = _BITRATE.fullmatch(text.strip())
    if match is None or float(match["mbit"]) <= 0.0:
        return {}
    found: dict[str, Any] = {"bitrate_bps": float(match["mbit"]) * 1e6}
    width = match["width"] or match["late_width"]
    if match["ht_mcs"]:
        mcs = int(match["ht_mcs"].split()[1])
        found |= {"mcs": mcs, "nss": mcs // 8 + 1, "width_hz": 20e6}
    elif match["mcs"]:
        found["mcs"] = int(match["mcs"])
        found["width_hz"] = 20e6
    if match["nss"]:
        found["nss"] = int(match["nss"])
    if width:
        found["width_hz"] = int(width) * 1e6
    return found


def parse_proc_wireless(text: str, *, iface: str) -> WifiStation | None:
    """Return signal and noise of one interface in /proc/net/wireless, or None if it is not there.

    Old drivers print the level unsigned; noise -256 is unknown.
    """
    for line in text.splitlines(keepends=True):
        match = _PROC.fullmatch(line.removesuffix("\n")) if line.endswith("\n") else None
        if match is None or match[1] != iface:
            continue
        level, noise = (
            value - 256 if value > 0 else value for value in map(int, match.group(3, 4))
        )
        if not -120 <= level < 0:
            return None
        return WifiStation(
            signal_dbm=level, noise_dbm=noise if noise > _UNKNOWN_NOISE_DBM else None
        )
    return None


def _in_use(survey: str) -> str:
    """Return the part of a survey about the channel in use, or nothing."""
    for part in _SURVEY.split(survey):
        if "[in use]\n" in part:
            return part
    return ""
