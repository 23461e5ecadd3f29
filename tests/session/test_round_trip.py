"""The retransmission timeout."""

from __future__ import annotations

from sdk.round_trip import RoundTrip


def test_before_any_sample_the_first_timeout_holds_and_doubles() -> None:
    estimate = RoundTrip(first_timeout_s=2.0)
    assert [estimate.timeout_s(attempt=n) for n in range(3)] == [2.0, 4.0, 8.0]


def test_a_steady_link_converges_to_three_round_trips_but_not_below_the_least() -> None:
    estimate = RoundTrip(least_timeout_s=0.25)
    for _ in range(100):
        estimate.add(0.2)
    assert abs(estimate.timeout_s(attempt=0) - 0.6) < 1e-6
    for _ in range(100):
        estimate.add(0.001)
    assert estimate.timeout_s(attempt=0) == 0.25


def test_jitter_widens_the_timeout() -> None:
    steady, jittery = RoundTrip(), RoundTrip()
    for n in range(100):
        steady.add(0.3)
        jittery.add(0.1 if n % 2 else 0.5)
    assert jittery.timeout_s(attempt=0) > steady.timeout_s(attempt=0) + 0.5
