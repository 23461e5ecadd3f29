"""One name per scheduler: solve a cell by any of them, or by the best.

Knows the solvers, and no file and no command line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from edge_server.scheduler.algorithm_1 import algorithm_1
from edge_server.scheduler.baselines import fixed, server_only, uniform_bandwidth
from edge_server.scheduler.cell import Cell, CellError, Plan
from edge_server.scheduler.certificate import tightened
from edge_server.scheduler.continuous import continuous
from edge_server.scheduler.energy import bounded_plan, with_joules
from edge_server.scheduler.heterogeneous import heterogeneous
from edge_server.scheduler.homogeneous import homogeneous
from edge_server.scheduler.limits import physical_bound
from edge_server.scheduler.ping_pong import ping_pong

__all__ = ["AUTO_CHOICES", "OBJECTIVES", "SCHEMES", "auto", "solve"]

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
OBJECTIVES = ("goodput", "fair", "energy")
AUTO_CHOICES = ("server-only", "heterogeneous", "ping-pong", "continuous")


def auto(cell: Cell) -> Plan:
    """Return the plan of the scheme with the highest predicted weighted goodput."""
    names = [name for name in AUTO_CHOICES if name != "ping-pong" or cell.count > 1]
    return max((SOLVERS[name](cell) for name in names), key=lambda plan: plan.weighted_goodput)


def solve(cell: Cell, policy: str, *, length: int = 8, objective: str = "goodput") -> Plan:
    """Return a plan for the cell, with its joules per token and an upper bound on its goodput.

    A cell with an energy cap or a least rate, and objective `energy`, are planned for synchronous
    rounds by `auto` and `heterogeneous`; the other policies know no such bounds.

    Args:
        cell: the cell.
        policy: one of `SCHEMES`.
        length: the draft length of `fixed`.
        objective: `goodput`; `fair` (proportional) or `energy` (tokens per joule) for `auto`,
            `heterogeneous` and, if fair, `continuous`.

    Raises:
        CellError: for an unknown policy or objective, or one that the cell cannot have.
    """
    if objective not in OBJECTIVES:
        raise CellError(f"--objective must be one of {', '.join(OBJECTIVES)}, got {objective!r}")
    bounds = cell.energy_cap_w is not None or cell.min_rate > 0.0
    if (objective == "energy" or bounds) and policy in {"auto", "heterogeneous"}:
        plan = bounded_plan(cell, efficiency=objective == "energy")
        return replace(plan, bound_tokens_per_s=heterogeneous(cell).bound_tokens_per_s)
    if objective == "energy" or bounds:
        raise CellError(
            f"--policy {policy} knows no energy objective, energy_cap_w or min_rate_tokens_per_s; "
            "use heterogeneous or auto"
        )
    if objective == "fair":
        return with_joules(cell, fair_plan(cell, policy))
    return with_joules(cell, bound(cell, plain(cell, policy, length)))


def fair_plan(cell: Cell, policy: str) -> Plan:
    """Return the plan of most proportional fairness, Σ w_k log(rate_k)."""
    plans = {
        "heterogeneous": lambda: heterogeneous(cell, fair=True),
        "continuous": lambda: continuous(cell, fair=True),
    }
    names = list(plans) if policy == "auto" else [policy]
    if not set(names) <= set(plans):
        raise CellError(f"--policy {policy} has no fair objective; use {', '.join(plans)} or auto")
    found = [plans[name]() for name in names]
    return max(found, key=lambda plan: float(cell.weight @ np.log(plan.rates)))


def plain(cell: Cell, policy: str, length: int) -> Plan:
    """Return the plan of most goodput."""
    if policy == "fixed":
        return fixed(cell, length=length)
    if policy == "auto":
        return auto(cell)
    if policy in SOLVERS:
        return SOLVERS[policy](cell)
    raise CellError(f"--policy must be one of {', '.join(SCHEMES)}, got {policy!r}")


def bound(cell: Cell, plan: Plan) -> Plan:
    """Return the plan with the best upper bound that is known for schemes of its kind."""
    if plan.policy == "server-only":
        return plan  # is its own bound
    if plan.policy in {"ping-pong", "continuous"}:
        limit = min(plan.bound_tokens_per_s, physical_bound(cell))
    else:  # all of these keep a common round, so that its bound holds for them
        exact = plan if plan.policy == "heterogeneous" else heterogeneous(cell)
        limit = exact.bound_tokens_per_s
        if cell.verify.per_padded_row_s == 0.0 and cell.max_length > 0:
            value = cell.weight[:, None] * cell.tokens()
            limit = min(limit, tightened(cell, value, exact.lengths))
    return replace(plan, bound_tokens_per_s=max(limit, plan.weighted_goodput))
