"""The most recent raw samples of one meter, and slices of them by time.

One writer, many readers. When full, the oldest samples are overwritten: a window that reaches
behind them says so instead of quietly shrinking. Knows nothing of what the values mean.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sdk.energy.interface import MeterInfo, Sample
from sdk.errors import EnergyError

__all__ = ["SampleRing", "Trace"]

DEFAULT_CAPACITY = 1 << 18  # 7 hours at 10 Hz, 4 minutes at 1 kHz, 6 MiB
_FIRST_ROWS = 1024


class Trace(NamedTuple):
    """Samples of one meter, oldest first: times_s, values and lost are all [n]."""

    info: MeterInfo
    times_s: NDArray[np.float64]
    values: NDArray[np.float64]
    lost: NDArray[np.float64]

    @classmethod
    def of(cls, info: MeterInfo, samples: Iterable[Sample]) -> Trace:
        """Return the samples as a trace, in the order of their times."""
        rows = np.array([tuple(sample) for sample in samples], dtype=np.float64).reshape(-1, 3)
        rows = rows[np.argsort(rows[:, 0], kind="stable")]
        return cls(info, rows[:, 0], rows[:, 1], rows[:, 2])

    def around(self, t0_s: float, t1_s: float) -> Trace:
        """Return the samples inside [t0_s, t1_s] and two on either side.

        Two, because the values of an averaging meter stand for a time before their own.
        """
        first = max(int(np.searchsorted(self.times_s, t0_s, side="right")) - 2, 0)
        last = int(np.searchsorted(self.times_s, t1_s, side="left")) + 2
        part = slice(first, last)
        return Trace(self.info, self.times_s[part], self.values[part], self.lost[part])


class SampleRing:
    """A bounded buffer of samples whose times never fall."""

    def __init__(self, *, capacity: int = DEFAULT_CAPACITY) -> None:
        """Make room for `capacity` samples at most; memory grows as it fills."""
        if capacity < 4:
            raise EnergyError(f"sample ring: {capacity} samples are too few, at least 4")
        self._rows: NDArray[np.float64] = np.empty((min(capacity, _FIRST_ROWS), 3))
        self._capacity = capacity
        self._count = 0  # ever appended
        self._newest_s = -math.inf
        self._changed = threading.Condition()

    def extend(self, samples: Iterable[Sample]) -> None:
        """Append samples; what is not finite is left out, times that fall are held level."""
        with self._changed:
            for sample in samples:
                self._append(sample)
            self._changed.notify_all()

    def _append(self, sample: Sample) -> None:
        if not (math.isfinite(sample.time_s) and math.isfinite(sample.value)):
            return
        if self._count == len(self._rows) < self._capacity:
            grown = np.empty((min(2 * len(self._rows), self._capacity), 3))
            grown[: self._count] = self._rows
            self._rows = grown
        self._rows[self._count % len(self._rows)] = sample
        self._newest_s = max(self._newest_s, sample.time_s)
        self._rows[self._count % len(self._rows), 0] = self._newest_s
        self._count += 1

    def trace(self, info: MeterInfo, t0_s: float, t1_s: float) -> Trace:
        """Return a copy of the samples around [t0_s, t1_s], with neighbours for the edges."""
        with self._changed:
            rows = self._ordered()
        return Trace(info, rows[:, 0], rows[:, 1], rows[:, 2]).around(t0_s, t1_s)

    def _ordered(self) -> NDArray[np.float64]:
        size = len(self._rows)
        if self._count <= size:
            return np.array(self._rows[: self._count])
        oldest = self._count % size
        return np.concatenate((self._rows[oldest:], self._rows[:oldest]))

    def oldest_s(self) -> float | None:
        """Return the time of the oldest sample that was overwritten or is kept; None if empty."""
        with self._changed:
            if self._count == 0:
                return None
            return float(self._rows[self._count % len(self._rows) if self.wrapped else 0, 0])

    @property
    def wrapped(self) -> bool:
        """Return whether samples have been overwritten."""
        return self._count > len(self._rows)

    def wait_after(self, time_s: float, timeout_s: float) -> bool:
        """Wait until a sample at or after `time_s` is there; return whether it came."""
        with self._changed:
            return self._changed.wait_for(lambda: self._newest_s >= time_s, timeout_s)

    def __len__(self) -> int:
        """Return how many samples are kept."""
        return min(self._count, len(self._rows))
