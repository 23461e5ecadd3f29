"""Bytes to topics and back, over MQTT or in memory; knows nothing of frames.

`sdk.transport.mqtt` and `sdk.transport.memory` hold the two transports; only the first needs paho.
"""

from __future__ import annotations

from sdk.transport.errors import PacketTooLargeError
from sdk.transport.interface import Message, Traffic, Transport, Will, publish_packet_bytes

__all__ = [
    "Message",
    "PacketTooLargeError",
    "Traffic",
    "Transport",
    "Will",
    "publish_packet_bytes",
]
