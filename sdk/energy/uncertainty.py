"""How wrong the energy of a window may be: one error model for each kind of meter.

All parts are standard uncertainties in joules and combine in quadrature. What is not known to the
arithmetic (a meter put in the wrong place) is not in here: that is what `Scope` is for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sdk.energy.curve import EnergyCurve
from sdk.energy.interface import Kind, MeterInfo
from sdk.energy.student import t_95

__all__ = ["Uncertainty", "WindowView", "estimate"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Uncertainty:
    """Standard uncertainties of a window's gross energy, and the factor for 95 %.

    Attributes:
        gain_j: of the meter's gain, or of its calibration.
        offset_j: of the meter's offset.
        quantum_j: of its resolution.
        integration_j: of what happened between the samples.
        edges_j: of where the window's edges fall between samples, and of the clocks.
        gaps_j: of what was filled in where samples are missing.
        coverage: the factor from one standard uncertainty to 95 %.
    """

    gain_j: float
    offset_j: float
    quantum_j: float
    integration_j: float
    edges_j: float
    gaps_j: float
    coverage: float

    @property
    def combined_j(self) -> float:
        """Return the standard uncertainty of all parts together."""
        return math.hypot(
            self.gain_j,
            self.offset_j,
            self.quantum_j,
            self.integration_j,
            self.edges_j,
            self.gaps_j,
        )

    @property
    def half_width_j(self) -> float:
        """Return half of the 95 % interval."""
        return self.coverage * self.combined_j if self.combined_j else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowView:
    """The part of a curve that a window covers.

    Attributes:
        lengths_s, power_w, bridged_s: [m], the intervals that overlap the window; the power is
            that at the start of each, level for counters.
        overlap_s: [m], how much of each lies in it.
        t0_s, t1_s: the window.
        energy_j: its gross energy.
        beyond_s: how much of it lies before the first or after the last sample.
        half_rate_j: the energy from every second sample; None where there are too few.
    """

    lengths_s: Floats
    power_w: Floats
    bridged_s: Floats
    overlap_s: Floats
    t0_s: float
    t1_s: float
    energy_j: float
    beyond_s: float
    half_rate_j: float | None

    @classmethod
    def of(cls, curve: EnergyCurve, t0_s: float, t1_s: float) -> WindowView:
        """Cut a window out of a curve."""
        times_s = curve.times_s
        overlap_s = np.minimum(times_s[1:], t1_s) - np.maximum(times_s[:-1], t0_s)
        inside = overlap_s > 0
        beyond_s = max(times_s[0] - t0_s, 0.0) + max(t1_s - times_s[-1], 0.0)
        return cls(
            lengths_s=curve.lengths_s[inside],
            power_w=curve.left_w[inside],
            bridged_s=(curve.bridged_s / curve.lengths_s)[inside] * overlap_s[inside],
            overlap_s=overlap_s[inside],
            t0_s=t0_s,
            t1_s=t1_s,
            energy_j=curve.between(t0_s, t1_s),
            beyond_s=min(float(beyond_s), t1_s - t0_s),
            half_rate_j=_half_rate_j(curve, t0_s, t1_s),
        )

    @property
    def duration_s(self) -> float:
        """Return the window's length."""
        return self.t1_s - self.t0_s

    @property
    def spread_w(self) -> float:
        """Return the standard deviation of the power from sample to sample."""
        good = self.bridged_s <= 0
        power_w = self.power_w[good] if np.count_nonzero(good) > 1 else self.power_w
        return float(np.std(power_w, ddof=1)) if len(power_w) > 1 else 0.0

    @property
    def edge_lengths_s(self) -> tuple[float, float]:
        """Return the lengths of the intervals in which the window's edges lie."""
        if not len(self.lengths_s):
            return self.duration_s, self.duration_s
        return float(self.lengths_s[0]), float(self.lengths_s[-1])


def _half_rate_j(curve: EnergyCurve, t0_s: float, t1_s: float) -> float | None:
    """Return the energy from every second sample, or None where there are too few."""
    if len(curve.times_s) < 6:
        return None
    nodes_w = np.append(curve.left_w, curve.right_w[-1])[::2]
    zeros = np.zeros(len(nodes_w) - 1)
    half = EnergyCurve(curve.times_s[::2], nodes_w[:-1], nodes_w[1:], zeros)
    return half.between(t0_s, t1_s)


def estimate(info: MeterInfo, view: WindowView) -> Uncertainty:
    """Return the uncertainty of a window's gross energy, by the meter's kind."""
    mean_w = view.energy_j / view.duration_s
    integration_j, edges_j = _MODELS[info.kind](info, view)
    clock_j = abs(mean_w) * info.sync_err_s * math.sqrt(2)
    gain_j = info.gain_rel * abs(view.energy_j)
    if info.calibration is not None:
        read_w = (mean_w - info.calibration.offset_w) / info.calibration.gain
        gain_j = math.hypot(gain_j, info.calibration.std_w(read_w) * view.duration_s)
    return Uncertainty(
        gain_j=gain_j,
        offset_j=info.offset_w * view.duration_s,
        quantum_j=_quantum_j(info, view),
        integration_j=integration_j,
        edges_j=math.hypot(edges_j, clock_j),
        gaps_j=_gaps_j(view),
        coverage=t_95(max(len(view.power_w) - 1, 1)),
    )


def _instant(_info: MeterInfo, view: WindowView) -> tuple[float, float]:
    """Samples of a load that changes between them: the slower the sampling, the more chance.

    For a load whose memory fades exponentially the variance of the trapezoid sum is
    n·σ²·dt²·(coth(a/2) − 2/a) with a = −ln ρ₁: σ²T²/n where neighbours are independent, and
    (differences)²·dt²/12 where they hardly differ. Halving the rate must not tell otherwise.
    """
    measured_s = float(np.sum(view.overlap_s - view.bridged_s))
    a = -math.log(min(max(_memory(view.power_w), 1e-9), 1 - 1e-9))
    factor = 1 / math.tanh(a / 2) - 2 / a if a > 1e-3 else a / 6
    model_j = view.spread_w * measured_s * math.sqrt(factor / max(len(view.power_w), 1))
    if view.half_rate_j is None:
        return model_j, 0.0
    return max(model_j, abs(view.energy_j - view.half_rate_j)), 0.0


def _averaged(info: MeterInfo, view: WindowView) -> tuple[float, float]:
    """Means that tile time leave only the edges open; what they overlap or miss adds to it.

    Where the load changes faster than the means come, what happens in a sliver of an interval
    walks at random around the mean: variance σ²·dt·sliver.
    """
    averaging_s = info.averaging_s or info.period_s
    slivers_s = np.abs(view.lengths_s - averaging_s)[view.bridged_s <= 0]
    unseen_w = view.spread_w * math.sqrt(1 - _memory(view.power_w))
    edge_s = max(averaging_s, info.period_s)
    edges_j = unseen_w * edge_s * math.sqrt(2 / 6)
    return unseen_w * math.sqrt(averaging_s * float(np.sum(slivers_s))), edges_j


def _counted(info: MeterInfo, view: WindowView) -> tuple[float, float]:
    """Counters miss nothing between samples; only the intervals at the edges are shared out.

    At a fraction u of an interval a random walk that is known at both ends has the variance
    σ²·dt²·u·(1 − u), 1/6 on average.
    """
    edges_s = math.hypot(*view.edge_lengths_s) / math.sqrt(6)
    unseen_w = view.spread_w * math.sqrt(1 - _memory(view.power_w))
    mean_w = abs(view.energy_j) / view.duration_s
    stale_j = mean_w * (info.update_period_s or 0.0) * math.sqrt(2 / 12)
    return 0.0, math.hypot(unseen_w * edges_s, stale_j)


_MODELS: dict[Kind, Callable[[MeterInfo, WindowView], tuple[float, float]]] = {
    Kind.INSTANT: _instant,
    Kind.AVERAGED: _averaged,
    Kind.COUNTER: _counted,
    Kind.ENERGY_PER_SAMPLE: _counted,
}


def _quantum_j(info: MeterInfo, view: WindowView) -> float:
    step = info.quantum / math.sqrt(12)
    samples = max(len(view.power_w), 1)
    if info.kind is Kind.COUNTER:
        return step * math.sqrt(2)
    if info.kind is Kind.ENERGY_PER_SAMPLE:
        return step * math.sqrt(samples)
    # A power that hardly moves is rounded the same way every time.
    independent = samples if view.spread_w > info.quantum else 1
    return step * view.duration_s / math.sqrt(independent)


def _gaps_j(view: WindowView) -> float:
    """Fill-ins may be off by the power's whole spread for as long as they last."""
    missing_s = math.hypot(float(np.sqrt(np.sum(view.bridged_s**2))), view.beyond_s)
    return view.spread_w * missing_s


def _memory(values: Floats) -> float:
    """Return the correlation of neighbours, from 0 up, less its own standard error.

    Thinking the load more forgetful than it is errs on the wide side.
    """
    if len(values) < 3:
        return 0.0
    centred = values - values.mean()
    variance = float(centred @ centred)
    if variance <= 0:
        return 0.0
    correlation = float(centred[1:] @ centred[:-1]) / variance
    return min(max(correlation - 1 / math.sqrt(len(values)), 0.0), 1.0)
