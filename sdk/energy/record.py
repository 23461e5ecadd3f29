"""The energy-per-token record: what is known of one generation's energy, as versioned JSON.

    record = energy_per_token(measurement, phases, drafted=120, accepted=90, emitted=110)
    json.dumps(record.to_json())

Gross figures are always there; net ones only with an idle measured before and after. Figures of a
window that cannot be trusted are left out, and the reasons say why. `record.schema.json` beside
this file describes the JSON. Pure: no meter, no clock.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np

from sdk.energy.attribution import PhaseEnergy, split
from sdk.energy.phases import Phase, PhaseLog
from sdk.energy.recording import info_to_json
from sdk.energy.tokens import Tokens
from sdk.energy.window import Measurement, Verdict, finite, worst

__all__ = [
    "SCHEMA",
    "EnergyRecord",
    "Idle",
    "Interval",
    "energy_per_token",
    "idle_between",
    "record_schema",
]

SCHEMA = "multispin.energy-per-token/1"
_IDLE_SPREADS = 3.0
_IDLE_SHARE = 0.05


class Interval(NamedTuple):
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float

    def per(self, count: int) -> Interval:
        """Return the interval divided by a count."""
        return Interval(self.value / count, self.low / count, self.high / count)


@dataclass(frozen=True, slots=True, kw_only=True)
class Idle:
    """The idle power around a window.

    Attributes:
        power_w: mean of before and after; None where either has no samples.
        spread_w: standard deviation of the idle's samples.
        std_w: standard uncertainty of power_w as the idle power during the window.
        duration_s: how long idle was measured in all.
        before_w, after_w: the two means.
        problem: why net figures must not be formed from it; empty where they may.
    """

    power_w: float | None
    spread_w: float
    std_w: float
    duration_s: float
    before_w: float | None
    after_w: float | None
    problem: str = ""


def idle_between(before: Measurement, after: Measurement) -> Idle:
    """Return the idle power around a window, from an idle window before it and one after it.

    Idle means: same clock policy, radios on, MQTT connected, model loaded, display off. The two
    must not differ by more than 3 standard deviations of their samples or by more than 5 %.
    """
    duration_s = before.duration_s + after.duration_s
    if before.mean_w is None or after.mean_w is None:
        return Idle(
            power_w=None,
            spread_w=0.0,
            std_w=0.0,
            duration_s=duration_s,
            before_w=before.mean_w,
            after_w=after.mean_w,
            problem="the meter gave no samples while idle",
        )
    power_w = (before.mean_w + after.mean_w) / 2
    difference_w = after.mean_w - before.mean_w
    (spread_1_w, error_1_w), (spread_2_w, error_2_w) = _steadiness(before), _steadiness(after)
    spread_w = math.hypot(spread_1_w, spread_2_w) / math.sqrt(2)
    drift_w = difference_w / math.sqrt(12)  # anywhere between the two, with the same chance
    problem = ""
    if Verdict.INVALID in (before.verdict, after.verdict):
        problem = "; ".join(("idle cannot be trusted", *before.reasons, *after.reasons))
    elif abs(difference_w) > _IDLE_SHARE * abs(power_w) or (
        abs(difference_w) > _IDLE_SPREADS * max(spread_w, before.meter.quantum) > 0
    ):
        problem = f"idle moved from {before.mean_w:.3f} W before to {after.mean_w:.3f} W after"
    return Idle(
        power_w=power_w,
        spread_w=spread_w,
        std_w=math.hypot(error_1_w / 2, error_2_w / 2, drift_w),
        duration_s=duration_s,
        before_w=before.mean_w,
        after_w=after.mean_w,
        problem=problem,
    )


def _steadiness(idle: Measurement) -> tuple[float, float]:
    """Return the samples' spread and the standard error of their mean, memory considered."""
    assert idle.curve is not None
    power_w = idle.curve.left_w
    if len(power_w) < 3 or np.ptp(power_w) == 0:
        return 0.0, 0.0
    centred = power_w - power_w.mean()
    memory = float(centred[1:] @ centred[:-1] / (centred @ centred))
    memory = min(max(memory, 0.0), 0.99)
    effective = max(len(power_w) * (1 - memory) / (1 + memory), 1.0)
    spread_w = float(np.std(power_w, ddof=1))
    return spread_w, spread_w / math.sqrt(effective)


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyRecord:
    """The energy of one generation, per token and per phase.

    Attributes:
        measurement: the window it stands on.
        tokens: what was drafted, accepted, emitted.
        idle: the idle around it, or None.
        gross_j: everything that flowed, joules; None only without samples.
        net_j: gross less idle power times duration; None without a usable idle, or where the
            window is invalid.
        phases: energy by phase.
        verdict, reasons: the measurement's, and the record's own.
    """

    measurement: Measurement
    tokens: Tokens
    idle: Idle | None
    gross_j: Interval | None
    net_j: Interval | None
    phases: dict[Phase, PhaseEnergy]
    verdict: Verdict
    reasons: tuple[str, ...]

    def per_token(self, counted: str, *, net: bool = False) -> Interval | None:
        """Return joules per token with their 95 % interval, or None where there is no figure.

        Args:
            counted: "drafted", "accepted" or "emitted".
            net: whether idle power is taken off.
        """
        count = int(getattr(self.tokens, counted))
        energy = self.net_j if net else self.gross_j
        return energy.per(count) if energy is not None and count and self.trusted else None

    @property
    def trusted(self) -> bool:
        """Return whether figures may be formed from the window at all."""
        return self.measurement.verdict is not Verdict.INVALID

    @property
    def draft_j_per_token(self) -> float | None:
        """Return the energy of the draft phase per drafted token, what a scheduler asks for."""
        draft = self.phases.get(Phase.DRAFT)
        if draft is None or draft.energy_j is None or not self.tokens.drafted:
            return None
        return draft.energy_j / self.tokens.drafted if self.trusted else None

    @property
    def wait_w(self) -> float | None:
        """Return the power while waiting for the server, what a scheduler asks for."""
        wait = self.phases.get(Phase.WAIT)
        return wait.mean_w if wait is not None and self.trusted else None

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON values, after the schema in `record.schema.json`."""
        window = self.measurement
        before, after = window.board_before, window.board_after
        return {
            "schema": SCHEMA,
            "verdict": self.verdict.value,
            "reasons": list(self.reasons),
            "device": {
                "model": before.model if before else None,
                "serial": before.serial if before else None,
                "governor": before.governor if before else None,
                "temperature_start_c": before.temperature_c if before else None,
                "temperature_end_c": after.temperature_c if after else None,
                "throttled_before": before.throttled if before else None,
                "throttled_after": after.throttled if after else None,
            },
            "source": info_to_json(window.meter),
            "sampling": {**asdict(window.sampling), "sampler_cpu": window.sampler_cpu},
            "window": {
                "t0_mono_s": window.t0_s,
                "t1_mono_s": window.t1_s,
                "t0_utc": window.t0_utc,
                "duration_s": window.duration_s,
                "sync_err_s": window.meter.sync_err_s,
            },
            "energy": {
                "gross_j": _interval(self.gross_j),
                "net_j": _interval(self.net_j),
                "idle": None if self.idle is None else asdict(self.idle),
            },
            "uncertainty": _uncertainty(window),
            "tokens": asdict(self.tokens),
            "phases": {phase.value: _phase(energy) for phase, energy in self.phases.items()},
            "j_per_token": {
                counted: {
                    "gross": _interval(self.per_token(counted)),
                    "net": _interval(self.per_token(counted, net=True)),
                }
                for counted in ("drafted", "accepted", "emitted")
            },
            "scheduler": {"draft_j_per_token": self.draft_j_per_token, "wait_w": self.wait_w},
        }


def energy_per_token(
    measurement: Measurement,
    phases: PhaseLog,
    *,
    drafted: int,
    accepted: int,
    emitted: int,
    prompt: int = 0,
    rounds: int = 0,
    idle: Idle | None = None,
) -> EnergyRecord:
    """Return the energy of a generation per token.

    Args:
        measurement: the window from the request to its last token.
        phases: what the device did when.
        drafted, accepted, emitted: tokens; with none of a kind there is no figure for it.
        prompt, rounds: for the record only.
        idle: `idle_between` an idle window before and one after; without it nothing is net.

    Raises:
        EnergyError: if the counts contradict each other.
    """
    tokens = Tokens(
        drafted=drafted, accepted=accepted, emitted=emitted, prompt=prompt, rounds=rounds
    )
    verdicts, reasons = [measurement.verdict], list(measurement.reasons)
    if idle is not None and idle.problem:
        verdicts.append(Verdict.DEGRADED)
        reasons.append(f"no net figures: {idle.problem}")
    if phases.forgot_since(measurement.t0_s):
        verdicts.append(Verdict.DEGRADED)
        reasons.append("phases: their first marks were dropped, they cover a part of the window")
    trusted = measurement.verdict is not Verdict.INVALID
    return EnergyRecord(
        measurement=measurement,
        tokens=tokens,
        idle=idle,
        gross_j=_gross(measurement),
        net_j=_net(measurement, idle) if trusted and idle and not idle.problem else None,
        phases=split(measurement, phases.spans(measurement.t0_s, measurement.t1_s)),
        verdict=worst(verdicts),
        reasons=tuple(reasons),
    )


def _gross(measurement: Measurement) -> Interval | None:
    if measurement.gross_j is None or measurement.uncertainty is None:
        return None
    half_j = measurement.uncertainty.half_width_j
    return Interval(measurement.gross_j, measurement.gross_j - half_j, measurement.gross_j + half_j)


def _net(measurement: Measurement, idle: Idle) -> Interval | None:
    """Return gross less idle: the offset cancels, the gain scales what is left."""
    if measurement.gross_j is None or measurement.uncertainty is None or idle.power_w is None:
        return None
    parts = measurement.uncertainty
    net_j = measurement.gross_j - idle.power_w * measurement.duration_s
    gain = parts.gain_j / measurement.gross_j if measurement.gross_j else 0.0
    std_j = math.hypot(
        gain * net_j,
        parts.quantum_j,
        parts.integration_j,
        parts.edges_j,
        parts.gaps_j,
        idle.std_w * measurement.duration_s,
    )
    half_j = parts.coverage * std_j if std_j else 0.0
    return Interval(net_j, net_j - half_j, net_j + half_j)


def _interval(interval: Interval | None) -> dict[str, float] | None:
    return None if interval is None else interval._asdict()


def _phase(energy: PhaseEnergy) -> dict[str, Any]:
    return {
        "duration_s": energy.duration_s,
        "spans": energy.spans,
        "energy_j": energy.energy_j,
        "half_width_j": energy.half_width_j,
        "mean_w": energy.mean_w,
        "method": energy.method.value if energy.method else None,
    }


def _uncertainty(window: Measurement) -> dict[str, float | None] | None:
    if window.uncertainty is None:
        return None
    parts = {**asdict(window.uncertainty), "combined_j": window.uncertainty.combined_j}
    return {name: finite(value) for name, value in parts.items()}


def record_schema() -> dict[str, Any]:
    """Return the JSON schema of a record."""
    text = files("sdk.energy").joinpath("record.schema.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema
