"""What the schedulers are compared with: no control, half control, and no drafting on devices."""

from __future__ import annotations

import numpy as np

from edge_server.scheduler.cell import Cell, CellError, Floats, Ints, Plan, VerifyCost
from edge_server.scheduler.deadline import latency

__all__ = ["co_located", "fixed", "server_only", "uniform_bandwidth"]


def equal_band(cell: Cell) -> Floats:
    """Return the band split equally."""
    return np.full(cell.count, cell.bandwidth_hz / cell.count)


def with_equal_band(cell: Cell, policy: str, lengths: Ints) -> Plan:
    """Return the plan of these lengths when nobody gets more band than others."""
    hz = equal_band(cell)
    round_s = float(latency(cell, lengths, hz).max() + cell.verify_s(lengths))
    tokens = cell.tokens()[np.arange(cell.count), lengths]
    return Plan(
        policy=policy,
        lengths=lengths,
        bandwidth_hz=np.where(lengths > 0, hz, 0.0),
        round_s=round_s,
        rates=tokens / round_s,
        weight=cell.weight,
    )


def fixed(cell: Cell, *, length: int = 8) -> Plan:
    """Return one given length for all and equal band ("Fixed BW&L")."""
    if not 0 <= length <= cell.max_length:
        raise CellError(f"--length must be in [0, {cell.max_length}], got {length}")
    return with_equal_band(cell, "fixed", np.full(cell.count, length))


def uniform_bandwidth(cell: Cell) -> Plan:
    """Return the best lengths under equal band ("Uni-BW"); exact.

    With the band given, a length costs a device a fixed time, so that the only deadlines worth
    trying are those times, and by each of them every device drafts all that still pays.
    """
    low, tokens = cell.min_length, cell.weight[:, None] * cell.tokens()
    lengths = np.arange(cell.max_length + 1)[:, None]
    times = latency(cell, np.broadcast_to(lengths, (len(lengths), cell.count)), equal_band(cell)).T
    best = np.full(cell.count, low)
    value = rate_of(cell, tokens, times, best)
    padded = cell.verify.per_padded_row_s > 0.0
    for cap in range(low + 1, cell.max_length + 1) if padded else (cell.max_length,):
        while True:  # Dinkelbach: price a second at the incumbent until nothing improves
            found = by_deadline(cell, tokens, times, value, cap)
            gain = rate_of(cell, tokens, times, found)
            if gain <= value * (1.0 + 1e-12):
                break
            best, value = found, gain
    return with_equal_band(cell, "uniform-bandwidth", best)


def rate_of(cell: Cell, tokens: Floats, times: Floats, lengths: Ints) -> float:
    """Return weighted goodput of lengths whose times are tabulated [K, lengths]."""
    every = np.arange(cell.count)
    round_s = times[every, lengths].max() + cell.verify_s(lengths)
    return float(tokens[every, lengths].sum() / round_s)


def by_deadline(cell: Cell, tokens: Floats, times: Floats, price: float, cap: int) -> Ints:
    """Return the lengths that maximise tokens - price × round time over all deadlines."""
    low, row = cell.min_length, price * cell.verify.per_row_s
    gain = np.diff(tokens[:, : cap + 1], axis=1)[:, low:] - row
    due = times[:, low + 1 : cap + 1]
    if due.size == 0:
        return np.full(cell.count, low)
    start_s = times[:, low].max()
    worth = np.where(gain > 0.0, gain, 0.0).ravel()
    when = np.maximum(due, start_s).ravel()
    order = np.argsort(when, kind="stable")
    total = np.cumsum(worth[order]) - price * when[order]
    at = int(np.argmax(total))
    if total[at] <= -price * start_s:
        return np.full(cell.count, low)
    taken = np.zeros(worth.shape, dtype=np.int64)
    taken[order[: at + 1]] = 1
    taken[worth <= 0.0] = 0
    lengths: Ints = low + taken.reshape(due.shape).sum(axis=1)
    return lengths


def server_only(cell: Cell) -> Plan:
    """Return plain decoding on the server: one token per device and pass, nothing uploaded."""
    lengths = np.zeros(cell.count, dtype=np.int64)
    round_s = float(cell.verify_s(lengths))
    return Plan(
        policy="server-only",
        lengths=lengths,
        bandwidth_hz=np.zeros(cell.count),
        round_s=round_s,
        rates=np.full(cell.count, 1.0 / round_s),
        weight=cell.weight,
        bound_tokens_per_s=float(cell.weight.sum() / round_s),
    )


def co_located(cell: Cell, *, draft: VerifyCost) -> Plan:
    """Return drafting and verifying both on the server ("Cen-SPIN"), at the best common length.

    Args:
        cell: the cell; its links and draft times are not used.
        draft: what one drafting pass (one token for everyone) costs the server.
    """
    step_s = draft.fixed_s + cell.count * (draft.per_request_s + draft.per_row_s)
    lengths = np.arange(cell.max_length + 1)
    every = np.broadcast_to(lengths[:, None], (len(lengths), cell.count))
    round_s = lengths * step_s + cell.verify_s(every)
    tokens = cell.tokens()  # [K, lengths]
    best = int(np.argmax((cell.weight @ tokens) / round_s))
    return Plan(
        policy="co-located",
        lengths=np.full(cell.count, best),
        bandwidth_hz=np.zeros(cell.count),
        round_s=float(round_s[best]),
        rates=tokens[:, best] / round_s[best],
        weight=cell.weight,
    )
