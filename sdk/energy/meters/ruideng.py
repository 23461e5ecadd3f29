"""RuiDeng UM24C, UM25C and UM34C USB meters over Bluetooth serial (`rfcomm bind`).

One byte asks for a frame of 130 bytes, big-endian. Frames without a checksum are believed only
where their figures agree with each other. Layout: sigrok.org/wiki/RDTech_UM_series.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import xor

from sdk.energy.interface import Kind, MeterInfo, MeterNotFoundError, Sample, Scope
from sdk.energy.meters.serial_port import SerialPort
from sdk.energy.registry import Driver

__all__ = ["DRIVER", "UmDecoder", "UmMeter", "UmReading", "parse_frame"]

FRAME_BYTES = 130
_REQUEST = b"\xf0"
_REQUEST_PERIOD_S = 0.5
_END = 0xFFF1  # of the models without a checksum
_SUMMED = (
    *(17, 7, 127, 69, 113, 3, 9, 53, 19, 89, 59, 67, 57, 39, 23, 49),
    *(31, 109, 63, 41, 15, 119, 55, 73, 79, 111, 45, 99, 97, 83, 121, 1),
)


@dataclass(frozen=True, slots=True)
class Model:
    """One model's units."""

    name: str
    volt: float
    ampere: float
    summed: bool


_MODELS = {
    0x0963: Model("UM24C", 1e-2, 1e-3, summed=False),
    0x09C9: Model("UM25C", 1e-3, 1e-4, summed=False),
    0x0D4C: Model("UM34C", 1e-2, 1e-3, summed=True),
}
_STARTS = tuple(model.to_bytes(2, "big") for model in _MODELS)


@dataclass(frozen=True, slots=True)
class UmReading:
    """What a frame states."""

    model: str
    volts: float
    amperes: float
    watts: float
    celsius: int
    milliwatt_hours: int  # of the selected group: a cross-check for long windows


def parse_frame(frame: bytes) -> UmReading | None:
    """Return what a frame of 130 bytes states, or None where it is not sound."""
    if len(frame) != FRAME_BYTES:
        return None
    number, raw_volts, raw_amperes, milliwatts, celsius, fahrenheit, group = struct.unpack_from(
        ">HHHIHHH", frame
    )
    model = _MODELS.get(number)
    if model is None or group > 9 or not _ends_well(frame, model):
        return None
    volts, amperes = raw_volts * model.volt, raw_amperes * model.ampere
    # Power is the product, to the steps of its factors; both temperatures are the same one.
    slack_w = 0.001 + model.volt * (amperes + model.ampere) + model.ampere * volts
    if abs(milliwatts * 1e-3 - volts * amperes) > slack_w:
        return None
    if abs(fahrenheit - (celsius * 1.8 + 32)) > 2:
        return None
    (energy,) = struct.unpack_from(">I", frame, 20 + 8 * group)
    return UmReading(model.name, volts, amperes, milliwatts * 1e-3, celsius, energy)


def _ends_well(frame: bytes, model: Model) -> bool:
    if model.summed:
        return reduce(xor, (frame[at] for at in _SUMMED)) == frame[-1]
    return int.from_bytes(frame[-2:], "big") == _END


class UmDecoder:
    """Finds frames in a stream of bytes, wherever it begins."""

    def __init__(self) -> None:
        """Start with nothing."""
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[UmReading]:
        """Take bytes and return the sound frames that are complete."""
        self._buffer += data
        readings = []
        while (start := self._start()) is not None:
            del self._buffer[:start]
            if len(self._buffer) < FRAME_BYTES:
                break
            reading = parse_frame(bytes(self._buffer[:FRAME_BYTES]))
            del self._buffer[: FRAME_BYTES if reading else 1]
            if reading:
                readings.append(reading)
        return readings

    def _start(self) -> int | None:
        """Return where a frame may begin; what cannot belong to one is forgotten."""
        found = [at for mark in _STARTS if (at := self._buffer.find(mark)) >= 0]
        if found:
            return min(found)
        del self._buffer[:-1]
        return None


class UmMeter:
    """A meter that is asked twice a second."""

    def __init__(self, *, port: str, clock: Callable[[], float] = time.monotonic) -> None:
        """Prepare; `port` is such as /dev/rfcomm0."""
        self._port = SerialPort(port=port, baud=9600)
        self._clock = clock
        self._decoder = UmDecoder()
        self._asked_s = float("-inf")
        self.info = MeterInfo(
            driver="um25c",
            label=port,
            kind=Kind.INSTANT,
            scope=Scope.USB_C,
            rate_hz=1 / _REQUEST_PERIOD_S,
            quantum=1e-3,
            gain_rel=0.01,
            sync_err_s=0.1,  # Bluetooth
            leaves_out="nothing behind the plug",
        )

    def open(self) -> None:
        """Open the port."""
        self._port.open()
        self._decoder = UmDecoder()
        self._asked_s = float("-inf")

    def read(self) -> Sequence[Sample]:
        """Return the frames that came and ask for the next one when it is time."""
        chunks, _dropped = self._port.take()
        samples = [
            Sample(chunk.time_s, reading.watts)
            for chunk in chunks
            for reading in self._decoder.feed(chunk.data)
        ]
        now_s = self._clock()
        if now_s - self._asked_s >= 0.9 * _REQUEST_PERIOD_S:
            self._asked_s = now_s
            self._port.write(_REQUEST)
        return samples

    def close(self) -> None:
        """Close the port."""
        self._port.close()


def _open(target: str) -> UmMeter:
    if not target:
        raise MeterNotFoundError("open um25c: name the port, um25c:/dev/rfcomm0")
    return UmMeter(port=target)


DRIVER = Driver(
    name="um25c",
    summary="RuiDeng UM24C, UM25C, UM34C over Bluetooth serial",
    open=_open,
    hint="pair it (PIN 1234), 'rfcomm bind 0 ADDRESS', then um25c:/dev/rfcomm0",
)
