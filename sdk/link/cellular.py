"""A cellular modem's signal, asked for over the AT port that nothing else uses.

Where ModemManager owns the port, `sdk.link.modem_manager` asks that instead. pyserial is loaded
only when a port is opened.
"""

from __future__ import annotations

import logging
import time
from typing import Any, Final

from sdk.errors import DependencyError, LinkError
from sdk.link.at_replies import parse_reply
from sdk.link.interface import LinkKind, LinkReading
from sdk.link.signal_figures import CellSignal

__all__ = ["CellularProbe", "ModemNotFoundError", "merge_signals"]

_LOG = logging.getLogger(__name__)

# Best first: Quectel's two (QCSQ's SINR has one scale, QENG's depends on the firmware), SIMCom's,
# then what every modem has.
_QUESTIONS: Final = ("AT+QCSQ", 'AT+QENG="servingcell"', "AT+CPSI?", "AT+CESQ", "AT+CSQ")
_ANSWER_S: Final = 1.0
_LONGEST_ANSWER: Final = 4096
_REOPEN_S: Final = 10.0
_UNKNOWN: Final = ("ERROR", "COMMAND NOT SUPPORT")
_FINAL: Final = (b"OK", b"ERROR", b"+CME ERROR", b"COMMAND NOT SUPPORT")


class ModemNotFoundError(LinkError):
    """A modem's port that was named and cannot be used."""


class CellularProbe:
    """Asks a modem every few seconds; questions that it does not know are not repeated."""

    name = "cellular"
    period_s = 5.0

    def __init__(self, *, port: str) -> None:
        """Open the port.

        Raises:
            ModemNotFoundError: if it cannot be opened, or no modem answers.
            DependencyError: without pyserial.
        """
        self._path = port
        self._port: Any = None
        self._questions = list(_QUESTIONS)
        self._reopen_at_s = 0.0
        self._open()
        if not self._ask("AT").rstrip().endswith("OK"):
            self.close()
            raise ModemNotFoundError(
                f"link: no modem answers on {port}: name its AT port, and stop what else uses it"
            )

    def read(self, now_s: float) -> LinkReading | None:
        """Return the serving cell's signal, or None without one."""
        if self._port is None:
            if now_s < self._reopen_at_s:
                return None
            self._reopen_at_s = now_s + _REOPEN_S
            try:
                self._open()
            except LinkError as error:
                _LOG.debug("%s", error)
                return None
        signals: list[CellSignal] = []
        for question in tuple(self._questions):
            answer = self._ask(question)
            if any(line in _UNKNOWN for line in answer.splitlines()):
                self._questions.remove(question)  # "+CME ERROR" may pass, this will not
            signals += parse_reply(answer, question)
        merged = merge_signals(signals)
        return None if merged is None else merged.reading(now_s)

    def close(self) -> None:
        """Let go of the port; harmless when repeated."""
        if self._port is not None:
            self._port.close()
            self._port = None

    def _open(self) -> None:
        try:
            import serial
        except ImportError as error:
            raise DependencyError("reading a modem's signal", "serial") from error
        try:
            self._port = serial.Serial(
                self._path, 115_200, timeout=0.1, write_timeout=_ANSWER_S, exclusive=True
            )
        except (OSError, ValueError) as error:  # a SerialException is an OSError
            raise ModemNotFoundError(f"link: modem port {self._path}: {error}") from error
        for setting in ("ATE0", "AT+CMEE=1"):
            self._ask(setting)

    def _ask(self, question: str) -> str:
        """Send a command and return what came until its final line, or until time is up."""
        if self._port is None:
            return ""
        answer = bytearray()
        try:
            self._port.reset_input_buffer()
            self._port.write(f"{question}\r".encode())
            deadline_s = time.monotonic() + _ANSWER_S
            while time.monotonic() < deadline_s and len(answer) < _LONGEST_ANSWER:
                answer += self._port.read(self._port.in_waiting or 1)
                if _is_final(answer):
                    break
        except Exception as error:  # unplugged; pyserial lets termios.error through
            _LOG.debug("link: modem port %s: %s", self._path, error)
            self.close()
            return ""
        return answer.decode("ascii", errors="replace")


def merge_signals(signals: list[CellSignal]) -> CellSignal | None:
    """Return one signal out of several answers; earlier ones are more precise, NR beats LTE."""
    if not signals:
        return None
    ordered = sorted(signals, key=lambda signal: signal.kind is not LinkKind.NR)
    merged = ordered[0]
    for signal in ordered[1:]:
        merged = merged.over(signal)
    return merged


def _is_final(answer: bytearray) -> bool:
    return answer.endswith(b"\n") and answer.splitlines()[-1].startswith(_FINAL)
