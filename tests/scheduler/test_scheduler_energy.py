"""Energy in the plan, against brute force with the definitions written out again."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edge_server.scheduler.cell import Cell, CellError, Floats, Ints, VerifyCost, geometric_survival
from edge_server.scheduler.deadline import deadline
from edge_server.scheduler.energy import BoundedGoal, bounded_plan, joules, search
from edge_server.scheduler.solve import solve


def energy_cell(seed: int, *, count: int = 3, longest: int = 5) -> Cell:
    rng = np.random.default_rng(seed)
    return Cell(
        bandwidth_hz=float(10.0 ** rng.uniform(5, 7)),
        payload_bits=float(rng.choice([31.0, 31744.0])),
        overhead_bits=float(rng.choice([0.0, 800.0])),
        verify=VerifyCost(fixed_s=0.05, per_request_s=0.005, per_row_s=0.001),
        draft_s=rng.uniform(0.005, 0.03, count),
        efficiency=rng.uniform(0.5, 6.0, count),
        survival=geometric_survival(rng.uniform(0.4, 0.95, count), longest),
        max_length=longest,
        overlap=bool(rng.integers(2)),
        draft_j=rng.uniform(0.01, 0.2, count),
        tx_j_per_bit=rng.uniform(0.0, 1e-6, count),
        wait_w=rng.uniform(0.2, 4.0, count),
    )


def every_plan(cell: Cell) -> list[tuple[Ints, float, Floats, Floats]]:
    """Return lengths, round, rates and watts of every plan, by the definitions."""
    found = []
    for choice in itertools.product(range(cell.min_length, cell.max_length + 1), repeat=cell.count):
        lengths = np.array(choice)
        round_s = float(deadline(cell, lengths)) + float(cell.verify_s(lengths))
        rates, watts = np.zeros(cell.count), np.zeros(cell.count)
        for k, length in enumerate(choice):
            tokens = 1.0 + sum(cell.survival[k, :length])
            bits = length * cell.payload_bits
            bits += cell.overhead_bits * (length if cell.overlap else min(length, 1))
            spent = length * cell.draft_j[k] + bits * cell.tx_j_per_bit[k]
            spent += cell.wait_w[k] * (round_s - length * cell.draft_s[k])
            rates[k], watts[k] = tokens / round_s, spent / round_s
        found.append((lengths, round_s, rates, watts))
    return found


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    cap=st.one_of(st.none(), st.floats(1.0, 8.0)),
    rate=st.one_of(st.just(0.0), st.floats(1.0, 15.0)),
    efficiency=st.booleans(),
)
def test_energy_plans_are_the_optimum_within_their_bounds(
    seed: int, cap: float | None, rate: float, efficiency: bool
) -> None:
    cell = replace(energy_cell(seed), energy_cap_w=cap, min_rate=rate)
    allowed = [
        (rates.sum() / watts.sum() if efficiency else rates.sum())
        for _, _, rates, watts in every_plan(cell)
        if (cap is None or (watts <= cap).all()) and (rates >= rate).all()
    ]
    if not allowed:
        with pytest.raises(CellError, match="energy_cap_w"):
            bounded_plan(cell, efficiency=efficiency)
        return
    plan = bounded_plan(cell, efficiency=efficiency)
    reached = 1.0 / plan.joules_per_token if efficiency else plan.goodput_tokens_per_s
    assert reached == pytest.approx(max(allowed), rel=1e-9)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rate=st.sampled_from([0.0, 4.0, 8.0]))
def test_search_beyond_enumeration_comes_within_two_percent(seed: int, rate: float) -> None:
    cell = replace(energy_cell(seed, count=4, longest=4), min_rate=rate)
    goal = BoundedGoal(cell, True, 0.0)
    every = np.array(list(itertools.product(range(5), repeat=4)))
    best = float(goal.score(cell, every).max())
    assume(best > 0.0)
    assert float(goal.score(cell, search(cell, goal))) >= 0.98 * best


def test_joules_per_token_of_any_policy() -> None:
    cell = energy_cell(1)
    for policy in ("server-only", "fixed", "heterogeneous", "continuous", "ping-pong"):
        plan = solve(cell, policy, length=3)
        tokens = cell.tokens()[np.arange(3), plan.lengths]
        cycle_s = tokens / plan.rates
        watts = float((joules(cell, plan.lengths, cycle_s) / cycle_s).sum())
        assert plan.joules_per_token == pytest.approx(watts / plan.goodput_tokens_per_s)
    alone = solve(cell, "server-only")
    # Nothing is drafted or sent: all that is spent is waiting.
    waited = float(cell.wait_w.sum()) / alone.goodput_tokens_per_s
    assert alone.joules_per_token == pytest.approx(waited)


def test_what_cannot_be_is_refused() -> None:
    cell = replace(
        energy_cell(2), draft_j=np.zeros(3), tx_j_per_bit=np.zeros(3), wait_w=np.zeros(3)
    )
    with pytest.raises(CellError, match="draft_j_per_token"):
        solve(cell, "auto", objective="energy")
    with pytest.raises(CellError, match="use heterogeneous or auto"):
        solve(energy_cell(2), "continuous", objective="energy")
    with pytest.raises(CellError, match="--objective"):
        solve(cell, "auto", objective="speed")
