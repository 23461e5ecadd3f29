"""Uploaded distributions in draft frames (W-DRAFT-5, W-DRAFT-6)."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdk.errors import MalformedFrameError
from sdk.model.proposal import Proposal
from sdk.protocol import Draft, decode_draft, encode_draft
from sdk.protocol.proposals import proposal_bytes

DRAFT = Draft(
    session=0x0123456789ABCDEF,
    round=7,
    position=1000,
    sent_us=0xDEADBEEF,
    draft_s=0.0123,
    token_ids=(1, 4095),
    id_bits=12,
    proposals=(
        Proposal(token_ids=(1, 2), weights=(256, 3)),
        Proposal(token_ids=(4095,), weights=(256,)),
    ),
)
GOLDEN = (
    "01011c04efcdab896745230107000000e8030000efbeadde7b00020c"  # header, flag bit 2
    "01f0ff"  # ids 1, 4095
    "08"  # bits per weight
    "02000100"  # supports 2, 1
    "012000ff0f"  # ids 1, 2, 4095
    "ff02ff"  # weights less one: 255, 2, 255
)


def test_w_draft_5_golden_bytes() -> None:
    assert encode_draft(DRAFT).hex() == GOLDEN
    assert decode_draft(bytes.fromhex(GOLDEN)) == DRAFT


@st.composite
def drafts(draw: st.DrawFn) -> Draft:
    proposals = []
    for _ in range(draw(st.integers(1, 8))):
        ids = draw(st.lists(st.integers(0, 4095), min_size=1, max_size=9, unique=True))
        sizes = st.lists(st.integers(1, 1 << 16), min_size=len(ids), max_size=len(ids))
        proposals.append(Proposal(token_ids=tuple(ids), weights=tuple(draw(sizes))))
    tokens = tuple(draw(st.sampled_from(proposal.token_ids)) for proposal in proposals)
    return replace(DRAFT, token_ids=tokens, proposals=tuple(proposals))


@given(drafts())
def test_w_draft_5_round_trip_and_size(draft: Draft) -> None:
    frame = encode_draft(draft)
    assert decode_draft(frame) == draft
    weight_bits = max(w - 1 for p in draft.proposals for w in p.weights).bit_length() or 1
    supports = [len(proposal.token_ids) for proposal in draft.proposals]
    own = proposal_bytes(supports, id_bits=12, weight_bits=weight_bits)
    assert len(frame) == len(encode_draft(replace(draft, proposals=()))) + own


@given(drafts(), st.data())
def test_w_draft_5_cut_or_changed_bytes_are_malformed_or_a_draft(
    draft: Draft, data: st.DataObject
) -> None:
    frame = bytearray(encode_draft(draft))
    with pytest.raises(MalformedFrameError):
        decode_draft(bytes(frame[: data.draw(st.integers(0, len(frame) - 1))]))
    frame[data.draw(st.integers(0, len(frame) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(MalformedFrameError):
        decode_draft(bytes(frame))


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (31, 0),  # no bits per weight
        (31, 17),  # too many
        (32, 0),  # an empty support
        (33, 5),  # a support beyond 1,024
        (36, 2),  # the drafted token is in no support
        (37, 0x10),  # an id twice
    ],
)
def test_w_draft_5_what_is_no_distribution_is_malformed(offset: int, value: int) -> None:
    frame = bytearray.fromhex(GOLDEN)
    frame[offset] = value
    with pytest.raises(MalformedFrameError):
        decode_draft(bytes(frame))


def test_w_draft_5_proposals_without_a_draft_are_malformed() -> None:
    empty = encode_draft(replace(DRAFT, token_ids=(), proposals=()))
    with pytest.raises(MalformedFrameError):
        decode_draft(empty[:3] + b"\x04" + empty[4:] + b"\x08")


@pytest.mark.parametrize(("u", "token"), [(0.0001, 1), (0.987, 1), (0.9885, 2), (0.9999, 2)])
def test_w_draft_6_a_token_is_drawn_from_the_weights(u: float, token: int) -> None:
    assert DRAFT.proposals[0].draw(u) == token  # 256 of 259 for id 1
