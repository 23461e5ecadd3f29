"""What was drafted ahead outlives a verdict where it agrees with it, and only there."""

from __future__ import annotations

import pytest

from sdk.draft.ahead import Ahead
from sdk.model.sampling import SamplingParameters
from tests.fakes.hash_model import HashDrafter

COMMITTED = [1, 2, 3]


def drafted(count: int, *, support: int = 0) -> Ahead:
    """Return `count` tokens that were drafted behind COMMITTED."""
    drafter = HashDrafter()
    ahead = Ahead(
        drafter=drafter,
        sampling=SamplingParameters(temperature=1.0),
        vocabulary_size=drafter.vocabulary_size,
        weight_bits=8,
        early_stop=False,
        clock=lambda: 0.0,
    )
    ahead.support = support
    for _ in range(count):
        ahead.draft_token(COMMITTED)
    return ahead


def tokens(ahead: Ahead) -> tuple[int, ...]:
    return tuple(one.token for one in ahead.first(len(ahead)))


def test_what_stands_behind_an_agreed_verdict_is_kept() -> None:
    ahead = drafted(6)
    before = tokens(ahead)
    ahead.keep(before[:4], support=0, end=False)
    assert tokens(ahead) == before[4:]


@pytest.mark.parametrize("wrong", [0, 2, 3])
def test_behind_a_token_that_differs_nothing_is_kept(wrong: int) -> None:
    ahead = drafted(6)
    new = list(tokens(ahead)[:4])
    new[wrong] += 1
    ahead.keep(tuple(new), support=0, end=False)
    assert len(ahead) == 0


@pytest.mark.parametrize(
    ("support", "next_support", "end"), [(0, 8, False), (8, 0, False), (0, 0, True)]
)
def test_at_an_end_and_for_another_kind_of_draft_nothing_is_kept(
    support: int, next_support: int, end: bool
) -> None:
    ahead = drafted(6, support=support)
    ahead.keep(tokens(ahead)[:2], support=next_support, end=end)
    assert len(ahead) == 0
    assert ahead.support == next_support


def test_distributions_of_another_size_are_kept() -> None:
    ahead = drafted(6, support=8)
    ahead.keep(tokens(ahead)[:2], support=4, end=False)
    assert len(ahead) == 4
    assert all(one.proposal for one in ahead.first(4))


def test_a_verdict_beyond_what_was_drafted_leaves_nothing() -> None:
    ahead = drafted(2)
    ahead.keep((*tokens(ahead), 7), support=0, end=False)
    assert len(ahead) == 0
