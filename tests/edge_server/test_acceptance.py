"""The acceptance maths, on distributions small enough to know the answer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_server.verifier.acceptance import block_prefix, residual, token_prefix
from sdk.model.proposal import Proposal, propose

PREFIX_RULES = {"token": token_prefix, "block": block_prefix}


@pytest.mark.parametrize(("rule", "expected"), [("token", 10 / 9), ("block", 11 / 9)])
def test_the_papers_example(rule: str, expected: float) -> None:
    """arXiv 2403.10444, section 1: target (1/3, 2/3), draft (2/3, 1/3), two tokens."""
    generator = np.random.default_rng(1)
    p = np.tile([1 / 3, 2 / 3], (3, 1))
    q = Proposal(token_ids=(0, 1), weights=(2, 1))
    total = 0
    for _ in range(40_000):
        draft = [q.draw(u) for u in generator.random(2)]
        total += PREFIX_RULES[rule](p, draft, [q, q], list(generator.random(2)))[0]
    assert abs(total / 40_000 - expected) < 0.02


def rows(draw: st.DrawFn, count: int, size: int) -> NDArray[np.float64]:
    weights = draw(
        st.lists(
            st.lists(st.integers(0, 20), min_size=size, max_size=size).filter(any),
            min_size=count,
            max_size=count,
        )
    )
    table = np.array(weights, np.float64)
    return table / table.sum(axis=1, keepdims=True)


@st.composite
def blocks(draw: st.DrawFn) -> tuple[NDArray[np.float64], list[int], list[Proposal], list[float]]:
    length, size = draw(st.integers(1, 4)), draw(st.integers(2, 5))
    proposals = []
    for row in rows(draw, length, size):
        kept = np.flatnonzero(row)
        weights = tuple(int(w) for w in np.maximum(np.rint(row[kept] * 100), 1))
        proposals.append(Proposal(token_ids=tuple(kept.tolist()), weights=weights))
    draft = [draw(st.sampled_from(proposal.token_ids)) for proposal in proposals]
    uniforms = [draw(st.floats(1e-9, 1 - 1e-9)) for _ in draft]
    return rows(draw, length + 1, size), draft, proposals, uniforms


@given(blocks(), st.sampled_from(sorted(PREFIX_RULES)))
def test_what_follows_can_be_drawn(
    block: tuple[NDArray[np.float64], list[int], list[Proposal], list[float]], rule: str
) -> None:
    p, draft, proposals, uniforms = block
    accepted, weight = PREFIX_RULES[rule](p, draft, proposals, uniforms)
    assert 0 <= accepted <= len(draft)
    assert 0.0 <= weight <= 1.0
    left = residual(p, accepted, proposals, weight)
    assert left.sum() > 0
    assert (left >= 0).all()
    assert not left[p[accepted] == 0].any()


@given(blocks())
def test_equal_distributions_accept_everything(
    block: tuple[NDArray[np.float64], list[int], list[Proposal], list[float]],
) -> None:
    p, draft, proposals, uniforms = block
    for index, proposal in enumerate(proposals):
        p[index] = 0
        p[index, list(proposal.token_ids)] = np.array(proposal.weights) / sum(proposal.weights)
    for rule in PREFIX_RULES.values():
        assert rule(p, draft, proposals, uniforms)[0] == len(draft)


@given(
    st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=30),
    st.integers(1, 40),
    st.integers(1, 16),
    st.floats(0.05, 1.0),
)
def test_a_proposal_keeps_the_likeliest_and_covers_what_it_should(
    logits: list[float], support: int, weight_bits: int, coverage: float
) -> None:
    row = np.array(logits, np.float32)
    proposal = propose(row, support=support, weight_bits=weight_bits, coverage=coverage)
    kept = list(proposal.token_ids)
    assert len(kept) <= min(support, len(row))
    left_out = np.delete(row, kept)
    assert not left_out.size or row[kept].min() >= left_out.max()
    assert list(proposal.weights) == sorted(proposal.weights, reverse=True)
    mass = np.exp(row - row.max()).astype(np.float64)
    short = mass[kept].sum() < coverage * mass.sum() * (1 - 1e-5)
    weightless = left_out.size and np.exp(left_out.max() - row.max()) * 2**weight_bits <= 0.5 + 1e-5
    assert not short or weightless or len(kept) == min(support, len(row))
    assert proposal.draw(1e-12) == kept[0]
    assert proposal.draw(1 - 1e-12) == kept[-1]
