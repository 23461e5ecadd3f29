"""The property mailbox of a Raspberry Pi's firmware, through /dev/vcio.

Knows how a message is laid out, nothing of what the answers mean. Needs the group `video`. Source:
the kernel's include/soc/bcm2835/raspberrypi-firmware.h and drivers/char/broadcom/vcio.c.
"""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

from sdk.errors import EnergyError

__all__ = ["Mailbox", "parse_answer", "read_throttled"]

_PROPERTY = 0xC0086400  # _IOWR(100, 0, 8)
_SUCCESS = 0x80000000
_TAG_COMMAND = 0x00030080
_TAG_THROTTLED = 0x00030046
_BUFFER_BYTES = 1024
_VALUE_BYTES = 1000
_HEADER = struct.Struct("<5I")
_TEXT_AT = 24


class Mailbox:
    """The open mailbox; the descriptor is kept, a request costs one ioctl."""

    def __init__(self, *, path: Path = Path("/dev/vcio")) -> None:
        """Open the mailbox.

        Raises:
            EnergyError: if it is not there or may not be opened.
        """
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise EnergyError(
                f"open {path}: {error.strerror}; on a Raspberry Pi add the user to group video"
            ) from error

    def command(self, name: str) -> str:
        """Run a firmware command such as `pmic_read_adc` and return its text.

        Raises:
            EnergyError: if the firmware refuses or does not know it.
        """
        return parse_answer(self._call(command_request(name)))

    def throttled(self) -> int:
        """Return the throttle flags."""
        request = struct.pack("<8I", 32, 0, _TAG_THROTTLED, 4, 0, 0, 0, 0)
        return int(struct.unpack_from("<I", self._call(request), 20)[0])

    def _call(self, request: bytes) -> bytes:
        buffer = bytearray(request)
        try:
            fcntl.ioctl(self._descriptor, _PROPERTY, buffer, True)
        except OSError as error:
            raise EnergyError(f"ask the firmware's mailbox: {error.strerror}") from error
        return bytes(buffer)

    def close(self) -> None:
        """Close the mailbox; may be called twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def command_request(name: str) -> bytes:
    """Return the message that asks the firmware to run a command."""
    text = name.encode("ascii") + b"\0"
    header = _HEADER.pack(_BUFFER_BYTES, 0, _TAG_COMMAND, _VALUE_BYTES, 0)
    return (header + b"\0" * (_TEXT_AT - len(header)) + text).ljust(_BUFFER_BYTES, b"\0")


def parse_answer(answer: bytes) -> str:
    """Return the text of a command's answer, its lines separated by newlines.

    Raises:
        EnergyError: if the message is short, not a success, or carries the firmware's error.
    """
    if len(answer) < _TEXT_AT + 1 or struct.unpack_from("<I", answer, 4)[0] != _SUCCESS:
        raise EnergyError("ask the firmware's mailbox: no success in its answer; update firmware")
    text = answer[_TEXT_AT:].split(b"\0\0")[0].replace(b"\0", b"\n")
    decoded = text.decode("ascii", errors="replace")
    if "error_msg" in decoded:
        raise EnergyError("ask the firmware's mailbox: command unknown; update the firmware")
    return decoded


def read_throttled(path: Path) -> int:
    """Return the throttle flags from the mailbox at `path`; raise EnergyError without one."""
    mailbox = Mailbox(path=path)
    try:
        return mailbox.throttled()
    finally:
        mailbox.close()
