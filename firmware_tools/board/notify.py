"""The service's side of systemd's notification protocol (sd_notify(3)): one datagram per message.

A null when no socket is named. Knows nothing about what is notified.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Notifier"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Notifier:
    """Tells systemd how the service is; `address` "" tells nobody."""

    address: str = ""
    watchdog_s: float = 0.0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Notifier:
        """Read NOTIFY_SOCKET and WATCHDOG_USEC."""
        usec = environment.get("WATCHDOG_USEC", "0")
        return cls(
            address=environment.get("NOTIFY_SOCKET", ""),
            watchdog_s=int(usec) / 1e6 if usec.isdigit() else 0.0,
        )

    def ready(self, status: str) -> None:
        """Say that the service does its work from now on."""
        self._send(f"READY=1\nSTATUS={status}")

    def alive(self) -> None:
        """Feed the watchdog."""
        self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """Say in a line what the service does."""
        self._send(f"STATUS={text}")

    def _send(self, message: str) -> None:
        if not self.address:
            return
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.connect(address)
            channel.sendall(message.encode())
