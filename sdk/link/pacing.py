"""Holds what a board publishes to the share of the uplink that it was granted.

A thin shell around `SendQueue`: a thread, a lock, and the socket's own bound. The unit of a grant
is that of `LinkReport.uplink_bps`: bit/s of TCP payload in full segments, so a message of 64 kB
costs its own size and a message of 90 bytes costs its headers too.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable
from typing import Final

from sdk.errors import MultispinError
from sdk.link.send_queue import Outgoing, SendQueue
from sdk.link.socket_rate import SocketRate, socket_of
from sdk.link.token_bucket import LEAST_DEPTH_S, TokenBucket, checked_rate
from sdk.transport.interface import Message, Traffic, Transport

__all__ = ["PacedTransport", "TokenBucket"]

_LOG = logging.getLogger(__name__)

_CLOSE_S: Final = 1.0


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
        depth_s: float = 2 * LEAST_DEPTH_S,
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
        if depth_s < LEAST_DEPTH_S:
            raise ValueError(f"depth_s must be at least {LEAST_DEPTH_S}, got {depth_s}")
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
                self._grant(checked_rate(rate_bps), now_s)
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

    def __exit__(self, *_: object) -> None:
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
