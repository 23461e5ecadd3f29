"""The meter that measures nothing, so that callers need not ask whether there is one."""

from __future__ import annotations

from collections.abc import Sequence

from sdk.energy.interface import Kind, MeterInfo, Sample, Scope
from sdk.energy.registry import Driver

__all__ = ["DRIVER", "NullMeter"]


class NullMeter:
    """Gives no sample; every window over it is invalid and says why."""

    info = MeterInfo(driver="null", label="none", kind=Kind.INSTANT, scope=Scope.NONE, rate_hz=10.0)

    def open(self) -> None:
        """Do nothing."""

    def read(self) -> Sequence[Sample]:
        """Return nothing."""
        return ()

    def close(self) -> None:
        """Do nothing."""


DRIVER = Driver(
    name="null",
    summary="measures nothing",
    open=lambda _target: NullMeter(),
    hint="always there, never chosen by itself",
)
