"""Single-channel power monitors under /sys/class/hwmon: INA2xx chips and POWER-Z USB meters.

What it measures is wherever the shunt sits; on a chip of the board's own only its maker knows.
Energy counters (INA228) are preferred to power, power to voltage times current. Source: the
kernel's Documentation/hwmon/{ina2xx,ina238,powerz}.rst.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from sdk.energy.interface import (
    Kind,
    MeterInfo,
    MeterLostError,
    MeterNotFoundError,
    Sample,
    Scope,
)
from sdk.energy.meters.counter import RisingCounter
from sdk.energy.meters.jetson import is_jetson
from sdk.energy.meters.sysfs import NumberFile, open_numbers, read_number, read_text
from sdk.energy.registry import Driver

__all__ = ["DRIVER", "HwmonMeter", "monitors"]

_HWMON = "sys/class/hwmon"
_RATE_HZ = 10.0
_MAX_W = 1000.0
_MAX_FAILURES = 5  # in a row; POWER-Z answers with EIO now and then
_INA_GAIN = 0.01  # shunt tolerance; the chips themselves are better
_POWERZ_GAIN = 0.005
_CHIPS = frozenset(
    {
        *("ina209", "ina219", "ina220", "ina226", "ina228", "ina230", "ina231", "ina233"),
        *("ina234", "ina237", "ina238", "ina260", "sq52206", "powerz"),
    }
)


class HwmonMeter:
    """One chip, found by its name because numbers change from boot to boot."""

    def __init__(self, *, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Prepare; `folder` is the chip's hwmon folder."""
        self._folder = folder
        self._clock = clock
        self._files: list[NumberFile] = []
        self._read: Callable[[], Sample] = self._power
        self._counter = RisingCounter(range_j=None, max_power_w=_MAX_W)
        self._failures = 0
        chip = read_text(folder / "name") or "unknown"
        powerz = chip == "powerz"
        self._info = MeterInfo(
            driver="hwmon",
            label=_label(folder, chip),
            kind=Kind.INSTANT,
            scope=Scope.USB_C if powerz else Scope.DC_INPUT,
            rate_hz=_RATE_HZ,
            gain_rel=_POWERZ_GAIN if powerz else _INA_GAIN,
            leaves_out="what does not flow through its shunt",
        )

    @property
    def info(self) -> MeterInfo:
        """Return the description; its kind and resolution are known once open."""
        return self._info

    def open(self) -> None:
        """Open the best that the chip offers."""
        folder = self._folder
        if (read_text(folder / "name") or "") not in _CHIPS:
            raise MeterNotFoundError(f"open hwmon {folder.name}: no INA2xx and no POWER-Z there")
        if (folder / "energy1_input").exists():
            self._take(self._energy, Kind.COUNTER, 1e-6, "energy1_input")
        elif (folder / "power1_input").exists():
            self._take(self._power, Kind.INSTANT, self._power_step_w(), "power1_input")
        else:
            # A chip's in0 is its shunt; a POWER-Z's in0 is VBUS and in1 a CC line.
            voltage = "in0_input" if read_text(folder / "name") == "powerz" else "in1_input"
            self._take(self._product, Kind.INSTANT, 0.0, voltage, "curr1_input")
            step_w = self._files[0].read() * 1e-3 * 1e-3  # 1 mA at the voltage now
            self._info = replace(self._info, quantum=step_w)
        self._counter = RisingCounter(range_j=None, max_power_w=_MAX_W)

    def _take(self, read: Callable[[], Sample], kind: Kind, quantum: float, *names: str) -> None:
        self._read = read
        self._files = open_numbers(self._folder / name for name in names)
        averaging_s = (read_number(self._folder / "update_interval") or 0) * 1e-3
        averaged = kind is Kind.INSTANT and averaging_s >= 0.5 / _RATE_HZ
        self._info = replace(
            self._info,
            kind=Kind.AVERAGED if averaged else kind,
            averaging_s=averaging_s if averaged else None,
            quantum=quantum,
            sources=tuple((name, str(self._folder / name)) for name in names),
            chip_samples=read_number(self._folder / "samples"),
        )

    def _power_step_w(self) -> float:
        """Return one step of power1_input: 25 current steps' worth on an INA226, at 2.5 µV."""
        shunt_uohm = read_number(self._folder / "shunt_resistor")
        return 25 * 2.5 / shunt_uohm if shunt_uohm else 1e-3

    def read(self) -> Sequence[Sample]:
        """Return the reading now, or nothing where a USB meter was too slow to answer."""
        try:
            sample = self._read()
        except MeterLostError:
            self._failures += 1
            if self._failures >= _MAX_FAILURES:
                raise
            return []
        self._failures = 0
        return [sample]

    def _energy(self) -> Sample:
        step = self._counter.add(self._files[0].read() * 1e-6, now_s := self._clock())
        return Sample(now_s, step.total_j, int(step.lost))

    def _power(self) -> Sample:
        return Sample(self._clock(), self._files[0].read() * 1e-6)

    def _product(self) -> Sample:
        volts, amperes = (file.read() * 1e-3 for file in self._files)
        if not math.isfinite(volts * amperes):
            raise MeterLostError(f"read {self._folder}: not finite")
        # A USB meter's sign is the plug's orientation.
        return Sample(self._clock(), abs(volts * amperes))

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()
        self._files = []


def _label(folder: Path, chip: str) -> str:
    """Return a name that stays the same from boot to boot, such as "ina226 1-0040"."""
    device = folder / "device"
    return f"{chip} {device.resolve().name}" if device.exists() else chip


def monitors(root: Path = Path("/")) -> Iterator[Path]:
    """Yield the hwmon folder of every supported chip; a Jetson's own are left to `jetson`."""
    own = {"ina238"} if is_jetson(root) else set()
    for folder in sorted((root / _HWMON).glob("hwmon*")):
        if (read_text(folder / "name") or "") in _CHIPS - own:
            yield folder


def _open(target: str) -> HwmonMeter:
    found = {read_text(folder / "name") or "": folder for folder in monitors()}
    found.update({folder.name: folder for folder in monitors()})
    folder = found.get(target) if target else next(iter(found.values()), None)
    if folder is None:
        raise MeterNotFoundError(f"open meter 'hwmon:{target}': no such chip in /sys/class/hwmon")
    return HwmonMeter(folder=folder)


DRIVER = Driver(
    name="hwmon",
    summary="INA2xx power monitor or POWER-Z USB meter",
    open=_open,
    targets=lambda: [folder.name for folder in monitors()],
    hint="no INA2xx and no POWER-Z under /sys/class/hwmon",
    automatic=True,
)
