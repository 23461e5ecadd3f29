"""Rounds as an engine reports them, and how far a draft of given acceptance gets."""

from __future__ import annotations

import numpy as np

from edge_server.scheduler.interface import Controller, RoundReport, VerifyReport

__all__ = ["accepted_of", "report_round"]


def report_round(
    control: Controller,
    *,
    device: str = "d",
    session: int = 1,
    drafted: int,
    accepted: int,
    draft_s: float,
    turnaround_s: float,
    pass_s: float,
    now_s: float,
    uplink_bytes: int = 100,
) -> None:
    """Report a pass with one session in it, and that session's round."""
    control.observe_verify(
        VerifyReport(
            requests=1,
            rows=drafted + 1,
            context_tokens=100,
            duration_s=pass_s,
            now_s=now_s,
        )
    )
    control.observe(
        RoundReport(
            device=device,
            session=session,
            drafted=drafted,
            accepted=accepted,
            draft_s=draft_s,
            uplink_bytes=uplink_bytes,
            turnaround_s=turnaround_s,
            now_s=now_s,
        )
    )


def accepted_of(length: int, *, acceptance: float, rng: np.random.Generator) -> int:
    """Return how many tokens of a draft are accepted, each with the same probability."""
    missed = np.flatnonzero(rng.random(length) > acceptance)
    return int(missed[0]) if missed.size else length
