"""STM X-NUCLEO-LPM01A power shield: joules of every millisecond, for devices of up to 50 mA.

In energy mode each line is `dddd±ee`, joules of one sample; every thousandth is followed by the
meter's own time, by which lost samples are counted. Source: its user manual UM2269 and
EnergyRunner's description.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from sdk.energy.interface import Kind, MeterInfo, MeterLostError, MeterNotFoundError, Sample, Scope
from sdk.energy.meters.serial_port import DeviceClock, SerialPort
from sdk.energy.registry import Driver

__all__ = ["DRIVER", "LpmDecoder", "LpmMeter", "LpmSample", "parse_joules", "parse_time_ms"]

_RATE_HZ = 1000
_MAX_LINE = 120
_MAX_JOULES = 1e-3  # of a millisecond: 1 W, twenty times what it can carry
_JOULES = re.compile(rb"(\d{4})([+-]\d{2})")
_TIME = re.compile(rb"TimeStamp: (\d{1,6})s (\d{1,3})ms, buff \d{1,3}%")
_START = (
    "htc",
    "acqtime inf",
    "trigdelay 0",
    "trigsrc sw",
    "output energy",
    "format ascii_dec",
    "freq 1k",
)


@dataclass(frozen=True, slots=True)
class LpmSample:
    """Energy of one millisecond, when it ended by the meter's clock, and samples lost before it."""

    joules: float
    device_s: float
    lost: int


def parse_joules(line: bytes) -> float | None:
    """Return the joules of a sample's line, or None where it is none."""
    match = _JOULES.fullmatch(line)
    if match is None:
        return None
    joules = int(match[1]) * 10.0 ** int(match[2])
    return joules if joules <= _MAX_JOULES else None


def parse_time_ms(line: bytes) -> int | None:
    """Return the milliseconds of a time stamp's line, or None where it is none."""
    match = _TIME.fullmatch(line)
    return int(match[1]) * 1000 + int(match[2]) if match and int(match[2]) < 1000 else None


class LpmDecoder:
    """Cuts the stream into samples and counts them against the meter's time stamps."""

    def __init__(self) -> None:
        """Start with nothing; the first line is taken as torn."""
        self._partial = b""
        self._torn = True
        self._sample = 0  # number of the last sample, a millisecond each
        self._stamped: int | None = None
        self._lost = 0

    def feed(self, data: bytes) -> list[LpmSample]:
        """Take bytes and return the samples that are complete."""
        *lines, self._partial = (self._partial + data).split(b"\n")
        if len(self._partial) > _MAX_LINE:
            self._partial, self._torn = b"", True
        samples = []
        for line in lines:
            torn, self._torn = self._torn, False
            sample = None if torn else self._take(line.strip())
            if sample is not None:
                samples.append(sample)
        return samples

    def _take(self, line: bytes) -> LpmSample | None:
        milliseconds = parse_time_ms(line)
        if milliseconds is not None:
            self._check(milliseconds * _RATE_HZ // 1000)
            return None
        joules = parse_joules(line)
        if joules is None:
            return None
        self._sample += 1
        lost, self._lost = self._lost, 0
        return LpmSample(joules, self._sample / _RATE_HZ, lost)

    def _check(self, stamped: int) -> None:
        """Move on to the meter's own count; what it had and we did not is lost."""
        if self._stamped is not None and stamped > self._sample:
            self._lost += stamped - self._sample
        self._stamped = stamped
        self._sample = stamped


class LpmMeter:
    """A shield in energy mode, supplying the device under test."""

    def __init__(
        self, *, port: str, supply_mv: int = 3300, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Prepare; the shield supplies `supply_mv` as soon as it is opened."""
        if not 1800 <= supply_mv <= 3300:
            raise MeterNotFoundError(f"open lpm01a: {supply_mv} mV is not within 1800 to 3300")
        self._port = SerialPort(port=port, baud=3_686_400)
        self._supply_mv = supply_mv
        self._clock = clock
        self._decoder = LpmDecoder()
        self._device_clock = DeviceClock()
        self.info = MeterInfo(
            driver="lpm01a",
            label=port,
            kind=Kind.ENERGY_PER_SAMPLE,
            scope=Scope.DC_INPUT,
            rate_hz=float(_RATE_HZ),
            quantum=1e-9,
            gain_rel=0.02,
            sync_err_s=0.005,
            leaves_out="what is not supplied through it; more than 50 mA",
        )

    def open(self) -> None:
        """Open the port and start an endless acquisition."""
        self._port.open()
        for command in (*_START, f"volt {self._supply_mv}m", "pwr on nostatus", "start"):
            self._port.write(command.encode("ascii") + b"\r\n")
        self._decoder = LpmDecoder()
        self._device_clock.reset()

    def read(self) -> Sequence[Sample]:
        """Return the samples that came."""
        chunks, dropped = self._port.take()
        taken: list[LpmSample] = []
        for chunk in chunks:
            if complete := self._decoder.feed(chunk.data):
                self._device_clock.observe(complete[-1].device_s, chunk.time_s)
                taken += complete
        to_host_s = self._device_clock.to_host_s
        samples = [Sample(to_host_s(one.device_s), one.joules, one.lost) for one in taken]
        if dropped and samples:
            samples[0] = samples[0]._replace(lost=max(samples[0].lost, 1))
        return samples

    def close(self) -> None:
        """Stop the acquisition and close the port; the device under test stays supplied."""
        with suppress(MeterLostError):
            self._port.write(b"stop\r\nhrc\r\n")
        self._port.close()


def _open(target: str) -> LpmMeter:
    port, _, millivolts = target.partition("@")
    if not port or (millivolts and not millivolts.isdigit()):
        raise MeterNotFoundError("open lpm01a: name the port, lpm01a:/dev/ttyACM0@3300")
    return LpmMeter(port=port, supply_mv=int(millivolts or 3300))


DRIVER = Driver(
    name="lpm01a",
    summary="STM X-NUCLEO-LPM01A power shield, up to 50 mA",
    open=_open,
    hint="state port and supply, lpm01a:/dev/ttyACM0@3300",
)
