"""A broker and its clients in memory, with seeded faults: for tests and simulations, no threads.

Messages lie in the receiver's inbox until they are due, so a delay costs nobody a thread. Knows
nothing of frames; follows MQTT in topic filters, retained messages and wills.
"""

from __future__ import annotations

import heapq
import itertools
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sdk.transport.interface import Message, Traffic, Will, publish_packet_bytes
from sdk.transport.topic_filter import matches

__all__ = ["Faults", "MemoryHub", "MemoryTransport"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What one direction of a client's link does to messages.

    Attributes:
        loss: probability that a QoS 0 message vanishes; QoS 1 is delayed at most.
        duplicate: probability that a QoS 0 message comes twice.
        reorder: probability that a QoS 0 message is held back by `reorder_s`.
        reorder_s: how long a reordered message is held back.
        delay_s: least and greatest delay of any message, uniform.
        rate_bps: bits per second of whole packets, one after the other; None: no limit.
        delay_qos1: whether delay and rate hold for QoS 1 as well.
        seed: of all of the above.
    """

    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    reorder_s: float = 0.005
    delay_s: tuple[float, float] = (0.0, 0.0)
    rate_bps: float | None = None
    delay_qos1: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("loss", "duplicate", "reorder"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is a probability, got {getattr(self, name)}")
        low_s, high_s = self.delay_s
        if not 0.0 <= low_s <= high_s:
            raise ValueError(f"delay_s is (least, greatest), got {self.delay_s}")
        if self.rate_bps is not None and self.rate_bps <= 0:
            raise ValueError(f"rate_bps must be positive, got {self.rate_bps}")


class _Link:
    """One direction: turns a message into the times at which its copies are due."""

    def __init__(self, faults: Faults, name: str) -> None:
        self._faults = faults
        self._random = random.Random(f"{faults.seed}/{name}")  # noqa: S311
        self._free_s = 0.0

    def due_times_s(self, packet_bytes: int, qos: int, now_s: float) -> list[float]:
        faults, uniform = self._faults, self._random.random
        # Always the same number of draws, so that one fault's rate does not shift the others.
        lost, twice, late = uniform(), uniform(), uniform()
        delays_s = [self._random.uniform(*faults.delay_s) for _ in range(2)]
        if qos and not faults.delay_qos1:
            return [now_s]
        if faults.rate_bps is not None:  # a lost message took its time on the air all the same
            self._free_s = max(self._free_s, now_s) + packet_bytes * 8 / faults.rate_bps
            now_s = self._free_s
        if qos:
            return [now_s + delays_s[0]]
        if lost < faults.loss:
            return []
        held_s = faults.reorder_s if late < faults.reorder else 0.0
        copies = 2 if twice < faults.duplicate else 1
        return [now_s + held_s + delay_s for delay_s in delays_s[:copies]]


@dataclass(slots=True)
class _Client:
    """What the hub knows of one client."""

    transport: MemoryTransport
    subscriptions: Sequence[tuple[str, int]]
    will: Will | None
    birth: tuple[str, bytes] | None
    uplink: _Link
    downlink: _Link
    connected: bool = True
    waiting: list[tuple[str, bytes, bool]] = field(default_factory=list)  # QoS 1, for a connection


class MemoryHub:
    """The broker: everything happens in the caller's thread, under one lock."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Start empty; `clock` gives monotonic seconds and must run by itself for `receive`."""
        self.clock = clock
        self.changed = threading.Condition()
        self._clients: dict[str, _Client] = {}
        self._retained: dict[str, bytes] = {}

    def connect(
        self,
        client_id: str,
        *,
        subscriptions: Sequence[tuple[str, int]] = (),
        will: Will | None = None,
        birth: tuple[str, bytes] | None = None,
        uplink: Faults | None = None,
        downlink: Faults | None = None,
        inbox_limit: int = 1024,
        control_limit: int = 64,
    ) -> MemoryTransport:
        """Return a connected client; one that had the same id loses its connection."""
        self.disconnect(client_id)
        transport = MemoryTransport(
            hub=self, client_id=client_id, inbox_limit=inbox_limit, control_limit=control_limit
        )
        with self.changed:
            self._clients[client_id] = _Client(
                transport=transport,
                subscriptions=tuple(subscriptions),
                will=will,
                birth=birth,
                uplink=_Link(uplink or Faults(), f"{client_id}/up"),
                downlink=_Link(downlink or Faults(), f"{client_id}/down"),
            )
            self._welcome(self._clients[client_id])
        return transport

    def disconnect(self, client_id: str) -> None:
        """Play a lost link: what is on its way to the client is lost, its will is published."""
        with self.changed:
            client = self._clients.get(client_id)
            if client is None or not client.connected:
                return
            client.connected = False
            client.transport.lose()
            if client.will is not None:
                will = client.will
                self._route(will.topic, will.payload, 1, will.retain, self.clock())
            self.changed.notify_all()

    def reconnect(self, client_id: str) -> None:
        """Bring a disconnected client back: subscriptions, birth, and QoS 1 that waited."""
        with self.changed:
            client = self._clients[client_id]
            if not client.connected:
                client.connected = True
                self._welcome(client)

    def is_connected(self, client_id: str) -> bool:
        """Return whether the client has a connection."""
        client = self._clients.get(client_id)
        return client is not None and client.connected

    def leave(self, client_id: str, transport: MemoryTransport) -> None:
        """Say goodbye: no will."""
        with self.changed:
            client = self._clients.get(client_id)
            if client is not None and client.transport is transport:
                del self._clients[client_id]

    def publish(
        self, client_id: str, topic: str, payload: bytes, qos: int, retain: bool, limit: int
    ) -> bool:
        """Take a message from a client; False if it was dropped at once."""
        with self.changed:
            client = self._clients.get(client_id)
            if client is None:
                return False
            if not client.connected:
                if qos == 0 or len(client.waiting) >= limit:
                    return False
                client.waiting.append((topic, payload, retain))
                return True
            self._send(client, topic, payload, qos, retain)
            return True

    def _welcome(self, client: _Client) -> None:
        client.transport.connection_count += 1
        for topic, payload in self._retained.items():
            self._deliver(client, Message(topic, payload, True), self.clock(), qos=1)
        if client.birth is not None:
            self._send(client, *client.birth, 1, True)
        waiting, client.waiting = client.waiting, []
        for topic, payload, retain in waiting:
            self._send(client, topic, payload, 1, retain)
        self.changed.notify_all()

    def _send(self, client: _Client, topic: str, payload: bytes, qos: int, retain: bool) -> None:
        client.transport.traffic.add_sent(topic, len(payload), qos)
        packet_bytes = publish_packet_bytes(topic, len(payload), qos)
        for due_s in client.uplink.due_times_s(packet_bytes, qos, self.clock()):
            self._route(topic, payload, qos, retain, due_s)

    def _route(self, topic: str, payload: bytes, qos: int, retain: bool, at_s: float) -> None:
        if retain:
            self._retained.pop(topic, None)
            if payload:
                self._retained[topic] = payload
        for client in self._clients.values():
            if client.connected:
                self._deliver(client, Message(topic, payload), at_s, qos=qos)
        self.changed.notify_all()

    def _deliver(self, client: _Client, message: Message, at_s: float, *, qos: int) -> None:
        granted = [limit for want, limit in client.subscriptions if matches(want, message.topic)]
        if not granted:
            return
        qos = min(qos, max(granted))
        packet_bytes = publish_packet_bytes(message.topic, len(message.payload), qos)
        for due_s in client.downlink.due_times_s(packet_bytes, qos, at_s):
            client.transport.put(due_s, qos, message)


class MemoryTransport:
    """A `Transport` of a `MemoryHub`; made by `MemoryHub.connect`."""

    def __init__(
        self, *, hub: MemoryHub, client_id: str, inbox_limit: int, control_limit: int
    ) -> None:
        """Belong to `hub`, which alone calls `put` and `lose`."""
        self.traffic = Traffic()
        self.connection_count = 0
        self._hub = hub
        self._client_id = client_id
        self._inbox_limit = inbox_limit
        self._control_limit = control_limit
        self._order = itertools.count()
        self._due: list[tuple[float, int, int, Message]] = []  # heap: due_s, order, qos, message
        self._closed = False

    @property
    def connected(self) -> bool:
        """Whether the link is up."""
        return not self._closed and self._hub.is_connected(self._client_id)

    def publish(self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False) -> bool:
        """Hand over a message; see `Transport.publish`."""
        taken = not self._closed and self._hub.publish(
            self._client_id, topic, bytes(payload), qos, retain, self._control_limit
        )
        self.traffic.dropped_outbound += not taken
        return taken

    def receive(self, timeout_s: float | None) -> Message | None:
        """Return the message that is due first, waiting for it; see `Transport.receive`."""
        clock, changed = self._hub.clock, self._hub.changed
        end_s = None if timeout_s is None else clock() + max(timeout_s, 0.0)
        with changed:
            while True:
                now_s = clock()
                if self._due and self._due[0][0] <= now_s:
                    return self._take()
                if self._closed or (end_s is not None and now_s >= end_s):
                    return None
                wake_s = min(
                    [*([] if end_s is None else [end_s]), *(d[0] for d in self._due[:1])],
                    default=None,
                )
                changed.wait(None if wake_s is None else wake_s - now_s)

    def wait_connected(self, timeout_s: float) -> bool:
        """Return whether the link is up within `timeout_s`."""
        with self._hub.changed:
            return self._hub.changed.wait_for(lambda: self.connected or self._closed, timeout_s)

    def close(self) -> None:
        """Leave the hub without a will."""
        self._hub.leave(self._client_id, self)
        with self._hub.changed:
            self._closed = True
            self._hub.changed.notify_all()

    def put(self, due_s: float, qos: int, message: Message) -> None:
        """Take in a message for later; when full, the oldest QoS 0 one makes room."""
        if len(self._due) >= self._inbox_limit:
            hot = [entry for entry in self._due if entry[2] == 0]
            self._due.remove(min(hot or self._due))
            heapq.heapify(self._due)
            self.traffic.dropped_inbound += 1
        heapq.heappush(self._due, (due_s, next(self._order), qos, message))

    def lose(self) -> None:
        """Forget what is on its way; what has arrived stays."""
        now_s = self._hub.clock()
        self._due = [entry for entry in self._due if entry[0] <= now_s]
        heapq.heapify(self._due)

    def _take(self) -> Message:
        _, _, qos, message = heapq.heappop(self._due)
        self.traffic.add_received(message.topic, len(message.payload), qos)
        return message

    def __enter__(self) -> MemoryTransport:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
