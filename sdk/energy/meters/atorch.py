"""Atorch USB and DC meters (UD18, UD24, DL24) over serial or Bluetooth serial.

They send 36 bytes a second: FF 55, type, device, figures, checksum. Alternating-current devices
are refused: their power is not the product of what they state. Layout and checksum:
github.com/CursedHardware/atorch-console, docs/protocol-design.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sdk.energy.interface import Kind, MeterInfo, MeterNotFoundError, Sample, Scope
from sdk.energy.meters.serial_port import SerialPort
from sdk.energy.registry import Driver

__all__ = ["DRIVER", "AtorchDecoder", "AtorchMeter", "AtorchReading", "parse_frame"]

FRAME_BYTES = 36
_HEAD = b"\xff\x55\x01"  # the third byte: a report
_DC, _USB = 2, 3


@dataclass(frozen=True, slots=True)
class AtorchReading:
    """What a report states."""

    volts: float
    amperes: float
    milliampere_hours: int
    milliwatt_hours: int

    @property
    def watts(self) -> float:
        """Return the power."""
        return self.volts * self.amperes


def checksum(frame: bytes) -> int:
    """Return what the last byte of a frame must be."""
    return (sum(frame[2:-1]) & 0xFF) ^ 0x44


def parse_frame(frame: bytes) -> AtorchReading | None:
    """Return what a report of 36 bytes states, or None where it is not sound."""
    if len(frame) != FRAME_BYTES or not frame.startswith(_HEAD) or frame[-1] != checksum(frame):
        return None
    volts, amperes = int.from_bytes(frame[4:7], "big"), int.from_bytes(frame[7:10], "big")
    hours, energy = int.from_bytes(frame[10:13], "big"), int.from_bytes(frame[13:17], "big")
    if frame[3] == _USB:
        return AtorchReading(volts / 100, amperes / 100, hours * 10, energy * 10)
    if frame[3] == _DC:
        return AtorchReading(volts / 10, amperes / 1000, 0, energy * 10)
    return None


class AtorchDecoder:
    """Finds reports in a stream of bytes, wherever it begins."""

    def __init__(self) -> None:
        """Start with nothing."""
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[AtorchReading]:
        """Take bytes and return the sound reports that are complete."""
        self._buffer += data
        readings: list[AtorchReading] = []
        while (start := self._buffer.find(_HEAD)) >= 0:
            del self._buffer[:start]
            if len(self._buffer) < FRAME_BYTES:
                return readings
            reading = parse_frame(bytes(self._buffer[:FRAME_BYTES]))
            del self._buffer[: FRAME_BYTES if reading else 1]
            if reading:
                readings.append(reading)
        del self._buffer[: -(len(_HEAD) - 1)]
        return readings


class AtorchMeter:
    """A meter that sends by itself."""

    def __init__(self, *, port: str) -> None:
        """Prepare; `port` is a device path."""
        self._port = SerialPort(port=port, baud=9600)
        self._decoder = AtorchDecoder()
        self.info = MeterInfo(
            driver="atorch",
            label=port,
            kind=Kind.INSTANT,
            scope=Scope.USB_C,
            rate_hz=1.0,
            quantum=0.05,  # 10 mA at 5 V: too coarse for small differences
            gain_rel=0.01,
            sync_err_s=0.1,
            leaves_out="nothing behind the plug",
        )

    def open(self) -> None:
        """Open the port."""
        self._port.open()
        self._decoder = AtorchDecoder()

    def read(self) -> Sequence[Sample]:
        """Return the reports that came."""
        chunks, _dropped = self._port.take()
        return [
            Sample(chunk.time_s, reading.watts)
            for chunk in chunks
            for reading in self._decoder.feed(chunk.data)
        ]

    def close(self) -> None:
        """Close the port."""
        self._port.close()


def _open(target: str) -> AtorchMeter:
    if not target:
        raise MeterNotFoundError("open atorch: name the port, atorch:/dev/rfcomm0")
    return AtorchMeter(port=target)


DRIVER = Driver(
    name="atorch",
    summary="Atorch UD18, UD24, DL24 over serial or Bluetooth",
    open=_open,
    hint="pair it, 'rfcomm bind 0 ADDRESS', then atorch:/dev/rfcomm0",
)
