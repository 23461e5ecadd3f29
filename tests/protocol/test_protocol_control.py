"""Control frames: W-CONTROL-*, W-SAMPLE-1."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdk.errors import MalformedFrameError
from sdk.model.sampling import SamplingParameters
from sdk.protocol import (
    Close,
    Mode,
    Open,
    Opened,
    Reject,
    RejectCode,
    decode_control,
    encode_control,
)

OPEN = Open(
    session=0x0123456789ABCDEF,
    prompt=(1, 4095, 2748),
    committed=(7,),
    sampling=SamplingParameters(temperature=0.7, top_k=50, top_p=0.9, min_p=0.05, seed=42),
    mode=Mode.COUPLED,
    max_tokens=128,
    stop_ids=(0, 2),
    tokenizer="ab12",
    vocabulary_size=4096,
    boot=3,
)
OPENED = Opened(session=1, context_length=1024, target="cd34")
CLOSE = Close(session=2**64 - 1)
REJECT = Reject(session=1, round=9, code=RejectCode.POSITION, reason="beyond 12")

GOLDEN = {
    OPEN: b'{"v":1,"kind":"open","session":"0123456789abcdef","prompt":"AfD/vAo=",'
    b'"prompt_tokens":3,"committed":"BwA=","committed_tokens":1,"temperature":0.7,"top_k":50,"top_p":0.9,'
    b'"min_p":0.05,"seed":"000000000000002a","mode":1,"max_tokens":128,"stop_ids":[0,2],'
    b'"tokenizer":"ab12","vocabulary_size":4096,"boot":3}',
    OPENED: b'{"v":1,"kind":"opened","session":"0000000000000001","context_length":1024,'
    b'"target":"cd34"}',
    CLOSE: b'{"v":1,"kind":"close","session":"ffffffffffffffff"}',
    REJECT: b'{"v":1,"kind":"reject","session":"0000000000000001","round":9,"code":"position",'
    b'"reason":"beyond 12"}',
}


@pytest.mark.parametrize("frame", GOLDEN)
def test_golden_bytes(frame: Any) -> None:
    """W-CONTROL-1, W-CONTROL-2, W-CONTROL-3, W-CONTROL-4, W-CONTROL-5."""
    assert encode_control(frame) == GOLDEN[frame]
    assert decode_control(GOLDEN[frame]) == frame


U64 = st.integers(0, 2**64 - 1)


@st.composite
def opens(draw: st.DrawFn) -> Open:
    vocabulary_size = draw(st.integers(1, 1 << 24))
    ids = st.integers(0, vocabulary_size - 1)
    temperature = draw(st.just(0.0) | st.floats(0.001, 100.0))
    committed = tuple(draw(st.lists(ids, max_size=20)))
    return Open(
        session=draw(U64),
        prompt=tuple(draw(st.lists(ids, min_size=1, max_size=20))),
        committed=committed,
        sampling=SamplingParameters(
            temperature=temperature,
            top_k=draw(st.integers(0, 1 << 24)),
            top_p=draw(st.floats(0.0, 1.0, exclude_min=True)),
            min_p=draw(st.floats(0.0, 1.0, exclude_max=True)),
            seed=draw(U64),
        ),
        mode=Mode.GREEDY if temperature == 0 else draw(st.sampled_from([Mode.COUPLED, Mode.RATIO])),
        max_tokens=draw(st.integers(max(1, len(committed)), 1 << 20)),
        stop_ids=tuple(draw(st.lists(ids, max_size=16))),
        tokenizer=draw(st.from_regex(r"[0-9a-f]{1,128}", fullmatch=True)),
        vocabulary_size=vocabulary_size,
        boot=draw(st.integers(0, 2**63)),
    )


REJECTS = st.builds(
    Reject,
    session=U64,
    round=st.integers(0, 2**32 - 1),
    code=st.sampled_from(RejectCode),
    reason=st.text(),
)


@given(frame=opens() | REJECTS)
def test_a_control_frame_survives_the_wire(frame: Open | Reject) -> None:
    """W-CONTROL-2, W-CONTROL-5: every float, seed and id to the bit."""
    assert decode_control(encode_control(frame)) == frame


def test_unknown_fields_are_skipped() -> None:
    """W-CONTROL-1."""
    for frame in GOLDEN:
        fields = json.loads(GOLDEN[frame]) | {"later": [1, {"x": None}]}
        assert decode_control(json.dumps(fields).encode()) == frame


FIELDS = [(frame, name) for frame in GOLDEN for name in json.loads(GOLDEN[frame])]
WRONG_TYPES: list[Any] = [None, True, [], {}, [1.5], "", "\ud800", "\n", -1, 1.5, 2**70, 10**400]


def replaced(frame: Any, name: str, value: Any) -> bytes:
    return json.dumps(json.loads(GOLDEN[frame]) | {name: value}).encode()


@pytest.mark.parametrize(("frame", "name"), FIELDS)
def test_each_field_is_needed(frame: Any, name: str) -> None:
    """W-CONTROL-1."""
    fields = json.loads(GOLDEN[frame])
    del fields[name]
    with pytest.raises(MalformedFrameError) as caught:
        decode_control(json.dumps(fields).encode())
    assert {"v": "version", "kind": "kind"}.get(name, name) in str(caught.value)


@pytest.mark.parametrize(("frame", "name"), FIELDS)
def test_each_field_of_a_wrong_type_is_malformed(frame: Any, name: str) -> None:
    """W-CONTROL-1: only `reason` takes any text, only a number takes 1.5."""
    for value in WRONG_TYPES:
        allowed = (name == "reason" and isinstance(value, str)) or (
            name == "stop_ids" and value == []
        )
        if allowed or (name == "temperature" and value == 1.5):
            assert decode_control(replaced(frame, name, value))
            continue
        with pytest.raises(MalformedFrameError):
            decode_control(replaced(frame, name, value))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("v", 2),
        ("v", 1.0),
        ("kind", "opener"),
        ("kind", ["open"]),
        ("session", "0123456789ABCDEF"),
        ("session", "0123456789abcde"),
        ("session", "0123456789abcdef0"),
        ("session", "0x23456789abcdef"),
        ("session", " 123456789abcdef"),
        ("seed", "-000000000000001"),
        ("prompt", "AfD/vAo"),  # no padding of base64
        ("prompt", "AfD/vAo= "),
        ("prompt", "é" * 8),
        ("prompt", "AfD/vPo="),  # padding bits of the ids
        ("prompt", "AfD/"),
        ("prompt_tokens", 0),
        ("prompt_tokens", 2),
        ("prompt_tokens", 4),
        ("committed_tokens", 2),
        ("temperature", 0),  # does not fit the mode
        ("temperature", 1e-4),
        ("temperature", 100.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", "1"),
        ("top_k", -1),
        ("top_k", 1.0),
        ("top_k", (1 << 24) + 1),
        ("top_p", 0),
        ("top_p", 1.01),
        ("top_p", float("nan")),
        ("min_p", 1),
        ("min_p", -0.01),
        ("min_p", float("nan")),
        ("mode", 0),  # does not fit the temperature
        ("mode", 3),
        ("mode", "1"),
        ("max_tokens", 0),
        ("max_tokens", (1 << 20) + 1),
        ("stop_ids", [4096]),
        ("stop_ids", [-1]),
        ("stop_ids", [True]),
        ("stop_ids", [1.0]),
        ("stop_ids", [0] * 17),
        ("stop_ids", "02"),
        ("tokenizer", "a" * 129),
        ("tokenizer", "\x1b[2J"),
        ("tokenizer", "é"),
        ("vocabulary_size", 0),
        ("vocabulary_size", 4095),  # an id of the prompt is beyond it
        ("vocabulary_size", 4097),  # 13 bits an id
        ("vocabulary_size", (1 << 24) + 1),
        ("boot", -1),
    ],
)
def test_each_field_of_open_out_of_range_is_malformed(name: str, value: Any) -> None:
    """W-CONTROL-1, W-CONTROL-2, W-SAMPLE-1."""
    with pytest.raises(MalformedFrameError):
        decode_control(replaced(OPEN, name, value))


def test_more_committed_tokens_than_allowed_are_malformed() -> None:
    """W-CONTROL-2."""
    fields = json.loads(GOLDEN[OPEN]) | {"committed": "AQAC", "committed_tokens": 2}
    assert decode_control(json.dumps(fields | {"max_tokens": 2}).encode())
    with pytest.raises(MalformedFrameError, match="committed"):
        decode_control(json.dumps(fields | {"max_tokens": 1}).encode())


@pytest.mark.parametrize(
    ("frame", "name", "value"),
    [
        (OPENED, "context_length", 0),
        (OPENED, "target", "x\n"),
        (REJECT, "round", -1),
        (REJECT, "round", 2**32),
        (REJECT, "code", "Position"),
        (REJECT, "code", "POSITION"),
    ],
)
def test_each_field_of_an_answer_out_of_range_is_malformed(
    frame: Any, name: str, value: Any
) -> None:
    """W-CONTROL-3, W-CONTROL-5."""
    with pytest.raises(MalformedFrameError):
        decode_control(replaced(frame, name, value))


def test_an_oversize_count_is_refused_before_allocation() -> None:
    """W-FRAME-2, W-CONTROL-2: 2^20 ids would unpack into 32 MB."""
    payload = replaced(OPEN, "prompt_tokens", 1 << 20)
    tracemalloc.start()
    try:
        with pytest.raises(MalformedFrameError, match="prompt"):
            decode_control(payload)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("frame", GOLDEN)
def test_every_truncation_is_malformed(frame: Any) -> None:
    """W-CONTROL-1."""
    payload = GOLDEN[frame]
    for length in range(len(payload)):
        with pytest.raises(MalformedFrameError):
            decode_control(payload[:length])


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)


@given(field=st.sampled_from(FIELDS), value=JSON_VALUES)
def test_any_value_in_any_field_raises_nothing_but_malformed(
    field: tuple[Any, str], value: Any
) -> None:
    """W-CONTROL-1: what is understood must encode again."""
    decode_or_refuse(replaced(*field, value))


@given(payload=st.binary(max_size=64) | JSON_VALUES.map(lambda value: json.dumps(value).encode()))
def test_random_payloads_raise_nothing_but_malformed(payload: bytes) -> None:
    """W-CONTROL-1, W-FRAME-5."""
    decode_or_refuse(payload)


@pytest.mark.parametrize(
    "payload", [b"[" * 100_000, b'{"v":1' * 5_000, b"\xff\xfe{}", b"1" * 5_000]
)
def test_nested_and_foreign_payloads_are_malformed(payload: bytes) -> None:
    """W-CONTROL-1, W-FRAME-5."""
    with pytest.raises(MalformedFrameError):
        decode_control(payload)


def decode_or_refuse(payload: bytes) -> None:
    try:
        frame = decode_control(payload)
    except MalformedFrameError:
        return
    assert decode_control(encode_control(frame)) == frame
