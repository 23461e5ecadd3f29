"""Policies: who goes into the next pass."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_server.scheduler.interface import Policy, Waiting
from edge_server.scheduler.policies import (
    POLICY_NAMES,
    Auto,
    Continuous,
    PingPong,
    Synchronous,
    make_policy,
)


def draft(session: int, *, at_s: float = 0.0, rows: int = 5) -> Waiting:
    return Waiting(device=f"d{session}", session=session, arrived_s=at_s, rows=rows)


def test_continuous_takes_the_oldest_that_fit() -> None:
    policy = Continuous(row_budget=11)
    waiting = [draft(3), draft(1), draft(2, rows=1)]
    assert policy.pick(waiting, active={1, 2, 3}, now_s=0.0) == [3, 1, 2]
    # A long draft is not overtaken: session 2 waits behind session 1.
    waiting = [draft(3, rows=10), draft(1), draft(2, rows=1)]
    assert policy.pick(waiting, active={1, 2, 3}, now_s=0.0) == [3]


def test_one_draft_may_exceed_the_budget_and_nobody_goes_twice() -> None:
    policy = Continuous(row_budget=4)
    assert policy.pick([draft(1, rows=9)], active={1}, now_s=0.0) == [1]
    assert Continuous().pick([draft(1), draft(1)], active={1}, now_s=0.0) == [1]
    assert Continuous().pick([], active={1}, now_s=0.0) == []


def test_synchronous_waits_for_all_then_for_the_deadline() -> None:
    policy = Synchronous(deadline_s=0.5)
    waiting = [draft(1, at_s=1.0)]
    assert policy.pick(waiting, active={1, 2}, now_s=1.1) == []
    assert policy.wake_s(waiting, now_s=1.1) == pytest.approx(0.4)
    assert policy.pick(waiting, active={1, 2}, now_s=1.5) == [1]
    assert policy.wake_s([], now_s=2.0) is None


def test_a_dead_device_costs_one_deadline() -> None:
    policy = Synchronous(deadline_s=0.5)
    active = {1, 2, 3}
    both = [draft(1, at_s=0.0), draft(2, at_s=0.0)]
    assert policy.pick(both, active=active, now_s=0.1) == []
    assert policy.pick(both, active=active, now_s=0.5) == [1, 2]
    both = [draft(1, at_s=1.0), draft(2, at_s=1.0)]
    assert policy.pick(both, active=active, now_s=1.0) == [1, 2]
    # It comes back: from then on it is waited for again.
    assert policy.pick([draft(3, at_s=2.0)], active=active, now_s=2.0) == []
    everyone = [draft(3, at_s=2.0), draft(1, at_s=2.1), draft(2, at_s=2.1)]
    assert policy.pick(everyone, active=active, now_s=2.1) == [3, 1, 2]
    assert policy.pick(both, active=active, now_s=3.0 - 1.6) == []


def test_a_barrier_larger_than_the_budget_goes_in_several_passes() -> None:
    policy = Synchronous(deadline_s=9.0, row_budget=10)
    active = {1, 2, 3}
    waiting = [draft(1), draft(2), draft(3)]
    assert policy.pick(waiting, active=active, now_s=0.0) == [1, 2]
    # Session 1 is back already, but belongs to the next barrier.
    assert policy.pick([draft(3), draft(1, at_s=0.2)], active=active, now_s=0.2) == [3]
    assert policy.pick([draft(1, at_s=0.2)], active=active, now_s=0.3) == []


def test_ping_pong_alternates_and_keeps_groups() -> None:
    policy = PingPong(deadline_s=9.0)
    active = {1, 2, 3, 4}
    everyone = [draft(session) for session in (1, 2, 3, 4)]
    first = policy.pick(everyone, active=active, now_s=0.0)
    second = policy.pick([d for d in everyone if d.session not in first], active=active, now_s=0.0)
    assert sorted(first + second) == [1, 2, 3, 4]
    assert len(first) == len(second) == 2
    # Both ready again: the group that did not go last is first.
    assert policy.pick(everyone, active=active, now_s=1.0) == first
    assert policy.pick(everyone, active=active, now_s=1.0) == second


def test_ping_pong_follows_an_assignment() -> None:
    policy = PingPong(deadline_s=9.0)
    policy.assign({1: 1, 2: 0, 3: 0})
    assert policy.pick([draft(1)], active={1, 2, 3}, now_s=0.0) == [1]
    assert policy.pick([draft(2)], active={1, 2, 3}, now_s=0.0) == []
    assert policy.pick([draft(2), draft(3)], active={1, 2, 3}, now_s=0.0) == [2, 3]
    with pytest.raises(ValueError, match="groups are 0 and 1"):
        policy.assign({1: 2})


def test_auto_follows_the_choice_between_passes() -> None:
    chosen = ["continuous"]
    policy = make_policy("auto", choose=lambda: chosen[0])
    assert isinstance(policy, Auto)
    assert policy.pick([draft(1)], active={1, 2}, now_s=0.0) == [1]
    chosen[0] = "synchronous"
    assert policy.pick([draft(1)], active={1, 2}, now_s=0.0) == []


def test_make_policy_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="unknown policy 'lifo'"):
        make_policy("lifo")
    with pytest.raises(ValueError, match="row_budget"):
        make_policy("continuous", row_budget=0)
    with pytest.raises(ValueError, match="deadline_s"):
        make_policy("synchronous", deadline_s=0.0)


@given(
    name=st.sampled_from(POLICY_NAMES),
    arrivals=st.lists(
        st.tuples(st.integers(0, 5), st.floats(0.0, 2.0), st.integers(1, 9)), max_size=60
    ),
    budget=st.integers(1, 20),
)
def test_every_draft_is_picked_once_within_the_deadline(
    name: str, arrivals: list[tuple[int, float, int]], budget: int
) -> None:
    """Whatever arrives, in any policy, is picked exactly once, in bounded time."""
    policy: Policy = make_policy(name, row_budget=budget, deadline_s=0.5)
    active = set(range(6))
    waiting: list[Waiting] = []
    now_s = 0.0
    for session, gap_s, rows in arrivals:
        now_s += gap_s
        if session not in {d.session for d in waiting}:
            waiting.append(draft(session, at_s=now_s, rows=rows))
        picked = policy.pick(waiting, active=active, now_s=now_s)
        assert len(picked) == len(set(picked))
        assert set(picked) <= {d.session for d in waiting}
        waiting = [d for d in waiting if d.session not in picked]
    for _ in range(len(active) + 2):
        wake_s = policy.wake_s(waiting, now_s=now_s)
        now_s += wake_s if wake_s is not None else 0.0
        picked = policy.pick(waiting, active=active, now_s=now_s)
        waiting = [d for d in waiting if d.session not in picked]
    assert waiting == []


def test_ping_pong_asks_for_groups_before_every_pick() -> None:
    groups = {1: 0, 2: 1}
    policy = make_policy("ping_pong", deadline_s=9.0, groups=lambda: groups)
    assert policy.pick([draft(1)], active={1, 2}, now_s=0.0) == [1]
    groups[1] = 1
    assert policy.pick([draft(1)], active={1, 2}, now_s=1.0) == []
    assert policy.pick([draft(1), draft(2)], active={1, 2}, now_s=1.0) == [1, 2]
