"""Room for keys and values: one pool of token places, handed out in unbroken segments.

Pure bookkeeping, planned once at the start. Knows nothing of torch: places are integers.
"""

from __future__ import annotations

from dataclasses import dataclass

from sdk.errors import CapacityError

__all__ = ["Segment", "Segments", "Span"]


@dataclass(frozen=True, slots=True)
class Span:
    """One sequence's part of a pass.

    Attributes:
        place: where its segment starts in the pool.
        past: tokens that the segment holds already.
        rows: new tokens, at least 1.
    """

    place: int
    past: int
    rows: int

    @property
    def length(self) -> int:
        """Tokens that the segment holds after the pass."""
        return self.past + self.rows


@dataclass(slots=True)
class Segment:
    """One sequence's places in the pool: [start, start + capacity), of which `length` are filled.

    Rollback lowers `length`.
    """

    start: int
    capacity: int
    length: int = 0

    @property
    def end(self) -> int:
        """The first place behind the segment."""
        return self.start + self.capacity

    def span(self, rows: int) -> Span:
        """Return the part of a pass in which `rows` tokens are appended."""
        return Span(self.start, self.length, rows)


class Segments:
    """Hand out and take back segments of a pool of `total` places; first fit."""

    def __init__(self, *, total: int) -> None:
        if total < 1:
            raise ValueError(f"a pool needs at least 1 place, got {total}")
        self.total = total
        self._taken: list[Segment] = []  # ascending, disjoint

    @property
    def in_use(self) -> int:
        """Places that are handed out."""
        return sum(segment.capacity for segment in self._taken)

    def take(self, capacity: int) -> Segment:
        """Return a segment of `capacity` places.

        Raises:
            CapacityError: if no gap is long enough.
            ValueError: if `capacity` is below 1.
        """
        if capacity < 1:
            raise ValueError(f"a segment needs at least 1 place, got {capacity}")
        start = 0
        for index, taken in enumerate([*self._taken, Segment(self.total, 0)]):
            if taken.start - start >= capacity:
                segment = Segment(start, capacity)
                self._taken.insert(index, segment)
                return segment
            start = taken.end
        raise CapacityError(
            f"{capacity} tokens do not fit ({self.in_use} of {self.total} are reserved); "
            "ask for fewer tokens or try again later"
        )

    def give_back(self, segment: Segment) -> None:
        """Free a segment that `take` returned."""
        self._taken = [taken for taken in self._taken if taken is not segment]
