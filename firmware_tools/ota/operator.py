"""The operator's end of a rollout: gives commands, serves blocks, hears reports, clears up.

Knows nothing about how progress is shown.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from firmware_tools.ota.messages import Command, Report, decode, encode
from firmware_tools.ota.rollout import Rollout
from firmware_tools.ota.shop import Shop
from sdk.errors import MalformedFrameError
from sdk.protocol import topics
from sdk.transport.interface import Message, Transport

__all__ = ["SUBSCRIPTIONS", "Operator"]

SUBSCRIPTIONS = (("sd/1/+/up/update", 1), ("sd/1/+/up/block", 0), ("sd/1/+/down/update", 1))
"""Reports and requests of every board, and every command, also other rollouts'."""

_TICK_S = 0.2


@dataclass(slots=True, kw_only=True)
class Operator:
    """Runs one rollout over a transport with `SUBSCRIPTIONS`.

    It hears the commands too, so that it never clears one that somebody else gave since.
    """

    transport: Transport
    rollout: Rollout
    shop: Shop
    version: str
    rate_bytes_s: int
    show: Callable[[str, Report], None] = lambda _device, _report: None
    asked: Callable[[str], None] = lambda _device: None
    _connections: int = 0
    _asked_last: dict[str, bytes] = field(default_factory=dict)

    def run(self) -> bool:
        """Work until the rollout is over; return whether every board succeeded."""
        try:
            while not self.rollout.over:
                self.step(_TICK_S)
        finally:
            for device, board in self.rollout.boards.items():
                if board.asked_s is not None:
                    self._clear(device)
        return not self.rollout.failures and not self.rollout.stopped

    def step(self, timeout_s: float) -> None:
        """Ask whoever is next, then handle what has come."""
        self._mend()
        for device in self.rollout.next(time.monotonic()):
            self._command(device, self._wish())
            self.asked(device)
        message = self.transport.receive(timeout_s)
        while message is not None:
            self._handle(message)
            message = self.transport.receive(0)

    def _handle(self, message: Message) -> None:
        asked = topics.parse_down(message.topic)
        if asked is not None and message.payload:
            self._asked_last[asked[0]] = message.payload
        parsed = topics.parse_up(message.topic)
        if parsed is None or parsed[0] not in self.rollout.boards:
            return
        device, leaf = parsed
        if leaf == "block" and not message.retained:
            self.shop.answer(self.transport, device, message.payload)
            self.rollout.boards[device].heard_s = time.monotonic()
        elif leaf == "update":
            self._hear(device, message.payload)

    def _hear(self, device: str, payload: bytes) -> None:
        try:
            report = decode(Report, payload)
        except MalformedFrameError:
            return
        if self.rollout.hear(device, report, time.monotonic()):
            self.show(device, report)
            if report.final:
                self._clear(device)

    def _mend(self) -> None:
        """After a reconnection, give again what a broker without memory has forgotten."""
        if self.transport.connection_count != self._connections:
            self._connections = self.transport.connection_count
            for device, board in self.rollout.boards.items():
                if board.asked_s is not None and not board.over:
                    self._command(device, self._wish())

    def _wish(self) -> bytes:
        return encode(
            Command(id=self.rollout.id, version=self.version, rate_bytes_s=self.rate_bytes_s)
        )

    def _clear(self, device: str) -> None:
        """Take back our own command, not one that another rollout gave since."""
        if self._asked_last.get(device, self._wish()) == self._wish():
            self._command(device, b"")

    def _command(self, device: str, payload: bytes) -> None:
        self.transport.publish(topics.down(device, "update"), payload, qos=1, retain=True)
