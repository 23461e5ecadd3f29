"""The exact integer scheduler: a length for every device and the band that goes with it.

Maximises weighted goodput (27) over integer lengths, for any survival curve, length 0 included,
with verification time affine in requests, rows and padded rows, per-message overhead, and upload
after or during drafting. It knows nothing of estimators and messages.

For a given deadline the lengths are a knapsack of tokens (value S_k(l), cost: the band that one
more token needs), which taking the best value for its cost solves up to its last item; a scan of
the deadline supplies that freedom. Local moves polish the result, a dual bound certifies it, and
where the bound leaves few enough candidates they are all tried, which proves the optimum.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from edge_server.scheduler.cell import Cell, Floats, Ints, Plan
from edge_server.scheduler.certificate import dual_bound
from edge_server.scheduler.deadline import band, band_table, deadline, latency

__all__ = ["Goal", "RoundGoal", "fairness_of", "goodput_of", "heterogeneous", "plan_of"]

SWAP_DEVICES = 16  # up to here the polish also tries moving a token from one device to another
POLISH_DEVICES = 100
ENUMERATE = 200_000  # device-lengths evaluated at most to prove an optimum
PHI_FIRST, PHI_NEXT = 20, 8
DRAFT_BOUND = 0.3  # part of the deadline that uploads may take for breakpoints to matter
BREAKPOINTS = 12


class Goal(Protocol):
    """What is maximised, given lengths."""

    @property
    def value(self) -> Floats:
        """What each length of each device is worth; [K, max_length + 1], non-decreasing."""

    def score(self, cell: Cell, lengths: Ints) -> Floats:
        """Return the objective of lengths [..., K] -> [...]."""

    def price(self, cell: Cell, lengths: Ints) -> float:
        """Return what one second of the round is worth at these lengths."""


@dataclass(frozen=True, slots=True)
class RoundGoal:
    """Σ value over the time of a synchronous round, or, `fair`, Σ w_k log(N_k / round)."""

    value: Floats  # [K, max_length + 1]
    fair: bool = False

    def score(self, cell: Cell, lengths: Ints) -> Floats:
        """Return the objective of lengths [..., K] -> [...]."""
        round_s = deadline(cell, lengths) + cell.verify_s(lengths)
        total = self.value[np.arange(cell.count), lengths].sum(axis=-1)
        rounds = cell.weight.sum() * np.log(round_s)
        score: Floats = total - rounds if self.fair else total / round_s
        return score

    def price(self, cell: Cell, lengths: Ints) -> float:
        """Return what one second of the round is worth at these lengths."""
        if not self.fair:
            return float(self.score(cell, lengths))
        round_s = deadline(cell, lengths) + cell.verify_s(lengths)
        return float(cell.weight.sum() / round_s)


def goodput_of(cell: Cell) -> RoundGoal:
    """Return the paper's objective, with the devices' weights."""
    return RoundGoal(cell.weight[:, None] * cell.tokens())


def fairness_of(cell: Cell) -> RoundGoal:
    """Return proportional fairness: the weighted sum of the logarithms of the rates."""
    return RoundGoal(cell.weight[:, None] * np.log(cell.tokens()), fair=True)


def plan_of(cell: Cell, policy: str, lengths: Ints, bound: float = np.inf) -> Plan:
    """Return the plan of given lengths with the band of (31)."""
    phi = deadline(cell, lengths)
    hz, _ = band(cell, lengths, phi)
    round_s = float(phi + cell.verify_s(lengths))
    tokens = cell.tokens()[np.arange(cell.count), lengths]
    return Plan(
        policy=policy,
        lengths=lengths,
        bandwidth_hz=hz,
        round_s=round_s,
        rates=tokens / round_s,
        weight=cell.weight,
        bound_tokens_per_s=bound,
    )


def heterogeneous(cell: Cell, *, fair: bool = False) -> Plan:
    """Return the best lengths and shares of a synchronous round, problem (28).

    Args:
        cell: the cell.
        fair: maximise Σ w_k log(rate_k) instead of Σ w_k rate_k.
    """
    goal = fairness_of(cell) if fair else goodput_of(cell)
    best = common_lengths(cell, goal)
    if cell.min_length == cell.max_length:  # there is no other plan
        return plan_of(cell, "heterogeneous", best, float(goodput_of(cell).score(cell, best)))
    caps = [cell.max_length]
    if cell.verify.per_padded_row_s > 0.0:
        # With padding a pass costs what its longest draft costs: solve for every longest draft.
        caps = list(range(cell.max_length, cell.min_length, -1))
    for cap in caps:
        if len(caps) == 1 or fair or dual_bound(cell, goal.value, best, cap).may_improve(1e-3):
            best = better(cell, goal, best, scan(cell, goal, best, cap))
    best = polish(cell, goal, best)
    if fair:
        return plan_of(cell, "heterogeneous", best)
    best, bound = certify(cell, goal, best)
    return plan_of(cell, "heterogeneous", best, bound)


def better(cell: Cell, goal: Goal, best: Ints, candidates: Ints) -> Ints:
    """Return the best of the incumbent and the candidates [M, K]."""
    if len(candidates) == 0:
        return best
    everyone = np.concatenate((best[None], candidates))
    winner: Ints = everyone[int(np.argmax(goal.score(cell, everyone)))]
    return winner


def common_lengths(cell: Cell, goal: Goal) -> Ints:
    """Return the best plan with one length for all: the start, and never beaten by it."""
    lengths = np.arange(cell.min_length, cell.max_length + 1)[:, None]
    everyone = np.broadcast_to(lengths, (len(lengths), cell.count))
    winner: Ints = everyone[int(np.argmax(goal.score(cell, everyone)))]
    return winner


def scan(cell: Cell, goal: Goal, best: Ints, cap: int) -> Ints:
    """Return candidate lengths up to `cap` for deadlines around the best one; [M, K]."""
    low_s, high_s = deadline_range(cell, cap)
    coarse = PHI_FIRST if cell.count < 500 else PHI_FIRST // 2
    grid = np.geomspace(low_s, high_s, coarse)
    found = []
    price = goal.price(cell, best)
    for _ in range(3):
        lengths = np.concatenate(
            [fill(cell, goal, part, price, cap) for part in chunks(cell, grid)]
        )
        score = goal.score(cell, lengths)
        found.append(lengths[int(np.argmax(score))])
        price = max(price, goal.price(cell, found[-1]))
        at = int(np.argmax(score))
        edges = grid[max(at - 1, 0)], grid[min(at + 1, len(grid) - 1)]
        grid = np.geomspace(*edges, PHI_NEXT + 2)[1:-1]
    incumbent = better(cell, goal, best, np.array(found))
    grid = breakpoints(cell, goal, incumbent, cap)
    if len(grid):
        lengths = np.concatenate(
            [fill(cell, goal, part, price, cap) for part in chunks(cell, grid)]
        )
        incumbent = better(cell, goal, incumbent, lengths)
    return incumbent[None]


def breakpoints(cell: Cell, goal: Goal, incumbent: Ints, cap: int) -> Floats:
    """Return the most promising deadlines at which some device finishes one more token.

    Where uploads take next to no time, only these can be optimal, and a coarse scan steps over
    them: each is judged by everyone drafting all that it leaves time for. Empty where uploads
    matter, and the knapsack moves smoothly with the deadline.
    """
    phi = float(deadline(cell, incumbent))
    upload_s = phi - float((incumbent * cell.draft_s + cell.delay_s).max())
    if phi <= 0.0 or upload_s > DRAFT_BOUND * phi or cell.count > POLISH_DEVICES:
        return np.empty(0)
    steps = np.arange(1, cap + 1)[:, None] * cell.draft_s + cell.delay_s
    times = np.unique(steps)
    times = times[(times > phi / 2.0) & (times < phi * 2.0)] * (1.0 + 1e-12)
    left = np.maximum(times[:, None] - cell.delay_s, 0.0)
    full = np.minimum(np.floor(left / np.maximum(cell.draft_s, 1e-12)), cap).astype(np.int64)
    if len(times) == 0:
        return times
    order = np.argsort(-goal.score(cell, bounded(cell, full)), kind="stable")
    return times[order[:BREAKPOINTS]] + upload_s


def chunks(cell: Cell, grid: Floats) -> list[Floats]:
    """Split a grid of deadlines so that the tables of one part stay small."""
    size = max(1, 200_000 // (cell.count * (cell.max_length + 1)))
    return [grid[start : start + size] for start in range(0, len(grid), size)]


def deadline_range(cell: Cell, cap: int) -> tuple[float, float]:
    """Return the shortest and the longest deadline that can be of use."""
    longest = np.full(cell.count, cap)
    high_s = float(deadline(cell, longest))
    if cell.min_length > 0:
        return float(deadline(cell, np.full(cell.count, cell.min_length))), high_s
    one = np.ones(cell.count, dtype=np.int64)
    hz = np.full(cell.count, cell.bandwidth_hz)
    return float(latency(cell, one, hz).min()), high_s * (1.0 + 1e-12)


def fill(cell: Cell, goal: Goal, phi: Floats, price: float, cap: int) -> Ints:
    """Return the greedy knapsack's lengths for each deadline; phi [M] -> [M, K].

    Args:
        price: what a second of the round is worth; a row costs that times `per_row_s`.
        cap: the longest draft allowed.
    """
    low = cell.min_length
    table = band_table(cell, phi, cap)  # [M, K, cap + 1]
    with np.errstate(invalid="ignore"):
        cost = np.diff(table, axis=2)[..., low:]
    gain = np.diff(goal.value[:, : cap + 1], axis=1)[:, low:] - price * cell.verify.per_row_s
    usable = np.isfinite(cost) & (gain > 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        density = np.where(usable, gain / cost, -np.inf)
        if low == 0 and (cell.overhead_bits > 0.0 or cell.delay_s.any()):
            density = merge_first(density, gain, table)
    size = (len(phi), -1)
    density, cost = density.reshape(size), np.where(usable, cost, np.inf).reshape(size)
    order = np.argsort(-density, axis=1, kind="stable")
    room = cell.bandwidth_hz - table[..., low].sum(axis=1, keepdims=True)
    fits = np.cumsum(np.take_along_axis(cost, order, axis=1), axis=1) <= room
    taken = np.zeros(density.shape, dtype=bool)
    np.put_along_axis(taken, order, fits, axis=1)
    lengths: Ints = low + taken.reshape(len(phi), cell.count, -1).sum(axis=2)
    return lengths


def merge_first(density: Floats, gain: Floats, table: Floats) -> Floats:
    """Give the first tokens of a draft the density of the best whole start.

    The first token pays for the message and the round trip, so it alone looks dearer than it is:
    the tokens up to the best average value for cost count as one item.
    """
    steps = np.arange(density.shape[2])
    average = np.where(np.isfinite(table[..., 1:]), np.cumsum(gain, axis=1) / table[..., 1:], -1.0)
    first = np.argmax(average, axis=2)[..., None]
    whole = np.take_along_axis(average, first, axis=2)
    merged: Floats = np.where((steps <= first) & (whole > 0.0), whole, density)
    return merged


def polish(cell: Cell, goal: Goal, best: Ints) -> Ints:
    """Return lengths that no single step, common step or (small K) swap improves."""
    if cell.count > POLISH_DEVICES:
        return better(cell, goal, best, bounded(cell, best[None] + np.array([[1], [-1]])))
    eye = np.eye(cell.count, dtype=np.int64)
    ones = np.ones((1, cell.count), dtype=np.int64)
    steps = np.concatenate((eye, -eye, ones, -ones))
    best = climb(cell, goal, best, steps)
    if cell.count > SWAP_DEVICES:
        return best
    pairs = np.array(list(itertools.permutations(range(cell.count), 2)), dtype=int).reshape(-1, 2)
    swaps = eye[pairs[:, 0]] - eye[pairs[:, 1]]
    while True:
        found = better(cell, goal, best, bounded(cell, best[None] + swaps))
        if np.array_equal(found, best):
            return best
        best = climb(cell, goal, found, steps)


def climb(cell: Cell, goal: Goal, best: Ints, steps: Ints) -> Ints:
    """Take the best of the steps [M, K] for as long as one helps."""
    while True:
        found = better(cell, goal, best, bounded(cell, best[None] + steps))
        if np.array_equal(found, best):
            return best
        best = found


def bounded(cell: Cell, lengths: Ints) -> Ints:
    """Clip lengths to the cell's bounds."""
    return np.clip(lengths, cell.min_length, cell.max_length)


def certify(cell: Cell, goal: Goal, best: Ints) -> tuple[Ints, float]:
    """Return the optimum where it can be proven, else the incumbent; and an upper bound."""
    caps = [cell.max_length]
    if cell.verify.per_padded_row_s > 0.0:
        caps = list(range(cell.min_length, cell.max_length + 1))
    proven, bound = True, float(goal.score(cell, best))
    for cap in caps:
        dual = dual_bound(cell, goal.value, best, cap)
        choices = dual.choices()
        size = math.prod(len(choice) for choice in choices)
        if 0 < size * cell.count <= ENUMERATE:
            best = better(cell, goal, best, product(choices))
        elif size > 0:
            proven, bound = False, max(bound, dual.bound)
    score = float(goal.score(cell, best))
    return best, score if proven else max(bound, score)


def product(choices: list[Ints]) -> Ints:
    """Return every combination of the choices; [M, K]."""
    grids = np.meshgrid(*choices, indexing="ij")
    return np.stack([grid.ravel() for grid in grids], axis=1)
