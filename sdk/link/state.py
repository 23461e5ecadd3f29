"""What is known of a link: the newest readings and the fused rate, made into reports.

Pure: time is an argument. Knows nothing of threads, probes or transports.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Final

from sdk.link.fusion import RateFilter
from sdk.link.interface import LinkFigures, LinkReading
from sdk.link.report import LinkReport

__all__ = ["LinkState"]

_STALE_S: Final = 15.0  # a source silent for longer is not quoted
_QUOTED: Final = tuple(each.name for each in fields(LinkFigures))


class LinkState:
    """Readings of several sources; where two state the same field, the earlier source wins."""

    def __init__(self, *, device_id: str, sources: tuple[str, ...]) -> None:
        self._device_id = device_id
        self._sources = sources
        self._latest: dict[str, LinkReading] = {}
        self._filter = RateFilter()
        self._seq = 0

    def add(self, source: str, reading: LinkReading) -> None:
        """Take in one reading."""
        self._latest[source] = reading
        if reading.rate_bps is not None and reading.method is not None:
            self._filter.add(
                rate_bps=reading.rate_bps,
                method=reading.method,
                deviation=reading.deviation,
                now_s=reading.at_s,
            )

    def rate_bps(self, now_s: float) -> float | None:
        """Return the fused rate."""
        fused = self._filter.estimate(now_s)
        return fused.rate_bps if fused else None

    def report(self, now_s: float) -> LinkReport:
        """Return the next report."""
        quoted = self._quoted(now_s)
        fused = self._filter.estimate(now_s)
        if fused:
            quoted |= {
                "uplink_bps": fused.rate_bps,
                "uplink_sd_bps": fused.rate_sd_bps,
                "uplink_bps_lo": fused.rate_lo_bps,
                "method": fused.method,
                "age_ms": round(fused.age_s * 1e3),
                "n": fused.count,
                "confidence": fused.confidence,
            }
            if quoted.get("bw_hz"):
                quoted["se_bps_hz"] = fused.rate_bps / quoted["bw_hz"]
        self._seq += 1
        return LinkReport(
            device=self._device_id, t_ms=round(now_s * 1e3), seq=self._seq - 1, **quoted
        )

    def _quoted(self, now_s: float) -> dict[str, Any]:
        quoted: dict[str, Any] = {}
        for source in self._sources:
            reading = self._latest.get(source)
            if reading is None or now_s - reading.at_s > _STALE_S:
                continue
            for name in _QUOTED:
                value = getattr(reading, name)
                if value is not None and name not in quoted:
                    quoted[name] = value
        return quoted
