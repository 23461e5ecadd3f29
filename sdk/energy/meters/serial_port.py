"""A serial port that is read in the background, so that nothing is lost to a slow reader.

Bytes wait in a bounded queue; when it is full the oldest are dropped and the decoder above finds
the next frame by itself. Knows nothing of frames. pyserial is needed only when a port is opened.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any, NamedTuple

from sdk.energy.interface import MeterLostError, MeterNotFoundError
from sdk.errors import DependencyError

__all__ = ["Chunk", "DeviceClock", "SerialPort", "ports"]

_QUEUE_BYTES = 4 << 20  # ten seconds of the fastest meter
_READ_TIMEOUT_S = 0.2
_GATHER_S = 0.02
_CLOCK_MEMORY_S = 30.0


class Chunk(NamedTuple):
    """Bytes and when they were received, on the monotonic clock."""

    time_s: float
    data: bytes


class SerialPort:
    """One port, held exclusively while open."""

    def __init__(self, *, port: str, baud: int, queue_bytes: int = _QUEUE_BYTES) -> None:
        """Prepare; `port` is a device path, `queue_bytes` bounds what waits to be taken."""
        self.port = port
        self._baud = baud
        self._queue_bytes = queue_bytes
        self._serial: Any = None
        self._thread: threading.Thread | None = None
        self._chunks: deque[Chunk] = deque()
        self._waiting_bytes = 0
        self._dropped = False
        self._problem = ""
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def open(self) -> None:
        """Open the port and start reading.

        Raises:
            DependencyError: without pyserial.
            MeterNotFoundError: if the port is not there, busy, or may not be opened.
        """
        try:
            import serial
        except ModuleNotFoundError as error:
            raise DependencyError("a serial meter", "serial") from error
        try:
            self._serial = serial.Serial(
                self.port, self._baud, timeout=_READ_TIMEOUT_S, write_timeout=1.0, exclusive=True
            )
            self._serial.reset_input_buffer()
        except (OSError, ValueError) as error:  # SerialException is an OSError
            raise MeterNotFoundError(
                f"open {self.port}: {error}; is it plugged in, free, and are you in group dialout?"
            ) from error
        self._chunks.clear()
        self._waiting_bytes, self._dropped, self._problem = 0, False, ""
        self._stop.clear()
        self._thread = threading.Thread(target=self._pump, name=f"read {self.port}", daemon=True)
        self._thread.start()

    def _pump(self) -> None:
        while not self._stop.is_set():
            try:
                data = self._serial.read(1)
                if data:  # let more gather: every waking costs the board energy
                    time.sleep(_GATHER_S)
                    data += self._serial.read(self._serial.in_waiting)
            except (OSError, TypeError, ValueError) as error:  # closed or unplugged meanwhile
                self._problem = str(error) or "unplugged"
                return
            if data:
                self._put(Chunk(time.monotonic(), data))

    def _put(self, chunk: Chunk) -> None:
        with self._lock:
            self._chunks.append(chunk)
            self._waiting_bytes += len(chunk.data)
            while self._waiting_bytes > self._queue_bytes:
                self._waiting_bytes -= len(self._chunks.popleft().data)
                self._dropped = True

    def take(self) -> tuple[list[Chunk], bool]:
        """Return what came since the last call, and whether older bytes had to be dropped.

        Raises:
            MeterLostError: once everything is taken, if the port went away.
        """
        with self._lock:
            chunks, dropped = list(self._chunks), self._dropped
            self._chunks.clear()
            self._waiting_bytes, self._dropped = 0, False
        if not chunks and self._problem:
            raise MeterLostError(f"read {self.port}: {self._problem}")
        return chunks, dropped

    def write(self, data: bytes) -> None:
        """Send bytes; raise MeterLostError if the port is closed or went away."""
        if self._serial is None:
            raise MeterLostError(f"write to {self.port}: it is closed")
        try:
            self._serial.write(data)
        except OSError as error:
            raise MeterLostError(f"write to {self.port}: {error}") from error

    def close(self) -> None:
        """Stop reading and close the port; may be called twice."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=5 * _READ_TIMEOUT_S)
            self._thread = None
        if self._serial is not None:
            self._serial.close()
            self._serial = None


class DeviceClock:
    """Dates samples that carry the meter's own time.

    The smallest delay of the last 30 s between the meter's time and ours is taken as constant;
    everything above it is waiting in buffers. Crystals differ by 100 ppm at most: 3 ms over that.
    """

    def __init__(self) -> None:
        """Start without an idea of the meter's clock."""
        self._delays: deque[tuple[float, float]] = deque()  # rising delays, as in a sliding minimum

    def observe(self, device_s: float, received_s: float) -> None:
        """Take notice that what the meter dated `device_s` was received at `received_s`.

        Of what came in one piece only the last is worth noticing: the rest waited for it.
        """
        delay_s = received_s - device_s
        while self._delays and self._delays[-1][1] >= delay_s:
            self._delays.pop()
        self._delays.append((received_s, delay_s))
        while self._delays[0][0] < received_s - _CLOCK_MEMORY_S:
            self._delays.popleft()

    def to_host_s(self, device_s: float) -> float:
        """Return the time on our monotonic clock of what the meter dated `device_s`."""
        return device_s + self._delays[0][1]

    def reset(self) -> None:
        """Forget the meter's clock, after it started anew."""
        self._delays.clear()


def ports(vendor_products: set[tuple[int, int]], product: str = "") -> list[str]:
    """Return the ports of USB devices with these ids, or with this product name.

    Nothing is sent to any port. Without pyserial nothing is found.
    """
    try:
        from serial.tools import list_ports
    except ModuleNotFoundError:
        return []
    return sorted(
        port.device
        for port in list_ports.comports()
        if (port.vid, port.pid) in vendor_products or (product and port.product == product)
    )
