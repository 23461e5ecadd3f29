"""Coupled noise as statistics see it: uniform, independent, exact samples; every seed is fixed."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from sdk.model.noise import (
    CoupledNoise,
    Stream,
    gumbel,
    uniform,
)

MIN_P_VALUE = 1e-3  # every statistic below has a fixed seed, so it holds or it does not

SIZE = 16_384


def along_tokens() -> NDArray[np.uint32]:
    """Return neighbouring token ids at one position: [SIZE, 2]."""
    bits = CoupledNoise(vocabulary_size=SIZE + 1, seed=11).bits(5).copy()
    return np.stack([bits[:-1], bits[1:]], axis=1)


def along_positions() -> NDArray[np.uint32]:
    """Return one token at neighbouring positions: [SIZE, 2]."""
    noise = CoupledNoise(vocabulary_size=8, seed=12)
    bits = np.array([noise.bits(position)[7] for position in range(SIZE + 1)])
    return np.stack([bits[:-1], bits[1:]], axis=1)


def across_tokens() -> NDArray[np.uint32]:
    """Return two neighbouring tokens at each of many positions: [SIZE, 2]."""
    noise = CoupledNoise(vocabulary_size=4, seed=13)
    return np.array([noise.bits(position)[2:4].copy() for position in range(SIZE)])


def across_seeds() -> NDArray[np.uint32]:
    """Return one token under neighbouring seeds: [SIZE, 2]."""
    bits = np.array(
        [CoupledNoise(vocabulary_size=2, seed=seed).bits(9)[1] for seed in range(SIZE + 1)]
    )
    return np.stack([bits[:-1], bits[1:]], axis=1)


def across_streams() -> NDArray[np.uint32]:
    """Return one token in two streams: [SIZE, 2]."""
    noises = [CoupledNoise(vocabulary_size=2, seed=14, stream=stream) for stream in Stream][::2]
    return np.array([[noise.bits(position)[1] for noise in noises] for position in range(SIZE)])


PAIRS = [along_tokens, along_positions, across_tokens, across_seeds, across_streams]


@pytest.fixture(scope="module", params=PAIRS, ids=[pairs.__name__ for pairs in PAIRS])
def pairs(request: pytest.FixtureRequest) -> NDArray[np.uint32]:
    drawn: NDArray[np.uint32] = request.param()
    return drawn


@pytest.mark.parametrize("shift", [24, 12, 0], ids=["high", "middle", "low"])
def test_bits_are_uniform(pairs: NDArray[np.uint32], shift: int) -> None:
    """W-NOISE-3: every byte of the words, on every axis."""
    counts = np.bincount(pairs[:, 0] >> np.uint32(shift) & np.uint32(255), minlength=256)
    assert stats.chisquare(counts).pvalue > MIN_P_VALUE


@pytest.mark.parametrize("shift", [28, 0], ids=["high", "low"])
def test_neighbours_are_jointly_uniform(pairs: NDArray[np.uint32], shift: int) -> None:
    """W-NOISE-3: 16 × 16 cells."""
    cells = (pairs >> np.uint32(shift) & np.uint32(15)).astype(np.int64)
    counts = np.bincount(cells[:, 0] * 16 + cells[:, 1], minlength=256)
    assert stats.chisquare(counts).pvalue > MIN_P_VALUE


def test_neighbours_are_uncorrelated(pairs: NDArray[np.uint32]) -> None:
    """W-NOISE-3, W-NOISE-4: bits, variates, and each single bit with its neighbour's."""
    assert stats.pearsonr(*pairs.astype(np.float64).T).pvalue > MIN_P_VALUE
    assert stats.pearsonr(*gumbel(pairs).T).pvalue > MIN_P_VALUE
    agreeing = [int((~(pairs[:, 0] ^ pairs[:, 1]) >> np.uint32(b) & 1).sum()) for b in range(32)]
    z = (np.array(agreeing) - SIZE / 2) / math.sqrt(SIZE / 4)
    assert np.abs(z).max() < 4.2  # 32 × P(|z| > 4.2) = 8.5e-4


def test_uniform_numbers_are_uniform() -> None:
    """W-NOISE-6."""
    numbers = [uniform(15, position, Stream.ACCEPT) for position in range(SIZE)]
    assert stats.kstest(numbers, "uniform").pvalue > MIN_P_VALUE
    assert stats.pearsonr(numbers[:-1], numbers[1:]).pvalue > MIN_P_VALUE


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    weights: NDArray[np.float64] = np.exp(logits.astype(np.float64) - float(logits.max()))
    weights /= weights.sum()
    return weights


def draws(logits: NDArray[np.float32], *, seed: int, count: int = 20_000) -> NDArray[np.int64]:
    return draws_of(tuple(logits.tolist()), seed, count)


@cache
def draws_of(logits: tuple[float, ...], seed: int, count: int) -> NDArray[np.int64]:
    row = np.array(logits, np.float32)
    noise = CoupledNoise(vocabulary_size=row.size, seed=seed)
    return np.array([noise.argmax(row, position) for position in range(count)])


PEAKED = np.array([2.0, -1.0, 0.5, 0.5, -math.inf, -3.0, 1.0, 0.0, -5.0, 1.5], np.float32)


def test_the_argmax_is_an_exact_sample_of_softmax() -> None:
    """W-NOISE-4, W-SAMPLE-4."""
    probabilities = softmax(PEAKED)
    counts = np.bincount(draws(PEAKED, seed=21), minlength=PEAKED.size)
    assert counts[4] == 0
    possible = probabilities > 0
    expected = probabilities[possible] * counts.sum()
    assert stats.chisquare(counts[possible], expected).pvalue > MIN_P_VALUE


def test_the_argmax_is_an_exact_sample_of_a_wide_softmax() -> None:
    """W-NOISE-4, W-SAMPLE-4: 2,000 tokens, in 40 groups of like probability."""
    logits = np.random.default_rng(4).normal(0, 2, 2000).astype(np.float32)
    order = np.argsort(logits)
    group = np.empty(2000, np.int64)
    group[order] = np.arange(2000) // 50
    counts = np.bincount(group[draws(logits, seed=22)], minlength=40)
    expected = np.bincount(group, weights=softmax(logits)) * counts.sum()
    enough = expected >= 5
    merged = np.append(counts[enough], counts[~enough].sum())
    assert (
        stats.chisquare(merged, np.append(expected[enough], expected[~enough].sum())).pvalue
        > MIN_P_VALUE
    )


@pytest.mark.parametrize("other", ["next position", "other seed"])
def test_draws_are_independent(other: str) -> None:
    """W-NOISE-1: of the draw before, and of the session with the next seed."""
    logits = PEAKED[[0, 2, 6, 9]]
    here = draws(logits, seed=23)
    there = np.roll(here, 1) if other == "next position" else draws(logits, seed=24)
    table = np.bincount(here * 4 + there, minlength=16).reshape(4, 4)
    assert stats.chi2_contingency(table).pvalue > MIN_P_VALUE


@pytest.mark.parametrize("distance", [0.0, 0.1, 0.5, 2.0])
def test_coupled_choices_agree_as_often_as_promised(distance: float) -> None:
    """W-NOISE-2: P(equal) ≥ (1 − TV) / (1 + TV), Daliri et al. (arXiv 2408.07978)."""
    rng = np.random.default_rng(5)
    board = rng.normal(0, 2, 50).astype(np.float32)
    server = board + rng.normal(0, distance, 50).astype(np.float32)
    variation = float(np.abs(softmax(board) - softmax(server)).sum()) / 2
    theirs = draws(server, seed=25)
    agreement = float((draws(board, seed=25) == theirs).mean())
    error = 4 * math.sqrt(0.25 / theirs.size)
    assert (1 - variation) / (1 + variation) - error <= agreement <= 1 - variation + error
    uncoupled = float((draws(board, seed=26) == theirs).mean())
    assert uncoupled == pytest.approx(float(softmax(board) @ softmax(server)), abs=error)
