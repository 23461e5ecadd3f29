"""Records: joules per token by hand, idle, phases, schema, refusal."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sdk.energy import Phase, PhaseLog, Verdict, energy_per_token, idle_between, record_schema
from sdk.energy.attribution import Method, split
from sdk.energy.board import BoardState
from sdk.energy.calibration import Calibration
from sdk.energy.interface import Kind, MeterInfo, Scope
from sdk.energy.record import EnergyRecord
from sdk.energy.ring import Trace
from sdk.energy.student import t_95
from sdk.energy.window import Measurement, measure
from sdk.errors import EnergyError

PI = BoardState(model="Raspberry Pi 5 Model B Rev 1.0", throttled=0, temperature_c=51.0)


def seen(
    watts: Callable[[np.ndarray], np.ndarray],
    t0_s: float,
    t1_s: float,
    *,
    kind: Kind = Kind.INSTANT,
    rate_hz: float = 10.0,
    **more: object,
) -> Measurement:
    """Measure a power given as a function of time, exactly sampled."""
    times_s = np.arange(t0_s - 1, t1_s + 1, 1 / rate_hz)
    fine_s = np.linspace(times_s[0], times_s[-1], 200 * len(times_s))
    middle_w = watts((fine_s[:-1] + fine_s[1:]) / 2)
    total_j = np.concatenate(([0.0], np.cumsum(middle_w * np.diff(fine_s))))
    counted = np.interp(times_s, fine_s, total_j)
    values = counted if kind is Kind.COUNTER else watts(times_s)
    info = MeterInfo(
        driver="test",
        label="test",
        kind=kind,
        scope=Scope.RAILS,
        rate_hz=rate_hz,
        **more,  # type: ignore[arg-type]
    )
    trace = Trace(info, times_s, values, np.zeros(len(times_s)))
    return measure(trace, t0_s, t1_s, boards=[PI, PI])


def steady(watts: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda times_s: np.full(len(times_s), watts)


def record(measurement: Measurement, **more: object) -> EnergyRecord:
    phases = more.pop("phases", PhaseLog())
    tokens = {"drafted": 100, "accepted": 60, "emitted": 80, **more}
    return energy_per_token(measurement, phases, **tokens)  # type: ignore[arg-type]


def test_joules_per_token_by_hand() -> None:
    result = record(seen(steady(4.0), 100.0, 120.0))  # 80 J
    drafted, accepted, emitted = (
        result.per_token(counted) for counted in ("drafted", "accepted", "emitted")
    )
    assert drafted is not None
    assert accepted is not None
    assert emitted is not None
    assert drafted.value == pytest.approx(0.8)
    assert accepted.value == pytest.approx(80 / 60)
    assert emitted.value == pytest.approx(1.0)
    assert result.verdict is Verdict.OK
    assert result.per_token("emitted", net=True) is None  # nobody measured idle


def test_net_figures_take_off_the_idle_around_the_window() -> None:
    idle = idle_between(seen(steady(2.95), 0.0, 20.0), seen(steady(3.05), 60.0, 80.0))
    assert idle.problem == ""
    assert idle.power_w == pytest.approx(3.0)
    result = record(seen(steady(5.0), 30.0, 50.0), idle=idle)
    assert result.net_j is not None
    assert result.net_j.value == pytest.approx(40.0)
    net = result.per_token("emitted", net=True)
    assert net is not None
    assert net.value == pytest.approx(0.5)
    assert net.low < 0.5 < net.high  # idle moved, so there is doubt
    assert result.per_token("emitted") is not None


def test_an_idle_that_moved_forbids_net_figures_and_says_so() -> None:
    idle = idle_between(seen(steady(2.8), 0.0, 20.0), seen(steady(3.2), 60.0, 80.0))
    result = record(seen(steady(5.0), 30.0, 50.0), idle=idle)
    assert result.net_j is None
    assert result.per_token("emitted", net=True) is None
    assert result.per_token("emitted") is not None
    assert result.verdict is Verdict.DEGRADED
    assert any("idle moved from 2.800 W" in reason for reason in result.reasons)


def test_a_meter_that_is_silent_while_idle_costs_the_net_figures_alone() -> None:
    full = seen(steady(5.0), 30.0, 50.0)
    nothing = Trace(full.meter, np.empty(0), np.empty(0), np.empty(0))
    idle = idle_between(seen(steady(3.0), 0.0, 20.0), measure(nothing, 60.0, 80.0))
    result = record(full, idle=idle)
    assert result.net_j is None
    assert result.per_token("emitted") is not None
    assert any("no samples while idle" in reason for reason in result.reasons)


def test_gain_and_offset_widen_the_interval_and_the_offset_leaves_net_alone() -> None:
    plain = record(seen(steady(4.0), 100.0, 120.0))
    doubtful = seen(steady(4.0), 100.0, 120.0, gain_rel=0.02, offset_w=0.1)
    result = record(doubtful)
    assert plain.gross_j is not None
    assert result.gross_j is not None
    assert plain.gross_j.high - plain.gross_j.value == pytest.approx(0.0)
    assert result.gross_j.high - 80 == pytest.approx(t_95(199) * np.hypot(1.6, 2.0), rel=1e-3)
    idle = idle_between(seen(steady(3.0), 0.0, 20.0), seen(steady(3.0), 60.0, 80.0))
    net = record(doubtful, idle=idle).net_j
    assert net is not None
    assert net.high - 20 == pytest.approx(t_95(199) * 0.02 * 20, rel=1e-3)


def test_a_calibration_s_covariance_goes_into_the_interval() -> None:
    calibration = Calibration(
        gain=1.1, offset_w=0.5, var_gain=1e-4, var_offset=4e-4, cov=-1.9e-4, reference="UM25C"
    )
    result = seen(steady(4.0), 100.0, 120.0, calibration=calibration)
    assert result.gross_j == pytest.approx(20 * (1.1 * 4 + 0.5))
    assert result.uncertainty is not None
    expected = 20 * np.sqrt(1e-4 * 16 + 2 * 4 * -1.9e-4 + 4e-4)
    assert result.uncertainty.gain_j == pytest.approx(expected)


@pytest.mark.parametrize(
    ("kind", "length_s", "more"),
    [
        (Kind.INSTANT, 9.0, {}),
        (Kind.AVERAGED, 0.9, {"averaging_s": 0.1}),
        (Kind.COUNTER, 0.9, {"update_period_s": 0.1}),
    ],
)
def test_windows_too_short_for_their_source_are_refused(
    kind: Kind, length_s: float, more: dict[str, float]
) -> None:
    rate_hz = 10.0
    short = record(seen(steady(4.0), 0.0, length_s, kind=kind, rate_hz=rate_hz, **more))
    assert short.verdict is Verdict.INVALID
    assert any(reason.startswith("too short") for reason in short.reasons)
    assert short.per_token("emitted") is None
    assert short.gross_j is not None  # gross is always told
    enough = record(seen(steady(4.0), 0.0, 10 * length_s, kind=kind, rate_hz=rate_hz, **more))
    assert enough.verdict is Verdict.OK
    assert enough.per_token("emitted") is not None


def test_gaps_degrade_a_window() -> None:
    whole = seen(steady(4.0), 0.0, 20.0, kind=Kind.INSTANT)
    times_s = np.concatenate((np.arange(-1, 8, 0.1), np.arange(10, 21, 0.1)))
    trace = Trace(whole.meter, times_s, np.full(len(times_s), 4.0), np.zeros(len(times_s)))
    measurement = measure(trace, 0.0, 20.0)
    assert measurement.verdict is Verdict.DEGRADED
    assert measurement.sampling.gaps == 1
    assert measurement.sampling.gap_s == pytest.approx(2.0, abs=0.11)
    assert "gaps" in measurement.reasons[0]


def test_a_window_beyond_the_samples_is_no_measurement_of_it() -> None:
    whole = seen(steady(4.0), 0.0, 20.0)
    assert whole.curve is not None
    times_s = np.arange(0.0, 5.0, 0.1)
    trace = Trace(whole.meter, times_s, np.full(50, 4.0), np.zeros(50))
    measurement = measure(trace, 0.0, 20.0)
    assert measurement.verdict is Verdict.INVALID
    assert measurement.gross_j == pytest.approx(80.0)


def test_estimates_and_busy_samplers_are_named() -> None:
    estimated = seen(steady(4.0), 0.0, 20.0, estimated=True)
    assert any(reason.startswith("estimated") for reason in estimated.reasons)
    assert estimated.verdict is Verdict.DEGRADED
    trace = Trace(estimated.meter, np.arange(0, 30, 0.1), np.full(300, 4.0), np.zeros(300))
    busy = measure(trace, 5.0, 25.0, sampler_cpu=0.03)
    assert any("3.0% of a core" in reason for reason in busy.reasons)


def test_impossible_counts_are_refused() -> None:
    measurement = seen(steady(4.0), 0.0, 20.0)
    with pytest.raises(EnergyError, match="101 accepted of 100"):
        record(measurement, accepted=101)
    with pytest.raises(EnergyError, match="below 0"):
        record(measurement, emitted=-1)
    nothing = record(measurement, drafted=0, accepted=0)
    assert nothing.per_token("drafted") is None
    assert nothing.per_token("emitted") is not None


# phases


def alternating(
    draft_s: float, wait_s: float, until_s: float, jitter: float = 0.0
) -> tuple[PhaseLog, Callable[[np.ndarray], np.ndarray]]:
    """Return drafts at 8 W and waits at 3 W, as marks and as power."""
    random = np.random.default_rng(5)
    log, edges_s, now_s = PhaseLog(), [0.0], 0.0
    while now_s < until_s:
        for phase, length_s in ((Phase.DRAFT, draft_s), (Phase.WAIT, wait_s)):
            log.enter(phase, now_s=now_s)
            now_s += length_s * (1 + jitter * random.uniform(-1, 1))
            edges_s.append(now_s)
    edges = np.array(edges_s)
    return log, lambda times_s: np.where(
        np.searchsorted(edges, times_s, "right") % 2 == 1, 8.0, 3.0
    )


def test_long_phases_are_integrated() -> None:
    log, watts = alternating(2.0, 1.0, 40.0)
    measurement = seen(watts, 3.0, 30.0, kind=Kind.COUNTER)
    phases = split(measurement, log.spans(3.0, 30.0))
    assert phases[Phase.DRAFT].method is Method.INTEGRAL
    assert phases[Phase.DRAFT].energy_j == pytest.approx(18 * 8, rel=1e-3)
    assert phases[Phase.WAIT].energy_j == pytest.approx(9 * 3, rel=1e-3)
    total = sum(phase.energy_j or 0.0 for phase in phases.values())
    assert total == pytest.approx(measurement.gross_j)


@pytest.mark.parametrize("kind", [Kind.INSTANT, Kind.COUNTER])
def test_short_phases_are_found_by_regression(kind: Kind) -> None:
    """Ten samples a second tell drafts of 80 ms from waits of 50 ms."""
    log, watts = alternating(0.08, 0.05, 70.0, jitter=0.5)
    measurement = seen(watts, 2.0, 62.0, kind=kind)
    phases = split(measurement, log.spans(2.0, 62.0))
    for phase, power_w in ((Phase.DRAFT, 8.0), (Phase.WAIT, 3.0)):
        assert phases[phase].method is Method.REGRESSION
        assert phases[phase].mean_w == pytest.approx(power_w, rel=0.03)
        energy_j, half_j = phases[phase].energy_j, phases[phase].half_width_j
        assert energy_j is not None
        assert half_j is not None
        assert abs(energy_j - power_w * phases[phase].duration_s) <= max(half_j, 0.01 * energy_j)


def test_phases_that_cannot_be_told_apart_have_no_figure() -> None:
    log, watts = alternating(0.05, 0.05, 40.0)  # every sample of 100 ms holds half of each
    measurement = seen(watts, 2.0, 32.0, kind=Kind.COUNTER)
    phases = split(measurement, log.spans(2.0, 32.0))
    assert phases[Phase.DRAFT].energy_j is None
    result = record(measurement, phases=log)
    assert result.draft_j_per_token is None
    assert result.wait_w is None


def test_the_scheduler_s_inputs() -> None:
    log, watts = alternating(2.0, 1.0, 40.0)
    result = record(seen(watts, 3.0, 30.0, kind=Kind.COUNTER), phases=log)
    assert result.draft_j_per_token == pytest.approx(18 * 8 / 100, rel=1e-3)
    assert result.wait_w == pytest.approx(3.0, rel=1e-3)


def test_phase_marks() -> None:
    log = PhaseLog(capacity=4)
    log.enter("prefill", now_s=0.0)
    log.enter(Phase.DRAFT, now_s=1.0)
    log.enter(Phase.DRAFT, now_s=1.5)  # in it already
    log.enter(Phase.WAIT, now_s=2.0)
    assert [(span.phase.value, span.start_s, span.end_s) for span in log.spans(0.5, 3.0)] == [
        ("prefill", 0.5, 1.0),
        ("draft", 1.0, 2.0),
        ("wait", 2.0, 3.0),
    ]
    assert log.spans(-2.0, -1.0) == []
    for number in range(10):
        log.enter((Phase.IDLE, Phase.WAIT)[number % 2], now_s=3.0 + number)
    assert len(log.spans(0.0, 100.0)) == 4
    assert log.forgot_since(0.0)
    assert not log.forgot_since(50.0)
    reasons = record(seen(steady(4.0), 0.0, 20.0), phases=log).reasons
    assert any("first marks were dropped" in reason for reason in reasons)
    with pytest.raises(EnergyError, match="lunch"):
        log.enter("lunch")


@given(st.lists(st.tuples(st.sampled_from(list(Phase)), st.floats(0, 2)), max_size=40))
def test_spans_tile_the_time_from_the_first_mark(marks: list[tuple[Phase, float]]) -> None:
    log, now_s = PhaseLog(), 1.0
    for phase, length_s in marks:
        log.enter(phase, now_s=now_s)
        now_s += length_s
    covered_s = sum(span.duration_s for span in log.spans(0.0, 100.0))
    assert covered_s == pytest.approx(99.0 if marks else 0.0)


# JSON


def test_records_fit_their_schema() -> None:
    schema = record_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    log, watts = alternating(2.0, 1.0, 40.0)
    idle = idle_between(seen(steady(3.0), 0.0, 20.0), seen(steady(3.0), 60.0, 80.0))
    full = seen(watts, 3.0, 30.0, kind=Kind.COUNTER)
    empty_trace = Trace(full.meter, np.empty(0), np.empty(0), np.empty(0))
    calibration = Calibration(gain=1.0, offset_w=0.0, reference="x", scope="usb_c")
    silent = measure(empty_trace, 60.0, 80.0)
    for result in (
        record(full, phases=log, idle=idle),
        record(full, phases=log, idle=idle_between(seen(steady(3.0), 0.0, 20.0), silent)),
        record(replace(full, meter=replace(full.meter, calibration=calibration))),
        record(seen(steady(4.0), 0.0, 1.0)),
        record(measure(empty_trace, 0.0, 20.0)),
    ):
        value = json.loads(json.dumps(result.to_json(), allow_nan=False))
        jsonschema.validate(value, schema)
    assert len(json.dumps(record(full, phases=log, idle=idle).to_json())) < 8192


def test_the_schema_refuses_what_is_missing_or_new() -> None:
    value = record(seen(steady(4.0), 0.0, 20.0)).to_json()
    for broken in (
        {**value, "verdict": "fine"},
        {**value, "watts": 1},
        {name: part for name, part in value.items() if name != "uncertainty"},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, record_schema())


def test_student_s_t() -> None:
    for freedom in (1, 2, 5, 17, 30, 31, 45, 100, 1000):
        assert t_95(freedom) == pytest.approx(float(stats.t.ppf(0.975, freedom)), rel=3e-4)
    assert t_95(0) == float("inf")
