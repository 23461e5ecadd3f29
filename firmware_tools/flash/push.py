"""Push files over a serial console: framed, each frame checked, resumable, with the time left.

The board's end is `RECEIVER`, run by its own python3; frames are answered with the next wanted
offset, so a lost, doubled or damaged frame costs one repetition. Knows nothing about the files.
"""

from __future__ import annotations

import struct
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firmware_tools.errors import FlashError

__all__ = ["RECEIVER", "Push", "seconds_for"]

FRAME = struct.Struct(">4sIIHI")  # mark, offset, file's size, length, CRC-32 of the rest and data
MARK = b"\xa5MSp"
_LENGTH = 2048
_RETRIES = 20
_ANSWER_S = 2.0
_OVERHEAD = 1.08

RECEIVER = r"""
import os, select, struct, sys, termios, tty, zlib
path = sys.argv[1]
F = struct.Struct(">4sIIHI")
before = termios.tcgetattr(0)
tty.setraw(0)
out = open(path, "ab")
buffer = b""
def say(word):
    os.write(1, ("\n~%s %d\n" % (word, out.tell())).encode())
say("READY")
try:
    while True:
        if not select.select([0], [], [], 60)[0]:
            break
        got = os.read(0, 65536)
        if not got:  # hung up, and the hang-up's signal is ignored
            break
        buffer += got
        while True:
            at = buffer.find(b"\xa5MSp")
            buffer = buffer[at:] if at >= 0 else buffer[-3:]
            if len(buffer) < F.size:
                break
            mark, offset, size, length, check = F.unpack_from(buffer)
            if length > 4096:
                buffer = buffer[1:]
                continue
            if len(buffer) < F.size + length:
                break
            data = buffer[F.size:F.size + length]
            good = zlib.crc32(buffer[4:14] + data) == check
            buffer = buffer[F.size + length if good else 1:]
            if not good:
                say("AGAIN")
                continue
            if length == 0 and size == 0xffffffff:
                out.truncate(0)
                out.seek(0)
            elif offset == out.tell():
                out.write(data)
                out.flush()
            say("NEXT")
            if out.tell() == size:
                os.fsync(out.fileno())
                for repeated in range(5):  # nobody answers a last word that was lost
                    say("NEXT")
                sys.exit(0)
finally:
    termios.tcsetattr(0, termios.TCSANOW, before)
"""


def seconds_for(size_bytes: int, baud: int) -> float:
    """Return how long a push takes at ten bits a byte."""
    return size_bytes * _OVERHEAD * 10 / baud


def frame(offset: int, size: int, data: bytes) -> bytes:
    """Return one frame."""
    middle = struct.pack(">IIH", offset, size, len(data))
    return MARK + middle + struct.pack(">I", zlib.crc32(middle + data)) + data


@dataclass(slots=True, kw_only=True)
class Push:
    """One file's way to a receiver that runs at the other end of `port`."""

    port: Any
    show: Callable[[int, int, float], None] = lambda _done, _size, _left_s: None

    def send(self, path: Path) -> None:
        """Send what the receiver lacks of a file.

        Raises:
            FlashError: if it stops answering; a later run goes on from there.
        """
        size_bytes = path.stat().st_size
        at = self._answer(b"~READY") or 0  # past the last words about the file before
        if at > size_bytes:
            at = self._exchange(frame(0, 0xFFFFFFFF, b""), None)
        started_s, started_at = time.monotonic(), at
        with path.open("rb") as stream:
            while at < size_bytes or size_bytes == 0:
                stream.seek(at)
                data = stream.read(_LENGTH)
                at = self._exchange(frame(at, size_bytes, data), at + len(data))
                spent_s = time.monotonic() - started_s
                rate = (at - started_at) / spent_s if spent_s and at > started_at else 1.0
                self.show(at, size_bytes, (size_bytes - at) / rate)
                if size_bytes == 0:
                    return

    def _exchange(self, packet: bytes, wanted: int | None) -> int:
        """Send a frame until the receiver has moved on, and return where it is."""
        at = None
        for _ in range(_RETRIES):
            self._write(packet)
            at = self._answer(b"~READY", b"~NEXT", b"~AGAIN")
            if at is not None and (wanted is None or at == wanted):
                return at
            if at is not None and wanted is not None and at > wanted:
                return at
        if at is not None:
            return at
        raise FlashError("flash serial: the board no longer answers; run it again, it goes on")

    def _write(self, packet: bytes) -> None:
        try:
            self.port.write(packet)
        except OSError as error:
            raise FlashError("flash serial: the cable was pulled; run again, it goes on") from error

    def _answer(self, *words: bytes) -> int | None:
        """Return the offset in the next whole answer of those words, None if none comes."""
        for line in self._lines(_ANSWER_S):
            word, _, number = line.partition(b" ")
            if word in words and number.isdigit():
                return int(number)
        return None

    def _lines(self, timeout_s: float) -> Iterator[bytes]:
        deadline_s = time.monotonic() + timeout_s
        held = b""
        while time.monotonic() < deadline_s:
            try:
                held += self.port.read(self.port.in_waiting or 1)
            except OSError as error:
                raise FlashError("flash serial: the cable was pulled; run again") from error
            *lines, held = held.split(b"\n")
            for line in lines:
                yield line.strip(b"\r")
