"""The seam between energy meters and everything that reads them.

A meter is one of four kinds, and each kind has its own arithmetic and its own errors
(`sdk.energy.curve`, `sdk.energy.uncertainty`). A meter hands out samples on the monotonic clock and
describes itself; it knows nothing of windows, of tokens and of phases.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol

from sdk.energy.calibration import Calibration
from sdk.errors import EnergyError

__all__ = [
    "Availability",
    "EnergyMeter",
    "Kind",
    "MeterInfo",
    "MeterLostError",
    "MeterNotFoundError",
    "Sample",
    "Scope",
    "available",
]

_PROBE_INTERVAL_S = 0.02


class MeterNotFoundError(EnergyError):
    """A meter that was asked for is not there, or may not be read."""


class MeterLostError(EnergyError):
    """A meter that was being read went away; reading goes on once it is back."""


class Kind(str, Enum):
    """What the values of a meter are."""

    COUNTER = "counter"  # joules since an arbitrary start, never falling
    INSTANT = "instant"  # watts at the sample's time
    AVERAGED = "averaged"  # watts, the mean over `averaging_s` up to the sample's time
    ENERGY_PER_SAMPLE = "energy_per_sample"  # joules since the sample before


class Scope(str, Enum):
    """Where in the power tree a meter sits, hence what its figure contains."""

    WALL = "wall"
    DC_INPUT = "dc_input"
    USB_C = "usb_c"
    BATTERY = "battery"
    MODULE = "module"
    RAILS = "rails"
    PACKAGE = "package"
    GPU = "gpu"
    NONE = "none"


class Sample(NamedTuple):
    """One value of a meter.

    `lost` counts samples known to be missing between the sample before and this one. For a counter
    any `lost` above 0 means that the energy since the sample before is unknown (a reset, a wrap of
    unknown range); for the other kinds it marks a gap.
    """

    time_s: float  # monotonic clock of this machine
    value: float  # unit by Kind
    lost: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterInfo:
    """What a meter measures, how often and how well.

    Attributes:
        driver: the name in the registry.
        label: which one of its kind: a path, a port, a file.
        rate_hz: samples per second at which it sends, or is read: 20 at most for the latter.
        rails: the rails that its figure sums, in the meter's own words.
        sources: (rail, path) of every file that is read.
        quantum: one step of the value's resolution, in the value's unit.
        gain_rel: standard uncertainty of the gain, relative.
        offset_w: standard uncertainty of the offset, watts.
        averaging_s: with Kind.AVERAGED, the interval one value is the mean of.
        update_period_s: how often the source refreshes, where that is slower than its reading.
        chip_samples: conversions that the chip averages into one value, where it says so.
        sync_err_s: standard uncertainty of the sample times against this machine's clock.
        leaves_out: what the figure does not contain, in words.
        calibration: applied to every value, where there is one.
        estimated: whether the figure is a model's and not a measurement.
    """

    driver: str
    label: str
    kind: Kind
    scope: Scope
    rate_hz: float
    rails: tuple[str, ...] = ()
    sources: tuple[tuple[str, str], ...] = ()
    quantum: float = 0.0
    gain_rel: float = 0.0
    offset_w: float = 0.0
    averaging_s: float | None = None
    update_period_s: float | None = None
    chip_samples: int | None = None
    sync_err_s: float = 0.0
    leaves_out: str = ""
    calibration: Calibration | None = None
    estimated: bool = False

    def __post_init__(self) -> None:
        numbers = (self.quantum, self.gain_rel, self.offset_w, self.sync_err_s)
        if not all(math.isfinite(number) and number >= 0 for number in numbers):
            raise EnergyError(f"describe meter {self.driver}: uncertainties must be finite, >= 0")
        if not (math.isfinite(self.rate_hz) and self.rate_hz > 0):
            raise EnergyError(
                f"describe meter {self.driver}: rate {self.rate_hz} Hz is not above 0"
            )
        if self.kind is Kind.AVERAGED and not (self.averaging_s and self.averaging_s > 0):
            raise EnergyError(f"describe meter {self.driver}: an averaging meter needs averaging_s")

    @property
    def period_s(self) -> float:
        """Return the nominal time between samples."""
        return 1.0 / self.rate_hz


class EnergyMeter(Protocol):
    """A source of samples; opened, read repeatedly from one thread, closed."""

    @property
    def info(self) -> MeterInfo:
        """Return the meter's description; complete once the meter is open."""

    def open(self) -> None:
        """Take hold of the meter; raise MeterNotFoundError where it is not there."""

    def read(self) -> Sequence[Sample]:
        """Return what came since the last call, oldest first, possibly nothing.

        Raises:
            MeterLostError: if the meter went away.
        """

    def close(self) -> None:
        """Let go of the meter; may be called twice."""


class Availability(NamedTuple):
    """Whether a meter gave a real value; `reason` says why not."""

    ok: bool
    reason: str
    value: float | None = None


def available(meter: EnergyMeter, *, timeout_s: float = 2.5) -> Availability:
    """Open a meter, read until a finite value above 0 comes, and close it; never raises.

    That a file or a library exists proves nothing: some sources are there and answer nothing.
    """
    try:
        meter.open()
        return _first_value(meter, time.monotonic() + timeout_s)
    except EnergyError as error:
        return Availability(False, str(error))
    finally:
        meter.close()


def _first_value(meter: EnergyMeter, deadline_s: float) -> Availability:
    seen: float | None = None
    while True:
        for sample in meter.read():
            seen = sample.value
            if math.isfinite(seen) and seen > 0:
                return Availability(True, "", seen)
        if time.monotonic() >= deadline_s:
            break
        time.sleep(min(_PROBE_INTERVAL_S, meter.info.period_s))
    if seen is None:
        return Availability(False, f"{meter.info.label}: opened, but no value came")
    return Availability(False, f"{meter.info.label}: reads only {seen:g}")
