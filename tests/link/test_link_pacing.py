"""A grant is kept, whatever is sent: the bucket, the two queues, the wrapper on real sockets."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdk.errors import TransportError
from sdk.link.pacing import PacedTransport
from sdk.link.send_queue import Outgoing, SendQueue
from sdk.link.token_bucket import TokenBucket
from sdk.link.wire_cost import wire_cost_bytes
from sdk.transport.interface import Message, Traffic, publish_packet_bytes

DEPTH_S = 0.05


@given(
    st.floats(1e4, 1e9),
    st.lists(st.tuples(st.integers(1, 70_000), st.floats(0.0, 0.5)), max_size=60),
)
def test_no_window_gets_more_than_its_share(
    rate_bps: float, events: list[tuple[int, float]]
) -> None:
    """Between any two messages: at most rate·time + depth + one message."""
    bucket, now_s = TokenBucket(rate_bps=rate_bps, depth_s=DEPTH_S, now_s=0.0), 0.0
    passed: list[tuple[float, int]] = []
    for cost, gap_s in events:
        now_s += gap_s
        if bucket.wait_s(now_s=now_s) == 0.0:
            bucket.charge(cost, now_s=now_s)
            passed.append((now_s, cost))
    for start in range(len(passed)):
        total = 0
        for end in range(start, len(passed)):
            total += passed[end][1]
            span_s = passed[end][0] - passed[start][0]
            assert total <= rate_bps / 8 * (span_s + DEPTH_S) + passed[end][1] + 1e-3


@pytest.mark.parametrize("late_s", [0.0, 0.004, 0.03])
@pytest.mark.parametrize("cost", [149, 64_000])
def test_a_late_sender_loses_nothing(cost: int, late_s: float) -> None:
    """Goodput equals the grant to 1 %, though every wait ends a little late."""
    bucket, now_s, sent = TokenBucket(rate_bps=2e6, depth_s=DEPTH_S, now_s=0.0), 0.0, 0
    while now_s < 30.0:
        wait_s = bucket.wait_s(now_s=now_s)
        if wait_s > 0.0:
            now_s += wait_s + late_s
            continue
        bucket.charge(cost, now_s=now_s)
        sent += cost
    assert 8 * sent / now_s == pytest.approx(2e6, rel=0.01)


def test_a_change_of_rate_holds_from_then_on() -> None:
    bucket = TokenBucket(rate_bps=8e6, depth_s=DEPTH_S, now_s=0.0)
    bucket.charge(150_000, now_s=0.0)
    assert bucket.wait_s(now_s=0.0) == pytest.approx(0.1)
    bucket.set_rate(1e6, now_s=0.0)
    assert bucket.wait_s(now_s=0.0) == pytest.approx(0.8)
    bucket.set_rate(1e3, now_s=100.0)  # what was saved up shrinks with the grant
    bucket.charge(7, now_s=100.0)
    assert bucket.wait_s(now_s=100.0) > 0.0


@pytest.mark.parametrize("rate_bps", [0.0, -1.0, float("nan"), float("inf")])
def test_a_grant_is_a_rate(rate_bps: float) -> None:
    with pytest.raises(ValueError, match="rate_bps"):
        TokenBucket(rate_bps=rate_bps, now_s=0.0)
    with pytest.raises(ValueError, match="depth_s"):
        TokenBucket(rate_bps=1e6, depth_s=0.02, now_s=0.0)


def outgoing(size: int, *, urgent: bool, topic: str = "t") -> Outgoing:
    return Outgoing(topic=topic, payload=bytes(size), qos=0, retain=False, urgent=urgent)


def test_urgent_messages_overtake_and_are_paid_for() -> None:
    queue = SendQueue(rate_bps=2e6, depth_s=DEPTH_S, limit_bytes=200_000, now_s=0.0)
    for _ in range(2):
        assert queue.offer(outgoing(64_000, urgent=False))
    assert queue.offer(outgoing(90, urgent=True))
    first, second = queue.take(now_s=0.0), queue.take(now_s=0.0)
    assert first is not None
    assert second is not None
    assert (first.urgent, second.urgent) == (True, False)
    assert queue.take(now_s=0.0) is None
    assert queue.offer(outgoing(90, urgent=True))
    third = queue.take(now_s=0.0)  # though the bucket owes 64 kB
    assert third is not None
    assert third.urgent
    wait_s = queue.wait_s(now_s=0.0)
    assert wait_s is not None
    owed = first.cost_bytes + second.cost_bytes + third.cost_bytes - 2e6 / 8 * DEPTH_S
    assert wait_s == pytest.approx(8 * owed / 2e6)


def test_urgent_messages_alone_keep_to_the_grant_as_well() -> None:
    queue = SendQueue(rate_bps=1e6, depth_s=DEPTH_S, limit_bytes=10**9, now_s=0.0)
    for _ in range(20_000):
        queue.offer(outgoing(1000, urgent=True))
    sent, now_s = 0, 0.0
    while now_s < 10.0:
        message = queue.take(now_s=now_s)
        if message is None:
            now_s += 0.01
        else:
            sent += message.cost_bytes
    assert 8 * sent / now_s == pytest.approx(1e6, rel=0.02)


def test_a_full_queue_refuses_the_newest() -> None:
    queue = SendQueue(rate_bps=2e6, depth_s=DEPTH_S, limit_bytes=100_000, now_s=0.0)
    assert queue.offer(outgoing(150_000, urgent=False))  # a first one always has room
    assert not queue.offer(outgoing(1, urgent=False))
    assert queue.offer(outgoing(1, urgent=True))
    assert queue.waiting_bytes == 150_001
    assert [message.urgent for message in queue.empty()] == [True, False]
    assert queue.waiting_bytes == 0
    assert queue.wait_s(now_s=0.0) is None


def test_bulk_waits_for_the_kernel() -> None:
    queue = SendQueue(rate_bps=2e6, depth_s=DEPTH_S, limit_bytes=100_000, now_s=0.0)
    queue.offer(outgoing(10_000, urgent=False))
    assert queue.take(now_s=0.0, bulk_may_go=False) is None
    wait_s = queue.wait_s(now_s=0.0, bulk_may_go=False)
    assert wait_s is not None
    assert 0.0 < wait_s < 0.05
    assert queue.take(now_s=0.0) is not None


class Wire:
    """A transport that keeps what it is given; its socket is one end of a real pair."""

    def __init__(self, sock: socket.socket | None = None) -> None:
        self.traffic = Traffic()
        self.connected = True
        self.connection_count = 1
        self.sent: list[tuple[str, int]] = []
        self.arrived = threading.Condition()
        self.closed = False
        self.error: Exception | None = None
        self._socket = sock

    def socket(self) -> socket.socket | None:
        return self._socket

    def publish(self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False) -> bool:
        if not self.connected and qos == 0:
            return False
        if self.error is not None:
            raise self.error
        with self.arrived:
            self.sent.append((topic, len(payload)))
            self.arrived.notify_all()
        return True

    def wait(self, condition: Callable[[], bool]) -> None:
        with self.arrived:
            assert self.arrived.wait_for(condition, 20)

    def receive(self, timeout_s: float | None) -> Message | None:
        return Message("down", b"x")

    def wait_connected(self, timeout_s: float) -> bool:
        return self.connected

    def close(self) -> None:
        self.closed = True

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def test_without_a_grant_everything_passes() -> None:
    wire = Wire()
    with PacedTransport(wire) as paced:
        for size in (10, 60_000, 60_000):
            assert paced.publish("t", bytes(size))
        assert wire.sent == [("t", 10), ("t", 60_000), ("t", 60_000)]
        assert (paced.rate_bps, paced.waiting_bytes) == (None, 0)
        assert paced.receive(0.0) == Message("down", b"x")
        assert paced.connected
        assert paced.connection_count == 1
        assert paced.wait_connected(0.0)
        assert paced.traffic is wire.traffic
    assert wire.closed


def test_what_exceeds_the_grant_waits_and_urgent_messages_do_not() -> None:
    wire = Wire()
    now_s = [0.0]
    with PacedTransport(wire, clock=lambda: now_s[0]) as paced:
        paced.set_rate_bps(1e6)
        for _ in range(3):
            assert paced.publish("bulk", bytes(50_000))
        assert paced.publish("urgent", bytes(50))
        assert wire.sent == [("bulk", 50_000), ("urgent", 50)]
        assert paced.waiting_bytes == 100_000
        now_s[0] = 0.4  # the time that 50 kB take
        assert paced.publish("urgent", bytes(50))
        wire.wait(lambda: len(wire.sent) == 4)
        assert sorted(wire.sent[2:]) == [("bulk", 50_000), ("urgent", 50)]
        paced.set_rate_bps(None)
        assert wire.sent[4:] == [("bulk", 50_000)]
        assert paced.waiting_bytes == 0


def test_the_thread_sends_what_waits() -> None:
    wire = Wire()
    with PacedTransport(wire) as paced:
        paced.set_rate_bps(4e6)
        for _ in range(5):
            assert paced.publish("bulk", bytes(20_000))
        wire.wait(lambda: len(wire.sent) == 5)
        assert paced.waiting_bytes == 0


def test_a_larger_grant_wakes_the_thread() -> None:
    wire = Wire()
    with PacedTransport(wire) as paced:
        paced.set_rate_bps(1000.0)  # the second message would wait for eight minutes
        for _ in range(2):
            paced.publish("bulk", bytes(60_000))
        paced.set_rate_bps(1e9)
        wire.wait(lambda: len(wire.sent) == 2)


def test_refusals_are_counted() -> None:
    wire = Wire()
    with PacedTransport(wire, queue_bytes=60_000) as paced:
        paced.set_rate_bps(1000.0)
        assert paced.publish("bulk", bytes(50_000))
        assert paced.publish("bulk", bytes(50_000))
        assert not paced.publish("bulk", bytes(50_000))
        assert wire.traffic.dropped_outbound == 1
        wire.connected = False
        assert not paced.publish("urgent", b"x")
        wire.error = TransportError("too large")
        assert paced.publish("control", b"x", qos=1)
        assert wire.traffic.dropped_outbound == 2


def test_bulk_on_a_connection_of_its_own() -> None:
    wire, bulk = Wire(), Wire()
    with PacedTransport(wire, bulk=bulk) as paced:
        paced.set_rate_bps(1e6)
        paced.publish("bulk", bytes(50_000))
        paced.publish("urgent", bytes(50))
        assert (wire.sent, bulk.sent) == ([("urgent", 50)], [("bulk", 50_000)])
    assert wire.closed
    assert bulk.closed


@pytest.mark.parametrize(("depth_s", "factor"), [(0.01, 1.25), (0.1, 1.0), (0.1, 2.0)])
def test_bounds_of_the_settings(depth_s: float, factor: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        PacedTransport(Wire(), depth_s=depth_s, socket_factor=factor)


def test_the_socket_is_held_a_little_above_the_grant() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as near,
        PacedTransport(Wire(near)) as paced,
    ):
        paced.set_rate_bps(2e6)
        raw = near.getsockopt(socket.SOL_SOCKET, 47, 8)
        assert int.from_bytes(raw[:4], "little") == pytest.approx(1.25 * 2e6 / 8)
        assert paced.socket() is near


def test_bulk_waits_while_the_kernel_holds_unsent_bytes() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket() as near,
    ):
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        near.connect(server.getsockname())
        far, _ = server.accept()
        with far:
            near.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:  # until nothing more fits: the far end does not read
                    near.send(bytes(65_536))
            wire = Wire(near)
            with PacedTransport(wire) as paced:
                paced.set_rate_bps(1e9)
                paced.publish("bulk", bytes(50_000))
                paced.publish("urgent", bytes(50))
                assert wire.sent == [("urgent", 50)]
                far.settimeout(1.0)
                with contextlib.suppress(TimeoutError):  # all read
                    while not wire.sent[1:]:
                        far.recv(1 << 20)
                wire.wait(lambda: len(wire.sent) == 2)
                assert wire.sent[1] == ("bulk", 50_000)


def test_the_cost_counts_topic_and_headers() -> None:
    message = outgoing(90, urgent=True, topic="sd/1/pi/up/draft")
    assert message.cost_bytes == wire_cost_bytes(publish_packet_bytes(message.topic, 90, 0))
    assert message.cost_bytes > 90 + 16 + 50
