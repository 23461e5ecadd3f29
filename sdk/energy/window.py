"""From the samples around a window to what can be said about its energy.

Gross energy with its uncertainty, how the sampling went, and a verdict with reasons. Pure: samples
and board states come in as values. Knows nothing of tokens and of threads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

import numpy as np

from sdk.energy.board import BoardState
from sdk.energy.curve import EnergyCurve, energy_curve
from sdk.energy.interface import Kind, MeterInfo
from sdk.energy.ring import Trace
from sdk.energy.uncertainty import Uncertainty, WindowView, estimate
from sdk.errors import EnergyError

__all__ = ["Measurement", "Sampling", "Verdict", "WindowError", "finite", "measure", "worst"]

MIN_INSTANT_S = 10.0
MIN_INSTANT_SAMPLES = 100
MIN_PERIODS = 10
MAX_GAP_SHARE = 0.01
MAX_CPU_SHARE = 0.02
WIDE_INTERVAL = 0.10
USELESS_SHARE = 0.5  # of gaps, or of the interval's half width


class WindowError(EnergyError):
    """A window that was not begun, was begun twice, or ends before it begins."""


class Verdict(str, Enum):
    """Whether a figure may be quoted."""

    OK = "ok"
    DEGRADED = "degraded"
    INVALID = "invalid"


class Reason(NamedTuple):
    """Why a figure is not simply ok."""

    verdict: Verdict
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the sampling of a window went.

    Attributes:
        nominal_hz, achieved_hz: samples per second wanted and had.
        samples: how many lie in the window.
        dt_p50_s, dt_p95_s, dt_max_s: times between neighbours; 0 without any.
        gaps: how many stretches were bridged, and gap_s for how long in all.
        dropped: samples the source says it lost.
    """

    nominal_hz: float
    achieved_hz: float = 0.0
    samples: int = 0
    dt_p50_s: float = 0.0
    dt_p95_s: float = 0.0
    dt_max_s: float = 0.0
    gaps: int = 0
    gap_s: float = 0.0
    dropped: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """The energy of one window.

    Attributes:
        key: the window's name.
        meter: what measured it.
        t0_s, t1_s: the window on the monotonic clock.
        t0_utc: the same start as ISO 8601 in UTC, for people; None if nobody asked the wall clock.
        gross_j: everything that flowed, joules; None where there were no samples.
        uncertainty: of gross_j; None likewise.
        sampling: how the sampling went.
        board_before, board_after: the board's state nearest to either end, where known.
        sampler_cpu: the share of one core that the sampling thread took, where known.
        verdict, reasons: whether it may be quoted, and why not.
        curve: power over time, for the split into phases.
    """

    key: str
    meter: MeterInfo
    t0_s: float
    t1_s: float
    t0_utc: str | None
    gross_j: float | None
    uncertainty: Uncertainty | None
    sampling: Sampling
    board_before: BoardState | None
    board_after: BoardState | None
    sampler_cpu: float | None
    verdict: Verdict
    reasons: tuple[str, ...]
    curve: EnergyCurve | None = field(repr=False, compare=False)

    @property
    def duration_s(self) -> float:
        """Return the window's length."""
        return self.t1_s - self.t0_s

    @property
    def mean_w(self) -> float | None:
        """Return the mean gross power, or None without samples."""
        return None if self.gross_j is None else self.gross_j / self.duration_s


def measure(
    trace: Trace,
    t0_s: float,
    t1_s: float,
    *,
    key: str = "",
    t0_utc: str | None = None,
    boards: Sequence[BoardState] = (),
    sampler_cpu: float | None = None,
    faults: Sequence[str] = (),
) -> Measurement:
    """Return the energy of [t0_s, t1_s] with verdict and reasons.

    Args:
        trace: samples around the window (`SampleRing.trace`).
        boards: states of the board from before the window to after it, oldest first.
        faults: what befell the meter meanwhile, in words.

    Raises:
        WindowError: if the window is empty or runs backwards.
    """
    if not t1_s > t0_s:
        raise WindowError(f"measure window '{key}': it ends {t0_s - t1_s:.3f} s before it begins")
    curve: EnergyCurve | None = None
    view: WindowView | None = None
    uncertainty: Uncertainty | None = None
    try:
        curve = energy_curve(trace)
        view = WindowView.of(curve, t0_s, t1_s)
        uncertainty = estimate(trace.info, view)
        reasons = [*_sampling_reasons(trace.info, view, uncertainty, _inside(trace, t0_s, t1_s))]
    except EnergyError as error:
        reasons = [Reason(Verdict.INVALID, str(error))]
    reasons += _circumstances(trace.info, boards, sampler_cpu, faults)
    return Measurement(
        key=key,
        meter=trace.info,
        t0_s=t0_s,
        t1_s=t1_s,
        t0_utc=t0_utc,
        gross_j=None if view is None else view.energy_j,
        uncertainty=uncertainty,
        sampling=_sampling(trace, view, t0_s, t1_s),
        board_before=boards[0] if boards else None,
        board_after=boards[-1] if boards else None,
        sampler_cpu=sampler_cpu,
        verdict=worst(reason.verdict for reason in reasons),
        reasons=tuple(reason.text for reason in reasons),
        curve=curve,
    )


def worst(verdicts: Iterator[Verdict] | Sequence[Verdict]) -> Verdict:
    """Return the worst of the verdicts, OK for none."""
    return max(verdicts, key=list(Verdict).index, default=Verdict.OK)


def _inside(trace: Trace, t0_s: float, t1_s: float) -> int:
    return int(np.count_nonzero((trace.times_s >= t0_s) & (trace.times_s <= t1_s)))


def _sampling(trace: Trace, view: WindowView | None, t0_s: float, t1_s: float) -> Sampling:
    if view is None or not len(view.lengths_s):
        return Sampling(nominal_hz=trace.info.rate_hz)
    inside = (trace.times_s >= t0_s) & (trace.times_s <= t1_s)
    times_s = trace.times_s[inside]
    span_s = float(times_s[-1] - times_s[0]) if len(times_s) > 1 else 0.0
    p50_s, p95_s = np.percentile(view.lengths_s, [50, 95])
    return Sampling(
        nominal_hz=trace.info.rate_hz,
        achieved_hz=(len(times_s) - 1) / span_s if span_s else 0.0,
        samples=len(times_s),
        dt_p50_s=float(p50_s),
        dt_p95_s=float(p95_s),
        dt_max_s=float(view.lengths_s.max()),
        gaps=int(np.count_nonzero(view.bridged_s)) + (view.beyond_s > 0),
        gap_s=float(view.bridged_s.sum()) + view.beyond_s,
        dropped=int(trace.lost[inside].sum()),
    )


def _sampling_reasons(
    info: MeterInfo, view: WindowView, uncertainty: Uncertainty, samples: int
) -> Iterator[Reason]:
    short = _too_short(info, view.duration_s, samples)
    if short:
        yield Reason(Verdict.INVALID, short)
    gap_share = (float(view.bridged_s.sum()) + view.beyond_s) / view.duration_s
    if gap_share > MAX_GAP_SHARE:
        verdict = Verdict.INVALID if gap_share > USELESS_SHARE else Verdict.DEGRADED
        yield Reason(verdict, f"gaps: {gap_share:.1%} of the window was not measured")
    if view.energy_j <= 0:
        yield Reason(Verdict.INVALID, f"no energy: the window sums to {view.energy_j:.3g} J")
        return
    width = uncertainty.half_width_j / view.energy_j
    if width > WIDE_INTERVAL:
        verdict = Verdict.INVALID if width > USELESS_SHARE else Verdict.DEGRADED
        yield Reason(verdict, f"wide: the 95 % interval is ±{width:.0%} of the energy")


def _too_short(info: MeterInfo, duration_s: float, samples: int) -> str:
    """Return why a window is too short for the kind of source, or an empty string."""
    if info.kind is Kind.INSTANT:
        if duration_s >= MIN_INSTANT_S or samples >= MIN_INSTANT_SAMPLES:
            return ""
        return (
            f"too short: {duration_s:.2f} s with {samples} samples of an instantaneous source; "
            f"{MIN_INSTANT_S:.0f} s or {MIN_INSTANT_SAMPLES} samples are needed"
        )
    step_s = max(info.period_s, info.update_period_s or 0.0, info.averaging_s or 0.0)
    if duration_s >= MIN_PERIODS * step_s * (1 - 1e-9):
        return ""
    return (
        f"too short: {duration_s:.2f} s against {step_s:.3g} s between values; "
        f"{MIN_PERIODS * step_s:.3g} s are needed"
    )


def _circumstances(
    info: MeterInfo, boards: Sequence[BoardState], sampler_cpu: float | None, faults: Sequence[str]
) -> Iterator[Reason]:
    if info.estimated:
        yield Reason(Verdict.DEGRADED, f"estimated: {info.driver} is a model, not a measurement")
    flags = {board.throttled for board in boards if board.throttled is not None}
    if any(board.slowed for board in boards):
        yield Reason(Verdict.DEGRADED, f"throttled: flags {_hex(flags)} were set in the window")
    elif len(flags) > 1:
        yield Reason(Verdict.DEGRADED, f"throttled: flags changed in the window: {_hex(flags)}")
    if sampler_cpu is not None and sampler_cpu > MAX_CPU_SHARE:
        yield Reason(Verdict.DEGRADED, f"sampler: took {sampler_cpu:.1%} of a core itself")
    for fault in faults:
        yield Reason(Verdict.DEGRADED, f"meter: {fault}")


def _hex(flags: set[int]) -> str:
    return " ".join(f"{value:#x}" for value in sorted(flags))


def finite(value: float | None) -> float | None:
    """Return the value where it is a finite number, None otherwise (JSON has no infinity)."""
    return value if value is not None and math.isfinite(value) else None
