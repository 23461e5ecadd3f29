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

__all__ = ["Dual", "dual_bound"]


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
    phi = deadline(cell, lengths)
    total = float(value[np.arange(cell.count), incumbent].sum())
    tau = total / float(deadline(cell, incumbent) + cell.verify_s(incumbent))
    prices = Prices.at(cell, lengths, phi, tau)
    spread = np.geomspace(0.5, 2.0, 15)
    surplus, terms = prices.evaluate(cell, value, tau, cap, spread)
    at = int(np.argmin(surplus))
    closer = spread[at] * np.linspace(0.95, 1.05, 9)
    surplus, terms = prices.evaluate(cell, value, tau, cap, closer)
    at = int(np.argmin(surplus))
    least_s = float(cell.verify_s(np.full(cell.count, cell.min_length)))  # of any round
    return Dual(
        surplus=float(surplus[at]),
        loss=terms[at].max(axis=1, keepdims=True) - terms[at],
        shortest=cell.min_length,
        scale=total,
        bound=tau + max(0.0, float(surplus[at])) / least_s,
    )


@dataclass(frozen=True, slots=True)
class Prices:
    """Price of band, and every device's share of the price of the deadline."""

    band: float
    share: Floats  # [K], sums to 1

    @classmethod
    def at(cls, cell: Cell, lengths: Ints, phi: Floats, tau: float) -> Prices:
        """Return the prices that would hold if these lengths were optimal (KKT)."""
        _, slope = band(cell, lengths, phi)
        fall = float(slope.sum())
        if fall <= 0.0:  # nobody drafts: what one token each would give
            one = np.ones(cell.count, dtype=np.int64)
            _, slope = band(cell, one, deadline(cell, one))
            fall = float(slope.sum())
        return cls(tau / fall, slope / fall)

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
