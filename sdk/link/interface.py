"""The seam between what can be read of a link and everything that uses it.

A probe hands out readings on the monotonic clock, or None; it never raises, and it knows nothing of
other probes, of fusion and of reports.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

__all__ = [
    "LinkFigures",
    "LinkKind",
    "LinkProbe",
    "LinkReading",
    "Method",
    "NullProbe",
    "ReplayProbe",
]


class Method(str, Enum):
    """How an uplink rate came about; `sdk.link.fusion` knows how far each can be trusted."""

    PUBACK = "puback"  # a message's own transmission time, timed by the broker's acknowledgements
    DELIVERY = "delivery"  # the kernel's delivery rate while the link was saturated
    PROBE = "probe"  # an echo of the server: draft out, verdict back
    EXPECTED_THROUGHPUT = "expected_tput"  # the Wi-Fi driver's own expectation
    PHY = "phy"  # the Wi-Fi bit rate, times what is usually left of it
    SINR = "sinr"  # the cell's signal, times bandwidth: downlink figures, a prior only


class LinkKind(str, Enum):
    """What a link is made of."""

    WIFI = "wifi"
    LTE = "lte"
    NR = "nr"
    ETHERNET = "eth"
    LORA = "lora"


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkFigures:
    """What a probe may see and a report repeats; None is "this source does not say".

    Attributes:
        se_bps_hz, bw_hz: spectral efficiency in bit/s/Hz, and the channel's width.
        retry_ratio: retransmitted frames per frame sent, by the radio.
        airtime_busy: share of time in which the channel is in use by others, in [0, 1].
        rtt_s, rtt_min_s, rtt_var_s: smoothed and least round trip to the broker, mean deviation.
        loss: share of sent bytes that TCP sent again.
        queue_bytes: written by us and not yet sent.
        cap_bps: rate that the socket is held to, if any.
        saturated: whether the connection was busy sending without a cap.
    """

    iface: str | None = None
    kind: LinkKind | None = None
    se_bps_hz: float | None = None
    bw_hz: float | None = None
    rsrp_dbm: float | None = None
    rsrq_db: float | None = None
    sinr_db: float | None = None
    rssi_dbm: float | None = None
    mcs: int | None = None
    nss: int | None = None
    retry_ratio: float | None = None
    airtime_busy: float | None = None
    rtt_s: float | None = None
    rtt_min_s: float | None = None
    rtt_var_s: float | None = None
    loss: float | None = None
    queue_bytes: int | None = None
    cap_bps: float | None = None
    saturated: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkReading(LinkFigures):
    """What one probe saw at one time.

    Attributes:
        at_s: monotonic time.
        rate_bps: uplink rate at full share, in bit/s of TCP payload in full segments.
        method: how that came about.
        deviation: relative standard deviation of `rate_bps`.
    """

    at_s: float
    rate_bps: float | None = None
    method: Method | None = None
    deviation: float = 0.0

    def __post_init__(self) -> None:
        if (self.rate_bps is None) != (self.method is None):
            raise ValueError("a rate and its method go together")
        if self.rate_bps is not None and not (math.isfinite(self.rate_bps) and self.rate_bps > 0.0):
            raise ValueError(f"rate_bps must be finite and above 0, got {self.rate_bps}")
        if not (math.isfinite(self.deviation) and self.deviation >= 0.0):
            raise ValueError(f"deviation must be finite and not negative, got {self.deviation}")


class LinkProbe(Protocol):
    """A source of readings; `period_s` is how often it wants to be asked."""

    name: str
    period_s: float

    def read(self, now_s: float) -> LinkReading | None:
        """Return what can be said now, within a few seconds; never raises."""
        ...

    def close(self) -> None:
        """Let go of sockets and ports; harmless when repeated."""
        ...


class NullProbe:
    """A link of which nothing is known."""

    name = "null"
    period_s = 1.0

    def read(self, now_s: float) -> LinkReading | None:  # noqa: ARG002
        """Return None."""
        return None

    def close(self) -> None:
        """Do nothing."""


class ReplayProbe:
    """Plays recorded readings, one a call, then None."""

    name = "replay"

    def __init__(self, *, readings: Sequence[LinkReading], period_s: float = 1.0) -> None:
        self.period_s = period_s
        self._readings = list(readings)

    def read(self, now_s: float) -> LinkReading | None:  # noqa: ARG002
        """Return the next reading."""
        return self._readings.pop(0) if self._readings else None

    def close(self) -> None:
        """Forget the rest."""
        self._readings.clear()
