"""What is known of the testbed, because it was built so. No I/O."""

from __future__ import annotations

from edge_server.scheduler.cell import VerifyCost

__all__ = [
    "BOARDS",
    "DRAFT_S",
    "MAX_LENGTH",
    "PORT",
    "RATES_MBPS",
    "SUPPORT",
    "VERIFY",
    "WEIGHT_BITS",
]

PORT = 1883
SUPPORT, WEIGHT_BITS = 1024, 16  # as in the paper: some 28 kbit uploaded with every token
MAX_LENGTH = 8
BOARDS = ("board-1", "board-2", "board-3")
RATES_MBPS = (1.0, 4.0, 16.0)
DRAFT_S = (0.020, 0.025, 0.030)
VERIFY = VerifyCost(fixed_s=0.100, per_request_s=0.004, per_row_s=0.001)
