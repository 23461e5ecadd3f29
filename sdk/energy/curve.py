"""Energy as a function of time, from the samples of any of the four kinds of meter.

Between two samples the power is a straight line (instantaneous and averaged powers) or level
(counters and energies per sample); the energy at any time, window edges included, follows from
that. Knows nothing of windows, tokens and uncertainty.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sdk.energy.interface import Kind
from sdk.energy.ring import Trace
from sdk.errors import EnergyError

__all__ = ["GAP_PERIODS", "EnergyCurve", "Floats", "energy_curve"]

Floats = NDArray[np.float64]

GAP_PERIODS = 3.0  # an interval longer than this many nominal periods is a gap


class EnergyCurve(NamedTuple):
    """Power between samples: `left_w` to `right_w` in a straight line over each interval.

    Attributes:
        times_s: [n], rising.
        left_w, right_w: [n-1], power at the start and at the end of each interval.
        bridged_s: [n-1], how much of each interval was not measured but filled in.
    """

    times_s: Floats
    left_w: Floats
    right_w: Floats
    bridged_s: Floats

    @property
    def lengths_s(self) -> Floats:
        """Return the length of each interval, [n-1]."""
        return np.diff(self.times_s)

    @property
    def mean_w(self) -> Floats:
        """Return the mean power of each interval, [n-1]."""
        return (self.left_w + self.right_w) / 2

    def at(self, times_s: Floats) -> Floats:
        """Return the energy in joules from the first sample to each time.

        Beyond the samples at either end the nearest power is held.
        """
        sums_j = np.concatenate(([0.0], np.cumsum(self.mean_w * self.lengths_s)))
        index = np.clip(np.searchsorted(self.times_s, times_s, "right") - 1, 0, len(sums_j) - 2)
        offset_s = times_s - self.times_s[index]
        inside_s = np.clip(offset_s, 0.0, self.lengths_s[index])
        slope = (self.right_w - self.left_w)[index] / self.lengths_s[index]
        inside_j = self.left_w[index] * inside_s + 0.5 * slope * inside_s**2
        beyond_s = offset_s - inside_s
        beyond_w = np.where(beyond_s < 0, self.left_w[0], self.right_w[-1])
        return np.asarray(sums_j[index] + inside_j + beyond_w * beyond_s)

    def between(self, t0_s: float, t1_s: float) -> float:
        """Return the energy of [t0_s, t1_s] in joules."""
        start_j, end_j = self.at(np.array([t0_s, t1_s]))
        return float(end_j - start_j)


def energy_curve(trace: Trace) -> EnergyCurve:
    """Return the energy curve of a meter's samples, its calibration applied.

    Raises:
        EnergyError: with fewer than two samples at different times.
    """
    cumulative = trace.info.kind in (Kind.COUNTER, Kind.ENERGY_PER_SAMPLE)
    curve = _from_energies(trace) if cumulative else _from_powers(trace)
    calibration = trace.info.calibration
    if calibration is None:
        return curve
    return curve._replace(
        left_w=calibration.gain * curve.left_w + calibration.offset_w,
        right_w=calibration.gain * curve.right_w + calibration.offset_w,
    )


def _from_powers(trace: Trace) -> EnergyCurve:
    # The mean over an interval stands for the interval's middle.
    delay_s = (trace.info.averaging_s or 0.0) / 2 if trace.info.kind is Kind.AVERAGED else 0.0
    keep = _rising(trace.times_s)
    times_s, power_w = trace.times_s[keep] - delay_s, trace.values[keep]
    lost = np.add.reduceat(trace.lost, np.flatnonzero(keep))
    lengths_s = np.diff(times_s)
    # Missing samples leave the mean of their neighbours in place; the instants were never seen.
    gap = (lost[1:] > 0) | (lengths_s > GAP_PERIODS * trace.info.period_s)
    bridged_s = np.where(gap, np.maximum(lengths_s - trace.info.period_s, 0.0), 0.0)
    return EnergyCurve(times_s, power_w[:-1], power_w[1:], bridged_s)


def _from_energies(trace: Trace) -> EnergyCurve:
    counter = trace.info.kind is Kind.COUNTER
    totals_j = trace.values if counter else np.cumsum(trace.values)
    last = _last_of_each(trace.times_s)
    times_s = trace.times_s[last]
    starts = np.concatenate(([0], np.flatnonzero(last)[:-1] + 1))
    lengths_s, steps_j = np.diff(times_s), np.diff(totals_j[last])
    missing = np.add.reduceat(trace.lost, starts)[1:] > 0
    bridged_s = np.where(missing, lengths_s, 0.0)
    if not counter:  # the last of the samples did arrive, with its own energy
        period_s = np.minimum(trace.info.period_s, lengths_s)
        bridged_s = np.where(missing, lengths_s - period_s, 0.0)
    measured_s = lengths_s - bridged_s
    known = measured_s > 0
    power_w = np.zeros_like(lengths_s)
    np.divide(steps_j, measured_s, out=power_w, where=known)
    power_w = _bridge(power_w, missing)
    if not counter:
        power_w = (steps_j + power_w * bridged_s) / lengths_s
    return EnergyCurve(times_s, power_w, power_w, bridged_s)


def _bridge(power_w: Floats, missing: NDArray[np.bool_]) -> Floats:
    """Replace the power of intervals whose energy is unknown by their neighbours' mean."""
    if not missing.any():
        return power_w
    index = np.arange(len(power_w))
    good = index[~missing]
    if not len(good):
        raise EnergyError("integrate: every interval of the window lost energy; record again")
    place = np.searchsorted(good, index)
    before = good[np.clip(place - 1, 0, len(good) - 1)]
    after = good[np.clip(place, 0, len(good) - 1)]
    return np.where(missing, (power_w[before] + power_w[after]) / 2, power_w)


def _rising(times_s: Floats) -> NDArray[np.bool_]:
    """Return which samples are later than the one before."""
    keep = np.concatenate((np.ones(min(len(times_s), 1), dtype=bool), np.diff(times_s) > 0))
    return _enough(keep)


def _last_of_each(times_s: Floats) -> NDArray[np.bool_]:
    """Return which samples are the last of those at the same time."""
    keep = np.concatenate((np.diff(times_s) > 0, np.ones(min(len(times_s), 1), dtype=bool)))
    return _enough(keep)


def _enough(keep: NDArray[np.bool_]) -> NDArray[np.bool_]:
    if np.count_nonzero(keep) < 2:
        raise EnergyError(f"integrate: {len(keep)} samples around the window, at least 2 needed")
    return keep
