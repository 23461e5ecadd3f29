"""The energy counters of x86 processors (RAPL) under /sys/class/powercap.

Domains nest: psys contains the package, the package contains core and uncore, memory (dram) stands
beside the package. Packages and their dram are summed, nothing else. Source: the kernel's
Documentation/power/powercap/powercap.rst; energy_uj is readable by root alone since 5.10.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from sdk.energy.interface import Kind, MeterInfo, MeterNotFoundError, Sample, Scope
from sdk.energy.meters.counter import RisingCounter
from sdk.energy.meters.sysfs import NumberFile, open_numbers, read_number, read_text
from sdk.energy.registry import Driver

__all__ = ["DRIVER", "RaplMeter"]

_RATE_HZ = 10.0
_MAX_PACKAGE_W = 1500.0
_UPDATE_S = 0.001


class RaplMeter:
    """Packages and memory of this machine, as one counter."""

    def __init__(
        self, *, root: Path = Path("/"), clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Prepare; `root` is where sys/class/powercap is looked for."""
        self._root = root
        self._clock = clock
        self._domains: list[tuple[NumberFile, RisingCounter]] = []
        self._info = self._describe(())

    def _describe(self, zones: Sequence[tuple[str, Path]]) -> MeterInfo:
        return MeterInfo(
            driver="rapl",
            label="intel-rapl",
            kind=Kind.COUNTER,
            scope=Scope.PACKAGE,
            rate_hz=_RATE_HZ,
            rails=tuple(name for name, _ in zones),
            sources=tuple((name, str(path / "energy_uj")) for name, path in zones),
            quantum=61e-6,  # 2**-14 J, the usual unit
            update_period_s=_UPDATE_S,
            leaves_out="everything outside the processor: board, disks, fans, supply losses"
            + ("" if any("dram" in name for name, _ in zones) else ", memory"),
        )

    @property
    def info(self) -> MeterInfo:
        """Return the description; its rails are known once open."""
        return self._info

    def open(self) -> None:
        """Open the counters of every package; raise MeterNotFoundError without any."""
        zones = list(_zones(self._root / "sys/class/powercap"))
        if not zones:
            raise MeterNotFoundError("open rapl: no package under /sys/class/powercap")
        self._info = self._describe(zones)
        files = open_numbers(path / "energy_uj" for _, path in zones)
        self._domains = list(zip(files, (_counter(path) for _, path in zones), strict=True))

    def read(self) -> Sequence[Sample]:
        """Return the counters' sum now."""
        total_j, lost = 0.0, False
        for file, counter in self._domains:
            # Reading and unwrapping happen here, one after the other: no other thread counts wraps.
            step = counter.add(file.read() * 1e-6, self._clock())
            total_j += step.total_j
            lost |= step.lost
        return [Sample(self._clock(), total_j, int(lost))]

    def close(self) -> None:
        """Close the files."""
        for file, _counter_of in self._domains:
            file.close()
        self._domains = []


def _zones(powercap: Path) -> Iterator[tuple[str, Path]]:
    """Yield (name, folder) of every package and of the memory beneath it."""
    for package in sorted(powercap.glob("intel-rapl:*")):
        name = read_text(package / "name") or ""
        if package.name.count(":") != 1 or not name.startswith("package"):
            continue
        yield name, package
        for part in sorted(powercap.glob(f"{package.name}:*")):
            if read_text(part / "name") == "dram":
                yield f"{name} dram", part


def _counter(zone: Path) -> RisingCounter:
    range_uj = read_number(zone / "max_energy_range_uj")
    return RisingCounter(range_j=range_uj * 1e-6 if range_uj else None, max_power_w=_MAX_PACKAGE_W)


DRIVER = Driver(
    name="rapl",
    summary="processor package and memory of an x86 machine",
    open=lambda _target: RaplMeter(),
    targets=lambda: [""],
    automatic=True,
)
