"""One draft length for all: the paper's problem (18), in closed form where it has one."""

from __future__ import annotations

import math

import numpy as np

from edge_server.scheduler.cell import Cell, Plan
from edge_server.scheduler.deadline import deadline
from edge_server.scheduler.heterogeneous import common_lengths, goodput_of, plan_of

__all__ = ["homogeneous", "optimal_length", "real_length", "token_deadline"]


def token_deadline(cell: Cell) -> float:
    """Return theta, the least time per token that all devices can meet, equation (21)."""
    return float(deadline(cell, np.ones(cell.count, dtype=np.int64)))


def real_length(*, acceptance: float, theta_s: float, verify_s: float) -> float:
    """Return the stationary real length of equation (24); -1 where goodput falls from the start.

    With x = b (L + 1), b = -ln a, t = T_ver / theta, (24) is the root of e^x = x + 1 + b (t - 1),
    found by Newton from above; the printed form with W_{-1} underflows for long verification.
    """
    if not 0.0 < acceptance < 1.0:
        raise ValueError(f"acceptance must be in (0, 1), got {acceptance}")
    rate = -math.log(acceptance)
    constant = 1.0 + rate * (verify_s / theta_s - 1.0)
    if constant <= 1.0:
        return -1.0
    x = math.log(constant + math.log(constant + 1.0) + 1.0)
    for _ in range(50):
        step = (math.exp(x) - x - constant) / (math.exp(x) - 1.0)
        x -= step
        if abs(step) < 1e-14 * x:
            break
    return x / rate - 1.0


def optimal_length(
    *, acceptance: float, theta_s: float, verify_s: float, row_s: float = 0.0, longest: int = 25
) -> int:
    """Return the best common length in [1, longest], the better neighbour of (24), equation (23).

    Args:
        acceptance: a, in (0, 1).
        theta_s: time per drafted token, (21).
        verify_s: the part of the verification time that does not depend on the length.
        row_s: what one more token for every device adds to verification: K times the cost of a row.
        longest: the greatest length allowed.
    """
    theta_s, verify_s = theta_s + row_s, verify_s + row_s
    below = math.floor(real_length(acceptance=acceptance, theta_s=theta_s, verify_s=verify_s))
    candidates = [min(max(length, 1), longest) for length in (below, below + 1)]

    def goodput(length: int) -> float:
        return (1.0 - acceptance ** (length + 1)) / (length * theta_s + verify_s)

    return max(candidates, key=goodput)


def homogeneous(cell: Cell) -> Plan:
    """Return the best common length with the band of (20).

    Where acceptances differ, or the cell has more than the paper's model, all lengths are tried:
    theirs is the same unimodal function of one integer, without the closed form.
    """
    acceptance = cell.acceptance()
    curve = acceptance[0] ** np.arange(1, cell.max_length + 1)
    plain = (
        cell.max_length > 0
        and not cell.overlap
        and cell.overhead_bits == 0.0
        and not cell.delay_s.any()
        and bool(np.allclose(cell.survival, curve, rtol=1e-12, atol=0.0))
    )
    if not plain:
        return plan_of(cell, "homogeneous", common_lengths(cell, goodput_of(cell)))
    verify = cell.verify
    length = optimal_length(
        acceptance=float(acceptance[0]),
        theta_s=token_deadline(cell),
        verify_s=verify.fixed_s + verify.per_request_s * cell.count,
        row_s=(verify.per_row_s + verify.per_padded_row_s) * cell.count,
        longest=cell.max_length,
    )
    length = max(length, cell.min_length)
    goal = goodput_of(cell)
    candidates = np.array([[length] * cell.count, [cell.min_length] * cell.count])
    # Drafting pays at all only if it beats the shortest length allowed, 0 where it may opt out.
    return plan_of(cell, "homogeneous", candidates[int(np.argmax(goal.score(cell, candidates)))])
