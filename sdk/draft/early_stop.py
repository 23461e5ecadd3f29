"""When one more drafted token no longer pays, by the drafter's own confidence.

One more token is of use only if all before it and itself are accepted, and it delays the round by
its draft time. A round is longest worth prolonging while what it gains in that time is more than
what the device's rounds gain on average: the rule that maximises tokens per second of rounds in
the long run. How often a confidence comes true is learnt from the verdicts. Pure: no clock, no
model, no message; a shorter draft is always legal, so this cannot change the output.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

__all__ = ["EarlyStop"]

BINS = 12
WIDEST = 6.0  # log-odds, either way
PRIOR_WEIGHT = 4.0  # verdicts that a confidence taken at its word is worth
KEEP = 0.995  # of what was learnt, after each round
GAIN = 0.05  # of a new round in the averages
LEAST_ROUNDS = 8  # before the averages are believed


class EarlyStop:
    """Learns from rounds and says whether the draft so far should grow."""

    def __init__(self) -> None:
        """Start with confidences taken at their word."""
        self._accepted = np.zeros(BINS)
        self._judged = np.zeros(BINS)
        self._rounds = 0
        self._tokens = 0.0  # of a round, on average
        self._round_s = 0.0
        self._token_s = 0.0  # to draft one token, on average

    def worth(self, confidences: Sequence[float]) -> bool:
        """Say whether drafting one token behind tokens of these confidences pays."""
        if self._rounds < LEAST_ROUNDS or not confidences:
            return True
        gain = math.prod(self.probability(each) for each in confidences) * self._usual()
        return gain * self._round_s >= self._tokens * self._token_s

    def probability(self, confidence: float) -> float:
        """Return how likely a token of this confidence is to be accepted, if all before it are."""
        bin_ = bin_of(confidence)
        accepted = float(self._accepted[bin_]) + PRIOR_WEIGHT * confidence
        return accepted / (float(self._judged[bin_]) + PRIOR_WEIGHT)

    def _usual(self) -> float:
        """Return how likely a token is to be accepted of which nothing is known yet."""
        return float(self._accepted.sum() + 1.0) / float(self._judged.sum() + 1.0)

    def add_draft_time(self, seconds: float) -> None:
        """Take in what drafting one token took."""
        self._token_s += GAIN * (seconds - self._token_s) if self._token_s else seconds

    def add_round(
        self, confidences: Sequence[float], *, accepted: int, tokens: int, seconds: float
    ) -> None:
        """Take in a verdict: of a draft with these confidences so many tokens were accepted.

        `tokens` is what the round added to the output, `seconds` the time since the last verdict.
        """
        self._accepted *= KEEP
        self._judged *= KEEP
        for index, confidence in enumerate(confidences[: accepted + 1]):
            self._judged[bin_of(confidence)] += 1.0
            self._accepted[bin_of(confidence)] += float(index < accepted)
        self._rounds += 1
        gain = max(GAIN, 1.0 / self._rounds)
        self._tokens += gain * (tokens - self._tokens)
        self._round_s += gain * (seconds - self._round_s)


def bin_of(confidence: float) -> int:
    """Return the bin of a probability: equally wide in log-odds, finest near 0 and 1."""
    odds = math.log((confidence + 1e-6) / (1.0 - confidence + 1e-6))
    return min(max(int((odds + WIDEST) / (2 * WIDEST) * BINS), 0), BINS - 1)
