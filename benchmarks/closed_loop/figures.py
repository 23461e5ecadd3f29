"""What a trace comes to between two times, beside what the solver makes of the true cell. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.closed_loop.known import BOARDS, DRAFT_S, MAX_LENGTH, VERIFY
from benchmarks.closed_loop.trace import Trace
from benchmarks.namespaces import GOODPUT_SHARE
from edge_server.scheduler.cell import Cell, Floats, Ints
from edge_server.scheduler.deadline import band, deadline, latency
from edge_server.scheduler.estimators import SurvivalEstimator
from edge_server.scheduler.heterogeneous import heterogeneous
from edge_server.scheduler.interface import Grant
from edge_server.serve import DRAFT_OVERHEAD_BITS
from sdk.protocol import bits_per_id

__all__ = ["Window", "summary", "truth"]


class Window(NamedTuple):
    """The time that counts, on the monotonic clock."""

    begin_s: float
    end_s: float

    def holds(self, at_s: float) -> bool:
        """Return whether a time is in it."""
        return self.begin_s <= at_s < self.end_s


def summary(trace: Trace, window: Window, cell: Cell) -> dict[str, Any]:
    """Return what was granted and reached in a time, and what the solver would have."""
    rounds = [report for report in trace.rounds if window.holds(report.now_s)]
    tokens = sum(1 + report.accepted for report in rounds)
    plans = [plan for at_s, plan in trace.plans if window.holds(at_s)]
    best = heterogeneous(cell)
    found: dict[str, Any] = {
        "goodput_tokens_per_s": round(tokens / (window.end_s - window.begin_s), 2),
        "rounds": [sum(report.device == board for report in rounds) for board in BOARDS],
        "acceptance": [round(float(curve[0]), 3) for curve in cell.survival],
        "bits_per_token": round(cell.payload_bits),
        "reported_mbps": reported_mbps(trace, window),
        "lengths": mean_grants(trace, window, lambda grant: grant.length),
        "shares": mean_grants(trace, window, lambda grant: grant.share),
        "solver": {
            "lengths": best.lengths.tolist(),
            "shares": best.bandwidth_hz.round(3).tolist(),
            "goodput_tokens_per_s": round(best.goodput_tokens_per_s, 2),
        },
    }
    if plans:
        predicted = np.mean([plan.goodput_tokens_per_s for plan in plans])
        found["predicted_tokens_per_s"] = round(float(predicted), 2)
    if plans and plans[0].policy == best.policy:
        rounds_granted = granted(trace, window)
        worths = [worth(cell, *each) for each in rounds_granted]
        found["grants_worth"] = round(float(np.median(worths)) / best.goodput_tokens_per_s, 3)
        off = [shares_off(cell, *each) for each in rounds_granted]
        found["shares_off"] = round(float(np.median(off)), 3)
    return found


def truth(rates_mbps: Sequence[float], trace: Trace, vocabulary_size: int) -> Cell:
    """Return the cell as the testbed was built, with all its rounds' acceptance and bits."""
    counted = {board: SurvivalEstimator(max_length=MAX_LENGTH, keep=1.0) for board in BOARDS}
    for report in trace.rounds:
        counted[report.device].add(drafted=report.drafted, accepted=report.accepted)
    return Cell(
        bandwidth_hz=1.0,
        payload_bits=bits_per_token(trace, vocabulary_size),
        overhead_bits=DRAFT_OVERHEAD_BITS,
        verify=VERIFY,
        draft_s=np.array(DRAFT_S),
        efficiency=1e6 * np.array(rates_mbps) * GOODPUT_SHARE,
        survival=np.array([counted[board].curve() for board in BOARDS]),
        max_length=MAX_LENGTH,
    )


def bits_per_token(trace: Trace, vocabulary_size: int) -> float:
    """Return what a drafted token took on the wire: its id, and ids and weights beside it."""
    drafted = sum(report.drafted for report in trace.rounds)
    uploaded_bits = 8 * sum(report.distribution_bytes for report in trace.rounds)
    return bits_per_id(vocabulary_size) + uploaded_bits / max(drafted, 1)


def granted(trace: Trace, window: Window) -> list[tuple[Ints, Floats]]:
    """Return all boards' lengths and shares after every grant in a time."""
    latest: dict[str, Grant] = {}
    found = []
    for at_s, device, grant in trace.grants:
        latest[device] = grant
        if window.holds(at_s) and len(latest) == len(BOARDS):
            own = [latest[board] for board in BOARDS]
            found.append(
                (np.array([each.length for each in own]), np.array([each.share for each in own]))
            )
    return found


def worth(cell: Cell, lengths: Ints, shares: Floats) -> float:
    """Return the tokens/s that lengths and shares reach in the true cell."""
    arrived_s = float(latency(cell, lengths, shares).max())
    tokens = cell.tokens()[np.arange(cell.count), lengths].sum()
    return float(tokens / (arrived_s + cell.verify_s(lengths)))


def shares_off(cell: Cell, lengths: Ints, shares: Floats) -> float:
    """Return the largest distance of shares from the right ones for these lengths (31)."""
    right, _ = band(cell, lengths, deadline(cell, lengths))
    return float(np.abs(shares - right).max())


def reported_mbps(trace: Trace, window: Window) -> list[list[float]]:
    """Return the first, the middle and the last rate that every board reported in a time."""
    found = []
    for board in BOARDS:
        rates = [
            round(rate / GOODPUT_SHARE * 1e-6, 2)
            for at_s, device, rate in trace.links
            if device == board and rate and window.holds(at_s)
        ]
        found.append([rates[0], rates[len(rates) // 2], rates[-1]] if rates else [])
    return found


def mean_grants(trace: Trace, window: Window, figure: Callable[[Grant], float]) -> list[float]:
    """Return the mean of a figure of every board's grants in a time."""
    means = []
    for board in BOARDS:
        own = [
            figure(grant)
            for at_s, device, grant in trace.grants
            if device == board and window.holds(at_s)
        ]
        means.append(round(float(np.mean(own)), 3))
    return means
