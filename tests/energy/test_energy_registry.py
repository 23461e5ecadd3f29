"""Which meters there are, and strangers' ones by entry point."""

from __future__ import annotations

import time
from importlib.metadata import EntryPoint

import pytest

from sdk.energy import (
    find_meters,
    open_meter,
    registry,
)
from sdk.energy.interface import Kind, MeterInfo, MeterNotFoundError, Sample, Scope, available
from sdk.energy.registry import Driver


def test_every_driver_is_listed_with_a_reading_or_a_reason() -> None:
    found = list(find_meters())
    assert {meter.driver for meter in found} == set(registry._BUILT_IN)
    for meter in found:
        assert meter.availability.ok != bool(meter.availability.reason)


def test_unknown_meters_are_refused_with_the_known_ones() -> None:
    with pytest.raises(MeterNotFoundError, match="um25c"):
        open_meter("voltmeter")
    for spec in ("um25c", "atorch", "ppk2", "ppk2:/dev/x@9999", "lpm01a", "nvml:x", "replay"):
        with pytest.raises(MeterNotFoundError):
            open_meter(spec)


class SolarMeter:
    """A stranger's meter."""

    info = MeterInfo(
        driver="solar", label="roof", kind=Kind.INSTANT, scope=Scope.WALL, rate_hz=20.0
    )

    def open(self) -> None: ...

    def read(self) -> list[Sample]:
        return [Sample(time.monotonic(), 230.0)]

    def close(self) -> None: ...


SOLAR = Driver(
    name="solar",
    summary="roof",
    open=lambda _target: SolarMeter(),
    targets=lambda: [""],
    automatic=True,
)


def test_others_add_meters_by_entry_point_and_cannot_take_ours_down(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    points = [
        EntryPoint("solar", "test_energy_registry:SOLAR", registry.ENTRY_POINT_GROUP),
        EntryPoint("broken", "no_such_package:DRIVER", registry.ENTRY_POINT_GROUP),
        EntryPoint("wrong", "json:dumps", registry.ENTRY_POINT_GROUP),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda **_: points)
    found = {meter.driver: meter for meter in find_meters()}
    assert found["solar"].availability.value == 230.0
    assert "loading it failed" in found["broken"].availability.reason
    assert "no Driver" in found["wrong"].availability.reason
    meter = open_meter("auto")
    meter.open()
    assert meter.info.driver == "solar"
    with pytest.raises(MeterNotFoundError, match="no_such_package"):
        open_meter("broken")


def test_the_null_meter_is_not_available() -> None:
    assert not available(open_meter("null"), timeout_s=0.1).ok
