"""Multi-access draft control in the running system: measure, ask when it drifted, grant.

`DraftControl` keeps an estimator per session, device and server, builds the cell that they
describe, and has it solved for the engine's policy. It knows neither frames nor sockets; time is
passed in.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from edge_server.scheduler.basis import Basis
from edge_server.scheduler.cell import Cell, Plan, VerifyCost
from edge_server.scheduler.devices import KnownDevice, KnownDevices, possible_energy
from edge_server.scheduler.estimators import SurvivalEstimator, VerifyEstimator
from edge_server.scheduler.interface import Grant, Mode, RoundReport, VerifyReport
from edge_server.scheduler.joint import OBJECTIVES, POLICIES, Answer, Question
from edge_server.scheduler.known_session import KnownSession
from edge_server.scheduler.modes import RatioMode
from edge_server.scheduler.solver import InlineSolver, Solver

__all__ = ["DraftControl"]

LEAST_SHARE = 1e-3
SURVIVAL_KEEP = 0.98
FIRST_DRAFTS = 8  # rounds that an unknown device drafts before it may be told not to
DEVICES_KEPT = 4096  # devices whose measurements are remembered, with sessions or without
DEVICES_PER_S = 500.0  # a plan for more devices than that is solved less often


class DraftControl:
    """Grant lengths, shares and modes from one joint plan (a `Controller`).

    The plan is solved again when a session came or went, or an input moved by more than `drift`
    (relative) since it was solved, and at most every `least_s` seconds. A session that the plan
    leaves at length 0 drafts `probe_rounds` times after every `probe_every` rounds at 0, so that
    its estimates stay true; and a device that is new drafts its first 8 rounds. What a device has
    shown is remembered between its sessions.

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
        ratio_modes: ratio modes that sessions which allow it may be moved to.
        always_upload: move them to the first of these whatever it costs.
        weights: what one token of a device is worth; 1 where not named.
        solver: who solves; None: this thread, at once.
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
        always_upload: bool = False,
        weights: dict[str, float] | None = None,
        prior_acceptance: float = 0.7,
        drift: float = 0.1,
        least_s: float = 0.5,
        probe_every: int = 64,
        probe_rounds: int = 2,
        solver: Solver | None = None,
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
        if objective == "capacity" and not rate_tokens_per_s > 0.0:
            raise ValueError("objective capacity needs rate_tokens_per_s above 0")
        if always_upload and not ratio_modes:
            raise ValueError("always_upload needs a ratio mode")
        self._policy, self._objective = policy, objective
        self._min, self._max, self._start = min_length, max_length, start_length
        self._bits, self._overhead = bits_per_token, overhead_bits
        self._overlap, self._shared = overlap, shared_band
        self._rate, self._cap_w = rate_tokens_per_s, energy_cap_w
        if energy_cap_w is not None and objective not in ("energy", "goodput"):
            raise ValueError(f"objective {objective} keeps no energy_cap_w: use energy or goodput")
        self._ratio_modes, self._always_upload = ratio_modes, always_upload
        self._weights = dict(weights or {})
        self._prior = prior_acceptance
        self._drift, self._least_s = drift, least_s
        self._probe_every, self._probe_rounds = probe_every, probe_rounds
        self._solver = solver or InlineSolver()
        self._sessions: dict[tuple[str, int], KnownSession] = {}
        self._devices = KnownDevices(kept=DEVICES_KEPT)
        self._verify = VerifyEstimator()
        self._asked: Basis | None = None  # what the next answer will stand for
        self._basis: Basis | None = None
        self._plan: Plan | None = None
        self._looked_s = -math.inf
        self._following = "continuous" if policy == "auto" else policy

    @property
    def plan(self) -> Plan | None:
        """The plan that grants follow now, or None before the first."""
        return self._plan

    def policy_name(self) -> str:
        """Return the engine's policy to follow now; give this to `make_policy` as `choose`."""
        return self._following

    def groups(self) -> dict[int, int]:
        """Return the group of every session for ping-pong; empty in other policies."""
        if self._plan is None or self._basis is None or not self._plan.groups:
            return {}
        sessions = (session for _, session in self._basis.sessions)
        return dict(zip(sessions, self._plan.groups, strict=True))

    def opened(self, device: str, session: int, *, mode: Mode, now_s: float) -> Grant:
        """Return a new session's first grant: what the device last had, or the start length."""
        known = self._known(device)
        survival = known.next_survival()
        others = len(self._sessions.keys() - {(device, session)})
        share = 1.0 / (others + 1) if self._shared else 1.0
        length = self._start if known.length is None else known.length
        grant = Grant(length=length, share=share, mode=mode)
        self._sessions[device, session] = KnownSession(
            device=known,
            mode=mode,
            survival=survival
            or SurvivalEstimator(
                max_length=max(1, self._max), prior_acceptance=self._prior, keep=SURVIVAL_KEEP
            ),
            grant=grant,
            given=grant,
            probe_drafts=FIRST_DRAFTS if survival is None else 0,
            observed_s=now_s,
        )
        return grant

    def observe(self, report: RoundReport) -> None:
        """Take in one finished round; rounds of unknown sessions are ignored."""
        state = self._sessions.get((report.device, report.session))
        if state is not None:
            state.observe(report, probe_every=self._probe_every, probe_rounds=self._probe_rounds)

    def observe_verify(self, report: VerifyReport) -> None:
        """Take in one verification pass."""
        self._verify.add(
            requests=report.requests,
            rows=report.rows,
            context_tokens=report.context_tokens,
            duration_s=report.duration_s,
        )

    def observe_link(self, device: str, report: dict[str, object], *, now_s: float) -> None:
        """Take in a link report: `uplink_bps`, the rate at full share, and how sure it is.

        `uplink_sd_bps` is its standard deviation, `n` the readings behind it so far: a report that
        merely repeats the last one teaches nothing.
        """
        known = self._devices.get(device)
        if known is not None:
            known.observe_link(report, now_s=now_s)

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
        if possible_energy(told):
            # Without a session too: a device tells what a generation cost once it is over.
            self._known(device).observe_energy(told)

    def grant(self, device: str, session: int, *, now_s: float) -> Grant:
        """Return the session's next grant, from the newest plan."""
        state = self._sessions.get((device, session))
        if state is None:
            return Grant(length=self._start)
        self._follow(now_s)
        probing = state.grant.length == 0 and state.probe_drafts > 0
        state.given = self._probe(state) if probing else state.grant
        return state.given

    def _probe(self, state: KnownSession) -> Grant:
        """Return a grant that lets a session which stopped drafting show what it would do."""
        if self._max == 0:
            return state.grant
        share = 1.0 / len(self._sessions) if self._shared else 1.0
        return replace(state.grant, length=max(1, min(self._start, self._max)), share=share)

    def closed(self, device: str, session: int, *, now_s: float) -> None:  # noqa: ARG002
        """Forget a session; what its device has shown is kept for the next one."""
        state = self._sessions.pop((device, session), None)
        if state is None:
            return
        state.device.survival, state.device.length = state.survival, state.grant.length

    def _known(self, device: str) -> KnownDevice:
        return self._devices.use(device, sessions=self._sessions)

    def _follow(self, now_s: float) -> None:
        """Take over an answer that has come; ask again where the inputs have drifted."""
        self._take_over(self._solver.take())
        fit = self._verify.fit()
        least_s = max(self._least_s, len(self._sessions) / DEVICES_PER_S)
        if fit is None or self._solver.busy or now_s - self._looked_s < least_s:
            return
        self._looked_s = now_s
        basis = self._basis_now()
        if self._basis is not None and basis.near(self._basis, drift=self._drift):
            return
        self._asked = basis
        self._solver.ask(self._question())
        self._take_over(self._solver.take())

    def _take_over(self, answer: Answer | None) -> None:
        if answer is None:
            return
        assert self._asked is not None
        self._basis, self._plan, self._following = self._asked, answer.plan, answer.policy
        band = 1.0 if self._shared else float(len(answer.modes))
        for k, key in enumerate(self._basis.sessions):
            state = self._sessions.get(key)
            if state is None:
                continue  # closed while this was being solved
            ratio, plain = answer.modes[k], state.mode
            if plain is Mode.RATIO and self._ratio_modes:
                plain = Mode.COUPLED
            share = float(answer.plan.bandwidth_hz[k]) / band if self._shared else 1.0
            state.grant = Grant(
                length=int(answer.plan.lengths[k]),
                share=min(1.0, max(LEAST_SHARE, share)),
                mode=plain if ratio is None else Mode.RATIO,
                support=0 if ratio is None else ratio.support,
            )

    def _question(self) -> Question:
        return Question(
            cell=self.cell(),
            policy=self._policy,
            objective=self._objective,
            rate_tokens_per_s=self._rate,
            following=self._following,
            ratio_modes=tuple(
                state.modes(self._ratio_modes, bits_per_token=self._bits)
                for state in self._sessions.values()
            ),
            always_upload=self._always_upload,
            usual_length=max(1, self._start),
        )

    def _basis_now(self) -> Basis:
        fit = self._verify.fit()
        assert fit is not None
        size = self._verify.mean_requests or 1.0
        inputs = [
            fit.predict(requests=size, rows=size),
            fit.predict(requests=size, rows=5.0 * size),
        ]
        for state in self._sessions.values():
            inputs += state.inputs(self._ratio_modes, bits_per_token=self._bits)
        return Basis.of(tuple(self._sessions), inputs)

    def link_rates(self) -> dict[str, float]:
        """Return the uplink rate at full share of every device whose link was seen, in bit/s."""
        return self._devices.link_rates()

    def cell(self) -> Cell:
        """Return the cell as it is believed to be; band 1 is the whole uplink.

        Raises:
            ValueError: before the first pass, or without sessions.
        """
        fit = self._verify.fit()
        if fit is None or not self._sessions:
            raise ValueError("nothing was measured yet")
        states = list(self._sessions.values())
        devices = [state.device for state in states]
        context_s = fit.per_context_s * (self._verify.mean_context_tokens or 0.0)
        count = max(self._verify.mean_requests or 1.0, 1.0)
        energy = np.array([device.energy for device in devices])
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
            draft_s=np.array([device.draft_s for device in devices]),
            efficiency=np.array([device.rate_bps for device in devices]),
            survival=np.array([state.curve(self._ratio_modes)[: self._max] for state in states]),
            weight=np.array([self._weights.get(device, 1.0) for device, _ in self._sessions]),
            delay_s=np.array([device.round_trip_s for device in devices]),
            min_length=self._min,
            max_length=self._max,
            overlap=self._overlap,
            ids=tuple(f"{device}/{session}" for device, session in self._sessions),
        )
