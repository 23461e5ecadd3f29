"""Split the energy of a window into phases.

Where the spans of a phase are long against the time between samples, the energy is integrated span
by span. Where they are shorter, as with ten samples a second and drafts of 50 ms, the mean power of
each phase is what explains the samples best (least squares over the time that each sample spent in
each phase); that holds as long as the mix of phases varies. Knows nothing of tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from sdk.energy.curve import EnergyCurve
from sdk.energy.interface import Kind
from sdk.energy.phases import Phase, Span
from sdk.energy.student import t_95
from sdk.energy.window import Measurement

__all__ = ["Method", "PhaseEnergy", "split"]

Floats = NDArray[np.float64]

_RESOLVED_PERIODS = 3.0  # a span this many samples long is integrated directly
_MIN_SHARE = 0.005  # phases shorter than this share of the window stay out of the fit
_MAX_CONDITION = 1e4


class Method(str, Enum):
    """How a phase's energy was found."""

    INTEGRAL = "integral"
    REGRESSION = "regression"


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseEnergy:
    """The energy of one phase within a window.

    Attributes:
        duration_s: how long the phase lasted in all; spans says in how many stretches.
        energy_j: joules, or None where the samples cannot tell the phases apart.
        half_width_j: half of the 95 % interval; the meter's gain and offset are not in it.
        method: how it was found; None without a figure.
    """

    duration_s: float
    spans: int
    energy_j: float | None = None
    half_width_j: float | None = None
    method: Method | None = None

    @property
    def mean_w(self) -> float | None:
        """Return the mean power of the phase, or None."""
        if self.energy_j is None or not self.duration_s:
            return None
        return self.energy_j / self.duration_s


def split(measurement: Measurement, spans: Sequence[Span]) -> dict[Phase, PhaseEnergy]:
    """Return the energy of each phase that occurs in the window."""
    by_phase = {phase: [span for span in spans if span.phase is phase] for phase in Phase}
    present = {phase: found for phase, found in by_phase.items() if found}
    curve = measurement.curve
    if curve is None:
        return {phase: _nothing(found) for phase, found in present.items()}
    step_s = float(np.median(curve.lengths_s))
    fitted: dict[Phase, PhaseEnergy] | None = None
    energies: dict[Phase, PhaseEnergy] = {}
    for phase, found in present.items():
        longest_half_s = np.median([span.duration_s for span in found])
        if longest_half_s >= _RESOLVED_PERIODS * step_s:
            energies[phase] = _integrate(measurement, curve, found)
            continue
        if fitted is None:
            fitted = _regress(measurement, curve, present)
        energies[phase] = fitted[phase]
    return energies


def _nothing(spans: Sequence[Span]) -> PhaseEnergy:
    return PhaseEnergy(duration_s=_total_s(spans), spans=len(spans))


def _total_s(spans: Sequence[Span]) -> float:
    return sum(span.duration_s for span in spans)


def _integrate(measurement: Measurement, curve: EnergyCurve, spans: Sequence[Span]) -> PhaseEnergy:
    edges_s = np.array([(span.start_s, span.end_s) for span in spans])
    energy_j = float(np.sum(np.diff(curve.at(edges_s.ravel()).reshape(-1, 2))))
    duration_s = _total_s(spans)
    share = duration_s / measurement.duration_s
    uncertainty = measurement.uncertainty
    assert uncertainty is not None
    # Every edge is off by up to a sample; the rest is the phase's share of the window's errors.
    edges_j = uncertainty.edges_j or _edge_j(curve)
    own_j = math.hypot(
        uncertainty.integration_j * math.sqrt(share),
        edges_j * math.sqrt(len(spans)),
        uncertainty.gaps_j * share,
        uncertainty.quantum_j * share,
    )
    return PhaseEnergy(
        duration_s=duration_s,
        spans=len(spans),
        energy_j=energy_j,
        half_width_j=uncertainty.coverage * own_j,
        method=Method.INTEGRAL,
    )


def _edge_j(curve: EnergyCurve) -> float:
    """Return what one edge between two samples is worth: the usual jump, shared out blindly."""
    jump_w = float(np.sqrt(np.mean((curve.right_w - curve.left_w) ** 2)))
    return jump_w * float(np.median(curve.lengths_s)) / math.sqrt(12)


def _regress(
    measurement: Measurement, curve: EnergyCurve, present: dict[Phase, list[Span]]
) -> dict[Phase, PhaseEnergy]:
    phases = [
        phase
        for phase, spans in present.items()
        if _total_s(spans) >= _MIN_SHARE * measurement.duration_s
    ]
    shares, power_w = _design(measurement, curve, [present[phase] for phase in phases])
    energies = {phase: _nothing(spans) for phase, spans in present.items()}
    freedom = len(power_w) - len(phases)
    if freedom < 5 or np.linalg.cond(shares) > _MAX_CONDITION:
        return energies
    mean_w, *_ = np.linalg.lstsq(shares, power_w, rcond=None)
    residual_w = power_w - shares @ mean_w
    variance = float(residual_w @ residual_w) / freedom
    covariance = variance * np.linalg.inv(shares.T @ shares)
    for index, phase in enumerate(phases):
        duration_s = energies[phase].duration_s
        energies[phase] = PhaseEnergy(
            duration_s=duration_s,
            spans=energies[phase].spans,
            energy_j=float(mean_w[index]) * duration_s,
            half_width_j=t_95(freedom) * math.sqrt(float(covariance[index, index])) * duration_s,
            method=Method.REGRESSION,
        )
    return energies


def _design(
    measurement: Measurement, curve: EnergyCurve, spans: Sequence[Sequence[Span]]
) -> tuple[Floats, Floats]:
    """Return the share of each sample's time in each phase, [n, phases], and its power, [n].

    A sample of an instantaneous meter stands for a moment, the others for an interval.
    """
    starts_s, ends_s = curve.times_s[:-1], curve.times_s[1:]
    kind = measurement.meter.kind
    if kind is Kind.AVERAGED:
        half_s = (measurement.meter.averaging_s or 0.0) / 2
        starts_s, ends_s = curve.times_s[:-1] - half_s, curve.times_s[:-1] + half_s
    if kind is Kind.INSTANT:
        ends_s = starts_s
    inside = (starts_s >= measurement.t0_s) & (ends_s <= measurement.t1_s)
    inside &= curve.bridged_s <= 0
    starts_s, ends_s = starts_s[inside], ends_s[inside]
    columns = [_share(found, starts_s, ends_s) for found in spans]
    return np.column_stack(columns), curve.left_w[inside]


def _share(spans: Sequence[Span], starts_s: Floats, ends_s: Floats) -> Floats:
    """Return how much of each [start, end] lies in the spans, from 0 to 1."""
    edges_s = np.array([(span.start_s, span.end_s) for span in spans])
    if len(starts_s) and starts_s[0] == ends_s[0]:
        inside = np.searchsorted(edges_s[:, 0], starts_s, "right") - np.searchsorted(
            edges_s[:, 1], starts_s, "right"
        )
        return inside.astype(np.float64)
    before_s = _time_in(edges_s, starts_s)
    return np.asarray((_time_in(edges_s, ends_s) - before_s) / (ends_s - starts_s))


def _time_in(edges_s: Floats, times_s: Floats) -> Floats:
    """Return the time spent in the spans before each of the times."""
    lengths_s = edges_s[:, 1] - edges_s[:, 0]
    sums_s = np.concatenate(([0.0], np.cumsum(lengths_s)))
    knots_s = edges_s.ravel()
    values_s = np.column_stack((sums_s[:-1], sums_s[1:])).ravel()
    return np.asarray(np.interp(times_s, knots_s, values_s))
