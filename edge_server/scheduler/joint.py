"""One joint plan for a measured cell: lengths, shares, modes and the engine's policy.

A question holds everything that the answer depends on, so that whoever has the time may answer it,
in this process or in another. Knows no session, no estimator and no clock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from edge_server.scheduler.capacity import capacity
from edge_server.scheduler.cell import Cell, CellError, Plan
from edge_server.scheduler.continuous import continuous, continuous_plan
from edge_server.scheduler.energy import bounded_plan
from edge_server.scheduler.heterogeneous import heterogeneous
from edge_server.scheduler.modes import RatioMode, best_mode, with_modes
from edge_server.scheduler.ping_pong import ping_pong

__all__ = ["OBJECTIVES", "POLICIES", "Answer", "Question", "answer"]

OBJECTIVES = ("capacity", "energy", "fair", "goodput")
POLICIES = ("auto", "continuous", "ping_pong", "synchronous")
POLISHED = 8  # devices up to which there is time for local moves without a barrier
SWITCH_GAIN = 0.03  # what another policy must promise beyond the present one


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is to be planned.

    Attributes:
        cell: as measured, with the survival of drafts without distributions.
        policy: one of `POLICIES`; `auto` lets the answer choose.
        objective: one of `OBJECTIVES`.
        rate_tokens_per_s: what a device must get under `capacity`.
        following: the policy that the engine follows now, kept where another gains little.
        ratio_modes: per device, the ways to upload distributions that it may be moved to.
        always_upload: whoever has such a way takes the first.
        usual_length: of a draft, to charge a message's overhead by.
    """

    cell: Cell
    policy: str
    objective: str = "goodput"
    rate_tokens_per_s: float = 0.0
    following: str = "continuous"
    ratio_modes: tuple[tuple[RatioMode, ...], ...] = ()
    always_upload: bool = False
    usual_length: int = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A plan.

    Attributes:
        policy: what the engine is to follow.
        plan: lengths and band.
        modes: per device, how it uploads distributions; None for ids only.
    """

    policy: str
    plan: Plan
    modes: tuple[RatioMode | None, ...]


def answer(question: Question) -> Answer:
    """Return the best plan found; distributions are uploaded where that raises the goodput."""
    cell, nobody = question.cell, (None,) * question.cell.count
    ways = question.ratio_modes or ((),) * cell.count
    if question.always_upload:
        modes = tuple(own[0] if own else None for own in ways)
        policy, plan = _plan(question, with_modes(cell, modes, length=question.usual_length))
        return Answer(policy=policy, plan=plan, modes=modes)
    policy, plan = _plan(question, cell)
    modes = tuple(best_mode(cell, plan, k, own) for k, own in enumerate(ways))
    if any(modes):
        other_policy, other = _plan(question, with_modes(cell, modes, length=question.usual_length))
        if other.weighted_goodput > plan.weighted_goodput:
            return Answer(policy=other_policy, plan=other, modes=modes)
    return Answer(policy=policy, plan=plan, modes=nobody)


def _plan(question: Question, cell: Cell) -> tuple[str, Plan]:
    """Return the plan for the objective; where that cannot be had, the one for goodput."""
    fixed = question.policy != "auto"
    if question.objective == "energy" or cell.energy_cap_w is not None:
        bounded = _bounded(question, cell)
        if bounded is None:
            return _goodput(question, cell)
        return question.policy if fixed else "synchronous", bounded
    if question.objective == "capacity":
        served = capacity(cell, question.rate_tokens_per_s)
        lengths, bands = np.zeros(cell.count, dtype=np.int64), np.zeros(cell.count)
        lengths[served.served], bands[served.served] = served.lengths, served.bandwidth_hz
        plan = continuous_plan(cell, np.maximum(lengths, cell.min_length), bands + 1e-9)
        return question.policy if fixed else "continuous", plan
    return _goodput(question, cell)


def _bounded(question: Question, cell: Cell) -> Plan | None:
    """Return the plan within cap and rate; without the rate, or nearest the cap, if need be."""
    try:
        return bounded_plan(cell, efficiency=question.objective == "energy")
    except CellError:
        if cell.energy_cap_w is None:
            return None
    return bounded_plan(replace(cell, min_rate=0.0), efficiency=False, strict=False)


def _goodput(question: Question, cell: Cell) -> tuple[str, Plan]:
    fair = question.objective == "fair"
    solvers: dict[str, Callable[[], Plan]] = {
        "continuous": lambda: continuous(cell, fair=fair, polish=cell.count <= POLISHED),
        "synchronous": lambda: heterogeneous(cell, fair=fair),
        "ping_pong": lambda: ping_pong(cell),
    }
    names = [question.policy]
    if question.policy == "auto":
        names = ["continuous", "synchronous"]
        if cell.count > 1 and not fair:
            names.append("ping_pong")
    elif question.policy == "ping_pong" and cell.count < 2:
        names = ["continuous"]
    plans = {name: solvers[name]() for name in names}
    best = max(plans, key=lambda name: plans[name].weighted_goodput)
    kept = plans.get(question.following)
    if kept and plans[best].weighted_goodput <= (1.0 + SWITCH_GAIN) * kept.weighted_goodput:
        best = question.following
    return best, plans[best]
