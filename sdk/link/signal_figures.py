"""What a modem says of its signal, and which rate that suggests. Pure.

Figures that cannot be are dropped one by one; so a misread line yields nothing rather than a lie.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from sdk.link.interface import LinkKind, LinkReading, Method

__all__ = ["CellSignal", "plausible", "spectral_efficiency"]

_BOUNDS: Final = {
    "rsrp_dbm": (-157.0, -31.0),  # 3GPP 38.133 10.1.6.1: reportable range of SS-RSRP
    "rsrq_db": (-43.5, 20.0),
    "sinr_db": (-23.5, 40.0),
    "rssi_dbm": (-125.0, -20.0),
}
# 3GPP TR 36.942 A.2: Shannon, attenuated and capped; the uplink's figures.
_ATTENUATION: Final = 0.4
_MOST_BPS_HZ: Final = 2.0
_LEAST_SINR_DB: Final = -10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CellSignal:
    """One serving cell's signal; None is "the modem does not say".

    Attributes:
        bw_hz: uplink width where the modem tells it, else the downlink's.
    """

    kind: LinkKind | None = None
    rsrp_dbm: float | None = None
    rsrq_db: float | None = None
    sinr_db: float | None = None
    rssi_dbm: float | None = None
    bw_hz: float | None = None

    @property
    def empty(self) -> bool:
        """Whether it holds no figure at all."""
        figures = (self.rsrp_dbm, self.rsrq_db, self.sinr_db, self.rssi_dbm)
        return all(value is None for value in figures)

    def over(self, other: CellSignal) -> CellSignal:
        """Return this signal, with what it does not say taken from another of the same kind."""
        if self.kind is not None and other.kind is not None and self.kind is not other.kind:
            return self
        return CellSignal(
            kind=self.kind or other.kind,
            rsrp_dbm=_first(self.rsrp_dbm, other.rsrp_dbm),
            rsrq_db=_first(self.rsrq_db, other.rsrq_db),
            sinr_db=_first(self.sinr_db, other.sinr_db),
            rssi_dbm=_first(self.rssi_dbm, other.rssi_dbm),
            bw_hz=_first(self.bw_hz, other.bw_hz),
        )

    def reading(self, now_s: float) -> LinkReading:
        """Return it as a reading, with a prior of the rate where SINR and width are known."""
        efficiency = None if self.sinr_db is None else spectral_efficiency(self.sinr_db)
        rate_bps = efficiency * self.bw_hz if efficiency and self.bw_hz else None
        return LinkReading(
            at_s=now_s,
            kind=self.kind,
            rate_bps=rate_bps,
            method=Method.SINR if rate_bps else None,
            deviation=0.7 if rate_bps else 0.0,
            se_bps_hz=efficiency,
            bw_hz=self.bw_hz,
            rsrp_dbm=self.rsrp_dbm,
            rsrq_db=self.rsrq_db,
            sinr_db=self.sinr_db,
            rssi_dbm=self.rssi_dbm,
        )


def plausible(name: str, value: float | None) -> float | None:
    """Return a figure of `CellSignal` if it can be one, else None."""
    low, high = _BOUNDS[name]
    return value if value is not None and low <= value <= high else None


def spectral_efficiency(sinr_db: float) -> float:
    """Return bit/s/Hz of an LTE uplink at this SINR (3GPP TR 36.942, annex A.2)."""
    if sinr_db < _LEAST_SINR_DB:
        return 0.0
    return min(_ATTENUATION * math.log2(1.0 + 10.0 ** (sinr_db / 10.0)), _MOST_BPS_HZ)


def _first(ours: float | None, theirs: float | None) -> float | None:
    return theirs if ours is None else ours
