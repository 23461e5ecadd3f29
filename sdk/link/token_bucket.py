"""A rate, kept on average and within a bounded burst. Pure: time is an argument."""

from __future__ import annotations

import math
from typing import Final

__all__ = ["LEAST_DEPTH_S", "TokenBucket", "checked_rate"]

LEAST_DEPTH_S: Final = 0.05
"""Least depth of a bucket: a thread's sleep is too coarse for less."""

_ROUNDING_BYTES: Final = 1e-3  # else a wait of 1e-18 s, which no clock can show, never ends


class TokenBucket:
    """Lets a message pass while the balance is not negative, and then charges it in full.

    So a message larger than the bucket passes too, and is paid for afterwards: in any time T no
    more than rate·T + depth + one message go out, and a late caller loses nothing as long as it is
    late by less than the depth.
    """

    def __init__(self, *, rate_bps: float, depth_s: float = LEAST_DEPTH_S, now_s: float) -> None:
        """Start full.

        Raises:
            ValueError: unless the rate is finite and above 0 and the depth at least 50 ms.
        """
        if not (math.isfinite(depth_s) and depth_s >= LEAST_DEPTH_S):
            raise ValueError(f"depth_s must be at least {LEAST_DEPTH_S}, got {depth_s}")
        self._depth_s = depth_s
        self._rate_bytes_s = checked_rate(rate_bps) / 8.0
        self._balance_bytes = self._rate_bytes_s * depth_s
        self._at_s = now_s

    def set_rate(self, rate_bps: float, *, now_s: float) -> None:
        """Change the rate from now on; debts stay."""
        self._refill(now_s)
        self._rate_bytes_s = checked_rate(rate_bps) / 8.0
        self._balance_bytes = min(self._balance_bytes, self._rate_bytes_s * self._depth_s)

    def wait_s(self, *, now_s: float) -> float:
        """Return how long until a message may pass; 0 when one may now."""
        self._refill(now_s)
        if self._balance_bytes > -_ROUNDING_BYTES:
            return 0.0
        return -self._balance_bytes / self._rate_bytes_s

    def charge(self, cost_bytes: int, *, now_s: float) -> None:
        """Take the cost of a message that passed."""
        self._refill(now_s)
        self._balance_bytes -= cost_bytes

    def _refill(self, now_s: float) -> None:
        elapsed_s = max(0.0, now_s - self._at_s)
        self._at_s = max(now_s, self._at_s)
        full = self._rate_bytes_s * self._depth_s
        self._balance_bytes = min(full, self._balance_bytes + self._rate_bytes_s * elapsed_s)


def checked_rate(rate_bps: float) -> float:
    """Return a rate, if it is finite and above 0.

    Raises:
        ValueError: if it is not.
    """
    if not (math.isfinite(rate_bps) and rate_bps > 0.0):
        raise ValueError(f"rate_bps must be finite and above 0, got {rate_bps}")
    return rate_bps
