"""The rule that ends a draft: what it weighs, what it learns, and what it gains."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from sdk.draft.early_stop import LEAST_ROUNDS, EarlyStop

CONFIDENCES = st.lists(st.floats(0.0, 1.0), max_size=12)


def settled(*, token_s: float, round_s: float, tokens: int = 3) -> EarlyStop:
    """Return a rule that has seen rounds of one kind, all of whose tokens were accepted."""
    rule = EarlyStop()
    rule.add_draft_time(token_s)
    for _ in range(LEAST_ROUNDS):
        rule.add_round([0.95] * (tokens - 1), accepted=tokens - 1, tokens=tokens, seconds=round_s)
    return rule


@given(CONFIDENCES)
def test_it_lets_drafts_grow_until_it_has_seen_some_rounds(confidences: list[float]) -> None:
    rule = EarlyStop()
    rule.add_draft_time(1.0)
    for _ in range(LEAST_ROUNDS - 1):
        assert rule.worth(confidences)
        rule.add_round([0.5], accepted=0, tokens=1, seconds=0.001)
    assert rule.worth(confidences)


def test_it_stops_where_the_next_token_costs_more_than_it_brings() -> None:
    rule = settled(token_s=0.02, round_s=0.1)  # 30 tokens/s, so a token is worth 0.033 s
    assert rule.worth([])  # a draft of none would be the server's own pace
    assert rule.worth([0.9])
    assert not rule.worth([0.5])
    assert not rule.worth([0.7, 0.7])


def test_a_slower_round_makes_longer_drafts_worth_while() -> None:
    assert not settled(token_s=0.02, round_s=0.1).worth([0.3])
    assert settled(token_s=0.02, round_s=1.0).worth([0.3])


@given(CONFIDENCES, st.floats(0.0, 1.0))
def test_a_longer_draft_is_never_worth_more(confidences: list[float], more: float) -> None:
    rule = settled(token_s=0.02, round_s=0.1)
    assert rule.worth(confidences) or not confidences or not rule.worth([*confidences, more])


def test_it_learns_how_often_a_confidence_comes_true() -> None:
    rule, source = EarlyStop(), random.Random(0)
    for _ in range(2000):
        rule.add_round([0.85], accepted=int(source.random() < 0.4), tokens=1, seconds=0.1)
    assert abs(rule.probability(0.85) - 0.4) < 0.1
    assert rule.probability(0.15) == 0.15


def test_tokens_behind_a_rejected_one_teach_nothing() -> None:
    rule = EarlyStop()
    rule.add_round([0.95, 0.55, 0.35], accepted=1, tokens=2, seconds=0.1)
    assert rule.probability(0.95) > 0.95
    assert rule.probability(0.55) < 0.55
    assert rule.probability(0.35) == 0.35


def test_it_beats_every_fixed_length_where_confidence_tells() -> None:
    """Half of all tokens are sure, half are one in ten; a round costs five tokens' time."""
    fixed = {length: rate(length, early=False) for length in range(1, 9)}
    assert rate(8, early=True) > 1.05 * max(fixed.values())


def rate(length: int, *, early: bool) -> float:
    """Return tokens per second of 4,000 rounds of at most `length` tokens."""
    source, rule = random.Random(1), EarlyStop()
    token_s, fixed_s, emitted, total_s = 0.02, 0.1, 0, 0.0
    for _ in range(4000):
        confidences: list[float] = []
        while len(confidences) < length and (not early or rule.worth(confidences)):
            confidences.append(source.choice([0.98, 0.1]))
            rule.add_draft_time(token_s)
        accepted = 0
        while accepted < len(confidences) and source.random() < confidences[accepted]:
            accepted += 1
        seconds = fixed_s + len(confidences) * token_s
        rule.add_round(confidences, accepted=accepted, tokens=accepted + 1, seconds=seconds)
        emitted, total_s = emitted + accepted + 1, total_s + seconds
    return emitted / total_s
