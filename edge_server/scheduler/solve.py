"""One name per scheduler: solve a cell by any of them, or by the best.

Knows the solvers, and no file and no command line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from edge_server.scheduler.algorithm_1 import algorithm_1
from edge_server.scheduler.baselines import fixed, server_only, uniform_bandwidth
from edge_server.scheduler.cell import Cell, CellError, Plan
from edge_server.scheduler.continuous import continuous
from edge_server.scheduler.heterogeneous import heterogeneous
from edge_server.scheduler.homogeneous import homogeneous
from edge_server.scheduler.limits import physical_bound
from edge_server.scheduler.ping_pong import ping_pong

__all__ = ["AUTO_CHOICES", "SCHEMES", "auto", "solve"]

SOLVERS: dict[str, Callable[[Cell], Plan]] = {
    "uniform-bandwidth": uniform_bandwidth,
    "homogeneous": homogeneous,
    "algorithm-1": algorithm_1,
    "heterogeneous": heterogeneous,
    "ping-pong": ping_pong,
    "continuous": continuous,
    "server-only": server_only,
}
SCHEMES = ("fixed", *SOLVERS, "auto")
AUTO_CHOICES = ("server-only", "heterogeneous", "ping-pong", "continuous")


def auto(cell: Cell) -> Plan:
    """Return the plan of the scheme with the highest predicted weighted goodput."""
    names = [name for name in AUTO_CHOICES if name != "ping-pong" or cell.count > 1]
    return max((SOLVERS[name](cell) for name in names), key=lambda plan: plan.weighted_goodput)


def solve(cell: Cell, policy: str, *, length: int = 8) -> Plan:
    """Return a plan for the cell, with an upper bound on its kind.

    Args:
        cell: the cell.
        policy: one of `SCHEMES`.
        length: the draft length of `fixed`.

    Raises:
        CellError: for an unknown policy, or one that the cell cannot have.
    """
    if policy == "fixed":
        plan = fixed(cell, length=length)
    elif policy == "auto":
        plan = auto(cell)
    elif policy in SOLVERS:
        plan = SOLVERS[policy](cell)
    else:
        raise CellError(f"--policy must be one of {', '.join(SCHEMES)}, got {policy!r}")
    if plan.bound_tokens_per_s < float("inf"):
        return plan
    if plan.policy in {"ping-pong", "continuous"}:
        bound = physical_bound(cell)
    else:  # all of these keep a common round, so that its bound holds for them
        bound = heterogeneous(cell).bound_tokens_per_s
    return replace(plan, bound_tokens_per_s=max(bound, plan.weighted_goodput))
