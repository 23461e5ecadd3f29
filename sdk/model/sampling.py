"""From logits to a token: one transform and one choice, identical on board and edge server.

Knows nothing of drafts, wires or models: a row of logits goes in, a token id comes out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sdk.model.likelihood import LIKELIEST, LOWEST_NATS, likelihoods
from sdk.model.noise import MAX_SEED, CoupledNoise

__all__ = ["Sampler", "SamplingParameters", "log_probabilities", "probability", "transform"]

_ROW = 64  # values whose largest bounds the k-th largest of all
_BLOCK = 24_576  # values whose passes stay in a core's own cache
_STEPS_NATS = tuple(np.float32(nats) for nats in range(2, int(LOWEST_NATS) + 2, 2))
_FEW_TO_SORT = 512
_FEW = 4096  # ids whose exact noise costs less than that of all, bounded


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
        ids = _nucleus(scaled, peak, parameters.top_p)
    elif parameters.min_p > 0.0:
        ids = np.flatnonzero(scaled >= peak + math.log(parameters.min_p) - 1.0)  # 1 to spare
    else:
        ids = np.arange(scaled.size)
    if parameters.min_p > 0.0:
        weights = likelihoods(scaled[ids], peak).astype(np.float64)
        ids = ids[weights >= parameters.min_p * LIKELIEST]
    return ids


def _top_k(scaled: NDArray[np.float32], k: int) -> NDArray[np.intp]:
    """Return the ids of the k largest, largest first; among equals the lower ids."""
    ids = np.flatnonzero(scaled >= _kth_largest(scaled, k))
    top: NDArray[np.intp] = ids[np.argsort(-scaled[ids], kind="stable")[:k]]
    return top


def _nucleus(scaled: NDArray[np.float32], peak: np.float32, top_p: float) -> NDArray[np.intp]:
    """Return the ids of the smallest set of likeliest tokens that holds `top_p` of all weight.

    Thresholds fall until enough is held; then halving what lies between the last two leaves only
    a few tokens to sort.
    """
    blocks = (scaled[first : first + _BLOCK] for first in range(0, scaled.size, _BLOCK))
    wanted = top_p * sum(_weight(likelihoods(block, peak)) for block in blocks)
    kept: list[NDArray[np.intp]] = []
    held, ceiling = 0.0, np.float32(np.inf)
    for nats in _STEPS_NATS:
        floor = peak - nats
        inside = np.flatnonzero(scaled >= floor)
        between = inside[scaled[inside] < ceiling]
        weight = _weight(likelihoods(scaled[between], peak))
        if held + weight >= wanted:
            break
        kept, held, ceiling = [*kept, between], held + weight, floor
    while between.size > _FEW_TO_SORT:
        values = scaled[between]
        middle = (values.min() + values.max()) / 2
        upper = between[values >= middle]
        if upper.size == between.size:
            break  # equal, all of them
        weight = _weight(likelihoods(scaled[upper], peak))
        if held + weight >= wanted:
            between = upper
        else:
            kept, held, between = [*kept, upper], held + weight, between[values < middle]
    between = between[np.argsort(-scaled[between], kind="stable")]
    reached = held + np.cumsum(likelihoods(scaled[between], peak), dtype=np.float64)
    return np.concatenate([*kept, between[: int(np.searchsorted(reached, wanted)) + 1]])


def _weight(weights: NDArray[np.float32]) -> float:
    return float(weights.sum(dtype=np.float64))


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
        ids = _kept(scaled, self.parameters)
        if ids.size > _FEW:
            return self._noise.argmax(_only(scaled, ids), position)
        return self._noise.argmax_among(np.sort(ids), scaled, position)
