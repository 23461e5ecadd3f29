"""Leaves of the exception tree that only transports raise."""

from __future__ import annotations

from sdk.errors import TransportError

__all__ = ["PacketTooLargeError"]


class PacketTooLargeError(TransportError):
    """A message that the broker would answer by closing the connection, over and over."""

    def __init__(self, topic: str, packet_bytes: int, limit_bytes: int) -> None:
        super().__init__(
            f"publish: a packet of {packet_bytes} bytes on {topic} is beyond the broker's "
            f"{limit_bytes}; send less (a shorter prompt)"
        )
        self.packet_bytes = packet_bytes
        self.limit_bytes = limit_bytes
