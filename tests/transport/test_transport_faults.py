"""MqttTransport when things go wrong: each test is a scenario with its name."""

from __future__ import annotations

import logging
import socket
import sys
import threading
import time
from collections.abc import Callable

import pytest
from fault_proxy import FaultProxy

from edge_server.broker import BrokerProcess
from sdk.config import BrokerConfig
from sdk.transport import Message
from sdk.transport.mqtt import MqttTransport, Will

Join = Callable[..., MqttTransport]
ProxyTo = Callable[[BrokerConfig], FaultProxy]
WAIT_S = 10.0


def until(condition: Callable[[], object], timeout_s: float = WAIT_S) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "did not happen in time"
        time.sleep(0.005)


def drain(transport: MqttTransport, expected: int) -> list[bytes]:
    """Return what arrives: as many different payloads as expected, and what comes right behind."""
    payloads: list[bytes] = []
    while message := transport.receive(WAIT_S if len(set(payloads)) < expected else 0.3):
        payloads.append(message.payload)
    return payloads


def test_broker_killed_and_restarted_while_messages_flow(
    own_broker: BrokerProcess, topic: str, join: Join
) -> None:
    """QoS 1 survives, at least once and in order of first arrival; QoS 0 fails fast meanwhile."""
    receiver = join(own_broker.config, subscriptions=[(f"{topic}/#", 1)])
    sender = join(own_broker.config)
    sent: list[bytes] = []
    for index in range(60):
        payload = str(index).encode()
        assert sender.publish(f"{topic}/control", payload, qos=1)
        sent.append(payload)
        if index == 20:
            until(lambda: receiver.receive(0.1) is None)  # those of before are with the receiver
            own_broker.kill()
            until(lambda: not sender.connected and not receiver.connected)
            assert not sender.publish(f"{topic}/hot", b"x")
            own_broker.start()
            # What the broker acknowledges while nobody subscribes is gone, as MQTT has it.
            until(lambda: receiver.connected)
        if index > 20:
            time.sleep(0.002)
    assert sender.wait_connected(WAIT_S)
    received = list(dict.fromkeys(drain(receiver, 39)))
    assert received[-39:] == sent[-39:]
    assert sender.connection_count == receiver.connection_count == 2
    assert sender.traffic.dropped_outbound == 1


def test_control_messages_wait_for_a_connection_and_are_bounded(
    own_broker: BrokerProcess, topic: str, join: Join
) -> None:
    transport = join(own_broker.config, subscriptions=[(topic, 1)], control_limit=5)
    own_broker.kill()
    until(lambda: not transport.connected)
    results = [transport.publish(topic, bytes([index]), qos=1) for index in range(8)]
    assert results == [True] * 5 + [False] * 3
    assert transport.traffic.dropped_outbound == 3
    own_broker.start()
    assert transport.wait_connected(WAIT_S)
    assert drain(transport, 5) == [bytes([index]) for index in range(5)]
    assert transport.publish(topic, b"room again", qos=1)


def test_hot_messages_fail_at_once_without_a_connection() -> None:
    broker = BrokerConfig(host="127.0.0.1", port=1)
    with MqttTransport(broker=broker, client_id="c") as transport:
        assert not transport.publish("t", b"x")
        assert transport.publish("t", b"x", qos=1)
        assert transport.traffic.dropped_outbound == 1
        assert transport.traffic.sent_messages == 0
        assert not transport.connected


def test_half_open_connection_is_noticed_and_replaced(
    mosquitto: BrokerProcess, topic: str, join: Join, proxy_to: ProxyTo
) -> None:
    """Nobody sends a FIN: only the keepalive finds out (here one second)."""
    proxy = proxy_to(mosquitto.config)
    transport = join(proxy.config, subscriptions=[(topic, 0)])
    proxy.half_open()
    assert transport.publish(topic, b"into the void")
    until(lambda: transport.connection_count == 2)
    assert transport.publish(topic, b"heard")
    message = transport.receive(WAIT_S)
    assert message == Message(topic, b"heard")


def test_reset_connection_is_replaced_and_the_will_is_published(
    mosquitto: BrokerProcess, topic: str, join: Join, proxy_to: ProxyTo
) -> None:
    proxy = proxy_to(mosquitto.config)
    watcher = join(mosquitto.config, subscriptions=[(f"{topic}/status", 1)])
    transport = join(
        proxy.config,
        subscriptions=[(topic, 0)],
        will=Will(topic=f"{topic}/status", payload=b"lost"),
        birth=(f"{topic}/status", b"online"),
    )
    status = f"{topic}/status"
    assert watcher.receive(WAIT_S) == Message(status, b"online")
    proxy.reset()
    until(lambda: transport.connection_count == 2)
    assert watcher.receive(WAIT_S) == Message(status, b"lost")
    assert watcher.receive(WAIT_S) == Message(status, b"online")


def test_server_that_accepts_and_closes_is_not_connected(
    mosquitto: BrokerProcess, proxy_to: ProxyTo
) -> None:
    proxy = proxy_to(mosquitto.config)
    proxy.refusing = True
    with MqttTransport(broker=proxy.config, client_id="c") as transport:
        assert not transport.wait_connected(0.3)
        assert "closed the connection before letting us in" in transport.failure
        assert "ca_file" in transport.failure


@pytest.mark.parametrize("chunk_bytes", [1, 7])
def test_packets_split_anywhere_arrive_whole(
    mosquitto: BrokerProcess, topic: str, join: Join, proxy_to: ProxyTo, chunk_bytes: int
) -> None:
    proxy = proxy_to(mosquitto.config)
    proxy.chunk_bytes = chunk_bytes
    transport = join(proxy.config, subscriptions=[(topic, 1)])
    for size in (0, 1, 127, 128, 300):
        assert transport.publish(topic, bytes(range(256))[: size % 256] * 2, qos=1)
        message = transport.receive(WAIT_S)
        assert message == Message(topic, bytes(range(256))[: size % 256] * 2)


def test_delay_delays_and_loses_nothing(
    mosquitto: BrokerProcess, topic: str, join: Join, proxy_to: ProxyTo
) -> None:
    proxy = proxy_to(mosquitto.config)
    transport = join(proxy.config, subscriptions=[(topic, 0)])
    proxy.delay_s = 0.05
    started_s = time.monotonic()
    for index in range(20):
        assert transport.publish(topic, bytes([index]))
    assert drain(transport, 20) == [bytes([index]) for index in range(20)]
    assert time.monotonic() - started_s >= 0.1  # each way once


def test_slow_link_bounds_the_backlog(
    mosquitto: BrokerProcess, topic: str, join: Join, proxy_to: ProxyTo
) -> None:
    """Nobody reads at the far end: kernel buffers fill, then publishing says no."""
    proxy = proxy_to(mosquitto.config)
    transport = join(BrokerConfig(host="127.0.0.1", port=proxy.config.port), backlog_bytes=100_000)
    proxy.stalled = True
    payload = b"x" * 60_000
    taken = sum(transport.publish(topic, payload) for _ in range(500))
    assert 1 <= taken < 500  # what the kernel takes is its business
    assert transport.traffic.dropped_outbound == 500 - taken
    assert transport.traffic.sent_messages == taken
    proxy.stalled = False
    until(lambda: transport.publish(topic, payload))
    assert transport.connection_count == 1


def test_slow_reader_loses_the_oldest_hot_messages_and_they_are_counted(
    broker: BrokerProcess, topic: str, join: Join
) -> None:
    # amqtt raises a message to its subscription's QoS, so each kind has a subscription of its own.
    wanted = [(f"{topic}/control", 1), (f"{topic}/hot", 0)]
    reader = join(broker.config, subscriptions=wanted, inbox_limit=10)
    sender = join(broker.config, control_limit=100)
    for index in range(5):
        sender.publish(f"{topic}/control", bytes([index]), qos=1)
    until(lambda: reader.traffic.received_messages == 5)
    for index in range(40):
        sender.publish(f"{topic}/hot", bytes([index]))
    until(lambda: reader.traffic.received_messages == 45)
    assert reader.traffic.dropped_inbound == 35
    control = [bytes([index]) for index in range(5)]
    kept = drain(reader, 10)
    assert [each for each in kept if each in control] == control
    assert len(kept) == 10
    assert kept[-5:] == [bytes([index]) for index in range(35, 40)]


def test_exceptions_in_callbacks_are_counted_and_survived(
    broker: BrokerProcess, topic: str, join: Join, caplog: pytest.LogCaptureFixture
) -> None:
    def explode(_sock: object) -> None:
        raise OSError("no such option here")

    transport = join(broker.config, subscriptions=[(topic, 1)], socket_hooks=[explode])
    assert transport.callback_errors == 1

    class BrokenTraffic:
        def add_received(self, *_: object) -> None:
            raise RuntimeError("a bug of ours")

    sound, transport.traffic = transport.traffic, BrokenTraffic()  # type: ignore[assignment]
    other = join(broker.config)
    with caplog.at_level(logging.CRITICAL):
        other.publish(topic, b"1", qos=1)
        until(lambda: transport.callback_errors == 2)
    transport.traffic = sound
    other.publish(topic, b"2", qos=1)
    assert transport.receive(WAIT_S) == Message(topic, b"2")
    assert transport.connection_count == 1


def test_many_publishers_share_one_connection(
    broker: BrokerProcess, topic: str, join: Join
) -> None:
    """Only one thread writes the socket, so packets of several publishers never mix."""
    transport = join(
        broker.config, subscriptions=[(topic, 0)], inbox_limit=4000, control_limit=4000
    )

    def work(number: int) -> None:
        for index in range(200):
            payload = f"{number}:{index}:".encode() + bytes(number * 50)
            while not transport.publish(topic, payload, qos=index % 2):
                time.sleep(0.001)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    received = drain(transport, 800)
    for number in range(4):
        mine = [each for each in received if each.startswith(b"%d:" % number)]
        hot = [each for each in mine if int(each.split(b":")[1]) % 2 == 0]
        assert [int(each.split(b":")[1]) for each in hot] == list(range(0, 200, 2))
        assert {len(each.split(b":", 2)[2]) for each in mine} == {number * 50}
    assert len(received) == 800
    assert transport.callback_errors == 0


def test_publishing_never_writes_the_socket_itself(
    mosquitto: BrokerProcess, topic: str, join: Join
) -> None:
    """Two writers would tear packets apart, rarely: so watch who writes instead of waiting."""
    transport = join(mosquitto.config, subscriptions=[(topic, 0)])
    own_writes: list[object] = []

    def watch(_frame: object, event: str, function: object) -> None:
        if event == "c_call" and getattr(function, "__self__", None) is transport.socket():
            own_writes.append(function)

    for qos in (0, 1):
        sys.setprofile(watch)
        try:
            assert transport.publish(topic, b"x", qos=qos)
        finally:
            sys.setprofile(None)
        assert transport.receive(WAIT_S) is not None
    assert own_writes == []


def test_packets_never_mix_where_the_link_splits_them(
    mosquitto: BrokerProcess, topic: str, join: Join, proxy_to: ProxyTo
) -> None:
    """Full kernel buffers split packets; only one thread may write, or halves change places."""
    proxy = proxy_to(mosquitto.config)
    receiver = join(mosquitto.config, subscriptions=[(topic, 1)])
    sender = join(
        BrokerConfig(host="127.0.0.1", port=proxy.config.port),
        backlog_bytes=1_000_000,
        socket_hooks=[lambda sock: sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)],
    )

    def work(number: int) -> None:
        for _ in range(100):
            while not sender.publish(topic, bytes([number]) * 50_000):
                time.sleep(0.0005)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sender.publish(topic, b"fence", qos=1)
    received = [b""]
    while received[-1] != b"fence":
        message = receiver.receive(WAIT_S)
        assert message is not None
        received.append(message.payload)
    assert all(payload == payload[:1] * 50_000 for payload in received[1:-1])
    assert sender.connection_count == receiver.connection_count == 1


def test_second_client_with_the_same_id_takes_over(
    mosquitto: BrokerProcess, topic: str, join: Join
) -> None:
    first = join(mosquitto.config, client_id=topic.replace("/", "-"))
    second = join(mosquitto.config, client_id=topic.replace("/", "-"))
    until(lambda: second.connection_count + first.connection_count >= 3)


def test_transport_made_before_its_broker_connects_once_it_is_there(
    own_broker: BrokerProcess, topic: str, join: Join
) -> None:
    own_broker.kill()
    with MqttTransport(broker=own_broker.config, client_id="early") as transport:
        assert not transport.wait_connected(0.05)
        own_broker.start()
        assert transport.wait_connected(WAIT_S)
        assert transport.failure == ""
