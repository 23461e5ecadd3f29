"""A cellular modem's signal through ModemManager's `mmcli`, which owns the modem's port.

The parser is pure and takes any text; the probe runs one command a reading, with a time limit.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any, Final

from sdk.link.interface import LinkKind, LinkReading
from sdk.link.signal_figures import CellSignal, plausible

__all__ = ["ModemManagerProbe", "parse_signal_json"]

_TIMEOUT_S: Final = 3.0
_KEYS: Final = {"rsrp_dbm": "rsrp", "rsrq_db": "rsrq", "sinr_db": "snr", "rssi_dbm": "rssi"}


class ModemManagerProbe:
    """Asks ModemManager every few seconds."""

    name = "modem-manager"
    period_s = 5.0

    def available(self) -> bool:
        """Return whether ModemManager has a modem, and make it refresh the signal."""
        return bool(shutil.which("mmcli")) and _mmcli("--signal-setup=5") is not None

    def read(self, now_s: float) -> LinkReading | None:
        """Return the serving cell's signal, or None without one."""
        text = _mmcli("--signal-get", "-J")
        signal = None if text is None else parse_signal_json(text)
        return None if signal is None else signal.reading(now_s)

    def close(self) -> None:
        """Do nothing: ModemManager goes on for others."""


def parse_signal_json(text: str) -> CellSignal | None:
    """Return the signal in the output of `mmcli --signal-get -J`; 5G before LTE."""
    try:
        radios = json.loads(text)["modem"]["signal"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if not isinstance(radios, dict):
        return None
    for radio, kind in (("5g", LinkKind.NR), ("lte", LinkKind.LTE), ("umts", None), ("gsm", None)):
        figures = radios.get(radio)
        if not isinstance(figures, dict):
            continue
        found = {name: plausible(name, _number(figures.get(key))) for name, key in _KEYS.items()}
        signal = CellSignal(kind=kind, **found)
        if not signal.empty:
            return signal
    return None


def _number(text: Any) -> float | None:
    """Return a figure given as a string; "--" is unknown."""
    try:
        return float(text) if isinstance(text, str) else None
    except ValueError:
        return None


def _mmcli(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["mmcli", "-m", "any", *arguments],
            capture_output=True,
            timeout=_TIMEOUT_S,
            check=False,
            text=True,
            errors="replace",
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
