"""The way to the server and back: drafts out, verdicts in, less what the server spent in between.

The session's own rounds are the echo, so it costs no traffic. `SizeDifferential` is pure.
"""

from __future__ import annotations

import statistics
import threading
from collections import deque
from typing import Final

from sdk.link.interface import LinkReading, Method
from sdk.link.wire_cost import wire_cost_bytes

__all__ = ["EchoProbe", "SizeDifferential"]

_WINDOW_S: Final = 20.0
_LEAST_TX_S: Final = 0.005  # shorter, and jitter is what is measured
_SMALL_BYTES: Final = 512
_MOST_SAMPLES: Final = 64


class SizeDifferential:
    """The rate from how much later large messages are answered than the quickest small one.

    R = 8·(size - base size) / (round trip - base round trip), with the base the quickest small
    message of the last 20 s.
    """

    def __init__(self) -> None:
        self._small: deque[tuple[float, float, int]] = deque(maxlen=_MOST_SAMPLES)

    def add(self, *, size_bytes: int, round_trip_s: float, now_s: float) -> float | None:
        """Take in one exchange; return the rate in bit/s if this one was large enough to tell.

        Args:
            size_bytes: of the message that went out, a whole packet.
            round_trip_s: until its answer, without the answerer's own time.
            now_s: when the answer came.
        """
        if size_bytes <= _SMALL_BYTES:
            self._small.append((now_s, round_trip_s, size_bytes))
            return None
        recent = [each for each in self._small if now_s - each[0] <= _WINDOW_S]
        if not recent:
            return None
        _, base_s, base_bytes = min(recent, key=lambda each: each[1])
        tx_s = round_trip_s - base_s
        if tx_s < _LEAST_TX_S:
            return None
        return 8.0 * (wire_cost_bytes(size_bytes) - wire_cost_bytes(base_bytes)) / tx_s


class EchoProbe:
    """Reports what `observe` was told of since the last reading; safe across threads."""

    name = "echo"
    period_s = 0.5

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._differential = SizeDifferential()
        self._round_trips_s: deque[float] = deque(maxlen=_MOST_SAMPLES)
        self._rate_bps: float | None = None
        self._fresh_at_s: float | None = None

    def observe(
        self, *, size_bytes: int, round_trip_s: float, server_s: float, now_s: float
    ) -> None:
        """Take in one draft and its verdict; not of a repeated round, whose answer is ambiguous.

        Args:
            size_bytes: of the draft's packet.
            round_trip_s: from handing the draft over to receiving the verdict.
            server_s: what the verdict says of queue and compute time.
            now_s: when the verdict came, on the clock of the readings.
        """
        network_s = round_trip_s - server_s
        if not network_s > 0.0:
            return
        with self._lock:
            self._round_trips_s.append(network_s)
            self._fresh_at_s = now_s
            rate_bps = self._differential.add(
                size_bytes=size_bytes, round_trip_s=network_s, now_s=now_s
            )
            self._rate_bps = rate_bps or self._rate_bps

    def read(self, now_s: float) -> LinkReading | None:  # noqa: ARG002 - readings are dated by observe
        """Return round trips to the server, and the rate if a large draft told it."""
        with self._lock:
            if self._fresh_at_s is None:
                return None
            at_s, rate_bps = self._fresh_at_s, self._rate_bps
            self._fresh_at_s = self._rate_bps = None
            middle_s = statistics.median(self._round_trips_s)
            spread_s = statistics.median(abs(each - middle_s) for each in self._round_trips_s)
            return LinkReading(
                at_s=at_s,
                rate_bps=rate_bps,
                method=Method.PROBE if rate_bps else None,
                deviation=0.2 if rate_bps else 0.0,
                rtt_s=middle_s,
                rtt_min_s=min(self._round_trips_s),
                rtt_var_s=spread_s,
            )

    def close(self) -> None:
        """Do nothing."""
