"""The power-management chip (PMIC) of a Raspberry Pi 5: the sum of its twelve rails.

Read through the firmware's mailbox, or with `vcgencmd` where the mailbox may not be opened. What
runs on 5 V directly (USB devices, HATs, NVMe, fan) and the converters' losses are not in it.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from sdk.energy.calibration import Calibration
from sdk.energy.interface import Kind, MeterInfo, MeterLostError, MeterNotFoundError, Sample, Scope
from sdk.energy.meters.mailbox import Mailbox
from sdk.energy.registry import Driver
from sdk.errors import EnergyError

__all__ = ["DRIVER", "INPUT_ESTIMATE", "Pi5Meter", "parse_rails", "rails_power_w"]

# Reading takes 23 ms, most of it in the firmware's sweep of the converters.
_RATE_HZ = 10.0
_COMMAND = "pmic_read_adc"
_LINE = re.compile(r"\s*([A-Z0-9_]+)_([AV])\s+(current|volt)\(\d+\)=(\d+\.\d+)([AV])\s*")
_UNITS = {"A": "current", "V": "volt"}
_LIMITS = {"A": 25.0, "V": 6.0}
RAILS = (
    *("3V7_WL_SW", "3V3_SYS", "1V8_SYS", "DDR_VDD2", "DDR_VDDQ", "1V1_SYS"),
    *("0V8_SW", "VDD_CORE", "3V3_DAC", "3V3_ADC", "0V8_AON", "HDMI"),
)

# From rails to the USB-C input: one board, one firmware, nothing on USB, against a USB-C meter
# (github.com/jfikar/RPi5-power). The uncertainties are our own bound for other boards.
INPUT_ESTIMATE = Calibration(
    gain=1.1451,
    offset_w=0.5879,
    var_gain=0.05**2,
    var_offset=0.3**2,
    reference="another board's USB-C meter (jfikar/RPi5-power)",
    scope=Scope.DC_INPUT.value,
)


def parse_rails(text: str) -> dict[str, tuple[float, float]]:
    """Return (amperes, volts) by rail; rails are paired by name, never by index.

    Empty where anything in the text is damaged: a sum that lacks a rail looks like a good one.
    """
    values: dict[tuple[str, str], float] = {}
    for line in text.splitlines():
        match = _LINE.fullmatch(line)
        if match is None:
            if line.strip():
                return {}
            continue
        rail, unit, word, number, written_unit = match.groups()
        if word != _UNITS[unit] or written_unit != unit or (rail, unit) in values:
            return {}
        if float(number) > _LIMITS[unit]:
            return {}
        values[rail, unit] = float(number)
    rails = [rail for rail, unit in values if unit == "A" and (rail, "V") in values]
    return {rail: (values[rail, "A"], values[rail, "V"]) for rail in rails}


def rails_power_w(text: str) -> float | None:
    """Return the sum over all rails in watts, or None where the text does not hold every rail."""
    rails = parse_rails(text)
    if not set(RAILS) <= set(rails):
        return None
    return sum(amperes * volts for amperes, volts in rails.values())


class Pi5Meter:
    """The PMIC of this board."""

    def __init__(
        self,
        *,
        estimate_input: bool = False,
        mailbox: Path = Path("/dev/vcio"),
        vcgencmd: str = "vcgencmd",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare.

        Args:
            estimate_input: whether to estimate the USB-C input from the rails.
            mailbox: the firmware's mailbox.
            vcgencmd: the program to fall back to.
            clock: the monotonic clock.
        """
        self._mailbox_path = mailbox
        self._vcgencmd = vcgencmd
        self._clock = clock
        self._mailbox: Mailbox | None = None
        leaves_out = "USB devices, HATs, NVMe, fan"
        self.info = MeterInfo(
            driver="pi5-input" if estimate_input else "pi5-pmic",
            label="pi5-pmic-rails",
            kind=Kind.INSTANT,
            scope=Scope.DC_INPUT if estimate_input else Scope.RAILS,
            rate_hz=_RATE_HZ,
            rails=RAILS,
            gain_rel=0.0 if estimate_input else 0.02,
            calibration=INPUT_ESTIMATE if estimate_input else None,
            estimated=estimate_input,
            leaves_out=leaves_out if estimate_input else leaves_out + ", converter losses",
        )

    def open(self) -> None:
        """Open the mailbox, or make sure that vcgencmd answers."""
        problems = []
        for source in (self._open_mailbox, lambda: None):
            try:
                self._mailbox = source()
                if rails_power_w(self._text()) is not None:
                    return
                problems.append("the answer lacks rails")
            except EnergyError as error:
                problems.append(str(error))
            self.close()
        raise MeterNotFoundError(f"open Raspberry Pi 5 PMIC: {'; '.join(problems)}")

    def _open_mailbox(self) -> Mailbox | None:
        return Mailbox(path=self._mailbox_path)

    def read(self) -> Sequence[Sample]:
        """Return the power now, at the middle of the sweep; nothing for a damaged answer."""
        before_s = self._clock()
        power_w = rails_power_w(self._text())
        if power_w is None:
            return []
        return [Sample((before_s + self._clock()) / 2, power_w)]

    def _text(self) -> str:
        if self._mailbox is not None:
            return self._mailbox.command(_COMMAND)
        try:
            answer = subprocess.run(
                [self._vcgencmd, _COMMAND], capture_output=True, text=True, timeout=2, check=True
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise MeterLostError(f"run {self._vcgencmd} {_COMMAND}: {error}") from error
        return answer.stdout

    def close(self) -> None:
        """Close the mailbox."""
        if self._mailbox is not None:
            self._mailbox.close()
            self._mailbox = None


def is_pi5(root: Path = Path("/")) -> bool:
    """Return whether this is a Raspberry Pi 5, a Compute Module 5 or a 500."""
    try:
        return b"brcm,bcm2712" in (root / "proc/device-tree/compatible").read_bytes()
    except OSError:
        return False


DRIVER = Driver(
    name="pi5-pmic",
    summary="power-management chip of a Raspberry Pi 5, sum of rails",
    open=lambda _target: Pi5Meter(),
    targets=lambda: [""] if is_pi5() else [],
    hint="this is no Raspberry Pi 5",
    automatic=True,
)
