"""The energy counter of an NVIDIA graphics card, from the driver's own library (NVML).

Millijoules since the driver was loaded, from Volta on. On a Jetson the library answers "not
supported": use `jetson` there. On A100 and H100 only a part of the running time is seen by the
sensor (arXiv 2312.02741): repeat work and measure long windows.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Sequence

from sdk.energy.interface import Kind, MeterInfo, MeterLostError, MeterNotFoundError, Sample, Scope
from sdk.energy.meters.counter import RisingCounter
from sdk.energy.registry import Driver

__all__ = ["DRIVER", "NvmlMeter"]

_LIBRARY = "libnvidia-ml.so.1"
_RATE_HZ = 10.0
_UPDATE_S = 0.1
_MAX_CARD_W = 3000.0
_WORDS = {3: "not supported by this device", 4: "no permission", 9: "driver not loaded"}


class NvmlMeter:
    """One graphics card."""

    def __init__(
        self,
        *,
        index: int = 0,
        library: str = _LIBRARY,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare.

        Args:
            index: which card.
            library: the shared library to load.
            clock: the monotonic clock.
        """
        self._index = index
        self._library_name = library
        self._clock = clock
        self._library: ctypes.CDLL | None = None
        self._device = ctypes.c_void_p()
        self._counter = RisingCounter(range_j=None, max_power_w=_MAX_CARD_W)
        self.info = MeterInfo(
            driver="nvml",
            label=f"GPU {index}",
            kind=Kind.COUNTER,
            scope=Scope.GPU,
            rate_hz=_RATE_HZ,
            quantum=1e-3,
            gain_rel=0.03,  # ±5 W of what such cards draw, as the vendor states
            update_period_s=_UPDATE_S,
            leaves_out="everything but the graphics card",
        )

    def open(self) -> None:
        """Load the library and find the card."""
        try:
            self._library = ctypes.CDLL(self._library_name)
        except OSError as error:
            raise MeterNotFoundError(f"open nvml: no NVIDIA driver ({error})") from error
        self._check("start", self._library.nvmlInit_v2())
        handle = self._library.nvmlDeviceGetHandleByIndex_v2
        self._check(f"find GPU {self._index}", handle(self._index, ctypes.byref(self._device)))
        self._counter = RisingCounter(range_j=None, max_power_w=_MAX_CARD_W)

    def _check(self, step: str, code: int) -> None:
        if code:
            raise MeterNotFoundError(f"nvml, {step}: {_WORDS.get(code, f'error {code}')}")

    def read(self) -> Sequence[Sample]:
        """Return the counter now."""
        assert self._library is not None, "opened before"
        millijoules = ctypes.c_ulonglong()
        code = self._library.nvmlDeviceGetTotalEnergyConsumption(
            self._device, ctypes.byref(millijoules)
        )
        if code:
            raise MeterLostError(f"nvml, read energy: {_WORDS.get(code, f'error {code}')}")
        now_s = self._clock()
        step = self._counter.add(millijoules.value * 1e-3, now_s)
        return [Sample(now_s, step.total_j, int(step.lost))]

    def close(self) -> None:
        """Let go of the library; may be called twice."""
        if self._library is not None:
            self._library.nvmlShutdown()
            self._library = None


def _open(target: str) -> NvmlMeter:
    if target and not target.isdigit():
        raise MeterNotFoundError(f"open meter 'nvml:{target}': the target is a card's number")
    return NvmlMeter(index=int(target or 0))


DRIVER = Driver(
    name="nvml",
    summary="energy counter of an NVIDIA graphics card",
    open=_open,
    targets=lambda: [""],
    automatic=True,
)
