"""Turn a counter that wraps, is reset or jumps into one that only rises.

Nothing is added that was not counted: where it cannot be told what happened between two readings,
the interval is marked lost instead. Knows nothing of where the counter comes from.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["RisingCounter", "Step"]

_SLACK_S = 0.2  # counters move in steps: one may hold more time than passed between readings


class Step(NamedTuple):
    """The total after a reading, and whether the energy since the one before is unknown."""

    total_j: float
    lost: bool


class RisingCounter:
    """One counter, read again and again by one thread."""

    def __init__(self, *, range_j: float | None, max_power_w: float) -> None:
        """Begin before the first reading.

        Args:
            range_j: what the counter wraps at, or None if that is not known.
            max_power_w: more than can flow here; a step above it is a reset, not a wrap.
        """
        self._range_j = range_j
        self._max_power_w = max_power_w
        self._last: tuple[float, float] | None = None
        self._total_j = 0.0

    def add(self, raw_j: float, time_s: float) -> Step:
        """Take a reading at a time in seconds and return the total so far.

        The total starts at the first reading's own value.
        """
        if self._last is None:
            self._last, self._total_j = (raw_j, time_s), raw_j
            return Step(raw_j, lost=False)
        last_j, last_s = self._last
        self._last = raw_j, time_s
        step_j = self._step_j(raw_j - last_j, time_s - last_s)
        self._total_j += step_j or 0.0
        return Step(self._total_j, lost=step_j is None)

    def _step_j(self, difference_j: float, elapsed_s: float) -> float | None:
        """Return the energy of a step, or None where it cannot be known."""
        possible_j = self._max_power_w * (max(elapsed_s, 0.0) + _SLACK_S)
        if self._range_j is not None and possible_j >= self._range_j:
            return None  # it may have wrapped unseen, any number of times
        if difference_j < 0 and self._range_j is not None:
            difference_j += self._range_j
        return difference_j if 0 <= difference_j <= possible_j else None
