"""Verification without a barrier, and capacity, against event-by-event simulation."""

from __future__ import annotations

import numpy as np
import pytest

from edge_server.scheduler.capacity import capacity, server_capacity
from edge_server.scheduler.cell import Cell, CellError, Plan, VerifyCost, geometric_survival
from edge_server.scheduler.continuous import continuous, continuous_plan, predict
from edge_server.scheduler.policies import Continuous
from edge_server.scheduler.solve import solve
from edge_server.simulation.event_loop import Outcome, Prescribed, run_cell

VERIFIERS = (
    VerifyCost(fixed_s=0.02, per_request_s=0.002, per_row_s=0.0005),
    VerifyCost(fixed_s=0.1, per_request_s=0.0005),
    VerifyCost(fixed_s=0.005, per_request_s=0.001, per_padded_row_s=0.0002),
)


def random_cell(seed: int, count: int, verify: VerifyCost, *, shortest: int = 0) -> Cell:
    rng = np.random.default_rng(seed)
    return Cell(
        bandwidth_hz=5e5 * count,
        payload_bits=float(rng.choice([31.0, 8000.0])),
        overhead_bits=500.0,
        verify=verify,
        draft_s=10.0 ** rng.uniform(-2.5, -1.3) * rng.uniform(0.7, 1.4, count),
        efficiency=rng.uniform(1.0, 6.0, count),
        survival=geometric_survival(rng.uniform(0.5, 0.95, count), 8),
        delay_s=np.full(count, rng.uniform(0.0, 0.05)),
        min_length=shortest,
        max_length=8,
    )


def simulated(cell: Cell, plan: Plan, *, duration_s: float = 60.0) -> Outcome:
    return run_cell(
        cell=cell,
        policy=Continuous(row_budget=10**6),
        control=Prescribed(plan=plan, cell=cell),
        duration_s=duration_s,
        warm_up_s=5.0,
    )


@pytest.mark.parametrize("verify", VERIFIERS)
@pytest.mark.parametrize("count", [1, 3, 10, 30])
def test_prediction_agrees_with_simulation(count: int, verify: VerifyCost) -> None:
    cell = random_cell(count, count, verify)
    lengths = np.random.default_rng(count).integers(0, 9, count)
    plan = continuous_plan(cell, lengths, np.full(count, cell.bandwidth_hz / count))
    outcome = simulated(cell, plan)
    rounds = float((1.0 / predict(cell, lengths, plan.bandwidth_hz).cycle_s).sum())
    assert rounds == pytest.approx(outcome.rounds.sum() / outcome.duration_s, rel=0.08)


@pytest.mark.parametrize("seed", range(4))
def test_chosen_lengths_and_shares_beat_simple_ones_in_simulation(seed: int) -> None:
    cell = random_cell(seed, 12, VERIFIERS[seed % 3])
    plan = continuous(cell)
    assert plan.bandwidth_hz.sum() <= cell.bandwidth_hz * (1.0 + 1e-9)
    reached = simulated(cell, plan, duration_s=20.0).goodput_tokens_per_s
    assert reached == pytest.approx(plan.goodput_tokens_per_s, rel=0.12)
    for length in (0, 2, 4, 8):
        equal = np.full(12, cell.bandwidth_hz / 12)
        other = continuous_plan(cell, np.full(12, length), equal)
        assert reached >= 0.95 * simulated(cell, other, duration_s=20.0).goodput_tokens_per_s
    assert plan.goodput_tokens_per_s >= solve(cell, "server-only").goodput_tokens_per_s


def test_fair_shares_leave_nobody_behind() -> None:
    cell = random_cell(5, 8, VERIFIERS[0], shortest=1)
    plain, fair = continuous(cell), continuous(cell, fair=True)
    assert fair.rates.min() >= plain.rates.min()
    assert np.log(fair.rates).sum() >= np.log(plain.rates).sum() - 1e-6
    synchronous = solve(cell, "heterogeneous", objective="fair")
    best = solve(cell, "heterogeneous")
    assert np.log(synchronous.rates).sum() >= np.log(best.rates).sum() - 1e-9
    assert synchronous.goodput_tokens_per_s <= best.goodput_tokens_per_s * (1.0 + 1e-9)


@pytest.mark.parametrize("rate", [2.0, 8.0, 15.0])
def test_devices_said_to_be_served_are(rate: float) -> None:
    cell = random_cell(2, 24, VerifyCost(fixed_s=0.05, per_request_s=0.004))
    found = capacity(cell, rate)
    assert found.count >= server_capacity(cell, rate)
    assert found.bandwidth_hz.sum() <= cell.bandwidth_hz * (1.0 + 1e-9)
    if found.count == 0:
        return
    part = cell.subset(found.served)
    plan = continuous_plan(part, found.lengths, found.bandwidth_hz)
    outcome = simulated(part, plan, duration_s=120.0)
    assert (outcome.tokens / outcome.duration_s).min() >= 0.9 * rate


def test_drafting_serves_more_devices_than_the_server_alone() -> None:
    cell = Cell(
        bandwidth_hz=20e6,
        payload_bits=18.0,
        overhead_bits=800.0,
        verify=VerifyCost(fixed_s=0.05, per_request_s=0.005),
        draft_s=np.full(60, 0.01),
        efficiency=np.full(60, 3.0),
        survival=geometric_survival(np.full(60, 0.8), 16),
        max_length=16,
    )
    assert server_capacity(cell, 8.0) == 15
    assert capacity(cell, 8.0).count >= 2 * 15


def test_capacity_refuses_what_it_does_not_model() -> None:
    cell = random_cell(1, 4, VERIFIERS[2])
    with pytest.raises(CellError, match="per_padded_row_s"):
        capacity(cell, 1.0)
    with pytest.raises(CellError, match="rate"):
        capacity(random_cell(1, 4, VERIFIERS[0]), 0.0)
