"""The deadline phi by which every draft has arrived, and the band that meets it.

Equations (31) and (32) of the paper for whole uploads, and their counterparts when each token is
uploaded while the next is drafted. It knows no objective.
"""

from __future__ import annotations

import numpy as np

from edge_server.scheduler.cell import Cell, Floats, Ints

__all__ = ["band", "band_table", "band_table_at", "deadline", "latency", "message_bits"]

NEWTON_STEPS = 80


def message_bits(cell: Cell, lengths: Ints) -> Floats:
    """Return the bits that drafts of these lengths put on the air; 0 for length 0."""
    if cell.overlap:
        message = np.float64(cell.overhead_bits + cell.payload_bits)
        separate: Floats = lengths * message
        return separate
    overhead = np.where(lengths > 0, cell.overhead_bits, 0.0)
    bits: Floats = overhead + lengths * cell.payload_bits
    return bits


def latency(cell: Cell, lengths: Ints, bandwidth_hz: Floats) -> Floats:
    """Return each device's time to draft and upload, equation (15), in seconds; [..., K]."""
    speed = np.maximum(bandwidth_hz * cell.efficiency, 1e-300)
    if cell.overlap:
        token_s = (cell.overhead_bits + cell.payload_bits) / speed
        slower, faster = np.maximum(cell.draft_s, token_s), np.minimum(cell.draft_s, token_s)
    else:
        slower, faster = cell.draft_s, message_bits(cell, lengths) / speed
    drafts: Floats = np.where(lengths > 0, lengths * slower + faster + cell.delay_s, 0.0)
    return drafts


def band(cell: Cell, lengths: Ints, phi: Floats) -> tuple[Floats, Floats]:
    """Return the least band B_k that meets the deadline phi, equation (31), and -dB_k/dphi.

    `lengths` [..., K] and `phi` broadcast against each other; infinite where no band suffices.
    """
    left = phi - cell.delay_s
    drafting_s = lengths * cell.draft_s
    if cell.overlap:
        one = (cell.overhead_bits + cell.payload_bits) / cell.efficiency
        upload_bound = left >= drafting_s + cell.draft_s
        need = np.where(upload_bound, one * lengths, one * (lengths > 0))
        room = left - np.where(upload_bound, np.minimum(lengths, 1) * cell.draft_s, drafting_s)
    else:
        need = message_bits(cell, lengths) / cell.efficiency
        room = left - drafting_s
    with np.errstate(divide="ignore", invalid="ignore"):
        hz = np.where(need > 0.0, np.where(room > 0.0, need / room, np.inf), 0.0)
        slope = np.where(need > 0.0, hz / room, 0.0)
    return hz, slope


def deadline(cell: Cell, lengths: Ints) -> Floats:
    """Return phi, the root of Σ B_k(phi) = B, equation (32); lengths [..., K] -> [...].

    Newton on 1/ΣB_k, which is concave in phi: from the time that the slowest device would need
    with the whole band to itself it climbs to the root without overshooting.
    """
    alone_s = latency(cell, lengths, np.full(cell.count, cell.bandwidth_hz)).max(axis=-1)
    phi: Floats = alone_s * (1.0 + 1e-13)  # off the pole where an upload takes next to no time
    for _ in range(NEWTON_STEPS):
        hz, slope = band(cell, lengths, phi[..., None])
        total, fall = hz.sum(axis=-1), slope.sum(axis=-1)
        excess = total / cell.bandwidth_hz - 1.0
        # At the start one device alone may use all the band, to within rounding.
        step = np.where(fall > 0.0, total * excess / np.where(fall > 0.0, fall, 1.0), 0.0)
        phi = phi + np.maximum(step, 0.0)
        # Close to a pole rounding of phi alone keeps the excess from ending at 0.
        if np.all((excess <= 1e-13) | (step <= 4e-16 * phi)):
            break
    return phi


def band_table(cell: Cell, phi: Floats, longest: int) -> Floats:
    """Return the band of every device at every length 0..longest; phi [M] -> [M, K, longest+1]."""
    lengths = np.arange(longest + 1)[:, None, None]  # [longest + 1, 1, 1]
    hz, _ = band(cell, np.broadcast_to(lengths, (longest + 1, 1, cell.count)), phi[None, :, None])
    return np.moveaxis(hz, 0, 2)


def band_table_at(cell: Cell, lengths: Ints, phi: Floats) -> Floats:
    """Return the band at each of the lengths [n], each device's phi its own; [K, n] -> [K, n]."""
    every = np.broadcast_to(lengths[:, None], (len(lengths), cell.count))
    table: Floats = band(cell, every, phi.T)[0].T
    return table
