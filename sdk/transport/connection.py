"""One MQTT connection, from its socket to its loss; a lost one is never used again.

Driven by one thread, which is the only one to read and write the socket; other threads only hand
messages over. Knows nothing of queues and of trying again.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode

from sdk.config import BrokerConfig
from sdk.errors import ConfigError
from sdk.transport.failure import Failure, explain_error, explain_loss, explain_refusal
from sdk.transport.interface import Message, Will, publish_packet_bytes
from sdk.transport.topic_filter import matches

__all__ = ["Connection", "ConnectionFailed", "ConnectionOptions", "is_done", "make_tls_context"]

_LOG = logging.getLogger(__name__)

_CONNECT_TIMEOUT_S = 5.0
_HANDSHAKE_TIMEOUT_S = 10.0
_TICK_S = 1.0  # how often the keepalive is looked after
_MAX_INFLIGHT = 16  # QoS 1; mosquitto's own bound is 20


class ConnectionFailed(Exception):  # noqa: N818 - a failure, handed from here to the supervisor
    """The connection is gone or never came up; `failure` says why."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason)
        self.failure = failure


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionOptions:
    """What every connection of a transport has in common."""

    broker: BrokerConfig
    tls: ssl.SSLContext | None
    client_id: str
    subscriptions: Sequence[tuple[str, int]]
    will: Will | None
    backlog_bytes: int
    socket_hooks: Sequence[Callable[[socket.socket], None]]
    deliver: Callable[[Message, int], None]
    guard: Callable[[str, Callable[[], None]], None]


class Connection:
    """Open, drive with `step` until it raises, and `close`."""

    def __init__(self, *, options: ConnectionOptions) -> None:
        """Prepare; nothing is sent before `open`."""
        self._options = options
        self._errors = _LastError()
        self._client = self._make_client()
        self._refusal: Failure | None = None
        self._acknowledged = False
        self._backlog: deque[tuple[int, paho.MQTTMessageInfo]] = deque()
        self._backlog_bytes = 0
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._deadline_s = 0.0

    @property
    def ready(self) -> bool:
        """Whether the broker has acknowledged the connection and every subscription."""
        return self._acknowledged

    @property
    def socket(self) -> socket.socket | None:
        """The connected socket."""
        return cast("socket.socket | None", self._client.socket())

    def open(self) -> None:
        """Connect the socket and ask to be let in; blocks for at most some seconds.

        Raises:
            ConnectionFailed: with the reason.
        """
        broker = self._options.broker
        self._deadline_s = time.monotonic() + _HANDSHAKE_TIMEOUT_S
        try:
            self._client.connect(broker.host, broker.port, broker.keepalive_s)
        except (OSError, UnicodeError) as error:  # UnicodeError: a host name that IDNA refuses
            raise ConnectionFailed(explain_error(error, broker)) from error

    def step(self) -> None:
        """Wait for something to do, for a second at most, and do it.

        Raises:
            ConnectionFailed: when the connection is lost or refused.
        """
        client, sock = self._client, self.socket
        if sock is None:
            raise ConnectionFailed(self._loss())
        poll = select.poll()  # not select(): descriptors above 1023 are welcome
        wants = select.POLLIN | (select.POLLOUT if client.want_write() else 0)
        poll.register(sock, wants)
        poll.register(self._wake_read, select.POLLIN)
        buffered = isinstance(sock, ssl.SSLSocket) and sock.pending() > 0
        events = dict(poll.poll(0 if buffered else _TICK_S * 1000))
        if self._wake_read.fileno() in events:
            self._wake_read.recv(4096)
        if buffered or events.get(sock.fileno(), 0) & ~select.POLLOUT:
            client.loop_read()
        if client.want_write():
            client.loop_write()
        client.loop_misc()
        if self._refusal is not None:
            raise ConnectionFailed(self._refusal)
        if not self._acknowledged and time.monotonic() > self._deadline_s:
            raise ConnectionFailed(Failure("the broker took the connection but does not answer"))

    def publish(
        self, topic: str, payload: bytes, *, qos: int, retain: bool
    ) -> paho.MQTTMessageInfo | None:
        """Queue a message for the loop's thread; None if too many bytes wait to be written.

        The library keeps QoS 0 messages without a bound, so the bytes not yet taken by the kernel
        are counted here. Callers hold the transport's lock.
        """
        packet_bytes = publish_packet_bytes(topic, len(payload), qos)
        if qos == 0:
            self._forget_written()
            if self._backlog_bytes + packet_bytes > self._options.backlog_bytes:
                return None
        info = self._client.publish(topic, payload, qos=qos, retain=retain)
        if qos == 0:
            if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
                return None  # lost a moment ago
            self._backlog.append((packet_bytes, info))
            self._backlog_bytes += packet_bytes
        self.wake()
        return info

    def wake(self) -> None:
        """Make a waiting `step` look again."""
        with contextlib.suppress(OSError):  # full: it is awake already; closed: too late
            self._wake_write.send(b"\0")

    def unwritten(self) -> int:
        """Return how many QoS 0 messages have not reached the kernel."""
        self._forget_written()
        return len(self._backlog)

    def say_goodbye(self, timeout_s: float) -> None:
        """Write what waits and an orderly DISCONNECT, so that the broker drops the will."""
        self._client.disconnect()
        deadline_s = time.monotonic() + timeout_s
        with contextlib.suppress(ConnectionFailed):
            while self.socket is not None and time.monotonic() < deadline_s:
                self.step()

    def close(self) -> None:
        """Close the sockets at once."""
        sock = self.socket
        if sock is not None:
            sock.close()
        self._wake_read.close()
        self._wake_write.close()

    def _make_client(self) -> paho.Client:
        options = self._options
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=options.client_id,
            clean_session=True,
            protocol=paho.MQTTv311,
            reconnect_on_failure=False,
        )
        client.connect_timeout = _CONNECT_TIMEOUT_S
        client.max_inflight_messages_set(_MAX_INFLIGHT)
        client.suppress_exceptions = True  # the last net: every callback is guarded already
        if options.broker.username is not None:
            client.username_pw_set(options.broker.username, options.broker.password)
        if options.tls is not None:
            client.tls_set_context(options.tls)
        if options.will is not None:
            will = options.will
            client.will_set(will.topic, will.payload, qos=1, retain=will.retain)
        client.enable_logger(self._errors.logger)
        client.on_socket_open = self._on_socket_open
        # With this callback set the library never writes from the publisher's thread.
        client.on_socket_register_write = lambda *_: None
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        return client

    def _on_socket_open(self, _client: paho.Client, _data: object, sock: Any) -> None:
        for hook in (set_no_delay, *self._options.socket_hooks):
            self._options.guard("socket hook", lambda hook=hook: hook(sock))  # type: ignore[misc]

    def _on_connect(
        self, client: paho.Client, _data: object, _flags: Any, reason: Any, _properties: Any
    ) -> None:
        if reason.is_failure:
            self._refusal = explain_refusal(str(reason), self._options.broker)
        elif self._options.subscriptions:
            client.subscribe(list(self._options.subscriptions))
        else:
            self._acknowledged = True

    def _on_subscribe(
        self, _client: paho.Client, _data: object, _mid: int, reasons: Any, _properties: Any
    ) -> None:
        refused = [
            topic
            for (topic, _), reason in zip(self._options.subscriptions, reasons, strict=False)
            if reason.is_failure
        ]
        if refused:
            self._refusal = Failure(
                f"the broker refuses the subscription to {refused[0]}: check its access rules",
                permanent=True,
            )
        else:
            self._acknowledged = True

    def _on_message(self, _client: paho.Client, _data: object, message: paho.MQTTMessage) -> None:
        def deliver() -> None:
            received = Message(message.topic, bytes(message.payload), message.retain)
            # amqtt greets every client with the retained messages of others' subscriptions.
            if not message.retain or self._is_wanted(message.topic):
                self._options.deliver(received, message.qos)

        self._options.guard("message", deliver)

    def _is_wanted(self, topic: str) -> bool:
        return any(matches(wanted, topic) for wanted, _ in self._options.subscriptions)

    def _forget_written(self) -> None:
        while self._backlog and is_done(self._backlog[0][1]):
            self._backlog_bytes -= self._backlog.popleft()[0]

    def _loss(self) -> Failure:
        return explain_loss(self._errors.text, self._options.broker, answered=self._acknowledged)


def set_no_delay(sock: socket.socket) -> None:
    """Send small packets at once: Nagle's wait would cost a QoS 1 round trip up to 88 ms."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def make_tls_context(broker: BrokerConfig) -> ssl.SSLContext | None:
    """Return what TLS ≥ 1.2 with host name check needs, or None without TLS.

    Raises:
        ConfigError: if a certificate or key cannot be used.
    """
    if broker.ca_file is None:
        return None
    file = broker.ca_file
    try:
        context = _ClosingContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies certificate and host name
        context.load_verify_locations(cafile=str(file))
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if broker.cert_file is not None:
            file = broker.cert_file
            context.load_cert_chain(broker.cert_file, broker.key_file)
    except OSError as error:  # an SSLError is one
        why = error.reason if isinstance(error, ssl.SSLError) else error.strerror
        hint = "name PEM files: the authority's, and a certificate with the key that belongs to it"
        raise ConfigError(f"connect: cannot use {file}: {why or error}; {hint}") from error
    return context


def is_done(info: paho.MQTTMessageInfo) -> bool:
    """Return whether a message was written (QoS 0) or acknowledged (QoS 1)."""
    return info.rc == MQTTErrorCode.MQTT_ERR_SUCCESS and info.is_published()


class _ClosingContext(ssl.SSLContext):
    """Shakes hands at once and closes the socket if that fails; the library would leak it."""

    def wrap_socket(self, sock: socket.socket, *args: Any, **kwargs: Any) -> ssl.SSLSocket:
        wrapped = super().wrap_socket(sock, *args, **kwargs)
        try:
            wrapped.settimeout(_CONNECT_TIMEOUT_S)
            wrapped.do_handshake()
        except BaseException:
            wrapped.close()
            raise
        return wrapped


class _LastError:
    """The library's latest error, which it tells nobody but its log."""

    def __init__(self) -> None:
        self.text = ""
        self.logger = logging.Logger("paho", level=logging.ERROR)
        handler = logging.Handler()
        handler.emit = self._emit  # type: ignore[method-assign]
        self.logger.addHandler(handler)

    def _emit(self, record: logging.LogRecord) -> None:
        self.text = record.getMessage()
        _LOG.debug("%s", self.text)
