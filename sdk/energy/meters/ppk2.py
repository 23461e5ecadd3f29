"""Nordic Power Profiler Kit II: 100,000 currents a second, up to 1 A at 0.8 to 5 V.

For microcontroller companions; a Raspberry Pi 5 or a Jetson draws more than it can carry. Samples
become means over a millisecond. Every sample carries six bits of a running number: loss shows in
them, and a stream that slipped by a byte is found again by them. Opcodes, units and constants from
the maker's open client.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sdk.energy.interface import Kind, MeterInfo, MeterLostError, MeterNotFoundError, Sample, Scope
from sdk.energy.meters.serial_port import DeviceClock, SerialPort, ports
from sdk.energy.registry import Driver

__all__ = ["DRIVER", "Ppk2Decoder", "Ppk2Meter", "Scales", "parse_metadata", "voltage_bytes"]

Floats = NDArray[np.float64]
Words = NDArray[np.uint32]

RATE_HZ = 100_000
_BLOCK = 100  # samples in a mean of one millisecond
_ALIGN = 16  # consecutive numbers that prove an alignment: once in 2**96 by chance
_DOUBTFUL = 2  # samples before a break in numbering that are not believed
_MAX_BUFFER = 1 << 20
_SPIKE_SAMPLES = 3
_MEMORY = 32
_AVERAGE_START, _AVERAGE_STOP = b"\x06", b"\x07"
_POWER_ON, _POWER_OFF = b"\x0c\x01", b"\x0c\x00"
_AMPERE_METER, _SOURCE_METER = b"\x11\x01", b"\x11\x02"
_GET_METADATA = b"\x19"
_METADATA_TIMEOUT_S = 2.0
_METADATA_LINE = re.compile(r"([A-Za-z]+)(\d?):\s*(-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scales:
    """The five ranges' constants, each [5]: resistors, offsets and the device's own trim."""

    r: tuple[float, ...] = (1031.64, 101.65, 10.15, 0.94, 0.043)
    gs: tuple[float, ...] = (1.0,) * 5
    gi: tuple[float, ...] = (1.0,) * 5
    o: tuple[float, ...] = (0.0,) * 5
    s: tuple[float, ...] = (0.0,) * 5
    i: tuple[float, ...] = (0.0,) * 5
    ug: tuple[float, ...] = (1.0,) * 5

    def amperes(self, words: Words, supply_mv: int) -> Floats:
        """Return the currents of samples, [n] to [n]."""
        adc = (words & 0x3FFF).astype(np.float64) * 4
        k = np.minimum((words >> 14) & 7, 4)
        r, gs, gi, o, s, i, ug = (
            np.array(values)[k]
            for values in (self.r, self.gs, self.gi, self.o, self.s, self.i, self.ug)
        )
        raw = (adc - o) * (1.8 / 163840 / r)
        return np.asarray(ug * (raw * (gs * raw + gi) + (s * (supply_mv / 1000) + i)))


def parse_metadata(text: str) -> Scales:
    """Return the constants in a device's metadata; what it leaves out keeps its usual value."""
    usual = Scales()
    values = {name: list(getattr(usual, name)) for name in ("r", "gs", "gi", "o", "s", "i", "ug")}
    for name, digit, number in _METADATA_LINE.findall(text):
        if name.lower() in values and digit and int(digit) < 5:
            values[name.lower()][int(digit)] = float(number)
    if min(values["r"]) <= 0:
        return usual
    return Scales(**{name: tuple(numbers) for name, numbers in values.items()})


def voltage_bytes(millivolts: int) -> bytes:
    """Return the command that sets the supply.

    Raises:
        MeterNotFoundError: outside 800 to 5000 mV.
    """
    if not 800 <= millivolts <= 5000:
        raise MeterNotFoundError(f"set PPK2 supply: {millivolts} mV is not within 800 to 5000")
    difference = millivolts - 800 + 32
    return bytes((0x0D, 3 + difference // 256, difference % 256))


class Block(NamedTuple):
    """The mean current of a millisecond: the number of its last sample, and samples lost."""

    last: int
    amperes: float
    lost: int


class Ppk2Decoder:
    """Turns the stream of bytes into means over a millisecond."""

    def __init__(self, *, scales: Scales, supply_mv: int) -> None:
        """Start without alignment."""
        self._scales = scales
        self._supply_mv = supply_mv
        self._buffer = b""
        self._number: int | None = None  # of the next sample, modulo 64; None while unaligned
        self._expected: int | None = None  # the same, from before the alignment was lost
        self._skipped = 0  # bytes, since then
        self._counted = 0  # samples since the beginning, lost ones included
        self._pending: list[Floats] = []
        self._pending_count = 0
        self._lost = 0
        self._range = 0

    def restart(self) -> None:
        """Forget the alignment, after bytes were dropped; what is pending is dropped too."""
        self._buffer = b""
        self._number = self._expected = None
        self._lost += self._pending_count
        self._pending, self._pending_count = [], 0

    def feed(self, data: bytes) -> list[Block]:
        """Take bytes and return the milliseconds that are complete."""
        self._buffer = (self._buffer + data)[-_MAX_BUFFER:]
        while True:
            if self._number is None and not self._align():
                break
            good = self._take_run()
            if good is None:
                break
            self._convert(good)
        return self._blocks()

    def _align(self) -> bool:
        """Find the first offset at which numbers follow each other."""
        limit = len(self._buffer) - 4 * _ALIGN
        for offset in range(max(limit + 1, 0)):
            words = np.frombuffer(self._buffer, "<u4", _ALIGN, offset)
            if _consecutive(words) == _ALIGN:
                self._buffer = self._buffer[offset:]
                self._number = int(words[0] >> 18) & 63
                self._count_skipped(offset)
                return True
        if limit >= 0:  # nothing up to here; keep what may still begin a run
            self._buffer = self._buffer[limit + 1 :]
            self._skipped += limit + 1
        return False

    def _count_skipped(self, offset: int) -> None:
        """Count the samples since alignment was lost: modulo 64 by number, the rest by bytes."""
        assert self._number is not None
        if self._expected is not None:
            missing = (self._number - self._expected) & 63
            missing += 64 * max(round(((self._skipped + offset) / 4 - missing) / 64), 0)
            self._lost += missing
            self._counted += missing
        self._expected, self._skipped = None, 0

    def _take_run(self) -> Words | None:
        """Return the samples up to the next break in numbering; None when there are no more."""
        count = len(self._buffer) // 4
        if count == 0:
            return None
        words = np.frombuffer(self._buffer, "<u4", count)
        run = _consecutive(words) if (int(words[0] >> 18) & 63) == self._number else 0
        if run == 0:
            return self._after_break(words)
        self._buffer = self._buffer[4 * run :]
        self._number = ((int(words[run - 1] >> 18) & 63) + 1) & 63
        if run == count:
            return words
        # What a slip leaves behind may carry the right number by chance, 1 time in 64.
        doubtful = min(run, _DOUBTFUL)
        self._lost += doubtful
        self._counted += doubtful
        return words[: run - doubtful]

    def _after_break(self, words: Words) -> Words | None:
        """Count what was lost where whole samples are missing; otherwise look for alignment."""
        if len(words) < _ALIGN:
            return None
        if _consecutive(words[:_ALIGN]) == _ALIGN:
            assert self._number is not None
            missing = ((int(words[0] >> 18) & 63) - self._number) & 63
            self._lost += missing
            self._counted += missing
            self._number = int(words[0] >> 18) & 63
            return words[:0]
        self._expected, self._number = self._number, None
        return words[:0]

    def _convert(self, words: Words) -> None:
        if not len(words):
            return
        amperes = self._scales.amperes(words, self._supply_mv)
        ranges = np.minimum((words >> 14) & 7, 4).astype(np.int64)
        _calm_spikes(amperes, ranges, self._range)
        self._range = int(ranges[-1])
        self._pending.append(amperes)
        self._pending_count += len(amperes)
        self._counted += len(amperes)

    def _blocks(self) -> list[Block]:
        whole = self._pending_count // _BLOCK * _BLOCK
        if not whole:
            return []
        amperes = np.concatenate(self._pending)
        rest = amperes[whole:]
        first = self._counted - self._pending_count
        self._pending, self._pending_count = [rest], len(rest)
        means = amperes[:whole].reshape(-1, _BLOCK).mean(axis=1)
        lost, self._lost = self._lost, 0
        return [
            Block(first + (index + 1) * _BLOCK, float(mean), lost if index == 0 else 0)
            for index, mean in enumerate(means)
        ]


def _consecutive(words: Words) -> int:
    """Return how many samples from the start are numbered one after the other, in known ranges."""
    numbers = (words >> 18) & 63
    good = ((words >> 14) & 7) <= 4
    good[1:] &= numbers[1:] == ((numbers[:-1] + 1) & 63)
    broken = np.flatnonzero(~good)
    return int(broken[0]) if len(broken) else len(words)


def _calm_spikes(amperes: Floats, ranges: NDArray[np.int64], before: int) -> None:
    """Replace the three samples after a change of range by a running mean of those before it."""
    changes = np.flatnonzero(np.diff(ranges, prepend=before))
    for change in changes:
        start = max(int(change) - _MEMORY, 0)
        if start == change:
            continue
        alpha = 0.06 if ranges[change] == 4 else 0.18
        past = amperes[start:change]
        weights = (1 - alpha) ** np.arange(len(past) - 1, -1, -1)
        amperes[change : change + _SPIKE_SAMPLES] = np.average(past, weights=weights)


class Ppk2Meter:
    """One kit, as ampere meter of a supplied device or as its supply."""

    def __init__(
        self,
        *,
        port: str,
        supply_mv: int,
        source: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare.

        Args:
            port: the first of the kit's two ports.
            supply_mv: the supply voltage; power is the current times this.
            source: whether the kit supplies the device; it is switched on at once.
            clock: the monotonic clock.
        """
        self._supply = voltage_bytes(supply_mv)
        self._port = SerialPort(port=port, baud=9600)
        self._supply_mv = supply_mv
        self._source = source
        self._clock = clock
        self._decoder = Ppk2Decoder(scales=Scales(), supply_mv=supply_mv)
        self._device_clock = DeviceClock()
        self.info = MeterInfo(
            driver="ppk2",
            label=port,
            kind=Kind.AVERAGED,
            averaging_s=_BLOCK / RATE_HZ,
            scope=Scope.DC_INPUT,
            rate_hz=RATE_HZ / _BLOCK,
            quantum=1e-6,
            gain_rel=0.02 if source else 0.05,  # as ampere meter the voltage is only believed
            sync_err_s=0.005,
            leaves_out="what is not supplied through it; more than 1 A",
        )

    def open(self) -> None:
        """Open the port, read the device's constants and start the stream."""
        self._port.open()
        self._port.write(_AVERAGE_STOP)
        scales = parse_metadata(self._metadata())
        self._port.write(_SOURCE_METER if self._source else _AMPERE_METER)
        self._port.write(self._supply)
        if self._source:
            self._port.write(_POWER_ON)
        self._port.take()
        self._decoder = Ppk2Decoder(scales=scales, supply_mv=self._supply_mv)
        self._device_clock.reset()
        self._port.write(_AVERAGE_START)

    def _metadata(self) -> str:
        self._port.take()
        self._port.write(_GET_METADATA)
        text, deadline_s = "", self._clock() + _METADATA_TIMEOUT_S
        while "END" not in text and self._clock() < deadline_s:
            time.sleep(0.01)
            chunks, _dropped = self._port.take()
            text += b"".join(chunk.data for chunk in chunks).decode("ascii", errors="replace")
        if "END" not in text:
            raise MeterNotFoundError(
                f"open PPK2 {self._port.port}: it does not state its constants"
            )
        return text

    def read(self) -> Sequence[Sample]:
        """Return the milliseconds that came."""
        chunks, dropped = self._port.take()
        if dropped:
            self._decoder.restart()
            self._device_clock.reset()
        blocks: list[Block] = []
        for chunk in chunks:
            if complete := self._decoder.feed(chunk.data):
                self._device_clock.observe(complete[-1].last / RATE_HZ, chunk.time_s)
                blocks += complete
        volts, to_host_s = self._supply_mv * 1e-3, self._device_clock.to_host_s
        samples = [
            Sample(to_host_s(block.last / RATE_HZ), block.amperes * volts, block.lost)
            for block in blocks
        ]
        if dropped and samples:
            samples[0] = samples[0]._replace(lost=max(samples[0].lost, 1))
        return samples

    def close(self) -> None:
        """Stop the stream and close the port; a device that the kit supplies stays on."""
        with suppress(MeterLostError):
            self._port.write(_AVERAGE_STOP)
        self._port.close()


def _open(target: str) -> Ppk2Meter:
    match = re.fullmatch(r"(?:(.+)@)?(\d+)(s?)", target)
    port = (match and match[1]) or next(iter(ports(set(), product="PPK2")), "")
    if match is None or not port:
        raise MeterNotFoundError(
            "open ppk2: name port and supply in millivolts, ppk2:/dev/ttyACM0@3300 (supplied "
            "elsewhere) or ppk2:/dev/ttyACM0@3300s (supplied by the kit)"
        )
    return Ppk2Meter(port=port, supply_mv=int(match[2]), source=bool(match[3]))


DRIVER = Driver(
    name="ppk2",
    summary="Nordic Power Profiler Kit II, up to 1 A",
    open=_open,
    hint="state port and supply, ppk2:/dev/ttyACM0@3300",
)
