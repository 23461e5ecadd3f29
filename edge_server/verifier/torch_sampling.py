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

__all__ = ["choose", "gumbel", "likelihoods", "transform"]

_MASK32 = 0xFFFFFFFF
_EXPONENT_BIAS, _MANTISSA_BITS = 127, 23


def choose(
    logits: Tensor, parameters: Sequence[SamplingParameters], positions: Sequence[int]
) -> Tensor:
    """Return every row's token as `Sampler.choose` does: [rows] int64.

    Args:
        logits: [rows, vocab] float32.
        parameters: one per row, temperature above 0.
        positions: of the token to be drawn, one per row.
    """
    bits = _bits([own.seed for own in parameters], positions, logits)
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


def _bits(seeds: Sequence[int], positions: Sequence[int], like: Tensor) -> Tensor:
    """Return `CoupledNoise.bits` of every row: [rows, vocab] int64, in 0 … 2^32 − 1."""
    pairs = zip(seeds, positions, strict=True)
    words = [position_words(seed, position, Stream.COUPLED)[:2] for seed, position in pairs]
    keys = torch.tensor(words).to(like.device)  # [rows, 2]
    bits = torch.arange(like.shape[1], device=like.device)[None] ^ keys[:, :1]
    return _mix(_mix(bits) ^ keys[:, 1:])


def _mix(x: Tensor) -> Tensor:
    """Return lowbias32 of 32-bit numbers in 64: a product's low half is right though it wraps."""
    for shift, multiplier in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = ((x ^ (x >> shift)) * multiplier) & _MASK32
    return x ^ (x >> 16)


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    """Return [rows, 1] float64 on the device."""
    return torch.tensor(values, dtype=torch.float64).to(like.device)[:, None]
