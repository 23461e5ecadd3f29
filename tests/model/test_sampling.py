"""The sampling transform against a plain, slow reference; the choice against its definition."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy import stats

from sdk.model.likelihood import likelihoods
from sdk.model.noise import CoupledNoise, gumbel
from sdk.model.nucleus import Nucleus
from sdk.model.sampling import Sampler, SamplingParameters, log_probabilities, transform

Logits = NDArray[np.float32]


def row(*values: float) -> Logits:
    return np.array(values, np.float32)


def kept(logits: Logits, **parameters: Any) -> list[int]:
    shaped = transform(logits, SamplingParameters(**{"temperature": 1.0} | parameters))
    return [int(token) for token in np.flatnonzero(shaped > -np.inf)]


def likelihood(x: float) -> int:
    """Return a likelihood as W-SAMPLE-3 has it, one float32 operation after the other."""
    one = np.float32
    y = max(one(x), one(-24.0)) * one(math.log2(math.e))
    n = np.rint(y)
    f, series = y - n, one(math.log(2) ** 6 / math.factorial(6))
    for k in range(5, -1, -1):
        series = series * f + one(math.log(2) ** k / math.factorial(k))
    return int(np.rint(series * one(2.0 ** (int(n) + 30))))


def kept_by_definition(logits: Logits, parameters: SamplingParameters) -> set[int]:
    """Return what W-SAMPLE-3 keeps."""
    scaled = logits / np.float32(parameters.temperature)
    ids = sorted(range(len(scaled)), key=lambda token: (-scaled[token], token))
    ids = ids[: parameters.top_k or None]
    weights = [likelihood(scaled[token] - scaled[ids[0]]) for token in ids]
    if parameters.top_p < 1.0:
        wanted = parameters.top_p * float(sum(weights))
        sums = itertools.accumulate(weights)
        ids = ids[: 1 + next(index for index, reached in enumerate(sums) if reached >= wanted)]
    pairs = zip(ids, weights, strict=False)
    chosen = [token for token, weight in pairs if weight >= parameters.min_p * 2**30]
    return {token for token in chosen if scaled[token] > -math.inf}


@given(
    values=st.lists(st.floats(-(2.0**126), 0, width=32) | st.floats(-25, 0, width=32), min_size=1)
)
def test_likelihoods_are_as_defined_and_close_to_the_exponential(values: list[float]) -> None:
    """W-SAMPLE-3."""
    for value, found in zip(values, likelihoods(row(*values), np.float32(0)), strict=True):
        assert found == likelihood(value)
        truth = math.exp(value) * 2**30
        assert abs(found - truth) <= 0.51 + (abs(value) + 3) * 2**-23 * truth
    assert likelihoods(row(0.0, -math.inf), np.float32(0)).tolist() == [2**30, 0]


def test_golden_likelihoods() -> None:
    """W-SAMPLE-3: the document's figures, on every machine."""
    found = likelihoods(row(-0.1, -1, -2.5, -10, -21.4, -22), np.float32(0))
    assert found.tolist() == [971561792, 395007552, 88138096, 48748, 1, 0]


SHAPES = st.builds(
    SamplingParameters,
    temperature=st.sampled_from([0.001, 0.3, 0.7, 1.0, 1.7, 100.0]),
    top_k=st.sampled_from([0, 1, 2, 5, 40, 10_000]),
    top_p=st.sampled_from([1.0, 1e-300, 0.01, 0.5, 0.9, 0.99, 1 - 2**-53])
    | st.floats(0, 1, exclude_min=True),
    min_p=st.sampled_from([0.0, 0.05, 0.5, 1 - 2**-53]) | st.floats(0, 1, exclude_max=True),
)
LOGITS = hnp.arrays(
    np.float32,
    st.integers(1, 60),
    elements=st.floats(-20, 20, width=32) | st.sampled_from([0.0, 1.0, 2.0]) | st.just(-math.inf),
).filter(lambda logits: bool(np.isfinite(logits).any()))


@settings(deadline=None)
@given(logits=LOGITS, parameters=SHAPES)
def test_the_transform_is_as_defined(logits: Logits, parameters: SamplingParameters) -> None:
    """W-SAMPLE-3."""
    shaped = transform(logits, parameters)
    assert shaped.dtype == np.float32
    ids = np.flatnonzero(shaped > -np.inf)
    assert shaped[ids].tolist() == (logits / np.float32(parameters.temperature))[ids].tolist()
    assert set(ids.tolist()) == kept_by_definition(logits, parameters)
    assert int(logits.argmax()) in ids


@pytest.mark.parametrize("temperature", [0.001, 0.7, 1.0, 3.0])
@pytest.mark.parametrize("top_k", [0, 50, 900])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.999])
@pytest.mark.parametrize("min_p", [0.0, 0.02])
def test_the_transform_is_as_defined_on_a_large_vocabulary(
    temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    """W-SAMPLE-3: where most tokens are never sorted."""
    logits = np.random.default_rng(6).normal(0, 3, 4000).astype(np.float32)
    parameters = SamplingParameters(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    expected = kept_by_definition(logits, parameters)
    assert set(np.flatnonzero(transform(logits, parameters) > -np.inf).tolist()) == expected


def test_a_nucleus_of_thousands_is_as_defined() -> None:
    """W-SAMPLE-3: words as they are used; many thresholds on the way, much to sort."""
    ranks = np.random.default_rng(8).permutation(60_000) + 1
    logits = (-1.2 * np.log(ranks)).astype(np.float32)
    parameters = SamplingParameters(temperature=1.0, top_p=0.95)
    ids = np.flatnonzero(transform(logits, parameters) > -np.inf)
    assert ids.size > 5_000
    assert set(ids.tolist()) == kept_by_definition(logits, parameters)


@settings(deadline=None)
@given(logits=LOGITS, top_p=st.floats(0, 1, exclude_min=True, exclude_max=True))
def test_a_nucleus_holds_what_it_lists(logits: Logits, top_p: float) -> None:
    """W-SAMPLE-3: each token judged alone; where nothing is likely, the zeros too."""
    nucleus = Nucleus(logits, top_p)
    listed = nucleus.ids().tolist()
    assert [token for token in range(logits.size) if nucleus.holds(token)] == sorted(listed)
    assert set(listed) <= set(nucleus.candidates.tolist())


@pytest.mark.parametrize("spread", [0.0, 1e-6, 1.0, 3.0, 8.0])
def test_a_nucleus_is_exact_at_its_limit(spread: float) -> None:
    """W-SAMPLE-3: a limit that some token's sum just reaches, or misses by one likelihood."""
    logits = np.random.default_rng(9).normal(0, spread, 3000).astype(np.float32)
    order = np.argsort(-logits, kind="stable")
    reached = np.cumsum(likelihoods(logits[order], logits.max()), dtype=np.float64)
    for rank in (0, 1, 10, 100, 1000, 2000):
        for off in (-1.0, 0.0, 1.0):
            top_p = min(float((reached[rank] + off) / reached[-1]), 1 - 2**-53)
            nucleus = Nucleus(logits, top_p)
            size = 1 + int(np.searchsorted(reached, top_p * reached[-1]))
            assert set(nucleus.ids().tolist()) == set(order[:size].tolist())
            judged = order[max(0, size - 3) : size + 3]
            assert [nucleus.holds(token) for token in judged] == [True] * min(size, 3) + [False] * 3


def test_among_equals_the_lower_ids_are_kept() -> None:
    """W-SAMPLE-3."""
    equal = row(1, 1, 1, 1)
    assert kept(equal, top_k=2) == [0, 1]
    assert kept(equal, top_p=0.5) == [0, 1]
    assert kept(equal, top_p=0.51) == [0, 1, 2]
    assert kept(row(0, 2, 1, 2, 1), top_k=3) == [1, 2, 3]
    assert kept(row(0.0, -0.0, 0.0), top_k=2) == [0, 1]


def test_the_order_of_the_steps() -> None:
    """W-SAMPLE-3: temperature → top-k → top-p → min-p, each on what the one before left."""
    logits = np.log(row(0.4, 0.3, 0.2, 0.1))
    assert kept(logits, top_p=0.6) == [0, 1]
    assert kept(logits, top_k=2, top_p=0.57) == [0]  # 0.4 of 0.7
    assert kept(logits, temperature=0.5, top_p=0.53) == [0]  # 0.16 of 0.3
    assert kept(logits, min_p=0.7) == [0, 1]
    assert kept(logits, top_p=0.8, min_p=0.4) == [0, 1, 2]  # of all four, not of min-p's three


@pytest.mark.parametrize("top_p", [0.3, 0.9, 1.0])
@pytest.mark.parametrize("min_p", [0.0, 0.5])
def test_a_top_k_of_the_vocabulary_or_more_changes_nothing(top_p: float, min_p: float) -> None:
    """W-SAMPLE-3."""
    logits = np.linspace(0, 3, 100).astype(np.float32)
    without = kept(logits, top_p=top_p, min_p=min_p)
    for top_k in (100, 101, 1 << 24):
        assert kept(logits, top_k=top_k, top_p=top_p, min_p=min_p) == without


def test_the_likeliest_token_is_always_kept() -> None:
    """W-SAMPLE-3."""
    for parameters in ({"top_p": 5e-324}, {"top_k": 1}, {"min_p": 1 - 2**-53}):
        assert kept(row(3, 5, 5, 4), **parameters)[0] == 1
    assert kept(row(3, 5, 5, 4), top_p=5e-324) == [1]
    assert kept(row(3, 5, 5, 4), min_p=1 - 2**-53) == [1, 2]
    assert kept(row(7), top_k=3, top_p=0.1, min_p=0.9) == [0]


def test_without_limits_only_the_temperature_acts() -> None:
    """W-SAMPLE-3."""
    logits = row(1, -math.inf, 3)
    shaped = transform(logits, SamplingParameters(temperature=0.7))
    assert shaped.tolist() == (logits / np.float32(0.7)).tolist()


@settings(deadline=None)
@given(logits=LOGITS, parameters=SHAPES)
def test_log_probabilities_are_normalised(logits: Logits, parameters: SamplingParameters) -> None:
    shaped = transform(logits, parameters)
    logarithms = log_probabilities(shaped)
    assert float(np.exp(logarithms).sum()) == pytest.approx(1.0, abs=1e-12)
    assert np.array_equal(logarithms == -np.inf, shaped == -np.inf)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("temperature", [-0.1, 1e-9, 9e-4, 100.1, math.inf, math.nan]),
        ("top_k", [-1]),
        ("top_p", [0.0, -0.1, 1.1, math.inf, math.nan]),
        ("min_p", [-0.1, 1.0, 1.1, math.nan]),
        ("seed", [-1, 2**64]),
    ],
)
def test_a_parameter_out_of_range_is_refused_by_name(name: str, values: list[Any]) -> None:
    """W-SAMPLE-1."""
    for value in values:
        with pytest.raises(ValueError, match=f"{name} must be"):
            SamplingParameters(**{name: value})


def test_greedy_is_the_argmax_and_nothing_else_counts() -> None:
    """W-SAMPLE-2."""
    parameters = SamplingParameters(temperature=0.0, top_k=1, top_p=0.1, min_p=0.9, seed=8)
    assert parameters.greedy
    sampler = Sampler(parameters=parameters, vocabulary_size=4)
    assert {sampler.choose(row(0, 4, 4, 3), position) for position in range(20)} == {1}


@settings(deadline=None)
@given(logits=LOGITS, parameters=SHAPES, position=st.integers(0, 2**32 - 1))
def test_the_choice_is_as_defined(
    logits: Logits, parameters: SamplingParameters, position: int
) -> None:
    """W-SAMPLE-4."""
    sampler = Sampler(parameters=parameters, vocabulary_size=logits.size)
    bits = CoupledNoise(vocabulary_size=logits.size, seed=parameters.seed).bits(position)
    scores = transform(logits, parameters).astype(np.float64) + gumbel(bits)
    assert sampler.choose(logits, position) == int(scores.argmax())


@pytest.mark.parametrize("temperature", [0.05, 0.7, 1.0, 100.0])
@pytest.mark.parametrize("top_p", [1e-9, 0.3, 0.95, 1 - 2**-53])
@pytest.mark.parametrize("min_p", [0.0, 0.02])
def test_the_choice_is_as_defined_on_a_large_vocabulary(
    temperature: float, top_p: float, min_p: float
) -> None:
    """W-SAMPLE-4: where the first winners are often outside the nucleus."""
    logits = np.random.default_rng(10).normal(0, 3, 20_000).astype(np.float32)
    parameters = SamplingParameters(temperature=temperature, top_p=top_p, min_p=min_p, seed=11)
    sampler = Sampler(parameters=parameters, vocabulary_size=logits.size)
    noise = CoupledNoise(vocabulary_size=logits.size, seed=11)
    kept = np.flatnonzero(np.isfinite(shaped := transform(logits, parameters)))
    for position in range(25):
        scores = shaped[kept].astype(np.float64) + gumbel(noise.bits(position)[kept])
        assert sampler.choose(logits, position) == kept[scores.argmax()]


def test_the_choice_depends_on_its_arguments_alone() -> None:
    """W-SAMPLE-4: not on what was chosen before, in which order, or by whom."""
    parameters = SamplingParameters(temperature=0.8, top_p=0.95, seed=9)
    rows = np.random.default_rng(7).normal(0, 2, (64, 300)).astype(np.float32)
    board, server = (Sampler(parameters=parameters, vocabulary_size=300) for _ in range(2))
    forward = [board.choose(rows[position], position) for position in range(64)]
    backward = [server.choose(rows[position], position) for position in reversed(range(64))]
    assert forward == backward[::-1]
    assert [board.choose(rows[position], position) for position in range(64)] == forward
    assert len(set(forward)) > 20


@pytest.mark.parametrize(
    "shape", [{}, {"temperature": 0.6}, {"top_k": 4}, {"top_p": 0.8}, {"min_p": 0.1}]
)
def test_choices_are_an_exact_sample_of_the_shaped_distribution(shape: dict[str, Any]) -> None:
    """W-SAMPLE-3, W-SAMPLE-4."""
    parameters = SamplingParameters(**{"temperature": 1.0, "seed": 10} | shape)
    logits = row(1.0, 2.0, -1.0, 0.0, 1.5, -2.0, 0.5, 2.5)
    sampler = Sampler(parameters=parameters, vocabulary_size=logits.size)
    counts = np.bincount(
        [sampler.choose(logits, position) for position in range(10_000)], minlength=8
    )
    probabilities = np.exp(log_probabilities(transform(logits, parameters)))
    possible = probabilities > 0
    assert counts[~possible].sum() == 0
    assert stats.chisquare(counts[possible], probabilities[possible] * 10_000).pvalue > 1e-3
