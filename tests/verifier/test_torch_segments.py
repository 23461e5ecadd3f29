"""Segments never overlap, never leave the pool, and come back whole."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_server.verifier.torch_segments import Segment, Segments
from sdk.errors import CapacityError


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 5)), max_size=60))
def test_segments_are_disjoint_and_inside(moves: list[tuple[int, int]]) -> None:
    segments, held = Segments(total=100), list[Segment]()
    for capacity, drop in moves:
        if drop == 0 and held:
            segments.give_back(held.pop(len(held) // 2))
        try:
            held.append(segments.take(capacity))
        except CapacityError:
            gaps = _gaps(held, 100)
            assert max(gaps, default=0) < capacity
        places = [place for one in held for place in range(one.start, one.end)]
        assert len(places) == len(set(places)) == segments.in_use
        assert all(0 <= place < 100 for place in places)


def _gaps(held: list[Segment], total: int) -> list[int]:
    edges = sorted((one.start, one.end) for one in held)
    starts = [0, *(end for _, end in edges)]
    ends = [*(start for start, _ in edges), total]
    return [end - start for start, end in zip(starts, ends, strict=True)]


def test_a_freed_gap_is_used_again() -> None:
    segments = Segments(total=30)
    first, second, _ = (segments.take(10) for _ in range(3))
    segments.give_back(second)
    with pytest.raises(CapacityError, match="20 of 30"):
        segments.take(11)
    assert segments.take(10).start == 10
    segments.give_back(first)
    assert segments.take(4).start == 0


@pytest.mark.parametrize("call", [lambda: Segments(total=0), lambda: Segments(total=5).take(0)])
def test_nothing_is_no_room(call: object) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        call()  # type: ignore[operator]
