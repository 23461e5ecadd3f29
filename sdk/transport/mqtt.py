"""MQTT 3.1.1 over TCP or TLS, with a connection that mends itself.

One thread per transport connects, reads, writes and reconnects; `publish` only hands over and
`receive` only takes from the inbox, so neither waits for the network. Knows nothing of frames.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from paho.mqtt.client import MQTTMessageInfo

from sdk.config import BrokerConfig
from sdk.errors import ConnectError
from sdk.transport.backoff import Backoff
from sdk.transport.connection import (
    Connection,
    ConnectionFailed,
    ConnectionOptions,
    is_done,
    make_tls_context,
)
from sdk.transport.errors import PacketTooLargeError
from sdk.transport.failure import Failure
from sdk.transport.inbox import Inbox
from sdk.transport.interface import Message, Traffic, Will, publish_packet_bytes

__all__ = ["MqttTransport", "Will"]

_LOG = logging.getLogger(__name__)

_GOODBYE_S = 1.0
_SHORT_S, _FLAPS = 10.0, 3
_JOIN_S = 10.0  # a connection attempt in progress blocks for five


@dataclass(slots=True)
class _Control:
    """A QoS 1 message until the broker has acknowledged it; `info` is None before it is sent."""

    topic: str
    payload: bytes
    retain: bool
    info: MQTTMessageInfo | None = None


class MqttTransport:
    """A `Transport` over a real broker; a context manager that owns a thread and a socket."""

    def __init__(
        self,
        *,
        broker: BrokerConfig,
        client_id: str,
        subscriptions: Sequence[tuple[str, int]] = (),
        will: Will | None = None,
        birth: tuple[str, bytes] | None = None,
        inbox_limit: int = 1024,
        control_limit: int = 64,
        backlog_bytes: int = 262_144,
        max_packet_bytes: int = 65_536,
        backoff: Backoff | None = None,
        socket_hooks: Sequence[Callable[[socket.socket], None]] = (),
    ) -> None:
        """Start connecting, in the background.

        Args:
            broker: address and credentials.
            client_id: unique among the broker's clients; a second one with it takes over.
            subscriptions: (topic filter, QoS 0 or 1), taken up anew with every connection.
            will: published by the broker if this client vanishes.
            birth: (topic, payload) published retained at QoS 1 with every connection.
            inbox_limit: messages kept for `receive`; beyond, the oldest QoS 0 one is dropped.
            control_limit: unacknowledged QoS 1 messages; beyond, `publish` drops the new one.
            backlog_bytes: QoS 0 packets not yet taken by the kernel; beyond, likewise.
            max_packet_bytes: the broker's own bound (`max_packet_size`).
            backoff: waits between attempts to connect.
            socket_hooks: called with every newly connected socket, after TCP_NODELAY is set.

        Raises:
            ConfigError: if a certificate or key file cannot be used.
        """
        self.traffic = Traffic()
        self.callback_errors = 0
        self.socket_hooks = list(socket_hooks)
        self._broker = broker
        self._birth = birth
        self._control_limit = control_limit
        self._max_packet_bytes = max_packet_bytes
        self._backoff = backoff or Backoff()
        self._inbox = Inbox(limit=inbox_limit)
        self._options = ConnectionOptions(
            broker=broker,
            tls=make_tls_context(broker),
            client_id=client_id,
            subscriptions=tuple(subscriptions),
            will=will,
            backlog_bytes=backlog_bytes,
            socket_hooks=self.socket_hooks,
            deliver=self._deliver,
            guard=self._guard,
        )
        self._lock = threading.Lock()  # of everything below
        self._changed = threading.Condition(self._lock)
        self._connection: Connection | None = None  # the present one, ready or not
        self._connected = False
        self._connection_count = 0
        self._control: deque[_Control] = deque()
        self._failure: Failure | None = None
        self._short_lives = 0  # connections in a row that were lost soon after they came up
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"mqtt {client_id}", daemon=True)
        self._thread.start()

    @property
    def connected(self) -> bool:
        """Whether the broker has acknowledged us and our subscriptions, as far as we know."""
        return self._connected

    @property
    def connection_count(self) -> int:
        """Connections so far, each counted once its subscriptions were acknowledged."""
        return self._connection_count

    @property
    def failure(self) -> str:
        """Why the latest attempt to connect failed, or the connection was lost; "" if neither."""
        failure = self._failure
        return failure.reason if failure else ""

    def socket(self) -> socket.socket | None:
        """Return the connected socket, to measure or to set options on; None without one."""
        connection = self._connection
        return connection.socket if connection and self._connected else None

    def publish(self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False) -> bool:
        """Hand over a message; see `Transport.publish`."""
        packet_bytes = publish_packet_bytes(topic, len(payload), qos)
        if packet_bytes > self._max_packet_bytes:
            raise PacketTooLargeError(topic, packet_bytes, self._max_packet_bytes)
        with self._lock:
            if self._closing.is_set():
                taken = False
            elif qos == 0:
                taken = self._publish_hot(topic, payload, retain=retain)
            else:
                taken = self._publish_control(_Control(topic, payload, retain))
            self.traffic.dropped_outbound += not taken
        return taken

    def receive(self, timeout_s: float | None) -> Message | None:
        """Return the oldest message, or None after `timeout_s` (None: no limit) or when closed."""
        return self._inbox.get(timeout_s)

    def wait_connected(self, timeout_s: float) -> bool:
        """Return whether there is a connection within `timeout_s`; see `Transport`."""
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._connected
                    or self._closing.is_set()
                    or (self._failure is not None and self._failure.permanent)
                ),
                timeout_s,
            )
            if not self._connected and self._failure is not None and self._failure.permanent:
                raise ConnectError(f"connect: {self._failure.reason}")
            return self._connected

    def connect(self, timeout_s: float = 10.0) -> None:
        """Wait for a connection.

        Raises:
            ConnectError: saying what stood in the way, when there is none after `timeout_s`.
        """
        if not self.wait_connected(timeout_s):
            why = self.failure or f"{self._broker.address} does not answer in {timeout_s:g} s"
            raise ConnectError(f"connect: {why}")

    def close(self) -> None:
        """Let QoS 1 messages out for a second, say goodbye, and end the thread."""
        self._wait_acknowledged(_GOODBYE_S)
        self._closing.set()
        with self._changed:
            self._changed.notify_all()
            if self._connection is not None:
                self._connection.wake()
        self._inbox.close()
        if threading.current_thread() is not self._thread:
            self._thread.join(_JOIN_S)

    def __enter__(self) -> MqttTransport:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # publishing, under the lock

    def _publish_hot(self, topic: str, payload: bytes, *, retain: bool) -> bool:
        if not self._connected or self._connection is None:
            return False
        if self._connection.publish(topic, payload, qos=0, retain=retain) is None:
            return False
        self.traffic.add_sent(topic, len(payload), 0)
        return True

    def _publish_control(self, control: _Control) -> bool:
        self._forget_acknowledged()
        if len(self._control) >= self._control_limit:
            return False
        self._control.append(control)
        if self._connected:
            self._send(control)
        return True

    def _send(self, control: _Control) -> None:
        assert self._connection is not None
        topic, payload = control.topic, control.payload
        control.info = self._connection.publish(topic, payload, qos=1, retain=control.retain)
        self.traffic.add_sent(topic, len(payload), 1)

    def _forget_acknowledged(self) -> None:
        # Brokers acknowledge in the order of arrival (MQTT 3.1.1, 4.6).
        while self._control and (info := self._control[0].info) is not None and is_done(info):
            self._control.popleft()

    def _wait_acknowledged(self, timeout_s: float) -> None:
        """Give the broker time to take what it must not miss, if there is one."""
        deadline_s = time.monotonic() + timeout_s
        while self._connected and time.monotonic() < deadline_s:
            with self._lock:
                self._forget_acknowledged()
                if not self._control:
                    return
            self._closing.wait(0.005)

    # the thread

    def _run(self) -> None:
        while not self._closing.is_set():
            connected_s = 0.0
            try:
                connected_s = self._live_once()
            except Exception:  # a bug must not end the thread that everybody relies on
                self.callback_errors += 1
                _LOG.exception("mqtt: connection given up")
            self._closing.wait(self._backoff.next_s(connected_s=connected_s))

    def _live_once(self) -> float:
        """Open one connection, drive it to its end, and return how many seconds it was ready."""
        connection = Connection(options=self._options)
        ready_s: float | None = None
        try:
            connection.open()
            with self._lock:
                self._connection = connection
            while not self._closing.is_set():
                connection.step()
                if ready_s is None and connection.ready:
                    ready_s = time.monotonic()
                    self._welcome(connection)
            connection.say_goodbye(_GOODBYE_S)
        except ConnectionFailed as error:
            self._note(self._explain(error.failure, ready_s))
        finally:
            self._part(connection)
        return 0.0 if ready_s is None else time.monotonic() - ready_s

    def _welcome(self, connection: Connection) -> None:
        """Announce ourselves, send what waited, and open the doors."""
        with self._changed:
            if self._birth is not None:
                topic, payload = self._birth
                connection.publish(topic, payload, qos=1, retain=True)
                self.traffic.add_sent(topic, len(payload), 1)
            self._forget_acknowledged()
            for control in self._control:
                self._send(control)
            self._connected = True
            self._connection_count += 1
            self._failure = None
            self._changed.notify_all()
        _LOG.info("mqtt: connected to %s", self._broker.address)

    def _part(self, connection: Connection) -> None:
        with self._changed:
            self._connected = False
            self._connection = None
            self.traffic.dropped_outbound += connection.unwritten()
            connection.close()
            self._changed.notify_all()

    def _explain(self, failure: Failure, ready_s: float | None) -> Failure:
        """Name the usual cause where connections come up and are lost at once."""
        if ready_s is None:
            return failure
        short = time.monotonic() - ready_s < _SHORT_S
        self._short_lives = self._short_lives + 1 if short else 0
        if self._short_lives < _FLAPS:
            return failure
        name = self._options.client_id
        return Failure(f"{failure.reason} once more; does another client call itself {name!r}?")

    def _note(self, failure: Failure) -> None:
        told = self._failure is not None and self._failure.reason == failure.reason
        raised = failure.permanent and not self._connection_count  # by `wait_connected`
        if not told and not raised:
            _LOG.warning(
                "mqtt: %s%s", failure.reason, "" if failure.permanent else "; trying again"
            )
        with self._changed:
            self._failure = failure
            self._changed.notify_all()

    # callbacks of the connection, in the thread

    def _deliver(self, message: Message, qos: int) -> None:
        self.traffic.add_received(message.topic, len(message.payload), qos)
        self.traffic.dropped_inbound += not self._inbox.put(message, qos)

    def _guard(self, what: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception:
            self.callback_errors += 1
            _LOG.exception("mqtt: error in a %s", what)
