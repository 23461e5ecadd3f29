"""Uploaded distributions on the wire: sizes, ids, weights, packed (wire rule W-DRAFT-5)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from sdk.errors import MalformedFrameError
from sdk.model.proposal import MAX_SUPPORT, MAX_WEIGHT_BITS, Proposal
from sdk.protocol.ids import pack_ids, packed_bytes, unpack_ids

__all__ = ["pack_proposals", "proposal_bytes", "unpack_proposals"]

_BITS: Final = struct.Struct("<B")  # bits per weight


def proposal_bytes(supports: Sequence[int], *, id_bits: int, weight_bits: int) -> int:
    """Return what proposals of these supports add to a draft frame."""
    sizes, total = 2 * len(supports), sum(supports)
    return _BITS.size + sizes + packed_bytes(total, id_bits) + packed_bytes(total, weight_bits)


def pack_proposals(proposals: Sequence[Proposal], *, id_bits: int) -> bytes:
    """Pack one proposal per drafted token; weights w travel as w − 1."""
    ids = [token for proposal in proposals for token in proposal.token_ids]
    weights = [weight - 1 for proposal in proposals for weight in proposal.weights]
    weight_bits = max(max(weights).bit_length(), 1)
    sizes = struct.pack(f"<{len(proposals)}H", *(len(p.token_ids) for p in proposals))
    packed = pack_ids(ids, id_bits) + pack_ids(weights, weight_bits)
    return _BITS.pack(weight_bits) + sizes + packed


def unpack_proposals(body: memoryview, count: int, *, id_bits: int) -> tuple[Proposal, ...]:
    """Unpack `count` proposals that fill `body` to its end.

    Raises:
        MalformedFrameError: if they do not, or are no distributions.
    """
    head = _BITS.size + 2 * count
    if len(body) < head:
        raise MalformedFrameError("draft frame: the sizes of its proposals are cut off")
    (weight_bits,) = _BITS.unpack_from(body)
    supports = struct.unpack_from(f"<{count}H", body, _BITS.size)
    if not 1 <= weight_bits <= MAX_WEIGHT_BITS or not all(1 <= m <= MAX_SUPPORT for m in supports):
        raise MalformedFrameError("draft frame: a proposal's size or weight bits out of range")
    expected = proposal_bytes(supports, id_bits=id_bits, weight_bits=weight_bits)
    if len(body) != expected:
        raise MalformedFrameError(f"draft frame: {len(body)} bytes of proposals, not {expected}")
    total = sum(supports)
    ids_end = head + packed_bytes(total, id_bits)
    ids = unpack_ids(body[head:ids_end], total, id_bits)
    weights = unpack_ids(body[ids_end:], total, weight_bits)
    return _split(ids, weights, supports)


def _split(
    ids: tuple[int, ...], weights: tuple[int, ...], supports: Sequence[int]
) -> tuple[Proposal, ...]:
    proposals, start = [], 0
    for support in supports:
        stop = start + support
        try:
            own = tuple(weight + 1 for weight in weights[start:stop])
            proposals.append(Proposal(token_ids=ids[start:stop], weights=own))
        except ValueError as error:
            raise MalformedFrameError(f"draft frame: {error}") from error
        start = stop
    return tuple(proposals)
