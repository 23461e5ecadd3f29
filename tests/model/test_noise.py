"""Coupled noise: known answers, an independent re-implementation, the pruned argmax."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from sdk.model.noise import (
    MAX_POSITION,
    MAX_SEED,
    CoupledNoise,
    Stream,
    gumbel,
    philox4x32,
    uniform,
)

SEEDS = st.integers(0, MAX_SEED)

POSITIONS = st.integers(0, MAX_POSITION)

STREAMS = st.sampled_from(Stream)


# Known answers


@pytest.mark.parametrize(
    ("counter", "key", "block"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000",
         "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
         "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
         "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
    ids=["zeros", "ones", "pi"],
)  # fmt: skip
def test_philox_gives_the_known_answers_of_random123(counter: str, key: str, block: str) -> None:
    """W-NOISE-1: kat_vectors of the Random123 distribution, philox4x32 10."""
    words = [[int(word, 16) for word in text.split()] for text in (counter, key, block)]
    assert list(philox4x32(words[0], words[1])) == words[2]


@pytest.mark.parametrize(
    ("seed", "position", "stream", "token", "bits"),
    [
        (0, 0, Stream.COUPLED, 0, 0x89579C71),
        (0, 0, Stream.COUPLED, 1, 0x6570C85E),
        (42, 7, Stream.COUPLED, 2, 0x39D52451),
        (42, 7, Stream.COUPLED, 69_999, 0x7D0F1C06),
        (MAX_SEED, MAX_POSITION, Stream.DRAFT, 0, 0xCB4945D9),
        (MAX_SEED, MAX_POSITION, Stream.DRAFT, 69_999, 0x6B1712A6),
    ],
)
def test_golden_bits(seed: int, position: int, stream: Stream, token: int, bits: int) -> None:
    """W-NOISE-1, W-NOISE-2, W-NOISE-3."""
    noise = CoupledNoise(vocabulary_size=70_000, seed=seed, stream=stream)
    assert noise.bits(position)[token] == bits


# The definition once more, in Python's own integers and floats


def mix_of_definition(x: int) -> int:
    x ^= x >> 16
    x = x * 0x7FEB352D % 2**32
    x ^= x >> 15
    x = x * 0x846CA68B % 2**32
    return x ^ x >> 16


def ln_of_definition(x: float) -> float:
    m, e = math.frexp(x)
    if m < 0.7071067811865476:
        m, e = 2 * m, e - 1
    f = m - 1
    s = f / (f + 2)
    z = s * s
    r = 1 / 23
    for n in range(10, -1, -1):
        r = r * z + 1 / (2 * n + 1)
    return e * 0.6931471805599453 + (2 * s) * r


def gumbel_of_definition(bits: int) -> float:
    return -ln_of_definition(-ln_of_definition((bits + 0.5) / 2**32))


@settings(deadline=None)
@given(seed=SEEDS, position=POSITIONS, stream=STREAMS, token=st.integers(0, 999))
def test_bits_are_as_defined(seed: int, position: int, stream: Stream, token: int) -> None:
    """W-NOISE-1, W-NOISE-2, W-NOISE-3."""
    w0, w1, _, _ = philox4x32((position, stream, 0, 0), (seed % 2**32, seed >> 32))
    bits = CoupledNoise(vocabulary_size=1000, seed=seed, stream=stream).bits(position)
    assert bits[token] == mix_of_definition(mix_of_definition(token ^ w0) ^ w1)
    expected = (w0 * 2**20 + (w1 >> 12) + 0.5) / 2**52
    assert uniform(seed, position, stream) == expected


@pytest.mark.parametrize(
    ("bits", "variate"),
    [
        (0x89579C71, "0x1.e50e6d92e8004p-2"),
        (0xB14B018A, "0x1.005a25b272955p+0"),  # with 11 terms of atanh, one bit less
        (0x3D7AAEB0, "-0x1.6bbbc8b572476p-2"),
    ],
)
def test_golden_variates(bits: int, variate: str) -> None:
    """W-NOISE-4, W-NOISE-5."""
    assert float(gumbel(np.array([bits], np.uint32))[0]).hex() == variate


EDGE_BITS = [0, 1, 2, 2**20 - 1, 2**20, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1]


@settings(deadline=None)
@given(bits=st.lists(st.integers(0, 2**32 - 1) | st.sampled_from(EDGE_BITS), min_size=1))
def test_variates_are_as_defined_to_the_bit(bits: list[int]) -> None:
    """W-NOISE-4, W-NOISE-5."""
    variates = gumbel(np.array(bits, np.uint32))
    assert variates.tolist() == [gumbel_of_definition(word) for word in bits]


@settings(deadline=None)
@given(bits=st.integers(0, 2**32 - 1) | st.sampled_from(EDGE_BITS))
def test_variates_are_gumbel_and_monotone(bits: int) -> None:
    """W-NOISE-4: −ln(−ln u), to within 4e-15."""
    here, above = gumbel(np.array([bits, min(bits + 1, 2**32 - 1)], np.uint32)).tolist()
    assert -3.14 < here <= above < 22.88
    u = (bits + 0.5) / 2**32
    exact = -math.log(-math.log(u) if u < 0.5 else -math.log1p(u - 1))
    assert here == pytest.approx(exact, rel=1e-15, abs=4e-15)


def test_uniform_never_reaches_its_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """W-NOISE-6: for the extreme words too."""
    for word in (0, 2**32 - 1):
        monkeypatch.setattr("sdk.model.noise.philox4x32", lambda *_, word=word: (word,) * 4)
        assert 0.0 < uniform(0, 0, Stream.ACCEPT) < 1.0


@pytest.mark.parametrize("seed", [-1, MAX_SEED + 1])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    """W-NOISE-1."""
    with pytest.raises(ValueError, match="seed"):
        CoupledNoise(vocabulary_size=4, seed=seed)


@pytest.mark.parametrize("position", [-1, MAX_POSITION + 1])
def test_a_position_out_of_range_is_refused(position: int) -> None:
    """W-NOISE-1."""
    with pytest.raises(ValueError, match="position"):
        CoupledNoise(vocabulary_size=4, seed=0).bits(position)


def test_an_empty_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="vocabulary"):
        CoupledNoise(vocabulary_size=0, seed=0)


# The pruned argmax


def full_argmax(noise: CoupledNoise, logits: NDArray[np.float32], position: int) -> int:
    return int((logits.astype(np.float64) + gumbel(noise.bits(position))).argmax())


LOGITS = hnp.arrays(
    np.float32,
    st.integers(1, 300),
    elements=st.floats(-30, 30, width=32) | st.just(-math.inf) | st.sampled_from([0.0, 1.0]),
)


@settings(deadline=None)
@given(logits=LOGITS, exponent=st.integers(-36, 36), seed=SEEDS, position=POSITIONS)
def test_the_pruned_argmax_is_the_argmax(
    logits: NDArray[np.float32], exponent: int, seed: int, position: int
) -> None:
    """W-SAMPLE-4: −inf entries, all −inf, huge and tiny scales, one token."""
    noise = CoupledNoise(vocabulary_size=logits.size, seed=seed)
    scaled = logits * np.float32(10.0**exponent)
    assert noise.argmax(scaled, position) == full_argmax(noise, scaled, position)


@pytest.mark.parametrize("scale", [0.0, 1e-3, 0.3, 1.0, 3.0, 30.0, 1e6])
def test_the_pruned_argmax_is_the_argmax_over_a_large_vocabulary(scale: float) -> None:
    """W-SAMPLE-4."""
    rng = np.random.default_rng(1)
    noise = CoupledNoise(vocabulary_size=150_000, seed=2)
    for position in range(20):
        logits = rng.normal(0, scale, 150_000).astype(np.float32)
        assert noise.argmax(logits, position) == full_argmax(noise, logits, position)


@given(
    ids=st.sets(st.integers(0, 299), min_size=1), seed=SEEDS, position=POSITIONS, ties=st.booleans()
)
def test_the_argmax_among_few_is_that_of_all_without_the_others(
    ids: set[int], seed: int, position: int, ties: bool
) -> None:
    """W-SAMPLE-4."""
    noise = CoupledNoise(vocabulary_size=300, seed=seed)
    logits = np.random.default_rng(position).normal(0, 1e30 if ties else 2, 300).astype(np.float32)
    few = np.array(sorted(ids))
    shaped = np.full_like(logits, -np.inf)
    shaped[few] = logits[few]
    assert noise.argmax_among(few, logits[few], position) == full_argmax(noise, shaped, position)


def test_scores_that_rounding_makes_equal_go_to_the_lowest_id() -> None:
    """W-SAMPLE-4: beside 1e30 the noise vanishes."""
    noise = CoupledNoise(vocabulary_size=9, seed=3)
    logits = np.array([-1e30, 0, 1e30, 1e30, 0, 1e30, -math.inf, 0, 0], np.float32)
    assert {noise.argmax(logits, position) for position in range(50)} == {2}


class ChosenNoise(CoupledNoise):
    """Noise with given bits."""

    chosen: tuple[int, ...]

    def _leading_bits(self, position: int) -> NDArray[np.uint32]:
        chosen = np.array(self.chosen, np.uint32)
        self._bits[:] = chosen ^ (chosen >> np.uint32(16))  # which the last step undoes
        return self._bits


def test_the_rounding_of_the_bounds_never_costs_the_winner() -> None:
    """W-SAMPLE-4: the leader at the bottom of its bucket, the winner at the top of another."""
    noise = ChosenNoise(vocabulary_size=2, seed=0)
    wins = 0
    for low in range(2048, 4000, 31):
        for high in range(1, 2048, 67):
            noise.chosen = (low << 20, (high << 20) | (2**20 - 1))
            leader, follower = gumbel(np.array(noise.chosen, np.uint32)).tolist()
            logits = np.array([0.0, leader - follower + 5e-8], np.float32)
            expected = full_argmax(noise, logits, 0)
            assert noise.argmax(logits, 0) == expected
            wins += expected
    assert wins > 500
