"""Every kind of meter by name, what is connected, and how to open one.

    meter = open_meter("auto")                 # the best that gives a value
    meter = open_meter("um25c:/dev/rfcomm0")   # DRIVER or DRIVER:TARGET

Other packages add drivers through the entry-point group `multispin.meters`; each entry is a
`Driver`. Knows nothing of windows and tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import NamedTuple

from sdk.energy.calibrated import CalibratedMeter
from sdk.energy.interface import (
    Availability,
    EnergyMeter,
    MeterInfo,
    MeterNotFoundError,
    available,
)
from sdk.errors import MultispinError

__all__ = ["ENTRY_POINT_GROUP", "Driver", "Found", "drivers", "find_meters", "open_meter"]

ENTRY_POINT_GROUP = "multispin.meters"

# Where each driver's `DRIVER` is; the order is the order in which "auto" tries them: what sees the
# whole board before what sees a part of it.
_BUILT_IN = {
    "hwmon": "sdk.energy.meters.hwmon",
    "line": "sdk.energy.meters.line",
    "ppk2": "sdk.energy.meters.ppk2",
    "um25c": "sdk.energy.meters.ruideng",
    "atorch": "sdk.energy.meters.atorch",
    "lpm01a": "sdk.energy.meters.lpm01a",
    "jetson": "sdk.energy.meters.jetson",
    "pi5-pmic": "sdk.energy.meters.pi5",
    "pi5-input": "sdk.energy.meters.pi5_input",
    "tegrastats": "sdk.energy.meters.tegrastats",
    "battery": "sdk.energy.meters.battery",
    "rapl": "sdk.energy.meters.rapl",
    "nvml": "sdk.energy.meters.nvml",
    "replay": "sdk.energy.meters.replay",
    "null": "sdk.energy.meters.null",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Driver:
    """One kind of meter.

    Attributes:
        name: what users type.
        summary: what it reads, in a few words.
        open: makes the meter of a target ("" for the driver's own choice); reads nothing yet and
            raises MeterNotFoundError where the target is nonsense.
        targets: looks for connected meters without disturbing anything.
        hint: what to do where none is found.
        automatic: whether "auto" may choose it.
    """

    name: str
    summary: str
    open: Callable[[str], EnergyMeter]
    targets: Callable[[], Iterable[str]] = lambda: ()
    hint: str = ""
    automatic: bool = False


class Found(NamedTuple):
    """What was found of one driver at one target; `info` is None where there is nothing."""

    driver: str
    target: str
    summary: str
    info: MeterInfo | None
    availability: Availability

    @property
    def spec(self) -> str:
        """Return what opens this meter."""
        return f"{self.driver}:{self.target}" if self.target else self.driver


def drivers() -> dict[str, Driver | str]:
    """Return every driver by name; text in its place says why it could not be loaded."""
    found: dict[str, Driver | str] = {}
    for name, module in _BUILT_IN.items():
        found[name] = import_module(module).DRIVER
    found.update({point.name: _load(point) for point in entry_points(group=ENTRY_POINT_GROUP)})
    return found


def _load(point: EntryPoint) -> Driver | str:
    try:
        driver = point.load()
    except Exception as error:  # a stranger's package must not take ours down
        return f"loading it failed: {error}"
    return driver if isinstance(driver, Driver) else f"{driver!r} is no Driver"


def find_meters(*, automatic_only: bool = False) -> Iterator[Found]:
    """Yield every meter of every driver, with a real reading or the reason why there is none."""
    for name, driver in drivers().items():
        if isinstance(driver, str):
            yield Found(name, "", "", None, Availability(False, driver))
        elif driver.automatic or not automatic_only:
            yield from _find(driver)


def _find(driver: Driver) -> Iterator[Found]:
    try:
        targets = list(driver.targets())
    except (OSError, MultispinError) as error:
        yield Found(driver.name, "", driver.summary, None, Availability(False, str(error)))
        return
    if not targets:
        reason = Availability(False, driver.hint or "not found")
        yield Found(driver.name, "", driver.summary, None, reason)
    for target in targets:
        yield _try(driver, target)


def _try(driver: Driver, target: str) -> Found:
    try:
        meter = driver.open(target)
        availability = available(meter)
        return Found(driver.name, target, driver.summary, meter.info, availability)
    except MultispinError as error:
        return Found(driver.name, target, driver.summary, None, Availability(False, str(error)))


def open_meter(spec: str, *, calibrated: bool = True) -> EnergyMeter:
    """Return the meter that a user named, not yet opened.

    Args:
        spec: "auto", "DRIVER" or "DRIVER:TARGET".
        calibrated: whether a calibration stored for it is applied.

    Raises:
        MeterNotFoundError: if there is no such driver or nothing that gives a value.
    """
    if spec == "auto":
        spec = _automatic()
    name, _, target = spec.partition(":")
    known = drivers()
    driver = known.get(name)
    if driver is None:
        raise MeterNotFoundError(f"open meter '{spec}': not one of auto, {', '.join(known)}")
    if isinstance(driver, str):
        raise MeterNotFoundError(f"open meter '{spec}': {driver}")
    meter = driver.open(target)
    return CalibratedMeter(meter=meter) if calibrated else meter


def _automatic() -> str:
    reasons = []
    for found in find_meters(automatic_only=True):
        if found.availability.ok:
            return found.spec
        reasons.append(f"{found.driver}: {found.availability.reason}")
    raise MeterNotFoundError(
        "open meter 'auto': none gives a value; name one, or see 'multispin energy list' "
        f"({'; '.join(reasons)})"
    )
