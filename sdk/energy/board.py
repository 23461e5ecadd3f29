"""The state of the board that makes two energy figures comparable or not.

Model, clock policy, temperature and, on a Raspberry Pi, the throttle flags, read from files and
from the firmware's mailbox. What a board does not tell is None. Knows nothing of meters.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from sdk.energy.meters.mailbox import read_throttled
from sdk.errors import EnergyError

__all__ = ["BoardState", "parse_throttled", "read_board"]

_THROTTLED_NOW = 0b1110  # frequency capped, throttled, soft temperature limit
_UNDERVOLTED_NOW = 0b1


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardState:
    """What a board says about itself at one time.

    Attributes:
        model: the device tree's words, or None.
        serial: the device tree's serial number, or None.
        governor: the clock policy of the first core, or None.
        temperature_c: of the first thermal zone, or None.
        throttled: the Raspberry Pi's flags, bits 0–3 now and 16–19 since boot, or None.
    """

    model: str | None = None
    serial: str | None = None
    governor: str | None = None
    temperature_c: float | None = None
    throttled: int | None = None

    @property
    def slowed(self) -> bool:
        """Return whether the firmware holds the clocks down, or would because of low voltage."""
        return bool((self.throttled or 0) & (_THROTTLED_NOW | _UNDERVOLTED_NOW))


def read_board(root: Path = Path("/")) -> BoardState:
    """Read the state of this board; never raises.

    Args:
        root: where /sys and /proc are looked for.
    """
    model = _text(root / "proc/device-tree/model")
    millidegrees = _text(root / "sys/class/thermal/thermal_zone0/temp")
    raspberry = model is not None and model.startswith("Raspberry Pi")
    return BoardState(
        model=model,
        serial=_text(root / "proc/device-tree/serial-number"),
        governor=_text(root / "sys/devices/system/cpu/cpufreq/policy0/scaling_governor"),
        temperature_c=_celsius(millidegrees),
        throttled=_throttled(root) if raspberry else None,
    )


def parse_throttled(text: str) -> int | None:
    """Return the flags in the answer of `vcgencmd get_throttled`, or None."""
    name, _, value = text.strip().partition("=")
    try:
        return int(value, 16) if name == "throttled" else None
    except ValueError:
        return None


def _throttled(root: Path) -> int | None:
    try:
        return read_throttled(root / "dev/vcio")
    except EnergyError:
        pass
    try:
        answer = subprocess.run(
            ["vcgencmd", "get_throttled"], capture_output=True, text=True, timeout=2, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return parse_throttled(answer.stdout)


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip("\0\n ") or None
    except OSError:
        return None


def _celsius(millidegrees: str | None) -> float | None:
    try:
        return int(millidegrees) / 1000 if millidegrees is not None else None
    except ValueError:
        return None
