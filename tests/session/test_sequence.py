"""What a verdict adds to the device's sequence (docs/wire.md, W-SESSION-*)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sdk.protocol import End, Verdict
from sdk.sequence import Reception, Sequence

PROMPT = [1, 2, 3]


def verdict(
    position: int,
    token_ids: tuple[int, ...],
    *,
    accepted: int = 0,
    round_: int = 1,
    end: End = End.NO,
) -> Verdict:
    return Verdict(
        session=9,
        round=round_,
        position=position,
        echo_us=0,
        queue_us=0,
        compute_us=0,
        accepted=accepted,
        token_ids=token_ids,
        id_bits=12,
        grant_length=4,
        end=end,
    )


def test_accepted_prefix_and_the_targets_token_are_committed() -> None:
    sequence = Sequence.start(PROMPT)
    received = sequence.receive(verdict(3, (9,), accepted=2), round_=1, draft=(7, 8, 6))
    assert received is Reception.ADVANCED
    assert sequence.generated == [7, 8, 9]


def test_a_doubled_verdict_changes_nothing() -> None:
    sequence = Sequence.start(PROMPT)
    for _ in range(2):
        received = sequence.receive(verdict(3, (9,), accepted=2), round_=1, draft=(7, 8, 6))
    assert received is Reception.STALE
    assert sequence.generated == [7, 8, 9]


def test_another_rounds_acceptance_is_stale() -> None:
    sequence = Sequence.start(PROMPT)
    stated = verdict(3, (9,), accepted=1, round_=1)
    assert sequence.receive(stated, round_=2, draft=(5, 5)) is Reception.STALE
    assert sequence.generated == []


def test_an_acceptance_longer_than_the_draft_is_stale() -> None:
    sequence = Sequence.start(PROMPT)
    stated = verdict(3, (9,), accepted=3)
    assert sequence.receive(stated, round_=1, draft=(7, 8)) is Reception.STALE
    assert sequence.generated == []


def test_committed_tokens_hold_whatever_the_round_and_only_their_tail_is_new() -> None:
    sequence = Sequence.start(PROMPT, [7])
    assert sequence.receive(verdict(3, (7, 8, 9)), round_=5, draft=()) is Reception.ADVANCED
    assert sequence.generated == [7, 8, 9]
    assert sequence.receive(verdict(4, (8, 9)), round_=5, draft=()) is Reception.REPEATED


def test_a_gap_is_not_jumped() -> None:
    sequence = Sequence.start(PROMPT)
    assert sequence.receive(verdict(4, (9,)), round_=1, draft=()) is Reception.GAP
    assert sequence.generated == []


def test_an_end_without_tokens_advances() -> None:
    sequence = Sequence.start(PROMPT, [7])
    received = sequence.receive(verdict(4, (), end=End.STOP_TOKEN), round_=1, draft=())
    assert received is Reception.ADVANCED
    assert sequence.end is End.STOP_TOKEN


def test_an_old_end_does_not_end_a_longer_sequence() -> None:
    sequence = Sequence.start(PROMPT, [7, 8])
    stated = verdict(3, (7,), end=End.MAX_TOKENS)
    assert sequence.receive(stated, round_=1, draft=()) is Reception.REPEATED
    assert sequence.end is End.NO


@given(st.data())
def test_any_mixture_of_true_statements_yields_the_true_sequence(data: st.DataObject) -> None:
    """Lost, doubled and reordered verdicts: what is committed is always a prefix of the truth."""
    truth = data.draw(st.lists(st.integers(0, 99), min_size=1, max_size=30))
    sequence = Sequence.start(PROMPT)
    whole = [*PROMPT, *truth]
    for _ in range(data.draw(st.integers(1, 40))):
        start = data.draw(st.integers(len(PROMPT), len(whole)))
        stop = data.draw(st.integers(start, len(whole)))
        accepted = data.draw(st.integers(0, stop - start))
        draft = tuple(whole[start : start + accepted])
        at_tip = start == sequence.position
        stated = verdict(start, tuple(whole[start + accepted : stop]), accepted=accepted)
        sequence.receive(stated, round_=1, draft=draft if at_tip else (0,) * accepted)
        assert sequence.tokens == whole[: len(sequence.tokens)]
