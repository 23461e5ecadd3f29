"""An upper bound on what any lengths can reach, and which lengths it leaves standing.

Lagrangian dual of the synchronous problem: the common deadline is split into one copy per device
with prices y_k (Σ y_k = tau, what a second is worth), the band gets price lambda, and then every
device stands alone: over its length l and its own deadline phi_k it maximises
`value_k(l) - tau c1 l - lambda B_k(l, phi_k) - y_k phi_k`, where the maximum over phi_k is in
closed form. Any prices give a valid bound; good ones come from the incumbent.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edge_server.scheduler.cell import Cell, Floats, Ints
from edge_server.scheduler.deadline import band, deadline, message_bits

__all__ = ["Dual", "dual_bound", "tightened"]

GOOD_SURPLUS = 3e-3  # of the value; above it the prices are adjusted to the price of band
TIGHTENING, BISECTIONS = 300, 12
NEARBY = np.geomspace(0.8, 1.25, 15)  # factors on the price of band
BLENDS = (0.0, 0.0, 0.3, 0.6, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dual:
    """What the dual says at the incumbent's goodput tau.

    Attributes:
        surplus: most by which value - tau × round can exceed 0.
        loss: [K, longest - shortest + 1], how much of it a device gives up at each length.
        scale: the incumbent's value, to judge the surplus by.
        bound: no lengths reach more than this.
    """

    surplus: float
    loss: Floats
    shortest: int
    scale: float
    bound: float

    def may_improve(self, tolerance: float = 0.0) -> bool:
        """Return whether the dual leaves room for a relative gain above the tolerance."""
        return self.surplus > tolerance * self.scale

    def choices(self) -> list[Ints]:
        """Return, per device, the lengths that an improvement may have; empty if there is none."""
        slack = self.surplus + 1e-12 * self.scale
        if self.surplus < -1e-12 * self.scale:
            return [np.empty(0, dtype=np.int64)]
        return [np.flatnonzero(row <= slack) + self.shortest for row in self.loss]


def dual_bound(cell: Cell, value: Floats, incumbent: Ints, cap: int) -> Dual:
    """Return the dual at the incumbent's goodput, over lengths up to `cap`.

    Args:
        cell: the cell; with padding, a pass is charged as if its longest draft had `cap` tokens.
        value: [K, max_length + 1], non-decreasing in the length.
        incumbent: lengths from which the prices are taken.
        cap: the longest draft allowed.
    """
    lengths = np.minimum(incumbent, cap)
    total = float(value[np.arange(cell.count), incumbent].sum())
    tau = total / float(deadline(cell, incumbent) + cell.verify_s(incumbent))
    prices = Prices.at(cell, value, lengths, tau)
    surplus, terms, factor = prices.cheapest(cell, value, tau, cap)
    for part in BLENDS:
        if surplus <= GOOD_SURPLUS * total:
            break
        adjusted = Prices.at(cell, value, lengths, tau, price=prices.band * factor)
        prices = adjusted.blended(cell, lengths, part)
        other, other_terms, factor = prices.cheapest(cell, value, tau, cap)
        if other < surplus:
            surplus, terms = other, other_terms
    least_s = float(cell.verify_s(np.full(cell.count, cell.min_length)))  # of any round
    return Dual(
        surplus=surplus,
        loss=terms.max(axis=1, keepdims=True) - terms,
        shortest=cell.min_length,
        scale=total,
        bound=tau + max(0.0, surplus) / least_s,
    )


def tightened(cell: Cell, value: Floats, incumbent: Ints) -> float:
    """Return a bound whose prices were improved step by step from the incumbent's: tens of ms.

    The surplus is convex in all prices. What a device would rather have than the others, a later
    deadline than their mean or more than its part of the band, becomes dearer, by ever smaller
    factors (subgradients). A goodput at which the best prices met leave no surplus is out of
    reach; the least such is found by bisection. Not for cells that charge for padding.
    """
    total = float(value[np.arange(cell.count), incumbent].sum())
    tau = total / float(deadline(cell, incumbent) + cell.verify_s(incumbent))
    prices = Prices.at(cell, value, incumbent, tau)
    lengths = np.arange(cell.min_length, cell.max_length + 1)
    best, least = prices, np.inf
    for step in range(TIGHTENING):
        surplus, terms = prices.evaluate(cell, value, tau, cell.max_length, np.ones(1))
        if surplus[0] < least:
            best, least = prices, float(surplus[0])
        phi, hz = prices.wishes(cell, lengths[terms[0].argmax(axis=1)], tau)
        rate = 0.5 / np.sqrt(1.0 + step)
        late = np.clip(phi / max(float(prices.share @ phi), 1e-300) - 1.0, -1.0, 1.0)
        excess = np.clip(hz.sum() / cell.bandwidth_hz - 1.0, -1.0, 1.0)
        share = prices.share * np.exp(rate * late)
        prices = Prices(prices.band * float(np.exp(rate * excess)), share / share.sum())
    least_s = float(cell.verify_s(np.full(cell.count, cell.min_length)))  # of any round
    low, high = tau, tau + max(0.0, least) / least_s
    for _ in range(BISECTIONS):
        middle = 0.5 * (low + high)
        surplus, _ = best.evaluate(cell, value, middle, cell.max_length, NEARBY)
        low, high = (low, middle) if surplus.min() <= 0.0 else (middle, high)
    return high


def token_value(cell: Cell, value: Floats, lengths: Ints, tau: float) -> Floats:
    """Return what a token is worth between the length's last and the next; [K]."""
    every = np.arange(cell.count)
    steps = np.maximum(np.diff(value, axis=1) - tau * cell.verify.per_row_s, 1e-12)
    last = steps[every, np.maximum(lengths - 1, 0)]
    following = steps[every, np.minimum(lengths, steps.shape[1] - 1)]
    middle: Floats = np.sqrt(last * following)
    return middle


def stretch_s(cell: Cell, lengths: Ints, phi: float) -> Floats:
    """Return by how much one more token moves a device's deadline at the same band; [K]."""
    some = np.maximum(lengths, 1)
    left = phi - cell.delay_s
    if cell.overlap:
        upload_bound = left >= (some + 1) * cell.draft_s
        stretch = np.where(upload_bound, (left - cell.draft_s) / some, cell.draft_s)
    else:
        part = cell.payload_bits / (cell.overhead_bits + some * cell.payload_bits)
        stretch = cell.draft_s + np.maximum(left - some * cell.draft_s, 0.0) * part
    return np.maximum(stretch, 1e-12)


def starting_price(cell: Cell, value: Floats, price: float, tau: float) -> Floats:
    """Return the deadline's price at which a first draft is worth nothing to a device; [K]."""
    lengths = np.arange(1, value.shape[1])
    gain = value[:, 1:] - value[:, :1] - tau * cell.verify.per_row_s * lengths
    every = np.broadcast_to(lengths[:, None], (len(lengths), cell.count))
    bits = (message_bits(cell, every) / cell.efficiency).T
    drafting_s = np.maximum(lengths * cell.draft_s[:, None] + cell.delay_s[:, None], 1e-12)
    # The root s = sqrt(y) of drafting_s s^2 + 2 sqrt(price bits) s = gain.
    half = np.sqrt(price * bits)
    root = (np.sqrt(half**2 + drafting_s * np.maximum(gain, 0.0)) - half) / drafting_s
    highest: Floats = np.maximum((root**2).max(axis=1), 1e-300)
    return highest


@dataclass(frozen=True, slots=True)
class Prices:
    """Price of band, and every device's share of the price of the deadline."""

    band: float
    share: Floats  # [K], sums to 1

    @classmethod
    def at(
        cls, cell: Cell, value: Floats, lengths: Ints, tau: float, *, price: float | None = None
    ) -> Prices:
        """Return the prices that would hold if these lengths were optimal (KKT).

        A later deadline is worth to a device what it adds to its length times the value of a token;
        one that does not draft gets the price at which starting to would be worth nothing.
        """
        drafting = lengths > 0
        if not drafting.any():
            lengths = np.ones_like(lengths)
        phi = deadline(cell, lengths)
        stretch = stretch_s(cell, lengths, float(phi))
        y = np.where(lengths > 0, token_value(cell, value, lengths, tau) / stretch, 0.0)
        y *= tau / max(float(y.sum()), 1e-300)
        room = phi - cell.delay_s - lengths * cell.draft_s
        if price is None:
            price = float((y * np.maximum(room, 0.0)).sum()) / cell.bandwidth_hz
        start = starting_price(cell, value, price, tau)
        if cell.min_length == 0:  # dearer than that, and a device would rather not draft at all
            y = np.where(drafting, np.minimum(y, start), np.minimum(start, 0.5 * tau / cell.count))
            free = drafting & (y < start)
            missing = tau - float(y.sum())
            if missing > 0.0 and free.any():
                y = np.where(free, y * (1.0 + missing / float(y[free].sum())), y)
        return cls(price, y / y.sum())

    def blended(self, cell: Cell, lengths: Ints, part: float) -> Prices:
        """Return prices moved in part to what the deadline is worth at the incumbent's bands."""
        _, slope = band(cell, lengths, deadline(cell, lengths))
        fall = float(slope.sum())
        if part == 0.0 or fall <= 0.0:
            return self
        return Prices(self.band, (1.0 - part) * self.share + part * slope / fall)

    def cheapest(
        self, cell: Cell, value: Floats, tau: float, cap: int
    ) -> tuple[float, Floats, float]:
        """Return the least surplus over prices of band, its terms, and the factor on the price.

        The surplus is convex in the price.
        """
        factors = np.geomspace(1e-2, 1e2, 17)
        for _ in range(3):
            tried = factors
            surplus, terms = self.evaluate(cell, value, tau, cap, tried)
            at = int(np.argmin(surplus))
            edges = factors[max(at - 1, 0)], factors[min(at + 1, len(factors) - 1)]
            factors = np.geomspace(*edges, 7)
            factor = float(tried[at])
        return float(surplus[at]), terms[at], factor

    def evaluate(
        self, cell: Cell, value: Floats, tau: float, cap: int, factors: Floats
    ) -> tuple[Floats, Floats]:
        """Return the surplus [G] and each device's terms [G, K, lengths] at scaled band prices."""
        lengths = np.arange(cell.min_length, cap + 1)
        rows = tau * cell.verify.per_row_s * lengths
        base = value[:, cell.min_length : cap + 1] - rows
        price = (self.band * factors)[:, None, None]
        terms = base - self.charge(cell, lengths, price, tau)
        fixed_s = (
            cell.verify.fixed_s
            + cell.count * (cell.verify.per_request_s + cell.verify.per_row_s)
            + cell.verify.per_padded_row_s * cell.count * (cap + 1)
        )
        best = terms.max(axis=2).sum(axis=1)
        surplus: Floats = best + price[:, 0, 0] * cell.bandwidth_hz - tau * fixed_s
        return surplus, terms

    def wishes(self, cell: Cell, lengths: Ints, tau: float) -> tuple[Floats, Floats]:
        """Return the deadline and the band that every device would choose at its length; [K]."""
        y, price = np.maximum(tau * self.share, 1e-300), max(self.band, 1e-300)
        room = np.sqrt(price * message_bits(cell, lengths) / cell.efficiency / y)
        phi = np.where(lengths > 0, lengths * cell.draft_s + cell.delay_s + room, 0.0)
        hz, _ = band(cell, lengths, phi)
        return phi, np.where(np.isfinite(hz), hz, 0.0)

    def charge(self, cell: Cell, lengths: Ints, price: Floats, tau: float) -> Floats:
        """Return min over phi of price × B_k(l, phi) + y_k phi; [G, K, lengths]."""
        y = np.maximum(tau * self.share, 1e-300)[:, None]
        draft_s = cell.draft_s[:, None]
        drafting_s = lengths * draft_s
        delay_s = np.where(lengths > 0, cell.delay_s[:, None], 0.0)
        if not cell.overlap:
            bits = message_bits(cell, lengths) / cell.efficiency[:, None]
            charge: Floats = y * (drafting_s + delay_s) + 2.0 * np.sqrt(price * bits * y)
            return charge
        one = (cell.overhead_bits + cell.payload_bits) / cell.efficiency[:, None]
        room = np.sqrt(price * one / y)  # [G, K, 1]: where the two branches would put phi
        hidden = drafting_s + room  # all but the last upload hides behind drafting
        upload_bound = draft_s + np.sqrt(lengths) * room
        kink = drafting_s + draft_s
        phi = np.where(room <= draft_s, hidden, np.maximum(upload_bound, kink))
        phi = np.where(lengths > 0, phi + delay_s, 0.0)
        every = np.broadcast_to(lengths[:, None], (len(lengths), cell.count))
        hz, _ = band(cell, every, np.moveaxis(phi, 2, 1))
        used: Floats = price * np.moveaxis(hz, 1, 2) + y * phi
        return used
