"""Integration against waveforms whose energy is known by hand, for every kind of meter."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdk.energy.calibration import Calibration
from sdk.energy.curve import energy_curve
from sdk.energy.interface import Kind, MeterInfo, Sample, Scope
from sdk.energy.ring import SampleRing, Trace
from sdk.errors import EnergyError


def describe(kind: Kind, rate_hz: float, **more: object) -> MeterInfo:
    fields = {
        "driver": "test",
        "label": "test",
        "kind": kind,
        "scope": Scope.NONE,
        "rate_hz": rate_hz,
        "averaging_s": 1 / rate_hz if kind is Kind.AVERAGED else None,
    }
    return MeterInfo(**{**fields, **more})  # type: ignore[arg-type]


def test_a_ramp_is_integrated_exactly_between_samples() -> None:
    times_s = np.array([0.0, 0.7, 1.1, 2.0, 3.5])
    trace = Trace(describe(Kind.INSTANT, 1.0), times_s, 2.0 * times_s, np.zeros(5))
    assert energy_curve(trace).between(0.3, 2.9) == pytest.approx(2.9**2 - 0.3**2)


def test_a_sine_is_integrated_to_the_trapezoid_s_error() -> None:
    times_s = np.arange(0.0, 10.0, 0.01)
    watts = 5 + 2 * np.sin(2 * math.pi * times_s)
    trace = Trace(describe(Kind.INSTANT, 100.0), times_s, watts, np.zeros(len(times_s)))
    truth_j = 5 * 7.25 + (1 - math.cos(2 * math.pi * 7.25)) / math.pi
    assert energy_curve(trace).between(1.0, 8.25) == pytest.approx(truth_j, rel=1e-3)


def test_means_stand_for_the_middle_of_their_interval() -> None:
    times_s = np.arange(0.0, 10.0, 0.5)
    watts = times_s - 0.25  # of a ramp P = t, averaged over the half second before
    info = describe(Kind.AVERAGED, 2.0)
    curve = energy_curve(Trace(info, times_s, watts, np.zeros(len(times_s))))
    assert curve.between(1.1, 6.3) == pytest.approx((6.3**2 - 1.1**2) / 2)


def test_counters_share_out_only_the_intervals_at_the_edges() -> None:
    times_s = np.array([0.0, 1.0, 2.0, 3.0])
    totals_j = np.array([100.0, 104.0, 114.0, 115.0])
    curve = energy_curve(Trace(describe(Kind.COUNTER, 1.0), times_s, totals_j, np.zeros(4)))
    assert curve.between(0.5, 2.5) == pytest.approx(2 + 10 + 0.5)


def test_energies_per_sample_add_up() -> None:
    times_s = np.array([1.0, 2.0, 3.0, 4.0])
    joules = np.array([9.0, 2.0, 3.0, 4.0])  # the first belongs to a time before the window
    curve = energy_curve(Trace(describe(Kind.ENERGY_PER_SAMPLE, 1.0), times_s, joules, np.zeros(4)))
    assert curve.between(1.0, 4.0) == pytest.approx(9.0)


def test_samples_at_one_time_lose_no_energy() -> None:
    trace = Trace.of(
        describe(Kind.ENERGY_PER_SAMPLE, 1.0),
        [Sample(0, 0), Sample(1, 2), Sample(1, 3), Sample(1, 4), Sample(2, 5)],
    )
    assert energy_curve(trace).between(0.0, 2.0) == pytest.approx(14.0)


def test_lost_samples_are_bridged_and_counted_as_bridged() -> None:
    trace = Trace.of(
        describe(Kind.ENERGY_PER_SAMPLE, 1.0),
        [Sample(0, 5), Sample(1, 5), Sample(2, 5), Sample(6, 5, lost=3), Sample(7, 5)],
    )
    curve = energy_curve(trace)
    assert curve.between(0.0, 7.0) == pytest.approx(35.0)
    assert curve.bridged_s.sum() == pytest.approx(3.0)


def test_an_interval_of_unknown_energy_takes_its_neighbours_power() -> None:
    trace = Trace.of(
        describe(Kind.COUNTER, 1.0),
        [Sample(0, 10), Sample(1, 14), Sample(2, 14, lost=1), Sample(3, 20), Sample(4, 26)],
    )
    curve = energy_curve(trace)
    assert curve.between(0.0, 4.0) == pytest.approx(4 + 5 + 6 + 6)
    assert curve.bridged_s.tolist() == [0.0, 1.0, 0.0, 0.0]


def test_calibration_is_applied_to_every_kind() -> None:
    calibration = Calibration(gain=1.5, offset_w=0.25)
    for kind, values in (
        (Kind.INSTANT, [2.0, 2.0, 2.0]),
        (Kind.AVERAGED, [2.0, 2.0, 2.0]),
        (Kind.COUNTER, [7.0, 9.0, 11.0]),
        (Kind.ENERGY_PER_SAMPLE, [2.0, 2.0, 2.0]),
    ):
        info = describe(kind, 1.0, calibration=calibration)
        trace = Trace(info, np.array([0.0, 1.0, 2.0]), np.array(values), np.zeros(3))
        assert energy_curve(trace).between(0.0, 2.0) == pytest.approx(2 * (1.5 * 2 + 0.25))


def test_too_few_samples_are_refused() -> None:
    for samples in ([], [Sample(0, 1)], [Sample(1, 1), Sample(1, 2)]):
        for kind in Kind:
            with pytest.raises(EnergyError, match="at least 2 needed"):
                energy_curve(Trace.of(describe(kind, 1.0), samples))


@given(
    st.lists(st.floats(0.001, 2.0), min_size=2, max_size=40),
    st.lists(st.floats(0.0, 50.0), min_size=41, max_size=41),
    st.floats(0.0, 1.0),
    st.floats(0.0, 1.0),
    st.sampled_from(list(Kind)),
)
def test_windows_that_join_add_up(
    steps_s: list[float], values: list[float], left: float, right: float, kind: Kind
) -> None:
    times_s = np.cumsum(steps_s)
    watts = np.array(values[: len(times_s)])
    values_of = np.cumsum(watts) if kind is Kind.COUNTER else watts
    curve = energy_curve(Trace(describe(kind, 1.0), times_s, values_of, np.zeros(len(times_s))))
    t0_s, t1_s = times_s[0] - 1, times_s[-1] + 1
    a_s, b_s = sorted(t0_s + share * (t1_s - t0_s) for share in (left, right))
    parts = curve.between(t0_s, a_s) + curve.between(a_s, b_s) + curve.between(b_s, t1_s)
    assert parts == pytest.approx(curve.between(t0_s, t1_s), rel=1e-9, abs=1e-6)
    assert curve.between(a_s, b_s) >= -1e-9


def test_the_ring_keeps_the_latest_samples_in_order() -> None:
    ring = SampleRing(capacity=2000)
    info = describe(Kind.INSTANT, 1.0)
    ring.extend(Sample(float(i), float(i)) for i in range(5000))
    ring.extend([Sample(4000.0, 1.0), Sample(float("nan"), 1.0), Sample(6000.0, float("inf"))])
    trace = ring.trace(info, 0.0, 1e9)
    assert len(ring) == 2000
    assert trace.times_s[0] == 3001.0
    assert trace.times_s[-2:].tolist() == [4999.0, 4999.0]  # held level, not backwards
    assert ring.wrapped
    assert ring.oldest_s() == 3001.0
