"""From logits to a token: one transform and one choice, identical on board and edge server.

Knows nothing of drafts, wires or models: a row of logits goes in, a token id comes out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sdk.model.noise import MAX_SEED, CoupledNoise

__all__ = ["Sampler", "SamplingParameters", "log_probabilities", "probability", "transform"]

_BLOCK = 64
_TOP_P_NATS = (3.0, 6.0, 9.0)  # below the likeliest


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


def transform(logits: NDArray[np.float32], parameters: SamplingParameters) -> NDArray[np.float32]:
    """Return logits over temperature, with −inf where top-k, top-p or min-p exclude a token.

    The order is temperature, top-k, top-p, min-p; among equal logits the lower id is kept first.

    Args:
        logits: [vocab].
        parameters: temperature above 0.
    """
    scaled: NDArray[np.float32] = np.divide(logits, np.float32(parameters.temperature))
    if parameters.top_k == 0 and parameters.top_p == 1.0 and parameters.min_p == 0.0:
        return scaled
    kept = _likeliest(scaled, parameters)
    shaped = np.full_like(scaled, -np.inf)
    shaped[kept] = scaled[kept]
    return shaped


def _likeliest(scaled: NDArray[np.float32], parameters: SamplingParameters) -> NDArray[np.intp]:
    """Return the ids that top-k, top-p and min-p keep, likeliest first."""
    cut = 0 < parameters.top_k < scaled.size
    total = 0.0 if cut or parameters.top_p == 1.0 else _relative_mass(scaled)
    for candidates in _candidates(scaled, parameters):
        ids = candidates[np.argsort(-scaled[candidates], kind="stable")]
        if parameters.top_k:
            ids = ids[: parameters.top_k]
        relative = np.exp((scaled[ids] - scaled[ids[0]]).astype(np.float64))  # likeliest: 1.0
        if parameters.top_p == 1.0:
            break
        # What top-k left out counts no more; what is no candidate still does.
        reached = np.cumsum(relative) >= parameters.top_p * (relative.sum() if cut else total)
        if reached.any():
            ids = ids[: int(reached.argmax()) + 1]
            break
    kept: NDArray[np.intp] = ids[relative[: len(ids)] >= parameters.min_p]
    return kept


def _candidates(
    scaled: NDArray[np.float32], parameters: SamplingParameters
) -> Iterator[NDArray[np.intp]]:
    """Yield ids, ascending, that hold every survivor, so that only few need sorting.

    For top-p alone the first sets may be too small to reach it; the next is then larger.
    """
    if 0 < parameters.top_k < scaled.size:
        yield np.flatnonzero(scaled >= _kth_largest(scaled, parameters.top_k))
        return
    # Tokens below (1 − top_p)/V hold less than 1 − top_p together: the others reach top_p.
    floor = (1.0 - parameters.top_p) / scaled.size or parameters.min_p
    peak = float(scaled.max())
    if parameters.top_p < 1.0:
        for nats in _TOP_P_NATS:
            yield np.flatnonzero(scaled >= peak - nats)
    yield (
        np.flatnonzero(scaled >= peak + math.log(floor) - 1e-3) if floor else np.arange(scaled.size)
    )


def _kth_largest(values: NDArray[np.float32], k: int) -> np.float32:
    """Return the k-th largest value: none is smaller than the k-th largest of blocks' maxima."""
    blocks = values[: values.size // _BLOCK * _BLOCK].reshape(-1, _BLOCK)
    if k <= len(blocks):
        least = np.partition(blocks.max(axis=1), len(blocks) - k)[-k]
        values = values[values >= least]
    kth: np.float32 = np.partition(values, values.size - k)[-k]
    return kth


def _relative_mass(scaled: NDArray[np.float32]) -> float:
    return float(np.exp(scaled - scaled.max()).sum(dtype=np.float64))


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
        return self._noise.argmax(transform(logits, self.parameters), position)
