"""Timed trains: spacing, length, airtime, packets."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdk.link.ack_connection import publish_packet
from sdk.link.airtime import AirtimeBudget
from sdk.link.train import TrainPlan, spacing_of
from sdk.link.wire_cost import HEADER_BYTES, SEGMENT_BYTES, wire_cost_bytes
from sdk.transport.interface import publish_packet_bytes


@given(st.integers(2, 41), st.floats(1e-4, 0.1), st.floats(0.0, 1e4), st.integers(0, 2**32))
def test_late_acknowledgements_do_not_move_the_line(
    count: int, spacing_s: float, start_s: float, seed: int
) -> None:
    """Whatever is late, as long as one point before and one behind the middle is on time."""
    noise = random.Random(seed)
    on_time = {
        noise.randrange((count + 1) // 2 - count % 2),
        count - 1 - noise.randrange(count // 2),
    }
    late = [
        start_s + index * spacing_s + (0.0 if index in on_time else noise.random())
        for index in range(count)
    ]
    spacing = spacing_of(late)
    assert spacing.per_segment_s == pytest.approx(spacing_s, rel=1e-6, abs=1e-11)
    assert spacing.lateness_s >= 0.0


def test_one_acknowledgement_says_nothing() -> None:
    with pytest.raises(ValueError, match="two"):
        spacing_of([1.0])


def test_a_train_grows_until_it_can_be_timed() -> None:
    plan = TrainPlan()
    segment_s = 8 * SEGMENT_BYTES / 20e6
    rates = []
    for _ in range(5):
        segments = plan.segments(window=100)
        rates.append(plan.learn(segments=segments, per_segment_s=segment_s))
    assert rates[0] is None
    assert rates[-1] == pytest.approx(20e6)
    assert 0.009 <= plan.segments(window=100) * segment_s < 0.011


@pytest.mark.parametrize("window", [3, 10, 1000])
def test_a_train_stays_within_the_window(window: int) -> None:
    plan = TrainPlan()
    for _ in range(20):
        segments = plan.segments(window=window)
        assert 2 <= segments <= min(40, window - 1)
        plan.learn(segments=segments, per_segment_s=1e-7)


@given(st.lists(st.tuples(st.floats(0.0, 0.2), st.booleans(), st.floats(0.01, 2.0)), max_size=200))
def test_the_budget_is_kept(events: list[tuple[float, bool, float]]) -> None:
    """Airtime spent stays below share·time + credit + debt + one measurement."""
    budget, now_s, spent_s = AirtimeBudget(share=0.01, now_s=0.0), 0.0, 0.0
    for airtime_s, confirm, gap_s in events:
        now_s += gap_s
        if budget.is_due(now_s):
            budget.spend(airtime_s, now_s=now_s, confirm=confirm)
            spent_s += airtime_s
    assert spent_s <= 0.01 * now_s + 0.015 + 0.06 + 0.2 + 1e-9


def test_a_surprise_is_confirmed_at_once_and_paid_for() -> None:
    budget = AirtimeBudget(share=0.01, now_s=0.0)
    budget.spend(0.05, now_s=1.0, confirm=True)
    assert budget.is_due(1.0)
    budget.spend(0.02, now_s=1.0)
    assert not budget.is_due(5.0)
    assert budget.is_due(7.0)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_budget_is_a_share(share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        AirtimeBudget(share=share, now_s=0.0)


@pytest.mark.parametrize("size", [20, 128, 129, 131, 1448, 16_385, 16_400, 60_000])
def test_packets_have_the_size_that_is_asked_for(size: int) -> None:
    packet = publish_packet("t/1", 7, size)
    assert len(packet) == size
    assert packet[0] == 0x32
    payload_bytes = (
        size - (len(packet) - len(packet.lstrip(b"\x00"))) - publish_packet_bytes("t/1", 0, 1)
    )
    assert publish_packet_bytes("t/1", payload_bytes, 1) <= size + 3


def test_the_cost_of_a_packet() -> None:
    assert wire_cost_bytes(SEGMENT_BYTES * 3) == SEGMENT_BYTES * 3
    # Two packets of half a segment cost a second header, in the unit of full segments' payload.
    half = SEGMENT_BYTES // 2
    extra = 2 * wire_cost_bytes(half) - SEGMENT_BYTES
    assert extra == pytest.approx(
        HEADER_BYTES * SEGMENT_BYTES / (SEGMENT_BYTES + HEADER_BYTES), abs=1.0
    )
