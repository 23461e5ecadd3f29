"""What devices say their tokens cost: energy records, summed per device.

Only records that the device itself trusts are summed; the others are counted. Knows nothing of
meters; a record's schema is the device's (`multispin.energy-per-token`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from sdk.errors import MalformedFrameError

__all__ = ["DeviceEnergy", "EnergyLedger", "scheduler_figures"]

_MAX_DEVICES = 4096
_MAX_NUMBER = 1e300  # integers of JSON may be beyond any float
_TRUSTED = ("ok", "degraded")
_FIGURES = ("draft_j_per_token", "tx_j_per_bit", "wait_w")


@dataclass(slots=True)
class DeviceEnergy:
    """One device's sums.

    Attributes:
        gross_j: everything its meter saw during its generations.
        refused: records without a trusted figure.
    """

    records: int = 0
    refused: int = 0
    gross_j: float = 0.0
    drafted: int = 0
    accepted: int = 0
    emitted: int = 0

    def as_json(self) -> dict[str, float | int | None]:
        """Return the sums, and joules per accepted and emitted token where there are any."""
        return {
            "records": self.records,
            "refused": self.refused,
            "gross_j": round(self.gross_j, 6),
            "drafted": self.drafted,
            "accepted": self.accepted,
            "emitted": self.emitted,
            "j_per_accepted": self.gross_j / self.accepted if self.accepted else None,
            "j_per_emitted": self.gross_j / self.emitted if self.emitted else None,
        }


@dataclass(slots=True)
class EnergyLedger:
    """Every device's sums; the device that reported longest ago makes room for a new one."""

    devices: dict[str, DeviceEnergy] = field(default_factory=dict)

    def add(self, device: str, record: Mapping[str, Any]) -> None:
        """Sum up one record.

        Raises:
            MalformedFrameError: naming the field that is missing or wrong.
        """
        counts = {name: _count(record, name) for name in ("drafted", "accepted", "emitted")}
        gross_j = _gross_j(record)
        sums = self.devices.pop(device, None) or DeviceEnergy()
        if len(self.devices) >= _MAX_DEVICES:
            self.devices.pop(next(iter(self.devices)))
        self.devices[device] = sums
        if gross_j is None or record.get("verdict") not in _TRUSTED:
            sums.refused += 1
            return
        sums.records += 1
        sums.gross_j += gross_j
        sums.drafted += counts["drafted"]
        sums.accepted += counts["accepted"]
        sums.emitted += counts["emitted"]


def scheduler_figures(record: Mapping[str, Any]) -> dict[str, float | None]:
    """Return what the scheduler wants of a record, as arguments of `Controller.observe_energy`.

    Empty where the record is not trusted. A figure below 0 is one that the split into phases could
    not resolve: not known.

    Raises:
        MalformedFrameError: naming the figure that is no number.
    """
    told = record.get("scheduler")
    if not isinstance(told, dict) or record.get("verdict") not in _TRUSTED:
        return {}
    return {name: _figure(told.get(name), f"scheduler.{name}") for name in _FIGURES}


def _count(record: Mapping[str, Any], name: str) -> int:
    tokens = record.get("tokens")
    value = tokens.get(name) if isinstance(tokens, dict) else None
    if type(value) is not int or not 0 <= value < 1 << 32:
        raise MalformedFrameError(f"energy record: tokens.{name} must be an integer of at least 0")
    return value


def _gross_j(record: Mapping[str, Any]) -> float | None:
    energy = record.get("energy")
    gross = energy.get("gross_j") if isinstance(energy, dict) else None
    if gross is None:
        return None
    value = gross.get("value") if isinstance(gross, dict) else None
    if not _is_number(value) or value < 0.0:
        raise MalformedFrameError(
            "energy record: energy.gross_j.value must be a number of at least 0"
        )
    return float(value)


def _figure(value: object, name: str) -> float | None:
    if value is None:
        return None
    if not _is_number(value):
        raise MalformedFrameError(f"energy record: {name} must be a number or null")
    return float(value) if value >= 0.0 else None


def _is_number(value: object) -> TypeGuard[float]:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _MAX_NUMBER
    )
