"""The hot frames: W-FRAME-*, W-DRAFT-*, W-VERDICT-*."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdk.errors import MalformedFrameError
from sdk.protocol import (
    MAX_DRAFT_TOKENS,
    MAX_VERDICT_TOKENS,
    Draft,
    End,
    Mode,
    Verdict,
    decode_draft,
    decode_verdict,
    encode_draft,
    encode_verdict,
)

SESSION = 0x0123456789ABCDEF
DRAFT = Draft(
    session=SESSION,
    round=7,
    position=1000,
    sent_us=0xDEADBEEF,
    draft_s=0.0123,
    token_ids=(1, 4095, 2748),
    id_bits=12,
)
CREDIT = Draft(
    session=SESSION,
    round=8,
    position=1004,
    sent_us=1,
    draft_s=0.0,
    token_ids=(),
    id_bits=12,
    credit=32,
    retry=True,
)
VERDICT = Verdict(
    session=SESSION,
    round=7,
    position=1000,
    echo_us=0xDEADBEEF,
    queue_us=250,
    compute_us=8000,
    accepted=2,
    token_ids=(99,),
    id_bits=12,
    grant_length=5,
    grant_share=0x4000 / 0xFFFF,
)
STREAM = Verdict(
    session=SESSION,
    round=8,
    position=1003,
    echo_us=0,
    queue_us=0,
    compute_us=8000,
    accepted=0,
    token_ids=(5, 6),
    id_bits=12,
    grant_length=0,
    grant_mode=Mode.GREEDY,
    end=End.STOP_TOKEN,
    stream=True,
)

GOLDEN: dict[str, tuple[Any, str]] = {
    "draft": (DRAFT, "01011c00efcdab896745230107000000e8030000efbeadde7b00030c01f0ffbc0a"),
    "credit": (CREDIT, "01011c03efcdab896745230108000000ec030000010000000000200c"),
    "verdict": (
        VERDICT,
        "01022a00efcdab896745230107000000e8030000efbeaddefa000000401f000002010c050100004000006300",
    ),
    "stream": (
        STREAM,
        "01022a02efcdab896745230108000000eb0300000000000000000000401f000000020c00"
        "0001ffff0000056000",
    ),
}
FRAMES = {name: bytes.fromhex(text) for name, (_, text) in GOLDEN.items()}

Decoder = Callable[[bytes], Any]


def encode(frame: Draft | Verdict) -> bytes:
    return encode_draft(frame) if isinstance(frame, Draft) else encode_verdict(frame)


def decoder_of(name: str) -> Decoder:
    return decode_draft if name in {"draft", "credit"} else decode_verdict


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_bytes(name: str) -> None:
    """W-FRAME-1, W-DRAFT-1, W-DRAFT-3, W-DRAFT-4, W-VERDICT-1, W-VERDICT-3, W-VERDICT-4."""
    frame, text = GOLDEN[name]
    assert encode(frame).hex() == text
    assert decoder_of(name)(FRAMES[name]) == frame


def sized_ids(most: int) -> st.SearchStrategy[tuple[int, tuple[int, ...]]]:
    return st.integers(1, 32).flatmap(
        lambda bits: st.tuples(
            st.just(bits), st.lists(st.integers(0, 2**bits - 1), max_size=most).map(tuple)
        )
    )


U16, U32, U64 = (st.integers(0, 2**bits - 1) for bits in (16, 32, 64))


@st.composite
def drafts(draw: st.DrawFn) -> Draft:
    id_bits, token_ids = draw(sized_ids(MAX_DRAFT_TOKENS))
    return Draft(
        session=draw(U64),
        round=draw(U32),
        position=draw(U32),
        sent_us=draw(U32),
        draft_s=draw(U16) * 1e-4,
        token_ids=token_ids,
        id_bits=id_bits,
        credit=0 if token_ids else draw(st.integers(0, 255)),
        retry=draw(st.booleans()),
    )


@st.composite
def verdicts(draw: st.DrawFn) -> Verdict:
    id_bits, token_ids = draw(sized_ids(MAX_VERDICT_TOKENS))
    return Verdict(
        session=draw(U64),
        round=draw(U32),
        position=draw(U32),
        echo_us=draw(U32),
        queue_us=draw(U32),
        compute_us=draw(U32),
        accepted=draw(st.integers(0, MAX_DRAFT_TOKENS)),
        token_ids=token_ids,
        id_bits=id_bits,
        grant_length=draw(st.integers(0, MAX_DRAFT_TOKENS)),
        grant_share=draw(st.integers(1, 0xFFFF)) / 0xFFFF,
        grant_mode=draw(st.sampled_from(Mode)),
        grant_support=draw(U16),
        end=draw(st.sampled_from(End)),
        stream=draw(st.booleans()),
    )


@given(draft=drafts())
def test_a_draft_survives_the_wire(draft: Draft) -> None:
    """W-DRAFT-1, W-DRAFT-2, W-DRAFT-3."""
    assert decode_draft(encode_draft(draft)) == draft


@given(verdict=verdicts())
def test_a_verdict_survives_the_wire(verdict: Verdict) -> None:
    """W-VERDICT-1."""
    assert decode_verdict(encode_verdict(verdict)) == verdict


def test_a_verdict_ends_behind_what_it_states() -> None:
    """W-VERDICT-2."""
    assert VERDICT.next_position == 1003
    assert STREAM.next_position == 1005


def test_durations_saturate() -> None:
    """W-DRAFT-1, W-VERDICT-1."""
    slow = dataclasses.replace(DRAFT, draft_s=1e6)
    assert decode_draft(encode_draft(slow)).draft_s == pytest.approx(6.5535)
    late = decode_verdict(encode_verdict(dataclasses.replace(VERDICT, queue_us=2**40)))
    assert late.queue_us == 2**32 - 1


def test_the_smallest_share_stays_above_zero() -> None:
    """W-VERDICT-1."""
    thin = dataclasses.replace(VERDICT, grant_share=1e-9)
    assert decode_verdict(encode_verdict(thin)).grant_share == 1 / 0xFFFF


def test_sixteen_tokens_of_12_bits_cost_under_four_bytes_each() -> None:
    draft = dataclasses.replace(DRAFT, token_ids=tuple(range(4000, 4016)))
    assert len(encode_draft(draft)) == 28 + 24
    assert len(encode_draft(draft)) / 16 < 4


@pytest.mark.parametrize("name", GOLDEN)
def test_every_truncation_and_every_extension_is_malformed(name: str) -> None:
    """W-FRAME-2."""
    whole = FRAMES[name]
    for length in range(len(whole)):
        with pytest.raises(MalformedFrameError):
            decoder_of(name)(whole[:length])
    for extra in (b"\0", b"\xff", bytes(200)):
        with pytest.raises(MalformedFrameError):
            decoder_of(name)(whole + extra)


def decode_or_refuse(decoder: Decoder, frame: bytes) -> None:
    """Let nothing but MalformedFrameError out; what is understood must encode again."""
    try:
        decoded = decoder(frame)
    except MalformedFrameError:
        return
    assert decoder(encode(decoded)) == decoded


@given(frame=st.binary(max_size=400))
def test_random_bytes_raise_nothing_but_malformed(frame: bytes) -> None:
    """W-FRAME-2, W-FRAME-5."""
    for decoder in (decode_draft, decode_verdict):
        decode_or_refuse(decoder, frame)


@given(name=st.sampled_from(sorted(GOLDEN)), bits=st.sets(st.integers(0, 33 * 8), max_size=6))
def test_flipped_bits_raise_nothing_but_malformed(name: str, bits: set[int]) -> None:
    """W-FRAME-2, W-FRAME-5."""
    frame = bytearray(FRAMES[name])
    for bit in bits:
        frame[bit // 8 % len(frame)] ^= 1 << bit % 8
    decode_or_refuse(decoder_of(name), bytes(frame))


@given(header=st.binary(min_size=24, max_size=38), body=st.binary(max_size=64))
def test_random_fields_raise_nothing_but_malformed(header: bytes, body: bytes) -> None:
    """W-FRAME-2, W-FRAME-5: past the prefix check, into the fields."""
    decode_or_refuse(decode_draft, bytes((1, 1, 28, header[0] & 3)) + header[:24] + body)
    decode_or_refuse(decode_verdict, bytes((1, 2, 42, 0)) + header + body)


@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.parametrize("appended", [1, 5, 200])
def test_appended_header_fields_are_skipped(name: str, appended: int) -> None:
    """W-FRAME-3."""
    frame, _ = GOLDEN[name]
    whole = FRAMES[name]
    size = whole[2]
    longer = bytearray(whole[:size] + b"\xaa" * appended + whole[size:])
    longer[2] = size + appended
    assert decoder_of(name)(bytes(longer)) == frame


def mutated(name: str, offset: int, value: int) -> bytes:
    frame = bytearray(FRAMES[name])
    frame[offset] = value
    return bytes(frame)


@pytest.mark.parametrize(
    ("name", "offset", "value"),
    [
        ("draft", 0, 0),  # version
        ("draft", 0, 2),
        ("draft", 1, 2),  # kind
        ("verdict", 1, 1),
        ("draft", 2, 27),  # header bytes
        ("draft", 2, 0),
        ("draft", 2, 255),
        ("verdict", 2, 41),
        ("draft", 3, 4),  # flags
        ("draft", 3, 128),
        ("verdict", 3, 1),  # retry means nothing here
        ("draft", 26, 2),  # count
        ("draft", 26, 65),
        ("draft", 26, 255),
        ("credit", 26, 0),
        ("credit", 3, 0),  # a count of 32 without ids
        ("draft", 27, 0),  # bits per id
        ("draft", 27, 33),
        ("credit", 27, 0),
        ("credit", 27, 33),
        ("draft", 32, 0x1A),  # padding behind 36 bits
        ("verdict", 32, 65),  # accepted
        ("verdict", 33, 2),  # count
        ("verdict", 34, 0),  # bits per id
        ("verdict", 35, 65),  # grant length
        ("verdict", 36, 3),  # grant mode
        ("verdict", 37, 4),  # end
        ("verdict", 43, 0x10),  # padding behind 12 bits
    ],
)
def test_each_field_out_of_range_is_malformed(name: str, offset: int, value: int) -> None:
    """W-FRAME-1, W-FRAME-2, W-FRAME-4, W-DRAFT-1, W-VERDICT-1, W-IDS-2."""
    assert mutated(name, offset, value) != FRAMES[name]
    with pytest.raises(MalformedFrameError):
        decoder_of(name)(mutated(name, offset, value))


def test_a_header_shorter_than_the_tables_is_malformed_even_where_the_size_fits() -> None:
    """W-FRAME-3."""
    frame = bytearray(FRAMES["draft"][:-1])  # three ids would be read from offset 27 on
    frame[2] = 27
    with pytest.raises(MalformedFrameError, match="header length"):
        decode_draft(bytes(frame))


def test_a_share_of_zero_is_malformed() -> None:
    """W-VERDICT-1."""
    frame = bytearray(FRAMES["verdict"])
    frame[38:40] = b"\0\0"
    with pytest.raises(MalformedFrameError, match="share"):
        decode_verdict(bytes(frame))


@pytest.mark.parametrize("count", [65, 255])
def test_an_oversize_count_is_refused_even_with_its_ids(count: int) -> None:
    """W-FRAME-2, W-DRAFT-1."""
    header = bytearray(FRAMES["draft"][:28])
    header[26:28] = bytes((count, 32))
    with pytest.raises(MalformedFrameError, match=f"count of {count}"):
        decode_draft(bytes(header) + bytes(count * 4))


@pytest.mark.parametrize(
    "changes",
    [
        {"token_ids": tuple(range(65))},
        {"credit": 1},  # beside ids
        {"token_ids": (), "credit": 256},
        {"token_ids": (), "credit": -1},
    ],
)
def test_a_draft_no_peer_would_take_cannot_be_made(changes: dict[str, Any]) -> None:
    """W-DRAFT-1, W-DRAFT-3."""
    with pytest.raises(ValueError, match=r"draft|credit"):
        dataclasses.replace(DRAFT, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"token_ids": tuple(range(256))},
        {"accepted": 65},
        {"grant_length": 65},
        {"grant_share": 0.0},
        {"grant_share": 1.01},
        {"grant_share": float("nan")},
    ],
)
def test_a_verdict_no_peer_would_take_cannot_be_made(changes: dict[str, Any]) -> None:
    """W-VERDICT-1."""
    with pytest.raises(ValueError, match=r"verdict|accepted|share"):
        dataclasses.replace(VERDICT, **changes)
