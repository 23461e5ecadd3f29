"""Holds what a board publishes to the share of the uplink that it was granted.

`TokenBucket` and `SendQueue` are pure, with time passed in; `PacedTransport` puts them in front of
any transport. The unit of a grant is that of `LinkReport.uplink_bps`: bit/s of TCP payload in full
segments, so a message of 64 kB costs its own size and a message of 90 bytes costs its headers too.
"""

from __future__ import annotations

import logging
import math
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Final

from sdk.errors import MultispinError
from sdk.link.socket_rate import SocketRate, socket_of
from sdk.link.wire_cost import wire_cost_bytes
from sdk.transport.interface import Message, Traffic, Transport, publish_packet_bytes

__all__ = ["Outgoing", "PacedTransport", "SendQueue", "TokenBucket"]

_LOG = logging.getLogger(__name__)

_LEAST_DEPTH_S: Final = 0.05  # a thread's sleep is too coarse for less
_ROUNDING_BYTES: Final = 1e-3  # else a wait of 1e-18 s, which no clock can show, never ends
_UNSENT_POLL_S: Final = 0.005
_CLOSE_S: Final = 1.0


class TokenBucket:
    """Lets a message pass while the balance is not negative, and then charges it in full.

    So a message larger than the bucket passes too, and is paid for afterwards: in any time T no
    more than rate·T + depth + one message go out, and a late caller loses nothing as long as it is
    late by less than the depth.
    """

    def __init__(self, *, rate_bps: float, depth_s: float = _LEAST_DEPTH_S, now_s: float) -> None:
        """Start full.

        Raises:
            ValueError: unless the rate is finite and above 0 and the depth at least 50 ms.
        """
        if not (math.isfinite(depth_s) and depth_s >= _LEAST_DEPTH_S):
            raise ValueError(f"depth_s must be at least {_LEAST_DEPTH_S}, got {depth_s}")
        self._depth_s = depth_s
        self._rate_bytes_s = _checked_rate(rate_bps) / 8.0
        self._balance_bytes = self._rate_bytes_s * depth_s
        self._at_s = now_s

    def set_rate(self, rate_bps: float, *, now_s: float) -> None:
        """Change the rate from now on; debts stay."""
        self._refill(now_s)
        self._rate_bytes_s = _checked_rate(rate_bps) / 8.0
        self._balance_bytes = min(self._balance_bytes, self._rate_bytes_s * self._depth_s)

    def wait_s(self, *, now_s: float) -> float:
        """Return how long until a message may pass; 0 when one may now."""
        self._refill(now_s)
        if self._balance_bytes > -_ROUNDING_BYTES:
            return 0.0
        return -self._balance_bytes / self._rate_bytes_s

    def charge(self, cost_bytes: int, *, now_s: float) -> None:
        """Take the cost of a message that passed."""
        self._refill(now_s)
        self._balance_bytes -= cost_bytes

    def _refill(self, now_s: float) -> None:
        elapsed_s = max(0.0, now_s - self._at_s)
        self._at_s = max(now_s, self._at_s)
        full = self._rate_bytes_s * self._depth_s
        self._balance_bytes = min(full, self._balance_bytes + self._rate_bytes_s * elapsed_s)


def _checked_rate(rate_bps: float) -> float:
    if not (math.isfinite(rate_bps) and rate_bps > 0.0):
        raise ValueError(f"rate_bps must be finite and above 0, got {rate_bps}")
    return rate_bps


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


class PacedTransport:
    """A `Transport` whose `publish` keeps to a grant that may change at any time.

    Without a grant everything passes at once. With one, messages that have to wait are sent by a
    thread, in order within their class: payloads up to `urgent_bytes` overtake larger ones. Large
    ones also wait while the kernel still holds more than `unsent_bytes` of ours, which bounds what
    a cut of the grant finds already written; and where the platform allows it the socket itself
    is held to 1.25 times the grant. Messages that wait when it is closed are lost.
    """

    def __init__(
        self,
        inner: Transport,
        *,
        bulk: Transport | None = None,
        urgent_bytes: int = 1024,
        queue_bytes: int = 262_144,
        unsent_bytes: int = 16_384,
        depth_s: float = 2 * _LEAST_DEPTH_S,
        socket_factor: float = 1.25,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Wrap a transport; closing this one closes it, too.

        Args:
            inner: carries what is urgent, and everything where there is no `bulk`.
            bulk: a connection of its own for large messages, so that not even the socket's buffer
                stands before an urgent one. Closed with this one.
            urgent_bytes: largest payload that may overtake.
            queue_bytes: bound of each class's queue; beyond, `publish` refuses the new message.
            unsent_bytes: bound of what the kernel may hold when a large message is written.
            depth_s: seconds of the grant that may go out at once; at least 0.05.
            socket_factor: the socket's own bound, in grants; 1.1 to 1.25.
            clock: monotonic seconds.

        Raises:
            ValueError: if a number is out of its range.
        """
        if depth_s < _LEAST_DEPTH_S:
            raise ValueError(f"depth_s must be at least {_LEAST_DEPTH_S}, got {depth_s}")
        if not 1.1 <= socket_factor <= 1.25:
            raise ValueError(f"socket_factor must be in [1.1, 1.25], got {socket_factor}")
        self._inner = inner
        self._bulk = bulk if bulk is not None else inner
        self._urgent_bytes = urgent_bytes
        self._queue_bytes = queue_bytes
        self._unsent_bytes = unsent_bytes
        self._depth_s = depth_s
        self._socket_factor = socket_factor
        self._clock = clock
        self._changed = threading.Condition()  # its lock guards everything below
        self._queue: SendQueue | None = None  # None: no grant was ever set, or it was lifted
        self._rate_bps: float | None = None
        connections = [inner] if bulk is None else [inner, bulk]
        self._socket_rates = [SocketRate(connection) for connection in connections]
        self._closing = False
        self._thread: threading.Thread | None = None

    @property
    def rate_bps(self) -> float | None:
        """The grant, or None without one."""
        return self._rate_bps

    @property
    def waiting_bytes(self) -> int:
        """Payload bytes that wait for the grant; what the kernel holds comes on top."""
        queue = self._queue
        return queue.waiting_bytes if queue else 0

    @property
    def traffic(self) -> Traffic:
        """What went through the inner transport; with `bulk`, ask that one for its own."""
        return self._inner.traffic

    @property
    def connected(self) -> bool:
        """Whether the inner transport is."""
        return self._inner.connected

    @property
    def connection_count(self) -> int:
        """As of the inner transport."""
        return self._inner.connection_count

    def socket(self) -> socket.socket | None:
        """Return the inner transport's socket, or None where there is none."""
        return socket_of(self._inner)

    def set_rate_bps(self, rate_bps: float | None) -> None:
        """Hold what is published to `rate_bps` from now on; None lifts the grant.

        Raises:
            ValueError: unless it is finite and above 0.
        """
        with self._changed:
            now_s = self._clock()
            if rate_bps is not None:
                self._grant(_checked_rate(rate_bps), now_s)
            self._rate_bps = rate_bps
            self._hold_sockets()
            if rate_bps is None and self._queue is not None:
                self._drain()
            self._changed.notify_all()

    def publish(self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False) -> bool:
        """Hand over a message without waiting; False if it was refused or its queue is full."""
        urgent = len(payload) <= self._urgent_bytes
        with self._changed:
            via = self._via(urgent)
            # Without a connection the inner transport refuses QoS 0: no draft is kept for later.
            if self._queue is None or self._closing or (qos == 0 and not via.connected):
                return via.publish(topic, payload, qos=qos, retain=retain)
            message = Outgoing(topic=topic, payload=payload, qos=qos, retain=retain, urgent=urgent)
            if not self._queue.offer(message):
                via.traffic.dropped_outbound += 1
                return False
            if self._send_due() is not None:
                self._changed.notify_all()
            return True

    def receive(self, timeout_s: float | None) -> Message | None:
        """Return the oldest message; see `Transport.receive`."""
        return self._inner.receive(timeout_s)

    def wait_connected(self, timeout_s: float) -> bool:
        """Return whether there is a connection within `timeout_s`; see `Transport`."""
        return self._inner.wait_connected(timeout_s)

    def close(self) -> None:
        """End the thread and close what was wrapped; harmless when repeated."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(_CLOSE_S)
        if self._bulk is not self._inner:
            self._bulk.close()
        self._inner.close()

    def __enter__(self) -> PacedTransport:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # below: callers hold the lock

    def _grant(self, rate_bps: float, now_s: float) -> None:
        if self._queue is None:
            self._queue = SendQueue(
                rate_bps=rate_bps,
                depth_s=self._depth_s,
                limit_bytes=self._queue_bytes,
                now_s=now_s,
            )
        else:
            self._queue.set_rate(rate_bps, now_s=now_s)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="paced", daemon=True)
            self._thread.start()

    def _drain(self) -> None:
        """Send what waited for a grant that is no more."""
        assert self._queue is not None
        for message in self._queue.empty():
            self._pass_on(message)
        self._queue = None

    def _run(self) -> None:
        with self._changed:
            while not self._closing:
                self._changed.wait(self._send_due())

    def _send_due(self) -> float | None:
        """Send what may go now; return how long until more may, None if nothing waits."""
        self._hold_sockets()  # a new connection starts without a bound
        while self._queue is not None:
            now_s = self._clock()
            bulk_may_go = self._bulk_may_go()
            message = self._queue.take(now_s=now_s, bulk_may_go=bulk_may_go)
            if message is None:
                return self._queue.wait_s(now_s=now_s, bulk_may_go=bulk_may_go)
            self._pass_on(message)
        return None

    def _bulk_may_go(self) -> bool:
        unsent = self._socket_rates[-1].unsent_bytes()
        return unsent is None or unsent <= self._unsent_bytes

    def _pass_on(self, message: Outgoing) -> None:
        try:
            self._via(message.urgent).publish(
                message.topic, message.payload, qos=message.qos, retain=message.retain
            )
        except MultispinError as error:  # the call that handed it over has returned
            _LOG.warning("pacing: message to %s dropped: %s", message.topic, error)
            self._via(message.urgent).traffic.dropped_outbound += 1

    def _via(self, urgent: bool) -> Transport:
        return self._inner if urgent else self._bulk

    def _hold_sockets(self) -> None:
        bound_bps = None if self._rate_bps is None else self._rate_bps * self._socket_factor
        for socket_rate in self._socket_rates:
            socket_rate.hold(bound_bps)
