"""What is uploaded of a distribution, against a plain sort of all of it."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from sdk.model.proposal import propose


def by_definition(
    row: NDArray[np.float32], support: int, weight_bits: int, coverage: float
) -> list[tuple[int, int]]:
    relative = np.exp((row - row.max()).astype(np.float64))
    order = np.argsort(-row, kind="stable")[:support]
    if coverage < 1.0:
        enough = np.flatnonzero(np.cumsum(relative[order]) >= coverage * relative.sum())
        order = order[: enough[0] + 1] if enough.size else order
    weights = np.rint(relative[order] * (1 << weight_bits)).astype(int)
    return [(int(token), int(w)) for token, w in zip(order, weights, strict=True) if w]


@pytest.mark.parametrize("spread", [0.001, 1.0, 4.0])
@pytest.mark.parametrize(
    ("support", "weight_bits", "coverage"),
    [(1, 8, 1.0), (40, 8, 1.0), (40, 1, 1.0), (1024, 16, 1.0), (1024, 12, 0.8), (9, 8, 0.3)],
)
def test_the_likeliest_ids_and_their_weights(
    spread: float, support: int, weight_bits: int, coverage: float
) -> None:
    row = np.random.default_rng(support).normal(0, spread, 3000).astype(np.float32)
    row[::7] = -np.inf
    found = propose(row, support=support, weight_bits=weight_bits, coverage=coverage)
    expected = by_definition(row, support, weight_bits, coverage)
    assert list(zip(found.token_ids, found.weights, strict=True)) == expected
