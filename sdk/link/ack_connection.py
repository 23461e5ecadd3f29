"""A broker connection that times acknowledgements: a train of QoS 1 messages out, PUBACKs back.

Its own connection, because the large messages of a measurement are bulk, which must not stand
before a draft in a socket's buffer, and because a PUBACK must be stamped the moment it arrives.
MQTT 3.1.1, the four packets that this takes; knows nothing of rates.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import struct
import time
from collections.abc import Callable, Sequence
from typing import Final

from sdk.config import BrokerConfig
from sdk.errors import ConnectError, TransportError
from sdk.link.tcp_info import TcpInfo, read_tcp_info

__all__ = ["AckConnection", "publish_packet"]

_CONNECT_TIMEOUT_S: Final = 5.0
_KEEPALIVE_S: Final = 60  # trains are more frequent on any link fast enough to draft over
_CONNACK: Final = b"\x20\x02\x00\x00"  # session present 0, accepted
_PUBACK: Final = 0x40
_DISCONNECT: Final = b"\xe0\x00"
_TCP_CONGESTION: Final = 13


class AckConnection:
    """One connection to a broker; used from one thread.

    The sender runs Reno: BBR would pace a train by what earlier, smaller trains got, and the train
    would measure BBR.
    """

    def __init__(
        self, *, broker: BrokerConfig, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Connect and log in, within 5 s.

        Raises:
            ConnectError: if the broker does not answer or refuses us.
            ConfigError: if a certificate or key file cannot be used.
        """
        self._clock = clock
        self._next_id = 1
        self._received = bytearray()
        self._socket = _connect(broker)
        try:
            self._log_in(broker)
        except OSError as error:
            self._socket.close()
            raise ConnectError(f"link probe: {broker.address}: {error}") from error
        except BaseException:
            self._socket.close()
            raise

    def info(self) -> TcpInfo | None:
        """Return the kernel's view of the connection."""
        return read_tcp_info(self._socket)

    def time_train(
        self, topic: str, sizes: Sequence[int], *, timeout_s: float
    ) -> tuple[float, list[float]]:
        """Send messages back to back; return when they were sent and when each was acknowledged.

        Args:
            topic: of every message.
            sizes: whole PUBLISH packets in bytes; none smaller than topic and headers take.
            timeout_s: for all acknowledgements together.

        Raises:
            TransportError: if one does not come in time, or the connection is lost; close it.
        """
        ids = [self._take_id() for _ in sizes]
        train = b"".join(
            publish_packet(topic, packet_id, size)
            for packet_id, size in zip(ids, sizes, strict=True)
        )
        waiting = dict.fromkeys(ids)
        acknowledged: dict[int, float] = {}
        try:
            self._socket.settimeout(timeout_s)
            sent_s = self._clock()
            self._socket.sendall(train)
            while waiting.keys() - acknowledged.keys():
                self._socket.settimeout(max(sent_s + timeout_s - self._clock(), 1e-3))
                kind, body, at_s = self._read_packet()
                if kind == _PUBACK and len(body) == 2:
                    acknowledged.setdefault(struct.unpack(">H", body)[0], at_s)
        except OSError as error:
            raise TransportError(f"link probe: no acknowledgement: {error}") from error
        return sent_s, [acknowledged[packet_id] for packet_id in ids]

    def close(self) -> None:
        """Say goodbye and close; harmless when repeated."""
        with contextlib.suppress(OSError):
            self._socket.settimeout(0.1)
            self._socket.sendall(_DISCONNECT)
        self._socket.close()

    def _log_in(self, broker: BrokerConfig) -> None:
        self._socket.sendall(_connect_packet(broker))
        answer = self._receive(4)
        if answer[:2] != _CONNACK[:2] or answer[3] != 0:
            raise ConnectError(f"link probe: {broker.address} refuses us (code {answer[3]})")

    def _take_id(self) -> int:
        packet_id, self._next_id = self._next_id, self._next_id % 0xFFFF + 1
        return packet_id

    def _read_packet(self) -> tuple[int, bytes, float]:
        """Return kind, body and arrival of the next packet; brokers send us short ones only."""
        kind, length = self._receive(2)
        at_s = self._clock()
        if length > 127:
            raise OSError("the broker sent a packet that nobody asked for")
        return kind & 0xF0, self._receive(length), at_s

    def _receive(self, count: int) -> bytes:
        while len(self._received) < count:
            chunk = self._socket.recv(256)
            if not chunk:
                raise OSError("the broker closed the connection")
            self._received += chunk
        taken = bytes(self._received[:count])
        del self._received[:count]
        return taken


def publish_packet(topic: str, packet_id: int, size_bytes: int) -> bytes:
    """Return a QoS 1 PUBLISH of exactly `size_bytes` (MQTT 3.1.1, 3.3), filled with zeros.

    Where the length field grows by a byte, one size cannot be made; the packet is a byte shorter.
    """
    name = topic.encode()
    variable = struct.pack(">H", len(name)) + name + struct.pack(">H", packet_id)
    for length_bytes in range(1, 5):
        filling = size_bytes - 1 - length_bytes - len(variable)
        header = b"\x32" + _length(max(filling, 0) + len(variable))
        if len(header) - 1 <= length_bytes:
            return header + variable + bytes(max(filling, 0))
    raise ValueError(f"no MQTT packet has {size_bytes} bytes")


def _connect_packet(broker: BrokerConfig) -> bytes:
    flags, fields = 0x02, [f"link-{secrets.token_hex(6)}"]
    for flag, text in ((0x80, broker.username), (0x40, broker.password)):
        if text is not None:
            flags |= flag
            fields.append(text)
    body = b"\x00\x04MQTT\x04" + struct.pack(">BH", flags, _KEEPALIVE_S)
    for text in fields:
        body += struct.pack(">H", len(text.encode())) + text.encode()
    return b"\x10" + _length(len(body)) + body


def _length(value: int) -> bytes:
    """Return MQTT's variable length: seven bits a byte, low ones first."""
    encoded = bytearray()
    while True:
        value, digit = value >> 7, value & 0x7F
        encoded.append(digit | (0x80 if value else 0))
        if not value:
            return bytes(encoded)


def _connect(broker: BrokerConfig) -> socket.socket:
    from sdk.transport.connection import make_tls_context

    context = make_tls_context(broker)
    try:
        plain = socket.create_connection((broker.host, broker.port), _CONNECT_TIMEOUT_S)
    except OSError as error:
        raise ConnectError(f"link probe: {broker.address}: {error}") from error
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with contextlib.suppress(OSError):  # Linux only
        plain.setsockopt(socket.IPPROTO_TCP, _TCP_CONGESTION, b"reno")
    if context is None:
        return plain
    try:
        return context.wrap_socket(plain, server_hostname=broker.host)
    except OSError as error:
        plain.close()
        raise ConnectError(f"link probe: {broker.address}: TLS: {error}") from error
