"""Link quality on the board: probes, the fused uplink rate, reports, and pacing of a grant.

Knows nothing of drafts, tokens and sessions.
"""

from __future__ import annotations

from sdk.link.echo import EchoProbe
from sdk.link.interface import LinkKind, LinkProbe, LinkReading, Method
from sdk.link.pacing import PacedTransport
from sdk.link.probes import available_probes
from sdk.link.report import REPORT_SCHEMA, REPORT_VERSION, LinkReport
from sdk.link.reporter import LinkReporter

__all__ = [
    "REPORT_SCHEMA",
    "REPORT_VERSION",
    "EchoProbe",
    "LinkKind",
    "LinkProbe",
    "LinkReading",
    "LinkReport",
    "LinkReporter",
    "Method",
    "PacedTransport",
    "available_probes",
]
