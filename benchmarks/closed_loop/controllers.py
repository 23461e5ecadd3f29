"""What decides in a scenario: draft control, or the paper's baseline."""

from __future__ import annotations

import contextlib
from typing import Any

from benchmarks.closed_loop.known import MAX_LENGTH, RATES_MBPS, SUPPORT
from edge_server.scheduler.control import DraftControl
from edge_server.scheduler.interface import Controller, Grant, Mode
from edge_server.scheduler.solver import ProcessSolver
from edge_server.scheduler.unmoved import Unmoved
from edge_server.serve import DRAFT_OVERHEAD_BITS, ratio_modes

__all__ = ["SCENARIOS", "choices", "controller"]

SCENARIOS = {
    "adaptive": "synchronous",
    "fixed": "synchronous",
    "fixed-2": "synchronous",
    "continuous": "continuous",
    "ping-pong": "ping_pong",
    "auto": "auto",
}


def controller(name: str, vocabulary_size: int, stack: contextlib.ExitStack) -> Controller:
    """Return what decides in a scenario."""
    if name.startswith("fixed"):
        return Fixed(length=2 if name == "fixed-2" else 8)
    return DraftControl(
        policy=SCENARIOS[name],
        max_length=MAX_LENGTH,
        start_length=4,
        overhead_bits=DRAFT_OVERHEAD_BITS,
        ratio_modes=ratio_modes((SUPPORT,), vocabulary_size),
        always_upload=True,
        solver=stack.enter_context(ProcessSolver()),
    )


def choices(control: Controller) -> dict[str, Any]:
    """Return what a policy asks a controller."""
    if isinstance(control, DraftControl):
        return {"choose": control.policy_name, "groups": control.groups}
    return {}


class Fixed(Unmoved):
    """The same length and an equal share for everyone, whatever is reported."""

    def __init__(self, *, length: int) -> None:
        share = 1.0 / len(RATES_MBPS)
        self._grant = Grant(length=length, share=share, mode=Mode.RATIO, support=SUPPORT)

    def grant(self, device: str, session: int, *, now_s: float) -> Grant:  # noqa: ARG002
        """Return it."""
        return self._grant
