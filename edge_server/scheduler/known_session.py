"""What one session has shown, what the plan grants it, and what it was last given.

Knows its device, but neither the other sessions nor the plan; time is passed in.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from edge_server.scheduler.cell import Floats
from edge_server.scheduler.devices import KnownDevice
from edge_server.scheduler.estimators import SurvivalEstimator
from edge_server.scheduler.interface import Grant, Mode, RoundReport
from edge_server.scheduler.modes import RatioMode, rescaled

__all__ = ["KnownSession"]


@dataclass(slots=True, kw_only=True)
class KnownSession:
    """One session, as draft control knows it.

    Attributes:
        mode: that it was opened in.
        grant: what the plan gives it.
        given: what it was last given, which a probe may change.
        probe_drafts: rounds that it still drafts though the plan says 0.
        observed_s: when its last round was.
        all_accepted: so that the device may have drafted on for the next.
    """

    device: KnownDevice
    mode: Mode
    survival: SurvivalEstimator
    grant: Grant
    given: Grant
    probe_drafts: int
    observed_s: float
    rounds_alone: int = 0
    all_accepted: bool = True

    def observe(self, report: RoundReport, *, probe_every: int, probe_rounds: int) -> None:
        """Take in one finished round; `probe_every` of them at 0 are worth `probe_rounds`."""
        since_s, self.observed_s = report.now_s - self.observed_s, report.now_s
        if report.drafted == 0:
            self.rounds_alone += 1
            if self.rounds_alone % probe_every == 0:
                self.probe_drafts = probe_rounds
            return
        self.probe_drafts = max(0, self.probe_drafts - 1)
        self.survival.add(drafted=report.drafted, accepted=report.accepted)
        # Behind a draft that was accepted whole, a part of the next may have been drafted before.
        drafted_on, self.all_accepted = self.all_accepted, report.accepted == report.drafted
        self.device.observe_round(report, given=self.given, since_s=since_s, drafted_on=drafted_on)

    def modes(
        self, ratio_modes: Iterable[RatioMode], *, bits_per_token: float
    ) -> tuple[RatioMode, ...]:
        """Return how it may upload distributions, with what they really take."""
        if self.mode is not Mode.RATIO:
            return ()
        return tuple(
            self.device.measured(mode, bits_per_token=bits_per_token) for mode in ratio_modes
        )

    def curve(self, ratio_modes: Iterable[RatioMode]) -> Floats:
        """Return its survival as it would be without distributions."""
        curve = self.survival.curve()
        for ratio in ratio_modes:
            if self.grant.mode is Mode.RATIO and self.grant.support == ratio.support:
                return rescaled(curve, 1.0 / ratio.acceptance_gain)
        return curve

    def inputs(self, ratio_modes: Iterable[RatioMode], *, bits_per_token: float) -> list[float]:
        """Return what a plan takes from it, each at least 0, to judge drift by."""
        curve = self.survival.curve()
        return [
            self.device.draft_s,
            self.device.rate_bps,
            1.0 - min(float(curve[0]), 0.999),
            1.0 + float(curve.sum()),
            0.02 + self.device.round_trip_s,
            *self.device.energy,
            *(
                mode.bits_per_token
                for mode in self.modes(ratio_modes, bits_per_token=bits_per_token)
            ),
        ]
