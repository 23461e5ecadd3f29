"""The uplink's rate from a message's own transmission time, timed by the broker's PUBACKs.

Two messages go out back to back, a primer of one segment and a body of a few. The primer wakes the
radio and empties whatever burst allowance lies on the path; the time from its PUBACK to the body's
is the body's transmission time, the round trip cancels, and no clock but ours is involved.
"""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from sdk.config import BrokerConfig
from sdk.errors import ConfigError, TransportError
from sdk.link.ack_connection import AckConnection
from sdk.link.airtime import AirtimeBudget
from sdk.link.interface import LinkReading, Method
from sdk.link.wire_cost import HEADER_BYTES, SEGMENT_BYTES
from sdk.protocol.topics import up

__all__ = ["PubackProbe", "TrainPlan"]

_LOG = logging.getLogger(__name__)

_LEAST_TX_S: Final = 0.005  # shorter, and a scheduler's jitter is what is measured
_WANTED_TX_S: Final = 0.009
_FIRST_RATE_BPS: Final = 1e6  # nothing known: start small, grow fourfold
_GROWTH: Final = 4.0
_MOST_SEGMENTS: Final = 40  # 58 kB: within a broker's packet limit
_SURPRISE: Final = math.log(1.35)
_RETRY_S: Final = 5.0
_LEAST_ACK_S: Final = 2.0
_JITTER_WINDOW: Final = 9
_TRAIN_ACKS: Final = 4  # our own ACKs of PUBACKs, at least a header each


class TrainPlan:
    """How many segments the next body has, learnt from the last ones. Pure.

    A body must take at least 5 ms; one that did not was too small, and says only that the link is
    faster than that.
    """

    def __init__(self) -> None:
        self._guess_bps = _FIRST_RATE_BPS

    def segments(self, *, window: int) -> int:
        """Return the body's segments: about 9 ms worth, and with the primer within the window."""
        wanted = math.ceil(_WANTED_TX_S * self._guess_bps / (8 * SEGMENT_BYTES))
        return max(1, min(wanted, _MOST_SEGMENTS, window - 1))

    def learn(self, *, segments: int, tx_s: float) -> float | None:
        """Take in a train's outcome; return the rate in bit/s, or None if it was too short."""
        payload_bits = 8.0 * segments * SEGMENT_BYTES
        if tx_s < _LEAST_TX_S:
            self._guess_bps = max(self._guess_bps, min(payload_bits * _GROWTH / _LEAST_TX_S, 1e9))
            return None
        self._guess_bps = payload_bits / tx_s
        return self._guess_bps


class PubackProbe:
    """Sends a train now and then, within 0.8 % of the airtime, on a connection of its own."""

    name = "puback"
    period_s = 0.05

    def __init__(
        self,
        *,
        broker: BrokerConfig,
        device_id: str,
        share: float = 0.008,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare; connects with the first reading, and again whenever the connection is lost.

        Args:
            broker: where the trains go; nobody needs to listen.
            device_id: whose topic `up/probe` they go to.
            share: of the link's airtime that may be spent, in (0, 1).
            clock: monotonic seconds, the one that `read` is called with.

        Raises:
            ConfigError: if the id is not one.
        """
        self._broker = broker
        self._topic = up(device_id, "probe")
        self._clock = clock
        self._plan = TrainPlan()
        self._budget = AirtimeBudget(share=share, now_s=clock())
        self._connection: AckConnection | None = None
        self._retry_at_s = -math.inf
        self._last_bps: float | None = None
        self._round_trips_s: deque[float] = deque(maxlen=_JITTER_WINDOW)
        self.sent_wire_bytes = 0
        """Bytes that trains put on the uplink so far, headers and ACKs included."""

    def read(self, now_s: float) -> LinkReading | None:
        """Return the rate by a new train, if one is due and its body was long enough to time."""
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
            self._connection = AckConnection(broker=self._broker, clock=self._clock)
        self._connection.keep_alive()
        info = self._connection.info()
        segments = self._plan.segments(window=info.snd_cwnd if info else 10)
        sent_s, (primer_s, body_s) = self._connection.time_train(
            self._topic,
            (SEGMENT_BYTES, segments * SEGMENT_BYTES),
            timeout_s=self._ack_timeout_s(segments),
        )
        tx_s = body_s - primer_s
        rate_bps = self._plan.learn(segments=segments, tx_s=tx_s)
        self._charge(segments, rate_bps, tx_s)
        if rate_bps is None:
            return None
        segment_s = tx_s / segments
        self._round_trips_s.append(max(0.0, primer_s - sent_s - segment_s))
        return LinkReading(
            at_s=body_s,
            rate_bps=rate_bps,
            method=Method.PUBACK,
            deviation=self._jitter_s() / tx_s,
            rtt_s=statistics.median(self._round_trips_s),
            rtt_min_s=min(self._round_trips_s),
            rtt_var_s=self._jitter_s(),
        )

    def _charge(self, segments: int, rate_bps: float | None, tx_s: float) -> None:
        """Pay for a train, and ask for another where the link seems to have changed."""
        wire_bytes = (1 + segments) * (SEGMENT_BYTES + HEADER_BYTES) + _TRAIN_ACKS * HEADER_BYTES
        self.sent_wire_bytes += wire_bytes
        airtime_s = wire_bytes / (segments * (SEGMENT_BYTES + HEADER_BYTES)) * max(tx_s, 1e-4)
        before, self._last_bps = self._last_bps, rate_bps or self._last_bps
        changed = bool(before and rate_bps and abs(math.log(rate_bps / before)) > _SURPRISE)
        self._budget.spend(airtime_s, now_s=self._clock(), confirm=changed)

    def _jitter_s(self) -> float:
        """Return the round trips' median deviation from their median."""
        middle = statistics.median(self._round_trips_s)
        return statistics.median(abs(each - middle) for each in self._round_trips_s)

    def _ack_timeout_s(self, segments: int) -> float:
        """Allow the link to have become ten times slower."""
        usual_s = 8.0 * segments * SEGMENT_BYTES / (self._last_bps or _FIRST_RATE_BPS)
        return max(_LEAST_ACK_S, 10.0 * usual_s)
