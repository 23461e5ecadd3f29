"""The exact integer solver against brute force, with a model of the cell written out again."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_server.scheduler.baselines import uniform_bandwidth
from edge_server.scheduler.cell import Cell, VerifyCost, geometric_survival
from edge_server.scheduler.certificate import tightened
from edge_server.scheduler.deadline import deadline
from edge_server.scheduler.heterogeneous import heterogeneous
from edge_server.scheduler.limits import physical_bound, verification_limit
from edge_server.scheduler.ping_pong import ping_pong
from edge_server.scheduler.solve import auto, solve

Floats = NDArray[Any]


def draw_cell(seed: int, *, shortest: int, overlap: bool, padded: bool) -> Cell:
    """Return a random small cell, from upload-bound to draft-bound to verification-bound."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(3, 5))
    longest = 6 if count == 3 else 4
    row_s = float(rng.choice([0.0, rng.uniform(0.0, 0.01)]))
    survival: Floats
    if rng.random() < 0.5:
        survival = geometric_survival(rng.uniform(0.2, 0.98, count), longest)
    else:
        hazard: Floats = rng.uniform(0.2, 1.0, (count, longest))
        survival = np.cumprod(hazard, axis=1, dtype=np.float64)
    return Cell(
        bandwidth_hz=float(10.0 ** rng.uniform(4, 7)),
        payload_bits=float(rng.choice([31.0, 1984.0, 31744.0])),
        overhead_bits=float(rng.choice([0.0, 0.0, 500.0, 20000.0])),
        verify=VerifyCost(
            fixed_s=float(rng.uniform(1e-4, 0.2)),
            per_request_s=float(rng.uniform(0.0, 0.02)),
            per_row_s=0.0 if padded else row_s,
            per_padded_row_s=row_s if padded else 0.0,
        ),
        draft_s=rng.uniform(0.0, 0.05, count),
        efficiency=rng.uniform(0.2, 7.0, count),
        survival=survival,
        weight=np.ones(count) if rng.random() < 0.5 else rng.uniform(0.3, 3.0, count),
        min_length=shortest,
        max_length=longest,
        overlap=overlap,
    )


def time_for(cell: Cell, length: int, hz: Floats, k: int) -> Any:
    """Return device k's time to draft and upload, straight from the definitions."""
    speed = hz * cell.efficiency[k]
    draft_s = cell.draft_s[k]
    if length == 0:
        return np.zeros_like(hz)
    if not cell.overlap:
        return length * draft_s + (cell.overhead_bits + length * cell.payload_bits) / speed
    upload_s = (cell.overhead_bits + cell.payload_bits) / speed
    return length * np.maximum(draft_s, upload_s) + np.minimum(draft_s, upload_s)


def band_for(cell: Cell, length: int, phi: float, k: int) -> float:
    """Return the band that device k needs, by the definition turned round."""
    draft_s = cell.draft_s[k]
    if length == 0:
        return 0.0
    if phi <= length * draft_s:
        return np.inf
    if not cell.overlap:
        bits = cell.overhead_bits + length * cell.payload_bits
        return float(bits / cell.efficiency[k] / (phi - length * draft_s))
    bits = cell.overhead_bits + cell.payload_bits
    upload_s = max((phi - draft_s) / length, 0.0)  # if uploading is the slower of the two
    if upload_s < draft_s:
        upload_s = phi - length * draft_s
    return float(bits / cell.efficiency[k] / upload_s)


def brute_force(cell: Cell) -> float:
    """Return the best weighted goodput over all lengths, deadlines by bisection."""
    lengths = range(cell.min_length, cell.max_length + 1)
    every = np.array(list(itertools.product(lengths, repeat=cell.count)))
    low: Floats = np.zeros(len(every))
    high: Floats = np.zeros(len(every))
    for k in range(cell.count):
        equal = np.array([cell.bandwidth_hz / cell.count])
        times = np.array([float(time_for(cell, length, equal, k)[0]) for length in lengths])
        high = np.maximum(high, times[every[:, k] - cell.min_length])
    bands = band_of(cell, every)
    while (high - low > 1e-12 * high).any():
        middle = 0.5 * (low + high)
        fits = bands(middle) <= cell.bandwidth_hz
        low, high = np.where(fits, low, middle), np.where(fits, middle, high)
    tokens = np.ones((len(every), cell.count))
    for k, length in itertools.product(range(cell.count), range(1, cell.max_length + 1)):
        tokens[:, k] += np.where(every[:, k] >= length, cell.survival[k, length - 1], 0.0)
    cost = cell.verify
    pass_s = (
        cost.fixed_s
        + cost.per_request_s * cell.count
        + cost.per_row_s * (every + 1).sum(axis=1)
        + cost.per_padded_row_s * cell.count * (every.max(axis=1) + 1)
    )
    return float(((tokens @ cell.weight) / (high + pass_s)).max())


def band_of(cell: Cell, lengths: Floats) -> Callable[[Floats], Floats]:
    """Vectorised `band_for`, by the same two cases: what all devices need together, by deadline.

    `lengths` [choices, devices]; deadlines and what is returned are [choices].
    """
    drafted_s = lengths * cell.draft_s
    payloads = np.ones_like(lengths) if cell.overlap else lengths
    need = (cell.overhead_bits + payloads * cell.payload_bits) / cell.efficiency
    need, divisor = np.where(lengths > 0, need, 0.0), np.maximum(lengths, 1)

    def bands(phi: Floats) -> Floats:
        room = phi[:, None] - drafted_s
        if cell.overlap:
            slow = (phi[:, None] - cell.draft_s) / divisor
            room = np.where(slow < cell.draft_s, room, slow)
        with np.errstate(divide="ignore", invalid="ignore"):
            hz = np.where(room > 0.0, need / room, np.inf)
        return np.where(lengths > 0, hz, 0.0).sum(axis=1)

    return bands


def every_form(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test for L ≥ 0 and 1, overlap off and on, rows counted by sum and by maximum."""
    for mark in (
        pytest.mark.parametrize("padded", [False, True], ids=["sum", "max"]),
        pytest.mark.parametrize("overlap", [False, True], ids=["whole", "overlap"]),
        pytest.mark.parametrize("shortest", [0, 1]),
    ):
        test = mark(test)
    return test


@pytest.mark.slow
@every_form
@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_heterogeneous_is_the_optimum_200_times(
    seed: int, shortest: int, overlap: bool, padded: bool
) -> None:
    cell = draw_cell(seed, shortest=shortest, overlap=overlap, padded=padded)
    optimum = brute_force(cell)
    plan = heterogeneous(cell)
    assert plan.weighted_goodput == pytest.approx(optimum, rel=1e-9)
    assert plan.bound_tokens_per_s >= optimum * (1.0 - 1e-9)
    # What it promises holds: within the band, every device is there by the deadline.
    assert plan.bandwidth_hz.sum() <= cell.bandwidth_hz * (1.0 + 1e-9)
    phi = plan.round_s - float(cell.verify_s(plan.lengths))
    for k, length in enumerate(plan.lengths):
        if length > 0:
            hz = np.array([plan.bandwidth_hz[k]])
            assert time_for(cell, int(length), hz, k)[0] <= phi * (1.0 + 1e-9) + 1e-12
            assert band_for(cell, int(length), phi, k) <= hz[0] * (1.0 + 1e-6)


@pytest.mark.parametrize("overlap", [False, True], ids=["whole", "overlap"])
@pytest.mark.parametrize("shortest", [0, 1])
@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_tightened_bound_is_never_below_the_optimum(
    seed: int, shortest: int, overlap: bool
) -> None:
    cell = draw_cell(seed, shortest=shortest, overlap=overlap, padded=False)
    value = cell.weight[:, None] * cell.tokens()
    lengths = heterogeneous(cell).lengths
    assert tightened(cell, value, lengths) >= brute_force(cell) * (1.0 - 1e-9)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shortest=st.integers(0, 1),
    overlap=st.booleans(),
    padded=st.booleans(),
)
def test_uniform_bandwidth_is_its_own_optimum(
    seed: int, shortest: int, overlap: bool, padded: bool
) -> None:
    cell = draw_cell(seed, shortest=shortest, overlap=overlap, padded=padded)
    lengths = range(cell.min_length, cell.max_length + 1)
    equal = np.array([cell.bandwidth_hz / cell.count])
    tokens = cell.tokens()
    best = 0.0
    for choice in itertools.product(lengths, repeat=cell.count):
        away_s = max(float(time_for(cell, n, equal, k)[0]) for k, n in enumerate(choice))
        total = sum(cell.weight[k] * tokens[k, n] for k, n in enumerate(choice))
        best = max(best, total / (away_s + float(cell.verify_s(np.array(choice)))))
    plan = uniform_bandwidth(cell)
    assert plan.weighted_goodput == pytest.approx(best, rel=1e-9)
    assert plan.weighted_goodput <= heterogeneous(cell).weighted_goodput * (1.0 + 1e-9)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), shortest=st.integers(0, 1), overlap=st.booleans())
def test_ping_pong_is_the_best_of_all_groups_and_lengths(
    seed: int, shortest: int, overlap: bool
) -> None:
    cell = draw_cell(seed, shortest=shortest, overlap=overlap, padded=False)
    lengths = range(cell.min_length, cell.max_length + 1)
    best = 0.0
    for rest in itertools.product((0, 1), repeat=cell.count - 1):
        groups = np.array((0, *rest))
        if not groups.any():
            continue
        value, phi_s, pass_s = [], [], []
        for group in (0, 1):
            part = cell.subset(np.flatnonzero(groups == group))
            every = np.array(list(itertools.product(lengths, repeat=part.count)))
            worth = part.weight[:, None] * part.tokens()
            value.append(worth[np.arange(part.count), every].sum(axis=1))
            phi_s.append(deadline(part, every))
            pass_s.append(part.verify_s(every))
        period_s = np.maximum(phi_s[0][:, None], pass_s[1]) + np.maximum(
            phi_s[1], pass_s[0][:, None]
        )
        best = max(best, float(((value[0][:, None] + value[1]) / period_s).max()))
    found = ping_pong(cell).weighted_goodput
    assert 0.97 * best <= found <= best * (1.0 + 1e-9)


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shortest=st.integers(0, 1),
    overlap=st.booleans(),
    padded=st.booleans(),
)
def test_auto_is_never_below_and_no_scheme_above_the_limits(
    seed: int, shortest: int, overlap: bool, padded: bool
) -> None:
    cell = draw_cell(seed, shortest=shortest, overlap=overlap, padded=padded)
    best = auto(cell).weighted_goodput
    assert best >= heterogeneous(cell).weighted_goodput
    assert best >= solve(cell, "server-only").weighted_goodput
    limit = physical_bound(cell)
    for policy in ("heterogeneous", "ping-pong"):
        assert solve(cell, policy).weighted_goodput <= limit * (1.0 + 1e-9)
    assert heterogeneous(cell).weighted_goodput <= verification_limit(cell) * (1.0 + 1e-9)
