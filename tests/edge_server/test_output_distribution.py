"""Sampled output, through the wire format, is an exact sample of the target, in every mode.

Every draw passes through real frames: open, draft, verdict. Each token's distribution, given the
tokens that the model looks at, is compared with the target's own, computed exactly.
"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from sdk.model.sampling import SamplingParameters, log_probabilities, transform
from tests.fakes.hand_driven import HandDrivenCell
from tests.fakes.hash_model import ORDER, hash_logits

VOCABULARY = 6
PROMPT = (1, 2, 3)
TOKENS = 40
COUPLED_SESSIONS = 500  # 20,000 draws
RATIO_SESSIONS = 150  # 6,000 draws for each way of cutting a distribution down
SHAPES = {"plain": {"temperature": 1.0}, "top-p": {"temperature": 0.7, "top_p": 0.9}}


def exact(context: tuple[int, ...], parameters: SamplingParameters) -> NDArray[np.float64]:
    """Return the target's distribution of the token that follows `context`, [V]."""
    logits = hash_logits(context, VOCABULARY, weights=1)
    return np.exp(log_probabilities(transform(logits, parameters)))


def chi_square_z(counts: list[NDArray[np.float64]], shares: list[NDArray[np.float64]]) -> float:
    """Return how many standard deviations the summed χ² of many tables lies above its mean.

    In each table, cells that expect fewer than 5 are pooled into one; tables that then have one
    cell say nothing.
    """
    statistic, freedom = 0.0, 0
    for observed, share in zip(counts, shares, strict=True):
        expected = share * observed.sum()
        assert observed[expected == 0].sum() == 0, "a token that the transform excludes was drawn"
        small = expected < 5
        cells = np.append(observed[~small], observed[small].sum())
        wanted = np.append(expected[~small], expected[small].sum())
        kept = wanted >= 1
        statistic += ((cells[kept] - wanted[kept]) ** 2 / wanted[kept]).sum()
        freedom += max(int(kept.sum()) - 1, 0)
    return float((statistic - freedom) / np.sqrt(2 * freedom))


def z_of_samples(cell: HandDrivenCell, shape: dict[str, float], sessions: int) -> float:
    """Sample whole sessions and return how far they are from the target."""
    counts: dict[tuple[int, ...], NDArray[np.float64]] = {}
    for seed in range(sessions):
        parameters = SamplingParameters(**shape, seed=seed)  # type: ignore[arg-type]
        sequence = [*PROMPT, *cell.sample(seed + 1, PROMPT, parameters, TOKENS)]
        for position in range(len(PROMPT), len(sequence)):
            context = tuple(sequence[position - ORDER : position])
            counts.setdefault(context, np.zeros(VOCABULARY))[sequence[position]] += 1
    assert sum(table.sum() for table in counts.values()) == sessions * TOKENS
    parameters = SamplingParameters(**shape)  # type: ignore[arg-type]
    return chi_square_z(list(counts.values()), [exact(context, parameters) for context in counts])


@pytest.mark.parametrize("shape", SHAPES)
def test_coupled_output_follows_the_target(shape: str) -> None:
    cell = HandDrivenCell(vocabulary_size=VOCABULARY, length=4, agreement=0.75)
    assert abs(z_of_samples(cell, SHAPES[shape], COUPLED_SESSIONS)) < 4
    # The test means something only where drafts are both accepted and rejected.
    assert 0.2 < cell.accepted / cell.drafted < 0.9


@pytest.mark.parametrize("block", [False, True], ids=["token", "block"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("support", "weight_bits"), [(1, 8), (2, 1), (3, 8), (6, 4), (6, 16)])
def test_ratio_output_follows_the_target(
    support: int, weight_bits: int, shape: str, block: bool
) -> None:
    cell = HandDrivenCell(
        vocabulary_size=VOCABULARY,
        length=4,
        agreement=0.75,
        support=support,
        weight_bits=weight_bits,
        block=block,
    )
    assert abs(z_of_samples(cell, SHAPES[shape], RATIO_SESSIONS)) < 4
    assert 0.1 < cell.accepted / cell.drafted < 0.95


@pytest.mark.parametrize("block", [False, True], ids=["token", "block"])
def test_ratio_output_follows_the_target_where_unsure_drafts_end_early(block: bool) -> None:
    """How long a draft is may follow from the tokens drawn, as long as each drawn one is sent."""
    cell = HandDrivenCell(
        vocabulary_size=VOCABULARY, length=6, agreement=0.75, support=6, block=block, sure=0.5
    )
    assert abs(z_of_samples(cell, SHAPES["plain"], RATIO_SESSIONS)) < 4
    assert 0.1 < cell.accepted / cell.drafted < 0.95


def test_block_verification_accepts_no_fewer_through_the_wire() -> None:
    accepted = {}
    for block in (False, True):
        cell = HandDrivenCell(
            vocabulary_size=VOCABULARY, length=4, agreement=0.6, support=6, block=block
        )
        z_of_samples(cell, SHAPES["plain"], RATIO_SESSIONS)
        accepted[block] = cell.accepted / cell.drafted
    assert accepted[True] > accepted[False]


def test_sessions_with_different_seeds_are_independent() -> None:
    """First tokens of neighbouring seeds are jointly distributed as the product of their own."""
    cell = HandDrivenCell(vocabulary_size=VOCABULARY, length=4, agreement=0.75)
    pairs = np.zeros((VOCABULARY, VOCABULARY))
    for seed in range(0, 3000, 2):
        left, right = (
            cell.sample(own + 1, PROMPT, SamplingParameters(temperature=1.0, seed=own), 1)[0]
            for own in (seed, seed + 1)
        )
        pairs[left, right] += 1
    marginal = exact(PROMPT, SamplingParameters(temperature=1.0))
    joint = np.outer(marginal, marginal)
    assert abs(chi_square_z([pairs.ravel()], [joint.ravel()])) < 4
