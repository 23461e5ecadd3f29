"""From logits to a token: one transform and one choice, identical on board and edge server.

Knows nothing of drafts, wires or models: a row of logits goes in, a token id comes out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sdk.model.likelihood import LIKELIEST, likelihoods
from sdk.model.noise import MAX_SEED, CoupledNoise
from sdk.model.nucleus import Nucleus

__all__ = ["Sampler", "SamplingParameters", "log_probabilities", "probability", "transform"]

_ROW = 64  # values whose largest bounds the k-th largest of all


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParameters:
    """How the target's distribution is shaped before a token is drawn from it.

    Attributes:
        temperature: in [0.001, 100], or 0: greedy decoding, where no other field matters.
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: in (0, 1]; keep the smallest set of likeliest tokens whose probability reaches it.
        min_p: in [0, 1); drop tokens less likely than min_p times the likeliest.
        seed: in [0, 2^64); keys all randomness together with the absolute position.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        # Logits over a temperature near 0 overflow float32.
        fits = self.greedy or 1e-3 <= self.temperature <= 100.0
        checks = (
            ("temperature", fits, "0 or in [0.001, 100]"),
            ("top_k", self.top_k >= 0, "at least 0"),
            ("top_p", 0.0 < self.top_p <= 1.0, "in (0, 1]"),
            ("min_p", 0.0 <= self.min_p < 1.0, "in [0, 1)"),
            ("seed", 0 <= self.seed <= MAX_SEED, "in [0, 2^64)"),
        )
        for name, holds, allowed in checks:
            if not holds:  # NaN fails every comparison, so it ends here too
                raise ValueError(f"{name} must be {allowed}, got {getattr(self, name)}")

    @property
    def greedy(self) -> bool:
        """Whether the token is the plain argmax."""
        return self.temperature == 0.0

    @property
    def keeps_all(self) -> bool:
        """Whether no token is excluded."""
        return self.top_k == 0 and self.top_p == 1.0 and self.min_p == 0.0


def transform(logits: NDArray[np.float32], parameters: SamplingParameters) -> NDArray[np.float32]:
    """Return logits over temperature, with −inf where top-k, top-p or min-p exclude a token.

    The order is temperature, top-k, top-p, min-p; among equal logits the lower id is kept first.

    Args:
        logits: [vocab].
        parameters: temperature above 0.
    """
    scaled: NDArray[np.float32] = np.divide(logits, np.float32(parameters.temperature))
    if parameters.keeps_all:
        return scaled
    return _only(scaled, _kept(scaled, parameters))


def _only(scaled: NDArray[np.float32], ids: NDArray[np.intp]) -> NDArray[np.float32]:
    shaped = np.full_like(scaled, -np.inf)
    shaped[ids] = scaled[ids]
    return shaped


def _kept(scaled: NDArray[np.float32], parameters: SamplingParameters) -> NDArray[np.intp]:
    """Return the ids that top-k, top-p and min-p keep."""
    peak = scaled.max()
    if 0 < parameters.top_k < scaled.size:
        ids = _top_k(scaled, parameters.top_k)
        if parameters.top_p < 1.0:
            # What top-k left out counts no more.
            reached = np.cumsum(likelihoods(scaled[ids], peak), dtype=np.float64)
            ids = ids[: int(np.searchsorted(reached, parameters.top_p * reached[-1])) + 1]
    elif parameters.top_p < 1.0:
        ids = Nucleus(scaled, parameters.top_p).ids()
    elif parameters.min_p > 0.0:
        ids = np.flatnonzero(scaled >= peak + math.log(parameters.min_p) - 1.0)  # 1 to spare
    else:
        ids = np.arange(scaled.size)
    return _likely_enough(ids, scaled, parameters.min_p)


def _likely_enough(
    ids: NDArray[np.intp], scaled: NDArray[np.float32], min_p: float
) -> NDArray[np.intp]:
    """Return those of the ids that min-p keeps."""
    if min_p == 0.0:
        return ids
    weights = likelihoods(scaled[ids], scaled.max()).astype(np.float64)
    return ids[weights >= min_p * LIKELIEST]


def _top_k(scaled: NDArray[np.float32], k: int) -> NDArray[np.intp]:
    """Return the ids of the k largest, largest first; among equals the lower ids."""
    ids = np.flatnonzero(scaled >= _kth_largest(scaled, k))
    top: NDArray[np.intp] = ids[np.argsort(-scaled[ids], kind="stable")[:k]]
    return top


def _kth_largest(values: NDArray[np.float32], k: int) -> np.float32:
    """Return the k-th largest value: none is smaller than the k-th largest of blocks' maxima."""
    blocks = values[: values.size // _ROW * _ROW].reshape(-1, _ROW)
    if k <= len(blocks):
        least = np.partition(blocks.max(axis=1), len(blocks) - k)[-k]
        values = values[values >= least]
    kth: np.float32 = np.partition(values, values.size - k)[-k]
    return kth


def log_probabilities(scaled: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the normalised log-probabilities of transformed logits, [vocab]."""
    shifted = scaled.astype(np.float64) - float(scaled.max())
    normalised: NDArray[np.float64] = shifted - math.log(float(np.exp(shifted).sum()))
    return normalised


def probability(
    logits: NDArray[np.float32], token_id: int, parameters: SamplingParameters
) -> float:
    """Return a token's probability at the temperature (1 when greedy), nothing excluded."""
    relative = logits - logits.max()
    if not parameters.greedy:
        relative /= np.float32(parameters.temperature)
    return float(np.exp(relative[token_id]) / np.exp(relative).sum())


class Sampler:
    """Choose one token per position; the choice depends on (logits, parameters, position) alone."""

    def __init__(self, *, parameters: SamplingParameters, vocabulary_size: int) -> None:
        self.parameters = parameters
        self._noise = CoupledNoise(vocabulary_size=vocabulary_size, seed=parameters.seed)

    def choose(self, logits: NDArray[np.float32], position: int) -> int:
        """Return the token drawn at `position` from logits [vocab]; the lowest id among equals."""
        if self.parameters.greedy:
            return int(logits.argmax())
        scaled: NDArray[np.float32] = np.divide(logits, np.float32(self.parameters.temperature))
        if self.parameters.keeps_all:
            return self._noise.argmax(scaled, position)
        if self.parameters.top_p < 1.0 and self.parameters.top_k == 0:
            return self._choose_in_nucleus(scaled, position)
        ids = np.sort(_kept(scaled, self.parameters))
        return self._noise.argmax_among(ids, scaled[ids], position)

    def _choose_in_nucleus(self, scaled: NDArray[np.float32], position: int) -> int:
        """Choose among more tokens than the nucleus, until the winner is in it.

        A winner that is not drops out with all tokens behind it; one that is has also beaten all
        others that are.
        """
        nucleus = Nucleus(scaled, self.parameters.top_p)
        ids = nucleus.candidates
        while True:
            ids = _likely_enough(ids, scaled, self.parameters.min_p)
            token = self._noise.argmax_among(ids, np.take(scaled, ids), position)
            if nucleus.holds(token):
                return token
            ids = nucleus.ahead_of(token)
