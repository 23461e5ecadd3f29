"""The in-memory hub: MQTT's rules, and faults that a seed repeats."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass

import pytest

from sdk.transport import Message
from sdk.transport.memory import Faults, MemoryHub, MemoryTransport
from sdk.transport.mqtt import Will


@dataclass
class Clock:
    """Seconds that pass when the test says so."""

    now_s: float = 100.0

    def __call__(self) -> float:
        return self.now_s


def drain(transport: MemoryTransport) -> list[bytes]:
    payloads = []
    while (message := transport.receive(0.0)) is not None:
        payloads.append(message.payload)
    return payloads


def run_link(faults: Faults, count: int, *, qos: int = 0, gap_s: float = 0.001) -> list[int]:
    """Send numbers through one faulty uplink and return them as they arrive."""
    clock = Clock()
    hub = MemoryHub(clock=clock)
    receiver = hub.connect("b", subscriptions=[("t", 1)], inbox_limit=10 * count)
    sender = hub.connect("a", uplink=faults)
    for index in range(count):
        sender.publish("t", index.to_bytes(4, "little"), qos=qos)
        clock.now_s += gap_s
    clock.now_s += 1e6
    return [int.from_bytes(payload, "little") for payload in drain(receiver)]


def test_messages_go_where_the_filters_say() -> None:
    hub = MemoryHub()
    server = hub.connect("edge", subscriptions=[("sd/1/+/up/#", 1)])
    device = hub.connect("pi", subscriptions=[("sd/1/pi/down/verdict", 0)])
    other = hub.connect("other", subscriptions=[("sd/1/other/down/verdict", 0)])
    assert device.publish("sd/1/pi/up/draft", b"d")
    assert server.publish("sd/1/pi/down/verdict", b"v")
    assert server.receive(0) == Message("sd/1/pi/up/draft", b"d")
    assert device.receive(0) == Message("sd/1/pi/down/verdict", b"v")
    assert other.receive(0) is None
    assert server.traffic.received_bytes == device.traffic.sent_bytes == 2 + 2 + 16 + 1


def test_retained_messages_greet_newcomers_until_they_are_cleared() -> None:
    hub = MemoryHub()
    sender = hub.connect("a", birth=("a/status", b"online"))
    assert hub.connect("b", subscriptions=[("+/status", 1)]).receive(0) == Message(
        "a/status", b"online", True
    )
    sender.publish("a/status", b"", qos=1, retain=True)
    assert hub.connect("c", subscriptions=[("+/status", 1)]).receive(0) is None


def test_lost_link_publishes_the_will_and_a_goodbye_does_not() -> None:
    hub = MemoryHub()
    watcher = hub.connect("w", subscriptions=[("s", 1)])
    transport = hub.connect("a", will=Will(topic="s", payload=b"lost"))
    hub.disconnect("a")
    assert drain(watcher) == [b"lost"]
    assert not transport.connected
    hub.reconnect("a")
    assert transport.connected
    assert transport.connection_count == 2
    transport.close()
    assert drain(watcher) == []


def test_without_a_link_hot_messages_fail_and_control_waits() -> None:
    hub = MemoryHub()
    receiver = hub.connect("b", subscriptions=[("#", 1)])
    sender = hub.connect("a", control_limit=2)
    hub.disconnect("a")
    assert not sender.publish("t", b"hot")
    assert [sender.publish("t", bytes([i]), qos=1) for i in range(3)] == [True, True, False]
    assert sender.traffic.dropped_outbound == 2
    assert sender.traffic.sent_messages == 0
    hub.reconnect("a")
    assert drain(receiver) == [b"\0", b"\1"]


def test_lost_link_loses_what_was_on_its_way_down() -> None:
    clock = Clock()
    hub = MemoryHub(clock=clock)
    receiver = hub.connect("b", subscriptions=[("t", 0)], downlink=Faults(delay_s=(1.0, 1.0)))
    sender = hub.connect("a")
    sender.publish("t", b"arrived")
    clock.now_s += 1.0
    sender.publish("t", b"flying")
    hub.disconnect("b")
    clock.now_s += 1.0
    assert drain(receiver) == [b"arrived"]


def test_second_client_with_the_same_id_takes_over() -> None:
    hub = MemoryHub()
    first = hub.connect("a", subscriptions=[("t", 0)])
    second = hub.connect("a", subscriptions=[("t", 0)])
    first.close()  # must not end the second
    assert second.connected
    assert second.publish("t", b"x")
    assert second.receive(0) == Message("t", b"x")


def test_same_seed_same_faults_other_seed_others() -> None:
    faults = {"loss": 0.1, "duplicate": 0.1, "reorder": 0.1, "delay_s": (0.0, 0.002)}
    runs = [run_link(Faults(**faults, seed=seed), 500) for seed in (1, 1, 2)]  # type: ignore[arg-type]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 1.0])
def test_rates_of_loss_and_duplication_are_those_asked_for(rate: float) -> None:
    count = 5_000
    spread = 4 * math.sqrt(rate * (1 - rate) / count)  # four standard errors
    arrived = run_link(Faults(loss=rate, seed=3), count)
    assert abs(1 - len(arrived) / count - rate) <= spread
    assert arrived == sorted(arrived)
    doubled = run_link(Faults(duplicate=rate, seed=4), count)
    assert abs(len(doubled) / count - 1 - rate) <= spread
    assert set(doubled) == set(range(count))


def test_reordered_messages_are_overtaken_at_the_rate_asked_for() -> None:
    count, rate = 5_000, 0.1
    arrived = run_link(Faults(reorder=rate, reorder_s=0.0055, seed=5), count)
    assert sorted(arrived) == list(range(count))
    latest, late = -1, 0
    for index in arrived:
        late += index < latest
        latest = max(latest, index)
    # Held back by five and a half gaps, a message is overtaken unless the next five are too.
    assert abs(late / count - rate) <= 4 * math.sqrt(rate * (1 - rate) / count)


def test_losses_are_independent_of_one_another() -> None:
    arrived = set(run_link(Faults(loss=0.5, seed=6), 5_000))
    pairs = sum(i not in arrived and i + 1 not in arrived for i in range(4_999))
    assert abs(pairs / 4_999 - 0.25) < 0.03


def test_qos_1_is_delayed_at_most() -> None:
    faults = Faults(loss=0.5, duplicate=0.5, reorder=0.5, delay_s=(0.01, 0.01), seed=7)
    assert run_link(faults, 300, qos=1) == list(range(300))


def test_delay_and_rate_hold_messages_back() -> None:
    clock = Clock(0.0)
    hub = MemoryHub(clock=clock)
    receiver = hub.connect("b", subscriptions=[("t", 0)])
    sender = hub.connect("a", uplink=Faults(rate_bps=8000, delay_s=(0.5, 0.5)))
    for index in range(3):
        sender.publish("t", bytes([index]) * 95)  # a packet of 100 bytes: 0.1 s
    times_s = []
    for tick in range(1, 100):
        clock.now_s = tick * 0.01
        times_s += [clock.now_s for _ in drain(receiver)]
    assert times_s == pytest.approx([0.6, 0.7, 0.8], abs=0.0101)


def test_full_inbox_drops_the_earliest_hot_message() -> None:
    hub = MemoryHub()
    receiver = hub.connect("b", subscriptions=[("#", 1)], inbox_limit=3)
    sender = hub.connect("a")
    for index, qos in enumerate([1, 0, 0, 0, 1]):
        sender.publish("t", bytes([index]), qos=qos)
    assert drain(receiver) == [b"\0", b"\3", b"\4"]
    assert receiver.traffic.dropped_inbound == 2


def test_receive_wakes_for_a_message_and_for_the_end() -> None:
    hub = MemoryHub()
    receiver = hub.connect("b", subscriptions=[("t", 0)])
    results: list[Message | None] = []
    first = threading.Event()

    def read() -> None:
        results.append(receiver.receive(None))
        first.set()
        results.append(receiver.receive(None))

    reader = threading.Thread(target=read)
    reader.start()
    sender = hub.connect("a", uplink=Faults(delay_s=(0.02, 0.02)))
    sender.publish("t", b"x")
    assert first.wait(10)
    receiver.close()
    reader.join(10)
    assert results == [Message("t", b"x"), None]
    assert not receiver.publish("t", b"")


@pytest.mark.parametrize(
    "bad", [{"loss": 1.1}, {"duplicate": -0.1}, {"delay_s": (2.0, 1.0)}, {"rate_bps": 0.0}]
)
def test_faults_out_of_range_are_mistakes(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="got"):
        Faults(**bad)  # type: ignore[arg-type]
