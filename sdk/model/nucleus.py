"""Top-p: the smallest set of likeliest tokens that holds a share of all likelihood.

A token is in it where what is likelier holds less than that share, so one token can be judged
without listing the others. Sums of single-precision exponentials, good to a few millionths, decide;
where they come too near the limit, the exact likelihoods of W-SAMPLE-3 do. Knows nothing of noise.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from sdk.model.likelihood import LIKELIEST, LOWEST_NATS, likelihoods

__all__ = ["Nucleus"]

_BLOCK = 24_576  # values whose passes stay in a core's own cache
_FEW_TO_SORT = 512
_BINS = np.float32(256)
# How far sums of exponentials are at most from likelihoods over 2^30: a share, and each token's.
_ROUNDING_SHARE, _ROUNDING = 1e-5, 1 / LIKELIEST
_LEAST = math.exp(-LOWEST_NATS)


class Nucleus:
    """The smallest set of a row's likeliest tokens that holds `top_p` of all likelihood.

    Attributes:
        candidates: the ids, ascending, of more tokens than are in it; no others are.
    """

    def __init__(self, scaled: NDArray[np.float32], top_p: float) -> None:
        """Find the candidates.

        Args:
            scaled: [vocab], logits over temperature; not copied.
            top_p: in (0, 1).
        """
        self._scaled = scaled
        self._top_p = top_p
        self._peak = scaled.max()
        self._near = np.subtract(scaled, self._peak)
        np.exp(self._near, out=self._near)
        total = float(self._near.sum())
        self._near_wanted = top_p * total
        self._slack = _ROUNDING_SHARE * total + _ROUNDING * scaled.size
        # All tokens less likely than this hold together less than what may be left out.
        spare = (total - self._near_wanted - self._slack) / scaled.size
        self.candidates = np.flatnonzero(self._near >= max(spare, _LEAST))

    def ahead_of(self, token: int) -> NDArray[np.intp]:
        """Return the ids, ascending, of tokens that are likelier, or as likely and lower."""
        own = self._scaled[token]
        ahead = self._scaled > own
        np.greater_equal(self._scaled[:token], own, out=ahead[:token])
        return np.flatnonzero(ahead)

    def holds(self, token: int) -> bool:
        """Return whether a token is in the nucleus."""
        ahead = self.ahead_of(token)
        held = float(np.take(self._near, ahead).sum())
        if abs(held - self._near_wanted) > self._slack:
            return held < self._near_wanted
        weights = self._likelihoods()
        return _sum(weights[ahead]) < self._top_p * _sum(weights)

    def ids(self) -> NDArray[np.intp]:
        """Return the ids in the nucleus: bins narrow the candidates down to a few to sort."""
        weights = self._likelihoods()
        wanted = self._top_p * _sum(weights)
        kept: list[NDArray[np.intp]] = []
        held, between = 0.0, self.candidates
        while between.size > _FEW_TO_SORT:
            values = np.take(self._scaled, between)
            top, bottom = values.max(), values.min()
            if top == bottom:
                break
            bins = ((top - values) / (top - bottom) * _BINS).astype(np.intp)
            reached = held + np.cumsum(np.bincount(bins, np.take(weights, between)))
            last = int(np.searchsorted(reached, wanted))
            held = float(reached[last - 1]) if last else held
            kept.append(np.take(between, np.flatnonzero(bins < last)))
            between = np.take(between, np.flatnonzero(bins == last))
        between = between[np.argsort(-self._scaled[between], kind="stable")]
        reached = held + np.cumsum(weights[between], dtype=np.float64)
        return np.concatenate([*kept, between[: int(np.searchsorted(reached, wanted)) + 1]])

    def _likelihoods(self) -> NDArray[np.float32]:
        starts = range(0, self._scaled.size, _BLOCK)
        blocks = (self._scaled[start : start + _BLOCK] for start in starts)
        return np.concatenate([likelihoods(block, self._peak) for block in blocks])


def _sum(weights: NDArray[np.float32]) -> float:
    return float(weights.sum(dtype=np.float64))
