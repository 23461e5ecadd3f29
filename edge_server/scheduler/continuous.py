"""Verification without a barrier: a model of it, and lengths and shares for it.

Every device goes round by itself: it drafts and uploads (A_k), waits for the pass in progress to
end (W_k), and is verified with whatever else has arrived (D). A pass is as long as its batch, the
batch as large as the load: a fixed point. `predict` solves it for given lengths and shares;
`continuous` chooses them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edge_server.scheduler.cell import Cell, Floats, Ints, Plan
from edge_server.scheduler.deadline import latency

__all__ = ["Load", "predict"]

STEPS = 200
PHASE_LOSS = 0.5  # a pass; fitted to event simulation, flat between 0.25 and 2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Load:
    """What lengths and shares come to; [...] over plans.

    Attributes:
        cycle_s: time from one verdict of a device to its next; [..., K].
        pass_s: mean time of a pass, D.
        every_s: mean time from the start of one pass to the start of the next, C.
        batch: mean number of requests a pass.
    """

    cycle_s: Floats
    pass_s: Floats
    every_s: Floats
    batch: Floats


def predict(cell: Cell, lengths: Ints, bandwidth_hz: Floats) -> Load:
    """Return the steady state of given lengths and bands, both [..., K]."""
    away_s = latency(cell, lengths, bandwidth_hz)  # A_k
    cost, rows = cell.verify, lengths + 1.0
    every_s = cell.verify_s(np.asarray(lengths))
    pass_s, cycle_s = every_s, away_s + every_s[..., None]
    for _ in range(STEPS):
        wait_s = waiting(away_s, pass_s[..., None], busy(cycle_s, pass_s, every_s))
        cycle_s = away_s + wait_s + pass_s[..., None]
        # Seen from the passes: the part of them that device k is in, at most every one.
        part = np.minimum(every_s[..., None] / cycle_s, 1.0)
        batch = np.maximum(part.sum(axis=-1), 1.0)
        new_pass_s = (
            cost.fixed_s
            + cost.per_request_s * batch
            + cost.per_row_s * (part * rows).sum(axis=-1) * batch / part.sum(axis=-1)
            + cost.per_padded_row_s * batch * longest(lengths, part)
        )
        new_every_s = new_pass_s + idle(away_s, part, new_pass_s[..., None])
        change = np.abs(new_every_s - every_s) / every_s
        pass_s, every_s = 0.5 * (pass_s + new_pass_s), 0.5 * (every_s + new_every_s)
        if np.all(change < 1e-9):
            break
    return Load(cycle_s=cycle_s, pass_s=pass_s, every_s=every_s, batch=batch)


def busy(cycle_s: Floats, pass_s: Floats, every_s: Floats) -> Floats:
    """Return the part of the time that a pass with others in it runs; [..., K]."""
    often = 1.0 / cycle_s
    others = pass_s[..., None] * (often.sum(axis=-1, keepdims=True) - often)
    return np.minimum((pass_s / every_s)[..., None], others)


def waiting(away_s: Floats, pass_s: Floats, busy_part: Floats) -> Floats:
    """Return the mean wait for the pass in progress to end, W_k.

    One that is back before the next pass ends waits for exactly the rest of it; after many passes
    all phases are equally likely and the wait is half a pass. In between, the first fades.
    """
    ratio = away_s / pass_s
    rest = np.ceil(ratio) - ratio
    level = 0.5 + (rest - 0.5) * np.exp(-PHASE_LOSS * ratio)
    wait_s: Floats = busy_part * pass_s * level
    return wait_s


def idle(away_s: Floats, part: Floats, pass_s: Floats) -> Floats:
    """Return the mean idle time of the server between two passes."""
    there = np.maximum(away_s, 1e-12)
    arrives = (1.0 - part) * np.minimum(1.0, pass_s / there)
    nobody = np.prod(1.0 - arrives, axis=-1) * (away_s.min(axis=-1) > 0.0)
    return nobody / (1.0 / there).sum(axis=-1)


def longest(lengths: Ints, part: Floats) -> Floats:
    """Return the mean of the longest draft's rows in a pass."""
    levels = np.arange(int(lengths.max()) + 1)
    has = lengths[..., None] >= levels  # row l + 1 is there
    none = np.prod(1.0 - np.where(has, part[..., None], 0.0), axis=-2)
    return (1.0 - none).sum(axis=-1)
