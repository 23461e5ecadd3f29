"""What a board tells the server of its link: one record, its JSON and that JSON's schema.

Knows nothing of probes, clocks or transports. `docs/link.md` explains every field.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from sdk.link.interface import LinkFigures, LinkKind, Method

__all__ = ["REPORT_SCHEMA", "REPORT_VERSION", "LinkReport"]

REPORT_VERSION: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkReport(LinkFigures):
    """The state of a link at one time; None is "not known".

    Attributes:
        t_ms: the board's monotonic clock; never compare it with another machine's.
        seq: grows by one with every report of one reporter.
        uplink_bps: bit/s of TCP payload that this board would get with the whole uplink.
        uplink_sd_bps: its standard deviation.
        uplink_bps_lo: its tenth percentile.
        age_ms: since the newest reading behind `uplink_bps`.
        n: readings behind `uplink_bps`.
        confidence: probability that `uplink_bps` is within 15 % of the truth, by its own model.

    `rtt_s` and its kin are `rtt_ms` in the JSON.
    """

    device: str
    t_ms: int
    seq: int
    uplink_bps: float | None = None
    uplink_sd_bps: float | None = None
    uplink_bps_lo: float | None = None
    method: Method | None = None
    age_ms: int | None = None
    n: int = 0
    confidence: float = 0.0

    def to_json(self) -> str:
        """Return compact JSON that fits `REPORT_SCHEMA`."""
        return json.dumps(self.to_dict(), separators=(",", ":"), allow_nan=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object; rates in whole bit/s, everything else rounded to be short."""
        return {
            "v": REPORT_VERSION,
            "device": self.device,
            "t_ms": self.t_ms,
            "seq": self.seq,
            "iface": self.iface,
            "kind": self.kind.value if self.kind else None,
            "uplink_bps": _round(self.uplink_bps, 0),
            "uplink_sd_bps": _round(self.uplink_sd_bps, 0),
            "uplink_bps_lo": _round(self.uplink_bps_lo, 0),
            "method": self.method.value if self.method else None,
            "age_ms": self.age_ms,
            "se_bps_hz": _round(self.se_bps_hz, 3),
            "bw_hz": _round(self.bw_hz, 0),
            "rsrp_dbm": _round(self.rsrp_dbm, 1),
            "rsrq_db": _round(self.rsrq_db, 1),
            "sinr_db": _round(self.sinr_db, 1),
            "rssi_dbm": _round(self.rssi_dbm, 1),
            "mcs": self.mcs,
            "nss": self.nss,
            "retry_ratio": _round(self.retry_ratio, 4),
            "airtime_busy": _round(self.airtime_busy, 4),
            "rtt_ms": {
                "srtt": _milliseconds(self.rtt_s),
                "min": _milliseconds(self.rtt_min_s),
                "var": _milliseconds(self.rtt_var_s),
            },
            "loss": _round(self.loss, 5),
            "queue_bytes": self.queue_bytes,
            "cap_bps": _round(self.cap_bps, 0),
            "saturated": self.saturated,
            "n": self.n,
            "confidence": _round(self.confidence, 3),
        }


def _round(value: float | None, digits: int) -> float | int | None:
    if value is None:
        return None
    return round(value, digits) if digits else round(value)


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 3)


def _or_null(kind: str, **bounds: float) -> dict[str, Any]:
    return {"type": [kind, "null"], **bounds}


_PROPERTIES: Final[dict[str, Any]] = {
    "v": {"const": REPORT_VERSION},
    "device": {"type": "string", "minLength": 1, "maxLength": 32},
    "t_ms": {"type": "integer", "minimum": 0},
    "seq": {"type": "integer", "minimum": 0},
    "iface": _or_null("string"),
    "kind": {"enum": [*(kind.value for kind in LinkKind), None]},
    "uplink_bps": _or_null("integer", minimum=0),
    "uplink_sd_bps": _or_null("integer", minimum=0),
    "uplink_bps_lo": _or_null("integer", minimum=0),
    "method": {"enum": [*(method.value for method in Method), None]},
    "age_ms": _or_null("integer", minimum=0),
    "se_bps_hz": _or_null("number", minimum=0),
    "bw_hz": _or_null("integer", minimum=0),
    "rsrp_dbm": _or_null("number"),
    "rsrq_db": _or_null("number"),
    "sinr_db": _or_null("number"),
    "rssi_dbm": _or_null("number"),
    "mcs": _or_null("integer", minimum=0),
    "nss": _or_null("integer", minimum=0),
    "retry_ratio": _or_null("number", minimum=0),
    "airtime_busy": _or_null("number", minimum=0, maximum=1),
    "rtt_ms": {
        "type": "object",
        "properties": {name: _or_null("number", minimum=0) for name in ("srtt", "min", "var")},
        "required": ["srtt", "min", "var"],
        "additionalProperties": False,
    },
    "loss": _or_null("number", minimum=0),
    "queue_bytes": _or_null("integer", minimum=0),
    "cap_bps": _or_null("integer", minimum=0),
    "saturated": _or_null("boolean"),
    "n": {"type": "integer", "minimum": 0},
    "confidence": {"type": "number", "minimum": 0, "maximum": 1},
}

REPORT_SCHEMA: Final[dict[str, Any]] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Link report of a Multi-SPIN board",
    "type": "object",
    "properties": _PROPERTIES,
    "required": sorted(_PROPERTIES),
    "additionalProperties": False,
}
"""JSON Schema (draft 2020-12) of version `REPORT_VERSION`."""
