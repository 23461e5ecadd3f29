"""Where two sequences of token ids part."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["shared"]


def shared(left: Sequence[int], right: Sequence[int]) -> int:
    """Return how many leading ids two sequences share."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((n for n, (one, other) in pairs if one != other), min(len(left), len(right)))
