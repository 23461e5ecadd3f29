"""The target's own token of every row of a pass, chosen where the logits are.

Greedy and coupled rows are chosen on the device, with the very bits of `sdk.model.sampling` and
`sdk.model.noise`: their noise is integer mixing and correctly rounded operations, in an order that
is kept here. Rows that need a maths library on the way to their choice (top-p, min-p, the ratio
tests) are not: an exponential's last bit differs between machines. Their logits go to the host, in
the same copy as the others' tokens. Knows nothing of sessions or drafts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge_server.verifier.acceptance import Choice
from sdk.model.noise import ATANH_TERMS, LN_2, SQRT_HALF, Stream, position_words

__all__ = ["choose_rows"]

_MASK32 = 0xFFFFFFFF
_COUPLED_AT_ONCE = 32  # rows: the noise of each takes some 64-bit numbers per token


def choose_rows(
    logits: Tensor, choices: Sequence[Choice | None]
) -> tuple[list[int], dict[int, NDArray[np.float32]]]:
    """Return every row's token, and the logits of rows without a choice, by one copy to the host.

    Args:
        logits: [rows, vocab], on any device.
        choices: one per row; None for a row whose logits are wanted instead, with token −1.
    """
    rows = logits.float()
    tokens = rows.argmax(dim=-1)
    coupled = [
        (row, choice)
        for row, choice in enumerate(choices)
        if choice and not choice.parameters.greedy
    ]
    for first in range(0, len(coupled), _COUPLED_AT_ONCE):
        part = coupled[first : first + _COUPLED_AT_ONCE]
        index = torch.tensor([row for row, _ in part], device=rows.device)
        tokens[index] = _coupled(rows[index], [choice for _, choice in part])
    wanted = [row for row, choice in enumerate(choices) if choice is None]
    sent = tokens.int().view(torch.float32)  # the same bits: a copy has one type
    if wanted:
        sent = torch.cat([sent, rows[torch.tensor(wanted, device=rows.device)].flatten()])
    received: NDArray[np.float32] = sent.cpu().numpy()
    found = received[: len(choices)].view(np.int32).tolist()
    left = received[len(choices) :].reshape(len(wanted), rows.shape[1])
    for row in wanted:
        found[row] = -1
    return found, dict(zip(wanted, left, strict=True))


def _coupled(rows: Tensor, choices: Sequence[Choice]) -> Tensor:
    """Return argmax(logits / temperature + noise), top-k apart; the lowest id among equals."""
    device = rows.device
    temperatures = torch.tensor([choice.parameters.temperature for choice in choices])
    scaled = rows / temperatures.to(device)[:, None]
    scores = scaled.double() + gumbel(_bits(choices, rows.shape[1], device))
    for row, choice in enumerate(choices):
        if 0 < choice.parameters.top_k < rows.shape[1]:
            ids = scaled[row].sort(descending=True, stable=True).indices
            scores[row, ids[choice.parameters.top_k :]] = -torch.inf
    return scores.argmax(dim=-1)


def _bits(choices: Sequence[Choice], vocabulary_size: int, device: torch.device) -> Tensor:
    """Return `CoupledNoise.bits` of every row: [rows, vocab] int64, in 0 … 2^32 − 1."""
    words = [
        position_words(choice.parameters.seed, choice.position, Stream.COUPLED)[:2]
        for choice in choices
    ]
    keys = torch.tensor(words).to(device)  # [rows, 2]
    bits = torch.arange(vocabulary_size, device=device)[None] ^ keys[:, :1]
    return _mix(_mix(bits) ^ keys[:, 1:])


def _mix(x: Tensor) -> Tensor:
    """Return lowbias32 of 32-bit numbers in 64: a product's low half is right though it wraps."""
    for shift, multiplier in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = ((x ^ (x >> shift)) * multiplier) & _MASK32
    return x ^ (x >> 16)


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
