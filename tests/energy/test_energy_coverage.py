"""The Monte-Carlo: stated 95 % intervals hold the truth in at least 93 % of 1,000 windows.

A decode-like load (steps of 80 ms at 8, 6 or 4 W, waits at 3.3 W), seen by meters of every kind at
several rates, with jitter, with and without gaps, through windows of random place and length.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from sdk.energy.interface import Kind, MeterInfo, Scope
from sdk.energy.ring import Trace
from sdk.energy.window import Measurement, measure

Floats = NDArray[np.float64]
WINDOWS = 1000
LOAD_S = 60.0


class Load:
    """A random decode-like load with its exact energy."""

    def __init__(self, random: np.random.Generator) -> None:
        edges_s, watts = [0.0], []
        while edges_s[-1] < LOAD_S:
            for power_w in random.choice([8.0, 6.0, 4.0], size=random.integers(2, 8)):
                watts.append(power_w)
                edges_s.append(edges_s[-1] + 0.08)
            watts.append(3.3)
            edges_s.append(edges_s[-1] + random.uniform(0.05, 0.25))
        self.edges_s, self.watts = np.array(edges_s), np.array(watts)
        self.sums_j = np.concatenate(([0.0], np.cumsum(self.watts * np.diff(self.edges_s))))

    def power_w(self, times_s: Floats) -> Floats:
        return self.watts[np.searchsorted(self.edges_s, times_s, "right") - 1]

    def energy_j(self, times_s: Floats | float) -> Floats:
        return np.asarray(np.interp(times_s, self.edges_s, self.sums_j))


def seen_by(
    kind: Kind, rate_hz: float, load: Load, random: np.random.Generator, gap: bool, gain_rel: float
) -> Trace:
    period_s = 1 / rate_hz
    times_s = np.arange(1.0, LOAD_S - 1.0, period_s)
    times_s = times_s + random.uniform(-0.2, 0.2, len(times_s)) * period_s
    values: dict[Kind, Callable[[], Floats]] = {
        Kind.INSTANT: lambda: load.power_w(times_s),
        Kind.AVERAGED: lambda: (
            (load.energy_j(times_s) - load.energy_j(times_s - period_s)) / period_s
        ),
        Kind.COUNTER: lambda: load.energy_j(times_s),
        Kind.ENERGY_PER_SAMPLE: lambda: np.diff(
            load.energy_j(times_s), prepend=load.energy_j(times_s[0] - period_s)
        ),
    }
    kept = np.ones(len(times_s), dtype=bool)
    if gap:
        start_s = random.uniform(15.0, 40.0)
        kept = (times_s < start_s) | (times_s > start_s + random.uniform(0.5, 1.5))
    missing = np.diff(np.cumsum(~kept)[kept], prepend=0).astype(np.float64)
    info = MeterInfo(
        driver="simulated",
        label=kind.value,
        kind=kind,
        scope=Scope.NONE,
        rate_hz=rate_hz,
        averaging_s=period_s if kind is Kind.AVERAGED else None,
        gain_rel=gain_rel,
    )
    lost = missing if kind is Kind.ENERGY_PER_SAMPLE else np.zeros(int(kept.sum()))
    gain = 1 + gain_rel * random.standard_normal()
    return Trace(info, times_s[kept], gain * values[kind]()[kept], lost)


def windows(kind: Kind, gain_rel: float = 0.0) -> list[tuple[float, Measurement]]:
    """Return (true energy, measurement) of random windows."""
    random = np.random.default_rng(20)
    found = []
    loads = [Load(random) for _ in range(40)]
    for number in range(WINDOWS):
        load = loads[number % len(loads)]
        rate_hz = random.choice([2.0, 10.0, 50.0])
        trace = seen_by(kind, rate_hz, load, random, gap=number % 3 == 0, gain_rel=gain_rel)
        length_s = random.uniform(10.0, 30.0)
        t0_s = random.uniform(5.0, 25.0)
        measurement = measure(trace.around(t0_s, t0_s + length_s), t0_s, t0_s + length_s)
        found.append((float(load.energy_j(t0_s + length_s) - load.energy_j(t0_s)), measurement))
    return found


@pytest.mark.parametrize(
    ("kind", "gain_rel"),
    [*((kind, 0.0) for kind in Kind), (Kind.COUNTER, 0.02)],
    ids=lambda value: getattr(value, "value", value),
)
def test_intervals_cover_the_truth(kind: Kind, gain_rel: float) -> None:
    covered = 0
    for truth_j, measurement in windows(kind, gain_rel):
        assert measurement.gross_j is not None
        assert measurement.uncertainty is not None
        covered += abs(measurement.gross_j - truth_j) <= measurement.uncertainty.half_width_j
    print(f"{kind.value}, gain ±{gain_rel:.0%}: {covered / WINDOWS:.1%} of {WINDOWS} windows")
    assert covered / WINDOWS >= 0.93


@pytest.mark.parametrize(
    ("kind", "limit"),
    [
        (Kind.COUNTER, 0.003),
        (Kind.INSTANT, 0.05),
        (Kind.AVERAGED, 0.02),
        (Kind.ENERGY_PER_SAMPLE, 0.003),
    ],
    ids=lambda value: getattr(value, "value", value),
)
def test_intervals_are_not_idle_talk(kind: Kind, limit: float) -> None:
    """At 10 Hz over 10 s without gaps the stated standard uncertainty stays useful."""
    random = np.random.default_rng(21)
    loads = [Load(random) for _ in range(40)]
    stated, errors = [], []
    for number in range(WINDOWS):
        load = loads[number % len(loads)]
        trace = seen_by(kind, 10.0, load, random, gap=False, gain_rel=0.0)
        t0_s = random.uniform(5.0, 40.0)
        measurement = measure(trace.around(t0_s, t0_s + 10), t0_s, t0_s + 10)
        truth_j = float(load.energy_j(t0_s + 10) - load.energy_j(t0_s))
        assert measurement.gross_j is not None
        assert measurement.uncertainty is not None
        stated.append(measurement.uncertainty.combined_j / truth_j)
        errors.append((measurement.gross_j - truth_j) / truth_j)
    print(
        f"{kind.value}, 10 s at 10 Hz: mean error {np.mean(errors):.3%}, "
        f"standard deviation {np.std(errors):.3%}, stated {np.median(stated):.3%}"
    )
    assert abs(float(np.mean(errors))) < 0.001
    assert float(np.median(stated)) < limit
