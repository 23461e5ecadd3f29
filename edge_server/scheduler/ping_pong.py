"""Two groups in ping-pong: while one is verified, the other drafts and uploads.

The groups strictly alternate. Group g drafts and uploads with the whole band by its deadline phi_g
while the other group is verified (T_other), so that a period takes
`max(phi_0, T_1) + max(phi_1, T_0)`, and what a group drafts within the other's verification is
free. Which device goes in which group is part of the plan.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edge_server.scheduler.cell import Cell, CellError, Floats, Ints, Plan
from edge_server.scheduler.deadline import band, deadline
from edge_server.scheduler.heterogeneous import (
    better,
    bounded,
    common_lengths,
    polish,
    scan,
)

__all__ = ["ping_pong"]

JOINT_DEVICES = 24  # up to here pairs of devices are stepped together
REFINE_DEVICES = 12  # up to here devices are moved between groups while that helps
TRIES_DEVICES = 200  # up to here every way to split is solved, beyond only the first
SOLVED_SPLITS = 2
SOLVED_STEPS = 3
SWEEPS = 3


@dataclass(frozen=True, slots=True)
class GroupGoal:
    """The period's goodput as a function of one group's lengths, the other group's being given."""

    value: Floats
    other_value: float
    other_phi_s: float
    other_verify_s: float

    def score(self, cell: Cell, lengths: Ints) -> Floats:
        """Return the period's weighted goodput; lengths [..., K_g] -> [...]."""
        total = self.value[np.arange(cell.count), lengths].sum(axis=-1) + self.other_value
        period_s = np.maximum(deadline(cell, lengths), self.other_verify_s) + np.maximum(
            self.other_phi_s, cell.verify_s(lengths)
        )
        score: Floats = total / period_s
        return score

    def price(self, cell: Cell, lengths: Ints) -> float:
        """Return what a second is worth; a row costs one only where this group holds up."""
        holds_up = cell.verify_s(lengths) >= self.other_phi_s
        return float(self.score(cell, lengths)) if holds_up else 0.0


def ping_pong(cell: Cell) -> Plan:
    """Return groups, lengths and shares for two groups in ping-pong.

    The shares of each group add up to the whole band, as only one group uploads at a time.

    Raises:
        CellError: with fewer than two devices.
    """
    if cell.count < 2:
        raise CellError("devices: ping-pong needs at least two")
    ways = sorted(splits(cell), key=lambda groups: -common_start(cell, groups)[1])
    tried = [(*solve_groups(cell, groups), groups) for groups in ways[:SOLVED_SPLITS]]
    lengths, score, groups = max(tried, key=lambda found: found[1])
    best = score, groups, lengths
    if cell.count <= REFINE_DEVICES:
        best = refine(cell, *best)
    return plan_groups(cell, best[1], best[2])


def splits(cell: Cell) -> list[Ints]:
    """Return ways to split the devices into groups 0 and 1, as equal as can be.

    Devices sorted by what holds their group up (draft time, link, both, tokens to gain) are dealt
    out in turn, which makes two alike groups, or cut in the middle, which puts like with like.
    """
    middle = max(1, cell.max_length // 2)
    bits = middle * cell.payload_bits + cell.overhead_bits
    upload_s = cell.count * bits / (cell.bandwidth_hz * cell.efficiency)
    keys = (
        middle * cell.draft_s + upload_s,
        -cell.tokens()[:, -1],
        cell.draft_s,
        upload_s,
    )
    found = []
    for key in keys if cell.count <= TRIES_DEVICES else keys[:1]:
        rank = np.argsort(np.argsort(key, kind="stable"))
        found += [rank % 2, (rank >= cell.count // 2).astype(np.int64)]
    return list(np.unique(np.array(found), axis=0)) if cell.count <= TRIES_DEVICES else found[:1]


def solve_groups(cell: Cell, groups: Ints) -> tuple[Ints, float]:
    """Return lengths for given groups and the goodput they come to, group by group in turn."""
    members = [np.flatnonzero(groups == group) for group in (0, 1)]
    parts = [cell.subset(chosen) for chosen in members]
    common, _ = common_start(cell, groups)
    lengths = [np.full(part.count, common[group]) for group, part in enumerate(parts)]
    score = -np.inf
    for _ in range(SWEEPS):
        for group in (0, 1):
            lengths[group] = best_response(parts, lengths, group)
        found = float(goal_of(parts, lengths, 1).score(parts[1], lengths[1]))
        if found <= score * (1.0 + 1e-9):
            break
        score = found
    everyone = np.empty(cell.count, dtype=np.int64)
    for chosen, part_lengths in zip(members, lengths, strict=True):
        everyone[chosen] = part_lengths
    if cell.count > JOINT_DEVICES:
        return everyone, score
    return joint_polish(cell, members, everyone)


def joint_polish(cell: Cell, members: list[Ints], lengths: Ints) -> tuple[Ints, float]:
    """Return lengths that no step of two devices, in one group or in both, improves.

    A longer draft in one group may pay only once the other's grow too: group by group misses that.
    """
    eye = np.eye(cell.count, dtype=np.int64)
    signed = np.concatenate((eye, -eye))
    steps = np.unique((signed[:, None] + signed[None]).reshape(-1, cell.count), axis=0)
    steps = np.concatenate((signed, steps))  # [M, K]
    while True:
        near = np.concatenate((lengths[None], bounded(cell, lengths + steps)))
        score = period_goodput(cell, members, near)
        at = int(np.argmax(score))
        if score[at] <= score[0] * (1.0 + 1e-12):
            return lengths, float(score[0])
        lengths = near[at]


def period_goodput(cell: Cell, members: list[Ints], lengths: Ints) -> Floats:
    """Return the weighted goodput of lengths [M, K] in given groups; [M]."""
    parts = [cell.subset(chosen) for chosen in members]
    own = [lengths[:, chosen] for chosen in members]
    phi = [deadline(part, mine) for part, mine in zip(parts, own, strict=True)]
    pass_s = [part.verify_s(mine) for part, mine in zip(parts, own, strict=True)]
    value = (cell.weight * cell.tokens()[np.arange(cell.count), lengths]).sum(axis=1)
    goodput: Floats = value / (np.maximum(phi[0], pass_s[1]) + np.maximum(phi[1], pass_s[0]))
    return goodput


def common_start(cell: Cell, groups: Ints) -> tuple[tuple[int, int], float]:
    """Return the best pair of lengths, one for each group, and the goodput they come to."""
    value, phi, pass_s = [], [], []
    for group in (0, 1):
        part = cell.subset(np.flatnonzero(groups == group))
        levels = np.arange(cell.min_length, cell.max_length + 1)
        every = np.repeat(levels[:, None], part.count, axis=1)
        value.append((part.weight @ part.tokens())[levels])
        phi.append(deadline(part, every))
        pass_s.append(part.verify_s(every))
    period_s = np.maximum(phi[0][:, None], pass_s[1]) + np.maximum(phi[1], pass_s[0][:, None])
    goodput = (value[0][:, None] + value[1]) / period_s
    first, second = np.unravel_index(int(np.argmax(goodput)), goodput.shape)
    lengths = int(first) + cell.min_length, int(second) + cell.min_length
    return lengths, float(goodput[first, second])


def goal_of(parts: list[Cell], lengths: list[Ints], group: int) -> GroupGoal:
    """Return the goal of one group, the other's lengths as they are."""
    other, part = lengths[1 - group], parts[1 - group]
    value = part.weight[:, None] * part.tokens()
    return GroupGoal(
        value=parts[group].weight[:, None] * parts[group].tokens(),
        other_value=float(value[np.arange(part.count), other].sum()),
        other_phi_s=float(deadline(part, other)),
        other_verify_s=float(part.verify_s(other)),
    )


def best_response(parts: list[Cell], lengths: list[Ints], group: int) -> Ints:
    """Return one group's best lengths, the other's as they are."""
    part, goal = parts[group], goal_of(parts, lengths, group)
    best = better(part, goal, lengths[group], common_lengths(part, goal)[None])
    padded = part.verify.per_padded_row_s > 0.0
    for cap in range(part.max_length, part.min_length, -1) if padded else (part.max_length,):
        if cap > part.min_length:
            best = better(part, goal, best, scan(part, goal, best, cap))
    return polish(part, goal, best)


def refine(cell: Cell, score: float, groups: Ints, lengths: Ints) -> tuple[float, Ints, Ints]:
    """Move and swap devices between the groups while that helps."""
    while True:
        found = (score, groups, lengths)
        steps = sorted(regroupings(groups), key=lambda step: -common_start(cell, step)[1])
        for step in steps[:SOLVED_STEPS]:
            new_lengths, new_score = solve_groups(cell, step)
            if new_score > found[0] * (1.0 + 1e-9):
                found = new_score, step, new_lengths
        if found[0] <= score:
            return found
        score, groups, lengths = found


def regroupings(groups: Ints) -> list[Ints]:
    """Return the groups after one move, or one swap, that leaves none empty."""
    found = []
    for k in range(len(groups)):
        for other in range(k, len(groups)):
            if other != k and groups[other] == groups[k]:
                continue
            step = groups.copy()
            step[k] = 1 - step[k]
            if other != k:
                step[other] = 1 - step[other]
            if 0 < step.sum() < len(step):
                found.append(step)
    return found


def plan_groups(cell: Cell, groups: Ints, lengths: Ints) -> Plan:
    """Return the plan of given groups and lengths; a deadline is stretched to what is free."""
    hz = np.zeros(cell.count)
    phi_s, verify_s = [0.0, 0.0], [0.0, 0.0]
    members = [np.flatnonzero(groups == group) for group in (0, 1)]
    for group, chosen in enumerate(members):
        part = cell.subset(chosen)
        phi_s[group] = float(deadline(part, lengths[chosen]))
        verify_s[group] = float(part.verify_s(lengths[chosen]))
        hz[chosen], _ = band(part, lengths[chosen], np.float64(phi_s[group]))
    period_s = max(phi_s[0], verify_s[1]) + max(phi_s[1], verify_s[0])
    return Plan(
        policy="ping-pong",
        lengths=lengths,
        bandwidth_hz=hz,
        round_s=period_s,
        rates=cell.tokens()[np.arange(cell.count), lengths] / period_s,
        weight=cell.weight,
        groups=tuple(int(group) for group in groups),
    )
