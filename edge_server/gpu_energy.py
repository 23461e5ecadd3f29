"""The edge server's own GPU: its energy counter, split among devices by verified rows.

Reads NVIDIA's library (NVML) directly; without a card, or on a Jetson, there is no reading and
nobody has a share. Knows nothing of the devices' own energy.
"""

from __future__ import annotations

import ctypes
import math
from collections import Counter

__all__ = ["GpuCounter", "GpuShare"]

_LIBRARY = "libnvidia-ml.so.1"


class GpuCounter:
    """The joules that one card has taken since its driver was loaded."""

    def __init__(self, *, index: int = 0, library: str = _LIBRARY) -> None:
        """Look for the card; without it every reading is None."""
        self._device = ctypes.c_void_p()
        self._library: ctypes.CDLL | None = None
        try:
            found = ctypes.CDLL(library)
            find = found.nvmlDeviceGetHandleByIndex_v2
            if found.nvmlInit_v2() == 0 and find(index, ctypes.byref(self._device)) == 0:
                self._library = found
        except (OSError, AttributeError):  # no driver, or one from before Volta
            return

    def read_j(self) -> float | None:
        """Return the counter in joules, or None where the card does not tell."""
        if self._library is None:
            return None
        millijoules = ctypes.c_ulonglong()
        read = self._library.nvmlDeviceGetTotalEnergyConsumption
        if read(self._device, ctypes.byref(millijoules)) != 0:
            return None
        return millijoules.value * 1e-3


class GpuShare:
    """Splits the counter's advance by the rows verified meanwhile.

    The counter moves every 20 to 100 ms and a pass takes less, so rows are collected and settled
    once a second or so. What the card takes while no row is verified belongs to nobody.
    """

    def __init__(self) -> None:
        """Start before the first reading."""
        self._rows: Counter[str] = Counter()
        self._last_j: float | None = None
        self.idle_j = 0.0

    def verified(self, device: str, rows: int) -> None:
        """Note that rows were verified for a device."""
        self._rows[device] += rows

    def settle(self, total_j: float | None) -> dict[str, float]:
        """Return each device's joules since the last reading.

        Nothing is split at the first reading, after a reset of the counter, or without a reading.

        Args:
            total_j: the counter now (`GpuCounter.read_j`).
        """
        rows, self._rows = self._rows, Counter()
        last_j, self._last_j = self._last_j, total_j
        if total_j is None or last_j is None or not math.isfinite(total_j) or total_j < last_j:
            return {}
        count = sum(rows.values())
        if not count:
            self.idle_j += total_j - last_j
            return {}
        return {device: (total_j - last_j) * own / count for device, own in rows.items()}
