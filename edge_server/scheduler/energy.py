"""Energy in the plan: tokens per joule, a cap of watts, and joules per token of any plan.

In a round of `round_s`, device k spends `draft_j L_k + tx_j_per_bit × bits(L_k)` on drafting and
sending, and `wait_w` watts in all the time that it does not draft. Average power is that energy
over the round. A plan may be bound by a cap of average power and by a least rate, both per device.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from edge_server.scheduler.cell import Cell, CellError, Floats, Ints, Plan
from edge_server.scheduler.deadline import deadline, message_bits
from edge_server.scheduler.heterogeneous import (
    ENUMERATE,
    better,
    bounded,
    common_lengths,
    plan_of,
    polish,
    product,
    scan,
)

__all__ = ["bounded_plan", "has_energy", "joules", "with_joules"]

PRICE_ROUNDS = 4


def has_energy(cell: Cell) -> bool:
    """Return whether the cell says anything about energy, or bounds plans."""
    known = cell.draft_j.any() or cell.tx_j_per_bit.any() or cell.wait_w.any()
    return bool(known) or cell.energy_cap_w is not None or cell.min_rate > 0.0


def joules(cell: Cell, lengths: Ints, cycle_s: Floats) -> Floats:
    """Return what every device spends from one verdict to the next; [..., K]."""
    spent = lengths * cell.draft_j + message_bits(cell, lengths) * cell.tx_j_per_bit
    waits_s = np.maximum(cycle_s - lengths * cell.draft_s, 0.0)
    total: Floats = spent + cell.wait_w * waits_s
    return total


def with_joules(cell: Cell, plan: Plan) -> Plan:
    """Return the plan with its joules per token filled in."""
    tokens = cell.tokens()[np.arange(cell.count), plan.lengths]
    cycle_s = tokens / np.maximum(plan.rates, 1e-300)
    watts = joules(cell, plan.lengths, cycle_s) / cycle_s
    return replace(plan, joules_per_token=float(watts.sum() / plan.rates.sum()))


@dataclass(frozen=True, slots=True)
class BoundedGoal:
    """Tokens per joule, or weighted goodput, within the cell's bounds on power and rate.

    Lengths out of bounds score below all others, the less the further out, so that a search that
    starts there is led back.
    """

    cell: Cell
    efficiency: bool  # tokens per joule instead of goodput
    joule_price: float  # tokens that a joule is worth in the knapsack

    @property
    def value(self) -> Floats:
        """Tokens less what they cost in energy; [K, max_length + 1]."""
        cell = self.cell
        lengths = np.arange(cell.max_length + 1)
        every = np.broadcast_to(lengths[:, None], (len(lengths), cell.count))
        cost = every * (cell.draft_j - cell.wait_w * cell.draft_s)
        cost = cost + message_bits(cell, every) * cell.tx_j_per_bit
        tokens = cell.tokens() if self.efficiency else cell.weight[:, None] * cell.tokens()
        value: Floats = tokens - self.joule_price * cost.T
        return value

    def score(self, cell: Cell, lengths: Ints) -> Floats:
        """Return the objective, or minus the violation where a bound is broken."""
        round_s = deadline(cell, lengths) + cell.verify_s(lengths)
        tokens = cell.tokens()[np.arange(cell.count), lengths]
        spent = joules(cell, lengths, round_s[..., None])
        broken = self.violation(tokens / round_s[..., None], spent / round_s[..., None])
        if self.efficiency:
            good = tokens.sum(axis=-1) / np.maximum(spent.sum(axis=-1), 1e-300)
        else:
            good = tokens @ cell.weight / round_s
        score: Floats = np.where(broken > 0.0, -broken, good)
        return score

    def violation(self, rates: Floats, watts: Floats) -> Floats:
        """Return by how much, relative and summed over devices, the bounds are broken."""
        broken = np.zeros(rates.shape[:-1])
        if self.cell.min_rate > 0.0:
            short = 1.0 - 1e-12 - rates / self.cell.min_rate
            broken = broken + np.maximum(short, 0.0).sum(axis=-1)
        if self.cell.energy_cap_w is not None:
            over = watts / self.cell.energy_cap_w - 1.0 - 1e-12
            broken = broken + np.maximum(over, 0.0).sum(axis=-1)
        return broken

    def price(self, cell: Cell, lengths: Ints) -> float:
        """Return what a second of the round is worth in the knapsack's tokens."""
        if self.efficiency:
            return self.joule_price * float(cell.wait_w.sum())
        return max(0.0, float(self.score(cell, lengths)))


def bounded_plan(cell: Cell, *, efficiency: bool, strict: bool = True) -> Plan:
    """Return the synchronous plan of most tokens per joule (or goodput) within the cell's bounds.

    Optimal where all lengths can be tried (up to about 200,000 device-lengths), else the best of
    the knapsack at several prices of a joule and of local moves.

    Args:
        cell: with its energy figures, `energy_cap_w` and `min_rate`.
        efficiency: maximise tokens per joule; else weighted goodput.
        strict: raise where nothing keeps the bounds; else return what breaks them least.

    Raises:
        CellError: where nothing keeps the bounds, or no energy figure was given.
    """
    if efficiency and not (cell.draft_j.any() or cell.tx_j_per_bit.any() or cell.wait_w.any()):
        raise CellError(
            "objective energy needs draft_j_per_token, tx_j_per_bit or wait_w of the devices"
        )
    goal = BoundedGoal(cell, efficiency, 0.0)
    choices = [np.arange(cell.min_length, cell.max_length + 1)] * cell.count
    if float(len(choices[0])) ** cell.count * cell.count <= ENUMERATE:
        every = product(choices)
        best: Ints = every[int(np.argmax(goal.score(cell, every)))]
    else:
        best = search(cell, goal)
    if strict and float(goal.score(cell, best)) < 0.0:
        raise CellError(
            "no lengths keep every device within energy_cap_w and above min_rate_tokens_per_s"
        )
    return with_joules(cell, plan_of(cell, "heterogeneous", best))


def search(cell: Cell, goal: BoundedGoal) -> Ints:
    """Return the best lengths found by knapsack and local moves at rising prices of a joule."""
    best = common_lengths(cell, goal)
    for _ in range(PRICE_ROUNDS):
        score = float(goal.score(cell, best))
        if goal.efficiency:
            goal = replace(goal, joule_price=max(0.0, score))
        if cell.max_length > cell.min_length:
            found = scan(cell, goal, best, cell.max_length)
            shorter = [bounded(cell, found - step) for step in range(4)]
            best = better(cell, goal, best, np.concatenate(shorter))
        best = polish(cell, goal, best)
        if float(goal.score(cell, best)) <= score:
            break
    return best
