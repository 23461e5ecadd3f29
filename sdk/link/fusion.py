"""One uplink rate out of many sources: a Kalman filter on ln(rate).

The logarithm, because links change by factors and a rate is never negative. Pure: time is an
argument. Knows nothing of where a rate comes from but its method.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from sdk.link.interface import Method

__all__ = ["FusedRate", "RateFilter"]

# Least relative deviation of each method. 0.05 is the repeatability of timed messages; the others
# are the spread between what a radio states and what a TCP connection then gets out of it.
_FLOOR: Final = {
    Method.PUBACK: 0.05,
    Method.DELIVERY: 0.05,
    Method.PROBE: 0.10,
    Method.EXPECTED_THROUGHPUT: 0.3,
    Method.PHY: 0.4,
    Method.SINR: 0.7,
}
# Not measured on our own traffic: wrong by a constant factor rather than by noise.
_PRIORS: Final = frozenset({Method.EXPECTED_THROUGHPUT, Method.PHY, Method.SINR})
_PRIOR_AFTER_S: Final = 30.0  # a measurement younger than this makes priors superfluous
_OUTLIER_SIGMA: Final = 3.0
_P10_SIGMA: Final = 1.2816
_NEAR: Final = math.log(1.15)


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedRate:
    """The estimate at one time.

    Attributes:
        rate_bps: median of the estimate.
        deviation: its relative standard deviation, grown with the age of the newest reading.
        method: of the newest reading that was believed.
        age_s: since that reading.
        count: readings believed so far.
    """

    rate_bps: float
    deviation: float
    method: Method
    age_s: float
    count: int

    @property
    def rate_sd_bps(self) -> float:
        """Standard deviation in bit/s."""
        return self.rate_bps * self.deviation

    @property
    def rate_lo_bps(self) -> float:
        """The tenth percentile: nine times out of ten the link gives more."""
        return self.rate_bps * math.exp(-_P10_SIGMA * self.deviation)

    @property
    def confidence(self) -> float:
        """Probability, by the filter's own model, that the true rate is within 15 %."""
        return math.erf(_NEAR / (self.deviation * math.sqrt(2.0)))


class RateFilter:
    """Random walk on ln(rate), with a variance per method and a rule for outliers.

    A reading more than three standard deviations off is held back; a second one in a row, on the
    same side, is a step of the link, and the filter jumps to it. Priors (radio figures) speak only
    while nothing was measured for half a minute, and repeating them never makes them more certain.
    """

    def __init__(self, *, drift: float = 0.1) -> None:
        """Start without an estimate; `drift` is the walk's deviation of ln(rate) after 1 s."""
        if not drift > 0.0:
            raise ValueError(f"drift must be above 0, got {drift}")
        self._drift = drift
        self._log_rate = 0.0
        self._variance = 0.0
        self._at_s = 0.0
        self._measured_at_s = -math.inf
        self._method: Method | None = None
        self._held = 0.0  # innovation of the outlier that was held back, if it was the last
        self._count = 0

    def add(self, *, rate_bps: float, method: Method, deviation: float, now_s: float) -> bool:
        """Take in one reading; return whether it was believed."""
        prior = method in _PRIORS
        if prior and now_s - self._measured_at_s < _PRIOR_AFTER_S:
            return False
        sample, noise = math.log(rate_bps), max(deviation, _FLOOR[method]) ** 2
        if self._method is None or (not prior and self._method in _PRIORS):
            self._log_rate, self._variance = sample, noise
        elif not self._update(sample, noise, now_s):
            return False
        if prior:
            self._variance = max(self._variance, noise)
        else:
            self._measured_at_s = now_s
        self._at_s, self._method, self._held = max(now_s, self._at_s), method, 0.0
        self._count += 1
        return True

    def estimate(self, now_s: float) -> FusedRate | None:
        """Return the estimate as of `now_s`, or None before the first reading."""
        if self._method is None:
            return None
        return FusedRate(
            rate_bps=math.exp(self._log_rate),
            deviation=math.sqrt(self._variance_at(now_s)),
            method=self._method,
            age_s=max(0.0, now_s - self._at_s),
            count=self._count,
        )

    def _update(self, sample: float, noise: float, now_s: float) -> bool:
        variance = self._variance_at(now_s)
        innovation = sample - self._log_rate
        if abs(innovation) > _OUTLIER_SIGMA * math.sqrt(variance + noise):
            if self._held * innovation <= 0.0:
                self._held = innovation
                return False
            variance = innovation**2
        gain = variance / (variance + noise)
        self._log_rate += gain * innovation
        self._variance = (1.0 - gain) * variance
        return True

    def _variance_at(self, now_s: float) -> float:
        return self._variance + self._drift**2 * max(0.0, now_s - self._at_s)
