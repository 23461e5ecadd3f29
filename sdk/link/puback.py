"""The uplink's rate from messages' own transmission time, timed by the broker's PUBACKs.

A train of messages goes out back to back, each exactly one segment. The first, the primer, wakes
the radio and empties whatever burst allowance lies on the path; the spacing of the acknowledgements
is then a segment's transmission time. The round trip cancels, and no clock but ours is involved.
The broker must acknowledge each message at once, as mosquitto does with `set_tcp_nodelay true`
(ours has it). One that waits (Nagle's algorithm) is found out at the start and not measured by.
"""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from sdk.config import BrokerConfig
from sdk.errors import ConfigError, TransportError
from sdk.link.ack_connection import AckConnection
from sdk.link.airtime import AirtimeBudget
from sdk.link.interface import LinkReading, Method
from sdk.link.tcp_info import TcpInfo
from sdk.link.train import Spacing, TrainPlan, spacing_of
from sdk.link.wire_cost import HEADER_BYTES, SEGMENT_BYTES
from sdk.protocol.topics import up

__all__ = ["PubackProbe", "TrainTimer"]

_LOG = logging.getLogger(__name__)

_INITIAL_WINDOW: Final = 10  # segments (RFC 6928), where the kernel does not say
_SURPRISE: Final = math.log(1.35)
_RETRY_S: Final = 5.0
_ACK_TIMEOUT_S: Final = 2.0
_SLOWEST_BPS: Final = 100e3  # a train on a link this slow must still be acknowledged in time
_WINDOW: Final = 9  # round trips remembered
_PAIRS: Final = 3
_SMALL_BYTES: Final = 72  # two of them in one segment
_NAGLE_SHARE: Final = 0.5  # of a round trip, between two acknowledgements of one segment


class TrainTimer(Protocol):
    """What a train is sent over: an `AckConnection`, or a model of a link."""

    def info(self) -> TcpInfo | None:
        """Return the kernel's view of the connection, if there is a kernel."""
        ...

    def time_train(
        self, topic: str, sizes: Sequence[int], *, timeout_s: float
    ) -> tuple[float, list[float]]:
        """Send packets of `sizes` bytes back to back; see `AckConnection.time_train`."""
        ...

    def close(self) -> None:
        """Let go of it; harmless when repeated."""
        ...


class PubackProbe:
    """Sends a train now and then, within 0.75 % of the airtime, on a connection of its own."""

    name = "puback"
    period_s = 0.05

    def __init__(
        self,
        *,
        broker: BrokerConfig,
        device_id: str,
        share: float = 0.0075,
        clock: Callable[[], float] = time.monotonic,
        connect: Callable[[], TrainTimer] | None = None,
    ) -> None:
        """Prepare; connects with the first reading, and again whenever the connection is lost.

        Args:
            broker: where the trains go; nobody needs to listen.
            device_id: whose topic `up/probe` they go to.
            share: of the link's airtime that may be spent, in (0, 1).
            clock: monotonic seconds, the one that `read` is called with.
            connect: in place of a new `AckConnection` to the broker.

        Raises:
            ConfigError: if the id is not one.
        """
        self._connect = connect or (lambda: AckConnection(broker=broker, clock=clock))
        self._topic = up(device_id, "probe")
        self._clock = clock
        self._plan = TrainPlan()
        self._budget = AirtimeBudget(share=share, now_s=clock())
        self._connection: TrainTimer | None = None
        self._retry_at_s = -math.inf
        self._last_bps: float | None = None
        self._round_trips_s: deque[float] = deque(maxlen=_WINDOW)
        self.sent_wire_bytes = 0
        """Bytes that trains put on the uplink so far, headers and our own ACKs included."""

    def read(self, now_s: float) -> LinkReading | None:
        """Return the rate by a new train, if one is due and was long enough to time."""
        if now_s < self._retry_at_s or not self._budget.is_due(now_s):
            return None
        try:
            return self._measure()
        except (TransportError, ConfigError) as error:
            _LOG.debug("link: %s", error)
            self.close()
            self._retry_at_s = self._clock() + _RETRY_S
            return None

    def close(self) -> None:
        """Leave the broker; harmless when repeated."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _measure(self) -> LinkReading | None:
        if self._connection is None:
            self._connection = self._connect()
            self._check_promptness(self._connection)
        info = self._connection.info()
        segments = self._plan.segments(window=info.snd_cwnd if info else _INITIAL_WINDOW)
        messages = 1 + segments
        sent_s, acknowledged_s = self._connection.time_train(
            self._topic,
            [SEGMENT_BYTES] * messages,
            timeout_s=_ACK_TIMEOUT_S + 8 * SEGMENT_BYTES * messages / _SLOWEST_BPS,
        )
        spacing = spacing_of(acknowledged_s)
        rate_bps = self._plan.learn(segments=segments, per_segment_s=spacing.per_segment_s)
        self._charge(segments, spacing, believed=rate_bps is not None)
        if rate_bps is None:
            return None
        self._round_trips_s.append(max(0.0, acknowledged_s[0] - sent_s - spacing.per_segment_s))
        return self._reading(acknowledged_s[-1], rate_bps, spacing, segments)

    def _check_promptness(self, connection: TrainTimer) -> None:
        """See that a second acknowledgement does not wait for ours of the first.

        Raises:
            TransportError: if it does, or none comes.
        """
        gaps = []
        for _ in range(_PAIRS):
            sent_s, (first_s, second_s) = connection.time_train(
                self._topic, [_SMALL_BYTES] * 2, timeout_s=_ACK_TIMEOUT_S
            )
            self.sent_wire_bytes += 2 * _SMALL_BYTES + 3 * HEADER_BYTES
            gaps.append((second_s - first_s) / max(first_s - sent_s, 1e-6))
        if min(gaps) > _NAGLE_SHARE:
            raise TransportError(
                "the broker holds acknowledgements back: set_tcp_nodelay true in mosquitto.conf"
            )

    def _reading(
        self, at_s: float, rate_bps: float, spacing: Spacing, segments: int
    ) -> LinkReading:
        jitter_s = _median_deviation(self._round_trips_s)
        # One late acknowledgement among many hardly moves the line beneath them.
        doubt_s = max(jitter_s, spacing.lateness_s) / (1 + segments)
        return LinkReading(
            at_s=at_s,
            rate_bps=rate_bps,
            method=Method.PUBACK,
            deviation=doubt_s / (segments * spacing.per_segment_s),
            rtt_s=statistics.median(self._round_trips_s),
            rtt_min_s=min(self._round_trips_s),
            rtt_var_s=jitter_s,
        )

    def _charge(self, segments: int, spacing: Spacing, *, believed: bool) -> None:
        """Pay for a train, and ask for another where the link seems to have changed."""
        messages, segment_bytes = 1 + segments, SEGMENT_BYTES + HEADER_BYTES
        wire_bytes = messages * (segment_bytes + HEADER_BYTES)  # at most one ACK a PUBACK
        self.sent_wire_bytes += wire_bytes
        segment_s = max(spacing.per_segment_s, 1e-9)
        seen_bps = 8.0 * SEGMENT_BYTES / segment_s
        last_bps = self._last_bps
        changed = last_bps is not None and abs(math.log(seen_bps / last_bps)) > _SURPRISE
        if believed:
            self._last_bps = seen_bps
        self._budget.spend(
            wire_bytes / segment_bytes * segment_s, now_s=self._clock(), confirm=changed
        )


def _median_deviation(values: deque[float]) -> float:
    middle = statistics.median(values)
    return statistics.median(abs(value - middle) for value in values)
