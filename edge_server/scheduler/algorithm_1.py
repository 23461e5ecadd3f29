"""The paper's own heterogeneous solver, as published, to compare with; and its relaxed optimum.

Proposition 1 gives real-valued lengths for a deadline phi and a multiplier lambda; Algorithm 1
rounds them on a grid of both. It knows the paper's model only: what a cell has besides (overhead,
overlap, rows) enters where candidates are judged, not where they come from.
"""

from __future__ import annotations

import numpy as np

from edge_server.scheduler.cell import Cell, CellError, Floats, Ints, Plan
from edge_server.scheduler.heterogeneous import goodput_of, plan_of

__all__ = ["algorithm_1", "relaxed_bound", "relaxed_lengths", "wright_omega"]

GRID = 60
GOLDEN = (5.0**0.5 - 1.0) / 2.0


def wright_omega(z: Floats) -> Floats:
    """Return omega(z), the root of w + ln w = z, for real z."""
    w = np.where(z > 1.0, z - np.log(np.maximum(z, 1.0)), np.exp(np.minimum(z, 1.0)))
    w = np.maximum(w, 1e-300)
    for _ in range(20):
        # Newton on w + ln w - z, kept positive: w (1 + z - ln w) / (1 + w).
        new = np.maximum(w * (1.0 + z - np.log(w)) / (1.0 + w), 1e-300)
        if np.all(np.abs(new - w) <= 1e-15 * w):
            break
        w = new
    return w


def relaxed_lengths(cell: Cell, phi: Floats, multiplier: Floats) -> Floats:
    """Return the real lengths of (37); phi and multiplier [M] -> [M, K]. Not clipped.

    In the form L = phi/T - (2/b) omega(z), which neither overflows nor cancels.
    """
    a = cell.acceptance()
    b = -np.log(a)
    draft_s = np.maximum(cell.draft_s, 1e-12)
    phi, multiplier = phi[:, None], np.maximum(multiplier, 1e-300)[:, None]
    scale = multiplier * cell.payload_bits * phi * b * (1.0 - a) / (cell.efficiency * a)
    z = b * phi / (2.0 * draft_s) - np.log(2.0 * draft_s) + 0.5 * np.log(scale)
    lengths: Floats = phi / draft_s - (2.0 / b) * wright_omega(z)
    return lengths


def algorithm_1(cell: Cell, *, grid: int = GRID) -> Plan:
    """Return the paper's Algorithm 1 on a grid of `grid` deadlines and multipliers (App. G)."""
    goal = goodput_of(cell)
    low = max(1, cell.min_length)
    if cell.max_length < low:
        raise CellError("max_draft_length must be at least 1 for algorithm-1")
    best, best_score = np.full(cell.count, low), -np.inf
    phis, multipliers = search_box(cell, grid)
    for phi in phis:
        real = relaxed_lengths(cell, np.full(grid, phi), multipliers)
        lengths: Ints = np.clip(np.rint(real), low, cell.max_length).astype(np.int64)
        score = goal.score(cell, np.unique(lengths, axis=0))
        at = int(np.argmax(score))
        if score[at] > best_score:
            best, best_score = np.unique(lengths, axis=0)[at], float(score[at])
    return plan_of(cell, "algorithm-1", best)


def search_box(cell: Cell, grid: int) -> tuple[Floats, Floats]:
    """Return the grids of phi and lambda, between the bounds of Appendix G."""
    a, r, q = cell.acceptance(), cell.efficiency, cell.payload_bits
    full = q / (cell.bandwidth_hz * r)
    phi_low = float((cell.draft_s + full).max())
    phi_high = float((cell.max_length * (cell.draft_s + cell.count * full)).max())
    top = r * (phi_high - cell.draft_s) ** 2 / (q * phi_high) * -np.log(a) / (1.0 - a) * a**2
    high = float(top.max())
    return np.geomspace(phi_low, phi_high, grid), np.geomspace(1e-8 * high, high, grid)


def relaxed_bound(cell: Cell) -> float:
    """Return the optimum over real lengths, which no integer plan can exceed.

    One dimension is enough: the goodput is quasi-concave in phi, and lambda follows from phi
    (golden section outside, bisection inside). For the paper's model only.

    Raises:
        CellError: where the cell has overhead, overlap, delay, rows that cost, or weights.
    """
    verify = cell.verify
    extras = cell.overhead_bits or cell.overlap or verify.per_row_s or verify.per_padded_row_s
    if extras or cell.delay_s.any() or (cell.weight != 1.0).any():
        raise CellError("relaxed_bound: only the paper's own model is relaxed")
    low_s, high_s = (float(edge) for edge in search_box(cell, 2)[0])
    left, right = np.log(low_s * 0.1), np.log(high_s)
    for _ in range(60):
        first, second = right - GOLDEN * (right - left), left + GOLDEN * (right - left)
        if relaxed_goodput(cell, np.exp(first)) < relaxed_goodput(cell, np.exp(second)):
            left = first
        else:
            right = second
    return relaxed_goodput(cell, float(np.exp((left + right) / 2.0)))


def relaxed_goodput(cell: Cell, phi: float) -> float:
    """Return the best goodput of real lengths that meet the deadline phi, 0 where none do."""
    a = cell.acceptance()
    lengths = lengths_at(cell, phi)
    if lengths is None:
        return 0.0
    tokens = (1.0 - a ** (lengths + 1.0)) / (1.0 - a)
    fixed_s = cell.verify.fixed_s + cell.verify.per_request_s * cell.count
    return float(tokens.sum() / (phi + fixed_s))


def lengths_at(cell: Cell, phi: float) -> Floats | None:
    """Return the real lengths that use all the band by phi, or None where the least need more."""
    low, high = 1e-300, 1e300

    def attempt(multiplier: float) -> tuple[Floats, float]:
        real = relaxed_lengths(cell, np.array([phi]), np.array([multiplier]))[0]
        lengths = np.clip(real, float(cell.min_length), float(cell.max_length))
        room = phi - lengths * cell.draft_s
        need = cell.payload_bits * lengths / cell.efficiency
        if (need[room <= 0.0] > 0.0).any():
            return lengths, np.inf
        return lengths, float((need / np.where(room > 0.0, room, 1.0)).sum())

    if attempt(high)[1] > cell.bandwidth_hz:
        return None
    for _ in range(200):
        middle = float(np.sqrt(low) * np.sqrt(high))
        if attempt(middle)[1] > cell.bandwidth_hz:
            low = middle
        else:
            high = middle
        if high <= low * (1.0 + 1e-15):
            break
    return attempt(high)[0]
