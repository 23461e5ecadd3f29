"""`sdk.model.sampling` on the device, row by row the same tokens: exclusion, noise, choice.

Bits are those of the host: likelihoods and noise are integers and correctly rounded operations, in
an order that is kept here, and sums of integers are exact in any order. Knows nothing of drafts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sdk.model.likelihood import EXP2_TERMS, LIKELIEST, LIKELIEST_BITS, LOG2_E, LOWEST_NATS
from sdk.model.noise import ATANH_TERMS, LN_2, SQRT_HALF, Stream, position_words
from sdk.model.sampling import SamplingParameters

__all__ = [
    "choose",
    "choose_exactly",
    "gumbel",
    "likelihoods",
    "near_gumbel",
    "noise_bits",
    "noise_bits32",
    "transform",
]

_MASK32 = 0xFFFFFFFF
_MIXER = ((16, 0x7FEB352D), (15, 0x846CA68B))  # lowbias32, as in `sdk.model.noise`
_CANDIDATES = 16
_JUDGED = 4  # of them, where top-p may exclude some
_ROUNDING, _ROUNDING_SHARE = 1e-3, 1e-6  # at least what single precision does to two scores
_EXPONENT_BIAS, _MANTISSA_BITS = 127, 23


def choose(
    logits: Tensor, parameters: Sequence[SamplingParameters], positions: Sequence[int]
) -> Tensor:
    """Return every row's token as `Sampler.choose` does, −1 where that is not sure: [rows] int64.

    Scores in single precision name a few candidates, of which the exact ones are compared. They are
    sure to hold the winner where what is behind them is behind it by more than rounding can be;
    other rows, such as one of many equal logits, are for `choose_exactly`. Nothing is sorted:
    top-p asks of the foremost candidates alone whether they are kept.

    Args:
        logits: [rows, vocab] float32.
        parameters: one per row, temperature above 0.
        positions: of the token to be drawn, one per row.
    """
    vocabulary_size = logits.shape[1]
    scaled = logits / _column([own.temperature for own in parameters], logits).float()
    limited = [row for row, own in enumerate(parameters) if not own.keeps_all]
    rows = torch.tensor(limited, dtype=torch.int64, device=logits.device)
    limits = [parameters[row] for row in limited]
    if limited:
        scaled[rows], weights = _left(scaled[rows], limits)
    keys = _keys(parameters, positions, logits.device)
    near, ids = (scaled + near_gumbel(noise_bits32(keys, vocabulary_size))).topk(
        min(_CANDIDATES, vocabulary_size), dim=-1
    )
    exact = scaled.gather(1, ids).double() + gumbel(noise_bits(ids, keys))
    behind = near[:, -1].clone()
    if vocabulary_size <= _CANDIDATES:
        behind[:] = -torch.inf
    if any(own.top_p < 1.0 for own in limits):
        judged = _in_nucleus(ids[rows, :_JUDGED], scaled[rows], weights, limits)
        exact[rows, :_JUDGED] = exact[rows, :_JUDGED].where(judged, -torch.inf)
        exact[rows, _JUDGED:] = -torch.inf
        behind[rows] = near[rows, _JUDGED] if vocabulary_size > _JUDGED else -torch.inf
    best = (exact == exact.amax(dim=-1, keepdim=True)) & (exact > -torch.inf)
    first = near.where(best, -torch.inf).amax(dim=-1)
    sure = behind < first - (_ROUNDING + _ROUNDING_SHARE * first.abs())
    return ids.where(best, vocabulary_size).amin(dim=-1).where(sure, -1)


def _left(scaled: Tensor, limits: Sequence[SamplingParameters]) -> tuple[Tensor, Tensor]:
    """Return what top-k and min-p leave, and likelihoods of what top-k does: [rows, vocab] each."""
    vocabulary_size = scaled.shape[1]
    weights = likelihoods(scaled, scaled.amax(dim=-1, keepdim=True))
    counts = [own.top_k for own in limits if 0 < own.top_k < vocabulary_size]
    if counts:
        k = _column([own.top_k or vocabulary_size for own in limits], scaled).long()
        largest = scaled.topk(max(counts), dim=-1).values
        least = largest.gather(1, k.clamp(max=max(counts)) - 1)
        room = k - (scaled > least).sum(dim=-1, keepdim=True)  # for equals of the least, lower ids
        equal = scaled == least
        kept = (scaled > least) | (equal & (equal.cumsum(dim=-1) <= room)) | (k >= vocabulary_size)
        scaled, weights = scaled.where(kept, -torch.inf), weights.where(kept, 0.0)
    min_p = _column([own.min_p for own in limits], scaled)
    return scaled.where(weights >= min_p * LIKELIEST, -torch.inf), weights


def _in_nucleus(
    ids: Tensor, left: Tensor, weights: Tensor, limits: Sequence[SamplingParameters]
) -> Tensor:
    """Return whether top-p keeps tokens: what is ahead of each does not reach it: [rows, n].

    Args:
        ids: [rows, n].
        left: [rows, vocab], what top-k and min-p left.
        weights: [rows, vocab], likelihoods of what top-k left.
        limits: one per row.
    """
    top_p = _column([own.top_p for own in limits], left)
    enough = top_p * weights.sum(dim=-1, keepdim=True, dtype=torch.float64)
    every = torch.arange(left.shape[1], device=left.device)
    ahead = []
    for token in torch.split(ids, 1, dim=-1):
        value = left.gather(1, token)
        larger = (left > value) | ((left == value) & (every < token))
        ahead.append(weights.where(larger, 0.0).sum(dim=-1, keepdim=True, dtype=torch.float64))
    return (torch.cat(ahead, dim=-1) < enough) | (top_p == 1.0)


def choose_exactly(
    logits: Tensor, parameters: Sequence[SamplingParameters], positions: Sequence[int]
) -> Tensor:
    """Return every row's token, from every token's exact score; arguments as in `choose`."""
    keys = _keys(parameters, positions, logits.device)
    bits = noise_bits(torch.arange(logits.shape[1], device=logits.device)[None], keys)
    return (transform(logits, parameters).double() + gumbel(bits)).argmax(dim=-1)


def transform(logits: Tensor, parameters: Sequence[SamplingParameters]) -> Tensor:
    """Return logits over temperature, −inf where a token is excluded: [rows, vocab] float32.

    Args:
        logits: [rows, vocab] float32.
        parameters: one per row, temperature above 0.
    """
    scaled = logits / _column([own.temperature for own in parameters], logits).float()
    limited = [row for row, own in enumerate(parameters) if not own.keeps_all]
    if limited:
        rows = torch.tensor(limited, device=logits.device)
        scaled[rows] = _exclude(scaled[rows], [parameters[row] for row in limited])
    return scaled


def _exclude(scaled: Tensor, parameters: Sequence[SamplingParameters]) -> Tensor:
    vocabulary_size = scaled.shape[1]
    values, ids = scaled.sort(dim=-1, descending=True, stable=True)
    top_k = _column([own.top_k or vocabulary_size for own in parameters], scaled)
    top_p = _column([own.top_p for own in parameters], scaled)
    min_p = _column([own.min_p for own in parameters], scaled)
    kept = torch.arange(vocabulary_size, device=scaled.device) < top_k
    weights = likelihoods(values, values[:, :1]).double()
    reached = weights.where(kept, 0.0).cumsum(dim=-1)
    before = reached - weights
    kept &= (before < top_p * reached[:, -1:]) | (top_p == 1.0)
    kept &= weights >= min_p * LIKELIEST
    values = values.where(kept, -torch.inf)
    return torch.empty_like(scaled).scatter_(1, ids, values)


def likelihoods(logits: Tensor, peaks: Tensor) -> Tensor:
    """Return `likelihood.likelihoods` of every row, operation by operation.

    Args:
        logits: [rows, n] float32.
        peaks: [rows, 1], the greatest of each row.
    """
    x = (logits - peaks).clamp(min=-LOWEST_NATS) * float(LOG2_E)
    n = x.round()
    f = x - n
    series = f * float(EXP2_TERMS[-1])
    for coefficient in EXP2_TERMS[-2:0:-1]:
        series = (series + float(coefficient)) * f
    power = ((n.int() + (_EXPONENT_BIAS + LIKELIEST_BITS)) << _MANTISSA_BITS).view(torch.float32)
    return ((series + float(EXP2_TERMS[0])) * power).round()


def gumbel(bits: Tensor) -> Tensor:
    """Return `noise.gumbel` of the bits, float64, operation by operation."""
    return -_log(-_log((bits.double() + 0.5) * 2.0**-32))


def _log(x: Tensor) -> Tensor:
    mantissa, exponent = torch.frexp(x)
    low = mantissa < SQRT_HALF
    f = torch.where(low, mantissa * 2.0, mantissa) - 1.0
    s = f / (f + 2.0)
    z = s * s
    series = torch.full_like(z, ATANH_TERMS[-1])
    for term in reversed(ATANH_TERMS[:-1]):
        series = series * z + term
    return (exponent - low.int()).double() * LN_2 + 2.0 * s * series


def _keys(
    parameters: Sequence[SamplingParameters], positions: Sequence[int], device: torch.device
) -> Tensor:
    """Return the two words that key each row's noise: [rows, 2] int64."""
    pairs = zip(parameters, positions, strict=True)
    words = [position_words(own.seed, position, Stream.COUPLED)[:2] for own, position in pairs]
    return torch.tensor(words).to(device)


def noise_bits(ids: Tensor, keys: Tensor) -> Tensor:
    """Return `CoupledNoise.bits` of the ids, in 0 … 2^32 − 1: [rows, n] int64."""
    bits = ids
    for word in keys[:, :1], keys[:, 1:]:
        bits = bits ^ word
        for shift, multiplier in _MIXER:
            # A product's low half is right though it wraps.
            bits = ((bits ^ (bits >> shift)) * multiplier) & _MASK32
        bits = bits ^ (bits >> 16)
    return bits


def noise_bits32(keys: Tensor, vocabulary_size: int) -> Tensor:
    """Return the bits of all ids, two's complement: [rows, vocab] int32, half of the memory."""
    bits = torch.arange(vocabulary_size, device=keys.device, dtype=torch.int32)[None]
    for word in keys[:, :1].int(), keys[:, 1:].int():
        bits = bits ^ word
        for shift, multiplier in _MIXER:
            bits = (bits ^ _shifted(bits, shift)) * _signed(multiplier)
        bits = bits ^ _shifted(bits, 16)
    return bits


def _shifted(bits: Tensor, by: int) -> Tensor:
    return (bits >> by) & (_MASK32 >> by)


def _signed(word: int) -> int:
    return word - (word >> 31 << 32)


def near_gumbel(bits: Tensor) -> Tensor:
    """Return `gumbel` of int32 bits within 1e-4: float32."""
    upper = bits < 0
    # Of the upper half the distance from 1 is kept, which single precision would lose.
    share = (torch.where(upper, ~bits, bits).float() + 0.5) * 2.0**-32
    return -torch.where(upper, torch.log1p(-share), torch.log(share)).neg_().log()


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    """Return [rows, 1] float64 on the device."""
    return torch.tensor(values, dtype=torch.float64).to(like.device)[:, None]
