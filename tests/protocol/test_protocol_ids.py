"""Packed token ids: W-IDS-1, W-IDS-2."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdk.errors import MalformedFrameError
from sdk.protocol import bits_per_id, pack_ids, unpack_ids

SIZED_IDS = st.integers(1, 32).flatmap(
    lambda bits: st.tuples(st.just(bits), st.lists(st.integers(0, 2**bits - 1), max_size=300))
)


@pytest.mark.parametrize(
    ("vocabulary_size", "bits"),
    [(1, 1), (2, 1), (3, 2), (4, 2), (4096, 12), (4097, 13), (151_936, 18), (2**32, 32)],
)
def test_bits_per_id(vocabulary_size: int, bits: int) -> None:
    """W-IDS-1."""
    assert bits_per_id(vocabulary_size) == bits


def test_an_empty_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        bits_per_id(0)


@pytest.mark.parametrize(
    ("ids", "bits", "packed"),
    [
        ((), 12, ""),
        ((1, 0, 1, 1), 1, "0d"),
        ((5, 6, 7), 3, "f501"),
        ((0xABC, 0xDEF), 12, "bcfade"),
        ((1, 4095, 2748), 12, "01f0ffbc0a"),
        ((0x12345678, 0xFFFFFFFF), 32, "78563412ffffffff"),
    ],
)
def test_golden_bytes_of_ids(ids: tuple[int, ...], bits: int, packed: str) -> None:
    """W-IDS-1."""
    assert pack_ids(ids, bits).hex() == packed
    assert unpack_ids(bytes.fromhex(packed), len(ids), bits) == ids


@given(sized=SIZED_IDS)
def test_ids_survive_the_wire_at_the_least_size(sized: tuple[int, list[int]]) -> None:
    """W-IDS-1: against a big integer that holds the bits."""
    bits, ids = sized
    packed = pack_ids(ids, bits)
    number = sum(token << (index * bits) for index, token in enumerate(ids))
    assert packed == number.to_bytes(math.ceil(len(ids) * bits / 8), "little")
    assert unpack_ids(packed, len(ids), bits) == tuple(ids)
    assert unpack_ids(memoryview(packed), len(ids), bits) == tuple(ids)


@given(bits=st.integers(1, 31), count=st.integers(1, 40), data=st.data())
def test_every_padding_bit_must_be_zero(bits: int, count: int, data: st.DataObject) -> None:
    """W-IDS-2."""
    packed = bytearray(pack_ids([0] * count, bits))
    used = count * bits
    padding = range(used, len(packed) * 8)
    if not padding:
        return
    bit = data.draw(st.sampled_from(padding))
    packed[bit // 8] |= 1 << bit % 8
    with pytest.raises(MalformedFrameError, match="padding"):
        unpack_ids(bytes(packed), count, bits)


@given(packed=st.binary(max_size=64), count=st.integers(0, 300), bits=st.integers(-2, 40))
def test_a_wrong_length_is_refused(packed: bytes, count: int, bits: int) -> None:
    """W-IDS-1."""
    if 1 <= bits <= 32 and len(packed) == math.ceil(count * bits / 8):
        return
    with pytest.raises(MalformedFrameError, match="cannot hold"):
        unpack_ids(packed, count, bits)


def test_an_oversize_count_is_refused_before_allocation() -> None:
    """W-FRAME-2."""
    tracemalloc.start()
    try:
        with pytest.raises(MalformedFrameError, match="cannot hold"):
            unpack_ids(bytes(64), 2**40, 12)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("ids", [[4096], [-1], [0, 2**31], np.array([-1]), np.array([4096])])
def test_an_id_that_does_not_fit_is_never_cut(ids: list[int]) -> None:
    """W-IDS-1."""
    with pytest.raises(ValueError, match="does not fit"):
        pack_ids(ids, 12)


@pytest.mark.parametrize("bits", [0, 33])
def test_bits_beyond_the_word_are_refused(bits: int) -> None:
    """W-IDS-1."""
    with pytest.raises(ValueError, match="bits per id"):
        pack_ids([], bits)
