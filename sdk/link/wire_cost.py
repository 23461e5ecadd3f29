"""What a packet costs on the wire, in the unit of uplink rates and grants.

The unit is a byte of TCP payload in full segments: what a large message gets through. A link that
carries 8 Mbit/s of Ethernet frames has 7.65 Mbit/s in this unit.
"""

from __future__ import annotations

from typing import Final

__all__ = ["HEADER_BYTES", "SEGMENT_BYTES", "wire_cost_bytes"]

SEGMENT_BYTES: Final = 1448
"""TCP payload of a full segment: 1,500 less IPv4, TCP and its time stamps."""

HEADER_BYTES: Final = 66
"""Headers of every segment: Ethernet 14, IPv4 20, TCP 20, time stamps 12."""


def wire_cost_bytes(packet_bytes: int) -> int:
    """Return the cost of a packet of so many bytes of TCP payload.

    A full segment's headers are part of the unit, hence free; what a last, shorter segment wastes
    is charged on top.

    >>> wire_cost_bytes(14_480), wire_cost_bytes(90)
    (14480, 149)
    """
    rest = packet_bytes % SEGMENT_BYTES
    wasted = HEADER_BYTES * (SEGMENT_BYTES - rest) / (SEGMENT_BYTES + HEADER_BYTES)
    return packet_bytes + (round(wasted) if rest else 0)
