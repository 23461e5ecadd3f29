"""A meter together with the calibration that was stored for it.

Samples pass through untouched; the calibration goes into the description and is applied where
energy is computed, together with its uncertainty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sdk.energy.calibration import Calibration, calibration_path, load
from sdk.energy.interface import EnergyMeter, MeterInfo, Sample, Scope

__all__ = ["CalibratedMeter"]


class CalibratedMeter:
    """Any meter; without a stored calibration it stays as it is."""

    def __init__(self, *, meter: EnergyMeter) -> None:
        """Wrap a meter; the calibration is looked up when it is opened."""
        self._meter = meter
        self._calibration: Calibration | None = None

    @property
    def info(self) -> MeterInfo:
        """Return the meter's description with its calibration."""
        info, calibration = self._meter.info, self._calibration
        if calibration is None:
            return info
        scope = Scope(calibration.scope) if calibration.scope else info.scope
        return replace(info, calibration=calibration, scope=scope, gain_rel=0.0, offset_w=0.0)

    def open(self) -> None:
        """Open the meter and read its calibration."""
        self._meter.open()
        info = self._meter.info
        self._calibration = load(calibration_path(info.driver, info.label))

    def read(self) -> Sequence[Sample]:
        """Return the meter's samples."""
        return self._meter.read()

    def close(self) -> None:
        """Close the meter."""
        self._meter.close()
