"""The seam between the round and the network: bytes to topics, and back.

Knows nothing of frames, sessions or tokens, and nothing of MQTT but topics and QoS.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

__all__ = ["Message", "Traffic", "Transport", "Will", "publish_packet_bytes"]


@dataclass(frozen=True, slots=True)
class Message:
    """One received message; `retained` ones are what the broker had kept, not a present wish."""

    topic: str
    payload: bytes
    retained: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Will:
    """What the broker publishes, at QoS 1, when this client vanishes without a goodbye."""

    topic: str
    payload: bytes
    retain: bool = True


@dataclass(slots=True)
class Traffic:
    """What went through a transport; `*_bytes` are whole PUBLISH packets.

    Whole packets are fixed header, remaining length, topic, packet id (QoS 1) and payload; TCP, IP
    and TLS come on top. A message counts as sent when it is handed to the network, again when it
    is repeated after a lost connection.

    Attributes:
        dropped_inbound: messages that found the inbox full.
        dropped_outbound: messages refused by `publish`, and those lost with a connection.
    """

    sent_messages: int = 0
    received_messages: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    sent_payload_bytes: int = 0
    received_payload_bytes: int = 0
    dropped_inbound: int = 0
    dropped_outbound: int = 0

    def add_sent(self, topic: str, payload_bytes: int, qos: int) -> None:
        """Count one message to the network."""
        self.sent_messages += 1
        self.sent_bytes += publish_packet_bytes(topic, payload_bytes, qos)
        self.sent_payload_bytes += payload_bytes

    def add_received(self, topic: str, payload_bytes: int, qos: int) -> None:
        """Count one message from the network."""
        self.received_messages += 1
        self.received_bytes += publish_packet_bytes(topic, payload_bytes, qos)
        self.received_payload_bytes += payload_bytes


def publish_packet_bytes(topic: str, payload_bytes: int, qos: int) -> int:
    """Return the size of a whole MQTT 3.1.1 PUBLISH packet (MQTT 3.1.1, 2.2 and 3.3).

    >>> publish_packet_bytes("sd/1/pi-1/up/draft", 40, 0)
    62
    """
    topic_bytes = len(topic) if topic.isascii() else len(topic.encode())
    remaining = 2 + topic_bytes + (2 if qos else 0) + payload_bytes
    length_bytes = 1 + (remaining > 127) + (remaining > 16_383) + (remaining > 2_097_151)
    return 1 + length_bytes + remaining


class Transport(Protocol):
    """A connection that mends itself; safe to publish to from several threads, read from one."""

    @property
    def traffic(self) -> Traffic:
        """What went through so far."""
        ...

    @property
    def connected(self) -> bool:
        """Whether the broker has acknowledged us and our subscriptions, as far as we know."""
        ...

    @property
    def connection_count(self) -> int:
        """Connections so far; grows once a (re)connection's subscriptions are acknowledged."""
        ...

    def publish(self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False) -> bool:
        """Hand over a message without waiting for the network.

        QoS 0 fails at once without a connection; QoS 1 waits, in a small bounded queue, for the
        next one, and may then arrive twice.

        Returns:
            False if the message was dropped: no connection (QoS 0), or a bound was reached.

        Raises:
            PacketTooLargeError: if no broker of ours takes a packet of this size.
        """
        ...

    def receive(self, timeout_s: float | None) -> Message | None:
        """Return the oldest message, or None after `timeout_s` (None: no limit) or when closed."""
        ...

    def wait_connected(self, timeout_s: float) -> bool:
        """Return whether there is a connection within `timeout_s`.

        Raises:
            ConnectError: if the broker refuses us for a reason that repeating does not mend.
        """
        ...

    def close(self) -> None:
        """Say goodbye and end; harmless when repeated."""
        ...

    def __enter__(self) -> Transport: ...

    def __exit__(self, *_: object) -> None: ...
