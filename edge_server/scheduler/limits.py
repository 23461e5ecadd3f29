"""What no scheme can exceed in a cell, however it schedules: the physical limits.

Every visit of a device to the verifier takes band, server time and the device's own time. Priced
by Lagrange multipliers (band: a Hz; server: a second), every device stands alone and its best
length is plain; any prices give a valid bound, the best of a grid is reported.
"""

from __future__ import annotations

import numpy as np

from edge_server.scheduler.cell import Cell, Floats
from edge_server.scheduler.deadline import latency, message_bits

__all__ = ["physical_bound", "verification_limit"]

GRID = 24
ROUNDS = 3


def physical_bound(cell: Cell) -> float:
    """Return an upper bound on the weighted goodput of any scheme: barrier, groups or none.

    It leaves out all waiting: what remains are the band, the verifier's time with its fixed part
    spread over everyone, and every device's own time for a round by itself.
    """
    tables = Visits(cell)
    top = tables.bound(np.zeros((1, 1)), np.zeros((1, 1)))[0, 0]  # devices alone
    band = server = np.concatenate(([0.0], np.geomspace(1e-4, 2.0, GRID))) * top
    best = top
    for _ in range(ROUNDS):
        bound = tables.bound(band[:, None] / cell.bandwidth_hz, server[None, :])
        i, j = np.unravel_index(int(np.argmin(bound)), bound.shape)
        best = min(best, float(bound[i, j]))
        band, server = closer(band, int(i)), closer(server, int(j))
    return float(best)


def closer(grid: Floats, at: int) -> Floats:
    """Return a finer grid around a point of this one."""
    low, high = grid[max(at - 1, 0)], grid[min(at + 1, len(grid) - 1)]
    return np.linspace(low, high, GRID + 1)


class Visits:
    """What one visit of each device at each length is worth and costs; [K, lengths] tables."""

    def __init__(self, cell: Cell) -> None:
        lengths = np.arange(cell.min_length, cell.max_length + 1)
        every = np.broadcast_to(lengths[:, None], (len(lengths), cell.count))
        cost = cell.verify
        rows = (cost.per_row_s + cost.per_padded_row_s) * (lengths + 1.0)
        self.bandwidth_hz = cell.bandwidth_hz
        self.value = (cell.weight[:, None] * cell.tokens())[:, cell.min_length :]
        self.band_s = (message_bits(cell, every) / cell.efficiency).T  # Hz × s
        self.server_s = cost.fixed_s / cell.count + cost.per_request_s + rows
        full = np.full(cell.count, cell.bandwidth_hz)
        own_s = latency(cell, every, full).T
        self.often = 1.0 / (own_s + cost.fixed_s + cost.per_request_s + rows)  # at most, a second

    def bound(self, band: Floats, server: Floats) -> Floats:
        """Return the dual at prices of a Hz and of a second of the server; broadcast together."""
        shape = np.broadcast_shapes(band.shape, server.shape)
        total = band * self.bandwidth_hz + np.broadcast_to(server, shape)
        for value, need, often in zip(self.value, self.band_s, self.often, strict=True):
            net = value - band[..., None] * need - server[..., None] * self.server_s
            total = total + np.maximum(net * often, 0.0).max(axis=-1)
        bound: Floats = total
        return bound


def verification_limit(cell: Cell) -> float:
    """Return max Σ N_k / T_ver: what the verifier gives if it never waits for anyone.

    Everyone in every pass, drafts free and instant; each at the length that pays best.
    """
    tokens = cell.weight[:, None] * cell.tokens()
    lengths = np.arange(cell.max_length + 1)
    best = 0.0
    for cap in range(cell.min_length, cell.max_length + 1):
        if cap < cell.max_length and cell.verify.per_padded_row_s == 0.0:
            continue
        value = best
        while True:  # Dinkelbach
            net = tokens[:, : cap + 1] - value * cell.verify.per_row_s * lengths[: cap + 1]
            net[:, : cell.min_length] = -np.inf
            chosen = np.argmax(net, axis=1)
            found = float(tokens[np.arange(cell.count), chosen].sum() / cell.verify_s(chosen))
            if found <= value * (1.0 + 1e-12):
                break
            value = found
        best = max(best, value)
    return best
