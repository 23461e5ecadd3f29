"""A bounded queue from the network's thread to the reader."""

from __future__ import annotations

import threading
from collections import deque

from sdk.transport.interface import Message

__all__ = ["Inbox"]


class Inbox:
    """First in, first out. Drop rule when full: the oldest QoS 0 message, else the oldest at all.

    What is hot and QoS 0 is worth least when it is old, and its sender repeats it; the network's
    thread never waits for a slow reader.
    """

    def __init__(self, *, limit: int) -> None:
        """Hold at most `limit` messages, at least one."""
        if limit < 1:
            raise ValueError(f"an inbox holds at least one message, got {limit}")
        self._limit = limit
        self._entries: deque[tuple[int, Message]] = deque()
        self._filled = threading.Condition()
        self._closed = False

    def put(self, message: Message, qos: int) -> bool:
        """Add a message and return whether there was room, that is, whether none was dropped."""
        with self._filled:
            full = len(self._entries) >= self._limit
            if full:
                self._drop_one()
            self._entries.append((qos, message))
            self._filled.notify()
        return not full

    def get(self, timeout_s: float | None) -> Message | None:
        """Return the oldest message, waiting for one; None when the time is up or on closing."""
        if timeout_s is not None and timeout_s <= 0 and not self._entries:
            return None  # polled between two drafted tokens: no lock
        with self._filled:
            self._filled.wait_for(lambda: self._entries or self._closed, timeout_s)
            return self._entries.popleft()[1] if self._entries else None

    def close(self) -> None:
        """Let every reader go, now and later, once the inbox is empty."""
        with self._filled:
            self._closed = True
            self._filled.notify_all()

    def _drop_one(self) -> None:
        oldest = next((i for i, (qos, _) in enumerate(self._entries) if qos == 0), 0)
        del self._entries[oldest]
