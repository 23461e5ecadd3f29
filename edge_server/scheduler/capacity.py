"""How many devices can be served at a required rate, and with which lengths and shares.

Without a barrier, for a pass of at most D a device served at rate R must draft and upload within
N_k(l) / R - 2 D: a pass of waiting at worst, one of verification. That fixes its band and its load
on the server at every length; the cheapest devices are admitted for as long as band and server
last. D and the exchange rate between band and server time are scanned.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edge_server.scheduler.cell import Cell, CellError, Floats, Ints
from edge_server.scheduler.deadline import band_table_at

__all__ = ["Capacity", "capacity", "server_capacity"]

PASSES = 40
EXCHANGE = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
WAITED = 1.0  # of a pass, for the one in progress: the worst case, which phases can lock into


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Capacity:
    """Who is served, and how.

    Attributes:
        served: the devices' places in the cell.
        lengths, bandwidth_hz: of the served ones.
        pass_s: the longest pass that this allows for.
    """

    served: Ints
    lengths: Ints
    bandwidth_hz: Floats
    pass_s: float

    @property
    def count(self) -> int:
        """How many devices are served."""
        return len(self.served)


def server_capacity(cell: Cell, rate: float) -> int:
    """Return how many devices the server alone serves at `rate` tokens/s, one token a pass."""
    cost = cell.verify
    each_s = cost.per_request_s + cost.per_row_s + cost.per_padded_row_s
    room_s = 1.0 / rate - cost.fixed_s
    if room_s < each_s:
        return 0
    return cell.count if each_s == 0.0 else min(cell.count, int(room_s / each_s + 1e-9))


def capacity(cell: Cell, rate: float) -> Capacity:
    """Return the largest set of devices found that can all be served at `rate` tokens/s.

    Raises:
        CellError: where the rate is not above 0, or padded rows cost (batches differ in length).
    """
    if not 0.0 < rate < np.inf:
        raise CellError(f"the required rate must be above 0 tokens/s, got {rate}")
    if cell.verify.per_padded_row_s > 0.0:
        raise CellError("capacity is not modelled where padded rows cost: per_padded_row_s")
    best = alone(cell, rate)
    lengths = np.arange(cell.min_length, cell.max_length + 1)
    tokens = cell.tokens()[:, cell.min_length :]
    visits = rate / tokens  # a second, [K, lengths]
    cost = cell.verify
    load = visits * (cost.per_request_s + cost.per_row_s * (lengths + 1.0))
    longest_s = float(tokens.max()) / rate
    for pass_s in np.geomspace(cost.fixed_s + cost.per_request_s + 1e-6, longest_s, PASSES):
        phi = tokens / rate - (1.0 + WAITED) * pass_s
        need = band_table_at(cell, lengths, phi) / cell.bandwidth_hz
        need = np.where(phi >= 0.0, need, np.inf)
        for exchange in EXCHANGE:
            found = admit(cell, need, load, exchange, float(pass_s), lengths)
            if found.count > best.count:
                best = found
    return best


def alone(cell: Cell, rate: float) -> Capacity:
    """Return what the server alone serves; nobody where it may not decode alone."""
    count = server_capacity(cell, rate) if cell.min_length == 0 else 0
    return Capacity(
        served=np.arange(count),
        lengths=np.zeros(count, dtype=np.int64),
        bandwidth_hz=np.zeros(count),
        pass_s=1.0 / rate,
    )


def admit(
    cell: Cell, need: Floats, load: Floats, exchange: float, pass_s: float, lengths: Ints
) -> Capacity:
    """Admit the cheapest devices, each at its cheapest length, while both budgets last."""
    price = need + exchange * load
    at = np.argmin(price, axis=1)
    every = np.arange(cell.count)
    order = np.argsort(price[every, at], kind="stable")
    band = need[every, at][order]
    server = load[every, at][order]
    # A pass of D verifies what arrives in D: fixed + D × load = D.
    room = 1.0 - cell.verify.fixed_s / pass_s
    fits = (np.cumsum(band) <= 1.0) & (np.cumsum(server) <= room)
    chosen = order[: int(np.argmin(fits)) if not fits.all() else len(fits)]
    return Capacity(
        served=chosen,
        lengths=lengths[at[chosen]],
        bandwidth_hz=need[chosen, at[chosen]] * cell.bandwidth_hz,
        pass_s=pass_s,
    )
