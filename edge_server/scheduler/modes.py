"""Ratio mode or not: which devices are faster when they send distributions along.

A distribution costs bits on every drafted token and makes rejections rarer. What pays depends on
the device's link and share. It knows cells and plans, and no session.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from edge_server.scheduler.cell import Cell, Floats, Plan

__all__ = ["RatioMode", "best_mode", "rescaled", "with_modes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RatioMode:
    """One way to send distributions along: what it costs and what it gains.

    Attributes:
        support: tokens kept of every uploaded distribution, m.
        bits_per_token: bits of one drafted token on the wire, id and distribution.
        acceptance_gain: by which the chance of a rejection shrinks against coupled mode, in (0, 1].
    """

    support: int
    bits_per_token: float
    acceptance_gain: float

    def __post_init__(self) -> None:
        if self.support < 1 or not self.bits_per_token > 0.0:
            raise ValueError(f"support and bits_per_token must be above 0: {self}")
        if not 0.0 < self.acceptance_gain <= 1.0:
            raise ValueError(f"acceptance_gain must be in (0, 1], got {self.acceptance_gain}")


def rescaled(curve: Floats, factor: float) -> Floats:
    """Return a survival curve with every step's chance of rejection times `factor`."""
    hazard = curve / np.concatenate(([1.0], curve[:-1]))
    miss = np.minimum((1.0 - hazard) * factor, 1.0 - 1e-6)
    return np.cumprod(1.0 - miss, dtype=np.float64)


def best_mode(cell: Cell, plan: Plan, k: int, modes: tuple[RatioMode, ...]) -> RatioMode | None:
    """Return the ratio mode that device k would be faster with in this plan, None for none.

    Judged on its own link and share, at its best length, the rest of its round staying as it is.
    """
    length = int(plan.lengths[k])
    if length == 0:
        return None
    speed = float(plan.bandwidth_hz[k] * cell.efficiency[k])
    cycle_s = float(cell.tokens()[k, length] / plan.rates[k])
    sent_s = (cell.overhead_bits + length * cell.payload_bits) / speed
    rest_s = max(0.0, cycle_s - length * float(cell.draft_s[k]) - sent_s)
    lengths = np.arange(1, cell.max_length + 1)

    def best_rate(curve: Floats, bits: float) -> float:
        upload_s = (cell.overhead_bits + lengths * bits) / speed
        tokens = 1.0 + np.cumsum(curve)
        return float((tokens / (rest_s + lengths * cell.draft_s[k] + upload_s)).max())

    found: RatioMode | None = None
    best = best_rate(cell.survival[k], cell.payload_bits)
    for mode in modes:
        curve = rescaled(cell.survival[k], mode.acceptance_gain)
        rate = best_rate(curve, mode.bits_per_token)
        if rate > best:
            found, best = mode, rate
    return found


def with_modes(cell: Cell, chosen: Sequence[RatioMode | None], *, length: int) -> Cell:
    """Return the cell with the chosen modes' survival and bits.

    A token has the mean of the chosen modes' bits where all devices have one; what a device's
    tokens differ from that appears as a slower or faster link. That is exact for drafts of `length`
    tokens; at others the message's overhead is off by as much as the tokens differ.
    """
    modes = [mode for mode in chosen if mode is not None]
    every = len(modes) == cell.count
    bits = float(np.mean([mode.bits_per_token for mode in modes])) if every else cell.payload_bits
    survival, efficiency = cell.survival.copy(), cell.efficiency.copy()
    usual = cell.overhead_bits + length * bits
    for k, mode in enumerate(chosen):
        if mode is not None:
            survival[k] = rescaled(survival[k], mode.acceptance_gain)
            efficiency[k] *= usual / (cell.overhead_bits + length * mode.bits_per_token)
    return replace(cell, survival=survival, efficiency=efficiency, payload_bits=bits)
