"""How long to wait for an answer: smoothed round-trip time and its variation (RFC 6298)."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["RoundTrip"]

_GAIN = 1 / 8
_VARIATION_GAIN = 1 / 4


@dataclass(slots=True, kw_only=True)
class RoundTrip:
    """Round-trip estimate in seconds; `smoothed_s` is None before the first sample."""

    least_timeout_s: float = 0.25
    first_timeout_s: float = 2.0
    smoothed_s: float | None = None
    variation_s: float = 0.0

    def add(self, sample_s: float) -> None:
        """Take in the time from a draft to its verdict; never one of a repeated round (Karn)."""
        if self.smoothed_s is None:
            self.smoothed_s, self.variation_s = sample_s, sample_s / 2
            return
        deviation_s = abs(self.smoothed_s - sample_s)
        self.variation_s += _VARIATION_GAIN * (deviation_s - self.variation_s)
        self.smoothed_s += _GAIN * (sample_s - self.smoothed_s)

    def timeout_s(self, *, attempt: int) -> float:
        """Return max(3·SRTT + 4·RTTVAR, least), doubled with every attempt after the first."""
        if self.smoothed_s is None:
            return self.first_timeout_s * (1 << attempt)
        usual_s = 3 * self.smoothed_s + 4 * self.variation_s
        return max(usual_s, self.least_timeout_s) * (1 << attempt)
