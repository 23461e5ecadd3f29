"""Estimators: they find the truth, forget, and survive nonsense."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_server.scheduler.estimators import (
    DecayedMean,
    RateEstimator,
    RoundTripEstimator,
    SurvivalEstimator,
    VerifyEstimator,
)


def test_survival_finds_a_curve_that_is_not_geometric() -> None:
    rng = np.random.default_rng(1)
    hazard = np.array([0.6, 0.9, 0.9, 0.5, 0.8, 0.8])
    survival = SurvivalEstimator(max_length=6, keep=0.999)
    for _ in range(4000):
        drafted = int(rng.integers(1, 7))
        missed = np.flatnonzero(rng.random(drafted) > hazard[:drafted])
        survival.add(drafted=drafted, accepted=int(missed[0]) if missed.size else drafted)
    np.testing.assert_allclose(survival.curve(), np.cumprod(hazard), atol=0.04)


@given(rounds=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=80))
def test_survival_never_increases(rounds: list[tuple[int, int]]) -> None:
    survival = SurvivalEstimator(max_length=8)
    for drafted, accepted in rounds:
        survival.add(drafted=drafted, accepted=min(drafted, accepted))
    curve = survival.curve()
    assert np.all(np.diff(curve) <= 0.0)
    assert np.all((curve > 0.0) & (curve < 1.0))


def test_survival_forgets_an_old_task() -> None:
    survival = SurvivalEstimator(max_length=4, keep=0.9)
    for _ in range(100):
        survival.add(drafted=4, accepted=4)
    assert survival.acceptance > 0.9
    for _ in range(40):
        survival.add(drafted=4, accepted=0)
    assert survival.curve()[0] < 0.1
    with pytest.raises(ValueError, match="accepted"):
        survival.add(drafted=2, accepted=3)


def test_verify_time_is_recovered() -> None:
    rng = np.random.default_rng(2)
    verify = VerifyEstimator(keep=1.0)
    assert verify.fit() is None
    for _ in range(300):
        requests = int(rng.integers(1, 20))
        rows = requests + int(rng.integers(0, 8 * requests))
        context = int(rng.integers(100, 400)) * requests
        truth = 0.02 + 0.002 * requests + 0.0005 * rows + 1e-6 * context
        verify.add(
            requests=requests,
            rows=rows,
            context_tokens=context,
            duration_s=truth * float(rng.normal(1.0, 0.01)),
        )
    fit = verify.fit()
    assert fit is not None
    for requests, rows in ((3, 10), (15, 90)):
        truth = 0.02 + 0.002 * requests + 0.0005 * rows + 1e-6 * 200 * requests
        found = fit.predict(requests=requests, rows=rows, context_tokens=200 * requests)
        assert found == pytest.approx(truth, rel=0.02)


def test_verify_time_has_no_negative_part_and_follows_a_slower_server() -> None:
    verify = VerifyEstimator(keep=0.9)
    for _ in range(20):  # nothing to tell the terms apart
        verify.add(requests=4, rows=12, context_tokens=0, duration_s=0.05)
    for _ in range(80):
        verify.add(requests=4, rows=12, context_tokens=0, duration_s=0.1)
    verify.add(requests=4, rows=12, context_tokens=0, duration_s=math.nan)
    fit = verify.fit()
    assert fit is not None
    assert min(fit.fixed_s, fit.per_request_s, fit.per_row_s, fit.per_context_s) >= 0.0
    assert fit.predict(requests=4, rows=12) == pytest.approx(0.1, rel=0.02)


def test_rate_holds_back_one_outlier_and_follows_a_step() -> None:
    rate = RateEstimator()
    for second in range(10):
        rate.add(8e6, now_s=float(second))
    rate.add(0.5e6, now_s=10.0)
    assert rate.rate_bps == pytest.approx(8e6, rel=0.05)
    for second in range(11, 14):
        rate.add(2e6, now_s=float(second))
    assert rate.rate_bps == pytest.approx(2e6, rel=0.05)
    rate.add(math.nan, now_s=14.0)
    rate.add(-1.0, now_s=14.0)
    assert rate.rate_bps == pytest.approx(2e6, rel=0.05)


def test_small_estimators() -> None:
    mean = DecayedMean(gain=0.5)
    assert mean.value is None
    mean.add(math.inf)
    assert mean.value is None
    for sample in (1.0, 1.0, 3.0, 3.0, 3.0, 3.0):
        mean.add(sample)
    assert mean.value == pytest.approx(3.0, rel=0.1)
    trip = RoundTripEstimator(window=3)
    for sample in (0.02, 0.05, 0.06, 0.07):
        trip.add(sample)
    assert trip.round_trip_s == 0.05
    trip.add(-1.0)
    assert trip.round_trip_s == 0.0
