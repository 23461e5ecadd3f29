"""Multi-access draft control in the running system: measure, solve when it drifted, grant.

`DraftControl` keeps an estimator per session, link and server, builds the cell that they describe,
and solves it for the engine's policy. It knows neither frames nor sockets; time is passed in.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from edge_server.scheduler.capacity import capacity
from edge_server.scheduler.cell import Cell, CellError, Floats, Plan, VerifyCost
from edge_server.scheduler.continuous import continuous, continuous_plan
from edge_server.scheduler.energy import bounded_plan
from edge_server.scheduler.estimators import (
    DecayedMean,
    RateEstimator,
    RoundTripEstimator,
    SurvivalEstimator,
    VerifyEstimator,
)
from edge_server.scheduler.heterogeneous import heterogeneous
from edge_server.scheduler.interface import Grant, Mode, RoundReport, VerifyReport
from edge_server.scheduler.modes import RatioMode, best_mode, rescaled, with_modes
from edge_server.scheduler.ping_pong import ping_pong

__all__ = ["OBJECTIVES", "DraftControl", "RatioMode"]

LEAST_SHARE = 1e-3
SURVIVAL_KEEP = 0.98
POLISHED = 8  # devices up to which there is time for local moves without a barrier
FIRST_DRAFTS = 8  # rounds that a session drafts before it may be told not to
SWITCH_GAIN = 0.03  # what another policy must promise beyond the present one
DEVICES_PER_S = 500.0  # a plan for more devices than that is solved less often
DEFAULT_DRAFT_S = 0.02
DEFAULT_RATE_BPS = 8e6
LEAST_RATE_BPS, MOST_RATE_BPS = 100.0, 1e12
MOST_ENERGY = (1e3, 1.0, 1e3)  # J per drafted token, J/bit, W: beyond it no board
NO_ENERGY = (0.0, 0.0, 0.0)
MOST_DEVICES = 4096  # whose energy figures are remembered
REPORT_DEVIATION = 0.1
OBJECTIVES = ("capacity", "energy", "fair", "goodput")
POLICIES = ("auto", "continuous", "ping_pong", "synchronous")


@dataclass(slots=True, kw_only=True)
class _Session:
    """What one session has shown, what the plan grants it, and what it was last given."""

    device: str
    mode: Mode
    survival: SurvivalEstimator
    grant: Grant
    given: Grant
    draft_s: DecayedMean = field(default_factory=DecayedMean)
    round_trip: RoundTripEstimator = field(default_factory=RoundTripEstimator)
    rounds_alone: int = 0
    probe_drafts: int = FIRST_DRAFTS


@dataclass(frozen=True, slots=True)
class _Basis:
    """The inputs that a plan was solved from, as logarithms, to judge drift by."""

    sessions: tuple[tuple[str, int], ...]
    inputs: Floats


class DraftControl:
    """Grant lengths, shares and modes from one joint plan (a `Controller`).

    The plan is solved again when a session came or went, or an input moved by more than `drift`
    (relative) since it was solved, and at most every `least_s` seconds. A session that the plan
    leaves at length 0 drafts `probe_rounds` times after every `probe_every` rounds at 0, so that
    its estimates stay true; and every session drafts its first 8 rounds.

    Args:
        policy: the engine's, or `auto`: follow the one with the highest predicted goodput.
        objective: `goodput`, `fair` (proportional), `capacity` (devices served at `rate`), or
            `energy` (tokens per joule).
        bits_per_token: bits of one drafted token on the wire in modes without distributions.
        overhead_bits: bits of a draft message besides.
        shared_band: whether the devices share one medium; if not, every share is 1.
        rate_tokens_per_s: what a device must get under `capacity` and `energy`.
        energy_cap_w: most average power of any device under `energy` and `goodput`, kept before
            the rate where both cannot be had.
        ratio_modes: ratio modes that sampling sessions may be moved to.
        weights: what one token of a device is worth; 1 where not named.
    """

    def __init__(
        self,
        *,
        policy: str = "auto",
        objective: str = "goodput",
        min_length: int = 0,
        max_length: int = 8,
        start_length: int = 4,
        bits_per_token: float = 18.0,
        overhead_bits: float = 800.0,
        overlap: bool = False,
        shared_band: bool = True,
        rate_tokens_per_s: float = 0.0,
        energy_cap_w: float | None = None,
        ratio_modes: tuple[RatioMode, ...] = (),
        weights: dict[str, float] | None = None,
        prior_acceptance: float = 0.7,
        drift: float = 0.1,
        least_s: float = 0.5,
        probe_every: int = 64,
        probe_rounds: int = 2,
    ) -> None:
        if policy not in POLICIES:
            raise ValueError(f"policy must be one of {', '.join(POLICIES)}, got {policy!r}")
        if objective not in OBJECTIVES:
            raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}, got {objective!r}")
        if not 0 <= min_length <= start_length <= max_length:
            raise ValueError(
                "need 0 <= min_length <= start_length <= max_length, got "
                f"{min_length}, {start_length}, {max_length}"
            )
        self._policy, self._objective = policy, objective
        self._min, self._max, self._start = min_length, max_length, start_length
        self._bits, self._overhead = bits_per_token, overhead_bits
        self._overlap, self._shared = overlap, shared_band
        self._rate, self._cap_w = rate_tokens_per_s, energy_cap_w
        if objective == "capacity" and not rate_tokens_per_s > 0.0:
            raise ValueError("objective capacity needs rate_tokens_per_s above 0")
        if energy_cap_w is not None and objective not in ("energy", "goodput"):
            raise ValueError(f"objective {objective} keeps no energy_cap_w: use energy or goodput")
        self._energy: dict[str, tuple[float, float, float]] = {}
        self._ratio_modes = ratio_modes
        self._weights = dict(weights or {})
        self._prior = prior_acceptance
        self._drift, self._least_s = drift, least_s
        self._probe_every, self._probe_rounds = probe_every, probe_rounds
        self._sessions: dict[tuple[str, int], _Session] = {}
        self._links: dict[str, RateEstimator] = {}
        self._verify = VerifyEstimator()
        self._basis: _Basis | None = None
        self._plan: Plan | None = None
        self._looked_s = -math.inf
        self._chosen = "continuous" if policy == "auto" else policy

    @property
    def plan(self) -> Plan | None:
        """The plan that grants follow now, or None before the first."""
        return self._plan

    def policy_name(self) -> str:
        """Return the engine's policy to follow now; give this to `make_policy` as `choose`."""
        return self._chosen

    def groups(self) -> dict[int, int]:
        """Return the group of every session for ping-pong; empty in other policies."""
        if self._plan is None or self._basis is None or not self._plan.groups:
            return {}
        sessions = (session for _, session in self._basis.sessions)
        return dict(zip(sessions, self._plan.groups, strict=True))

    def opened(self, device: str, session: int, *, mode: Mode, now_s: float) -> Grant:  # noqa: ARG002
        """Return a new session's first grant: the start length and an equal share."""
        others = len(self._sessions.keys() - {(device, session)})
        share = 1.0 / (others + 1) if self._shared else 1.0
        grant = Grant(length=self._start, share=share, mode=mode)
        state = _Session(
            device=device,
            mode=mode,
            survival=SurvivalEstimator(
                max_length=max(1, self._max), prior_acceptance=self._prior, keep=SURVIVAL_KEEP
            ),
            grant=grant,
            given=grant,
        )
        self._sessions[device, session] = state
        return grant

    def observe(self, report: RoundReport) -> None:
        """Take in one finished round; rounds of unknown sessions are ignored."""
        state = self._sessions.get((report.device, report.session))
        if state is None:
            return
        if report.drafted == 0:
            state.rounds_alone += 1
            if state.rounds_alone % self._probe_every == 0:
                state.probe_drafts = self._probe_rounds
            return
        state.probe_drafts = max(0, state.probe_drafts - 1)
        state.survival.add(drafted=report.drafted, accepted=report.accepted)
        if report.turnaround_s is None or not report.draft_s > 0.0:
            return
        # What a device says of itself is believed as far as the server's own clock bears it out.
        draft_s = min(report.draft_s, report.turnaround_s)
        state.draft_s.add(draft_s / report.drafted)
        sent_s = 8.0 * report.uplink_bytes / (self._rate_bps(report.device) * state.given.share)
        state.round_trip.add(report.turnaround_s - draft_s - sent_s)

    def observe_verify(self, report: VerifyReport) -> None:
        """Take in one verification pass."""
        self._verify.add(
            requests=report.requests,
            rows=report.rows,
            context_tokens=report.context_tokens,
            duration_s=report.duration_s,
        )

    def observe_link(self, device: str, report: dict[str, object], *, now_s: float) -> None:
        """Take in a link report: `uplink_bps`, the rate at full share; else ignored."""
        rate = report.get("uplink_bps")
        if isinstance(rate, bool) or not isinstance(rate, (int, float)):
            return
        if not LEAST_RATE_BPS <= rate <= MOST_RATE_BPS:
            return
        if not any(name == device for name, _ in self._sessions):
            return  # what no session needs would only grow
        link = self._links.setdefault(device, RateEstimator())
        link.add(float(rate), now_s=now_s, deviation=REPORT_DEVIATION)

    def observe_energy(
        self,
        device: str,
        *,
        draft_j_per_token: float | None,
        tx_j_per_bit: float | None,
        wait_w: float | None,
    ) -> None:
        """Take in what a device measured of itself; what no board can spend is ignored."""
        told = (draft_j_per_token, tx_j_per_bit, wait_w)
        if any(
            figure is not None and not 0.0 <= figure <= most
            for figure, most in zip(told, MOST_ENERGY, strict=True)
        ):
            return
        # Kept without a session too: a device tells what a generation cost once it is over.
        known = self._energy.pop(device, NO_ENERGY)
        if len(self._energy) >= MOST_DEVICES:
            self._energy.pop(next(iter(self._energy)))
        draft_j, tx_j, wait = (
            old if new is None else new for old, new in zip(known, told, strict=True)
        )
        self._energy[device] = (draft_j, tx_j, wait)

    def grant(self, device: str, session: int, *, now_s: float) -> Grant:
        """Return the session's next grant, from a plan solved again if need be."""
        state = self._sessions.get((device, session))
        if state is None:
            return Grant(length=self._start)
        self._follow(now_s)
        probing = state.grant.length == 0 and state.probe_drafts > 0
        state.given = self._probe(state) if probing else state.grant
        return state.given

    def _probe(self, state: _Session) -> Grant:
        """Return a grant that lets a session which stopped drafting show what it would do."""
        if self._max == 0:
            return state.grant
        share = 1.0 / len(self._sessions) if self._shared else 1.0
        return replace(state.grant, length=max(1, min(self._start, self._max)), share=share)

    def closed(self, device: str, session: int, *, now_s: float) -> None:  # noqa: ARG002
        """Forget a session, and its device's link when it was the last."""
        self._sessions.pop((device, session), None)
        if not any(name == device for name, _ in self._sessions):
            self._links.pop(device, None)

    def _rate_bps(self, device: str) -> float:
        link = self._links.get(device)
        rate = None if link is None else link.rate_bps
        return rate or DEFAULT_RATE_BPS

    def _follow(self, now_s: float) -> None:
        """Solve again where the inputs have drifted, and give out new grants."""
        fit = self._verify.fit()
        least_s = max(self._least_s, len(self._sessions) / DEVICES_PER_S)
        if fit is None or now_s - self._looked_s < least_s:
            return
        self._looked_s = now_s
        basis = self._measure()
        if self._basis is not None and self._near(basis, self._basis):
            return
        self._basis = basis
        cell = self.cell()
        plan = self._solve(cell)
        chosen = self._modes(cell, plan)
        if any(chosen):
            with_ratio = with_modes(cell, chosen, length=max(1, self._start))
            other = self._solve(with_ratio)
            if other.weighted_goodput > plan.weighted_goodput:
                cell, plan = with_ratio, other
            else:
                chosen = [None] * cell.count
        self._plan = plan
        self._give(cell, plan, chosen)

    def _measure(self) -> _Basis:
        fit = self._verify.fit()
        assert fit is not None
        size = self._verify.mean_requests or 1.0
        inputs = [
            fit.predict(requests=size, rows=size),
            fit.predict(requests=size, rows=5.0 * size),
        ]
        for state in self._sessions.values():
            curve = state.survival.curve()
            inputs += [
                state.draft_s.value or DEFAULT_DRAFT_S,
                self._rate_bps(state.device),
                1.0 - min(float(curve[0]), 0.999),
                1.0 + float(curve.sum()),
                0.02 + (state.round_trip.round_trip_s or 0.0),
                *self._energy.get(state.device, NO_ENERGY),
            ]
        return _Basis(tuple(self._sessions), np.log(np.maximum(inputs, 1e-9)))

    def _near(self, basis: _Basis, other: _Basis) -> bool:
        if basis.sessions != other.sessions:
            return False
        return bool(np.abs(basis.inputs - other.inputs).max() <= math.log1p(self._drift))

    def link_rates(self) -> dict[str, float]:
        """Return the uplink rate at full share of every device whose link was seen, in bit/s."""
        return {device: link.rate_bps or 0.0 for device, link in list(self._links.items())}

    def cell(self) -> Cell:
        """Return the cell as it is believed to be; band 1 is the whole uplink.

        Raises:
            ValueError: before the first pass, or without sessions.
        """
        fit = self._verify.fit()
        if fit is None or not self._sessions:
            raise ValueError("nothing was measured yet")
        states = list(self._sessions.values())
        context_s = fit.per_context_s * (self._verify.mean_context_tokens or 0.0)
        count = max(self._verify.mean_requests or 1.0, 1.0)
        energy = np.array([self._energy.get(state.device, NO_ENERGY) for state in states])
        return Cell(
            draft_j=energy[:, 0],
            tx_j_per_bit=energy[:, 1],
            wait_w=energy[:, 2],
            energy_cap_w=self._cap_w,
            min_rate=self._rate,
            bandwidth_hz=1.0 if self._shared else float(len(states)),
            payload_bits=self._bits,
            overhead_bits=self._overhead,
            verify=VerifyCost(
                fixed_s=max(fit.fixed_s, 1e-6),
                per_request_s=fit.per_request_s + context_s / count,
                per_row_s=fit.per_row_s,
            ),
            draft_s=np.array([state.draft_s.value or DEFAULT_DRAFT_S for state in states]),
            efficiency=np.array([self._rate_bps(state.device) for state in states]),
            survival=np.array([self._curve(state)[: self._max] for state in states]),
            weight=np.array([self._weights.get(state.device, 1.0) for state in states]),
            delay_s=np.array([state.round_trip.round_trip_s or 0.0 for state in states]),
            min_length=self._min,
            max_length=self._max,
            overlap=self._overlap,
            ids=tuple(f"{device}/{session}" for device, session in self._sessions),
        )

    def _solve(self, cell: Cell) -> Plan:
        """Return the plan for the objective; where that cannot be had, the one for goodput."""
        if self._objective == "energy" or self._cap_w is not None:
            plan = self._solve_bounded(cell)
            if plan is None:
                return self._solve_goodput(cell)
            self._chosen = "synchronous" if self._policy == "auto" else self._policy
            return plan
        if self._objective == "capacity":
            served = capacity(cell, self._rate)
            lengths, bands = np.zeros(cell.count, dtype=np.int64), np.zeros(cell.count)
            lengths[served.served], bands[served.served] = served.lengths, served.bandwidth_hz
            self._chosen = "continuous" if self._policy == "auto" else self._policy
            return continuous_plan(cell, np.maximum(lengths, self._min), bands + 1e-9)
        return self._solve_goodput(cell)

    def _solve_bounded(self, cell: Cell) -> Plan | None:
        """Return the plan within cap and rate; without the rate, or nearest the cap, if need be."""
        try:
            return bounded_plan(cell, efficiency=self._objective == "energy")
        except CellError:
            if self._cap_w is None:
                return None
        return bounded_plan(replace(cell, min_rate=0.0), efficiency=False, strict=False)

    def _solve_goodput(self, cell: Cell) -> Plan:
        fair = self._objective == "fair"
        solvers: dict[str, Callable[[], Plan]] = {
            "continuous": lambda: continuous(cell, fair=fair, polish=cell.count <= POLISHED),
            "synchronous": lambda: heterogeneous(cell, fair=fair),
            "ping_pong": lambda: ping_pong(cell),
        }
        names = [self._policy]
        if self._policy == "auto":
            names = ["continuous", "synchronous"]
            if cell.count > 1 and not fair:
                names.append("ping_pong")
        elif self._policy == "ping_pong" and cell.count < 2:
            names = ["continuous"]
        plans = {name: solvers[name]() for name in names}
        best = max(plans, key=lambda name: plans[name].weighted_goodput)
        kept = plans.get(self._chosen)
        need = 0.0 if kept is None else (1.0 + SWITCH_GAIN) * kept.weighted_goodput
        if plans[best].weighted_goodput > need:
            self._chosen = best
        return plans[self._chosen]

    def _curve(self, state: _Session) -> Floats:
        """Return a session's survival as it would be without distributions."""
        curve = state.survival.curve()
        for ratio in self._ratio_modes:
            if state.grant.mode is Mode.RATIO and state.grant.support == ratio.support:
                return rescaled(curve, 1.0 / ratio.acceptance_gain)
        return curve

    def _modes(self, cell: Cell, plan: Plan) -> list[RatioMode | None]:
        """Return every session's best ratio mode, None where none helps or none is allowed."""
        return [
            best_mode(cell, plan, k, self._ratio_modes) if state.mode is Mode.RATIO else None
            for k, state in enumerate(self._sessions.values())
        ]

    def _give(self, cell: Cell, plan: Plan, chosen: list[RatioMode | None]) -> None:
        for k, state in enumerate(self._sessions.values()):
            share = float(plan.bandwidth_hz[k]) / cell.bandwidth_hz if self._shared else 1.0
            ratio, plain = chosen[k], state.mode
            if plain is Mode.RATIO and self._ratio_modes:
                plain = Mode.COUPLED
            state.grant = Grant(
                length=int(plan.lengths[k]),
                share=min(1.0, max(LEAST_SHARE, share)),
                mode=plain if ratio is None else Mode.RATIO,
                support=0 if ratio is None else ratio.support,
            )
