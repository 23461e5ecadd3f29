"""A modelled cell, event by event, under the real policies and controllers of the engine.

Devices draft and upload in the time that the cell's model gives them, the server verifies what the
policy picks, acceptance is drawn from the survival curves. It knows no solver: a `Controller` says
what every device may do, a `Policy` who is verified.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edge_server.scheduler.cell import Cell, Ints, Plan
from edge_server.scheduler.deadline import message_bits
from edge_server.scheduler.interface import (
    Controller,
    Grant,
    Mode,
    Policy,
    RoundReport,
    VerifyReport,
    Waiting,
)
from edge_server.scheduler.unmoved import Unmoved

__all__ = ["Fade", "Outcome", "Prescribed", "no_fading", "run_cell"]

Fade = Callable[[int, float], float]
"""What device k's link is worth at a time, as a factor on its spectral efficiency."""

ARRIVED, VERIFIED, ASK = 0, 1, 2


def no_fading(device: int, now_s: float) -> float:  # noqa: ARG001
    """Return 1: the link stays as the cell says."""
    return 1.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcome:
    """What a run came to, after its warm-up.

    Attributes:
        tokens: tokens committed, per device.
        rounds: verdicts, per device.
        duration_s: modelled time counted.
        busy_s: of it, time that the server was verifying.
        passes: verification passes.
    """

    tokens: Ints
    rounds: Ints
    duration_s: float
    busy_s: float
    passes: int

    @property
    def goodput_tokens_per_s(self) -> float:
        """Tokens of all devices a second."""
        return float(self.tokens.sum()) / self.duration_s


class Prescribed(Unmoved):
    """A controller that grants what a plan says and learns nothing."""

    def __init__(self, *, plan: Plan, cell: Cell) -> None:
        shares = np.clip(plan.bandwidth_hz / cell.bandwidth_hz, 1e-12, 1.0)
        self._grants = [
            Grant(length=int(length), share=float(share))
            for length, share in zip(plan.lengths, shares, strict=True)
        ]

    def grant(self, device: str, session: int, *, now_s: float) -> Grant:  # noqa: ARG002
        """Return the plan's grant."""
        return self._grants[session]


class _Run:
    """The state of one run; sessions are the devices' numbers."""

    def __init__(
        self,
        cell: Cell,
        policy: Policy,
        control: Controller,
        fade: Fade,
        luck: Callable[[int], float],
        warm_up_s: float,
    ) -> None:
        self.cell, self.policy, self.control = cell, policy, control
        self.fade, self.luck, self.warm_up_s = fade, luck, warm_up_s
        self.events: list[tuple[float, int, int, tuple[int, ...]]] = []
        self.count = 0
        self.waiting: list[Waiting] = []
        self.busy = False
        self.active = set(range(cell.count))
        self.granted: list[Grant] = []
        self.sent_s = np.zeros(cell.count)  # when the last verdict left
        self.draft_s = np.zeros(cell.count)
        self.turnaround_s = np.zeros(cell.count)
        self.tokens = np.zeros(cell.count, dtype=np.int64)
        self.rounds = np.zeros(cell.count, dtype=np.int64)
        self.busy_s, self.passes = 0.0, 0

    def push(self, at_s: float, kind: int, sessions: tuple[int, ...]) -> None:
        self.count += 1  # keeps events of one time in the order they were made
        heapq.heappush(self.events, (at_s, self.count, kind, sessions))

    def begin(self, session: int, grant: Grant, now_s: float) -> None:
        """Let a device draft and upload under its grant."""
        cell, length = self.cell, grant.length
        self.sent_s[session] = now_s
        self.draft_s[session] = length * cell.draft_s[session]
        self.push(now_s + self.away_s(session, grant, now_s), ARRIVED, (session,))

    def away_s(self, session: int, grant: Grant, now_s: float) -> float:
        cell, length = self.cell, grant.length
        if length == 0:  # the server goes on alone
            return 0.0
        speed = grant.share * cell.bandwidth_hz * float(cell.efficiency[session])
        speed *= self.fade(session, now_s)
        draft_s = float(cell.draft_s[session])
        delay_s = float(cell.delay_s[session])
        if not cell.overlap:
            return length * draft_s + self.bits(length) / speed + delay_s
        token_s = self.bits(length) / length / speed
        return length * max(draft_s, token_s) + min(draft_s, token_s) + delay_s

    def bits(self, length: int) -> float:
        return float(message_bits(self.cell, np.asarray(length)))

    def arrived(self, session: int, now_s: float) -> None:
        self.turnaround_s[session] = now_s - self.sent_s[session]
        rows = self.granted[session].length + 1
        self.waiting.append(
            Waiting(device=self.cell.ids[session], session=session, arrived_s=now_s, rows=rows)
        )

    def ask(self, now_s: float) -> None:
        """Start a pass if the policy wants one, else come back when it says."""
        picked = self.policy.pick(self.waiting, active=self.active, now_s=now_s)
        if not picked:
            wake_s = self.policy.wake_s(self.waiting, now_s=now_s)
            if wake_s is not None:
                self.push(now_s + wake_s, ASK, ())
            return
        chosen = set(picked)
        rows = [draft.rows for draft in self.waiting if draft.session in chosen]
        self.waiting = [draft for draft in self.waiting if draft.session not in chosen]
        cost = self.cell.verify
        duration_s = (
            cost.fixed_s
            + cost.per_request_s * len(rows)
            + cost.per_row_s * sum(rows)
            + cost.per_padded_row_s * len(rows) * max(rows)
        )
        self.busy = True
        if now_s >= self.warm_up_s:
            self.busy_s += duration_s
            self.passes += 1
        self.push(now_s + duration_s, VERIFIED, tuple(picked))
        self.control.observe_verify(
            VerifyReport(
                requests=len(rows),
                rows=sum(rows),
                context_tokens=0,
                duration_s=duration_s,
                now_s=now_s + duration_s,
            )
        )

    def verified(self, sessions: tuple[int, ...], now_s: float) -> None:
        self.busy = False
        for session in sessions:
            length = self.granted[session].length
            survived = self.cell.survival[session, :length] > self.luck(session)
            accepted = int(survived.sum())
            if now_s >= self.warm_up_s:
                self.tokens[session] += accepted + 1
                self.rounds[session] += 1
            self.report(session, length, accepted, now_s)
            grant = self.control.grant(self.cell.ids[session], session, now_s=now_s)
            self.granted[session] = grant
            self.begin(session, grant, now_s)

    def report(self, session: int, length: int, accepted: int, now_s: float) -> None:
        self.control.observe(
            RoundReport(
                device=self.cell.ids[session],
                session=session,
                drafted=length,
                accepted=accepted,
                draft_s=float(self.draft_s[session]),
                uplink_bytes=int(self.bits(length) / 8.0),
                turnaround_s=float(self.turnaround_s[session]),
                now_s=now_s,
            )
        )


def run_cell(
    *,
    cell: Cell,
    policy: Policy,
    control: Controller,
    duration_s: float,
    warm_up_s: float = 0.0,
    seed: int = 0,
    fade: Fade = no_fading,
    luck: Callable[[int], float] | None = None,
    until: Callable[[float], None] | None = None,
) -> Outcome:
    """Run a cell for `duration_s` of modelled time after `warm_up_s`, seeded.

    Args:
        cell: the truth, which the controller does not see.
        policy: who is verified when.
        control: what every device may do; told of every round and pass.
        duration_s: modelled seconds that count.
        warm_up_s: modelled seconds before, that do not count.
        seed: of acceptance.
        fade: every link over time.
        luck: draws in [0, 1) that decide how far device k's draft is accepted; seeded if None.
        until: called with the time of every event, for link reports and observation.
    """
    rng = np.random.default_rng(seed)
    run = _Run(cell, policy, control, fade, luck or (lambda _: float(rng.random())), warm_up_s)
    for session in range(cell.count):
        grant = control.opened(cell.ids[session], session, mode=Mode.COUPLED, now_s=0.0)
        run.granted.append(grant)
        run.begin(session, grant, 0.0)
    end_s = warm_up_s + duration_s
    while run.events and run.events[0][0] < end_s:
        now_s, _, kind, sessions = heapq.heappop(run.events)
        if until is not None:
            until(now_s)
        if kind == ARRIVED:
            run.arrived(sessions[0], now_s)
        elif kind == VERIFIED:
            run.verified(sessions, now_s)
        # Whatever happens at the same instant comes first: a pass takes all that has arrived.
        if not run.busy and run.waiting and not (run.events and run.events[0][0] <= now_s):
            run.ask(now_s)
    return Outcome(
        tokens=run.tokens,
        rounds=run.rounds,
        duration_s=duration_s,
        busy_s=run.busy_s,
        passes=run.passes,
    )
