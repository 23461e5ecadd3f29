"""A segment's transmission time, out of when each message of a train was acknowledged. Pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Final, NamedTuple

from sdk.link.wire_cost import SEGMENT_BYTES

__all__ = ["Spacing", "TrainPlan", "spacing_of"]

LEAST_TX_S: Final = 0.005  # shorter, and a scheduler's jitter is what is measured
_WANTED_TX_S: Final = 0.009
_FIRST_RATE_BPS: Final = 4e6  # nothing known: small, and still enough points to see late ones
_MOST_RATE_BPS: Final = 1e9
_GROWTH: Final = 3.0  # of one train over the last; a late primer must not cost a fortune
_LEAST_SEGMENTS: Final = 2  # with the primer three points: the least that shows a late one
_MOST_SEGMENTS: Final = 40  # what a train may put into a queue on its way


class Spacing(NamedTuple):
    """Seconds from one acknowledgement to the next, and how late the average one was."""

    per_segment_s: float
    lateness_s: float


def spacing_of(times_s: Sequence[float]) -> Spacing:
    """Return the slope of the line beneath equally spaced points, of which none is early.

    An acknowledgement may be late, by a busy broker or a busy board, but never early. So the points
    lie on or above the line that is wanted, and the edge of their lower convex hull below the
    middle point is its most likely place (the argument of clock skew estimation: Moon, Skelly and
    Towsley, INFOCOM 1999).

    Raises:
        ValueError: with fewer than two points.
    """
    if len(times_s) < 2:
        raise ValueError("a spacing needs at least two acknowledgements")
    hull: list[int] = []
    for index, time_s in enumerate(times_s):
        while len(hull) >= 2 and not _turns_up(times_s, hull[-2], hull[-1], index, time_s):
            hull.pop()
        hull.append(index)
    middle = (len(times_s) - 1) / 2
    left, right = next(edge for edge in itertools.pairwise(hull) if edge[1] >= middle)
    slope_s = (times_s[right] - times_s[left]) / (right - left)
    line = [times_s[left] + slope_s * (index - left) for index in range(len(times_s))]
    late_s = sum(max(0.0, time_s - on) for time_s, on in zip(times_s, line, strict=True))
    return Spacing(slope_s, late_s / len(times_s))


def _turns_up(times_s: Sequence[float], a: int, b: int, c: int, time_s: float) -> bool:
    return (times_s[b] - times_s[a]) * (c - b) < (time_s - times_s[b]) * (b - a)


class TrainPlan:
    """How many segments the next train has behind its primer, learnt from the last ones.

    They must take at least 5 ms together; those that did not were too few, and say only that the
    link is faster than that.
    """

    def __init__(self) -> None:
        self._guess_bps = _FIRST_RATE_BPS

    def segments(self, *, window: int) -> int:
        """Return how many: about 9 ms worth, and with the primer within the sender's window."""
        wanted = math.ceil(_WANTED_TX_S * self._guess_bps / (8 * SEGMENT_BYTES))
        return max(_LEAST_SEGMENTS, min(wanted, _MOST_SEGMENTS, window - 1))

    def learn(self, *, segments: int, per_segment_s: float) -> float | None:
        """Take in a train's outcome; return the rate in bit/s, or None if it was too short."""
        seen_bps = 8.0 * SEGMENT_BYTES / max(per_segment_s, 1e-9)
        if segments * per_segment_s < LEAST_TX_S:
            self._guess_bps = min(seen_bps, self._guess_bps * _GROWTH, _MOST_RATE_BPS)
            return None
        self._guess_bps = seen_bps
        return seen_bps
