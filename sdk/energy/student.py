"""The two-sided 95 % points of Student's t, so that a board needs no statistics library."""

from __future__ import annotations

import math

__all__ = ["t_95"]

# For 1 to 30 degrees of freedom; any table of the distribution.
_TABLE = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
_NORMAL = 1.959964


def t_95(freedom: int) -> float:
    """Return t such that 95 % lie within ±t, for `freedom` degrees; infinite for none."""
    if freedom < 1:
        return math.inf
    if freedom <= len(_TABLE):
        return _TABLE[freedom - 1]
    z = _NORMAL  # the first two terms of the expansion in 1/freedom
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
