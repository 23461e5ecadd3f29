"""Power drawn from a battery, from /sys/class/power_supply.

The sign of current_now differs between drivers, so the status says whether it flows out; while the
battery charges there is nothing to measure and samples are missing. Supplies of USB-C ports (UCSI)
are refused: their current is what was negotiated, not what flows (kernel commit 992a60ed).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from sdk.energy.interface import Kind, MeterInfo, MeterLostError, MeterNotFoundError, Sample, Scope
from sdk.energy.meters.sysfs import NumberFile, open_numbers, read_text
from sdk.energy.registry import Driver

__all__ = ["DRIVER", "BatteryMeter"]

_SUPPLIES = "sys/class/power_supply"
_RATE_HZ = 2.0


class BatteryMeter:
    """One battery that is being discharged."""

    def __init__(
        self,
        *,
        name: str,
        root: Path = Path("/"),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare; `name` is the supply's folder, such as BAT0."""
        self._folder = root / _SUPPLIES / name
        self._clock = clock
        self._files: list[NumberFile] = []
        self.info = MeterInfo(
            driver="battery",
            label=name,
            kind=Kind.INSTANT,
            scope=Scope.BATTERY,
            rate_hz=_RATE_HZ,
            gain_rel=0.02,  # gauges are trimmed to a few per cent; calibrate for better
            leaves_out="what a charger feeds in; refused while charging",
        )

    def open(self) -> None:
        """Open power_now, or current_now and voltage_now."""
        name = self._folder.name
        if "ucsi" in name or read_text(self._folder / "type") != "Battery":
            raise MeterNotFoundError(
                f"open battery {name}: no battery; USB-C ports state what was negotiated"
            )
        if read_text(self._folder / "status") != "Discharging":
            raise MeterNotFoundError(f"open battery {name}: not discharging; unplug the charger")
        direct = (self._folder / "power_now").exists()
        names = ("power_now",) if direct else ("current_now", "voltage_now")
        self._files = open_numbers(self._folder / file for file in names)

    def read(self) -> Sequence[Sample]:
        """Return the power now."""
        status = read_text(self._folder / "status")
        if status != "Discharging":
            raise MeterLostError(f"read battery {self._folder.name}: it is {status or 'gone'}")
        values = [abs(file.read()) * 1e-6 for file in self._files]
        power_w = values[0] if len(values) == 1 else values[0] * values[1]
        return [Sample(self._clock(), power_w)]

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()
        self._files = []


def batteries(root: Path = Path("/")) -> Iterator[str]:
    """Yield the name of every battery that supplies this machine."""
    for folder in sorted((root / _SUPPLIES).glob("*")):
        # The battery of a mouse supplies a mouse.
        if read_text(folder / "type") == "Battery" and read_text(folder / "scope") != "Device":
            yield folder.name


def _open(target: str) -> BatteryMeter:
    name = target or next(batteries(), "")
    if not name or "/" in name:
        raise MeterNotFoundError("open battery: none under /sys/class/power_supply")
    return BatteryMeter(name=name)


DRIVER = Driver(
    name="battery",
    summary="what a battery delivers while discharging",
    open=_open,
    targets=batteries,
    hint="no battery under /sys/class/power_supply",
    automatic=True,
)
