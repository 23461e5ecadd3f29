"""A generation with a meter beside it: idle, the device's phases, idle; then joules per token."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from types import TracebackType

from sdk.device import Device
from sdk.energy import (
    EnergyMeter,
    EnergyMonitor,
    EnergyRecord,
    Idle,
    Measurement,
    PhaseLog,
    energy_per_token,
    idle_between,
    write_recording,
)
from sdk.energy.record import Interval
from sdk.protocol import up

__all__ = ["MeasuredGeneration", "energy_sentence"]

_LOG = logging.getLogger(__name__)


class MeasuredGeneration:
    """A context manager around one `Device.generate`; `report` gives its energy record."""

    def __init__(self, *, device: Device, meter: EnergyMeter, idle_s: float) -> None:
        """Prepare.

        Args:
            device: generates within the context.
            meter: owned from now on.
            idle_s: how long to measure idle before and after; 0 for no net figures.
        """
        self._device = device
        self._idle_s = idle_s
        self._monitor = EnergyMonitor(meter=meter)
        self._phases = PhaseLog()
        self._before: Measurement | None = None
        self._window: Measurement | None = None
        self._after: Measurement | None = None

    def __enter__(self) -> MeasuredGeneration:
        self._monitor.start()
        self._before = self._measure_idle()
        self._device.on_phase = self._phases.enter
        self._monitor.begin_window("generate")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._window = self._monitor.end_window("generate")
                self._after = self._measure_idle()
        finally:
            self._monitor.close()

    def _measure_idle(self) -> Measurement | None:
        if self._idle_s <= 0:
            return None
        _LOG.warning("energy: measuring the idle board for %g s", self._idle_s)
        started_s = time.monotonic()
        time.sleep(self._idle_s)
        return self._monitor.measure(started_s, time.monotonic(), key="idle")

    def write_trace(self, path: Path, record: EnergyRecord) -> None:
        """Write the window's samples, phases and tokens, for `multispin energy report`.

        Raises:
            EnergyError: if the file cannot be written.
        """
        t0_s, t1_s = record.measurement.t0_s, record.measurement.t1_s
        trace = self._monitor.trace(t0_s, t1_s)
        write_recording(path, trace, self._phases, record.tokens, t0_s, t1_s)

    def report(self) -> EnergyRecord:
        """Return the record, and send it to the server."""
        assert self._window is not None, "report follows the context"
        stats = self._device.stats
        idle: Idle | None = None
        if self._before is not None and self._after is not None:
            idle = idle_between(self._before, self._after)
        record = energy_per_token(
            self._window,
            self._phases,
            drafted=stats.drafted,
            accepted=stats.accepted,
            emitted=stats.emitted + stats.unverified,
            rounds=stats.rounds,
            idle=idle,
        )
        payload = json.dumps(record.to_json(), separators=(",", ":")).encode()
        self._device.transport.publish(up(self._device.id, "energy"), payload, qos=1)
        return record


def energy_sentence(record: EnergyRecord) -> str:
    """Return the figures as a user reads them, or why there are none."""
    verdict = record.verdict.value
    reasons = f" ({'; '.join(record.reasons)})" if record.reasons else ""
    parts = []
    for counted in ("drafted", "accepted", "emitted"):
        gross, net = record.per_token(counted), record.per_token(counted, net=True)
        if gross is not None:
            own = f", {_joules(net)} net" if net is not None else ""
            parts.append(f"{_joules(gross)}{own} per {counted} token")
    figures = "; ".join(parts) or "no figure"
    source = record.measurement.meter
    return f"[energy, {source.driver} ({source.scope.value}), {verdict}: {figures}{reasons}]"


def _joules(interval: Interval) -> str:
    half = (interval.high - interval.low) / 2
    return f"{interval.value:.4g} ± {half:.2g} J"
