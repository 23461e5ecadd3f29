"""The default rule for draft lengths: each session for itself, from its own measurements.

Maximises a session's predicted tokens a second, N(L) / (overhead + L × draft time + pass time),
against what the server would give it alone. It knows neither other sessions nor the band; the
joint optimum is `control.py`'s.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edge_server.scheduler.estimators import DecayedMean, SurvivalEstimator, VerifyEstimator
from edge_server.scheduler.interface import Grant, Mode, RoundReport, VerifyReport

__all__ = ["AdaptiveLength"]

PROBE_FIRST_ROUNDS = 24
PROBE_MOST_ROUNDS = 512
PROBE_DRAFTS = 4
FORGET_ALONE_ROUNDS = 256


@dataclass(slots=True, kw_only=True)
class _Session:
    """What one session has shown so far."""

    mode: Mode
    survival: SurvivalEstimator
    draft_s: DecayedMean = field(default_factory=DecayedMean)  # per drafted token
    overhead_s: DecayedMean = field(default_factory=DecayedMean)  # turnaround less drafting
    alone_s: DecayedMean = field(default_factory=DecayedMean)  # turnaround of rounds of length 0
    rounds_alone: int = 0  # in a row, at length 0
    rounds_drafting: int = 0  # since the last round of length 0
    probe_after: int = PROBE_FIRST_ROUNDS
    probe_drafts: int = PROBE_DRAFTS  # rounds that the probe still takes; a session begins with one


class AdaptiveLength:
    """Choose every session's draft length by its own predicted goodput (a `Controller`).

    Length 0 wins where the server alone is predicted to be faster, but no session begins there: its
    first 4 rounds draft. After 24 rounds there, 4 rounds
    probe the best positive length; their timings replace those from before. A probe that changes
    nothing doubles the wait, up to 512 rounds, and a return to drafting resets it. The other way
    round, the turnaround measured at length 0 is forgotten after 256 drafted rounds, and until it
    is measured counts as 0.

    Args:
        min_length: the least length granted; above 0, length 0 is never chosen.
        max_length: the greatest length granted.
        start_length: granted until a pass and a draft have been timed.
        prior_acceptance: acceptance assumed before any round.
    """

    def __init__(
        self,
        *,
        min_length: int = 0,
        max_length: int = 8,
        start_length: int = 4,
        prior_acceptance: float = 0.7,
    ) -> None:
        if not 0 <= min_length <= start_length <= max_length:
            raise ValueError(
                "need 0 <= min_length <= start_length <= max_length, got "
                f"{min_length}, {start_length}, {max_length}"
            )
        self._min = min_length
        self._max = max_length
        self._start = start_length
        self._prior = prior_acceptance
        self._verify = VerifyEstimator()
        self._sessions: dict[tuple[str, int], _Session] = {}

    def opened(self, device: str, session: int, *, mode: Mode, now_s: float) -> Grant:
        """Return a new session's first grant: the start length."""
        self._sessions[device, session] = self._blank(mode)
        return self.grant(device, session, now_s=now_s)

    def observe(self, report: RoundReport) -> None:
        """Take in one finished round; rounds of unknown sessions are ignored."""
        state = self._sessions.get((report.device, report.session))
        if state is None:
            return
        if report.drafted == 0:
            self._observe_alone(state, report)
        else:
            self._observe_draft(state, report)

    def observe_verify(self, report: VerifyReport) -> None:
        """Take in one verification pass."""
        self._verify.add(
            requests=report.requests,
            rows=report.rows,
            context_tokens=report.context_tokens,
            duration_s=report.duration_s,
        )

    def observe_link(self, device: str, report: dict[str, object], *, now_s: float) -> None:
        """Ignore link reports: what a link costs shows in the session's own turnaround."""

    def observe_energy(
        self,
        device: str,
        *,
        draft_j_per_token: float | None,
        tx_j_per_bit: float | None,
        wait_w: float | None,
    ) -> None:
        """Ignore what tokens cost."""

    def grant(self, device: str, session: int, *, now_s: float) -> Grant:  # noqa: ARG002
        """Return the session's next grant."""
        state = self._sessions.get((device, session)) or self._blank(Mode.COUPLED)
        return Grant(length=self._length(state), mode=state.mode)

    def closed(self, device: str, session: int, *, now_s: float) -> None:  # noqa: ARG002
        """Forget a session."""
        self._sessions.pop((device, session), None)

    def _blank(self, mode: Mode) -> _Session:
        survival = SurvivalEstimator(max_length=max(self._max, 1), prior_acceptance=self._prior)
        return _Session(mode=mode, survival=survival)

    def _observe_alone(self, state: _Session, report: RoundReport) -> None:
        state.rounds_alone += 1
        state.rounds_drafting = 0
        if report.turnaround_s is not None:
            state.alone_s.add(max(0.0, report.turnaround_s))

    def _observe_draft(self, state: _Session, report: RoundReport) -> None:
        if state.rounds_alone:
            self._begin_probe(state)
        state.rounds_drafting += 1
        state.probe_drafts = max(0, state.probe_drafts - 1)
        if state.rounds_drafting > 2 * PROBE_DRAFTS:
            state.probe_after = PROBE_FIRST_ROUNDS
        if state.rounds_drafting > FORGET_ALONE_ROUNDS:
            state.alone_s = DecayedMean()
        state.survival.add(drafted=report.drafted, accepted=report.accepted)
        if report.turnaround_s is None:
            if report.draft_s > 0.0:
                state.draft_s.add(report.draft_s / report.drafted)
            return
        # A device that drafted ahead spent more time than the round shows; one that does not say
        # is charged the whole round per token, which errs on the side of shorter drafts.
        spent_s = min(report.draft_s or report.turnaround_s, report.turnaround_s)
        state.draft_s.add(spent_s / report.drafted)
        state.overhead_s.add(report.turnaround_s - spent_s)

    def _begin_probe(self, state: _Session) -> None:
        state.survival.fade(rounds=state.rounds_alone)
        state.draft_s, state.overhead_s = DecayedMean(), DecayedMean()
        state.rounds_alone, state.rounds_drafting = 0, 0
        state.probe_drafts = PROBE_DRAFTS
        state.probe_after = min(2 * state.probe_after, PROBE_MOST_ROUNDS)

    def _length(self, state: _Session) -> int:
        if self._max == 0:
            return 0
        goodput = self._goodput(state)
        if goodput is None:
            return self._start
        drafting = int(np.argmax(goodput[1:])) + 1
        alone_pays = self._min == 0 and goodput[0] >= goodput[drafting]
        probing = state.probe_drafts > 0 or state.rounds_alone >= state.probe_after
        if alone_pays and not probing:
            return 0
        return max(drafting, self._min)

    def _goodput(self, state: _Session) -> NDArray[np.float64] | None:
        """Return predicted tokens/s at lengths 0..max, or None while nothing was timed."""
        fit, draft_s = self._verify.fit(), state.draft_s.value
        if fit is None or draft_s is None:
            return None
        lengths = np.arange(self._max + 1)
        requests = self._verify.mean_requests or 1.0
        others = (self._verify.mean_rows or 1.0) * (1.0 - 1.0 / requests)
        # The pass as it would be with this session's rows among those of a typical pass.
        pass_s = fit.per_row_s * (others + lengths + 1) + fit.predict(
            requests=requests, rows=0.0, context_tokens=self._verify.mean_context_tokens or 0.0
        )
        device_s = (state.overhead_s.value or 0.0) + lengths * draft_s
        device_s[0] = state.alone_s.value or 0.0
        tokens = 1.0 + np.concatenate(([0.0], np.cumsum(state.survival.curve()[: self._max])))
        result: NDArray[np.float64] = tokens / np.maximum(device_s + pass_s, 1e-9)
        return result
