"""The distribution a token was drafted from, in ratio mode: few ids, integer weights.

The device first cuts its distribution down to what it will upload, and only then draws from it, so
the server divides by exactly what the token was drawn from. In the other order the output would no
longer be a sample of the target (Quantise-and-Sample, arXiv 2507.00605; TSLT, arXiv 2512.16273).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

__all__ = ["MAX_SUPPORT", "MAX_WEIGHT_BITS", "Proposal", "propose"]

MAX_SUPPORT = 1024
MAX_WEIGHT_BITS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A distribution over a few token ids: q(token_ids[i]) = weights[i] / Σ weights.

    Attributes:
        token_ids: distinct, 1 to MAX_SUPPORT of them.
        weights: in [1, 2^MAX_WEIGHT_BITS], one per id.
    """

    token_ids: tuple[int, ...]
    weights: tuple[int, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.token_ids) <= MAX_SUPPORT:
            raise ValueError(f"a proposal keeps 1 to {MAX_SUPPORT} ids, got {len(self.token_ids)}")
        if len(self.weights) != len(self.token_ids):
            raise ValueError("a proposal has one weight per id")
        if len(set(self.token_ids)) != len(self.token_ids):
            raise ValueError("a proposal names an id twice")
        if not 1 <= min(self.weights) <= max(self.weights) <= 1 << MAX_WEIGHT_BITS:
            raise ValueError(f"weights must be in [1, 2^{MAX_WEIGHT_BITS}]")

    def draw(self, u: float) -> int:
        """Return the id that a uniform variate u in (0, 1) selects."""
        wanted = u * sum(self.weights)
        reached = accumulate(self.weights)
        pairs = zip(self.token_ids, reached, strict=True)
        return next((token for token, upto in pairs if wanted < upto), self.token_ids[-1])

    def probability(self, token: int) -> float:
        """Return q(token); 0 outside the support."""
        if token not in self.token_ids:
            return 0.0
        return self.weights[self.token_ids.index(token)] / sum(self.weights)

    def subtract_from(self, row: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return max(row − q, 0), [vocab]."""
        ids = list(self.token_ids)
        left: NDArray[np.float64] = row.copy()
        left[ids] -= np.asarray(self.weights, np.float64) / sum(self.weights)
        np.maximum(left, 0.0, out=left)
        return left


def propose(
    shaped: NDArray[np.float32], *, support: int, weight_bits: int, coverage: float = 1.0
) -> Proposal:
    """Cut a distribution down to what will be uploaded.

    Args:
        shaped: transformed logits, [vocab]; −inf where a token is excluded.
        support: ids to keep at most, the likeliest, in [1, MAX_SUPPORT].
        weight_bits: weights are rounded to [0, 2^weight_bits], the likeliest id's being the
            greatest; in [1, MAX_WEIGHT_BITS]. Ids whose weight comes to 0 are left out: hundreds
            of them raised to 1 would outweigh the ids that the drafter means.
        coverage: stop at the smallest set of those ids that reaches this probability, in (0, 1].
    """
    if not 1 <= support <= MAX_SUPPORT or not 1 <= weight_bits <= MAX_WEIGHT_BITS:
        raise ValueError(f"cannot keep {support} ids with weights of {weight_bits} bits")
    # A weight below ½ comes to 0, so only ids this near to the likeliest are kept; 0.01 to spare.
    ids = np.flatnonzero(shaped >= shaped.max() - ((weight_bits + 1) * math.log(2) + 0.01))
    if ids.size > support:
        ids = np.sort(ids[np.argpartition(-shaped[ids], support - 1)[:support]])
    ids = ids[np.argsort(-shaped[ids], kind="stable")]
    relative = np.exp((shaped[ids] - shaped[ids[0]]).astype(np.float64))
    if coverage < 1.0:
        total = np.exp((shaped - shaped[ids[0]]).astype(np.float64)).sum()
        reached = np.flatnonzero(np.cumsum(relative) >= coverage * total)
        kept = int(reached[0]) + 1 if reached.size else len(ids)
        ids, relative = ids[:kept], relative[:kept]
    weights = np.rint(relative * (1 << weight_bits)).astype(np.int64)
    ids = ids[weights > 0]  # the likeliest stand first, so these are a prefix
    return Proposal(token_ids=tuple(ids.tolist()), weights=tuple(weights[: len(ids)].tolist()))
