"""What is watched: a controller's reports, grants and plans, as they come."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from edge_server.scheduler.cell import Plan
from edge_server.scheduler.interface import Controller, Grant, Mode, RoundReport

__all__ = ["Trace", "Watched"]


@dataclass(slots=True)
class Trace:
    """Every round, and what was granted, of one scenario."""

    rounds: list[RoundReport] = field(default_factory=list)
    grants: list[tuple[float, str, Grant]] = field(default_factory=list)
    plans: list[tuple[float, Plan]] = field(default_factory=list)
    links: list[tuple[float, str, float | None]] = field(default_factory=list)

    def rounds_of(self, device: str) -> int:
        """Return how many rounds a board has had, with a draft or, where granted 0, without."""
        return sum(report.device == device for report in self.rounds)


class Watched:
    """A controller that is watched at work."""

    def __init__(self, control: Controller, trace: Trace) -> None:
        self._control, self._trace = control, trace

    def opened(self, device: str, session: int, *, mode: Mode, now_s: float) -> Grant:
        """Pass on."""
        return self._control.opened(device, session, mode=mode, now_s=now_s)

    def observe(self, report: RoundReport) -> None:
        """Note the round."""
        self._trace.rounds.append(report)
        self._control.observe(report)

    def observe_link(self, device: str, report: dict[str, Any], *, now_s: float) -> None:
        """Note the rate."""
        self._trace.links.append((now_s, device, report.get("uplink_bps")))
        self._control.observe_link(device, report, now_s=now_s)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._control, name)

    def grant(self, device: str, session: int, *, now_s: float) -> Grant:
        """Note the grant."""
        grant = self._control.grant(device, session, now_s=now_s)
        self._trace.grants.append((now_s, device, grant))
        plan = getattr(self._control, "plan", None)
        if plan is not None:
            self._trace.plans.append((now_s, plan))
        return grant
