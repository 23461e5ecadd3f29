"""Our own line protocol, for an INA2xx behind a microcontroller (`examples/energy_meter`).

    E1,<seq>,<t_us>,<mV>,<uA>,<uJ since start>,<marker bits>,<flags>*<crc, 4 hex digits>

Integers, ASCII, one line a sample, CRC-16/CCITT-FALSE over what precedes the asterisk. Energy is
summed on the device, so a lost line costs resolution in time and no energy; time is the device's
own. `?` asks for the header:

    I1,<name>,<firmware>,<chip>,<shunt uohm>,<conversion us>,<averages>,<rate Hz>*<crc>
"""

from __future__ import annotations

import time
from binascii import crc_hqx
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from sdk.energy.interface import Kind, MeterInfo, MeterNotFoundError, Sample, Scope
from sdk.energy.meters.counter import RisingCounter
from sdk.energy.meters.serial_port import Chunk, DeviceClock, SerialPort, ports
from sdk.energy.registry import Driver

__all__ = [
    "DRIVER",
    "DeviceHeader",
    "LineDecoder",
    "LineMeter",
    "LineSample",
    "parse_header",
    "parse_line",
    "sealed",
]

_MAX_LINE = 160
_BAUD = 115200
_RATE_HZ = 100.0  # until the device states its own
_MAX_W = 200.0
_RASPBERRY_PI_PICO = (0x2E8A, 0x000A)


@dataclass(frozen=True, slots=True)
class LineSample:
    """One line of measurement."""

    sequence: int
    device_us: int
    millivolts: int
    microamperes: int
    microjoules: int
    markers: int
    flags: int


@dataclass(frozen=True, slots=True)
class DeviceHeader:
    """What the device says about itself."""

    name: str
    firmware: str
    chip: str
    shunt_uohm: int
    conversion_us: int
    averages: int
    rate_hz: float


def sealed(body: str) -> bytes:
    """Return a line with its checksum and line feed."""
    return f"{body}*{crc_hqx(body.encode('ascii'), 0xFFFF):04x}\n".encode("ascii")


def _fields(line: bytes, kind: bytes, count: int) -> list[str] | None:
    """Return the fields of a sound line of one kind, or None."""
    body, star, crc = line.strip(b"\r\n").rpartition(b"*")
    if not star or len(line) > _MAX_LINE or not body.startswith(kind + b",") or not body.isascii():
        return None
    if crc.lower() != b"%04x" % crc_hqx(body, 0xFFFF):
        return None
    fields = body.decode("ascii").split(",")[1:]
    return fields if len(fields) == count else None


def parse_line(line: bytes) -> LineSample | None:
    """Return the sample in a line, or None where it is not a sound one."""
    fields = _fields(line, b"E1", 7)
    if fields is None or not all(_is_integer(field) for field in fields):
        return None
    return LineSample(*(int(field) for field in fields))


def parse_header(line: bytes) -> DeviceHeader | None:
    """Return what a header line says, or None where it is not a sound one."""
    fields = _fields(line, b"I1", 7)
    if fields is None or not all(_is_integer(field) for field in fields[3:]):
        return None
    name, firmware, chip, *numbers = fields
    shunt, conversion, averages, rate = (int(number) for number in numbers)
    return DeviceHeader(name, firmware, chip, shunt, conversion, averages, float(rate))


def _is_integer(field: str) -> bool:
    digits = field.removeprefix("-")
    return 0 < len(digits) <= 20 and digits.isascii() and digits.isdigit()


class LineDecoder:
    """Cuts a stream of bytes into lines; a first line that lacks its begin fails its checksum."""

    def __init__(self) -> None:
        """Start with nothing."""
        self._partial = b""

    def feed(self, data: bytes) -> list[LineSample | DeviceHeader]:
        """Take bytes and return the sound lines that are complete."""
        *lines, partial = (self._partial + data).split(b"\n")
        self._partial = partial[-_MAX_LINE - 1 :]
        parsed = (parse_line(line) or parse_header(line) for line in lines)
        return [item for item in parsed if item is not None]


class LineMeter:
    """A device that sends lines of our protocol."""

    def __init__(self, *, port: str, clock: Callable[[], float] = time.monotonic) -> None:
        """Prepare; `port` is such as /dev/ttyACM0."""
        self._port = SerialPort(port=port, baud=_BAUD)
        self._clock = clock
        self._decoder = LineDecoder()
        self._device_clock = DeviceClock()
        self._counter = RisingCounter(range_j=None, max_power_w=_MAX_W)
        self._last_us = -1
        self._header: DeviceHeader | None = None
        self._asked_s = float("-inf")
        self._info = MeterInfo(
            driver="line",
            label=port,
            kind=Kind.COUNTER,
            scope=Scope.DC_INPUT,
            rate_hz=_RATE_HZ,
            quantum=1e-6,
            gain_rel=0.01,  # shunt tolerance
            sync_err_s=0.005,
            leaves_out="what does not flow through its shunt",
        )

    @property
    def info(self) -> MeterInfo:
        """Return the description; rate and chip are the device's once it has stated them."""
        return self._info

    @property
    def header(self) -> DeviceHeader | None:
        """Return what the device said about itself, if it has."""
        return self._header

    def open(self) -> None:
        """Open the port and ask the device for its header."""
        self._port.open()
        self._decoder = LineDecoder()
        self._device_clock.reset()
        self._last_us = -1
        self._header = None
        self._asked_s = float("-inf")

    def read(self) -> Sequence[Sample]:
        """Return the samples that came."""
        chunks, _dropped = self._port.take()  # what is dropped costs no energy
        now_s = self._clock()
        if self._header is None and now_s - self._asked_s > 1.0:
            self._asked_s = now_s
            self._port.write(b"?")
        return [sample for chunk in chunks for sample in self._decode(chunk)]

    def _decode(self, chunk: Chunk) -> list[Sample]:
        items = self._decoder.feed(chunk.data)
        for item in items:
            if isinstance(item, DeviceHeader):
                self._take_header(item)
        lines = [item for item in items if isinstance(item, LineSample)]
        restarts = [self._restarted(line) for line in lines]
        if lines:
            self._device_clock.observe(lines[-1].device_us * 1e-6, chunk.time_s)
        return [self._sample(line, restart) for line, restart in zip(lines, restarts, strict=True)]

    def _restarted(self, line: LineSample) -> bool:
        """Return whether the device has begun anew before this line."""
        restarted = line.device_us < self._last_us
        self._last_us = line.device_us
        if restarted:
            self._device_clock.reset()
        return restarted

    def _take_header(self, header: DeviceHeader) -> None:
        self._header = header
        rate_hz = header.rate_hz if header.rate_hz > 0 else _RATE_HZ
        self._info = replace(
            self._info,
            rate_hz=rate_hz,
            chip_samples=header.averages or None,
            sources=((header.chip, f"{header.name} {header.firmware}"),),
        )

    def _sample(self, line: LineSample, restarted: bool) -> Sample:
        time_s = self._device_clock.to_host_s(line.device_us * 1e-6)
        step = self._counter.add(line.microjoules * 1e-6, time_s)
        return Sample(time_s, step.total_j, int(step.lost or restarted))

    def close(self) -> None:
        """Close the port."""
        self._port.close()


def _open(target: str) -> LineMeter:
    port = target or next(iter(ports({_RASPBERRY_PI_PICO})), "")
    if not port:
        raise MeterNotFoundError("open line meter: name the port, line:/dev/ttyACM0")
    return LineMeter(port=port)


DRIVER = Driver(
    name="line",
    summary="INA2xx behind a microcontroller, our line protocol",
    open=_open,
    targets=lambda: ports({_RASPBERRY_PI_PICO}),
    hint="no Raspberry Pi Pico on USB; for others name the port, line:/dev/ttyUSB0",
)
