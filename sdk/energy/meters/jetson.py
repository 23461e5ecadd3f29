"""The power monitors on NVIDIA Jetson modules: INA3221 (JetPack 4, 5, 6) and INA238 (AGX Thor).

The module's input, where one is measured, contains the other rails: it is used alone. Modules
without one are the sum of rails that do not contain each other. The carrier board and what hangs on
it are outside. Sources: the kernel's Documentation/hwmon/ina3221.rst, NVIDIA's device trees.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sdk.energy.interface import Kind, MeterInfo, MeterNotFoundError, Sample, Scope
from sdk.energy.meters.sysfs import NumberFile, open_numbers, read_number, read_text
from sdk.energy.registry import Driver

__all__ = ["DRIVER", "JetsonMeter", "Rail", "find_rails", "is_jetson", "total_rails"]

_RATE_HZ = 20.0
_SHUNT_STEP_UV = 40.0
_GAIN = 0.02  # 1 % shunts and the chip's own error
_INPUTS = ("VIN", "VDD_IN", "POM_5V_IN")
_SUMS = (
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),  # AGX Orin
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),  # AGX Xavier
)


@dataclass(frozen=True, slots=True)
class Rail:
    """One measured rail: the files whose product, times `scale`, is its power in watts."""

    label: str
    paths: tuple[Path, ...]
    scale: float
    shunt_uohm: int | None
    folder: Path


def total_rails(labels: Iterable[str]) -> tuple[str, ...]:
    """Return the rails that make up a module's total, none counted twice; () if unknown."""
    present = set(labels)
    for label in _INPUTS:
        if label in present:
            return (label,)
    for rails in _SUMS:
        if present.issuperset(rails):
            return rails
    return ()


def is_jetson(root: Path = Path("/")) -> bool:
    """Return whether this is a board with a Tegra."""
    return "nvidia,tegra" in (read_text(root / "proc/device-tree/compatible") or "")


def find_rails(root: Path = Path("/")) -> dict[str, Rail]:
    """Return every rail by its label, whatever JetPack names its files."""
    folders = {
        folder.resolve(): folder
        for pattern in ("sys/class/hwmon/hwmon*", "sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*")
        for folder in sorted(root.glob(pattern))
    }
    rails: dict[str, Rail] = {}
    for folder in folders.values():
        found = _ina238(folder) if read_text(folder / "name") == "ina238" else _ina3221(folder)
        rails.update((rail.label, rail) for rail in found)
    for folder in sorted(root.glob("sys/bus/i2c/drivers/ina3221x/*/iio:device*")):
        rails.update((rail.label, rail) for rail in _iio(folder))
    return rails


def _ina3221(folder: Path) -> Iterator[Rail]:
    if read_text(folder / "name") != "ina3221":
        return
    for number in (1, 2, 3):  # 4 to 7 are shunt voltages and sums
        label = read_text(folder / f"in{number}_label")
        if label and label != "NC":
            paths = folder / f"in{number}_input", folder / f"curr{number}_input"
            shunt = read_number(folder / f"shunt{number}_resistor")
            yield Rail(label, paths, 1e-6, shunt, folder)


def _ina238(folder: Path) -> Iterator[Rail]:
    yield Rail("VIN", (folder / "power1_input",), 1e-6, None, folder)


def _iio(folder: Path) -> Iterator[Rail]:
    for number in (0, 1, 2):
        label = read_text(folder / f"rail_name_{number}")
        if label and label != "NC":
            yield Rail(label, (folder / f"in_power{number}_input",), 1e-3, None, folder)


class JetsonMeter:
    """A module's total, or the rails that were named."""

    def __init__(
        self,
        *,
        rails: Sequence[str] = (),
        root: Path = Path("/"),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare.

        Args:
            rails: what to sum; empty for the module's total.
            root: where sys and proc are looked for.
            clock: the monotonic clock.
        """
        self._wanted = tuple(rails)
        self._root = root
        self._clock = clock
        self._files: list[tuple[list[NumberFile], float]] = []
        self._info = self._describe(())

    @property
    def info(self) -> MeterInfo:
        """Return the description; its rails are known once open."""
        return self._info

    def open(self) -> None:
        """Find the rails and open their files.

        Raises:
            MeterNotFoundError: on other boards, for unknown modules, or without permission.
        """
        if not is_jetson(self._root):
            raise MeterNotFoundError("open jetson: this is no Jetson")
        known = find_rails(self._root)
        wanted = self._wanted or total_rails(known)
        missing = [label for label in wanted if label not in known]
        if not wanted or missing:
            raise MeterNotFoundError(
                f"open jetson: {'no rail ' + missing[0] if missing else 'total unknown'} among "
                f"{', '.join(known) or 'none'}; name the rails, jetson:RAIL+RAIL"
            )
        rails = [known[label] for label in wanted]
        self._files = [(open_numbers(rail.paths), rail.scale) for rail in rails]
        self._info = self._describe(rails)

    def _describe(self, rails: Sequence[Rail]) -> MeterInfo:
        labels = tuple(rail.label for rail in rails)
        folder = rails[0].folder if rails else Path()
        averaging_s = (read_number(folder / "update_interval") or 0) * 1e-3 if rails else 0.0
        averaged = averaging_s >= 0.5 / _RATE_HZ
        whole = len(labels) == 1 and labels[0] in _INPUTS
        return MeterInfo(
            driver="jetson",
            label="+".join(self._wanted) or "module",
            kind=Kind.AVERAGED if averaged else Kind.INSTANT,
            averaging_s=averaging_s if averaged else None,
            scope=Scope.MODULE if whole else Scope.RAILS,
            rate_hz=_RATE_HZ,
            rails=labels,
            sources=tuple((rail.label, str(path)) for rail in rails for path in rail.paths),
            quantum=math.hypot(*(_quantum_w(rail) for rail in rails)),
            gain_rel=_GAIN,
            chip_samples=read_number(folder / "samples") if rails else None,
            leaves_out="carrier board, what hangs on it, supply losses",
        )

    def read(self) -> Sequence[Sample]:
        """Return the power now, at the middle of the time that reading took."""
        before_s = self._clock()
        power_w = sum(
            scale * math.prod(file.read() for file in files) for files, scale in self._files
        )
        return [Sample((before_s + self._clock()) / 2, power_w)]

    def close(self) -> None:
        """Close the files."""
        for files, _scale in self._files:
            for file in files:
                file.close()
        self._files = []


def _quantum_w(rail: Rail) -> float:
    """Return one step of a rail's power: the shunt's voltage step as current, times volts."""
    millivolts = read_number(rail.paths[0]) if len(rail.paths) > 1 else None
    if not rail.shunt_uohm or not millivolts:
        return 1e-3
    return _SHUNT_STEP_UV / rail.shunt_uohm * millivolts * 1e-3


DRIVER = Driver(
    name="jetson",
    summary="power monitors on an NVIDIA Jetson module",
    open=lambda target: JetsonMeter(rails=[rail for rail in target.split("+") if rail]),
    targets=lambda: [""] if is_jetson() else [],
    hint="this is no Jetson",
    automatic=True,
)
