"""How often and how large a measurement may be: a budget of airtime. Pure, time passed in."""

from __future__ import annotations

import math
from typing import Final

__all__ = ["AirtimeBudget"]

_CREDIT_S: Final = 0.015  # airtime saved up while idle
_DEBT_S: Final = 0.06  # airtime a confirmation may overdraw


class AirtimeBudget:
    """Lets a measurement start while the balance is not negative, and then charges its airtime.

    What a measurement costs is known afterwards only, so a link that has become slow is paid for
    by a longer pause. A surprising result may be confirmed at once, on credit.
    """

    def __init__(self, *, share: float = 0.0075, least_gap_s: float = 0.5, now_s: float) -> None:
        """Start with a small credit.

        Args:
            share: of all airtime, in (0, 1).
            least_gap_s: between two measurements, however cheap; above 0.

        Raises:
            ValueError: if a number is out of its range.
        """
        if not 0.0 < share < 1.0 or not least_gap_s > 0.0:
            raise ValueError(f"share {share} or least_gap_s {least_gap_s} is out of its range")
        self._share = share
        self._least_gap_s = least_gap_s
        self._balance_s = _CREDIT_S
        self._at_s = now_s
        self._last_s = -math.inf
        self._urgent = False

    def is_due(self, now_s: float) -> bool:
        """Return whether to measure now."""
        self._refill(now_s)
        if self._urgent and self._balance_s > -_DEBT_S:
            return True
        return self._balance_s >= 0.0 and now_s - self._last_s >= self._least_gap_s

    def spend(self, airtime_s: float, *, now_s: float, confirm: bool = False) -> None:
        """Charge a measurement; `confirm` asks for another one at once."""
        self._refill(now_s)
        self._balance_s -= airtime_s
        self._last_s = now_s
        self._urgent = confirm

    def _refill(self, now_s: float) -> None:
        elapsed_s = max(0.0, now_s - self._at_s)
        self._at_s = max(now_s, self._at_s)
        self._balance_s = min(_CREDIT_S, self._balance_s + self._share * elapsed_s)
