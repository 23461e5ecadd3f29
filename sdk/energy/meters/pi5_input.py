"""The input power of a Raspberry Pi 5, estimated from its rails with another board's constants.

Labelled as an estimate wherever it appears; calibrate `pi5-pmic` against a meter of your own for a
measurement.
"""

from __future__ import annotations

from sdk.energy.meters.pi5 import Pi5Meter, is_pi5
from sdk.energy.registry import Driver

__all__ = ["DRIVER"]

DRIVER = Driver(
    name="pi5-input",
    summary="input of a Raspberry Pi 5, estimated from its rails",
    open=lambda _target: Pi5Meter(estimate_input=True),
    targets=lambda: [""] if is_pi5() else [],
    hint="this is no Raspberry Pi 5",
)
