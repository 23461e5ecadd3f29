"""The filter on ln(rate): noise, steps, outliers, priors, age."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdk.link.echo import EchoProbe, SizeDifferential
from sdk.link.fusion import RateFilter
from sdk.link.interface import LinkReading, Method


def feed(rates: RateFilter, values: list[float], *, start_s: float = 0.0) -> float:
    now_s = start_s
    for value in values:
        rates.add(rate_bps=value, method=Method.PUBACK, deviation=0.05, now_s=now_s)
        now_s += 1.0
    return now_s


def test_before_the_first_reading_nothing_is_known() -> None:
    assert RateFilter().estimate(5.0) is None


def test_noise_is_averaged() -> None:
    """The filter's error is smaller than a reading's, over many seeds."""
    errors = []
    for seed in range(200):
        noise = random.Random(seed)
        rates = RateFilter(drift=0.02)
        feed(rates, [8e6 * math.exp(noise.gauss(0.0, 0.1)) for _ in range(20)])
        fused = rates.estimate(19.0)
        assert fused is not None
        errors.append(math.log(fused.rate_bps / 8e6))
    assert math.sqrt(sum(error**2 for error in errors) / len(errors)) < 0.05


@pytest.mark.parametrize("factor", [0.25, 3.0])
def test_a_step_is_followed_with_the_second_reading(factor: float) -> None:
    rates = RateFilter()
    now_s = feed(rates, [8e6] * 10)
    add = {"method": Method.PUBACK, "deviation": 0.05}
    assert not rates.add(rate_bps=8e6 * factor, now_s=now_s, **add)  # type: ignore[arg-type]
    held = rates.estimate(now_s)
    assert held is not None
    assert held.rate_bps == pytest.approx(8e6, rel=1e-3)
    assert rates.add(rate_bps=8e6 * factor, now_s=now_s + 0.1, **add)  # type: ignore[arg-type]
    fused = rates.estimate(now_s + 0.1)
    assert fused is not None
    assert fused.rate_bps == pytest.approx(8e6 * factor, rel=0.02)


def test_two_outliers_on_opposite_sides_are_no_step() -> None:
    rates = RateFilter()
    now_s = feed(rates, [8e6] * 10)
    feed(rates, [1e6, 64e6], start_s=now_s)
    fused = rates.estimate(now_s)
    assert fused is not None
    assert fused.rate_bps == pytest.approx(8e6, rel=0.01)


def test_doubt_grows_with_age() -> None:
    rates = RateFilter()
    feed(rates, [8e6] * 5)
    early, late = rates.estimate(5.0), rates.estimate(60.0)
    assert early is not None
    assert late is not None
    assert late.rate_bps == early.rate_bps
    assert late.deviation > early.deviation
    assert late.rate_lo_bps < early.rate_lo_bps < early.rate_bps
    assert late.confidence < early.confidence <= 1.0
    assert late.age_s == 56.0


def test_the_model_s_confidence_is_what_happens() -> None:
    """Of rates drawn as the filter believes, the stated share lies within 15 %."""
    rates = RateFilter()
    feed(rates, [8e6] * 5)
    fused = rates.estimate(8.0)
    assert fused is not None
    noise = random.Random(1)
    draws = [math.exp(noise.gauss(0.0, fused.deviation)) for _ in range(20_000)]
    within = sum(1 / 1.15 <= draw <= 1.15 for draw in draws) / len(draws)
    assert within == pytest.approx(fused.confidence, abs=0.01)
    above = sum(draw * fused.rate_bps >= fused.rate_lo_bps for draw in draws) / len(draws)
    assert above == pytest.approx(0.9, abs=0.01)


def test_a_prior_speaks_only_while_nothing_is_measured() -> None:
    rates = RateFilter()
    prior = {"method": Method.PHY, "deviation": 0.4}
    for second in range(100):
        assert rates.add(rate_bps=60e6, now_s=float(second), **prior)  # type: ignore[arg-type]
    alone = rates.estimate(100.0)
    assert alone is not None
    assert alone.deviation >= 0.4  # a hundred repetitions of one bias are one bias
    assert rates.add(rate_bps=8e6, method=Method.PUBACK, deviation=0.05, now_s=100.0)
    measured = rates.estimate(100.0)
    assert measured is not None
    assert measured.rate_bps == pytest.approx(8e6)
    assert not rates.add(rate_bps=60e6, now_s=110.0, **prior)  # type: ignore[arg-type]


@given(
    st.lists(
        st.tuples(
            st.floats(1e3, 1e10),
            st.sampled_from(list(Method)),
            st.floats(0.0, 2.0),
            st.floats(-5.0, 100.0),
        ),
        max_size=60,
    )
)
def test_the_estimate_stays_finite_and_between_the_readings(
    readings: list[tuple[float, Method, float, float]],
) -> None:
    rates, now_s = RateFilter(), 0.0
    for rate_bps, method, deviation, gap_s in readings:
        now_s += gap_s  # time may even stand still or go back
        rates.add(rate_bps=rate_bps, method=method, deviation=deviation, now_s=now_s)
    fused = rates.estimate(now_s)
    if fused is None:
        assert not readings
        return
    values = [rate_bps for rate_bps, *_ in readings]
    assert min(values) * 0.999 <= fused.rate_bps <= max(values) * 1.001
    assert 0.0 < fused.deviation < math.inf
    assert 0.0 <= fused.confidence <= 1.0


def test_readings_are_checked() -> None:
    with pytest.raises(ValueError, match="together"):
        LinkReading(at_s=0.0, rate_bps=1e6)
    with pytest.raises(ValueError, match="rate_bps"):
        LinkReading(at_s=0.0, rate_bps=math.nan, method=Method.PHY)
    with pytest.raises(ValueError, match="deviation"):
        LinkReading(at_s=0.0, deviation=-1.0)


def test_size_differential() -> None:
    """41.67 ms and 1.046 µs a byte: a recorded link of 8 Mbit/s with 20 ms each way."""
    differential = SizeDifferential()

    def exchange(size_bytes: int, now_s: float, late_s: float = 0.0) -> float | None:
        round_trip_s = 41.67e-3 + 1.046e-6 * size_bytes + late_s
        return differential.add(size_bytes=size_bytes, round_trip_s=round_trip_s, now_s=now_s)

    assert exchange(16_000, 0.0) is None  # no base yet
    assert exchange(90, 1.0, late_s=0.02) is None
    assert exchange(90, 2.0) is None
    assert exchange(16_000, 3.0) == pytest.approx(7.65e6, rel=0.01)
    assert exchange(2_000, 3.0) is None  # 2 ms: too short to tell
    assert exchange(16_000, 30.0) is None  # the base is too old


def test_the_echo_takes_off_the_server_s_time() -> None:
    echo = EchoProbe()
    assert echo.read(0.0) is None
    for now_s in (1.0, 2.0):
        echo.observe(size_bytes=90, round_trip_s=0.142, server_s=0.1, now_s=now_s)
    echo.observe(size_bytes=90, round_trip_s=0.1, server_s=0.2, now_s=2.5)  # cannot be
    reading = echo.read(3.0)
    assert reading is not None
    assert reading.rtt_s == pytest.approx(0.042)
    assert reading.at_s == 2.0
    assert reading.rate_bps is None
    assert echo.read(3.5) is None
    echo.observe(size_bytes=16_000, round_trip_s=0.042 + 0.0167 + 0.1, server_s=0.1, now_s=4.0)
    reading = echo.read(5.0)
    assert reading is not None
    assert reading.method is Method.PROBE
    assert reading.rate_bps == pytest.approx(7.6e6, rel=0.02)
    echo.close()
