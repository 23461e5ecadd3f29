"""Two bounded queues before one grant: what is urgent, and what is large. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from sdk.link.token_bucket import TokenBucket
from sdk.link.wire_cost import wire_cost_bytes
from sdk.transport.interface import publish_packet_bytes

__all__ = ["Outgoing", "SendQueue"]

_UNSENT_POLL_S: Final = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """One message that waits; `urgent` ones do not wait for bulk."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    urgent: bool

    @property
    def cost_bytes(self) -> int:
        """What it takes from the bucket."""
        return wire_cost_bytes(publish_packet_bytes(self.topic, len(self.payload), self.qos))


class SendQueue:
    """Two bounded queues before one grant: urgent messages first, bulk with what is left.

    Urgent messages are charged to the common bucket but wait only for a bucket of their own, as
    fast as the common one, so that a large message's debt does not hold up a small one. When a
    queue is full the newest message is refused.
    """

    def __init__(self, *, rate_bps: float, depth_s: float, limit_bytes: int, now_s: float) -> None:
        self._common = TokenBucket(rate_bps=rate_bps, depth_s=depth_s, now_s=now_s)
        self._urgent = TokenBucket(rate_bps=rate_bps, depth_s=depth_s, now_s=now_s)
        self._queues: dict[bool, deque[Outgoing]] = {True: deque(), False: deque()}
        self._waiting_bytes = {True: 0, False: 0}
        self._limit_bytes = limit_bytes

    @property
    def waiting_bytes(self) -> int:
        """Payload bytes that wait in both queues."""
        return sum(self._waiting_bytes.values())

    def set_rate(self, rate_bps: float, *, now_s: float) -> None:
        """Change the grant from now on."""
        self._common.set_rate(rate_bps, now_s=now_s)
        self._urgent.set_rate(rate_bps, now_s=now_s)

    def empty(self) -> list[Outgoing]:
        """Remove and return everything that waits, urgent messages first, charged to nobody."""
        messages = [*self._queues[True], *self._queues[False]]
        for urgent in (True, False):
            self._queues[urgent].clear()
            self._waiting_bytes[urgent] = 0
        return messages

    def offer(self, message: Outgoing) -> bool:
        """Queue a message; False if there is no room, but one message always has room."""
        waiting = self._waiting_bytes[message.urgent]
        if waiting and waiting + len(message.payload) > self._limit_bytes:
            return False
        self._queues[message.urgent].append(message)
        self._waiting_bytes[message.urgent] += len(message.payload)
        return True

    def wait_s(self, *, now_s: float, bulk_may_go: bool = True) -> float | None:
        """Return how long until a message may go, 0 when one may now, None if none waits."""
        waits = []
        if self._queues[True]:
            waits.append(self._urgent.wait_s(now_s=now_s))
        if self._queues[False]:
            wait_s = self._common.wait_s(now_s=now_s)
            waits.append(wait_s if bulk_may_go else max(wait_s, _UNSENT_POLL_S))
        return min(waits, default=None)

    def take(self, *, now_s: float, bulk_may_go: bool = True) -> Outgoing | None:
        """Remove, charge and return the message that goes now, if one may."""
        for urgent, bucket in ((True, self._urgent), (False, self._common)):
            if not self._queues[urgent] or not (urgent or bulk_may_go):
                continue
            if bucket.wait_s(now_s=now_s) > 0.0:
                continue
            message = self._queues[urgent].popleft()
            self._waiting_bytes[urgent] -= len(message.payload)
            self._common.charge(message.cost_bytes, now_s=now_s)
            if urgent:
                self._urgent.charge(message.cost_bytes, now_s=now_s)
            return message
        return None
