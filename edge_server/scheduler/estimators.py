"""What the scheduler believes about devices, links and the verifier, from what was measured.

All estimators forget, all are pure state machines: time is passed in, nothing is read. They know
no solver and no message.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "DecayedMean",
    "RateEstimator",
    "RoundTripEstimator",
    "SurvivalEstimator",
    "VerifyEstimator",
    "VerifyTime",
]


RIDGE = np.array([1e-9, 1e-6, 1e-6, 1e-6])  # of (1, requests, rows, kilo-tokens of context)


class DecayedMean:
    """A mean that forgets: every new sample keeps at least `gain` of the weight."""

    def __init__(self, *, gain: float = 0.125) -> None:
        if not 0.0 < gain <= 1.0:
            raise ValueError(f"gain must be in (0, 1], got {gain}")
        self._gain = gain
        self._count = 0
        self._value = 0.0

    @property
    def value(self) -> float | None:
        """The mean, or None before the first sample."""
        return self._value if self._count else None

    def add(self, sample: float) -> None:
        """Take in one finite sample; others are dropped."""
        if not math.isfinite(sample):
            return
        self._count += 1
        self._value += max(self._gain, 1.0 / self._count) * (sample - self._value)


class SurvivalEstimator:
    """Survival curve S(l) = P(the first l drafted tokens are accepted), l = 1..max_length.

    Position by position, the chance that a draft which got as far as l is accepted there too is
    counted over rounds that reached l (a shorter draft says nothing about l), and smoothed toward
    one geometric acceptance, itself smoothed toward `prior_acceptance`. Old rounds fade by
    `keep` a round.
    """

    def __init__(
        self,
        *,
        max_length: int = 32,
        prior_acceptance: float = 0.7,
        prior_weight: float = 4.0,
        keep: float = 0.97,
    ) -> None:
        if max_length < 1:
            raise ValueError(f"max_length must be at least 1, got {max_length}")
        if not 0.0 < prior_acceptance < 1.0:
            raise ValueError(f"prior_acceptance must be in (0, 1), got {prior_acceptance}")
        if not 0.0 < keep <= 1.0 or not prior_weight > 0.0:
            raise ValueError(f"keep must be in (0, 1] and prior_weight above 0: {keep=}")
        self._prior = prior_acceptance
        self._weight = prior_weight
        self._keep = keep
        self._reached = np.zeros(max_length)
        self._accepted = np.zeros(max_length)

    def add(self, *, drafted: int, accepted: int) -> None:
        """Take in one round; a round without a draft teaches nothing and forgets nothing."""
        if not 0 <= accepted <= drafted:
            raise ValueError(f"accepted must be in [0, drafted], got {accepted} of {drafted}")
        if drafted == 0:
            return
        self.fade(rounds=1)
        self._reached[: min(accepted + 1, drafted)] += 1.0
        self._accepted[:accepted] += 1.0

    def fade(self, *, rounds: int) -> None:
        """Forget as if that many rounds had passed."""
        self._reached *= self._keep**rounds
        self._accepted *= self._keep**rounds

    @property
    def acceptance(self) -> float:
        """The one geometric acceptance that all positions are smoothed toward."""
        accepted = float(self._accepted.sum()) + self._weight * self._prior
        return accepted / (float(self._reached.sum()) + self._weight)

    def curve(self) -> NDArray[np.float64]:
        """Return S(1), S(2), …, not increasing, each in (0, 1)."""
        hazard = (self._accepted + self._weight * self.acceptance) / (self._reached + self._weight)
        return np.cumprod(hazard, dtype=np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyTime:
    """Verification time, affine in requests, rows and context tokens; seconds each."""

    fixed_s: float
    per_request_s: float = 0.0
    per_row_s: float = 0.0
    per_context_s: float = 0.0

    def predict(self, *, requests: float, rows: float, context_tokens: float = 0.0) -> float:
        """Return the seconds that one such pass takes."""
        return (
            self.fixed_s
            + self.per_request_s * requests
            + self.per_row_s * rows
            + self.per_context_s * context_tokens
        )


class VerifyEstimator:
    """Recursive least squares of pass time on (1, requests, rows, context), none negative.

    Kept in information form, so that every answer is the exact non-negative least-squares fit of
    the faded past: the best of the 15 fits over subsets of the four terms whose coefficients are
    all positive. A whisper of a ridge settles what the data cannot tell apart, in favour of the
    fixed term: a row is held to be cheap until rows have varied.
    """

    def __init__(self, *, keep: float = 0.98) -> None:
        if not 0.0 < keep <= 1.0:
            raise ValueError(f"keep must be in (0, 1], got {keep}")
        self._keep = keep
        self._count = 0
        self._normal = np.zeros((4, 4))
        self._moment = np.zeros(4)
        self._fit: VerifyTime | None = None
        self._mean_requests = DecayedMean()
        self._mean_rows = DecayedMean()
        self._mean_context = DecayedMean()
        self._mean_duration = DecayedMean()

    def add(self, *, requests: int, rows: int, context_tokens: int, duration_s: float) -> None:
        """Take in one pass; one with a negative or non-finite duration is dropped."""
        if not math.isfinite(duration_s) or duration_s < 0.0 or requests < 1:
            return
        terms = np.array([1.0, requests, rows, context_tokens / 1000.0])
        self._normal = self._keep * self._normal + np.outer(terms, terms)
        self._moment = self._keep * self._moment + duration_s * terms
        self._count += 1
        self._fit = None
        self._mean_requests.add(requests)
        self._mean_rows.add(rows)
        self._mean_context.add(context_tokens)
        self._mean_duration.add(duration_s)

    @property
    def passes(self) -> int:
        """How many passes were taken in."""
        return self._count

    @property
    def mean_requests(self) -> float | None:
        """Recent mean number of requests a pass."""
        return self._mean_requests.value

    @property
    def mean_rows(self) -> float | None:
        """Recent mean number of rows a pass."""
        return self._mean_rows.value

    @property
    def mean_context_tokens(self) -> float | None:
        """Recent mean number of context tokens a pass."""
        return self._mean_context.value

    @property
    def mean_duration_s(self) -> float | None:
        """Recent mean duration of a pass."""
        return self._mean_duration.value

    def fit(self) -> VerifyTime | None:
        """Return the fitted verification time, or None before the first pass."""
        if self._count == 0:
            return None
        if self._fit is None:
            self._fit = self._solve()
        return self._fit

    def _solve(self) -> VerifyTime:
        normal = self._normal + np.diag(RIDGE * (np.diag(self._normal) + 1e-9))
        best, best_gain = np.zeros(4), 0.0
        for size in range(1, 5):
            for subset in itertools.combinations(range(4), size):
                chosen = list(subset)
                part = np.linalg.solve(normal[np.ix_(chosen, chosen)], self._moment[chosen])
                gain = float(part @ self._moment[chosen])  # drop of the squared error
                if part.min() >= 0.0 and gain > best_gain:
                    best, best_gain = np.zeros(4), gain
                    best[chosen] = part
        fixed, per_request, per_row, per_kilo_context = (float(value) for value in best)
        return VerifyTime(
            fixed_s=fixed,
            per_request_s=per_request,
            per_row_s=per_row,
            per_context_s=per_kilo_context / 1000.0,
        )


class RateEstimator:
    """Uplink bit/s at full share: a Kalman filter on ln(rate) over reported rates.

    The rate wanders by `drift` (in ln) per square root of a second. A report further than three
    standard deviations off is held back once; a second one in a row is a step and is followed.
    """

    def __init__(self, *, drift: float = 0.2) -> None:
        if not drift > 0.0:
            raise ValueError(f"drift must be above 0, got {drift}")
        self._drift = drift
        self._log_rate: float | None = None
        self._variance = 0.0
        self._at_s = 0.0
        self._held = False

    @property
    def rate_bps(self) -> float | None:
        """The estimate, or None before the first report."""
        return None if self._log_rate is None else math.exp(self._log_rate)

    def add(self, rate_bps: float, *, now_s: float, deviation: float = 0.1) -> None:
        """Take in one rate; `deviation` is its relative error. Not above 0: dropped."""
        if not (math.isfinite(rate_bps) and rate_bps > 0.0):
            return
        sample, noise = math.log(rate_bps), max(deviation, 1e-3) ** 2
        if self._log_rate is None:
            self._log_rate, self._variance, self._at_s = sample, noise, now_s
            return
        self._variance += self._drift**2 * max(0.0, now_s - self._at_s)
        self._at_s = max(now_s, self._at_s)
        innovation = sample - self._log_rate
        if innovation**2 > 9.0 * (self._variance + noise):
            if not self._held:
                self._held = True
                return
            self._variance = innovation**2
        self._held = False
        gain = self._variance / (self._variance + noise)
        self._log_rate += gain * innovation
        self._variance *= 1.0 - gain


class RoundTripEstimator:
    """The link's own delay: the least of the last `window` samples of what is left of a round."""

    def __init__(self, *, window: int = 32) -> None:
        if window < 1:
            raise ValueError(f"window must be at least 1, got {window}")
        self._samples: deque[float] = deque(maxlen=window)

    @property
    def round_trip_s(self) -> float | None:
        """The estimate, or None before the first sample."""
        return min(self._samples) if self._samples else None

    def add(self, sample_s: float) -> None:
        """Take in one sample; a negative one counts as 0."""
        if math.isfinite(sample_s):
            self._samples.append(max(0.0, sample_s))
