"""The two hot frames, draft and verdict: fixed little-endian headers, then packed token ids.

Exact sizes are checked before anything is allocated. A frame says its own header's length, so that
a later version may append header fields which this one skips (wire rules W-FRAME-*). This module
knows nothing of sessions: `sdk.session` and `edge_server.sessions` decide what a frame means.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from sdk.errors import MalformedFrameError
from sdk.model.proposal import Proposal
from sdk.protocol.ids import pack_ids, packed_bytes, unpack_ids
from sdk.protocol.proposals import pack_proposals, unpack_proposals

__all__ = [
    "MAX_DRAFT_TOKENS",
    "MAX_VERDICT_TOKENS",
    "VERSION",
    "Draft",
    "End",
    "Mode",
    "Verdict",
    "decode_draft",
    "decode_verdict",
    "encode_draft",
    "encode_verdict",
]

VERSION: Final = 1
MAX_DRAFT_TOKENS: Final = 64
MAX_VERDICT_TOKENS: Final = 255

_KIND_DRAFT: Final = 1
_KIND_VERDICT: Final = 2

_PREFIX: Final = struct.Struct("<BBBB")  # version, kind, header bytes, flags
# + session, round, position, sent_us, draft time in 0.1 ms, count, bits per id
_DRAFT: Final = struct.Struct("<BBBBQIIIHBB")
# + session, round, position, echo_us, queue_us, compute_us, accepted, count, bits per id,
#   grant length, grant mode, end, grant share, grant support
_VERDICT: Final = struct.Struct("<BBBBQIIIIIBBBBBBHH")

_FLAG_RETRY: Final = 1
_FLAG_STREAM: Final = 2
_FLAG_PROPOSALS: Final = 4

_DRAFT_TIME_UNIT_S: Final = 1e-4
_SHARE_UNITS: Final = 0xFFFF


class Mode(IntEnum):
    """How drafts are verified."""

    GREEDY = 0
    COUPLED = 1
    RATIO = 2


class End(IntEnum):
    """Why a sequence has ended."""

    NO = 0
    STOP_TOKEN = 1
    MAX_TOKENS = 2
    CONTEXT_FULL = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """One round's draft, or a request for tokens that the server decodes alone.

    Attributes:
        session: random 64-bit id, chosen by the device.
        round: counts up by one with every new draft of the session; repeated in a retry.
        position: index in the whole sequence, prompt included, of the first drafted token.
        sent_us: the device's monotonic clock in µs, modulo 2^32; echoed in the verdict.
        draft_s: time spent on this draft, in [0, 6.5535] s, in steps of 0.1 ms.
        token_ids: the draft, at most MAX_DRAFT_TOKENS.
        id_bits: bits per id on the wire.
        credit: without a draft, how many tokens past `position` the server may decode alone.
        retry: whether an answer was overdue; asks for everything from `position` on.
        proposals: in ratio mode, the distribution that each drafted token was drawn from.
    """

    session: int
    round: int
    position: int
    sent_us: int
    draft_s: float
    token_ids: tuple[int, ...]
    id_bits: int
    credit: int = 0
    retry: bool = False
    proposals: tuple[Proposal, ...] = ()

    def __post_init__(self) -> None:
        if self.proposals:
            if len(self.proposals) != len(self.token_ids):
                raise ValueError("a draft has one proposal per token, or none")
            pairs = zip(self.token_ids, self.proposals, strict=True)
            if not all(token in proposal.token_ids for token, proposal in pairs):
                raise ValueError("a drafted token is not in its own proposal")
        if len(self.token_ids) > MAX_DRAFT_TOKENS:
            raise ValueError(f"a draft has at most {MAX_DRAFT_TOKENS} tokens")
        if self.credit and self.token_ids:
            raise ValueError("a frame carries either a draft or a credit")
        if not 0 <= self.credit <= MAX_VERDICT_TOKENS:
            raise ValueError(f"credit must be in [0, {MAX_VERDICT_TOKENS}], got {self.credit}")

    @property
    def highest_id(self) -> int:
        """The highest token id that the frame names; −1 where it names none."""
        proposed = (token for proposal in self.proposals for token in proposal.token_ids)
        return max((*self.token_ids, *proposed), default=-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the target says: from `position` on, the sequence is draft[:accepted] + token_ids.

    Attributes:
        accepted: length of the accepted prefix of this round's draft, at most MAX_DRAFT_TOKENS.
            With 0, the statement holds whatever the round.
        token_ids: the target's own tokens behind the accepted prefix; usually one.
        echo_us: `sent_us` of the draft; 0 in a frame that answers none.
        queue_us: time the draft waited at the server, µs.
        compute_us: time of the verification pass, µs.
        grant_length: tokens to draft in the next round, at most MAX_DRAFT_TOKENS; 0: let the server
            decode alone.
        grant_share: granted part of the uplink, in (0, 1], in steps of 1/65535.
        grant_mode: how the next draft will be verified.
        grant_support: in ratio mode, how many tokens each uploaded distribution keeps.
        end: why the sequence ended with this verdict, or End.NO.
        stream: whether the server decoded this alone, ahead of the device.
    """

    session: int
    round: int
    position: int
    echo_us: int
    queue_us: int
    compute_us: int
    accepted: int
    token_ids: tuple[int, ...]
    id_bits: int
    grant_length: int
    grant_share: float = 1.0
    grant_mode: Mode = Mode.COUPLED
    grant_support: int = 0
    end: End = End.NO
    stream: bool = False

    def __post_init__(self) -> None:
        if len(self.token_ids) > MAX_VERDICT_TOKENS:
            raise ValueError(f"a verdict has at most {MAX_VERDICT_TOKENS} tokens")
        if max(self.accepted, self.grant_length) > MAX_DRAFT_TOKENS:
            raise ValueError(f"accepted and grant length are at most {MAX_DRAFT_TOKENS}")
        if not 0.0 < self.grant_share <= 1.0:
            raise ValueError(f"share must be in (0, 1], got {self.grant_share}")

    @property
    def next_position(self) -> int:
        """Length of the sequence, prompt included, after this verdict."""
        return self.position + self.accepted + len(self.token_ids)


def encode_draft(draft: Draft) -> bytes:
    """Return the frame of a draft: 28 bytes, the packed ids, and in ratio mode the proposals."""
    flags = _FLAG_RETRY * draft.retry | _FLAG_STREAM * (draft.credit > 0)
    flags |= _FLAG_PROPOSALS * bool(draft.proposals)
    header = _DRAFT.pack(
        VERSION,
        _KIND_DRAFT,
        _DRAFT.size,
        flags,
        draft.session,
        draft.round,
        draft.position,
        draft.sent_us,
        min(round(draft.draft_s / _DRAFT_TIME_UNIT_S), 0xFFFF),
        draft.credit or len(draft.token_ids),
        draft.id_bits,
    )
    frame = header + pack_ids(draft.token_ids, draft.id_bits)
    if draft.proposals:
        frame += pack_proposals(draft.proposals, id_bits=draft.id_bits)
    return frame


def decode_draft(frame: bytes) -> Draft:
    """Return the draft in a frame.

    Raises:
        MalformedFrameError: if it is not a draft frame of this version, whole and nothing more.
    """
    known_flags = _FLAG_RETRY | _FLAG_STREAM | _FLAG_PROPOSALS
    flags, body = _open_frame(frame, _KIND_DRAFT, _DRAFT, known_flags)
    session, round_, position, sent_us, time_units, count, id_bits = _DRAFT.unpack_from(frame)[4:]
    stream = bool(flags & _FLAG_STREAM)
    if (not stream and count > MAX_DRAFT_TOKENS) or (stream and count == 0):
        raise MalformedFrameError(f"draft frame: a count of {count} is not allowed")
    token_ids, proposals = _open_draft(
        body, 0 if stream else count, id_bits, with_proposals=bool(flags & _FLAG_PROPOSALS)
    )
    try:
        return Draft(
            session=session,
            round=round_,
            position=position,
            sent_us=sent_us,
            draft_s=time_units * _DRAFT_TIME_UNIT_S,
            token_ids=token_ids,
            id_bits=id_bits,
            credit=count if stream else 0,
            retry=bool(flags & _FLAG_RETRY),
            proposals=proposals,
        )
    except ValueError as error:
        raise MalformedFrameError(f"draft frame: {error}") from error


def _open_draft(
    body: memoryview, count: int, id_bits: int, *, with_proposals: bool
) -> tuple[tuple[int, ...], tuple[Proposal, ...]]:
    """Return what follows a draft's header: ids and proposals."""
    if not with_proposals:
        return unpack_ids(body, count, id_bits), ()
    if count == 0:
        raise MalformedFrameError("draft frame: proposals without a draft")
    if not 1 <= id_bits <= 32 or len(body) < packed_bytes(count, id_bits):
        raise MalformedFrameError("draft frame: its ids are cut off")
    ids_end = packed_bytes(count, id_bits)
    ids = unpack_ids(body[:ids_end], count, id_bits)
    return ids, unpack_proposals(body[ids_end:], count, id_bits=id_bits)


def encode_verdict(verdict: Verdict) -> bytes:
    """Return the frame of a verdict: 42 bytes and the packed ids."""
    header = _VERDICT.pack(
        VERSION,
        _KIND_VERDICT,
        _VERDICT.size,
        _FLAG_STREAM * verdict.stream,
        verdict.session,
        verdict.round,
        verdict.position,
        verdict.echo_us,
        min(verdict.queue_us, 0xFFFFFFFF),
        min(verdict.compute_us, 0xFFFFFFFF),
        verdict.accepted,
        len(verdict.token_ids),
        verdict.id_bits,
        verdict.grant_length,
        verdict.grant_mode,
        verdict.end,
        max(1, round(verdict.grant_share * _SHARE_UNITS)),
        verdict.grant_support,
    )
    return header + pack_ids(verdict.token_ids, verdict.id_bits)


def decode_verdict(frame: bytes) -> Verdict:
    """Return the verdict in a frame.

    Raises:
        MalformedFrameError: if it is not a verdict frame of this version, whole and nothing more.
    """
    flags, body = _open_frame(frame, _KIND_VERDICT, _VERDICT, _FLAG_STREAM)
    fields = _VERDICT.unpack_from(frame)[4:]
    session, round_, position, echo_us, queue_us, compute_us = fields[:6]
    accepted, count, id_bits, length, mode, end, share, support = fields[6:]
    if share == 0 or accepted > MAX_DRAFT_TOKENS or length > MAX_DRAFT_TOKENS:
        raise MalformedFrameError("verdict frame: share, accepted or grant length out of range")
    try:
        mode, end = Mode(mode), End(end)
    except ValueError as error:
        raise MalformedFrameError(f"verdict frame: {error}") from error
    return Verdict(
        session=session,
        round=round_,
        position=position,
        echo_us=echo_us,
        queue_us=queue_us,
        compute_us=compute_us,
        accepted=accepted,
        token_ids=unpack_ids(body, count, id_bits),
        id_bits=id_bits,
        grant_length=length,
        grant_share=share / _SHARE_UNITS,
        grant_mode=mode,
        grant_support=support,
        end=end,
        stream=bool(flags & _FLAG_STREAM),
    )


def _open_frame(
    frame: bytes, kind: int, header: struct.Struct, known_flags: int
) -> tuple[int, memoryview]:
    """Check prefix and header length; return (flags, everything behind the header)."""
    if len(frame) < header.size:
        raise MalformedFrameError(f"frame of {len(frame)} bytes is shorter than its header")
    version, found_kind, header_bytes, flags = _PREFIX.unpack_from(frame)
    if version != VERSION or found_kind != kind:
        raise MalformedFrameError(f"frame of version {version}, kind {found_kind} is not known")
    if not header.size <= header_bytes <= len(frame):
        raise MalformedFrameError(f"header length {header_bytes} does not fit the frame")
    if flags & ~known_flags:
        raise MalformedFrameError(f"unknown flags {flags:#x}")
    return flags, memoryview(frame)[header_bytes:]
