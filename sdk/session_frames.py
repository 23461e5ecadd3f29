"""One session's frames to and from the edge server, and the bytes that they take.

Frames that are malformed or another session's end here. Knows nothing of rounds and of drafting.
"""

from __future__ import annotations

from sdk.errors import MalformedFrameError
from sdk.protocol import (
    Close,
    Draft,
    Open,
    Opened,
    Reject,
    Verdict,
    decode_control,
    decode_verdict,
    down,
    encode_control,
    encode_draft,
    up,
)
from sdk.session_options import SessionStats
from sdk.transport.interface import Transport, publish_packet_bytes

__all__ = ["SessionFrame", "SessionFrames"]

SessionFrame = Verdict | Opened | Reject
"""What the edge server sends to a session."""


class SessionFrames:
    """Send and receive the frames of one session; count them in `stats`."""

    def __init__(
        self, *, device: str, session: int, transport: Transport, stats: SessionStats
    ) -> None:
        self._device = device
        self._session = session
        self._transport = transport
        self._stats = stats

    @property
    def connection_count(self) -> int:
        """How often the transport has connected: when it grows, frames may have been lost."""
        return self._transport.connection_count

    def receive(self, timeout_s: float) -> SessionFrame | None:
        """Return the next message if it is a frame of this session; None also when none came."""
        message = self._transport.receive(timeout_s)
        if message is None or message.retained:
            return None
        is_verdict = message.topic == down(self._device, "verdict")
        size = len(message.payload)
        self._stats.received_bytes += publish_packet_bytes(message.topic, size, int(not is_verdict))
        self._stats.received_payload_bytes += size
        try:
            decode = decode_verdict if is_verdict else decode_control
            frame = decode(message.payload)
        except MalformedFrameError:
            self._stats.malformed += 1
            return None
        if frame.session != self._session or not isinstance(frame, SessionFrame):
            self._stats.stale += 1
            return None
        return frame

    def send(self, frame: Draft | Open | Close) -> None:
        """Send a draft at most once, an open or a close at least once."""
        if isinstance(frame, Draft):
            self._publish("draft", encode_draft(frame), qos=0)
        else:
            leaf = "open" if isinstance(frame, Open) else "close"
            self._publish(leaf, encode_control(frame), qos=1)

    def _publish(self, leaf: str, payload: bytes, *, qos: int) -> None:
        topic = up(self._device, leaf)
        if self._transport.publish(topic, payload, qos=qos):
            self._stats.sent_bytes += publish_packet_bytes(topic, len(payload), qos)
            self._stats.sent_payload_bytes += len(payload)
