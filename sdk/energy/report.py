"""Words, tables and a picture for energy records.

Knows nothing of meters: everything comes from a record. rich and matplotlib are loaded only when
asked for.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sdk.energy.curve import EnergyCurve, Floats
from sdk.energy.phases import Phase, PhaseLog
from sdk.energy.record import EnergyRecord, Interval, energy_per_token
from sdk.energy.recording import Recording
from sdk.energy.ring import Trace
from sdk.energy.tokens import Tokens
from sdk.energy.window import measure
from sdk.errors import DependencyError, EnergyError

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["draw", "record_of", "table", "token_lines"]

_COLOURS = {
    Phase.PREFILL: "tab:purple",
    Phase.DRAFT: "tab:orange",
    Phase.WAIT: "tab:blue",
    Phase.IDLE: "tab:gray",
}
_MAX_POINTS = 4000
_COUNTED = ("drafted", "accepted", "emitted")


def record_of(recording: Recording) -> EnergyRecord:
    """Return the record of a recording's window.

    Raises:
        EnergyError: if the recording has no length.
    """
    t0_s, t1_s = recording.span_s
    trace = Trace.of(recording.info, recording.samples)
    tokens = recording.tokens or Tokens(drafted=0, accepted=0, emitted=0)
    return energy_per_token(
        measure(trace.around(t0_s, t1_s), t0_s, t1_s, key="recording"),
        recording.phases,
        drafted=tokens.drafted,
        accepted=tokens.accepted,
        emitted=tokens.emitted,
        prompt=tokens.prompt,
        rounds=tokens.rounds,
    )


def token_lines(record: EnergyRecord) -> list[str]:
    """Return what a generation ends with: joules per token, or why there are none."""
    source = record.measurement.meter
    label = "estimated" if source.estimated else "measured"
    lines = [f"energy ({label}: {source.driver}, {source.scope.value}): {record.verdict.value}"]
    for counted in _COUNTED:
        gross = record.per_token(counted)
        if gross is not None:
            net = record.per_token(counted, net=True)
            net_text = f", net {figure(net)}" if net else ""
            lines.append(f"  J per {counted} token: {figure(gross)}{net_text}")
    lines += [f"  {reason}" for reason in record.reasons]
    return lines


def figure(interval: Interval | None, unit: str = "") -> str:
    """Return a figure with its 95 % interval, to the digits that mean something."""
    if interval is None:
        return "–"
    return f"{interval.value:.4g} [{interval.low:.4g}, {interval.high:.4g}]{unit}"


def table(record: EnergyRecord) -> Table:
    """Return the record as a table: the whole, then phase by phase."""
    from rich.table import Table

    window = record.measurement
    result = Table(title=f"{window.meter.driver} ({window.meter.scope.value}), 95 % intervals")
    for heading in ("", "s", "J", "W", *(f"J/{counted}" for counted in _COUNTED)):
        result.add_column(heading, justify="right" if heading else "left")
    mean_w = "–" if window.mean_w is None else f"{window.mean_w:.3f}"
    per_token = (figure(record.per_token(counted)) for counted in _COUNTED)
    result.add_row("gross", f"{window.duration_s:.2f}", figure(record.gross_j), mean_w, *per_token)
    if record.net_j is not None:
        per_token = (figure(record.per_token(counted, net=True)) for counted in _COUNTED)
        result.add_row("net", f"{window.duration_s:.2f}", figure(record.net_j), "", *per_token)
    for phase, energy in record.phases.items():
        if energy.energy_j is None or energy.half_width_j is None:
            result.add_row(phase.value, f"{energy.duration_s:.2f}", *["–"] * 5)
            continue
        low_j, high_j = energy.energy_j - energy.half_width_j, energy.energy_j + energy.half_width_j
        shares = (_per(energy.energy_j, record, counted) for counted in _COUNTED)
        result.add_row(
            phase.value,
            f"{energy.duration_s:.2f}",
            figure(Interval(energy.energy_j, low_j, high_j)),
            f"{energy.mean_w:.3f}",
            *shares,
        )
    return result


def _per(energy_j: float, record: EnergyRecord, counted: str) -> str:
    count = int(getattr(record.tokens, counted))
    return f"{energy_j / count:.4g}" if count and record.trusted else "–"


def draw(path: Path, record: EnergyRecord, phases: PhaseLog) -> None:
    """Write a picture: power over time with the phases shaded, and energy per token by phase.

    Raises:
        DependencyError: without matplotlib.
        EnergyError: without samples, or if the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise DependencyError("the picture of a report", "plot") from error
    window = record.measurement
    if window.curve is None:
        raise EnergyError(f"draw {path}: the window holds no samples")
    picture = Figure(figsize=(10, 6), layout="constrained")
    if any(energy.energy_j for energy in record.phases.values()):
        power, bars = picture.subplots(2, 1, height_ratios=(3, 1))
        _draw_bars(bars, record)
    else:
        power = picture.subplots()
    times_s, watts = _thinned(window.curve, window.t0_s, window.t1_s)
    power.plot(times_s - window.t0_s, watts, color="black", linewidth=0.8)
    spans = phases.spans(window.t0_s, window.t1_s)
    for phase in dict.fromkeys(span.phase for span in spans):
        stretches = [
            (span.start_s - window.t0_s, span.duration_s) for span in spans if span.phase is phase
        ]
        power.broken_barh(
            stretches,
            (0, 1),
            transform=power.get_xaxis_transform(),
            color=_COLOURS[phase],
            alpha=0.25,
            linewidth=0,
            label=phase.value,
        )
    power.set(xlabel="time / s", ylabel="power / W", ylim=(0, None), xlim=(0, window.duration_s))
    power.set_title(f"{window.meter.driver}, {window.meter.scope.value}: {record.verdict.value}")
    if spans:
        power.legend(loc="upper right")
    try:
        picture.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise EnergyError(f"draw {path}: {error}") from error


def _draw_bars(bars: Any, record: EnergyRecord) -> None:
    """Draw energy per emitted token by phase, or plain energy where nothing was emitted."""
    emitted = record.tokens.emitted if record.trusted else 0
    known = {phase: energy for phase, energy in record.phases.items() if energy.energy_j}
    left = 0.0
    for phase, energy in known.items():
        width = (energy.energy_j or 0.0) / (emitted or 1)
        bars.barh([0], [width], left=[left], color=_COLOURS[phase], label=phase.value)
        left += width
    label = "energy / J" if not emitted else "energy per emitted token / J"
    bars.set(xlabel=label, yticks=[])


def _thinned(curve: EnergyCurve, t0_s: float, t1_s: float) -> tuple[Floats, Floats]:
    """Return power over time at a number of points that a picture can show."""
    count = min(_MAX_POINTS, max(2 * len(curve.times_s), 2))
    edges_s = np.linspace(t0_s, t1_s, count + 1)
    return (edges_s[:-1] + edges_s[1:]) / 2, np.diff(curve.at(edges_s)) / np.diff(edges_s)
