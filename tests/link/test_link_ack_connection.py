"""The connection that trains travel on: acknowledged in order, or given up."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator

import pytest

from sdk.config import BrokerConfig
from sdk.errors import TransportError
from sdk.link.ack_connection import AckConnection


@pytest.fixture
def acknowledging() -> Iterator[Callable[[Callable[[int], bytes]], BrokerConfig]]:
    """Start little brokers that answer the n-th packet of a client with given bytes."""
    servers: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def serve(server: socket.socket, answer: Callable[[int], bytes]) -> None:
        try:
            near, _ = server.accept()
        except OSError:
            return
        with near, near.makefile("rb") as stream:
            count = 0
            while header := stream.read(1):
                length, shift = 0, 0
                while True:
                    digit = stream.read(1)[0]
                    length |= (digit & 0x7F) << shift
                    shift += 7
                    if not digit & 0x80:
                        break
                body = stream.read(length)
                if header[0] & 0xF0 == 0x30:
                    name_bytes = struct.unpack(">H", body[:2])[0]
                    reply = answer(count).replace(b"ID", body[2 + name_bytes : 4 + name_bytes])
                else:
                    reply = b"\x20\x02\x00\x00" if header[0] == 0x10 else b""
                count += 1
                try:
                    near.sendall(reply)
                except OSError:
                    return

    def start(answer: Callable[[int], bytes]) -> BrokerConfig:
        server = socket.create_server(("127.0.0.1", 0))
        servers.append(server)
        threads.append(threading.Thread(target=serve, args=(server, answer), daemon=True))
        threads[-1].start()
        return BrokerConfig(host="127.0.0.1", port=server.getsockname()[1])

    yield start
    for server in servers:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
    for thread in threads:
        thread.join(5)


Acknowledging = Callable[[Callable[[int], bytes]], BrokerConfig]


def test_a_train_is_acknowledged_in_order(acknowledging: Acknowledging) -> None:
    broker = acknowledging(lambda _: b"\x40\x02ID")
    connection = AckConnection(broker=broker)
    for _ in range(3):
        sent_s, acknowledged_s = connection.time_train("t", [1448] * 5, timeout_s=5.0)
        assert len(acknowledged_s) == 5
        assert [sent_s, *acknowledged_s] == sorted([sent_s, *acknowledged_s])
    connection.close()
    connection.close()


@pytest.mark.parametrize(
    "answer",
    [b"", b"\x40\x02\xff\xff", b"\x40", b"\x30\xff\xff\xff\x7f", b"\x40\x01x"],
    ids=["silent", "foreign id", "cut off", "oversize", "malformed"],
)
def test_a_broker_that_does_not_acknowledge(acknowledging: Acknowledging, answer: bytes) -> None:
    connection = AckConnection(broker=acknowledging(lambda _: answer))
    with pytest.raises(TransportError):
        connection.time_train("t", [100], timeout_s=0.3)
    connection.close()
