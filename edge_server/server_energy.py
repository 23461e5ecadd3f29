"""What the edge server's own meter counts, split among devices by verified rows.

Any meter of `sdk.energy` does; `auto` is the NVIDIA card's counter (NVML), and where there is none
nobody has a share. Knows nothing of the devices' own energy.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from sdk.energy import EnergyMonitor, MeterNotFoundError, available, open_meter

__all__ = ["DeviceWork", "ServerEnergy", "meter_server"]

_AUTO = "nvml"
_SETTLE_S = 1.0
_MAX_DEVICES = 4096
_MAX_GAP_SHARE = 0.5


@dataclass(slots=True)
class DeviceWork:
    """What was verified for one device while a meter ran, and its share of the meter's joules."""

    rows: int = 0
    accepted: int = 0
    joules: float = 0.0

    def as_json(self) -> dict[str, float | int | None]:
        """Return the sums, and joules per accepted token where there are any."""
        return {
            "rows": self.rows,
            "accepted": self.accepted,
            "j": round(self.joules, 6),
            "j_per_accepted": self.joules / self.accepted if self.accepted else None,
        }


@dataclass(slots=True)
class ServerEnergy:
    """Split what the meter counted in a stretch of time by the rows verified in it.

    A counter moves every 20 to 100 ms and a pass takes less, so rows are collected and settled once
    a second or so. What is taken while no row is verified belongs to nobody. The verify loop calls
    `verified`, the meter's thread the rest.

    Attributes:
        meter: what is read, in words.
        scope: what its figure contains.
        idle_j: joules of stretches without a verified row.
        unmetered_rows: rows of stretches in which the meter told nothing.
    """

    meter: str
    scope: str
    idle_j: float = 0.0
    unmetered_rows: int = 0
    _devices: dict[str, DeviceWork] = field(default_factory=dict)
    _waiting: dict[str, DeviceWork] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def verified(self, device: str, *, rows: int, accepted: int) -> None:
        """Note that rows were verified for a device, and how many tokens that accepted."""
        with self._lock:
            work = self._waiting.setdefault(device, DeviceWork())
            work.rows += rows
            work.accepted += accepted

    def take(self) -> dict[str, DeviceWork]:
        """Return what was verified since the last call, to be settled."""
        with self._lock:
            taken, self._waiting = self._waiting, {}
        return taken

    def settle(self, taken: dict[str, DeviceWork], spent_j: float | None) -> None:
        """Split the joules of a stretch by the rows in it; None where nobody knows them."""
        rows = sum(work.rows for work in taken.values())
        with self._lock:
            if spent_j is None:
                self.unmetered_rows += rows
                return
            if not rows:
                self.idle_j += spent_j
            for device, work in taken.items():
                sums = self._devices.pop(device, None) or DeviceWork()
                if len(self._devices) >= _MAX_DEVICES:
                    self._devices.pop(next(iter(self._devices)))  # verified for longest ago
                self._devices[device] = sums
                sums.rows += work.rows
                sums.accepted += work.accepted
                sums.joules += spent_j * work.rows / rows

    def devices(self) -> dict[str, DeviceWork]:
        """Return a copy of every device's sums, for another thread to read."""
        with self._lock:
            return {
                device: DeviceWork(work.rows, work.accepted, work.joules)
                for device, work in self._devices.items()
            }

    def as_json(self) -> dict[str, object]:
        """Return everything as JSON values."""
        return {
            "meter": self.meter,
            "scope": self.scope,
            "idle_j": round(self.idle_j, 6),
            "unmetered_rows": self.unmetered_rows,
            "devices": {device: work.as_json() for device, work in self.devices().items()},
        }


@contextmanager
def meter_server(spec: str) -> Iterator[ServerEnergy | None]:
    """Read a meter while the block runs.

    Args:
        spec: a meter as for `sdk.energy.open_meter`, `auto` for the graphics card where there is
            one, or `none`.

    Raises:
        MeterNotFoundError: where a meter that was named is not there.
    """
    if spec == "none":
        yield None
        return
    meter = open_meter(_AUTO if spec == "auto" else spec)
    there = available(meter)
    if not there.ok:
        if spec != "auto":
            raise MeterNotFoundError(f"serve --energy {spec}: {there.reason}")
        yield None
        return
    with EnergyMonitor(meter=meter) as monitor:
        info = meter.info
        energy = ServerEnergy(meter=f"{info.driver}: {info.label}", scope=info.scope.value)
        stop = threading.Event()
        thread = threading.Thread(
            target=_settle, args=(energy, monitor, stop), name="server energy", daemon=True
        )
        thread.start()
        try:
            yield energy
        finally:
            stop.set()
            thread.join()


def _settle(energy: ServerEnergy, monitor: EnergyMonitor, stop: threading.Event) -> None:
    """Settle every second, and once more at the end."""
    before_s = time.monotonic()
    stopping = False
    while not stopping:
        stopping = stop.wait(_SETTLE_S)
        now_s, taken = time.monotonic(), energy.take()
        measured = monitor.measure(before_s, now_s)
        gap = measured.sampling.gap_s > _MAX_GAP_SHARE * (now_s - before_s)
        energy.settle(taken, None if gap else measured.gross_j)
        before_s = now_s
